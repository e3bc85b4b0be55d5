//! What a run of faults found, as plain data, and what is drawn from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fault::{Fault, Kind};
use super::plan::Plan;
use crate::run::About;
use crate::scenario::Engine;
use crate::stats::Spread;
use crate::warning::Warning;

/// All that the run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// Each fault, in the order they ran; of a soak, one for all of them.
    pub faulted: Vec<Faulted>,
    /// What could not be done here, and why.
    pub skipped: Vec<NotDone>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

/// A fault that was not brought about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotDone {
    /// Which.
    pub fault: Fault,
    /// Why.
    pub why: String,
}

/// What became of a server that went through a fault, again and again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Faulted {
    /// The fault; `None` of a soak.
    pub fault: Option<Fault>,
    /// The engine.
    pub engine: Engine,
    /// Connections held that nobody meant to hit; where all are hit, all.
    pub held: u64,
    /// Connections hit each time.
    pub victims: u64,
    /// Before the first time.
    pub before: Footing,
    /// Each time.
    pub cycles: Vec<Cycle>,
    /// What those lost that were not to be hit.
    pub outside: Outside,
    /// What is wrong with that.
    pub wrong: Vec<String>,
    /// The summary of the client that held them.
    pub client: Value,
    /// The summaries of the servers, in the order they ended; `null` of one that was killed.
    pub servers: Vec<Value>,
}

/// One time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cycle {
    /// Which fault.
    pub fault: Fault,
    /// From the fault, or its end where it goes on, until all is as it was before.
    pub recover_ms: u64,
    /// From the fault until another server was ready on the port, where one took its place.
    pub ready_ms: Option<u64>,
    /// Connects that the kernel put off meanwhile, as the accept queue was full (TcpExtListenOverflows).
    pub listen_overflows: u64,
    /// After it.
    pub after: Footing,
}

/// What is in use at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Footing {
    /// TCP sockets of the host.
    pub sockets: u64,
    /// Pages of queued TCP data of the host.
    pub queued_pages: u64,
    /// Slab of the host.
    pub slab_bytes: u64,
    /// Resident memory of the server.
    pub server_rss_bytes: u64,
}

/// What those lost that were not to be hit. All is to be 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Connections; where all are hit, those that were lost unannounced though all were told, or did not come back.
    pub connections: u64,
    /// Echoes with wrong bytes.
    pub mismatched: u64,
    /// Messages without an echo.
    pub unanswered: u64,
    /// Greetings that did not come.
    pub greetings: u64,
    /// Connections whose heartbeats did not come.
    pub heartbeats: u64,
    /// Connects that were refused, where a server was to take over from another.
    pub refused: u64,
}

impl Outside {
    /// All of it.
    pub fn sum(&self) -> u64 {
        self.connections + self.said() + self.refused
    }

    /// What was said, or was to be, and did not arrive as it should.
    pub fn said(&self) -> u64 {
        self.mismatched + self.unanswered + self.greetings + self.heartbeats
    }
}

impl Faulted {
    /// What it is called.
    pub fn name(&self) -> String {
        self.fault
            .map_or_else(|| "soak".to_owned(), |fault| fault.name())
    }

    /// How long recovery took, in ms, by fault.
    pub fn recovered(&self) -> BTreeMap<Fault, Spread> {
        let mut by_fault: BTreeMap<Fault, Vec<f64>> = BTreeMap::new();
        for cycle in &self.cycles {
            let all = by_fault.entry(cycle.fault).or_default();
            all.push(cycle.recover_ms as f64);
        }
        by_fault
            .into_iter()
            .filter_map(|(fault, all)| Some((fault, Spread::of(all)?)))
            .collect()
    }

    /// How much more of something is in use at the end than in the middle, by `of`: the median of the last quarter less that of
    /// the quarter before the middle. A server's tables and buffers come with their first use, and an allocator takes some
    /// cycles to keep what it needs; a leak adds in every cycle. With fewer than 8 cycles the last less the first.
    pub fn growth(&self, of: impl Fn(&Footing) -> u64) -> Option<i64> {
        let all = self.cycles.iter().map(|cycle| of(&cycle.after) as f64);
        let all: Vec<f64> = all.collect();
        let (count, quarter) = (all.len(), all.len() / 4);
        let (earlier, later) = match quarter {
            0 | 1 => (all.get(..1)?, all.get(1..)?.last_chunk::<1>()?.as_slice()),
            _ => (
                &all[count / 2 - quarter..count / 2],
                &all[count - quarter..],
            ),
        };
        let median = |values: &[f64]| Spread::of(values.to_vec()).map(|spread| spread.median);
        Some((median(later)? - median(earlier)?) as i64)
    }

