//! How far the clock of another host is ahead of this one's, from messages that went there and came back. Pure.
//!
//! Invariant: whatever the two ways of a message took, and however unlike they were, the true offset lies within the
//! uncertainty of what is said here. That takes clocks which run evenly; one that does not shows in the middle.

use serde::{Deserialize, Serialize};

/// A message there and its answer: the CLOCK_MONOTONIC of each host as it left and as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Here, before the message was sent.
    pub near_sent_ns: u64,
    /// There, after it had come.
    pub far_received_ns: u64,
    /// There, before the answer was sent.
    pub far_sent_ns: u64,
    /// Here, after that had come.
    pub near_received_ns: u64,
}

/// What one exchange tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// When it was, by the clock here.
    pub near_ns: u64,
    /// How far the clock there is ahead.
    pub offset_ns: i64,
    /// How wrong that may be, either way: half of the time that the message and its answer were on their ways.
    pub uncertainty_ns: u64,
}

impl Exchange {
    /// The offset as it is where both ways took the same time (RFC 5905, section 8).
    fn reading(&self) -> Reading {
        let out = i128::from(self.far_received_ns) - i128::from(self.near_sent_ns);
        let back = i128::from(self.far_sent_ns) - i128::from(self.near_received_ns);
        // Below zero only where a clock stepped.
        let on_the_way = (out - back).max(0);
        Reading {
            near_ns: self.near_sent_ns.midpoint(self.near_received_ns),
            offset_ns: saturated((out + back) / 2),
            // One more for what the halves were rounded by.
            uncertainty_ns: u64::try_from(on_the_way / 2 + 1).unwrap_or(u64::MAX),
        }
    }
}

/// The clock of the other host over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Offset {
    /// The most certain reading of the run's first third.
    pub begin: Reading,
    /// That of the second, which the other two are held against.
    pub middle: Option<Reading>,
    /// That of the last.
    pub end: Reading,
    /// How many exchanges there were.
    pub exchanges: usize,
    /// How much faster the clock there runs, in millionths.
    pub drift_ppm: f64,
    /// How wrong a time there may be, said by the clock here, either way.
    pub uncertainty_ns: u64,
}

impl Offset {
    /// From all exchanges of a run, in order: of each third of its time the one that was fastest. `None` of none.
    pub fn of(exchanges: &[Exchange]) -> Option<Self> {
        let readings: Vec<Reading> = exchanges.iter().map(Exchange::reading).collect();
        let (first, last) = (readings.first()?.near_ns, readings.last()?.near_ns);
        let third = (last - first.min(last)) / 3;
        let best = |from: u64, to: u64| {
            let within = readings
                .iter()
                .filter(|one| (from..=to).contains(&one.near_ns));
            within.min_by_key(|one| one.uncertainty_ns).copied()
        };
        let (begin, end) = (best(first, first + third)?, best(last - third, last)?);
        let mut offset = Self {
            begin,
            middle: best(first + third + 1, (last - third).saturating_sub(1)),
            end,
            exchanges: exchanges.len(),
            drift_ppm: 0.0,
            uncertainty_ns: begin.uncertainty_ns.max(end.uncertainty_ns),
        };
        let elapsed_ns = end.near_ns.saturating_sub(begin.near_ns);
        if elapsed_ns > 0 {
            let gained_ns = (end.offset_ns - begin.offset_ns) as f64;
            offset.drift_ppm = gained_ns / elapsed_ns as f64 * 1e6;
        }
        offset.uncertainty_ns = offset.uncertainty_ns.max(offset.bend_ns());
        Some(offset)
    }

    /// A time of the clock there, by the clock here; below zero where that clock was not running yet.
    pub fn near_ns(&self, far_ns: u64) -> i64 {
        // far = near + offset(near), and the offset is a line through `begin`.
        let since_begin =
            i128::from(far_ns) - i128::from(self.begin.offset_ns) - i128::from(self.begin.near_ns);
        let near_since = since_begin as f64 / (1.0 + self.drift_ppm / 1e6);
        saturated(i128::from(self.begin.near_ns) + near_since.round() as i128)
    }

    /// How far the middle's reading may lie from the line through the other two, where it cannot lie on it: such a clock
    /// was slewed or stood still (a paused guest).
    fn bend_ns(&self) -> u64 {
        let Some(middle) = self.middle else { return 0 };
        let since = middle.near_ns.saturating_sub(self.begin.near_ns) as f64;
        let line_ns = self.begin.offset_ns as f64 + since * self.drift_ppm / 1e6;
        let off_ns = (middle.offset_ns as f64 - line_ns).abs() as u64;
        let is_explained = off_ns <= middle.uncertainty_ns + self.uncertainty_ns;
        if is_explained {
            0
        } else {
            off_ns + middle.uncertainty_ns
        }
    }
}

