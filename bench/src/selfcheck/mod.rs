//! The self-check: the method of all comparisons held against itself, the same engine under two names.
//!
//! A and B are two servers of the same engine, each a process of its own as two engines would be, measured in the same
//! rounds, in random order, by the same code. Their ratio is 1.00, so an interval of 95 % that does not hold it is a
//! false finding of the method on this machine. Each run begins with fresh servers: what a process owes to the place of
//! its memory is then part of what is tested.
//!
//! In a build with the feature `burn` B can be slowed down, to see whether that is found:
//! `cargo run --release --features burn -- selfcheck --slow-down 10`.

pub mod result;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use kernel_tuning::host::Sockstat;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::echo::client_args;
use crate::exchange::{self, Exchange, Measured, Times};
use crate::load::Stage;
use crate::report;
use crate::report::Reported;
use crate::result::Failure;
use crate::rounds::{Goal, in_random_order};
use crate::run::Run;
use crate::scenario::{Engine, NEWCOMER_SOURCE, Placement, Protocol, server_processes};
use crate::screen::Screen;
use crate::selfcheck::result::{Case, Name, Report, Verdict, ratios};
use crate::servers::Servers;
use crate::usage::{RoundsArgs, this_host, within};

/// The flags of `throng-bench selfcheck`.
#[derive(Debug, Args)]
pub struct SelfcheckArgs {
    /// Engine to hold against itself
    #[arg(long, default_value = "uring", help_heading = "What is measured")]
    engine: Engine,
    /// Connections that exchange messages at the same time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 500,
        help_heading = "What is measured"
    )]
    active: u64,
    /// Bytes of a message
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 64,
        help_heading = "What is measured"
    )]
    message_bytes: u64,
    /// Slow B down by so many percent of its CPU time: is that found?
    #[cfg(feature = "burn")]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100), help_heading = "What is measured")]
    slow_down: Option<u8>,

    /// Runs, each with fresh servers and an interval of its own
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10,
        help_heading = "How it is measured"
    )]
    runs: usize,
    #[command(flatten)]
    rounds: RoundsArgs,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/selfcheck.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The engine.
    pub engine: Engine,
    /// Connections that exchange messages.
    pub active: u64,
    /// Bytes of a message.
    pub message_bytes: u64,
    /// By how many percent of its CPU time B is slowed down.
    pub slow_down_percent: Option<u8>,
    /// Runs.
    pub runs: usize,
    /// Rounds of each run that there are at least, a pair in each.
    pub rounds: usize,
    /// Until when they go on then.
    pub until: Option<Goal>,
    /// Times of one measurement.
    pub times: Times,
    /// The CPU of each side.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

impl SelfcheckArgs {
    /// What the flags ask for, on this machine.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<Plan, String> {
        /// Below this there is no interval (see [`crate::stats`]).
        const LEAST_ROUNDS: u64 = 6;
        let (placement, nofile_hard) = this_host()?;
        within("--active", self.active, 1..=100_000)?;
        within("--message-bytes", self.message_bytes, 1..=65_536)?;
        within("--runs", self.runs as u64, 1..=1_000)?;
        let (rounds, until, times) = self.rounds.plan()?;
        within("--rounds", rounds as u64, LEAST_ROUNDS..=10_000)?;
        #[cfg(feature = "burn")]
        let slow_down_percent = self.slow_down;
        #[cfg(not(feature = "burn"))]
        let slow_down_percent = None;
        Ok(Plan {
            engine: self.engine,
            active: self.active,
            message_bytes: self.message_bytes,
            slow_down_percent,
            runs: self.runs,
            rounds,
            until,
            times,
            placement: placement.one_each(),
            nofile_hard,
        })
    }
}

impl Plan {
    /// About how long it takes.
    pub fn estimate(&self) -> Duration {
        let each_ms = self.times.exchange_ms + 500 + self.active / 10;
        let rounds_ms = 2 * self.rounds as u64 * each_ms;
        let run_ms = self.until.map_or(0, |goal| goal.at_most_ms).max(rounds_ms) + 1_000;
        Duration::from_millis(self.runs as u64 * run_ms)
    }
}

/// One of the two.
#[derive(Debug)]
struct Contender {
    name: Name,
    servers: Servers,
}

