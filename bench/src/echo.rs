//! The echo rounds: messages in closed loop, engines in random order, so that each pair of figures is of one moment.
//!
//! Invariant: a figure counts only when its client said that every message came back as it was sent.

use std::time::Duration;

use kernel_tuning::host::MachineBusy;
use rand::seq::SliceRandom;

use crate::load::{CpuMark, Progress, Stage, drive, flag_ms};
use crate::result::{Echo, Failure};
use crate::runner::Child;
use crate::sample::sockets_settle;
use crate::scenario::{CLIENT_SOURCE, EchoPlan, Engine, Protocol, server_processes};
use crate::servers::Servers;

/// What happens while the rounds run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A measurement begins.
    Begin {
        /// Its round, from one.
        round: usize,
        /// Its count of active connections.
        active: u64,
        /// Its engine.
        engine: Engine,
    },
    /// All engines were measured with one count; those that failed are missing.
    Pair(&'a [Echo]),
    /// A measurement failed, or a server did.
    Failed(Failure),
}

/// Runs all rounds, and tells each event as it happens.
pub fn rounds(
    stage: &Stage,
    plan: &EchoPlan,
    engines: &[Engine],
    mut on_event: impl FnMut(Event<'_>),
) {
    let mut random = rand::rng();
    let most = plan.active.iter().copied().max().unwrap_or(0);
    let mut running = Vec::new();
    for engine in engines {
        let processes = server_processes(*engine, most, stage.nofile_hard);
        let cores = &stage.placement.server;
        match Servers::start(
            &stage.launcher,
            *engine,
            Protocol::Echo,
            processes,
            cores,
            &stage.stop,
        ) {
            Ok(servers) => running.push((*engine, servers)),
            Err(failure) => on_event(Event::Failed(failure)),
        }
    }
    for round in 1..=plan.rounds {
        let mut counts = plan.active.clone();
        counts.shuffle(&mut random);
        for active in counts {
            running.shuffle(&mut random);
            let mut measured = Vec::new();
            for (engine, servers) in &mut running {
                if stage.stop.cause().is_some() {
                    break;
                }
                on_event(Event::Begin {
                    round,
                    active,
                    engine: *engine,
                });
                match measure(stage, plan, *engine, servers, round, active) {
                    Ok(echo) => measured.push(echo),
                    Err(failure) => on_event(Event::Failed(failure)),
                }
            }
            if !measured.is_empty() {
                on_event(Event::Pair(&measured));
            }
            let dead = running
                .extract_if(.., |(_, servers)| !servers.are_running())
                .collect();
            end(dead, &mut on_event);
        }
    }
    end(running, &mut on_event);
}

fn end(servers: Vec<(Engine, Servers)>, on_event: &mut impl FnMut(Event<'_>)) {
    for (engine, servers) in servers {
        let (_, failures) = servers.end(&format!("echoing with {engine}"));
        failures
            .into_iter()
            .for_each(|failure| on_event(Event::Failed(failure)));
    }
}

/// What is read at each sample of the client.
struct Mark {
    cpu: CpuMark,
    messages: u64,
    machine: MachineBusy,
}

impl Mark {
    fn read(stage: &Stage, progress: &Progress, client: &Child, servers: &Servers) -> Option<Self> {
        let cpu = CpuMark::read(stage, progress, client, servers).ok()?;
        Some(Self {
            cpu,
            messages: progress.messages,
            machine: MachineBusy::read().ok()?,
        })
    }
}

/// The closing sockets of the measurement before would be work for the kernel, and not this engine's.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

fn measure(
    stage: &Stage,
    plan: &EchoPlan,
    engine: Engine,
    servers: &mut Servers,
    round: usize,
    active: u64,
) -> Result<Echo, Failure> {
    let during = format!("echo with {engine} on {active} connections, round {round}");
    let count = active.to_string();
    let args = [
        "--connections",
        &count,
        "--active",
        &count,
        "--protocol",
        "echo",
        "--source",
        CLIENT_SOURCE,
    ]
    .into_iter()
    .chain([
        "--message-bytes",
        &plan.message_bytes.to_string(),
        "--hold",
        &flag_ms(plan.exchange_ms),
    ])
    .chain(["--sample-interval", &flag_ms(plan.sample_interval_ms)])
    .map(str::to_owned)
    .collect();
    let time_limit = Duration::from_millis(plan.exchange_ms + 20_000 + active / 2);
    let settled = sockets_settle(&stage.base.sockstat, SETTLES_WITHIN, &stage.stop);
    let (mut began_ms, mut first, mut last) = (None, None, None);
    let driven = drive(
        stage,
        servers,
        args,
        &during,
        time_limit,
        |progress, client, servers| {
            if progress.phase != "active" {
                return;
            }
            let began_ms = *began_ms.get_or_insert(progress.t_ms);
            if progress.t_ms < began_ms + plan.warm_up_ms {
                return;
            }
            let mark = Mark::read(stage, progress, client, servers);
            if first.is_none() {
                first = mark;
            } else if mark.is_some() {
                last = mark;
            }
        },
    )?;
    if let Some(failure) = driven.failure {
        return Err(failure);
    }
    let unmeasured = || Failure {
        during: during.clone(),
        cause: "the client reported too seldom to measure anything; is the machine overloaded?"
            .to_owned(),
        stderr_tail: Vec::new(),
    };
    let (first, last) = first.zip(last).ok_or_else(unmeasured)?;
    let messages = last.messages.saturating_sub(first.messages);
    let cpu = first
        .cpu
        .until(&last.cpu)
        .filter(|_| messages > 0)
        .ok_or_else(unmeasured)?;
    let machine = last.machine.since(&first.machine);
    Ok(Echo {
        round,
        active,
        engine,
        processes: servers.count(),
        settled,
        messages,
        cpu,
        machine,
        client: driven.summary,
    })
}