fn saturated(ns: i128) -> i64 {
    ns.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A clock that is ahead by `ahead_ns` at 0 and gains `drift_ppm`.
    #[derive(Debug, Clone, Copy)]
    struct Far {
        ahead_ns: i64,
        drift_ppm: i64,
    }

    impl Far {
        fn at(self, near_ns: u64) -> u64 {
            let near = i128::from(near_ns);
            let gained = near * i128::from(self.drift_ppm) / 1_000_000;
            u64::try_from(near + gained + i128::from(self.ahead_ns)).unwrap()
        }

        fn exchange(self, at_ns: u64, [out, work, back]: [u64; 3]) -> Exchange {
            Exchange {
                near_sent_ns: at_ns,
                far_received_ns: self.at(at_ns + out),
                far_sent_ns: self.at(at_ns + out + work),
                near_received_ns: at_ns + out + work + back,
            }
        }
    }

    /// When the run began here, by a clock that has run for days.
    const BEGAN: u64 = 1 << 50;

    /// Each way, and the work between them, from nothing to 200 ms.
    fn delays() -> impl Strategy<Value = [u64; 3]> {
        [0..200_000_000u64, 0..20_000_000, 0..200_000_000]
    }

    prop_compose! {
        fn run(most_drift_ppm: i64)(
            ahead_ns in -1_000_000_000_000_000i64..1_000_000_000_000_000,
            drift_ppm in -most_drift_ppm..=most_drift_ppm,
            steps in prop::collection::vec((1_000_000u64..3_000_000_000, delays()), 1..60),
        ) -> (Far, Vec<Exchange>) {
            let far = Far { ahead_ns, drift_ppm };
            let mut at_ns = BEGAN;
            let exchanges = steps.into_iter().map(|(wait, delays)| {
                at_ns += wait;
                let exchange = far.exchange(at_ns, delays);
                at_ns = exchange.near_received_ns;
                exchange
            });
            (far, exchanges.collect())
        }
    }

    proptest! {
        #[test]
        fn the_true_offset_lies_within_what_is_said(((far, exchanges), share) in (run(0), 0.0..=1.0f64)) {
            let offset = Offset::of(&exchanges).unwrap();
            for reading in [Some(offset.begin), offset.middle, Some(offset.end)].into_iter().flatten() {
                prop_assert!(reading.offset_ns.abs_diff(far.ahead_ns) <= reading.uncertainty_ns, "{reading:?}");
            }
            let span_ns = offset.end.near_ns - offset.begin.near_ns;
            let near_ns = offset.begin.near_ns + (span_ns as f64 * share) as u64;
            let wrong_by = offset.near_ns(far.at(near_ns)).abs_diff(near_ns as i64);
            // Floats hold the hours of a run to the microsecond at least.
            prop_assert!(wrong_by <= offset.uncertainty_ns + 1_000, "{wrong_by} {offset:?}");
        }

        #[test]
        fn so_it_does_with_clocks_that_drift_apart(((far, exchanges), share) in (run(200), 0.0..=1.0f64)) {
            let offset = Offset::of(&exchanges).unwrap();
            let span_ns = offset.end.near_ns - offset.begin.near_ns;
            let near_ns = offset.begin.near_ns + (span_ns as f64 * share) as u64;
            let wrong_by = offset.near_ns(far.at(near_ns)).abs_diff(near_ns as i64);
            // What the clock gained while a message was on its way.
            let gained_ns = 420_000_000 * far.drift_ppm.unsigned_abs() / 1_000_000;
            prop_assert!(wrong_by <= offset.uncertainty_ns + gained_ns + 1_000, "{wrong_by} {offset:?}");
        }
    }

    const FAR: Far = Far {
        ahead_ns: 5_000_000_000_000,
        drift_ppm: 0,
    };
    const FAST: [u64; 3] = [20_000, 5_000, 30_000];
    const SLOW: [u64; 3] = [90_000_000, 5_000, 1_000];

    #[test]
    fn the_fastest_of_each_third_counts() {
        let seconds = [
            (0, SLOW),
            (1, FAST),
            (4, FAST),
            (5, SLOW),
            (8, SLOW),
            (9, FAST),
        ];
        let exchanges: Vec<_> = seconds
            .iter()
            .map(|(second, delays)| FAR.exchange(BEGAN + second * 1_000_000_000, *delays))
            .collect();
        let offset = Offset::of(&exchanges).unwrap();
        assert_eq!(offset.exchanges, 6);
        assert_eq!(offset.uncertainty_ns, 25_001);
        assert_eq!(offset.begin.offset_ns, FAR.ahead_ns - 5_000);
        assert_eq!(offset.drift_ppm, 0.0);
        assert_eq!(Offset::of(&[]), None);
    }

    #[test]
    fn a_clock_that_stood_still_in_the_middle_makes_all_uncertain() {
        let at = |second: u64, ahead_ns| {
            let far = Far { ahead_ns, ..FAR };
            far.exchange(BEGAN + second * 1_000_000_000, FAST)
        };
        let even = Offset::of(&[at(0, 0), at(5, 500_000), at(10, 1_000_000)]).unwrap();
        assert!((99.0..101.0).contains(&even.drift_ppm), "{even:?}");
        assert_eq!(even.uncertainty_ns, 25_001);
        let stood = Offset::of(&[at(0, 0), at(5, -400_000_000), at(10, 0)]).unwrap();
        assert!(stood.uncertainty_ns >= 400_000_000, "{stood:?}");
    }
}
