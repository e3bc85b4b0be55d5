//! The heartbeat: what one costs, and how late it comes, where very many connections are held and nothing else happens.
//!
//! In every round each engine holds the same connections for a while, engines in random order.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kernel_tuning::host::Sockstat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::Wanted;
use crate::blocks::{Contender, Rounds, Skipped, Until, in_blocks};
use crate::clock::millis;
use crate::exchange::{
    self, Exchange, Exchanged, Figures, Measured, Times, cpu_of_epoll, figures, of_epoll,
};
use crate::load::{Stage, flag_ms};
use crate::report;
use crate::report::Reported;
use crate::result::Failure;
use crate::rounds::Goal;
use crate::run::{About, Run};
use crate::scenario::{Engine, NEWCOMER_SOURCE, Placement, Protocol};
use crate::screen::Screen;
use crate::stats::Spread;
use crate::usage::{RoundsArgs, distinct, this_host, within};
use crate::warning::Warning;
use crate::warning::rules::of_rounds;

/// The flags of `throng-bench heartbeat`.
#[derive(Debug, Args)]
pub struct HeartbeatArgs {
    /// Engines to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll",
        help_heading = "What is measured"
    )]
    engines: Vec<Engine>,
    /// Connections held
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        help_heading = "What is measured"
    )]
    connections: u64,
    /// Interval of the server's heartbeat on each
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration, help_heading = "What is measured")]
    heartbeat: Duration,

    #[command(flatten)]
    rounds: RoundsArgs,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/heartbeat.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Engines.
    pub engines: Vec<Engine>,
    /// Connections held.
    pub connections: u64,
    /// Interval of the server's heartbeat on each.
    pub heartbeat_ms: u64,
    /// Rounds there are at least.
    pub rounds: usize,
    /// Until when they go on then.
    pub until: Option<Goal>,
    /// Times of one hold.
    pub times: Times,
    /// The CPU of each side.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

/// The one thing that is measured in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Connections held.
    pub connections: u64,
    /// Interval of the server's heartbeat on each.
    pub heartbeat_ms: u64,
}

/// All that the run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// What could not be run.
    pub skipped: Vec<Skipped>,
    /// Every measurement, in the order they ran.
    pub measured: Vec<Measured<Case>>,
    /// Medians and ratios of `measured`.
    pub summary: Vec<Row>,
    /// Each server process's own summary, in the order they ended.
    pub servers: Vec<Value>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

/// What the rounds say of one engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The figures; what is counted are heartbeats.
    #[serde(flatten)]
    pub figures: Figures,
    /// Its CPU time for a heartbeat ÷ epoll's, round by round.
    pub cpu_of_epoll: Option<Spread>,
    /// How late heartbeats came to the client, p50 in microseconds.
    pub late_p50_us: Option<Spread>,
    /// As above, p99.
    pub late_p99_us: Option<Spread>,
    /// As above, p99.9.
    pub late_p999_us: Option<Spread>,
    /// Connections that had none for so long that the client counted one as missing.
    pub missing: u64,
}