    /// Slots of the server's tables in use at the end without a connection; `None` where servers end with the last connection,
    /// whose operations may be under way.
    pub fn slots_lost(&self) -> Option<u64> {
        let goes_on = self.fault.is_none_or(|fault| fault.kind() == Kind::Some);
        goes_on.then(|| self.counted("/slots_without_connection"))
    }

    /// The sum of a counter of all servers.
    pub fn counted(&self, pointer: &str) -> u64 {
        let figures = self
            .servers
            .iter()
            .filter_map(|server| server.pointer(pointer));
        figures.filter_map(Value::as_u64).sum()
    }
}

impl Report {
    /// Draws what is `wrong`, and the `warnings`, from the rest.
    pub fn conclude(&mut self) {
        for faulted in &mut self.faulted {
            faulted.wrong = wrong(faulted);
        }
        self.warnings = crate::warning::rules::of_host(&self.about);
    }

    /// Whether nobody lost anything, and nothing grew.
    pub fn is_good(&self) -> bool {
        self.about.failures.is_empty() && self.faulted.iter().all(|one| one.wrong.is_empty())
    }
}

/// What is not as it should be.
fn wrong(faulted: &Faulted) -> Vec<String> {
    /// Sockets of others on the host come and go.
    const OTHERS: i64 = 200;
    /// An allocator keeps some.
    const KEPT_BYTES: i64 = 4 << 20;
    let mut wrong = Vec::new();
    let outside = &faulted.outside;
    for (count, what) in [
        (outside.connections, "connections lost outside the fault"),
        (outside.mismatched, "echoes with wrong bytes"),
        (outside.unanswered, "messages without an echo"),
        (outside.greetings, "greetings missing"),
        (outside.heartbeats, "connections without heartbeats"),
        (outside.refused, "connects refused"),
    ] {
        if count > 0 {
            wrong.push(format!("{count} {what}"));
        }
    }
    if let Some(more) = faulted.growth(|footing| footing.sockets)
        && more > OTHERS
    {
        wrong.push(format!("{more} sockets more at the end than in the middle"));
    }
    // A server that is another each time has nothing to grow.
    if let Some(more) = faulted.growth(|footing| footing.server_rss_bytes)
        && more > KEPT_BYTES
        && more as u64 > faulted.before.server_rss_bytes / 10
    {
        let mib = more >> 20;
        wrong.push(format!(
            "the server has {mib} MiB more at the end than in the middle"
        ));
    }
    let slots = faulted.slots_lost().unwrap_or(0);
    if slots > 0 {
        wrong.push(format!(
            "{slots} slots in use without a connection at the end"
        ));
    }
    for (pointer, what) in [
        ("/dropped_table_full", "connections lost in a full table"),
        ("/ring/unknown_completions", "unknown completions"),
    ] {
        let count = faulted.counted(pointer);
        if count > 0 {
            wrong.push(format!("{count} {what}"));
        }
    }
    wrong
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_adds_each_time_is_growth_and_what_comes_with_the_first_times_is_not() {
        let recorded = include_str!("../../testdata/faults.json");
        let report: Report = serde_json::from_str(recorded).unwrap();
        let mut faulted = report.faulted[0].clone();
        let cycle = faulted.cycles[0].clone();
        let mut grown = |cycles: u64, rss: fn(u64) -> u64| {
            faulted.cycles = (0..cycles)
                .map(|at| {
                    let mut cycle = cycle.clone();
                    cycle.after.server_rss_bytes = rss(at);
                    cycle
                })
                .collect();
            faulted.growth(|footing| footing.server_rss_bytes)
        };
        assert_eq!(grown(20, |at| 100 + at), Some(10));
        assert_eq!(grown(20, |at| 100 * at.min(4)), Some(0));
        // One reading out of the way is none.
        assert_eq!(grown(20, |at| 100 * u64::from(at == 19)), Some(0));
        assert_eq!(grown(3, |at| 100 + at), Some(2));
        assert_eq!(grown(1, |at| at), None);
    }
}
