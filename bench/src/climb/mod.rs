//! The command `hold`: connections are brought up, in one go or step by step, held, perhaps exercised, and closed.
//!
//! One client process for each step, all against the same servers. Invariant: however far it comes, it closes in good
//! order what it opened, and comes back with a report of it; memory and files are watched from the first connect until
//! the last socket is gone.

pub mod plan;
pub mod result;

use std::time::{Duration, Instant};

use kernel_tuning::host::{Files, Memory, NetCounters};
use kernel_tuning::process::is_bound_by_file_max;
use serde_json::Value;

use crate::climb::plan::{ClimbPlan, Part, Room};
use crate::climb::result::{Climb, Close, Step};
use crate::clock::millis;
use crate::crowd::{Crowd, Halt};
use crate::footprint::{Growth, QUIETEST_TAKES, quietest};
use crate::guard::Guard;
use crate::load::{Stage, flag_ms};
use crate::report::Reported;
use crate::report::climb as text;
use crate::report::format::{count, of_many};
use crate::result::Failure;
use crate::run::Run;
use crate::runner::Ended;
use crate::sample::{available_bytes, sockets_settle};
use crate::scenario::{Protocol, server_processes};
use crate::screen::Screen;
use crate::servers::Servers;

/// The client's own bound, which a run never reaches: it is this program that ends each client.
const UNTIL_TOLD: &str = "30days";

