//! The tail: latency in open loop, at a share of what saturates the slowest engine, beside idle connections.
//!
//! First each engine's closed loop rate is measured with nothing idle beside; the slowest of them (tokio-uring left out,
//! where another is measured) is the saturation, and the loads are shares of it: the same absolute rates for all engines,
//! so that their latencies can be compared. Then every round measures every load with every engine, in random order.
//! A latency counts from when its message was to be sent.
//!
//! Engines whose idle connections are few enough are up at the same time; beyond that they go one after the other, and
//! the text says so ([`crate::blocks`]).

pub mod result;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kernel_tuning::host::Sockstat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::Wanted;
use crate::blocks::{Block, Contender, Rounds, Until, in_blocks};
use crate::echo::client_args;
use crate::exchange::{self, Exchange, Exchanged, Measured, Times};
use crate::load::Stage;
use crate::peer::Peer;
use crate::report;
use crate::report::Reported;
use crate::result::Failure;
use crate::rounds::Goal;
use crate::run::Run;
use crate::scenario::{Engine, NEWCOMER_SOURCE, Placement, Protocol};
use crate::screen::Screen;
use crate::stats::Spread;
use crate::tail::result::{Case, Report, Saturation, p99_ratios};
use crate::usage::{PeerArgs, RoundsArgs, distinct, this_host, within};

/// Idle connections, of all engines in sum, up to which they are up at the same time.
pub const MOST_TOGETHER: u64 = 300_000;

/// Rounds of closed loop from which the saturation is drawn.
pub const SATURATION_ROUNDS: usize = 3;

/// The flags of `throng-bench tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Engines to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll,tokio-uring",
        help_heading = "What is measured"
    )]
    engines: Vec<Engine>,
    #[command(flatten)]
    peers: PeerArgs,
    /// Connections that exchange messages
    #[arg(
        long,
        value_name = "N",
        default_value_t = 500,
        help_heading = "What is measured"
    )]
    active: u64,
    /// Idle connections beside them, held by the same server
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "0,100000,1000000",
        help_heading = "What is measured"
    )]
    idle: Vec<u64>,
    /// Loads, in percent of the slowest engine's saturation
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "50,80",
        help_heading = "What is measured"
    )]
    load: Vec<u64>,
    /// Bytes of a message
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 64,
        help_heading = "What is measured"
    )]
    message_bytes: u64,

    #[command(flatten)]
    rounds: RoundsArgs,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/tail.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Engines.
    pub engines: Vec<Engine>,
    /// How the peers among them are started.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Connections that exchange messages.
    pub active: u64,
    /// Counts of idle connections beside them.
    pub idle: Vec<u64>,
    /// Loads, in percent of the saturation.
    pub load_percent: Vec<u64>,
    /// Bytes of a message.
    pub message_bytes: u64,
    /// Rounds there are at least.
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

