//! What the self-check found, as plain data, and the verdict drawn from it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exchange::{Exchanged, Measured};
use crate::rounds::pair_ratios;
use crate::run::About;
use crate::selfcheck::Plan;
use crate::stats::{Interval, Spread};
use crate::warning::Warning;
use crate::warning::rules::of_rounds;

/// The share of the runs that must say what is true of the same engine. A sound method with intervals of 95 % says it
/// in 9 of 10 runs or more nine times out of ten or so ([`chance`]), not always.
const SOUND_PERCENT: usize = 90;
/// The share of the runs that must find a slow-down.
const FOUND_PERCENT: usize = 80;
/// How wide an interval may be: this share of its median to either side.
pub const WIDEST: f64 = 0.08;

/// The names of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Name {
    /// The one below the line of a ratio.
    A,
    /// The one above it.
    B,
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// Of whom a measurement is, and in which run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The run, from one.
    pub run: usize,
    /// Which of the two.
    pub name: Name,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// Every measurement, in the order they ran.
    pub measured: Vec<Measured<Case>>,
    /// The ratios of each run.
    pub runs: Vec<RunRatios>,
    /// What they say of the method.
    pub verdict: Verdict,
    /// Each server process's own summary, in the order they ended.
    pub servers: Vec<Value>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

/// B ÷ A in one run, round by round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RunRatios {
    /// The run, from one.
    pub run: usize,
    /// Of the CPU time for a message.
    pub cpu: Option<Spread>,
    /// Of the messages a second.
    pub rate: Option<Spread>,
}

/// What the runs say of the method.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// It says what is true often enough.
    pub holds: bool,
    /// Of the CPU time for a message.
    pub cpu: Tally,
    /// Of the messages a second; not part of the verdict when B is slowed down: where the client is the bound, the rate
    /// stays.
    pub rate: Tally,
}

/// The intervals of one figure's ratios.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// How many intervals there are: one for each run.
    pub intervals: usize,
    /// How many hold 1.00.
    pub with_one: usize,
    /// How many lie above it.
    pub above: usize,
    /// How many lie below it.
    pub below: usize,
    /// How many are narrow enough ([`WIDEST`]).
    pub narrow: usize,
    /// How many say what is true and are narrow enough.
    pub good: usize,
    /// How many of these there must be.
    pub needed: usize,
    /// Half of their widths, in units of their medians.
    pub half_width: Option<Spread>,
    /// Rounds with which enough intervals would be narrow enough; `None` where they are.
    pub rounds_that_do: Option<usize>,
}

impl Tally {
    /// Whether enough runs say what is true.
    pub fn holds(&self) -> bool {
        self.intervals > 0 && self.good >= self.needed
    }

    /// Of the ratios of all runs; `runs` of them were planned. `truth` says whether an interval says what is true.
    fn of(ratios: &[Spread], runs: usize, percent: usize, truth: fn(&Interval) -> bool) -> Self {
        let intervals = || ratios.iter().filter_map(|spread| spread.interval);
        let is_narrow = |spread: &&Spread| {
            let half_width = spread.relative_half_width();
            half_width.is_some_and(|half_width| half_width <= WIDEST)
        };
        let count = |is_so: fn(&Interval) -> bool| intervals().filter(is_so).count();
        let narrow: Vec<&Spread> = ratios.iter().filter(is_narrow).collect();
        let needed = (runs * percent).div_ceil(100);
        Self {
            intervals: intervals().count(),
            with_one: count(holds_one),
            above: count(lies_above),
            below: count(|interval| interval.high < 1.0),
            narrow: narrow.len(),
            good: narrow
                .iter()
                .filter_map(|spread| spread.interval)
                .filter(truth)
                .count(),
            needed,
            half_width: Spread::of(ratios.iter().filter_map(Spread::relative_half_width)),
            rounds_that_do: rounds_that_do(ratios, needed),
        }
    }
}

fn holds_one(interval: &Interval) -> bool {
    interval.low <= 1.0 && 1.0 <= interval.high
}

fn lies_above(interval: &Interval) -> bool {
    interval.low > 1.0
}

