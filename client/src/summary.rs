//! What was measured: each worker's report, merged, and as data that can be written.
//!
//! Pure. Invariant: histograms are kept by worker and merged once, after the workers have ended; no sample is
//! dropped (a value past the last bucket counts in it).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use kernel_tuning::limit::Step;
use nix::errno::Errno;
use serde::Serialize;

use crate::canary;
use crate::config::Config;
use crate::counters::Counts;

/// One worker's figures at its end.
pub(crate) struct Report {
    pub(crate) first_connect: Option<Duration>,
    pub(crate) last_established: Option<Duration>,
    /// The most connections established at once.
    pub(crate) established_max: u64,
    /// By step and errno.
    pub(crate) failed: BTreeMap<(Step, i32), u64>,
    /// A source address that is not one of this host.
    pub(crate) unbound: Option<IpAddr>,
    pub(crate) lost: BTreeMap<String, u64>,
    pub(crate) collisions: u64,
    pub(crate) greetings_verified: u64,
    pub(crate) greetings_missing: u64,
    pub(crate) heartbeats_missing: u64,
    pub(crate) active: u64,
    pub(crate) messages_mismatched: u64,
    pub(crate) messages_unanswered: u64,
    /// All in microseconds.
    pub(crate) connect_latency: Histogram<u64>,
    pub(crate) heartbeat_lateness: Histogram<u64>,
    pub(crate) message_latency: Histogram<u64>,
    pub(crate) ring: ring::Stats,
}

impl Report {
    /// The longest latency told apart, in microseconds: an hour.
    const LONGEST_US: u64 = 3_600_000_000;

    pub(crate) fn new() -> anyhow::Result<Report> {
        let histogram = || Histogram::new_with_max(Self::LONGEST_US, 3);
        Ok(Report {
            first_connect: None,
            last_established: None,
            established_max: 0,
            failed: BTreeMap::new(),
            unbound: None,
            lost: BTreeMap::new(),
            collisions: 0,
            greetings_verified: 0,
            greetings_missing: 0,
            heartbeats_missing: 0,
            active: 0,
            messages_mismatched: 0,
            messages_unanswered: 0,
            connect_latency: histogram()?,
            heartbeat_lateness: histogram()?,
            message_latency: histogram()?,
            ring: ring::Stats::default(),
        })
    }

    /// Takes `other` in.
    pub(crate) fn merge(&mut self, other: Report) -> anyhow::Result<()> {
        self.first_connect = [self.first_connect, other.first_connect]
            .into_iter()
            .flatten()
            .min();
        self.last_established = self.last_established.max(other.last_established);
        self.established_max += other.established_max;
        for (failure, count) in other.failed {
            *self.failed.entry(failure).or_default() += count;
        }
        self.unbound = self.unbound.or(other.unbound);
        for (cause, count) in other.lost {
            *self.lost.entry(cause).or_default() += count;
        }
        self.collisions += other.collisions;
        self.greetings_verified += other.greetings_verified;
        self.greetings_missing += other.greetings_missing;
        self.heartbeats_missing += other.heartbeats_missing;
        self.active += other.active;
        self.messages_mismatched += other.messages_mismatched;
        self.messages_unanswered += other.messages_unanswered;
        self.connect_latency.add(other.connect_latency)?;
        self.heartbeat_lateness.add(other.heartbeat_lateness)?;
        self.message_latency.add(other.message_latency)?;
        self.ring = self.ring.merged(other.ring);
        Ok(())
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ended {
    /// It held for as long as was asked.
    #[serde(rename = "complete")]
    Complete,
    /// A signal, or the end of stdin.
    #[serde(rename = "interrupted")]
    Interrupted,
    /// The first connects met nobody listening.
    #[serde(rename = "refused")]
    Refused,
    /// Every connect failed.
    #[serde(rename = "nothing established")]
    NothingEstablished,
    /// Connects stayed unanswered.
    #[serde(rename = "stalled")]
    Stalled,
    /// The server closed or reset at least half of the connections that it had greeted.
    #[serde(rename = "server gone")]
    ServerGone,
    /// No connection is left: the server turned them away, or what it sent was wrong.
    #[serde(rename = "all lost")]
    AllLost,
    /// The host ran low on memory.
    #[serde(rename = "low memory")]
    LowMemory,
}

impl Ended {
    /// The word for it, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Ended::Complete => "complete",
            Ended::Interrupted => "interrupted",
            Ended::Refused => "refused",
            Ended::NothingEstablished => "nothing established",
            Ended::Stalled => "stalled",
            Ended::ServerGone => "server gone",
            Ended::AllLost => "all lost",
            Ended::LowMemory => "low memory",
        }
    }
}

/// What the main thread saw.
pub(crate) struct Course {
    pub(crate) ended: Ended,
    pub(crate) counts: Counts,
    /// How long messages were exchanged, and how many were completed in that time.
    pub(crate) active: Duration,
    pub(crate) messages_in_active: u64,
    pub(crate) peak_rss_bytes: u64,
}

