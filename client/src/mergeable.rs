//! What a part of a fleet tells beside its summary, so that one report can be made of all parts: raw counts, histograms,
//! and the clocks they are by. Plain data.
//!
//! Invariant: nothing here is an average or a percentile: whatever has to be added up can be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kernel_tuning::host::{Environment, environment, sysctl};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Config, Division};
use crate::part::Part;
use crate::summary::{Course, Report, Summary, by_errno};
use crate::tally::Measured;
use crate::times::Times;

/// Version of this form. It grows when a reader of the old one would misread the new one.
pub const SCHEMA: u32 = 1;

/// What is each part's own business, and no part of what the fleet was asked for.
const OWN: [&str; 8] = [
    "cores",
    "json",
    "part",
    "samples",
    "sample_interval_seconds",
    "hlog",
    "tui",
    "until_stdin_closes",
];

/// What a part tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mergeable {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Its version.
    pub throng_version: String,
    /// Which part.
    #[serde(flatten)]
    pub part: Part,
    /// The configuration of the whole fleet: the same in every part of it.
    pub asked: Value,
    /// Where it ran.
    pub host: Host,
    /// The clocks of that.
    pub clock: Clock,
    /// When what began, from the start of the run on.
    pub course: Moments,
    /// Counts, by name.
    pub counters: BTreeMap<String, u64>,
    /// Failures and losses, by kind and cause.
    pub causes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Times by phase, in the order of the run.
    pub phases: Vec<PhaseTimes>,
    /// Why it ended, as in the summary.
    pub ended: String,
    /// All wanted connections were established, none was lost, and all that was heard was right.
    pub is_flawless: bool,
    /// What stopped it short, and what to do about it.
    pub diagnosis: Option<String>,
    /// Which workers had no time left, and what that means.
    pub bottleneck: Option<String>,
}

/// The host of a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: Option<String>,
    /// Which boot of which kernel: parts with the same one have the same clocks.
    pub boot_id: Option<String>,
    /// What it is.
    pub environment: Environment,
}

/// What the clocks said at the start of the run and at its end, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// When it was to start, since 1970; none: at once.
    pub start_at_unix_us: Option<u64>,
    /// At its start, by the clock of day, since 1970.
    pub began_unix_us: u64,
    /// The same by CLOCK_MONOTONIC.
    pub began_monotonic_us: u64,
    /// At its end, by the clock of day.
    pub ended_unix_us: u64,
    /// The same by CLOCK_MONOTONIC.
    pub ended_monotonic_us: u64,
}

/// Moments of a run, from its start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// The first connect began.
    pub first_connect_us: Option<u64>,
    /// The last connection was established.
    pub last_established_us: Option<u64>,
    /// All were up, and messages and cycles began; none where it did not come to that.
    pub hold_from_us: Option<u64>,
    /// That was over.
    pub hold_to_us: Option<u64>,
}

/// How long things took in one phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// Its name, as in samples.
    pub phase: String,
    /// By what took its time, as tagged in an interval log.
    pub times: BTreeMap<String, Times>,
}

/// The clocks at the start of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    pub(crate) unix: SystemTime,
    monotonic: Duration,
}

impl Began {
    /// As a run's own clock read `start`.
    pub(crate) fn at(start: Instant) -> Began {
        let since = start.elapsed();
        Began {
            unix: SystemTime::now() - since,
            monotonic: monotonic().saturating_sub(since),
        }
    }
}

impl Mergeable {
    /// Of the part that `division` says.
    pub(crate) fn new(
        division: &Division,
        summary: &Summary,
        (report, measured, course): (&Report, &[Measured], &Course),
        began: Began,
    ) -> Mergeable {
        let us = |time: Duration| time.as_micros() as u64;
        let unix_us = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, us);
        let has_held = !course.hold_from.is_zero();
        let of_phase = |measured: &Measured| PhaseTimes {
            phase: measured.phase.name().to_owned(),
            times: measured
                .histograms
                .iter()
                .map(|(kind, histogram)| (kind.name().to_owned(), Times::new(histogram)))
                .collect(),
        };
        Mergeable {
            schema: SCHEMA,
            throng_version: env!("CARGO_PKG_VERSION").to_owned(),
            part: division.part,
            asked: asked(&division.whole),
            host: Host {
                name: sysctl("kernel.hostname").ok(),
                boot_id: sysctl("kernel.random.boot_id").ok(),
                environment: environment(),
            },
            clock: Clock {
                start_at_unix_us: summary.config.start_at.map(unix_us),
                began_unix_us: unix_us(began.unix),
                began_monotonic_us: us(began.monotonic),
                ended_unix_us: unix_us(SystemTime::now()),
                ended_monotonic_us: us(monotonic()),
            },
            course: Moments {
                first_connect_us: report.first_connect.map(us),
                last_established_us: report.last_established.map(us),
                hold_from_us: has_held.then(|| us(course.hold_from)),
                hold_to_us: has_held.then(|| us(course.hold_from + course.hold)),
            },
            counters: counters(summary, report, course),
            causes: causes(report),
            phases: measured.iter().map(of_phase).collect(),
            ended: summary.ended.name().to_owned(),
            is_flawless: summary.is_flawless(),
            diagnosis: summary.diagnosis.clone(),
            bottleneck: summary.load.bottleneck.clone(),
        }
    }
}

