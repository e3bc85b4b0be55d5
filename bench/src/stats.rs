//! Medians with their intervals, spreads and ratios of pairs: one way for everything that is measured. Pure.
//!
//! Invariant: a spread always says of how many values it is, and no value is left out of it. The same values give the
//! same figures: the resamples of the bootstrap come from a fixed seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// Where the values of a sample lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many values there are.
    pub count: usize,
    /// The smallest.
    pub min: f64,
    /// A quarter of the values lie below.
    pub q1: f64,
    /// Half of the values lie below.
    pub median: f64,
    /// Three quarters of the values lie below.
    pub q3: f64,
    /// The largest.
    pub max: f64,
    /// Where the median of all there could be lies; `None` of too few values.
    #[serde(default)]
    pub interval: Option<Interval>,
}

/// A 95 % interval of a median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// The percentile bootstrap (Efron 1979): the middle 95 % of the medians of resamples of `sorted`.
    ///
    /// `None` of fewer than six values: the median of all there could be lies outside even their whole range once in
    /// 2^(n−1) times, so that fewer cannot say anything with 95 %.
    fn of_median(sorted: &[f64]) -> Option<Self> {
        const LEAST: usize = 6;
        const RESAMPLES: usize = 4_000;
        if sorted.len() < LEAST {
            return None;
        }
        let mut random = StdRng::seed_from_u64(1);
        let mut picked = vec![0; sorted.len()];
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                picked.fill_with(|| random.random_range(0..sorted.len()));
                median_of_picked(sorted, &mut picked)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Some(Self {
            low: quantile(&medians, 0.025),
            high: quantile(&medians, 0.975),
        })
    }
}

/// The median of the values of `sorted` at the indices `picked`, in linear time: the order of indices is that of values.
fn median_of_picked(sorted: &[f64], picked: &mut [usize]) -> f64 {
    let is_even = picked.len().is_multiple_of(2);
    let (below, upper, _) = picked.select_nth_unstable(picked.len() / 2);
    let upper = sorted[*upper];
    match below.iter().max() {
        Some(lower) if is_even => (sorted[*lower] + upper) / 2.0,
        _ => upper,
    }
}

impl Spread {
    /// The spread of `values`; `None` when there is none, or one of them is not a finite number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let at = |share| quantile(&values, share);
        Some(Self {
            count: values.len(),
            min: at(0.0),
            q1: at(0.25),
            median: at(0.5),
            q3: at(0.75),
            max: at(1.0),
            interval: Interval::of_median(&values),
        })
    }

    /// Half the width of the interval, in units of the median; `None` without one.
    pub fn relative_half_width(&self) -> Option<f64> {
        let Interval { low, high } = self.interval?;
        Some((high - low) / 2.0 / self.median)
    }

    /// The whole width in units of the median.
    pub fn relative_width(&self) -> f64 {
        (self.max - self.min) / self.median
    }
}

/// What the pairs of a comparison say of two engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Every ratio lies below one.
    Below,
    /// The ratios lie on both sides of one, or on it.
    Tie,
    /// Every ratio lies above one.
    Above,
}

/// The side of one on which **every** ratio lies; `None` when there are too few of them to tell.
///
/// With equal engines each of n pairs falls on either side by chance, so that all fall on the same side once in
/// 2^(n−1) runs: with the least number of pairs, five, once in 16.
pub fn side(ratios: &Spread) -> Option<Side> {
    const LEAST: usize = 5;
    (ratios.count >= LEAST).then_some(match ratios {
        Spread { max, .. } if *max < 1.0 => Side::Below,
        Spread { min, .. } if *min > 1.0 => Side::Above,
        _ => Side::Tie,
    })
}

/// The quotients of what was measured next to each other. A pair that lacks one of its two does not count.
pub fn ratios(pairs: impl IntoIterator<Item = (Option<f64>, Option<f64>)>) -> Option<Spread> {
    Spread::of(
        pairs
            .into_iter()
            .filter_map(|(above, below)| Some(above? / below.filter(|value| *value > 0.0)?)),
    )
}