/// Runs `plan` and tells of it on `screen`.
///
/// # Errors
/// When it does not fit this machine, or nothing could be started at all: what to tell the user.
pub fn climb(plan: ClimbPlan, command_line: Vec<String>, screen: &Screen) -> Result<Climb, String> {
    let mut run = Run::begin(
        Climb::COMMAND,
        plan.placement.clone(),
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    let room = room()?;
    plan.fit(&room)?;
    let mut report = Climb {
        about: run.about.clone(),
        processes: server_processes(plan.engine, plan.most(), plan.nofile_hard),
        plan,
        room,
        empty: None,
        server_rss_empty_bytes: 0,
        steps: Vec::new(),
        active: None,
        stopped_by: None,
        close: None,
        counters: NetCounters::default(),
        clients: Vec::new(),
        servers: Vec::new(),
        warnings: Vec::new(),
    };
    screen.line(&text::plan(&report, screen.paint));
    let mut failures = Vec::new();
    let whole = hold_all(&run.stage, &mut report, &mut failures, screen);
    for failure in whole.err().into_iter().chain(failures) {
        run.note(screen, failure);
    }
    report.about = run.end(screen);
    report.conclude();
    Ok(report)
}

fn room() -> Result<Room, String> {
    let files = Files::read().map_err(|error| error.to_string())?;
    let memory = Memory::read().map_err(|error| error.to_string())?;
    Ok(Room {
        available_bytes: available_bytes(&memory),
        files_open: files.allocated,
        file_max: files.max,
        is_bound_by_file_max: is_bound_by_file_max().map_err(|error| error.to_string())?,
    })
}

/// Starts the servers, climbs, and closes. Failures that do not end it go to `failures`.
fn hold_all(
    stage: &Stage,
    report: &mut Climb,
    failures: &mut Vec<Failure>,
    screen: &Screen,
) -> Result<(), Failure> {
    let plan = report.plan.clone();
    let broken = |cause: &dyn std::fmt::Display| failure("holding connections", cause.to_string());
    let protocol = Protocol::Line {
        heartbeat: Duration::from_millis(plan.heartbeat_ms),
    };
    screen.doing(format!("starting the {} server", plan.engine));
    let mut servers = Servers::start(
        &stage.launcher,
        plan.engine,
        protocol,
        report.processes,
        &stage.placement.server,
        &stage.stop,
    )?;
    report.empty = Some(quietest().map_err(|error| broken(&error))?);
    let usage = servers.usage().map_err(|error| broken(&error))?;
    report.server_rss_empty_bytes = usage.rss_bytes;
    let file_max = report
        .room
        .is_bound_by_file_max
        .then_some(report.room.file_max);
    let guard =
        Guard::watch(plan.keep_free(plan.connections), file_max).map_err(|error| broken(&error))?;
    let mut crowd = Crowd::default();
    let halted = ascend(stage, report, &mut servers, &guard, &mut crowd, screen);
    let (close, ended) = close(stage, &guard, crowd, report, screen);
    screen.line(&text::close_line(&close));
    report.close = Some(close);
    if let Ok(now) = NetCounters::read() {
        report.counters = now.since(&stage.base.counters);
    }
    screen.doing("ending the server".to_owned());
    let (summaries, of_servers) = servers.end("holding connections");
    report.servers = summaries;
    let halted = halted?;
    failures.extend(flaws(&ended, halted.is_some()));
    report.clients = ended.iter().map(|ended| ended.summary.clone()).collect();
    if let Some(halt) = halted {
        failures.extend(judge(report, halt, ended.last()));
    }
    failures.extend(of_servers);
    Ok(())
}

/// Part after part, until all are there or something ends it.
fn ascend(
    stage: &Stage,
    report: &mut Climb,
    servers: &mut Servers,
    guard: &Guard,
    crowd: &mut Crowd,
    screen: &Screen,
) -> Result<Option<Halt>, Failure> {
    let plan = report.plan.clone();
    for part in plan.parts() {
        let keep_free_bytes = plan.keep_free(part.total);
        guard.keep_free(keep_free_bytes);
        guard.take_extremes();
        screen.phase(
            format!("connecting {}", count(part.total)),
            Some(ClimbPlan::ramp_estimate(part.added)),
        );
        crowd.start(stage, servers, client_args(&plan, &part))?;
        let mut step = Step {
            wanted: part.total,
            added: part.added,
            keep_free_bytes,
            established: 0,
            lost: 0,
            ramp_ms: None,
            held_ms: 0,
            growth: None,
            server_rss_bytes: None,
            client_rss_bytes: None,
            worst: guard.take_extremes(),
        };
        let halted = hold(
            stage, report, servers, guard, crowd, &part, &mut step, screen,
        );
        step.ramp_ms = crowd.ramp_ms();
        step.established = crowd.established();
        step.lost = crowd.lost();
        step.worst = guard.take_extremes();
        screen.line(&text::step_line(report, &step));
        report.steps.push(step);
        if let Err(halt) = halted {
            return Ok(Some(halt));
        }
    }
    let Some(active) = plan.active else {
        return Ok(None);
    };
    let what = format!(
        "{} messages a second on {}",
        count(active.message_rate),
        of_many(active.connections, "connection")
    );
    screen.phase(what, Some(Duration::from_millis(active.for_ms)));
    let exchanged = exchange(stage, servers, guard, crowd, active.for_ms);
    report.active = Some(guard.take_extremes());
    Ok(exchanged.err())
}

/// The newest client connects, then all connections are held; their memory is read at the end of that.
#[expect(
    clippy::too_many_arguments,
    reason = "what a step works with, and what it fills"
)]
fn hold(
    stage: &Stage,
    report: &Climb,
    servers: &mut Servers,
    guard: &Guard,
    crowd: &mut Crowd,
    part: &Part,
    step: &mut Step,
    screen: &Screen,
) -> Result<(), Halt> {
    crowd.connect(stage, servers, guard, ClimbPlan::ramp_patience(part.added))?;
    let began = Instant::now();
    screen.phase(
        format!("holding {}", count(crowd.established())),
        Some(Duration::from_millis(part.hold_ms)),
    );
    let until = began + Duration::from_millis(part.hold_ms).saturating_sub(QUIETEST_TAKES);
    crowd.follow(stage, servers, guard, until, |_| false)?;
    let now = quietest().ok();
    // Once more, for what happened meanwhile.
    crowd.follow(stage, servers, guard, Instant::now(), |_| false)?;
    step.held_ms = millis(began.elapsed());
    step.growth = report
        .empty
        .as_ref()
        .zip(now.as_ref())
        .and_then(|(empty, now)| Growth::between(empty, now, crowd.established()));
    step.server_rss_bytes = servers.usage().ok().map(|usage| usage.rss_bytes);
    step.client_rss_bytes = crowd.rss_bytes();
    Ok(())
}

/// The client begins by itself when it has been quiet for as long as the hold.
fn exchange(
    stage: &Stage,
    servers: &mut Servers,
    guard: &Guard,
    crowd: &mut Crowd,
    for_ms: u64,
) -> Result<(), Halt> {
    const BEGINS_WITHIN: Duration = Duration::from_secs(30);
    let is_active = |crowd: &Crowd| crowd.newest().is_some_and(|last| last.phase == "active");
    if !crowd.follow(
        stage,
        servers,
        guard,
        Instant::now() + BEGINS_WITHIN,
        is_active,
    )? {
        return Err(Halt::TooLong {
            seconds: BEGINS_WITHIN.as_secs(),
        });
    }
    let until = Instant::now() + Duration::from_millis(for_ms);
    crowd
        .follow(stage, servers, guard, until, |_| false)
        .map(drop)
}

