//! The echo rounds: messages in closed loop, engines in random order, so that each pair of figures is of one moment.
//!
//! Invariant: a figure counts only when its client said that every message came back as it was sent.

use std::cell::RefCell;
use std::time::Instant;

use crate::exchange::{self, Exchange};
use crate::load::Stage;
use crate::result::{Echo, Failure, echo_ratios};
use crate::rounds::{Goal, in_random_order};
use crate::scenario::{
    CLIENT_SOURCE, EchoCase, EchoPlan, Engine, Protocol, most_connections, server_processes,
};
use crate::servers::Servers;

/// What happens while the rounds run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A measurement begins.
    Begin {
        /// Its round, from one.
        round: usize,
        /// What is exchanged.
        case: EchoCase,
        /// Its engine.
        engine: Engine,
    },
    /// All engines were measured in one case; those that failed are missing.
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
    let on_event = RefCell::new(on_event);
    let tell = |event: Event<'_>| on_event.borrow_mut()(event);
    let began = Instant::now();
    let is_over = |done, measured: &[Echo]| {
        let is_enough = |goal: Goal| goal.is_reached(began.elapsed(), &echo_ratios(plan, measured));
        done >= plan.rounds && plan.until.is_none_or(is_enough)
    };
    in_random_order(
        is_over,
        &plan.cases(),
        &mut running,
        &stage.stop,
        |round, case, (engine, servers)| {
            // The doubts say so.
            if most_connections(*engine, stage.nofile_hard).is_some_and(|most| case.active > most) {
                return None;
            }
            tell(Event::Begin {
                round,
                case: *case,
                engine: *engine,
            });
            let measured = measure(stage, plan, *engine, servers, round, *case);
            measured
                .map_err(|failure| tell(Event::Failed(failure)))
                .ok()
        },
        |measured, running| {
            if !measured.is_empty() {
                tell(Event::Pair(measured));
            }
            let dead = running
                .extract_if(.., |(_, servers)| !servers.are_running())
                .collect();
            end(dead, &tell);
        },
    );
    end(running, &tell);
}

fn end(servers: Vec<(Engine, Servers)>, on_event: &impl Fn(Event<'_>)) {
    for (engine, servers) in servers {
        let (_, failures) = servers.end(&format!("echoing with {engine}"));
        failures
            .into_iter()
            .for_each(|failure| on_event(Event::Failed(failure)));
    }
}

fn measure(
    stage: &Stage,
    plan: &EchoPlan,
    engine: Engine,
    servers: &mut Servers,
    round: usize,
    case: EchoCase,
) -> Result<Echo, Failure> {
    let exchanged = exchange::measure(
        stage,
        servers,
        Exchange {
            during: format!("echo with {engine}, {case}, round {round}"),
            client: "client",
            args: client_args(CLIENT_SOURCE, case.active, case.message_bytes),
            connections: case.active,
            times: plan.times,
            count: |progress| progress.messages,
            base: &stage.base.sockstat,
        },
    )?;
    Ok(Echo {
        round,
        case,
        engine,
        processes: servers.count(),
        settled: exchanged.settled,
        messages: exchanged.count,
        cpu: exchanged.cpu,
        machine: exchanged.machine,
        client: exchanged.client,
    })
}

/// Flags of a client whose connections from `source` all exchange messages.
pub fn client_args(source: &str, active: u64, message_bytes: u64) -> Vec<String> {
    let (active, message_bytes) = (active.to_string(), message_bytes.to_string());
    [
        ["--connections", &active],
        ["--active", &active],
        ["--protocol", "echo"],
        ["--source", source],
        ["--message-bytes", &message_bytes],
    ]
    .into_iter()
    .flatten()
    .map(str::to_owned)
    .collect()
}
