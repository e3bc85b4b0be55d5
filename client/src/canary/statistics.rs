//! The two tests a verdict stands on (pure).
//!
//! Both are exact, so there is no random number and no seed: the same figures always give the same verdict. Both take
//! the probes for independent of each other; a network that suffers does so in bursts, so the levels are nominal.

use hdrhistogram::Histogram;

/// Fisher's exact test, one-sided: how likely it is to see at least `lost` of `sent` lost by chance, if the baseline's
/// `base_lost` of `base_sent` come of the same rate.
pub(super) fn fisher_one_sided(lost: u64, sent: u64, base_lost: u64, base_sent: u64) -> f64 {
    let (all_lost, all) = (lost + base_lost, sent + base_sent);
    let ln_choose =
        |n: u64, k: u64| ln_factorial(n) - ln_factorial(k) - ln_factorial(n.saturating_sub(k));
    let ln_total = ln_choose(all, all_lost);
    (lost..=all_lost.min(sent))
        // The other group cannot lose more than it sent.
        .filter(|k| all_lost - k <= base_sent)
        .map(|k| (ln_choose(sent, k) + ln_choose(base_sent, all_lost - k) - ln_total).exp())
        .sum::<f64>()
        .min(1.0)
}

/// The bootstrap distribution of a quantile: what it would be over all resamples of what was recorded.
///
/// The quantile of a resample is its k-th smallest value, and that is at most x exactly when at least k of its n values
/// are; so its distribution follows from the binomial, and nothing has to be drawn.
pub(super) struct Bootstrap {
    /// Values that were recorded, rising, each with the probability that the quantile is at most that.
    cumulative: Vec<(f64, f64)>,
}

impl Bootstrap {
    /// Of the `quantile` of `histogram`; none when that is empty.
    pub(super) fn of(histogram: &Histogram<u64>, quantile: f64) -> Option<Bootstrap> {
        let n = histogram.len();
        if n == 0 {
            return None;
        }
        let k = ((quantile * n as f64).ceil() as u64).clamp(1, n);
        let mut at_most = 0;
        let cumulative = histogram
            .iter_recorded()
            .map(|step| {
                at_most += step.count_at_value();
                let share = at_most as f64 / n as f64;
                (
                    step.value_iterated_to() as f64,
                    binomial_at_least(k, n, share),
                )
            })
            .collect();
        Some(Bootstrap { cumulative })
    }

    /// The interval that holds the difference `self - base` with probability `level`.
    pub(super) fn difference(&self, base: &Bootstrap, level: f64) -> (f64, f64) {
        let tail = (1.0 - level) / 2.0;
        (
            self.difference_quantile(base, tail),
            self.difference_quantile(base, 1.0 - tail),
        )
    }

    /// The smallest difference that is not exceeded with at least `probability`, to a nanosecond.
    fn difference_quantile(&self, base: &Bootstrap, probability: f64) -> f64 {
        let ends = |b: &Bootstrap| {
            (
                b.cumulative.first().map_or(0.0, |v| v.0),
                b.cumulative.last().map_or(0.0, |v| v.0),
            )
        };
        let ((least, most), (base_least, base_most)) = (ends(self), ends(base));
        let (mut low, mut high) = (least - base_most - 1.0, most - base_least);
        while high - low > 0.5 {
            let middle = f64::midpoint(low, high);
            match self.difference_at_most(base, middle) >= probability {
                true => high = middle,
                false => low = middle,
            }
        }
        high.round()
    }

    /// P(self - base <= d).
    fn difference_at_most(&self, base: &Bootstrap, d: f64) -> f64 {
        let mut before = 0.0;
        base.cumulative
            .iter()
            .map(|(value, cumulative)| {
                let probability = cumulative - before;
                before = *cumulative;
                probability * self.at_most(value + d)
            })
            .sum()
    }

    fn at_most(&self, x: f64) -> f64 {
        let later = self.cumulative.partition_point(|(value, _)| *value <= x);
        match later {
            0 => 0.0,
            _ => self.cumulative[later - 1].1,
        }
    }
}

/// P(X >= k) of X ~ Bin(n, p).
fn binomial_at_least(k: u64, n: u64, p: f64) -> f64 {
    if k == 0 || p >= 1.0 {
        return 1.0;
    }
    if p <= 0.0 {
        return 0.0;
    }
    // The tail beyond the mean falls faster than geometrically, so it is the one that is summed.
    if (k as f64) < p * n as f64 {
        return 1.0 - binomial_at_least(n - k + 1, n, 1.0 - p);
    }
    let odds = p / (1.0 - p);
    let mut term = (ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
        + k as f64 * p.ln()
        + (n - k) as f64 * (-p).ln_1p())
    .exp();
    let mut sum = 0.0;
    for i in k..=n {
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
        term *= (n - i) as f64 / (i + 1) as f64 * odds;
    }
    sum.min(1.0)
}

