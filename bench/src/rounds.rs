//! Rounds: everything that is compared is measured once in each, in random order, so that the figures of a round are of
//! one moment and no place in the order is anyone's.
//!
//! Pure but for the dice. Invariant: an early end leaves whole rounds and at most one part of a round.

use rand::seq::SliceRandom;

use crate::stats::{Spread, ratios};
use crate::stop::Stop;

/// Measures each of `cases` with each of `contenders` in every round: cases in random order, and within a case the
/// contenders in random order. `measure` gets the round (from one), the case and the contender; `after` gets what came
/// of one case, and the contenders, of which it may take those away that are no more.
pub fn in_random_order<Case: Clone, Contender, Measured>(
    rounds: usize,
    cases: &[Case],
    contenders: &mut Vec<Contender>,
    stop: &Stop,
    mut measure: impl FnMut(usize, &Case, &mut Contender) -> Option<Measured>,
    mut after: impl FnMut(Vec<Measured>, &mut Vec<Contender>),
) {
    let mut random = rand::rng();
    let mut cases = cases.to_vec();
    for round in 1..=rounds {
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
            after(measured, contenders);
        }
    }
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
        let mut seen = Vec::new();
        let mut contenders = vec!['a', 'b', 'c'];
        in_random_order(
            4,
            &[1, 2],
            &mut contenders,
            &stop,
            |round, case, contender| Some((round, *case, *contender)),
            |measured, _| {
                assert_eq!(measured.len(), 3);
                seen.extend(measured);
            },
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
            3,
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
        in_random_order(2, &[1], &mut vec![1], &stop, measure, |measured, _| {
            assert!(measured.is_empty());
        });
    }

    #[test]
    fn a_ratio_is_drawn_within_a_round() {
        let above = |round| (round != 2).then_some(round as f64 * 3.0);
        let spread = pair_ratios(3, above, |round| Some(round as f64)).unwrap();
        assert_eq!((spread.count, spread.min, spread.max), (2, 3.0, 3.0));
    }
}
