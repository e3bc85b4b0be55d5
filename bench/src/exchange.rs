//! One measurement of running servers by a client of their own: what it did, and what that cost each side.
//!
//! Every scenario with rounds measures through here, the floor included, so that their figures are counted alike.
//! Invariant: a figure counts only when its client said that all went well.

use std::time::Duration;

use kernel_tuning::host::{MachineBusy, Sockstat};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::load::{CpuMark, Progress, Stage, drive_role, flag_ms};
use crate::result::{CpuSpan, Failure};
use crate::rounds::pair_ratios;
use crate::runner::Child;
use crate::sample::sockets_settle;
use crate::scenario::Engine;
use crate::servers::Servers;
use crate::stats::Spread;

/// What is to be measured.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// What is being done, for a failure's text.
    pub during: String,
    /// `client`, or another role that takes the same flags and writes the same lines.
    pub client: &'static str,
    /// The client's flags but for the times.
    pub args: Vec<String>,
    /// Connections it makes.
    pub connections: u64,
    /// Its times.
    pub times: Times,
    /// What of its progress counts.
    pub count: fn(&Progress) -> u64,
    /// The sockets that there are without it.
    pub base: &'a Sockstat,
}

/// The times of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How long messages are exchanged, the warm-up included.
    pub exchange_ms: u64,
    /// The first part of that time, which is not counted.
    pub warm_up_ms: u64,
    /// How often the client reports.
    pub sample_interval_ms: u64,
}

impl Times {
    /// About how long it all takes, connecting and closing included.
    pub fn about(&self, connections: u64) -> Duration {
        Duration::from_millis(self.exchange_ms + 400 + connections / 15)
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchanged {
    /// The sockets of the measurement before were gone when this one began.
    pub settled: bool,
    /// What was counted after the warm-up.
    pub count: u64,
    /// CPU time of both sides in the same time.
    pub cpu: CpuSpan,
    /// CPU time of the whole machine in the same time.
    pub machine: MachineBusy,
    /// The client's own summary.
    pub client: Value,
}

impl Exchanged {
    /// What was counted, a second.
    pub fn per_second(&self) -> f64 {
        self.count as f64 * 1_000.0 / self.cpu.elapsed_ms.max(1) as f64
    }

    /// The server side's CPU time for each that was counted, in microseconds.
    pub fn server_cpu_us(&self) -> f64 {
        self.cpu.server_ns() as f64 / 1_000.0 / self.count.max(1) as f64
    }

    /// A figure of the client's summary, by its JSON pointer.
    pub fn client_figure(&self, pointer: &str) -> Option<f64> {
        self.client.pointer(pointer)?.as_f64()
    }
}

/// One measurement of a run with rounds: of which case (such as counts or a rate), and of whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured<Case> {
    /// The round, from one.
    pub round: usize,
    /// What was measured.
    #[serde(flatten)]
    pub case: Case,
    /// The engine; `None`: the floor.
    pub engine: Option<Engine>,
    /// The engines whose servers were up at the same time; only within these are figures of one moment.
    pub beside: Vec<Engine>,
    /// Server processes on one port.
    pub processes: usize,
    /// The figures.
    #[serde(flatten)]
    pub exchanged: Exchanged,
    /// The summary of a server that was there for this measurement alone, else `null`.
    pub server: Value,
}

impl<Case: PartialEq> Measured<Case> {
    /// Whether only the round tells the two apart.
    pub fn is_of_the_same(&self, other: &Self) -> bool {
        self.case == other.case && self.engine == other.engine && self.beside == other.beside
    }
}

/// The first of each kind: of those that only the round tells apart.
pub fn kinds<Case: PartialEq>(
    measured: &[Measured<Case>],
) -> impl Iterator<Item = &Measured<Case>> {
    let is_new = |(index, one): &(usize, &Measured<Case>)| {
        !measured[..*index]
            .iter()
            .any(|earlier| earlier.is_of_the_same(one))
    };
    measured
        .iter()
        .enumerate()
        .filter(is_new)
        .map(|(_, one)| one)
}

/// One engine's figures over the rounds of a case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The engine; `None`: the floor.
    pub engine: Option<Engine>,
    /// Server processes on one port.
    pub processes: usize,
    /// What was counted, a second.
    pub per_second: Spread,
    /// The server side's CPU time for each, in microseconds.
    pub cpu_us: Spread,
    /// Cores the server side kept busy.
    pub server_cores: Spread,
    /// Cores the client side kept busy.
    pub client_cores: Spread,
}

/// The figures of measurements that only the round tells apart; `None` of no measurement.
pub fn figures<'a, Case: 'a>(alike: impl Iterator<Item = &'a Measured<Case>>) -> Option<Figures> {
    let alike: Vec<_> = alike.collect();
    let first = alike.first()?;
    let spread = |figure: fn(&Exchanged) -> f64| {
        Spread::of(alike.iter().map(|measured| figure(&measured.exchanged)))
    };
    Some(Figures {
        engine: first.engine,
        processes: first.processes,
        per_second: spread(Exchanged::per_second)?,
        cpu_us: spread(Exchanged::server_cpu_us)?,
        server_cores: spread(|exchanged| exchanged.cpu.server_cores())?,
        client_cores: spread(|exchanged| exchanged.cpu.client_cores())?,
    })
}