/// Runs `plan` and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn run(plan: Plan, command_line: Vec<String>, screen: &Screen) -> Result<Report, String> {
    let mut run = Run::begin(
        Report::COMMAND,
        plan.placement.clone(),
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    screen.line(&report::selfcheck::plan(&plan, &run.about, screen.paint));
    let (mut measured, mut servers) = (Vec::new(), Vec::new());
    for number in 1..=plan.runs {
        if run.stage.stop.cause().is_some() {
            break;
        }
        let pairs = one_run(&mut run, screen, &plan, number, &mut servers);
        screen.line(&report::selfcheck::run_line(&ratios(&pairs), plan.runs));
        measured.extend(pairs);
    }
    let mut report = Report {
        about: run.end(screen),
        plan,
        measured,
        runs: Vec::new(),
        verdict: Verdict::default(),
        servers,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

/// The pairs of one run, with servers of its own; their summaries go to `summaries`.
fn one_run(
    run: &mut Run,
    screen: &Screen,
    plan: &Plan,
    number: usize,
    summaries: &mut Vec<Value>,
) -> Vec<Measured<Case>> {
    let mut contenders = start(run, screen, plan);
    let (mut dead, mut failures) = (Vec::new(), Vec::new());
    let (stage, began) = (&run.stage, Instant::now());
    let base = Sockstat::read().unwrap_or(stage.base.sockstat);
    let is_over = |done, measured: &[Measured<Case>]| {
        let is_enough = |goal: Goal| {
            let ratios = ratios(measured);
            let spreads: Vec<_> = ratios.iter().flat_map(|run| [run.cpu, run.rate]).collect();
            !spreads.is_empty() && goal.is_reached(began.elapsed(), &spreads)
        };
        done >= plan.rounds && plan.until.is_none_or(is_enough)
    };
    let measured = in_random_order(
        is_over,
        &[()],
        &mut contenders,
        &stage.stop,
        |round, (), contender| {
            screen.doing_for(
                format!(
                    "run {number} of {}: {}, round {round}",
                    plan.runs, contender.name
                ),
                plan.times.about(plan.active),
            );
            match measure(stage, plan, &base, number, round, contender) {
                Ok(measured) => Some(measured),
                Err(failure) => {
                    screen.failure(&failure);
                    failures.push(failure);
                    None
                }
            }
        },
        |_, contenders| {
            // Alone the other has nothing to be a pair with.
            let is_up = |contender: &mut Contender| contender.servers.are_running();
            if !contenders.iter_mut().all(is_up) {
                dead.append(contenders);
            }
        },
    );
    for Contender { name, servers } in contenders.into_iter().chain(dead) {
        let (said, others) = servers.end(&format!("serving as {name} in run {number}"));
        summaries.extend(said);
        others
            .into_iter()
            .for_each(|failure| run.note(screen, failure));
    }
    run.about.failures.extend(failures);
    measured
}

/// Both, or none, in random order: the one that starts first is not always the same.
fn start(run: &mut Run, screen: &Screen, plan: &Plan) -> Vec<Contender> {
    let mut names = [Name::A, Name::B];
    names.shuffle(&mut rand::rng());
    let slow_down = plan
        .slow_down_percent
        .map(|percent| ["--burn".to_owned(), percent.to_string()]);
    let stage = &run.stage;
    let started: Result<Vec<Contender>, Failure> = names
        .into_iter()
        .map(|name| {
            let flags = slow_down.as_ref().filter(|_| name == Name::B);
            let servers = Servers::start_with(
                &stage.launcher,
                plan.engine,
                Protocol::Echo,
                server_processes(plan.engine, plan.active, stage.nofile_hard),
                &stage.placement.server,
                &stage.stop,
                flags.map_or(&[], |flags| flags),
            )?;
            Ok(Contender { name, servers })
        })
        .collect();
    started.unwrap_or_else(|failure| {
        run.note(screen, failure);
        Vec::new()
    })
}

fn measure(
    stage: &Stage,
    plan: &Plan,
    base: &Sockstat,
    run: usize,
    round: usize,
    contender: &mut Contender,
) -> Result<Measured<Case>, Failure> {
    let Contender { name, servers } = contender;
    let exchange = Exchange {
        during: format!("echo with {name} in run {run}, round {round}"),
        client: "client",
        args: client_args(NEWCOMER_SOURCE, plan.active, plan.message_bytes),
        connections: plan.active,
        times: plan.times,
        count: |progress| progress.messages,
        base,
    };
    let exchanged = exchange::measure(stage, servers, exchange)?;
    Ok(Measured {
        round,
        case: Case { run, name: *name },
        engine: Some(plan.engine),
        beside: vec![plan.engine],
        processes: servers.count(),
        exchanged,
        server: Value::Null,
    })
}