/// Linear interpolation between the two nearest of `sorted`, which is not empty.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        let spread = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(
            spread,
            Spread {
                count: 5,
                min: 1.0,
                q1: 2.0,
                median: 3.0,
                q3: 4.0,
                max: 5.0,
                interval: None
            }
        );
        assert_eq!(Spread::of([1.0, 2.0, 3.0, 10.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([1.0, 2.0, 3.0, 10.0]).unwrap().q3, 4.75);
        assert_eq!(spread.relative_width(), 4.0 / 3.0);
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([1.0, f64::NAN]), None);
        assert_eq!(
            ratios([(Some(1.0), None), (None, Some(2.0)), (Some(1.0), Some(0.0))]),
            None
        );
    }

    #[test]
    fn only_whole_pairs_count() {
        let spread = ratios([
            (Some(1.0), Some(2.0)),
            (None, Some(2.0)),
            (Some(3.0), Some(2.0)),
        ])
        .unwrap();
        assert_eq!(
            (spread.count, spread.min, spread.median, spread.max),
            (2, 0.5, 1.0, 1.5)
        );
    }

    #[test]
    fn a_side_needs_every_pair_and_enough_of_them() {
        let of = |values: &[f64]| side(&Spread::of(values.iter().copied()).unwrap());
        assert_eq!(of(&[0.8, 0.9, 0.99, 0.7, 0.9]), Some(Side::Below));
        assert_eq!(of(&[0.8, 0.9, 0.99, 0.7, 1.01]), Some(Side::Tie));
        assert_eq!(of(&[0.8, 0.9, 0.99, 0.7, 1.0]), Some(Side::Tie));
        assert_eq!(of(&[1.1, 1.2, 1.3, 1.1, 1.2]), Some(Side::Above));
        assert_eq!(of(&[0.8, 0.9, 0.8, 0.7]), None);
    }

    #[test]
    fn the_interval_narrows_with_more_values_and_needs_six() {
        let of = |count: usize| Spread::of((0..count).map(|n| 1.0 + (n % 7) as f64 / 100.0));
        assert_eq!(of(5).unwrap().interval, None);
        let width = |count| {
            let interval = of(count).unwrap().interval.unwrap();
            interval.high - interval.low
        };
        assert!(width(700) < width(7));
        // The median of 15 lies between the 4th and the 12th with 96 % (binomial); the bootstrap comes near.
        let fifteen = Spread::of((1..=15).map(f64::from)).unwrap();
        let Interval { low, high } = fifteen.interval.unwrap();
        assert!(
            (3.0..=6.0).contains(&low) && (10.0..=13.0).contains(&high),
            "{low} {high}"
        );
    }

    #[test]
    fn an_interval_of_fifteen_holds_the_truth_about_as_often_as_it_says() {
        const DRAWS: usize = 300;
        let mut random = StdRng::seed_from_u64(2);
        // The median of a uniform distribution from 0.9 to 1.1 is 1.
        let mut fifteen = || Spread::of((0..15).map(|_| random.random_range(0.9..1.1))).unwrap();
        let held = (0..DRAWS)
            .filter_map(|_| fifteen().interval)
            .filter(|interval| interval.low <= 1.0 && 1.0 <= interval.high)
            .count();
        let share = held as f64 / DRAWS as f64;
        assert!((0.90..=0.99).contains(&share), "{share}");
    }

    proptest! {
        #[test]
        fn an_interval_holds_the_median(values in proptest::collection::vec(0.001f64..1e9, 6..30)) {
            let spread = Spread::of(values).unwrap();
            let interval = spread.interval.unwrap();
            prop_assert!(spread.min <= interval.low && interval.low <= spread.median);
            prop_assert!(spread.median <= interval.high && interval.high <= spread.max);
        }

        #[test]
        fn a_spread_is_ordered_and_made_of_its_values(values in proptest::collection::vec(0.001f64..1e9, 1..50)) {
            let spread = Spread::of(values.iter().copied()).unwrap();
            let marks = [spread.min, spread.q1, spread.median, spread.q3, spread.max];
            prop_assert!(marks.is_sorted());
            prop_assert!(values.contains(&spread.min) && values.contains(&spread.max));
            let below = values.iter().filter(|value| **value < spread.median).count();
            let above = values.iter().filter(|value| **value > spread.median).count();
            prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
        }

        #[test]
        fn order_and_unit_do_not_matter(mut values in proptest::collection::vec(0.5f64..1e6, 1..30)) {
            let spread = Spread::of(values.iter().copied()).unwrap();
            values.reverse();
            prop_assert_eq!(Spread::of(values.iter().copied()).unwrap(), spread);
            let doubled = Spread::of(values.iter().map(|value| value * 2.0)).unwrap();
            prop_assert_eq!(doubled.median, spread.median * 2.0);
        }

        #[test]
        fn something_against_itself_is_one(values in proptest::collection::vec(0.001f64..1e9, 1..30)) {
            let spread = ratios(values.iter().map(|value| (Some(*value), Some(*value)))).unwrap();
            prop_assert_eq!((spread.min, spread.max, spread.count), (1.0, 1.0, values.len()));
        }
    }
}
