//! What the tail found, as plain data, and the figures drawn from it. Pure.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blocks::Skipped;
use crate::exchange::{Exchanged, Figures, Measured, figures, kinds, of_epoll};
use crate::run::About;
use crate::scenario::Engine;
use crate::stats::Spread;
use crate::tail::Plan;
use crate::warning::Warning;
use crate::warning::rules::of_rounds;

/// One thing that is measured in every round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Idle connections beside.
    pub idle: u64,
    /// Percent of the saturation.
    pub load_percent: u64,
    /// Messages a second that this is; none in closed loop.
    pub asked_per_second: Option<u64>,
}

/// What loads are shares of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saturation {
    /// The engine whose it is.
    pub engine: Engine,
    /// Messages a second, in closed loop.
    pub per_second: f64,
}

/// All that the run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// Each engine in closed loop, nothing idle beside.
    pub closed_loop: Vec<Measured<Case>>,
    /// What loads are shares of; none where no engine could be measured.
    pub saturation: Option<Saturation>,
    /// What could not be run.
    pub skipped: Vec<Skipped>,
    /// Every measurement in open loop, in the order they ran.
    pub measured: Vec<Measured<Case>>,
    /// Medians and ratios of `measured`.
    pub summary: Vec<Row>,
    /// Each server process's own summary, in the order they ended.
    pub servers: Vec<Value>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

/// What the rounds say of one engine in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The case.
    #[serde(flatten)]
    pub case: Case,
    /// The engines that were up at the same time.
    pub beside: Vec<Engine>,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// Latency from the intended time, in microseconds.
    pub p50_us: Option<Spread>,
    /// As above.
    pub p99_us: Option<Spread>,
    /// As above.
    pub p999_us: Option<Spread>,
    /// Its p99 ÷ epoll's, round by round, where both were up at the same time.
    pub p99_of_epoll: Option<Spread>,
    /// How late the client itself came to a message, p99 in microseconds.
    pub client_lateness_p99_us: Option<Spread>,
    /// Measurements in which the rate was not kept.
    pub short: usize,
}

impl Report {
    /// Draws `summary` and `warnings` from the rest.
    pub fn conclude(&mut self) {
        self.summary = summarise(&self.measured);
        let all = self.closed_loop.iter().chain(&self.measured);
        self.warnings = of_rounds(&self.about, all.map(|measured| &measured.exchanged), &[]);
    }

    /// What each engine reached in closed loop, in the order of the plan.
    pub fn saturations(&self) -> Vec<Figures> {
        let of = |engine: &Engine| {
            let is_its = |one: &&Measured<Case>| one.engine == Some(*engine);
            figures(self.closed_loop.iter().filter(is_its))
        };
        self.plan.engines.iter().filter_map(of).collect()
    }
}

const P99: &str = "/messages/latency_us/p99";

/// Each engine's p99 ÷ epoll's in each case, where both were up at the same time.
pub fn p99_ratios(measured: &[Measured<Case>]) -> Vec<Option<Spread>> {
    let is_beside_epoll = |one: &&Measured<Case>| {
        one.engine != Some(Engine::Epoll) && one.beside.contains(&Engine::Epoll)
    };
    let compared = kinds(measured).filter(is_beside_epoll);
    compared.map(|one| p99_of_epoll(measured, one)).collect()
}

fn p99_of_epoll(measured: &[Measured<Case>], one: &Measured<Case>) -> Option<Spread> {
    let p99 = |exchanged: &Exchanged| exchanged.client_figure(P99);
    of_epoll(measured, &one.case, one.engine, p99)
}

fn summarise(measured: &[Measured<Case>]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for one in kinds(measured) {
        let alike = || measured.iter().filter(|other| other.is_of_the_same(one));
        let spread =
            |pointer| Spread::of(alike().filter_map(|one| one.exchanged.client_figure(pointer)));
        let is_short = |one: &&Measured<Case>| {
            let told = one.exchanged.client.pointer("/messages/open_loop/is_short");
            told.and_then(Value::as_bool) == Some(true)
        };
        rows.extend(figures(alike()).map(|figures| Row {
            case: one.case,
            beside: one.beside.clone(),
            figures,
            p50_us: spread("/messages/latency_us/p50"),
            p99_us: spread(P99),
            p999_us: spread("/messages/latency_us/p999"),
            p99_of_epoll: p99_of_epoll(measured, one),
            client_lateness_p99_us: spread("/messages/open_loop/client_lateness_us/p99"),
            short: alike().filter(is_short).count(),
        }));
    }
    rows.sort_by_key(|row| {
        let Case {
            idle, load_percent, ..
        } = row.case;
        (idle, load_percent, row.beside.clone(), row.figures.engine)
    });
    rows
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::screen::Paint;

    /// A result recorded from a short run.
    pub(crate) fn recorded() -> Report {
        serde_json::from_str(include_str!("../../testdata/tail.json")).unwrap()
    }

    #[test]
    fn what_is_shown_is_drawn_from_what_was_measured() {
        let text = |report: &Report| crate::report::tail::results(report, Paint::plain());
        let mut report = recorded();
        report.conclude();
        assert_eq!(text(&report), text(&recorded()));
    }
}