/// Percentiles in microseconds.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub count: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Percentiles {
        Percentiles {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

/// Heartbeats heard.
#[derive(Clone, Debug, Serialize)]
pub struct Heartbeats {
    /// All of them.
    pub received: u64,
    /// Those that came more than a second after their interval.
    pub late: u64,
    /// Connections that at the end had had none for more than two intervals.
    pub missing: u64,
    /// How much longer than the interval it took from one to the next.
    pub lateness_us: Percentiles,
}

/// Messages exchanged.
#[derive(Clone, Debug, Serialize)]
pub struct Messages {
    /// Connections that took part.
    pub active: u64,
    /// Messages whose whole echo came back right.
    pub completed: u64,
    /// Messages whose echo had a wrong byte.
    pub mismatched: u64,
    /// Messages whose echo had not come within the grace at the end.
    pub unanswered: u64,
    /// How long they were exchanged.
    pub seconds: f64,
    /// Messages completed in that time, by it.
    pub per_second: f64,
    /// From the send to the end of the echo.
    pub latency_us: Percentiles,
}

/// A run's result.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The target, or all of them with commas between.
    pub target: String,
    /// Connections asked for.
    pub connections_wanted: u64,
    /// The most connections established at once (the sum of each worker's most).
    pub established: u64,
    /// Connects that failed, by errno.
    pub failed: BTreeMap<String, u64>,
    /// Connections established and then lost.
    pub lost_while_held: u64,
    /// Those by cause.
    pub lost_by_cause: BTreeMap<String, u64>,
    /// Source ports that were in use and replaced by others.
    pub ports_in_use: u64,
    /// From the first connect to the last that was established.
    pub ramp_seconds: f64,
    /// Connections established by that time.
    pub connects_per_second: f64,
    /// From the submission of a connect to its completion.
    pub connect_latency_us: Percentiles,
    /// Connections whose greeting was right.
    pub greetings_verified: u64,
    /// Connections held at the end without one.
    pub greetings_missing: u64,
    /// Heartbeats.
    pub heartbeats: Heartbeats,
    /// Messages.
    pub messages: Messages,
    /// Bytes received on all connections.
    pub bytes_received: u64,
    /// The most resident memory this process had (VmHWM).
    pub peak_rss_bytes: u64,
    /// What the rings did.
    pub ring: ring::Stats,
    /// What lies between here and the first target.
    pub path: canary::Path,
    /// What the canaries found.
    pub canaries: Option<canary::Report>,
    /// What stopped it short, and what to do about it.
    pub diagnosis: Option<String>,
    /// Why it ended.
    pub ended: Ended,
    /// The whole configuration.
    pub config: Config,
}

impl Summary {
    pub(crate) fn new(config: Config, report: &Report, course: &Course) -> Summary {
        let ramp = match (report.first_connect, report.last_established) {
            (Some(first), Some(last)) => last.saturating_sub(first),
            _ => Duration::ZERO,
        };
        let targets: Vec<String> = config.targets.iter().map(ToString::to_string).collect();
        let counts = course.counts;
        let mut failed = BTreeMap::new();
        for ((_, errno), count) in &report.failed {
            *failed.entry(errno_name(*errno)).or_default() += count;
        }
        Summary {
            target: targets.join(","),
            connections_wanted: config.connections,
            established: report.established_max,
            failed,
            lost_while_held: counts.lost,
            lost_by_cause: report.lost.clone(),
            ports_in_use: report.collisions,
            ramp_seconds: ramp.as_secs_f64(),
            connects_per_second: per_second(counts.established, ramp),
            connect_latency_us: Percentiles::of(&report.connect_latency),
            greetings_verified: report.greetings_verified,
            greetings_missing: report.greetings_missing,
            heartbeats: Heartbeats {
                received: counts.heartbeats,
                late: counts.heartbeats_late,
                missing: report.heartbeats_missing,
                lateness_us: Percentiles::of(&report.heartbeat_lateness),
            },
            messages: Messages {
                active: report.active,
                completed: counts.messages,
                mismatched: report.messages_mismatched,
                unanswered: report.messages_unanswered,
                seconds: course.active.as_secs_f64(),
                per_second: per_second(course.messages_in_active, course.active),
                latency_us: Percentiles::of(&report.message_latency),
            },
            bytes_received: counts.bytes_received,
            peak_rss_bytes: course.peak_rss_bytes,
            ring: report.ring,
            path: config
                .targets
                .first()
                .map_or(canary::Path::Unknown, |target| {
                    canary::Path::to(target.ip()).0
                }),
            canaries: None,
            diagnosis: None,
            ended: course.ended,
            config,
        }
    }

    /// All wanted connections were established, none was lost, and all that was heard was right.
    pub fn is_flawless(&self) -> bool {
        self.ended == Ended::Complete
            && self.established == self.connections_wanted
            && self.lost_while_held == 0
            && self.greetings_missing == 0
            && self.heartbeats.missing == 0
            && self.messages.mismatched == 0
            && self.messages.unanswered == 0
    }
}

/// `ECONNREFUSED` and the like.
pub(crate) fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    match time.is_zero() {
        true => 0.0,
        false => count as f64 / time.as_secs_f64(),
    }
}