fn client_args(plan: &ClimbPlan, part: &Part) -> Vec<String> {
    let mut args = vec![
        "--connections".to_owned(),
        part.added.to_string(),
        "--source".to_owned(),
        part.source.clone(),
        "--hold".to_owned(),
        UNTIL_TOLD.to_owned(),
        "--heartbeat".to_owned(),
        flag_ms(plan.heartbeat_ms),
    ];
    if let Some(active) = plan.active {
        args.extend([
            "--active".to_owned(),
            active.connections.to_string(),
            "--message-rate".to_owned(),
            active.message_rate.to_string(),
            "--quiet-for".to_owned(),
            flag_ms(plan.hold_ms),
        ]);
    }
    args
}

fn close(
    stage: &Stage,
    guard: &Guard,
    crowd: Crowd,
    report: &Climb,
    screen: &Screen,
) -> (Close, Vec<Ended>) {
    /// The server has to notice each reset.
    const SETTLES_WITHIN: Duration = Duration::from_secs(60);
    guard.take_extremes();
    let connections = crowd.established();
    screen.doing(format!("closing {}", of_many(connections, "connection")));
    let began = Instant::now();
    let ended = crowd.end(report.plan.most());
    let clients_ended_ms = millis(began.elapsed());
    let are_gone = sockets_settle(&stage.base.sockstat, SETTLES_WITHIN, &stage.stop);
    let close = Close {
        connections,
        clients_ended_ms,
        sockets_gone_ms: are_gone.then(|| millis(began.elapsed())),
        worst: guard.take_extremes(),
    };
    (close, ended)
}

/// What the clients say went wrong. One that was stopped in the middle has connections without a greeting yet.
fn flaws(ended: &[Ended], was_halted: bool) -> Vec<Failure> {
    const FIGURES: [(&str, &str); 5] = [
        ("/lost_while_held", "connection lost"),
        ("/greetings_missing", "greeting missing"),
        ("/heartbeats/missing", "connection without heartbeats"),
        ("/messages/mismatched", "echo with wrong bytes"),
        ("/messages/unanswered", "message unanswered"),
    ];
    let mut failures = Vec::new();
    for (index, client) in ended.iter().enumerate() {
        let was_cut = was_halted && index + 1 == ended.len();
        let figures = FIGURES
            .iter()
            .filter(|(pointer, _)| !(was_cut && *pointer == "/greetings_missing"));
        let said: Vec<String> = figures
            .filter_map(|(pointer, what)| {
                let figure = client.summary.pointer(pointer).and_then(Value::as_u64)?;
                (figure > 0).then(|| format!("{what}: {}", count(figure)))
            })
            .collect();
        let is_short = client.summary.pointer("/messages/open_loop/is_short");
        if is_short.and_then(Value::as_bool) == Some(true) {
            let cause =
                "the rate of messages was not kept: less than 99 % of those due were answered";
            failures.push(failure("exchanging messages", cause.to_owned()));
        }
        if client.summary.is_null() {
            failures.push(failure("holding connections", client.how()));
        } else if !said.is_empty() {
            let cause = format!("{} ({})", said.join(", "), client.how());
            failures.push(failure("holding connections", cause));
        }
    }
    failures
}

/// A limit that ends the steps above what had to be held is their result; anything else is a failure.
fn judge(report: &mut Climb, halt: Halt, newest: Option<&Ended>) -> Option<Failure> {
    if let Halt::Limit(limit) = halt {
        report.stopped_by = Some(limit);
        if report.held() >= report.plan.connections {
            return None;
        }
    }
    let own_words = newest.map_or_else(String::new, Ended::how);
    let wanted = report.steps.last().map_or(0, |step| step.wanted);
    Some(Failure {
        during: format!("holding {} connections", count(wanted)),
        cause: halt.words(&own_words),
        stderr_tail: newest.map_or_else(Vec::new, |client| client.stderr_tail.clone()),
    })
}

fn failure(during: &str, cause: String) -> Failure {
    Failure {
        during: during.to_owned(),
        cause,
        stderr_tail: Vec::new(),
    }
}
