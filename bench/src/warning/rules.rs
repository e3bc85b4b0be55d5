//! Which doubts a report gives reason for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kernel_tuning::host::MachineBusy;

use crate::exchange::{Exchanged, Figures};
use crate::result::{Hold, Report};
use crate::run::About;
use crate::scenario::{Engine, Plan, most_connections};
use crate::stats::Spread;
use crate::warning::Warning;

/// The doubts that any run of this machine may give reason for.
pub fn of_host(about: &About) -> Vec<Warning> {
    let steal = about.machine.as_ref().and_then(Warning::steal);
    let shared = about.placement.is_shared().then_some(Warning::SharedCores);
    steal
        .into_iter()
        .chain(shared)
        .chain(slow_clock(about))
        .collect()
}

/// Every doubt that a comparison gives reason for.
pub fn of_compare(report: &Report) -> Vec<Warning> {
    let mut all = Vec::new();
    all.extend(of_host(&report.about));
    all.extend((!report.has_softirq()).then_some(Warning::SoftirqUnknown));
    all.extend(other_load(other_shares(report).into_iter()));
    all.extend(peer_files(&report.plan));
    for hold in &report.hold {
        all.extend((!hold.settled).then_some(Warning::NotSettled {
            engine: hold.engine,
        }));
        all.extend(other_sockets(hold));
        all.extend(files_listed(hold));
        all.extend(Warning::drops(hold.engine, &hold.counters));
        all.extend(heartbeats(hold));
    }
    let mut held = report.hold.iter().filter_map(|hold| hold.held.as_ref());
    let is_unknown = held.any(|held| held.procfs_slab_bytes.is_none());
    all.extend(is_unknown.then_some(Warning::ProcfsUnknown));
    all.extend(echo_not_settled(report));
    for summary in &report.echo_summary {
        let case = summary.case.to_string();
        let cores = summary.engines.iter().map(|figures| {
            let cores = [&figures.server_cores, &figures.client_cores];
            (figures.engine, cores.map(|cores| cores.median))
        });
        all.extend(client_busier(&case, cores));
        all.extend(wide_spread(&case, summary.cpu_ratio().as_ref()));
    }
    let echoed = report.echo.iter().map(|echo| (echo.engine, echo.processes));
    let held = report.hold.iter().map(|hold| (hold.engine, hold.processes));
    all.extend(several_processes(
        echoed.chain(held),
        report.plan.nofile_hard,
    ));
    all
}

/// What the rounds say of one engine in one case: what it is, the figures, and the ratio that is drawn from them.
pub type Case = (String, Figures, Option<Spread>);

/// The doubts that measurements in rounds may give reason for, whatever they measure; `cases` are those whose rate or CPU
/// time is compared.
pub fn of_rounds<'a>(
    about: &About,
    exchanged: impl Iterator<Item = &'a Exchanged> + Clone,
    cases: &[Case],
) -> Vec<Warning> {
    let has_softirq = exchanged.clone().all(|one| one.cpu.has_softirq());
    let shares = exchanged
        .clone()
        .map(|one| other_share(&one.machine, one.cpu.both_ns()));
    let measurements = exchanged.filter(|one| !one.settled).count();
    let is_shared = about.placement.is_shared();
    let mut all: Vec<Warning> = [
        about.machine.as_ref().and_then(Warning::steal),
        is_shared.then_some(Warning::SharedCores),
        (!has_softirq).then_some(Warning::SoftirqUnknown),
        slow_clock(about),
        other_load(shares),
        (measurements > 0).then_some(Warning::EchoNotSettled { measurements }),
    ]
    .into_iter()
    .flatten()
    .collect();
    for (case, figures, ratio) in cases {
        let cores = figures.engine.map(|engine| {
            let cores = [&figures.server_cores, &figures.client_cores];
            (engine, cores.map(|cores| cores.median))
        });
        all.extend(client_busier(case, cores.into_iter()));
        all.extend(wide_spread(case, ratio.as_ref()));
    }
    let processes = cases
        .iter()
        .filter_map(|(_, figures, _)| Some((figures.engine?, figures.processes)));
    all.extend(several_processes(processes, about.nofile_hard));
    all
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

/// `cores` are those that the server's and the client's side kept busy, of each engine.
fn client_busier(case: &str, cores: impl Iterator<Item = (Engine, [f64; 2])>) -> Option<Warning> {
    /// Below this difference the two are equally busy.
    const MARGIN_CORES: f64 = 0.02;
    let engines: Vec<Engine> = cores
        .filter(|(_, [server, client])| *client > server + MARGIN_CORES)
        .map(|(engine, _)| engine)
        .collect();
    (!engines.is_empty()).then(|| Warning::ClientBusier {
        case: case.to_owned(),
        engines,
    })
}

/// Of rounds too few for an interval, the whole range is looked at.
fn wide_spread(case: &str, ratios: Option<&Spread>) -> Option<Warning> {
    const TOLERATED: f64 = 0.3;
    const TOLERATED_INTERVAL: f64 = 0.16;
    let ratios = ratios?;
    let (width, tolerated) = match ratios.relative_half_width() {
        Some(half) => (2.0 * half, TOLERATED_INTERVAL),
        None => (ratios.relative_width(), TOLERATED),
    };
    (width > tolerated).then(|| Warning::WideSpread {
        case: case.to_owned(),
        width,
    })
}

/// Clock sources that are read without a system call (vDSO) are these.
fn slow_clock(about: &About) -> Option<Warning> {
    const FAST: [&str; 5] = [
        "tsc",
        "kvm-clock",
        "arch_sys_counter",
        "hyperv_clocksource_tsc_page",
        "xen",
    ];
    let source = about.environment.clock_source.as_ref()?;
    let is_fast = FAST.contains(&source.as_str());
    (!is_fast).then(|| Warning::SlowClock {
        source: source.clone(),
    })
}

/// One engine in several processes beside one that needs no more than one.
fn several_processes(
    processes: impl Iterator<Item = (Engine, usize)>,
    nofile: u64,
) -> Vec<Warning> {
    let mut most: BTreeMap<Engine, usize> = BTreeMap::new();
    for (engine, processes) in processes {
        let known = most.entry(engine).or_default();
        *known = processes.max(*known);
    }
    let has_one = most.values().any(|processes| *processes == 1);
    let several = most.into_iter().filter(|(_, processes)| *processes > 1);
    several
        .filter(|_| has_one)
        .map(|(engine, processes)| Warning::SeveralProcesses {
            engine,
            processes,
            nofile,
        })
        .collect()
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
        let machine = report.about.machine.as_mut().unwrap();
        machine.steal_ns = machine.busy_ns / 2;
        report.about.placement.client = report.about.placement.server.clone();
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
            case: String::new(),
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

    #[test]
    fn a_slow_clock_and_a_limit_that_cripples_one_side_are_told() {
        let mut report = quiet();
        report.about.environment.clock_source = Some("acpi_pm".to_owned());
        report.conclude();
        let text: Vec<String> = report.warnings.iter().map(Warning::to_string).collect();
        let text = text.join("\n");
        assert!(text.contains("clock source is acpi_pm"), "{text}");
        assert!(text.contains("epoll ran as 6 processes"), "{text}");
        report.about.environment.clock_source = None;
        report.hold.clear();
        report.conclude();
        let of = |warning: &Warning| {
            matches!(
                warning,
                Warning::SlowClock { .. } | Warning::SeveralProcesses { .. }
            )
        };
        assert!(!report.warnings.iter().any(of));
    }
}
