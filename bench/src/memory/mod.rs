//! The command `memory`: what an idle connection takes of the kernel's memory, by slab cache, beside a bare socket.
//!
//! Each engine, and a server that only accepts and keeps (see [`crate::bare`]), holds the same connections of the same
//! client in turn, in random order, several rounds; and so does that server those of a client that only connects and keeps,
//! from which follows what one side takes (see [`result::Side`]). Invariant: what an engine costs above the bare socket, and
//! what a side takes, is drawn from measurements of the same round.

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
    let mut report = MemoryReport {
        about: run.end(screen),
        plan,
        kept: all,
        sides: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

/// One measurement: the servers start, the client connects, all comes to rest, and the memory is read.
fn keep(stage: &Stage, plan: &MemoryPlan, subject: Subject, round: usize) -> Result<Kept, Failure> {
    let broken = |cause: String| failure(subject, cause);
    let settled = settle(&stage.base, SETTLES_WITHIN, &stage.stop);
    let mut servers = start(stage, plan, subject)?;
    let guard =
        Guard::watch(plan.keep_free_bytes, None).map_err(|error| broken(error.to_string()))?;
    let empty = quietest().map_err(|error| broken(error.to_string()))?;
    let server_empty = servers
        .memory()
        .map_err(|error| broken(error.to_string()))?;
    let mut crowd = Crowd::default();
    let mut rested = Ok(());
    for (role, args) in clients(plan, subject) {
        if rested.is_ok() {
            crowd.start_as(role, stage, &servers, args)?;
            rested = crowd.connect(stage, &mut servers, &guard, plan.ramp_patience());
        }
    }
    let rested = rested.and_then(|()| {
        let until = Instant::now() + COMES_TO_REST;
        crowd.follow(stage, &mut servers, &guard, until, |_| false)
    });
    let read = rested.map(|_| (quietest(), servers.memory(), crowd.memory()));
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
    let client = client.ok();
    let each = |bytes: f64| bytes / established as f64;
    let above = |now: u64, empty: u64| each(now as f64 - empty as f64);
    Ok(Kept {
        subject,
        round,
        processes,
        settled,
        growth: Growth::between(&empty, &held, established)
            .ok_or_else(|| broken("no connection".to_owned()))?,
        server_rss: above(server.rss_bytes, server_empty.rss_bytes),
        server_pss: server
            .pss_bytes
            .zip(server_empty.pss_bytes)
            .map(|(now, empty)| above(now, empty)),
        server_page_tables: Some(above(
            server.page_tables_bytes,
            server_empty.page_tables_bytes,
        )),
        client_rss: client.map(|client| each(client.rss_bytes as f64)),
        client_pss: client.and_then(|client| Some(each(client.pss_bytes? as f64))),
        client_page_tables: client.map(|client| each(client.page_tables_bytes as f64)),
    })
}

fn start(stage: &Stage, plan: &MemoryPlan, subject: Subject) -> Result<Servers, Failure> {
    let cores = &stage.placement.server;
    match subject {
        Subject::Pair | Subject::Bare => {
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

/// The clients, each with its role and flags. A bare one has its connections as open files, as the bare server has.
fn clients(plan: &MemoryPlan, subject: Subject) -> Vec<(&'static str, Vec<String>)> {
    if subject != Subject::Pair {
        let connections = plan.connections.to_string();
        let flags = ["--connections", &connections, "--source", CLIENT_SOURCE];
        let flags = flags
            .into_iter()
            .chain(["--protocol", "echo", "--hold", "1day"]);
        return vec![("client", flags.map(str::to_owned).collect())];
    }
    let processes = processes_by_files(plan.connections, plan.nofile_hard) as u64;
    (0..processes)
        .map(|number| {
            let share =
                plan.connections / processes + u64::from(number < plan.connections % processes);
            let (share, source) = (share.to_string(), format!("127.{}.0.1", 1 + number % 250));
            let flags = ["--connections", &share, "--source", &source];
            ("bare-client", flags.map(str::to_owned).to_vec())
        })
        .collect()
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