impl HeartbeatArgs {
    /// What the flags ask for, on this machine.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<Plan, String> {
        let (placement, nofile_hard) = this_host()?;
        distinct("--engines", &self.engines)?;
        within("--connections", self.connections, 1..=10_000_000)?;
        let (rounds, until, times) = self.rounds.plan()?;
        let heartbeat_ms = millis(self.heartbeat);
        if !(10..=times.exchange_ms).contains(&heartbeat_ms) {
            return Err(
                "--heartbeat must be between 10ms and --exchange, or none would come".to_owned(),
            );
        }
        Ok(Plan {
            engines: self.engines,
            connections: self.connections,
            heartbeat_ms,
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
        // Some 25,000 connects a second, and 50,000 closes.
        let each_ms =
            self.times.exchange_ms + 1_000 + self.connections / 25 + self.connections / 50;
        let rounds_ms = self.engines.len() as u64 * self.rounds as u64 * each_ms;
        Duration::from_millis(self.until.map_or(0, |goal| goal.at_most_ms).max(rounds_ms))
    }

    fn case(&self) -> Case {
        Case {
            connections: self.connections,
            heartbeat_ms: self.heartbeat_ms,
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
    screen.line(&report::heartbeat::plan(&plan, &run.about, screen.paint));
    let rounds = Rounds {
        count: plan.rounds,
        until: plan.until.map(|goal| Until {
            goal,
            ratios: cpu_of_epoll,
        }),
        cases: &[plan.case()],
        has_floor: false,
        each: plan.times.about(plan.connections),
    };
    let wanted = Wanted {
        idle: 0,
        newcomers: plan.connections,
        table_slots: None,
        protocol: Protocol::Line {
            heartbeat: Duration::from_millis(plan.heartbeat_ms),
        },
    };
    let mut measured = Vec::new();
    let ended = in_blocks(
        &mut run,
        screen,
        &plan.engines,
        &[wanted],
        0,
        |run, block| {
            measured.extend(block.measure(
                run,
                screen,
                &rounds,
                |stage, _, base, contender| of_engine(stage, &plan, base, contender),
                |measured| report::heartbeat::round_line(measured, plan.rounds),
            ));
        },
    );
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
    base: &Sockstat,
    contender: &mut Contender<'_>,
) -> Result<(Exchanged, Value), Failure> {
    let Contender::Engine(beside) = contender else {
        unreachable!("no floor is asked for")
    };
    let (connections, heartbeat) = (plan.connections.to_string(), flag_ms(plan.heartbeat_ms));
    let args = [
        ["--connections", &connections],
        ["--heartbeat", &heartbeat],
        ["--source", NEWCOMER_SOURCE],
    ];
    let exchange = Exchange {
        during: format!(
            "heartbeats of {} on {connections} connections",
            beside.engine
        ),
        client: "client",
        args: args.into_iter().flatten().map(str::to_owned).collect(),
        connections: plan.connections,
        times: plan.times,
        count: |progress| progress.heartbeats,
        base,
    };
    let exchanged = exchange::measure(stage, &mut beside.servers, exchange)?;
    Ok((exchanged, Value::Null))
}

impl Report {
    /// Draws `summary` and `warnings` from the rest.
    pub fn conclude(&mut self) {
        self.summary = summarise(&self.plan, &self.measured);
        let case = |row: &Row| {
            (
                format!("{} connections", self.plan.connections),
                row.figures,
                row.cpu_of_epoll,
            )
        };
        self.warnings = of_rounds(
            &self.about,
            self.measured.iter().map(|measured| &measured.exchanged),
            &self.summary.iter().map(case).collect::<Vec<_>>(),
        );
    }
}

fn summarise(plan: &Plan, measured: &[Measured<Case>]) -> Vec<Row> {
    let row = |engine: &Engine| {
        let of = || measured.iter().filter(|one| one.engine == Some(*engine));
        let late = |quantile: &str| {
            let pointer = format!("/heartbeats/lateness_us/{quantile}");
            Spread::of(of().filter_map(|one| one.exchanged.client_figure(&pointer)))
        };
        let cpu_us = |exchanged: &Exchanged| Some(exchanged.server_cpu_us());
        let missing = of().filter_map(|one| one.exchanged.client_figure("/heartbeats/missing"));
        Some(Row {
            figures: figures(of())?,
            cpu_of_epoll: of_epoll(measured, &plan.case(), Some(*engine), cpu_us),
            late_p50_us: late("p50"),
            late_p99_us: late("p99"),
            late_p999_us: late("p999"),
            missing: missing.sum::<f64>() as u64,
        })
    };
    plan.engines.iter().filter_map(row).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::screen::Paint;

    /// A result recorded from a short run.
    pub(crate) fn recorded() -> Report {
        serde_json::from_str(include_str!("../testdata/heartbeat.json")).unwrap()
    }

    #[test]
    fn what_is_shown_is_drawn_from_what_was_measured() {
        let text = |report: &Report| crate::report::heartbeat::results(report, Paint::plain());
        let mut report = recorded();
        report.conclude();
        assert_eq!(text(&report), text(&recorded()));
    }
}
