//! The floor: what the TCP stack alone costs for the messages of an echo, and each engine as a multiple of it.
//!
//! The floor is a pair of processes without any readiness machinery ([`ends`]), measured by the same code and with the
//! same count of CPU time as the engines, in the same rounds and beside the same idle connections: those of the engine's
//! own server (see [`crate::beside`]). The idle ones are not the floor's own descriptors; they fill the same tables of
//! sockets and the same memory of the kernel, which is what they can cost the stack.
//!
//! Beside idle connections each engine has a block of its own, so that the host holds as many as is said and no more.

pub mod ends;
pub mod result;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kernel_tuning::host::Sockstat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::{Beside, Wanted};
use crate::blocks::{Contender, Rounds, Until, in_blocks};
use crate::echo::client_args;
use crate::exchange::{self, Exchange, Exchanged, Times};
use crate::floor::result::{Case, Report, multiples};
use crate::load::Stage;
use crate::peer::Peer;
use crate::report::Reported;
use crate::result::Failure;
use crate::rounds::Goal;
use crate::run::Run;
use crate::scenario::{Engine, NEWCOMER_SOURCE, Placement, Protocol};
use crate::screen::Screen;
use crate::servers::{Servers, core_list};
use crate::usage::{PeerArgs, RoundsArgs, distinct, this_host, within};

/// The flags of `throng-bench floor`.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Engines to hold against the floor
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll",
        help_heading = "What is measured"
    )]
    engines: Vec<Engine>,
    #[command(flatten)]
    peers: PeerArgs,
    /// Connections that exchange messages at the same time
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "64,500,10000",
        help_heading = "What is measured"
    )]
    active: Vec<u64>,
    /// Idle connections beside them, held by the engine's server
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "0",
        help_heading = "What is measured"
    )]
    idle: Vec<u64>,
    /// Bytes of a message
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 64,
        help_heading = "What is measured"
    )]
    message_bytes: u64,
    /// Slots of each of io_uring's tables [default: as many as the limits allow]
    #[arg(long, value_name = "N", help_heading = "What is measured")]
    table_slots: Option<u32>,

    #[command(flatten)]
    rounds: RoundsArgs,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/floor.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Engines held against the floor.
    pub engines: Vec<Engine>,
    /// How the peers among them are started.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Counts of active connections.
    pub active: Vec<u64>,
    /// Counts of idle connections beside them.
    pub idle: Vec<u64>,
    /// Bytes of a message.
    pub message_bytes: u64,
    /// Slots of each of io_uring's tables, where they are not as many as there can be.
    pub table_slots: Option<u32>,
    /// Rounds there are at least.
    pub rounds: usize,
    /// Until when they go on then.
    #[serde(default)]
    pub until: Option<Goal>,
    /// Times of one measurement.
    pub times: Times,
    /// The CPU of each side.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

