//! The churn: connections that come, exchange one message and go, in closed loop; what a cycle costs the server.
//!
//! All engines are up at the same time; each round measures every engine once, in random order.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kernel_tuning::host::Sockstat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::Wanted;
use crate::blocks::{Contender, Rounds, Skipped, Until, in_blocks};
use crate::exchange::{
    self, Exchange, Exchanged, Figures, Measured, Times, cpu_of_epoll, figures, of_epoll,
};
use crate::load::Stage;
use crate::peer::Peer;
use crate::report;
use crate::report::Reported;
use crate::result::Failure;
use crate::rounds::Goal;
use crate::run::{About, Run};
use crate::scenario::{Engine, NEWCOMER_SOURCE, Placement, Protocol};
use crate::screen::Screen;
use crate::stats::Spread;
use crate::usage::{PeerArgs, RoundsArgs, this_host, within};
use crate::warning::Warning;
use crate::warning::rules::of_rounds;

/// The flags of `throng-bench churn`.
#[derive(Debug, Args)]
pub struct ChurnArgs {
    /// Engines to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll",
        help_heading = "What is measured"
    )]
    engines: Vec<Engine>,
    #[command(flatten)]
    peers: PeerArgs,
    /// Connections that come and go, at any time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        help_heading = "What is measured"
    )]
    churn: u64,
    /// Bytes of the message of each
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
        default_value = "target/throng/churn.json",
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
    /// Connections that come and go.
    pub churn: u64,
    /// Bytes of the message of each.
    pub message_bytes: u64,
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

/// The one thing that is measured in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Connections that come and go.
    pub churn: u64,
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
    /// The figures; what is counted are cycles.
    #[serde(flatten)]
    pub figures: Figures,
    /// Its CPU time for a cycle ÷ epoll's, round by round.
    pub cpu_of_epoll: Option<Spread>,
    /// Its cycles a second ÷ epoll's.
    pub rate_of_epoll: Option<Spread>,
    /// From the start of a connect to the end of the echo, p99 in microseconds.
    pub cycle_p99_us: Option<Spread>,
}

impl ChurnArgs {
    /// What the flags ask for, on this machine.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<Plan, String> {
        let (placement, nofile_hard) = this_host()?;
        let (engines, peers) = self.peers.beside(self.engines)?;
        within("--churn", self.churn, 1..=1_000_000)?;
        within("--message-bytes", self.message_bytes, 1..=65_536)?;
        let (rounds, until, times) = self.rounds.plan()?;
        Ok(Plan {
            engines,
            peers,
            churn: self.churn,
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
        let each_ms = self.times.exchange_ms + 500 + self.churn / 10;
        let rounds_ms = self.engines.len() as u64 * self.rounds as u64 * each_ms;
        Duration::from_millis(self.until.map_or(0, |goal| goal.at_most_ms).max(rounds_ms))
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
    screen.line(&report::churn::plan(&plan, &run.about, screen.paint));
    let rounds = Rounds {
        count: plan.rounds,
        until: plan.until.map(|goal| Until {
            goal,
            ratios: cpu_of_epoll,
        }),
        cases: &[Case { churn: plan.churn }],
        has_floor: false,
        each: plan.times.about(plan.churn),
    };
    let wanted = Wanted {
        idle: 0,
        newcomers: plan.churn,
        table_slots: None,
        protocol: Protocol::Echo,
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
                |measured| report::churn::round_line(measured, plan.rounds),
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
    let (churn, message_bytes) = (plan.churn.to_string(), plan.message_bytes.to_string());
    let args = [
        ["--connections", &churn],
        ["--churn", &churn],
        ["--protocol", "echo"],
        ["--source", NEWCOMER_SOURCE],
        ["--message-bytes", &message_bytes],
    ];
    let exchange = Exchange {
        during: format!("churn with {} on {churn} connections", beside.engine),
        client: "client",
        args: args.into_iter().flatten().map(str::to_owned).collect(),
        connections: plan.churn,
        times: plan.times,
        count: |progress| progress.cycles,
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
                format!("{} at a time", self.plan.churn),
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
    let case = Case { churn: plan.churn };
    let row = |engine: &Engine| {
        let of = || measured.iter().filter(|one| one.engine == Some(*engine));
        let ratios = |figure: fn(&Exchanged) -> f64| {
            let figure = |exchanged: &Exchanged| Some(figure(exchanged));
            of_epoll(measured, &case, Some(*engine), figure)
        };
        let p99 = of().filter_map(|one| one.exchanged.client_figure("/churn/cycle_us/p99"));
        Some(Row {
            figures: figures(of())?,
            cpu_of_epoll: ratios(Exchanged::server_cpu_us),
            rate_of_epoll: ratios(Exchanged::per_second),
            cycle_p99_us: Spread::of(p99),
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
        serde_json::from_str(include_str!("../testdata/churn.json")).unwrap()
    }

    #[test]
    fn what_is_shown_is_drawn_from_what_was_measured() {
        let text = |report: &Report| crate::report::churn::results(report, Paint::plain());
        let mut report = recorded();
        report.conclude();
        assert_eq!(text(&report), text(&recorded()));
    }
}
