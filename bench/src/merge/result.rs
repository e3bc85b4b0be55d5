//! What `throng-bench merge` made of the parts: plain data. Pure.

use std::collections::BTreeMap;
use std::fmt;

use client::summary::Percentiles;
use client::times::Times;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::merge::clocks::Ahead;
use crate::report::format::{micros, percent};
use crate::run::About;

/// All parts together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says; the environment is that of the first part's host, `partial` that parts are missing or failed.
    #[serde(flatten)]
    pub about: About,
    /// The configuration of the whole fleet.
    pub asked: Value,
    /// Parts that it has.
    pub of: u64,
    /// Those that are not here.
    pub missing: Vec<u64>,
    /// Those that are.
    pub parts: Vec<PartRow>,
    /// How well times of different hosts can be held together.
    pub clocks: Apart,
    /// The sums of all counts.
    pub counters: BTreeMap<String, u64>,
    /// Failures and losses by kind and cause, added up.
    pub causes: BTreeMap<String, BTreeMap<String, u64>>,
    /// From the first connect of any part to the last connection of any; none where nothing was established.
    pub ramp: Option<Ramp>,
    /// When connections were held and exchanged; none where no part came to that.
    pub hold: Option<Held>,
    /// How long things took, over the whole run.
    pub latency: Vec<Latency>,
    /// The same by phase.
    pub latency_by_phase: Vec<Latency>,
    /// Doubts about the figures.
    pub warnings: Vec<Doubt>,
}

/// One part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartRow {
    /// Which.
    pub number: u64,
    /// Where it was read from.
    pub file: String,
    /// The name of its host.
    pub host: Option<String>,
    /// That one's kernel.
    pub kernel: Option<String>,
    /// And its CPUs.
    pub cpus: Option<usize>,
    /// How far its clock was measured to be ahead.
    pub ahead: Option<Ahead>,
    /// Its first connect, from the common start on; none where it made none.
    pub first_connect_us: Option<i64>,
    /// Why it ended.
    pub ended: String,
    /// Nothing was missing, lost or wrong.
    pub is_flawless: bool,
    /// Its own counts.
    pub counters: BTreeMap<String, u64>,
}

/// How far the clocks of the hosts are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Apart {
    /// All parts ran under one kernel, by one clock.
    OneClock,
    /// It was measured, and is taken into account.
    Measured {
        /// Hosts.
        hosts: u64,
        /// From the clock that is least ahead to the one that is most.
        apart_us: u64,
        /// How wrong a time may still be, either way, at most.
        uncertainty_us: u64,
    },
    /// Nobody measured it for all of them.
    Unknown {
        /// Hosts.
        hosts: u64,
    },
}

/// A span of the common time, from the common start on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ramp {
    /// The first connect.
    pub from_us: i64,
    /// The last connection established.
    pub to_us: i64,
    /// Connections established by that time; none where steps were held between.
    pub connects_per_second: Option<f64>,
}

/// When all was up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The first part began.
    pub from_us: i64,
    /// The last one ended.
    pub to_us: i64,
    /// How long all parts did at the same time.
    pub common_us: u64,
    /// Messages of all parts by the time from the first to the last; none where there were none.
    pub messages_per_second: Option<f64>,
    /// The same of churn cycles.
    pub cycles_per_second: Option<f64>,
}

/// How long something took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// In which phase; none: over the whole run.
    pub phase: Option<String>,
    /// What, as tagged in an interval log.
    pub kind: String,
    /// Of all that was measured by any part, in microseconds.
    pub latency_us: Percentiles,
    /// The histograms of all parts added up, in nanoseconds.
    pub times: Times,
}

/// One doubt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Doubt {
    /// The parts were not told when to start.
    NoCommonStart,
    /// Times of different hosts may be apart by whatever their clocks are.
    ClocksUnknown {
        /// How many hosts.
        hosts: u64,
    },
    /// The clock of a part's host was set during the run.
    ClockSet {
        /// Which part.
        part: u64,
        /// By how much.
        by_us: i64,
    },
    /// The parts did not hold at the same time.
    HoldsApart {
        /// The share of the time, from the first to the last, in which all did.
        common: f64,
    },
    /// A part's client had no time left.
    Bottleneck {
        /// Which part.
        part: u64,
        /// What its client says of it.
        said: String,
    },
    /// The parts are of different versions of Throng.
    Versions {
        /// Those there are.
        versions: Vec<String>,
    },
}

impl fmt::Display for Apart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneClock => out.write_str("all parts ran under one kernel, by one clock"),
            Self::Measured {
                hosts,
                apart_us,
                uncertainty_us,
            } => write!(
                out,
                "those of {hosts} hosts were {} apart, measured before the run to ±{}; times here are set right by that",
                micros(*apart_us as f64),
                micros(*uncertainty_us as f64)
            ),
            Self::Unknown { hosts } => write!(
                out,
                "how far those of {hosts} hosts are apart was not measured"
            ),
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommonStart => out.write_str(
                "the parts had no common start: rates of the whole are by the time from the first to the last of them; give \
                 all of them the same --start-at",
            ),
            Self::ClocksUnknown { hosts } => write!(
                out,
                "the clocks of {hosts} hosts were not compared: times of different parts, and rates by them, hold as far as \
                 these agree; deploy/fleet/pdsh.sh measures it (--clocks)"
            ),
            Self::ClockSet { part, by_us } => write!(
                out,
                "the clock of day of part {part}'s host was set by {} during the run: its times do not fit those of others",
                micros(*by_us as f64)
            ),
            Self::HoldsApart { common } => write!(
                out,
                "the parts held and exchanged together in {} of the time from the first to the last: the rates of the whole \
                 are too low by that, and connections at once are the sum of what each had at its own time; use a longer \
                 --hold",
                percent(*common)
            ),
            Self::Bottleneck { part, said } => write!(out, "part {part}: {said}"),
            Self::Versions { versions } => write!(
                out,
                "the parts are of different versions of Throng ({}): what one counts another may not",
                versions.join(", ")
            ),
        }
    }
}

impl Report {
    /// A sum by name; 0 of what no part counted.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// A text or number that was asked for, as JSON shows it.
    pub fn asked(&self, pointer: &str) -> Option<String> {
        let value = self.asked.pointer(pointer)?;
        let text = value.as_str().map(str::to_owned);
        Some(text.unwrap_or_else(|| value.to_string()))
    }

    /// Where it connected to.
    pub fn targets(&self) -> String {
        let all = self.asked.pointer("/targets").and_then(Value::as_array);
        let names = all.into_iter().flatten().filter_map(Value::as_str);
        names.collect::<Vec<_>>().join(", ")
    }
}