impl TailArgs {
    /// What the flags ask for, on this machine.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<Plan, String> {
        let (placement, nofile_hard) = this_host()?;
        let (engines, peers) = self.peers.beside(self.engines)?;
        distinct("--idle", &self.idle)?;
        distinct("--load", &self.load)?;
        within("--active", self.active, 1..=10_000_000)?;
        for load in &self.load {
            within("--load", *load, 1..=200)?;
        }
        within("--message-bytes", self.message_bytes, 1..=65_536)?;
        let (rounds, until, times) = self.rounds.plan()?;
        Ok(Plan {
            engines,
            peers,
            active: self.active,
            idle: self.idle,
            load_percent: self.load,
            message_bytes: self.message_bytes,
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
        let engines = self.engines.len() as u64;
        let each_ms = self.times.exchange_ms + 700 + self.active / 10;
        let at_least = self.rounds as u64 * self.load_percent.len() as u64 * each_ms;
        let open = at_least.max(self.until.map_or(0, |goal| goal.at_most_ms) / engines.max(1));
        let closed = SATURATION_ROUNDS as u64 * each_ms;
        // Some 20,000 connects a second, and as many closed.
        let idle_ms = |idle: &u64| engines * (open + idle / 10 + 1_000);
        Duration::from_millis(engines * closed + self.idle.iter().map(idle_ms).sum::<u64>())
    }

    fn wanted(&self, idle: u64) -> Wanted {
        Wanted {
            idle,
            newcomers: self.active,
            table_slots: None,
            protocol: Protocol::Echo,
        }
    }
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
    run.stage.launcher.learn(&plan.peers);
    screen.line(&report::tail::plan(&plan, &run.about, screen.paint));
    let closed = Case {
        idle: 0,
        load_percent: 100,
        asked_per_second: None,
    };
    let (engines, rounds) = (&plan.engines, SATURATION_ROUNDS);
    let mut closed_loop = Vec::new();
    let mut ended = in_blocks(
        &mut run,
        screen,
        engines,
        &[plan.wanted(0)],
        0,
        |run, block| {
            let line = |measured: &[_]| report::tail::closed_line(measured, rounds);
            closed_loop.extend(measure(
                run,
                screen,
                &plan,
                block,
                (rounds, None),
                &[closed],
                line,
            ));
        },
    );
    let saturation = saturation(engines, &closed_loop);
    let mut measured = Vec::new();
    if let Some(saturation) = &saturation {
        screen.line(&report::tail::saturation_line(saturation, engines));
        let wanted: Vec<Wanted> = plan.idle.iter().map(|idle| plan.wanted(*idle)).collect();
        let open = in_blocks(
            &mut run,
            screen,
            engines,
            &wanted,
            MOST_TOGETHER,
            |run, block| {
                let idle = block.wanted.idle;
                let case = |percent: &u64| Case {
                    idle,
                    load_percent: *percent,
                    asked_per_second: Some(share(saturation.per_second, *percent)),
                };
                let cases: Vec<Case> = plan.load_percent.iter().map(case).collect();
                let line = |measured: &[_]| report::tail::round_line(measured, plan.rounds);
                measured.extend(measure(
                    run,
                    screen,
                    &plan,
                    block,
                    (plan.rounds, plan.until),
                    &cases,
                    line,
                ));
            },
        );
        ended.skipped.extend(open.skipped);
        ended.servers.extend(open.servers);
    }
    let mut report = Report {
        about: run.end(screen),
        plan,
        closed_loop,
        saturation,
        skipped: ended.skipped,
        measured,
        summary: Vec::new(),
        servers: ended.servers,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

fn measure(
    run: &mut Run,
    screen: &Screen,
    plan: &Plan,
    block: &mut Block,
    (count, goal): (usize, Option<Goal>),
    cases: &[Case],
    line: impl Fn(&[Measured<Case>]) -> String,
) -> Vec<Measured<Case>> {
    let rounds = Rounds {
        count,
        until: goal.map(|goal| Until {
            goal,
            ratios: p99_ratios,
        }),
        cases,
        has_floor: false,
        each: plan.times.about(plan.active),
    };
    block.measure(
        run,
        screen,
        &rounds,
        |stage, case, base, contender| of_engine(stage, plan, *case, base, contender),
        line,
    )
}

fn of_engine(
    stage: &Stage,
    plan: &Plan,
    case: Case,
    base: &Sockstat,
    contender: &mut Contender<'_>,
) -> Result<(Exchanged, Value), Failure> {
    let Contender::Engine(beside) = contender else {
        unreachable!("no floor is asked for")
    };
    let mut args = client_args(NEWCOMER_SOURCE, plan.active, plan.message_bytes);
    let load = match case.asked_per_second {
        None => "in closed loop".to_owned(),
        Some(rate) => {
            args.extend(["--message-rate".to_owned(), rate.to_string()]);
            format!("at {rate} messages a second")
        }
    };
    let exchange = Exchange {
        during: format!(
            "{} {load} on {} connections beside {} idle",
            beside.engine, plan.active, case.idle
        ),
        client: "client",
        args,
        connections: plan.active,
        times: plan.times,
        count: |progress| progress.messages,
        base,
    };
    let exchanged = exchange::measure(stage, &mut beside.servers, exchange)?;
    Ok((exchanged, Value::Null))
}

fn share(per_second: f64, percent: u64) -> u64 {
    (per_second * percent as f64 / 100.0).round().max(1.0) as u64
}

/// Whether `engine` is not asked how much it takes, for it may be far slower than the others: tokio-uring and peers.
pub fn is_left_out(engine: &Engine) -> bool {
    match engine {
        Engine::Uring | Engine::Epoll => false,
        Engine::TokioUring | Engine::Peer(_) => true,
    }
}

fn saturation(engines: &[Engine], closed_loop: &[Measured<Case>]) -> Option<Saturation> {
    let of = |engine: &Engine| {
        let its = closed_loop
            .iter()
            .filter(|one| one.engine == Some(*engine))
            .map(|one| one.exchanged.per_second());
        Some(Saturation {
            engine: *engine,
            per_second: Spread::of(its)?.median,
        })
    };
    let slowest = |engines: Vec<&Engine>| {
        let all = engines.into_iter().filter_map(of);
        all.min_by(|one, other| one.per_second.total_cmp(&other.per_second))
    };
    let (left_out, others): (Vec<_>, Vec<_>) =
        engines.iter().partition(|engine| is_left_out(engine));
    slowest(others).or_else(|| slowest(left_out))
}