/// ln(n!): the product itself while it is short, then Stirling's series, whose error there is below 1e-12.
fn ln_factorial(n: u64) -> f64 {
    if n < 32 {
        return (2..=n).map(|i| (i as f64).ln()).sum();
    }
    let x = n as f64;
    x * x.ln() - x + 0.5 * (std::f64::consts::TAU * x).ln() + 1.0 / (12.0 * x)
        - 1.0 / (360.0 * x.powi(3))
        + 1.0 / (1260.0 * x.powi(5))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn histogram(values: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        for value in values {
            histogram.record(*value).unwrap();
        }
        histogram
    }

    #[test]
    fn fishers_test_gives_the_figures_of_the_books() {
        // Fisher's tea: 3 of 4 against 1 of 4 is 17/70.
        assert!((fisher_one_sided(3, 4, 1, 4) - 17.0 / 70.0).abs() < 1e-12);
        assert!((fisher_one_sided(4, 4, 0, 4) - 1.0 / 70.0).abs() < 1e-12);
        assert_eq!(fisher_one_sided(0, 1000, 0, 150), 1.0);
        // 30 % lost where none was.
        assert!(fisher_one_sided(45, 150, 0, 150) < 1e-12);
        // One lost of 1,500 says nothing.
        assert!(fisher_one_sided(1, 1500, 0, 150) > 0.5);
    }

    #[test]
    fn the_binomial_tail_is_right_on_both_sides_and_for_many() {
        assert!((binomial_at_least(2, 3, 0.5) - 0.5).abs() < 1e-12);
        assert!((binomial_at_least(1, 10, 0.1) - (1.0 - 0.9_f64.powi(10))).abs() < 1e-12);
        assert!((binomial_at_least(500_001, 1_000_001, 0.5) - 0.5).abs() < 1e-6);
        assert!((binomial_at_least(40, 40, 0.9) - 0.9_f64.powi(40)).abs() < 1e-12);
    }

    #[test]
    fn equal_samples_differ_by_nothing_and_shifted_ones_by_the_shift() {
        let values: Vec<u64> = (0..1000).map(|i| 100_000 + i * 37 % 20_000).collect();
        let shifted: Vec<u64> = values.iter().map(|v| v + 1_700_000).collect();
        let (same, more) = (histogram(&values), histogram(&shifted));
        for quantile in [0.5, 0.99] {
            let base = Bootstrap::of(&same, quantile).unwrap();
            let (low, high) = base.difference(&base, 0.99);
            assert!(low < 0.0 && high > 0.0, "{low} {high}");
            let worse = Bootstrap::of(&more, quantile).unwrap();
            let (low, high) = worse.difference(&base, 0.99);
            assert!(low > 1_600_000.0 && high < 1_800_000.0, "{low} {high}");
        }
    }

    proptest! {
        /// The exact distribution is that of resamples: drawn ones lie in the interval as often as it says.
        #[test]
        fn drawn_resamples_agree(values in prop::collection::vec(1_000_u64..9_000, 50..150), seed in 1_u64..u64::MAX) {
            let exact = Bootstrap::of(&histogram(&values), 0.5).unwrap();
            let zero = Bootstrap { cumulative: vec![(0.0, 1.0)] };
            let (low, high) = exact.difference(&zero, 0.99);
            let mut state = seed;
            let mut draw = || {
                // xorshift64
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                values[(state % values.len() as u64) as usize]
            };
            let mut outside = 0;
            for _ in 0..400 {
                let resample: Vec<u64> = (0..values.len()).map(|_| draw()).collect();
                let median = histogram(&resample).value_at_quantile(0.5) as f64;
                // Buckets are wider than a nanosecond.
                outside += u32::from(median < low - 8.0 || median > high + 8.0);
            }
            // 4 are expected.
            prop_assert!(outside <= 20, "{outside} of 400 outside of {low}..{high}");
        }

        #[test]
        fn more_loss_is_never_less_evidence(sent in 1_u64..500, base in 1_u64..500, base_lost in 0_u64..50) {
            let base_lost = base_lost.min(base);
            let p: Vec<f64> = (0..=sent.min(60)).map(|lost| fisher_one_sided(lost, sent, base_lost, base)).collect();
            prop_assert!(p.windows(2).all(|pair| pair[1] <= pair[0] + 1e-9));
            prop_assert!(p.iter().all(|p| (0.0..=1.0).contains(p)));
        }
    }
}
