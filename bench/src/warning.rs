//! Doubts about a result: each says what is doubtful, and what to do about it. Pure.
//!
//! A warning never hides or changes a figure.

use std::collections::BTreeSet;
use std::fmt;

use kernel_tuning::host::{MachineBusy, NetCounters};
use serde::{Deserialize, Serialize};

use crate::exchange::Exchanged;
use crate::report::format::{bytes, count, join, of_many, percent};
use crate::result::{EchoSummary, Hold, Report};
use crate::run::About;
use crate::scenario::{Engine, Plan, most_connections};

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
    /// The CPU time of `ksoftirqd` could not be read.
    SoftirqUnknown,
    /// Only root can tell what a monitor's procfs inodes took.
    ProcfsUnknown,
    /// The client was busier than the server, so the rate says more of the client.
    ClientBusier {
        /// Connections that exchanged messages.
        active: u64,
        /// The engines concerned.
        engines: Vec<Engine>,
    },
    /// The ratios of the rounds lie far apart.
    WideSpread {
        /// Connections that exchanged messages.
        active: u64,
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
    /// Every doubt that `report` gives reason for.
    pub fn all(report: &Report) -> Vec<Self> {
        let mut all = Vec::new();
        all.extend(report.machine.as_ref().and_then(Self::steal));
        all.extend(
            report
                .plan
                .placement
                .is_shared()
                .then_some(Self::SharedCores),
        );
        all.extend((!report.has_softirq()).then_some(Self::SoftirqUnknown));
        all.extend(other_load(other_shares(report).into_iter()));
        all.extend(peer_files(&report.plan));
        for hold in &report.hold {
            all.extend((!hold.settled).then_some(Self::NotSettled {
                engine: hold.engine,
            }));
            all.extend(other_sockets(hold));
            all.extend(files_listed(hold));
            all.extend(Self::drops(hold.engine, &hold.counters));
            all.extend(heartbeats(hold));
        }
        let mut held = report.hold.iter().filter_map(|hold| hold.held.as_ref());
        let is_unknown = held.any(|held| held.procfs_slab_bytes.is_none());
        all.extend(is_unknown.then_some(Self::ProcfsUnknown));
        all.extend(echo_not_settled(report));
        for summary in &report.echo_summary {
            all.extend(client_busier(summary));
            all.extend(wide_spread(summary));
        }
        all
    }

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
            Self::ClientBusier { active, engines } => write!(
                out,
                "with {} active the client was busier than the server ({}): the rate is bounded by the client, \
                 compare the CPU per message",
                count(*active),
                join(engines)
            ),
            Self::WideSpread { active, width } => write!(
                out,
                "with {} active the ratios of the rounds lie {} apart: use more --rounds, on a quieter machine",
                count(*active),
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

/// The doubts that measurements in rounds may give reason for, whatever they measure.
pub fn of_rounds<'a>(
    about: &About,
    exchanged: impl Iterator<Item = &'a Exchanged> + Clone,
) -> Vec<Warning> {
    let has_softirq = exchanged.clone().all(|one| one.cpu.has_softirq());
    let shares = exchanged
        .clone()
        .map(|one| other_share(&one.machine, one.cpu.both_ns()));
    let measurements = exchanged.filter(|one| !one.settled).count();
    let is_shared = about.placement.is_shared();
    [
        about.machine.as_ref().and_then(Warning::steal),
        is_shared.then_some(Warning::SharedCores),
        (!has_softirq).then_some(Warning::SoftirqUnknown),
        other_load(shares),
        (measurements > 0).then_some(Warning::EchoNotSettled { measurements }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The share of the machine's time that went to other work than ours.
fn other_share(machine: &MachineBusy, ours_ns: u64) -> f64 {
    let all_ns = machine.busy_ns + machine.idle_ns + machine.steal_ns;
    machine.busy_ns.saturating_sub(ours_ns) as f64 / all_ns.max(1) as f64
}

fn other_shares(report: &Report) -> Vec<f64> {
    let echoes = report
        .echo
        .iter()
        .map(|echo| other_share(&echo.machine, echo.cpu.both_ns()));
    let holds = report.hold.iter().filter_map(|hold| {
        let machine = hold.held.as_ref()?.machine.since(&hold.base.machine);
        Some(other_share(
            &machine,
            hold.ramp?.both_ns() + hold.hold?.both_ns(),
        ))
    });
    echoes.chain(holds).collect()
}

fn other_load(shares: impl Iterator<Item = f64>) -> Option<Warning> {
    const TOLERATED: f64 = 0.08;
    let share = shares.max_by(f64::total_cmp)?;
    (share > TOLERATED).then_some(Warning::OtherLoad { share })
}

/// What `plan` has of connections that a peer is not asked for.
fn peer_files(plan: &Plan) -> Vec<Warning> {
    let held = plan.hold.iter().map(|hold| hold.connections);
    let active = plan
        .echo
        .iter()
        .flat_map(|echo| echo.active.iter().copied());
    let counts: BTreeSet<u64> = held.chain(active).collect();
    let of = |engine: &Engine| {
        let (engine, most) = (*engine, most_connections(*engine, plan.nofile_hard));
        let too_many = counts
            .iter()
            .filter_map(move |count| most.filter(|most| count > most).map(|most| (*count, most)));
        too_many.map(move |(connections, carries)| Warning::PeerFiles {
            engine,
            connections,
            carries,
        })
    };
    plan.engines.iter().flat_map(of).collect()
}

fn echo_not_settled(report: &Report) -> Option<Warning> {
    let measurements = report.echo.iter().filter(|echo| !echo.settled).count();
    (measurements > 0).then_some(Warning::EchoNotSettled { measurements })
}

fn other_sockets(hold: &Hold) -> Option<Warning> {
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let grown = signed(hold.held.as_ref()?.sockstat.alloc) - signed(hold.base.sockstat.alloc);
    Some(Warning::OtherSockets {
        engine: hold.engine,
        sockets: others_of(grown, hold.established)?,
    })
}

/// How many of the sockets that came were not of `connections`, where that is too many to be tolerated.
pub fn others_of(sockets: i64, connections: u64) -> Option<i64> {
    let ours = 2 * connections;
    let others = sockets - i64::try_from(ours).unwrap_or(i64::MAX);
    // Beyond one in a hundred the memory of a connection is off by as much.
    let tolerated = (ours / 100).max(200);
    (others.unsigned_abs() > tolerated).then_some(others)
}

fn files_listed(hold: &Hold) -> Option<Warning> {
    const TOLERATED_BYTES: f64 = 10.0;
    let bytes = hold
        .procfs_bytes_per_conn()
        .filter(|bytes| *bytes > TOLERATED_BYTES)?;
    Some(Warning::FilesListed {
        engine: hold.engine,
        bytes_per_conn: bytes.round() as u64,
    })
}

fn heartbeats(hold: &Hold) -> Option<Warning> {
    let figure = |pointer| hold.client_figure(pointer).unwrap_or(0.0) as u64;
    let (late, missing) = (figure("/heartbeats/late"), figure("/heartbeats/missing"));
    (late + missing > 0).then_some(Warning::Heartbeats {
        engine: hold.engine,
        late,
        missing,
    })
}

fn client_busier(summary: &EchoSummary) -> Option<Warning> {
    /// Below this difference the two are equally busy.
    const MARGIN_CORES: f64 = 0.02;
    let busier = summary
        .engines
        .iter()
        .filter(|figures| figures.client_cores.median > figures.server_cores.median + MARGIN_CORES);
    let engines: Vec<Engine> = busier.map(|figures| figures.engine).collect();
    (!engines.is_empty()).then_some(Warning::ClientBusier {
        active: summary.active,
        engines,
    })
}

fn wide_spread(summary: &EchoSummary) -> Option<Warning> {
    const TOLERATED: f64 = 0.3;
    let width = summary.cpu_ratio?.relative_width();
    (width > TOLERATED).then_some(Warning::WideSpread {
        active: summary.active,
        width,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::result::tests::recorded;

    fn quiet() -> Report {
        let mut report = recorded();
        report
            .hold
            .iter_mut()
            .for_each(|hold| hold.counters = Default::default());
        report.conclude();
        report
    }

    #[test]
    fn a_doubt_is_raised_by_its_cause_and_by_nothing_else() {
        let mut report = quiet();
        let has =
            |report: &Report, wanted: fn(&Warning) -> bool| report.warnings.iter().any(wanted);
        assert!(!has(&report, |warning| matches!(
            warning,
            Warning::Steal { .. }
        )));
        assert!(!has(&report, |warning| matches!(
            warning,
            Warning::Drops { .. }
        )));
        assert!(!has(&report, |warning| matches!(
            warning,
            Warning::SharedCores
        )));
        let machine = report.machine.as_mut().unwrap();
        machine.steal_ns = machine.busy_ns / 2;
        report.plan.placement.client = report.plan.placement.server.clone();
        report.hold[0].settled = false;
        report.conclude();
        assert!(has(&report, |warning| matches!(
            warning,
            Warning::Steal { .. }
        )));
        assert!(has(&report, |warning| matches!(
            warning,
            Warning::SharedCores
        )));
        assert!(has(&report, |warning| matches!(
            warning,
            Warning::NotSettled { .. }
        )));
    }

    #[test]
    fn connections_that_a_peer_was_not_asked_for_are_told_once_for_each_count() {
        let mut report = quiet();
        let peer = Engine::try_from("go".to_owned()).unwrap();
        report.plan.engines.push(peer);
        report.plan.nofile_hard = 2_000;
        report.conclude();
        let told = report.warnings.iter().filter_map(|warning| match warning {
            Warning::PeerFiles {
                engine,
                connections,
                carries,
            } => Some((*engine, *connections, *carries)),
            _ => None,
        });
        let hold = report.plan.hold.as_ref().unwrap().connections;
        assert_eq!(
            told.collect::<Vec<_>>(),
            [(peer, 10_000, 1_936), (peer, hold, 1_936)]
        );
        report.plan.nofile_hard = 1 << 20;
        report.conclude();
        let has = |warning: &Warning| matches!(warning, Warning::PeerFiles { .. });
        assert!(!report.warnings.iter().any(has));
    }

    #[test]
    fn softirq_work_is_not_other_work_and_makes_a_side_busier() {
        let mut report = quiet();
        for echo in &mut report.echo {
            echo.machine.idle_ns = 0;
            echo.machine.steal_ns = 0;
            echo.machine.busy_ns = 2_000_000_000;
            echo.cpu.elapsed_ms = 1_000;
            echo.cpu.server_cpu_ns = 800_000_000;
            echo.cpu.client_cpu_ns = 900_000_000;
            echo.cpu.server_softirq_ns = Some(200_000_000);
            echo.cpu.client_softirq_ns = Some(0);
        }
        report.hold.clear();
        let has = |report: &Report, wanted: &Warning| {
            let wanted = std::mem::discriminant(wanted);
            let mut kinds = report.warnings.iter().map(std::mem::discriminant);
            kinds.any(|kind| kind == wanted)
        };
        let other_load = Warning::OtherLoad { share: 0.0 };
        let client_busier = Warning::ClientBusier {
            active: 0,
            engines: Vec::new(),
        };
        report.conclude();
        assert!(!has(&report, &other_load) && !has(&report, &client_busier));
        assert!(!has(&report, &Warning::SoftirqUnknown));
        for echo in &mut report.echo {
            echo.cpu.server_softirq_ns = None;
        }
        report.conclude();
        assert!(has(&report, &other_load) && has(&report, &client_busier));
        assert!(has(&report, &Warning::SoftirqUnknown));
    }

    #[test]
    fn what_could_not_be_read_or_waited_for_is_told() {
        let mut report = quiet();
        let told = |report: &Report, part: &str| {
            let mut texts = report.warnings.iter().map(Warning::to_string);
            texts.any(|text| text.contains(part))
        };
        assert!(!told(&report, "procfs inodes, which") && !told(&report, "of echo began"));
        for hold in &mut report.hold {
            hold.held.as_mut().unwrap().procfs_slab_bytes = None;
        }
        report.echo[0].settled = false;
        report.conclude();
        assert!(told(&report, "run as root") && told(&report, "1 measurement of echo began"));
    }

    #[test]
    fn a_busier_client_and_scattered_rounds_are_told() {
        let mut report = quiet();
        for (index, echo) in report.echo.iter_mut().enumerate() {
            echo.cpu.client_cpu_ns = 3 * echo.cpu.server_cpu_ns / 2;
            echo.cpu.server_cpu_ns *= 1 + index as u64 % 3;
        }
        report.conclude();
        let text: String = report
            .warnings
            .iter()
            .map(|warning| format!("{warning}\n"))
            .collect();
        assert!(text.contains("lie") && text.contains("apart"), "{text}");
        report
            .echo
            .iter_mut()
            .for_each(|echo| echo.cpu.client_cpu_ns = 2 * echo.cpu.server_cpu_ns);
        report.conclude();
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| matches!(warning, Warning::ClientBusier { .. }))
        );
    }
}
