//! What the floor's rounds found, as plain data, and the figures drawn from it. Pure.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::blocks::Skipped;
use crate::exchange::{Exchanged, Figures, Measured, figures, kinds, pair_ratios_of};
use crate::floor::Plan;
use crate::run::About;
use crate::scenario::Engine;
use crate::stats::Spread;
use crate::warning::Warning;
use crate::warning::rules::of_rounds;

/// One thing that is measured in every round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Idle connections beside.
    pub idle: u64,
    /// Connections that exchange messages.
    pub active: u64,
}

/// All that the run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// What could not be.
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

/// What the rounds say of one engine, or of the floor, in one case.
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
    /// Its CPU time for a message ÷ the floor's, round by round; none of the floor.
    pub of_floor: Option<Spread>,
    /// Times the floor's server slept, for a message.
    pub waits_per_message: Option<f64>,
}

impl Report {
    /// Draws `summary` and `warnings` from the rest.
    pub fn conclude(&mut self) {
        self.summary = summarise(&self.measured);
        let case = |row: &Row| {
            (
                format!("{} active beside {} idle", row.case.active, row.case.idle),
                row.figures,
                row.of_floor,
            )
        };
        self.warnings = of_rounds(
            &self.about,
            self.measured.iter().map(|measured| &measured.exchanged),
            &self.summary.iter().map(case).collect::<Vec<_>>(),
        );
    }
}

/// Each engine's CPU time for a message ÷ the floor's, in each case.
pub fn multiples(measured: &[Measured<Case>]) -> Vec<Option<Spread>> {
    kinds(measured)
        .filter(|one| one.engine.is_some())
        .map(|one| of_floor(measured, one))
        .collect()
}

fn of_floor(measured: &[Measured<Case>], one: &Measured<Case>) -> Option<Spread> {
    let cpu_us = |exchanged: &Exchanged| Some(exchanged.server_cpu_us());
    pair_ratios_of(measured, &one.case, [one.engine, None], cpu_us)
}

fn summarise(measured: &[Measured<Case>]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for one in kinds(measured) {
        let alike = || measured.iter().filter(|other| other.is_of_the_same(one));
        let of_floor = one.engine.and_then(|_| of_floor(measured, one));
        let waits = alike().filter_map(|one| {
            let figure = |name| one.server.get(name).and_then(Value::as_f64);
            Some(figure("waits")? / figure("messages")?)
        });
        rows.extend(figures(alike()).map(|figures| Row {
            case: one.case,
            beside: one.beside.clone(),
            figures,
            of_floor,
            waits_per_message: Spread::of(waits).map(|waits| waits.median),
        }));
    }
    rows.sort_by_key(|row| {
        (
            row.case.idle,
            row.beside.clone(),
            row.case.active,
            row.figures.engine,
        )
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
        serde_json::from_str(include_str!("../../testdata/floor.json")).unwrap()
    }

    #[test]
    fn what_is_shown_is_drawn_from_what_was_measured() {
        let text = |report: &Report| crate::report::floor::results(report, Paint::plain());
        let mut report = recorded();
        report.conclude();
        assert_eq!(text(&report), text(&recorded()));
    }
}
