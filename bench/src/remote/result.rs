//! What `throng-bench remote` found: plain data. Pure.
//!
//! Invariant: looks and samples are kept as they were read, with one clock for all of them; what is shown is drawn from
//! them here and in [`crate::remote::join`].

use std::fmt;

use kernel_tuning::host::NetCounters;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::load::Progress;
use crate::remote::join::{Ends, Kept, Moment, Phase, Spent, kept, phases};
use crate::remote::offset::Offset;
use crate::remote::plan::Plan;
use crate::remote::protocol::Hello;
use crate::report::format::{count, micros, percent};
use crate::run::About;
use crate::warning::{DROP_COUNTERS, Warning};

/// All that the run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says; the environment is that of the client's host.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// The agent, its host, and whom it watches.
    pub agent: Hello,
    /// Both ends are on one machine.
    pub is_one_host: bool,
    /// The clock of the agent's host; `None` where the agent was lost before it was read.
    pub clock: Option<Offset>,
    /// How far its clock of day is ahead, by which logs of both hosts can be held together.
    pub day_clock_ahead_us: Option<i64>,
    /// What the client told.
    pub progress: Vec<Progress>,
    /// What was seen of each end, in order.
    pub moments: Ends<Vec<Moment>>,
    /// What each phase cost each end.
    pub phases: Vec<Phase>,
    /// What a connection takes of each end; of both together, where they are on one machine.
    pub kept: Ends<Option<Kept>>,
    /// What the kernel's network counters grew by at each end, from before the client until after it.
    pub counters: Ends<NetCounters>,
    /// The same of the interface that the other end is reached by.
    pub interface: Ends<NetCounters>,
    /// The client's own summary.
    pub client: Value,
    /// Doubts about the figures.
    pub warnings: Vec<Doubt>,
}

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// The server's.
    Server,
    /// The client's.
    Client,
}

impl fmt::Display for Host {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Server => "the server's host",
            Self::Client => "the client's host",
        })
    }
}

/// One doubt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Doubt {
    /// Both ends are on one machine.
    OneHost,
    /// The clocks cannot be held together as closely as the looks are apart.
    ClockUncertain {
        /// How wrong a time may be, either way.
        uncertainty_ns: u64,
        /// From one look to the next.
        interval_ms: u64,
    },
    /// The hypervisor gave CPU time to others.
    Steal {
        /// Where.
        host: Host,
        /// Its share of the machine's time.
        share: f64,
    },
    /// The CPU time of `ksoftirqd` cannot be read.
    SoftirqUnknown {
        /// Where.
        host: Host,
    },
    /// Processes of the server ended while they were watched.
    ProcessesGone {
        /// How many.
        count: usize,
    },
    /// Sockets came or went that were not of this run.
    OtherSockets {
        /// Where.
        host: Host,
        /// How many more (or, below zero, fewer) there were than one for each connection.
        sockets: i64,
    },
    /// The kernel dropped handshakes or packets, or sent handshakes again.
    Drops {
        /// Where.
        host: Host,
        /// The counters that grew, and by how much.
        counters: Vec<(String, u64)>,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneHost => write!(
                out,
                "server and client are on one machine (same boot_id): what is said of a host's memory, ksoftirqd and CPU \
                 time is of both ends together; use two machines to have them apart"
            ),
            Self::ClockUncertain {
                uncertainty_ns,
                interval_ms,
            } => write!(
                out,
                "the clock of the server's host is known to ±{} only, and looks are {interval_ms} ms apart: what is \
                 counted there may be of the time just before or after; use a longer --interval and longer phases, or a \
                 steadier way to the agent",
                micros(*uncertainty_ns as f64 / 1e3)
            ),
            Self::Steal { host, share } => write!(
                out,
                "the hypervisor of {host} gave {} of the CPU time to other guests: run again on a quieter one",
                percent(*share)
            ),
            Self::SoftirqUnknown { host } => write!(
                out,
                "the CPU time of ksoftirqd cannot be read on {host} (a container, or hidepid): softirq work left to it is \
                 in the whole machine's time alone"
            ),
            Self::ProcessesGone { count } => write!(
                out,
                "processes of the server ended while they were watched ({count}): the CPU time they took after the last \
                 look at them is missing"
            ),
            Self::OtherSockets { host, sockets } => write!(
                out,
                "on {host}, {} sockets that were not of this run {}: its kernel memory a connection is wrong; end what \
                 else has many connections and run again",
                count(sockets.unsigned_abs()),
                if *sockets > 0 { "came" } else { "went" }
            ),
            Self::Drops { host, counters } => {
                let grown: Vec<String> = counters
                    .iter()
                    .map(|(name, by)| format!("{name} +{}", count(*by)))
                    .collect();
                write!(
                    out,
                    "on {host} the kernel's counters of drops and repeats grew: {}",
                    grown.join(", ")
                )
            }
        }
    }
}

