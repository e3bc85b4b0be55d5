//! What `throng-bench canary` found: plain data. Pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::canary::ends::EndCounters;
use crate::canary::path::Kind;
use crate::canary::plan::Plan;
use crate::run::About;
use crate::scenario::Engine;
use crate::series::Series;
use crate::warning::Warning;

/// Everything one run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says; of the settings, those at the server's end of the first path.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// What the paths are, in words.
    pub path: String,
    /// One for each count of connections with each engine over each path.
    pub held: Vec<Held>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

/// One count of connections, from the baseline to the recovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Over what.
    pub path: Kind,
    /// With what.
    pub engine: Engine,
    /// Connections wanted.
    pub connections: u64,
    /// What the plan had asked for, where that did not fit into memory.
    #[serde(default)]
    pub instead_of: Option<u64>,
    /// Whether the host was back where it had been before.
    pub settled: bool,
    /// Server processes on one port.
    pub processes: usize,
    /// Broadcasts that the server was told to make.
    pub broadcasts: u64,
    /// The client's own summary: what the canaries found is in `canaries`, its end's counters are in `host_counters`.
    pub client: Value,
    /// Counters at the server's end; none over loopback, where both ends have the same.
    pub server_counters: Option<EndCounters>,
    /// Each server process's own summary.
    pub servers: Vec<Value>,
    /// Memory, sockets and connections over the whole time.
    #[serde(default)]
    pub series: Series,
}

/// What the canaries found, as far as it is shown. A part of the client's summary.
#[derive(Debug, Clone, Deserialize)]
pub struct Found {
    /// The stages of the run, the baseline first.
    pub stages: Vec<Stage>,
    /// Each kind of probe to each target.
    pub probes: Vec<Probe>,
    /// What could not be measured.
    pub not_measured: Vec<NotMeasured>,
    /// One for each probe in each stage but the baseline, in that order.
    pub verdicts: Vec<Said>,
}

/// A stage of the run.
#[derive(Debug, Clone, Deserialize)]
pub struct Stage {
    /// Its name.
    pub stage: String,
    /// How long it lasted.
    pub seconds: f64,
}

/// Probes of one kind to one target.
#[derive(Debug, Clone, Deserialize)]
pub struct Probe {
    /// `ping`, `connect` or `udp`.
    pub kind: String,
    /// To whom; port 0 of a ping.
    pub target: SocketAddr,
    /// By stage.
    pub stages: Vec<Figures>,
}

/// What became of the probes of a stage.
#[derive(Debug, Clone, Deserialize)]
pub struct Figures {
    /// Which.
    pub stage: String,
    /// Probes sent.
    pub sent: u64,
    /// Those that came back.
    pub answered: u64,
    /// Those that did not within a second.
    pub lost: u64,
    /// From the send to the answer.
    pub rtt_ns: Quantiles,
    /// The verdict's name; none of the baseline.
    #[serde(default)]
    pub verdict: Option<String>,
}

/// In nanoseconds.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs)]
pub struct Quantiles {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// A probe that could not be made.
#[derive(Debug, Clone, Deserialize)]
pub struct NotMeasured {
    /// Of what kind.
    pub kind: String,
    /// Why, and what would allow it.
    pub why: String,
}

/// A verdict in words.
#[derive(Debug, Clone, Deserialize)]
pub struct Said {
    /// In which stage.
    pub when: String,
    /// Of which probe.
    pub probe: String,
    /// The verdict.
    pub words: String,
}

impl Held {
    /// With what, over what.
    pub fn case(&self) -> String {
        format!("{} over {}", self.engine, self.path.name())
    }

    /// What the canaries found; none where the client did not come so far.
    pub fn found(&self) -> Option<Found> {
        serde_json::from_value(self.client.get("canaries")?.clone()).ok()
    }

    /// Counters at the client's end, or of both over loopback.
    pub fn client_counters(&self) -> Option<EndCounters> {
        serde_json::from_value(self.client.get("host_counters")?.clone()).ok()
    }

    /// A figure of the client, by its JSON pointer.
    pub fn figure(&self, pointer: &str) -> Option<f64> {
        self.client.pointer(pointer)?.as_f64()
    }

    /// A count of the client, 0 where it has none.
    pub fn count(&self, pointer: &str) -> u64 {
        let count = self.client.pointer(pointer).and_then(Value::as_u64);
        count.unwrap_or(0)
    }
}

/// What is said of a probe in a stage.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// The stage.
    pub stage: &'a str,
    /// The verdict's name; empty where the summary lacks it.
    pub verdict: &'a str,
    /// The verdict in words.
    pub said: &'a Said,
}

impl Found {
    /// All verdicts, in order.
    pub fn judged(&self) -> impl Iterator<Item = Judged<'_>> {
        // The first stage is the baseline.
        let stages = self.stages.iter().skip(1);
        let cases = stages.flat_map(|stage| self.probes.iter().map(move |probe| (stage, probe)));
        cases.zip(&self.verdicts).map(|((stage, probe), said)| {
            let figures = probe.stages.iter().find(|one| one.stage == stage.stage);
            let verdict = figures.and_then(|figures| figures.verdict.as_deref());
            Judged {
                stage: &stage.stage,
                verdict: verdict.unwrap_or_default(),
                said,
            }
        })
    }
}

impl Report {
    /// What was found, of each that was held; each verdict says of which it is where there are several engines or paths.
    pub fn found(&self) -> Vec<Found> {
        let has_one_case = self
            .held
            .windows(2)
            .all(|two| two[0].case() == two[1].case());
        let mut all = Vec::new();
        for held in &self.held {
            let Some(mut found) = held.found() else {
                continue;
            };
            for said in found.verdicts.iter_mut().filter(|_| !has_one_case) {
                said.when = format!("{}, {}", held.case(), said.when);
            }
            all.push(found);
        }
        all
    }

    /// Draws `warnings` from the rest.
    pub fn conclude(&mut self) {
        let steal = self.about.machine.as_ref().and_then(Warning::steal);
        let shared = self.about.placement.is_shared();
        let mut unsettled: Vec<Engine> = self
            .held
            .iter()
            .filter(|held| !held.settled)
            .map(|held| held.engine)
            .collect();
        unsettled.dedup();
        self.warnings = steal
            .into_iter()
            .chain(shared.then_some(Warning::SharedCores))
            .chain(
                unsettled
                    .into_iter()
                    .map(|engine| Warning::NotSettled { engine }),
            )
            .collect();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A result recorded from a short run, cut to two of its probes and every second sample.
    pub(crate) fn recorded() -> Report {
        serde_json::from_str(include_str!("../../testdata/canary.json")).unwrap()
    }

    #[test]
    fn json_holds_everything() {
        let report = recorded();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
