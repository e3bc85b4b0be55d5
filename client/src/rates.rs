//! What the counters did per second, from one look at them to the next.
//!
//! Pure. Invariant: what is counted between two looks belongs to exactly one rate.

use std::time::Duration;

use crate::counters::Counts;

/// Events per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PerSecond {
    pub(crate) connects: f64,
    pub(crate) messages: f64,
    pub(crate) heartbeats: f64,
    pub(crate) cycles: f64,
}

/// Renewed no more often than `every`, so that a short while does not look like a burst.
#[derive(Debug)]
pub(crate) struct Rates {
    every: Duration,
    since: Duration,
    from: Counts,
    newest: PerSecond,
}

impl Rates {
    pub(crate) fn new(every: Duration) -> Rates {
        Rates {
            every,
            since: Duration::ZERO,
            from: Counts::default(),
            newest: PerSecond::default(),
        }
    }

    /// The newest rates, with `counts` as they are `at` this time.
    pub(crate) fn look(&mut self, at: Duration, counts: &Counts) -> PerSecond {
        let time = at.saturating_sub(self.since);
        if time >= self.every && !time.is_zero() {
            let rate = |count: fn(&Counts) -> u64| {
                count(counts).saturating_sub(count(&self.from)) as f64 / time.as_secs_f64()
            };
            self.newest = PerSecond {
                connects: rate(|counts| counts.established),
                messages: rate(|counts| counts.messages),
                heartbeats: rate(|counts| counts.heartbeats),
                cycles: rate(|counts| counts.cycles),
            };
            (self.since, self.from) = (at, *counts);
        }
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However uneven the looks, the rates by their times add up to what was counted.
        #[test]
        fn nothing_is_counted_twice_or_left_out(
            every_ms in 0_u64..500,
            steps in prop::collection::vec((0_u64..400, 0_u64..10_000), 1..100),
        ) {
            let mut rates = Rates::new(Duration::from_millis(every_ms));
            let (mut at, mut counts, mut sum, mut renewed) = (Duration::ZERO, Counts::default(), 0.0, Duration::ZERO);
            for (wait_ms, more) in steps {
                at += Duration::from_millis(wait_ms);
                counts.messages += more;
                let newest = rates.look(at, &counts);
                if rates.since > renewed {
                    sum += newest.messages * (rates.since - renewed).as_secs_f64();
                    renewed = rates.since;
                }
            }
            prop_assert!((sum - rates.from.messages as f64).abs() < 1e-3 * (1.0 + sum));
            prop_assert!(at - rates.since < Duration::from_millis(every_ms.max(1)));
        }
    }
}