/// What the whole fleet was asked for, without what is each part's own.
fn asked(whole: &Config) -> Value {
    // A configuration is made of numbers, texts and lists of them.
    let mut asked = serde_json::to_value(whole).unwrap_or_default();
    if let Some(fields) = asked.as_object_mut() {
        fields.retain(|name, _| !OWN.contains(&name.as_str()));
    }
    asked
}

fn counters(summary: &Summary, report: &Report, course: &Course) -> BTreeMap<String, u64> {
    let (counts, at_hold_end) = (&course.counts, &course.at_hold_end);
    let named = [
        ("connections_wanted", summary.connections_wanted),
        ("established", counts.established),
        ("established_at_once", report.established_max),
        ("failed", counts.failed),
        ("lost", counts.lost),
        ("announced", counts.announced),
        ("ports_in_use", report.collisions),
        ("unended", report.unended),
        ("bytes_received", counts.bytes_received),
        ("greetings_verified", report.greetings_verified),
        ("greetings_missing", report.greetings_missing),
        ("heartbeats", counts.heartbeats),
        ("heartbeats_late", counts.heartbeats_late),
        ("heartbeats_missing", report.heartbeats_missing),
        (
            "storm_heard",
            summary.storm.as_ref().map_or(0, |storm| storm.heard),
        ),
        ("active", report.active),
        ("messages", counts.messages),
        ("messages_at_hold_end", at_hold_end.messages),
        ("messages_due", report.messages_due),
        ("messages_owed", counts.owed),
        ("messages_mismatched", report.messages_mismatched),
        ("messages_unanswered", report.messages_unanswered),
        ("churning", report.churning),
        ("cycles", counts.cycles),
        ("cycles_at_hold_end", at_hold_end.cycles),
        ("cycles_due", report.cycles_due),
        ("cycles_owed", counts.cycles_owed),
        ("cycles_unfinished", report.cycles_unfinished),
        ("reconnects_attempted", report.reconnects_attempted),
        ("reconnected", counts.reconnected),
        ("still_lost", report.still_lost),
    ];
    named
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

fn causes(report: &Report) -> BTreeMap<String, BTreeMap<String, u64>> {
    let named = [
        ("failed", by_errno(&report.failed)),
        ("lost", report.lost.clone()),
        ("churn_failed", by_errno(&report.churn_failed)),
        ("reconnects_failed", by_errno(&report.reconnects_failed)),
    ];
    named
        .into_iter()
        .map(|(kind, causes)| (kind.to_owned(), causes))
        .collect()
}

/// CLOCK_MONOTONIC, clock_gettime(2), which every Linux has.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn config(flags: &str) -> Config {
        let words = format!("throng-client 127.0.0.1:7000 --connections 10 {flags}");
        Config::parse(words.split_whitespace().map(OsString::from))
            .unwrap()
            .0
    }

    #[test]
    fn what_was_asked_is_the_same_in_every_part_and_differs_with_any_other_flag() {
        let of = |flags: &str| asked(&config(flags).part.unwrap().whole);
        let first = of("--part 1/3 --json a --hlog b");
        assert_eq!(
            first,
            of("--part 3/3 --json c --sample-interval 2s --until-stdin-closes")
        );
        assert_eq!(first["connections"], 10);
        for flags in [
            "--hold 11s",
            "--rate 5",
            "--close fin",
            "--active 3",
            "--source 127.2.0.0/16",
        ] {
            assert_ne!(first, of(&format!("--part 1/3 {flags}")), "{flags}");
        }
    }
}