/// Rounds with which `needed` of the runs would have a narrow interval, their widths being to one another as they are
/// here: a width goes with 1/√rounds. `None` where so many are narrow, or there are not so many.
fn rounds_that_do(ratios: &[Spread], needed: usize) -> Option<usize> {
    let rounds_of = |spread: &Spread| {
        let too_wide_by = spread.relative_half_width()? / WIDEST;
        Some((spread.count as f64 * too_wide_by * too_wide_by).ceil() as usize)
    };
    let is_wide = |spread: &&Spread| {
        let half_width = spread.relative_half_width();
        half_width.is_some_and(|half_width| half_width > WIDEST)
    };
    let wide = ratios.iter().filter(is_wide).count();
    let mut rounds: Vec<usize> = ratios.iter().filter_map(rounds_of).collect();
    rounds.sort_unstable();
    let last_needed = *rounds.get(needed.checked_sub(1)?)?;
    (rounds.len() - wide < needed).then_some(last_needed)
}

/// How likely `needed` of `runs` intervals of 95 % hold what is true, if they are what they say.
pub fn chance(runs: usize, needed: usize) -> f64 {
    const EACH: f64 = 0.95;
    // The distribution of the count after each further run.
    let mut of_count = vec![1.0];
    for _ in 0..runs {
        let mut next = vec![0.0; of_count.len() + 1];
        for (count, probability) in of_count.iter().enumerate() {
            next[count] += probability * (1.0 - EACH);
            next[count + 1] += probability * EACH;
        }
        of_count = next;
    }
    of_count.iter().skip(needed).sum()
}

/// B ÷ A of every run in `measured`.
pub fn ratios(measured: &[Measured<Case>]) -> Vec<RunRatios> {
    let mut runs: Vec<usize> = measured.iter().map(|one| one.case.run).collect();
    runs.dedup();
    runs.into_iter()
        .map(|run| {
            let of = |figure: fn(&Exchanged) -> f64| {
                let of = |name, round| {
                    let case = Case { run, name };
                    let is_it = |one: &&Measured<Case>| one.case == case && one.round == round;
                    measured
                        .iter()
                        .find(is_it)
                        .map(|one| figure(&one.exchanged))
                };
                let rounds = measured.iter().map(|one| one.round).max().unwrap_or(0);
                pair_ratios(
                    rounds,
                    |round| of(Name::B, round),
                    |round| of(Name::A, round),
                )
            };
            RunRatios {
                run,
                cpu: of(Exchanged::server_cpu_us),
                rate: of(Exchanged::per_second),
            }
        })
        .collect()
}

impl Report {
    /// Draws `runs`, `verdict` and `warnings` from the rest.
    pub fn conclude(&mut self) {
        self.runs = ratios(&self.measured);
        self.verdict = verdict(&self.runs, self.plan.runs, self.plan.slow_down_percent);
        self.warnings = of_rounds(
            &self.about,
            self.measured.iter().map(|measured| &measured.exchanged),
            &[],
        );
    }
}

