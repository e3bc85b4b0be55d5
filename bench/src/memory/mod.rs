//! The command `memory`: what an idle connection takes of the kernel's memory, by slab cache, beside a bare socket.
//!
//! Each engine, and a server that only accepts and keeps (see [`crate::bare`]), holds the same connections of the same
//! client in turn, in random order, several rounds. Invariant: what an engine costs above the bare socket is drawn from
//! two measurements of the same round.

pub mod result;

use std::time::{Duration, Instant};

use rand::seq::SliceRandom;

use crate::crowd::Crowd;
use crate::footprint::{Growth, quietest};
use crate::guard::Guard;
use crate::load::Stage;
use crate::memory::result::{Kept, MemoryPlan, MemoryReport, Subject};
use crate::report::Reported;
use crate::report::memory as text;
use crate::result::Failure;
use crate::run::Run;
use crate::sample::settle;
use crate::scenario::{CLIENT_SOURCE, Protocol, processes_by_files, server_processes};
use crate::screen::Screen;
use crate::servers::Servers;

/// Sockets of the measurement before go within a second or two; slab pages may take longer.
const SETTLES_WITHIN: Duration = Duration::from_secs(8);

/// What is freed late (RCU, handshakes) is gone by then.
const COMES_TO_REST: Duration = Duration::from_secs(2);

/// Runs `plan` and tells of it on `screen`.
///
/// # Errors
/// When it does not fit this machine, or nothing could be started at all: what to tell the user.
pub fn memory(
    plan: MemoryPlan,
    command_line: Vec<String>,
    screen: &Screen,
) -> Result<MemoryReport, String> {
    let mut run = Run::begin(
        MemoryReport::COMMAND,
        plan.placement.clone(),
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    plan.fit(&run.stage.base.memory)?;
    run.stage.launcher.learn(&plan.peers);
    screen.line(&text::plan(&plan, &run.about, screen.paint));
    let mut all = Vec::new();
    let mut random = rand::rng();
    for round in 1..=plan.rounds {
        let mut subjects = plan.subjects();
        subjects.shuffle(&mut random);
        for subject in subjects {
            if run.stage.stop.cause().is_some() {
                break;
            }
            screen.doing(format!("{subject}: round {round} of {}", plan.rounds));
            match keep(&run.stage, &plan, subject, round) {
                Ok(kept) => {
                    screen.line(&text::kept_line(&kept));
                    all.push(kept);
                }
                Err(failure) => run.note(screen, failure),
            }
        }
    }
    Ok(MemoryReport {
        about: run.end(screen),
        plan,
        kept: all,
    })
}

/// One measurement: the servers start, the client connects, all comes to rest, and the memory is read.
fn keep(stage: &Stage, plan: &MemoryPlan, subject: Subject, round: usize) -> Result<Kept, Failure> {
    let broken = |cause: String| failure(subject, cause);
    let settled = settle(&stage.base, SETTLES_WITHIN, &stage.stop);
    let mut servers = start(stage, plan, subject)?;
    let guard =
        Guard::watch(plan.keep_free_bytes, None).map_err(|error| broken(error.to_string()))?;
    let empty = quietest().map_err(|error| broken(error.to_string()))?;
    let server_empty = servers.usage().map_err(|error| broken(error.to_string()))?;
    let args = [
        "--connections",
        &plan.connections.to_string(),
        "--source",
        CLIENT_SOURCE,
        "--protocol",
        "echo",
        "--hold",
        "1day",
    ];
    let mut crowd = Crowd::default();
    crowd.start(stage, &servers, args.map(str::to_owned).to_vec())?;
    let rested = crowd
        .connect(stage, &mut servers, &guard, plan.ramp_patience())
        .and_then(|()| {
            let until = Instant::now() + COMES_TO_REST;
            crowd.follow(stage, &mut servers, &guard, until, |_| false)
        });
    let read = rested.map(|_| (quietest(), servers.usage(), crowd.rss_bytes()));
    let (established, lost) = (crowd.established(), crowd.lost());
    let processes = servers.count();
    let clients = crowd.end(plan.connections);
    let (_, failures) = servers.end(&during(subject));
    let (held, server, client) = read.map_err(|halt| {
        let how = clients
            .first()
            .map_or_else(String::new, |client| client.how());
        broken(halt.words(&how))
    })?;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    if lost > 0 || established != plan.connections {
        return Err(broken(format!(
            "{established} of {} connections were established, {lost} lost",
            plan.connections
        )));
    }
    let held = held.map_err(|error| broken(error.to_string()))?;
    let server = server.map_err(|error| broken(error.to_string()))?;
    let each = |bytes: f64| bytes / established as f64;
    Ok(Kept {
        subject,
        round,
        processes,
        settled,
        growth: Growth::between(&empty, &held, established)
            .ok_or_else(|| broken("no connection".to_owned()))?,
        server_rss: each(server.rss_bytes as f64 - server_empty.rss_bytes as f64),
        client_rss: client.map(|bytes| each(bytes as f64)),
    })
}

fn start(stage: &Stage, plan: &MemoryPlan, subject: Subject) -> Result<Servers, Failure> {
    let cores = &stage.placement.server;
    match subject {
        Subject::Bare => {
            let processes = processes_by_files(plan.connections, plan.nofile_hard);
            Servers::start_bare(&stage.launcher, processes, cores, &stage.stop)
        }
        Subject::Engine(engine) => {
            let processes = server_processes(engine, plan.connections, plan.nofile_hard);
            Servers::start(
                &stage.launcher,
                engine,
                Protocol::Echo,
                processes,
                cores,
                &stage.stop,
            )
        }
    }
}

fn during(subject: Subject) -> String {
    format!("keeping connections with {subject}")
}

fn failure(subject: Subject, cause: String) -> Failure {
    Failure {
        during: during(subject),
        cause,
        stderr_tail: Vec::new(),
    }
}