/// The quotients of two engines' figures (`None`: the floor) of the same case, round and moment.
pub fn pair_ratios_of<Case: PartialEq>(
    measured: &[Measured<Case>],
    case: &Case,
    [above, below]: [Option<Engine>; 2],
    figure: impl Fn(&Exchanged) -> Option<f64>,
) -> Option<Spread> {
    // The floor is measured in every block; an engine in one.
    let beside_both = |one: &&Measured<Case>| {
        let mut engines = [above, below].into_iter().flatten();
        engines.all(|engine| one.beside.contains(&engine))
    };
    let of = |engine, round| {
        let mut same = measured
            .iter()
            .filter(|one| one.engine == engine && one.round == round && one.case == *case);
        figure(&same.find(beside_both)?.exchanged)
    };
    let rounds = measured.iter().map(|one| one.round).max().unwrap_or(0);
    pair_ratios(rounds, |round| of(above, round), |round| of(below, round))
}

/// A figure of `engine` ÷ epoll's of the same case, round and moment; none of epoll itself.
pub fn of_epoll<Case: PartialEq>(
    measured: &[Measured<Case>],
    case: &Case,
    engine: Option<Engine>,
    figure: impl Fn(&Exchanged) -> Option<f64>,
) -> Option<Spread> {
    let epoll = Some(Engine::Epoll);
    (engine != epoll)
        .then(|| pair_ratios_of(measured, case, [engine, epoll], figure))
        .flatten()
}

/// Each engine's CPU time for what was counted ÷ epoll's, in each case.
pub fn cpu_of_epoll<Case: PartialEq>(measured: &[Measured<Case>]) -> Vec<Option<Spread>> {
    let cpu_us = |exchanged: &Exchanged| Some(exchanged.server_cpu_us());
    kinds(measured)
        .filter(|one| one.engine != Some(Engine::Epoll))
        .map(|one| of_epoll(measured, &one.case, one.engine, cpu_us))
        .collect()
}

/// What is read at each sample of the client.
struct Mark {
    cpu: CpuMark,
    count: u64,
    machine: MachineBusy,
}

impl Mark {
    fn read(
        stage: &Stage,
        count: u64,
        progress: &Progress,
        client: &Child,
        servers: &Servers,
    ) -> Option<Self> {
        let cpu = CpuMark::read(stage, progress, client, servers).ok()?;
        Some(Self {
            cpu,
            count,
            machine: MachineBusy::read().ok()?,
        })
    }
}

/// The closing sockets of the measurement before would be work for the kernel, and not this one's.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

/// Measures `servers`.
///
/// # Errors
/// Why there is no figure.
pub fn measure(
    stage: &Stage,
    servers: &mut Servers,
    exchange: Exchange<'_>,
) -> Result<Exchanged, Failure> {
    let Exchange { during, times, .. } = exchange;
    let mut args = exchange.args;
    args.extend(["--hold".to_owned(), flag_ms(times.exchange_ms)]);
    args.extend([
        "--sample-interval".to_owned(),
        flag_ms(times.sample_interval_ms),
    ]);
    let time_limit = Duration::from_millis(times.exchange_ms + 20_000 + exchange.connections / 2);
    let settled = sockets_settle(exchange.base, SETTLES_WITHIN, &stage.stop);
    let (mut began_ms, mut first, mut last) = (None, None, None);
    let driven = drive_role(
        exchange.client,
        stage,
        servers,
        args,
        &during,
        time_limit,
        |progress, client, servers| {
            // `hold` is the phase of connections that come and go.
            if !matches!(progress.phase.as_str(), "active" | "hold") {
                return;
            }
            let began_ms = *began_ms.get_or_insert(progress.t_ms);
            if progress.t_ms < began_ms + times.warm_up_ms {
                return;
            }
            let count = (exchange.count)(progress);
            let mark = Mark::read(stage, count, progress, client, servers);
            if first.is_none() {
                first = mark;
            } else if mark.is_some() {
                last = mark;
            }
        },
    )?;
    if let Some(failure) = driven.failure {
        servers.failed();
        return Err(failure);
    }
    let unmeasured = || Failure {
        during: during.clone(),
        cause: "the client reported too seldom to measure anything; is the machine overloaded?"
            .to_owned(),
        stderr_tail: Vec::new(),
    };
    let (first, last) = first.zip(last).ok_or_else(unmeasured)?;
    let count = last.count.saturating_sub(first.count);
    let cpu = first
        .cpu
        .until(&last.cpu)
        .filter(|_| count > 0)
        .ok_or_else(unmeasured)?;
    Ok(Exchanged {
        settled,
        count,
        cpu,
        machine: last.machine.since(&first.machine),
        client: driven.summary,
    })
}