impl FloorArgs {
    /// What the flags ask for, on this machine.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<Plan, String> {
        /// What a process opens besides its connections, with a wide margin.
        const OTHER_FILES: u64 = 64;
        let (placement, nofile_hard) = this_host()?;
        let (engines, peers) = self.peers.beside(self.engines)?;
        distinct("--active", &self.active)?;
        distinct("--idle", &self.idle)?;
        within(
            "--message-bytes",
            self.message_bytes,
            1..=ends::MOST_MESSAGE_BYTES,
        )?;
        let most = nofile_hard.saturating_sub(OTHER_FILES).max(1);
        for active in &self.active {
            within("--active", *active, 1..=most).map_err(|reason| {
                format!("{reason}: the floor has a file for each (see ulimit -Hn)")
            })?;
        }
        if let Some(slots) = self.table_slots {
            within("--table-slots", slots.into(), 64..=nofile_hard)?;
        }
        let (rounds, until, times) = self.rounds.plan()?;
        Ok(Plan {
            engines,
            peers,
            active: self.active,
            idle: self.idle,
            message_bytes: self.message_bytes,
            table_slots: self.table_slots,
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
        let each = |active: &u64| self.times.exchange_ms + 500 + active / 10;
        let round_ms: u64 = self.active.iter().map(each).sum();
        let block_ms = |idle: &u64| {
            let (engines, floors) = match idle {
                0 => (self.engines.len() as u64, 1),
                _ => (self.engines.len() as u64, self.engines.len() as u64),
            };
            // Some 20,000 connects a second, and as many closed.
            let at_least_ms = (engines + floors) * self.rounds as u64 * round_ms;
            let rounds_ms = floors * self.until.map_or(0, |goal| goal.at_most_ms);
            rounds_ms.max(at_least_ms) + engines * (idle / 10 + 1_000)
        };
        Duration::from_millis(self.idle.iter().map(block_ms).sum())
    }

    fn wanted(&self, idle: u64) -> Wanted {
        Wanted {
            idle,
            newcomers: self.active.iter().copied().max().unwrap_or(0),
            table_slots: self.table_slots,
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
    screen.line(&crate::report::floor::plan(&plan, &run.about, screen.paint));
    let wanted: Vec<Wanted> = plan.idle.iter().map(|idle| plan.wanted(*idle)).collect();
    let mut measured = Vec::new();
    let ended = in_blocks(&mut run, screen, &plan.engines, &wanted, 0, |run, block| {
        let idle = block.wanted.idle;
        let case = |active: &u64| Case {
            idle,
            active: *active,
        };
        let cases: Vec<Case> = plan.active.iter().map(case).collect();
        let rounds = Rounds {
            count: plan.rounds,
            until: plan.until.map(|goal| Until {
                goal,
                ratios: multiples,
            }),
            cases: &cases,
            has_floor: true,
            each: plan.times.about(0),
        };
        measured.extend(block.measure(
            run,
            screen,
            &rounds,
            |stage, case, base, contender| match contender {
                Contender::Floor => of_floor(stage, &plan, *case, base),
                Contender::Engine(beside) => of_engine(stage, &plan, *case, base, beside),
            },
            |measured| crate::report::floor::round_line(measured, plan.rounds),
        ));
    });
    let mut report = Report {
        about: run.end(screen),
        plan,
        skipped: ended.skipped,
        measured,
        summary: Vec::new(),
        servers: ended.servers,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

fn of_engine(
    stage: &Stage,
    plan: &Plan,
    case: Case,
    base: &Sockstat,
    beside: &mut Beside,
) -> Result<(Exchanged, Value), Failure> {
    let during = format!(
        "{} on {} connections beside {} idle",
        beside.engine, case.active, case.idle
    );
    let exchange = exchange_of(plan, case, base, "client", during);
    exchange::measure(stage, &mut beside.servers, exchange)
        .map(|exchanged| (exchanged, Value::Null))
}

fn of_floor(
    stage: &Stage,
    plan: &Plan,
    case: Case,
    base: &Sockstat,
) -> Result<(Exchanged, Value), Failure> {
    let during = format!(
        "the floor on {} connections beside {} idle",
        case.active, case.idle
    );
    let args = [
        ("--connections", case.active.to_string()),
        ("--message-bytes", plan.message_bytes.to_string()),
        ("--cores", core_list(&stage.placement.server)),
    ];
    let args = args
        .into_iter()
        .flat_map(|(flag, value)| [flag.into(), value.into()])
        .collect();
    let mut server = Servers::of_role(&stage.launcher, "floor-server", args, &stage.stop)?;
    let exchange = exchange_of(plan, case, base, "floor-client", during.clone());
    let exchanged = exchange::measure(stage, &mut server, exchange);
    let (summaries, failures) = server.end(&during);
    let exchanged = exchanged?;
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok((
            exchanged,
            summaries.into_iter().next().unwrap_or(Value::Null),
        )),
    }
}

fn exchange_of<'a>(
    plan: &Plan,
    case: Case,
    base: &'a Sockstat,
    client: &'static str,
    during: String,
) -> Exchange<'a> {
    Exchange {
        during,
        client,
        args: client_args(NEWCOMER_SOURCE, case.active, plan.message_bytes),
        connections: case.active,
        times: plan.times,
        count: |progress| progress.messages,
        base,
    }
}
