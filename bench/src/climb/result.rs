//! What `throng-bench hold` found: plain data. Pure.
//!
//! Invariant: raw figures are kept as they were read; what is shown is drawn from them here.

use kernel_tuning::host::{Footprint, NetCounters};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::climb::plan::{ClimbPlan, Room};
use crate::footprint::Growth;
use crate::guard::{Extremes, Limit};
use crate::run::About;
use crate::warning::Warning;
use crate::warning::rules::others_of;

/// Everything one run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Climb {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be done.
    pub plan: ClimbPlan,
    /// What the machine had to give before.
    pub room: Room,
    /// Server processes on one port.
    pub processes: usize,
    /// The host with the servers running and no connection.
    pub empty: Option<Footprint>,
    /// Resident memory of the servers without any connection.
    pub server_rss_empty_bytes: u64,
    /// One for each client, in order.
    pub steps: Vec<Step>,
    /// The worst readings while messages were exchanged.
    pub active: Option<Extremes>,
    /// What ended the climb before its last step.
    pub stopped_by: Option<Limit>,
    /// How all connections were closed.
    pub close: Option<Close>,
    /// What the kernel's counters grew by, the close included.
    pub counters: NetCounters,
    /// Each client's own summary, in the order of `steps`.
    pub clients: Vec<Value>,
    /// Each server process's own summary.
    pub servers: Vec<Value>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

/// One client's connections on top of those before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Connections wanted, with those of the steps before.
    pub wanted: u64,
    /// Connections wanted of this client.
    pub added: u64,
    /// Memory that was to be kept free.
    pub keep_free_bytes: u64,
    /// Connections established, of all clients, at the end of the step.
    pub established: u64,
    /// Connections lost until then.
    pub lost: u64,
    /// How long the client took to connect; `None` when it was not done.
    pub ramp_ms: Option<u64>,
    /// How long all were held then.
    pub held_ms: u64,
    /// Kernel memory of a connection at the end of the hold, both ends.
    pub growth: Option<Growth>,
    /// Resident memory of the servers at that time.
    pub server_rss_bytes: Option<u64>,
    /// Resident memory of all clients at that time.
    pub client_rss_bytes: Option<u64>,
    /// The worst readings of the step.
    pub worst: Extremes,
}

impl Step {
    /// Whether all connections wanted were established and held.
    pub fn is_whole(&self) -> bool {
        self.growth.is_some()
    }
}

/// How the connections were closed: reset by the clients, one client after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Close {
    /// Connections there were.
    pub connections: u64,
    /// Until the last client had ended.
    pub clients_ended_ms: u64,
    /// Until the host's sockets were those from before; `None` when they were not in the time that was waited.
    pub sockets_gone_ms: Option<u64>,
    /// The worst readings meanwhile.
    pub worst: Extremes,
}

impl Climb {
    /// The most connections that were established and held.
    pub fn held(&self) -> u64 {
        let whole = self.steps.iter().filter(|step| step.is_whole());
        whole.map(|step| step.established).max().unwrap_or(0)
    }

    /// The largest step that was held.
    pub fn highest(&self) -> Option<&Step> {
        self.steps.iter().rfind(|step| step.is_whole())
    }

    /// Whether the slab caches could not be read.
    pub fn lacks_caches(&self) -> bool {
        let growth = self.highest().and_then(|step| step.growth.as_ref());
        growth.is_some_and(|growth| growth.caches.is_none())
    }

    /// Resident memory of the servers for a connection in `step`, above what they take empty.
    pub fn server_rss_bytes_per_conn(&self, step: &Step) -> Option<f64> {
        let grown = step.server_rss_bytes? as f64 - self.server_rss_empty_bytes as f64;
        (step.established > 0).then(|| grown / step.established as f64)
    }

    /// Resident memory of the clients for a connection in `step`, all of it.
    pub fn client_rss_bytes_per_conn(&self, step: &Step) -> Option<f64> {
        (step.established > 0).then_some(step.client_rss_bytes? as f64 / step.established as f64)
    }

    /// A figure of the client of step `index`, by its JSON pointer.
    pub fn client_figure(&self, index: usize, pointer: &str) -> Option<f64> {
        self.clients.get(index)?.pointer(pointer)?.as_f64()
    }

    /// The largest of a figure among the clients' summaries.
    pub fn worst_client_figure(&self, pointer: &str) -> Option<f64> {
        largest(&self.clients, pointer)
    }

    /// The largest of a figure among the server processes' summaries.
    pub fn worst_server_figure(&self, pointer: &str) -> Option<f64> {
        largest(&self.servers, pointer)
    }

    /// The sum of a figure over the server processes' summaries; `None` when none has it.
    pub fn server_sum(&self, pointer: &str) -> Option<u64> {
        let figures = self.servers.iter();
        let figures = figures.filter_map(|server| server.pointer(pointer)?.as_u64());
        figures.reduce(|sum, figure| sum + figure)
    }

    /// Draws `warnings` from the rest.
    pub fn conclude(&mut self) {
        self.about.partial |= self.held() < self.plan.connections;
        let steal = self.about.machine.as_ref().and_then(Warning::steal);
        let drops = Warning::drops(self.plan.engine, &self.counters);
        let shared = self.plan.placement.is_shared();
        let engine = self.plan.engine;
        let disturbed = self.steps.iter().filter_map(|step| {
            let sockets = step.growth.as_ref()?.sockets * step.established as f64;
            others_of(sockets as i64, step.established)
        });
        let disturbed = disturbed.max_by_key(|others| others.unsigned_abs());
        self.warnings = steal
            .into_iter()
            .chain(shared.then_some(Warning::SharedCores))
            .chain(disturbed.map(|sockets| Warning::OtherSockets { engine, sockets }))
            .chain(drops)
            .collect();
    }
}

fn largest(summaries: &[Value], pointer: &str) -> Option<f64> {
    let figures = summaries.iter();
    let figures = figures.filter_map(|summary| summary.pointer(pointer)?.as_f64());
    figures.max_by(f64::total_cmp)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A result recorded from a whole run, cut to its first two steps.
    pub(crate) fn recorded() -> Climb {
        serde_json::from_str(include_str!("../../testdata/hold.json")).unwrap()
    }

    #[test]
    fn json_holds_everything() {
        let report = recorded();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Climb>(&text).unwrap(), report);
    }
}
