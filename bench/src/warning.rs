//! Doubts about a result: each says what is doubtful, and what to do about it. Pure.
//!
//! A warning never hides or changes a figure. Which of them a report gives reason for is [`rules`]'s.

pub mod rules;

use std::fmt;

use kernel_tuning::host::{MachineBusy, NetCounters};
use serde::{Deserialize, Serialize};

use crate::report::format::{bytes, count, join, of_many, percent};
use crate::scenario::Engine;

/// One doubt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Warning {
    /// The hypervisor gave CPU time to others.
    Steal {
        /// Its share of the machine's time.
        share: f64,
    },
    /// Something else used the CPUs during a measurement.
    OtherLoad {
        /// Its share of the machine's time, in the worst measurement.
        share: f64,
    },
    /// Servers and client ran on the same CPUs.
    SharedCores,
    /// Reading the clock takes a system call, or worse, here.
    SlowClock {
        /// The kernel's clock source.
        source: String,
    },
    /// The limit of open files made several processes of one engine, which others did not need.
    SeveralProcesses {
        /// The engine.
        engine: Engine,
        /// How many.
        processes: usize,
        /// Open files that a process may have.
        nofile: u64,
    },
    /// The CPU time of `ksoftirqd` could not be read.
    SoftirqUnknown,
    /// Only root can tell what a monitor's procfs inodes took.
    ProcfsUnknown,
    /// The client was busier than the server, so the rate says more of the client.
    ClientBusier {
        /// What was measured.
        case: String,
        /// The engines concerned.
        engines: Vec<Engine>,
    },
    /// The ratios of the rounds lie far apart.
    WideSpread {
        /// What was measured.
        case: String,
        /// Width of the ratios over their median.
        width: f64,
    },
    /// A peer was not asked to take as many connections as the others.
    PeerFiles {
        /// The peer.
        engine: Engine,
        /// What it was not asked for.
        connections: u64,
        /// What one process carries here.
        carries: u64,
    },
    /// A hold began before the kernel had cleaned up.
    NotSettled {
        /// The engine that was to be held.
        engine: Engine,
    },
    /// Echo measurements began while sockets of the one before were still closing.
    EchoNotSettled {
        /// How many.
        measurements: usize,
    },
    /// Sockets came or went that were not of this run.
    OtherSockets {
        /// The engine that was held.
        engine: Engine,
        /// How many more (or, below zero, fewer) sockets there were than the two of each connection.
        sockets: i64,
    },
    /// Something listed the open files of a server, which left procfs inodes in the slab.
    FilesListed {
        /// The engine that was held.
        engine: Engine,
        /// What was left for each connection.
        bytes_per_conn: u64,
    },
    /// The kernel dropped handshakes or packets, or sent handshakes again.
    Drops {
        /// The engine that was held.
        engine: Engine,
        /// The counters that grew, and by how much.
        counters: Vec<(String, u64)>,
    },
    /// Heartbeats came late or not at all.
    Heartbeats {
        /// The engine that was held.
        engine: Engine,
        /// Late by the client's reckoning.
        late: u64,
        /// Missing at the end.
        missing: u64,
    },
}

/// Counters that tell of harm to a connection; the others are in the report's JSON.
pub const DROP_COUNTERS: [&str; 4] = [
    "ListenOverflows",
    "ListenDrops",
    "TCPSynRetrans",
    "SoftnetDropped",
];

impl Warning {
    /// The doubt that the hypervisor's other guests give, if there is one.
    pub fn steal(machine: &MachineBusy) -> Option<Self> {
        const TOLERATED: f64 = 0.01;
        let share = machine.steal_ns as f64
            / (machine.busy_ns + machine.idle_ns + machine.steal_ns).max(1) as f64;
        (share > TOLERATED).then_some(Self::Steal { share })
    }