impl Report {
    /// Draws what is shown from the rest.
    pub fn conclude(&mut self) {
        self.phases = phases(&self.progress, &self.moments);
        let resting = self.plan.resting().0;
        let of_end = |moments: &[Moment]| kept(moments, &self.phases, resting, &self.progress);
        self.kept = Ends {
            server: of_end(&self.moments.server),
            client: of_end(&self.moments.client),
        };
        let [server, client] =
            [&self.moments.server, &self.moments.client].map(|moments| grown(moments));
        (self.counters, self.interface) = (
            Ends {
                server: server.0,
                client: client.0,
            },
            Ends {
                server: server.1,
                client: client.1,
            },
        );
        self.warnings = self.doubts();
    }

    fn doubts(&self) -> Vec<Doubt> {
        let clock = self
            .clock
            .filter(|clock| clock.uncertainty_ns > self.plan.interval_ms * 1_000_000 / 2);
        let clock = clock.map(|clock| Doubt::ClockUncertain {
            uncertainty_ns: clock.uncertainty_ns,
            interval_ms: self.plan.interval_ms,
        });
        let one_host = self.is_one_host.then_some(Doubt::OneHost);
        let spent = self.phases.iter().filter_map(|phase| phase.spent.server);
        let gone: usize = spent.map(|spent: Spent| spent.gone).sum();
        let gone = (gone > 0).then_some(Doubt::ProcessesGone { count: gone });
        let of_host = |host| {
            let (moments, kept, counters) = match host {
                Host::Server => (
                    &self.moments.server,
                    &self.kept.server,
                    &self.counters.server,
                ),
                Host::Client => (
                    &self.moments.client,
                    &self.kept.client,
                    &self.counters.client,
                ),
            };
            [
                steal(host, moments),
                moments
                    .iter()
                    .any(|moment| moment.look.softirq_ns.is_none())
                    .then_some(Doubt::SoftirqUnknown { host }),
                kept.as_ref()
                    .and_then(|kept| self.other_sockets(host, kept)),
                drops(host, counters),
            ]
        };
        // What is said of one of them holds for the other, on one machine.
        let hosts: &[Host] = match self.is_one_host {
            true => &[Host::Server],
            false => &[Host::Server, Host::Client],
        };
        let general = [one_host, clock, gone];
        let of_hosts = hosts.iter().flat_map(|host| of_host(*host));
        general.into_iter().chain(of_hosts).flatten().collect()
    }

    fn other_sockets(&self, host: Host, kept: &Kept) -> Option<Doubt> {
        let ends = if self.is_one_host { 2.0 } else { 1.0 };
        let connections = kept.connections as f64;
        let sockets = (kept.growth.sockets - ends) * connections;
        // Beyond one in a hundred the memory of a connection is off by as much.
        let tolerated = (ends * connections / 100.0).max(200.0);
        (sockets.abs() > tolerated).then_some(Doubt::OtherSockets {
            host,
            sockets: sockets as i64,
        })
    }
}

/// From the first close look to the last.
fn grown(moments: &[Moment]) -> (NetCounters, NetCounters) {
    let mut close = moments
        .iter()
        .filter_map(|moment| moment.look.closely.as_ref());
    let Some((first, last)) = close.next().zip(close.next_back()) else {
        return Default::default();
    };
    let interface = last.interface.as_ref().zip(first.interface.as_ref());
    let interface = interface.map(|(last, first)| last.grown(first));
    (
        last.counters.grown(&first.counters),
        interface.unwrap_or_default(),
    )
}

fn steal(host: Host, moments: &[Moment]) -> Option<Doubt> {
    let (first, last) = (moments.first()?, moments.last()?);
    match Warning::steal(&last.look.machine.since(&first.look.machine))? {
        Warning::Steal { share } => Some(Doubt::Steal { host, share }),
        _ => None,
    }
}

fn drops(host: Host, counters: &NetCounters) -> Option<Doubt> {
    let grown = DROP_COUNTERS
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), counters.get(name)?)));
    let counters: Vec<_> = grown.filter(|(_, by)| *by > 0).collect();
    (!counters.is_empty()).then_some(Doubt::Drops { host, counters })
}
