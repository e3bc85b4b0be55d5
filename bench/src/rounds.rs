//! Rounds: everything that is compared is measured once in each, in random order, so that the figures of a round are of
//! one moment and no place in the order is anyone's.
//!
//! Pure but for the dice. Invariant: an early end leaves whole rounds and at most one part of a round.

use std::time::Duration;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::stats::{Spread, ratios};
use crate::stop::Stop;

/// Until when rounds go on, beyond those that there are at least.
///
/// Ending by the width favours intervals that are narrow by chance: they hold the truth some times in a hundred less
/// often than they say, however seldom one looks. `throng-bench selfcheck --until-width` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// Until every interval lies within this share of its median, to either side.
    pub half_width: f64,
    /// Or the rounds took so long.
    pub at_most_ms: u64,
}

impl Goal {
    /// Whether rounds that took `elapsed` and say `spreads` were enough. A spread that has no interval never is.
    pub fn is_reached(&self, elapsed: Duration, spreads: &[Option<Spread>]) -> bool {
        let is_narrow = |spread: &Option<Spread>| {
            let half_width = spread.and_then(|spread| spread.relative_half_width());
            half_width.is_some_and(|half_width| half_width <= self.half_width)
        };
        elapsed >= Duration::from_millis(self.at_most_ms) || spreads.iter().all(is_narrow)
    }
}

/// Measures each of `cases` with each of `contenders` in every round: cases in random order, and within a case the
/// contenders in random order. `measure` gets the round (from one), the case and the contender; `after` gets what came
/// of one case, and the contenders, of which it may take those away that are no more. There are rounds until `is_over`,
/// which gets their count and all that was measured, or nothing is left to be measured. Gives all that was measured.
pub fn in_random_order<Case: Clone, Contender, Measured>(
    is_over: impl Fn(usize, &[Measured]) -> bool,
    cases: &[Case],
    contenders: &mut Vec<Contender>,
    stop: &Stop,
    mut measure: impl FnMut(usize, &Case, &mut Contender) -> Option<Measured>,
    mut after: impl FnMut(&mut [Measured], &mut Vec<Contender>),
) -> Vec<Measured> {
    let mut random = rand::rng();
    let mut cases = cases.to_vec();
    let (mut round, mut all) = (0, Vec::new());
    while stop.cause().is_none() && !contenders.is_empty() && !is_over(round, &all) {
        round += 1;
        cases.shuffle(&mut random);
        for case in &cases {
            contenders.shuffle(&mut random);
            let mut measured = Vec::new();
            for contender in contenders.iter_mut() {
                if stop.cause().is_some() {
                    break;
                }
                measured.extend(measure(round, case, contender));
            }
            after(&mut measured, contenders);
            all.extend(measured);
        }
    }
    all
}

/// The quotients of two contenders' figures of the same round; a round that lacks one of the two does not count.
pub fn pair_ratios(
    rounds: usize,
    above: impl Fn(usize) -> Option<f64>,
    below: impl Fn(usize) -> Option<f64>,
) -> Option<Spread> {
    ratios((1..=rounds).map(|round| (above(round), below(round))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_round_measures_each_case_with_each_contender_once() {
        let stop = Stop::after(Duration::from_secs(60));
        let mut contenders = vec!['a', 'b', 'c'];
        let seen = in_random_order(
            |done, _| done == 4,
            &[1, 2],
            &mut contenders,
            &stop,
            |round, case, contender| Some((round, *case, *contender)),
            |measured, _| assert_eq!(measured.len(), 3),
        );
        assert!(seen.iter().map(|(round, ..)| round).is_sorted());
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!((seen.len(), once.len()), (24, 24));
    }

    #[test]
    fn one_that_is_no_more_is_not_measured_again() {
        let stop = Stop::after(Duration::from_secs(60));
        let mut contenders = vec!["lives", "dies"];
        let mut measured_of = Vec::new();
        in_random_order(
            |done, _| done == 3,
            &[()],
            &mut contenders,
            &stop,
            |_, (), contender| Some(*contender),
            |measured, contenders| {
                measured_of.push(measured.len());
                contenders.retain(|contender| *contender == "lives");
            },
        );
        assert_eq!(measured_of, [2, 1, 1]);
    }

    #[test]
    fn nothing_begins_after_the_stop() {
        let stop = Stop::after(Duration::ZERO);
        let measure = |_, _: &u8, _: &mut u8| -> Option<u8> { panic!("measured") };
        let is_over = |done, _: &[u8]| done == 2;
        let after = |_: &mut [u8], _: &mut Vec<u8>| panic!("nothing was measured");
        assert!(in_random_order(is_over, &[1], &mut vec![1], &stop, measure, after).is_empty());
    }

    #[test]
    fn rounds_go_on_until_what_was_measured_is_enough_or_nobody_is_left() {
        let stop = Stop::after(Duration::from_secs(60));
        let is_enough = |_, measured: &[usize]| measured.iter().sum::<usize>() >= 10;
        let measure = |round, _: &(), _: &mut ()| Some(round);
        let all = in_random_order(is_enough, &[()], &mut vec![()], &stop, measure, |_, _| {});
        assert_eq!(all, [1, 2, 3, 4]);
        let never = |_, _: &[usize]| false;
        let all = in_random_order(never, &[()], &mut vec![()], &stop, measure, |_, left| {
            left.clear();
        });
        assert_eq!(all, [1]);
    }

    #[test]
    fn a_goal_needs_every_interval_narrow_or_the_time_up() {
        let goal = Goal {
            half_width: 0.05,
            at_most_ms: 1_000,
        };
        let of = |step: f64| Spread::of((0..15).map(|n| 1.0 + f64::from(n - 7) * step));
        let (narrow, wide) = (of(0.001), of(0.1));
        let soon = Duration::from_millis(999);
        assert!(goal.is_reached(soon, &[narrow, narrow]));
        assert!(!goal.is_reached(soon, &[narrow, wide]));
        assert!(!goal.is_reached(soon, &[narrow, None]));
        assert!(goal.is_reached(Duration::from_secs(1), &[narrow, wide]));
    }

    #[test]
    fn a_ratio_is_drawn_within_a_round() {
        let above = |round| (round != 2).then_some(round as f64 * 3.0);
        let spread = pair_ratios(3, above, |round| Some(round as f64)).unwrap();
        assert_eq!((spread.count, spread.min, spread.max), (2, 3.0, 3.0));
    }
}