    /// The doubt that `counters` give, of the time in which `engine` held its connections.
    pub fn drops(engine: Engine, counters: &NetCounters) -> Option<Self> {
        let grown = DROP_COUNTERS
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), counters.get(name)?)));
        let counters: Vec<_> = grown.filter(|(_, by)| *by > 0).collect();
        (!counters.is_empty()).then_some(Self::Drops { engine, counters })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steal { share } => write!(
                out,
                "the hypervisor gave {} of the CPU time to other guests: run again on a quieter host",
                percent(*share)
            ),
            Self::OtherLoad { share } => write!(
                out,
                "other work took up to {} of the CPU time during a measurement: end it and run again",
                percent(*share)
            ),
            Self::SharedCores => {
                write!(
                    out,
                    "server and client shared the same CPU: their figures are not apart; use two cores or more"
                )
            }
            Self::SlowClock { source } => write!(
                out,
                "the clock source is {source}: each reading of the clock is slow, and latencies have it in them; see \
                 /sys/devices/system/clocksource/clocksource0/available_clocksource"
            ),
            Self::SeveralProcesses {
                engine,
                processes,
                nofile,
            } => write!(
                out,
                "{engine} ran as {processes} processes, since each may open {} files: a limit of this machine that \
                 cripples one side; raise it (ulimit -Hn) and run again",
                count(*nofile)
            ),
            Self::SoftirqUnknown => write!(
                out,
                "the CPU time of ksoftirqd cannot be read here (a container, or hidepid): softirq work left to it is in \
                 no engine's CPU time, and counts as other work; run on the host to have it"
            ),
            Self::ProcfsUnknown => write!(
                out,
                "kernel memory may include a monitor's procfs inodes, which only epoll's connections get; run as root \
                 to tell"
            ),
            Self::EchoNotSettled { measurements } => write!(
                out,
                "{} of echo began while sockets of the one before, or of other work, were open: its CPU time may be too \
                 high",
                of_many(*measurements as u64, "measurement")
            ),
            Self::ClientBusier { case, engines } => write!(
                out,
                "with {case}, the client was busier than the server ({}): the rate is bounded by the client, \
                 compare the CPU per message",
                join(engines)
            ),
            Self::WideSpread { case, width } => write!(
                out,
                "with {case}, the ratios of the rounds lie {} apart: use more --rounds, on a quieter machine",
                percent(*width)
            ),
            Self::PeerFiles {
                engine,
                connections,
                carries,
            } => write!(
                out,
                "{engine} was not asked for {} connections: each is an open file, and this machine allows one process \
                 {} of them; raise the hard limit (ulimit -Hn), or ask for fewer",
                count(*connections),
                count(*carries)
            ),
            Self::NotSettled { engine } => write!(
                out,
                "sockets or slab were not back near their base when {engine} began to hold: its memory per \
                 connection may be too low or too high"
            ),
            Self::OtherSockets { engine, sockets } => write!(
                out,
                "while {engine} held, {} sockets that were not of this run {}: its kernel memory a connection is \
                 wrong; end what else has many connections and run again",
                count(sockets.unsigned_abs()),
                if *sockets > 0 { "came" } else { "went" }
            ),
            Self::FilesListed {
                engine,
                bytes_per_conn,
            } => write!(
                out,
                "something on this machine listed the open files of the {engine} server (/proc/PID/fd), which left {} \
                 of procfs inodes a connection: they are not counted as the engine's",
                bytes(*bytes_per_conn as f64)
            ),
            Self::Drops { engine, counters } => {
                let grown: Vec<String> = counters
                    .iter()
                    .map(|(name, by)| format!("{name} +{}", count(*by)))
                    .collect();
                write!(
                    out,
                    "while {engine} held, the kernel's counters of drops and repeats grew: {}",
                    grown.join(", ")
                )
            }
            Self::Heartbeats {
                engine,
                late,
                missing,
            } => write!(
                out,
                "while {engine} held, {} heartbeats came late and {} not at all",
                count(*late),
                count(*missing)
            ),
        }
    }
}