fn verdict(ratios: &[RunRatios], runs: usize, slow_down_percent: Option<u8>) -> Verdict {
    let (percent, truth): (_, fn(&Interval) -> bool) = match slow_down_percent {
        None => (SOUND_PERCENT, holds_one),
        Some(_) => (FOUND_PERCENT, lies_above),
    };
    let cpu: Vec<Spread> = ratios.iter().filter_map(|run| run.cpu).collect();
    let rate: Vec<Spread> = ratios.iter().filter_map(|run| run.rate).collect();
    let cpu = Tally::of(&cpu, runs, percent, truth);
    let rate = Tally::of(&rate, runs, SOUND_PERCENT, holds_one);
    Verdict {
        holds: cpu.holds() && (slow_down_percent.is_some() || rate.holds()),
        cpu,
        rate,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::screen::Paint;

    /// A result recorded from a short run.
    pub(crate) fn recorded() -> Report {
        serde_json::from_str(include_str!("../../testdata/selfcheck.json")).unwrap()
    }

    #[test]
    fn what_is_shown_is_drawn_from_what_was_measured() {
        let text = |report: &Report| crate::report::selfcheck::results(report, Paint::plain());
        let mut report = recorded();
        report.conclude();
        assert_eq!(text(&report), text(&recorded()));
    }

    /// Fifteen pairs around `middle`, evenly over `reach` to either side.
    fn pairs(middle: f64, reach: f64) -> Spread {
        Spread::of((-7..=7).map(|step| middle + reach * f64::from(step) / 7.0)).unwrap()
    }

    fn runs_of(spreads: &[Spread]) -> Vec<RunRatios> {
        (1..)
            .zip(spreads)
            .map(|(run, spread)| RunRatios {
                run,
                cpu: Some(*spread),
                rate: Some(*spread),
            })
            .collect()
    }

    #[test]
    fn the_method_holds_with_one_false_finding_of_ten_and_not_with_two() {
        let (sound, false_finding) = (pairs(1.0, 0.05), pairs(1.1, 0.05));
        let of = |wrong: usize| {
            let mut spreads = vec![sound; 10 - wrong];
            spreads.extend(vec![false_finding; wrong]);
            verdict(&runs_of(&spreads), 10, None)
        };
        assert!(of(0).holds && of(1).holds && !of(2).holds);
        assert_eq!(
            (of(2).cpu.with_one, of(2).cpu.above, of(2).cpu.good),
            (8, 2, 8)
        );
        assert_eq!(of(2).cpu.rounds_that_do, None);
    }

    #[test]
    fn runs_that_are_missing_are_not_good_ones() {
        let nine = runs_of(&[pairs(1.0, 0.05); 9]);
        assert!(verdict(&nine, 10, None).holds);
        assert!(!verdict(&nine[..8], 10, None).holds);
        assert!(!verdict(&[], 1, None).holds);
    }

    #[test]
    fn intervals_that_are_too_wide_say_how_many_rounds_would_do() {
        let wide = pairs(1.0, 0.4);
        let too_wide_by = wide.relative_half_width().unwrap() / WIDEST;
        assert!(too_wide_by > 1.0);
        let verdict = verdict(&runs_of(&[wide; 10]), 10, None);
        assert!(!verdict.holds);
        assert_eq!((verdict.cpu.with_one, verdict.cpu.narrow), (10, 0));
        let rounds = verdict.cpu.rounds_that_do.unwrap() as f64;
        assert!(
            (rounds - 15.0 * too_wide_by.powi(2)).abs() <= 1.0,
            "{rounds}"
        );
    }

    #[test]
    fn a_slow_down_is_found_where_the_interval_lies_above_one() {
        let (found, missed) = (pairs(1.1, 0.05), pairs(1.02, 0.05));
        let of = |hits: usize| {
            let mut spreads = vec![missed; 10 - hits];
            spreads.extend(vec![found; hits]);
            verdict(&runs_of(&spreads), 10, Some(10)).holds
        };
        assert!(of(8) && !of(7));
    }

    #[test]
    fn the_chance_of_a_sound_method_is_the_binomial_one() {
        assert!((chance(10, 9) - 0.913_86).abs() < 1e-4);
        assert!((chance(1, 1) - 0.95).abs() < 1e-12);
        assert!((chance(7, 0) - 1.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn every_interval_is_on_one_side_or_holds_one(
            middles in proptest::collection::vec(0.5f64..1.5, 1..12),
            reach in 0.001f64..0.4,
        ) {
            let spreads: Vec<Spread> = middles.iter().map(|middle| pairs(*middle, reach)).collect();
            let Verdict { holds, cpu, .. } = verdict(&runs_of(&spreads), spreads.len(), None);
            prop_assert_eq!(cpu.with_one + cpu.above + cpu.below, cpu.intervals);
            prop_assert_eq!(cpu.intervals, spreads.len());
            prop_assert!(cpu.good <= cpu.narrow.min(cpu.with_one));
            prop_assert_eq!(holds, cpu.good >= cpu.needed);
            prop_assert_eq!(cpu.rounds_that_do.is_some(), cpu.narrow < cpu.needed);
        }
    }
}
