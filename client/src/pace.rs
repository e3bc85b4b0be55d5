//! How many connects may start now, and when to look again.
//!
//! Pure: takes `now`. Invariant: in any span of time no more are allowed than the rate gives for it plus
//! one burst ([`MAX_BURST`] of the rate), and never more are in flight than the concurrency.

use std::time::Duration;

/// How much of a stall is made up for: a server that was slow for seconds is not then hit with all of it.
pub const MAX_BURST: Duration = Duration::from_millis(100);
/// How much credit is worth waking for.
const GRAIN: Duration = Duration::from_millis(1);

/// A token bucket with a bound on what is in flight.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Connects per second; 0: no limit but the concurrency.
    rate: f64,
    concurrency: u32,
    credit: f64,
    last: Duration,
    /// By how much connects were put off for good: what of a stall is not made up for.
    put_off: Duration,
}

impl Pace {
    /// `rate` connects per second (0: unlimited), at most `concurrency` of them in flight.
    pub fn new(rate: f64, concurrency: u32) -> Pace {
        Pace {
            rate,
            concurrency,
            credit: 1.0,
            last: Duration::ZERO,
            put_off: Duration::ZERO,
        }
    }

    /// The first connect is to start at `start`.
    pub fn starting_at(self, start: Duration) -> Pace {
        Pace {
            last: start,
            ..self
        }
    }

    /// How many connects may start at `now` with `in_flight` under way. Time that goes back counts as none.
    pub fn allowance(&mut self, now: Duration, in_flight: u32) -> u32 {
        let room = self.concurrency.saturating_sub(in_flight);
        if self.rate == 0.0 {
            return room;
        }
        let gained = now.saturating_sub(self.last).as_secs_f64() * self.rate;
        self.last = self.last.max(now);
        let credit = self.credit + gained;
        self.credit = credit.min(self.most());
        self.put_off += Duration::from_secs_f64((credit - self.credit) / self.rate);
        room.min(self.credit as u32)
    }

    /// When the next of those allowed was to start, had each started as the rate asks from the start on, whatever the
    /// concurrency and stalls put off. None without a rate.
    pub fn intended(&self) -> Option<Duration> {
        if self.rate == 0.0 {
            return None;
        }
        let since = Duration::from_secs_f64((self.credit - 1.0).max(0.0) / self.rate);
        Some(self.last.saturating_sub(since + self.put_off))
    }

    /// `count` of those allowed have started.
    pub fn started(&mut self, count: u32) {
        if self.rate > 0.0 {
            self.credit -= f64::from(count);
        }
    }

    /// How long after the last [`Pace::allowance`] more may start. None: not before something in flight ends.
    pub fn wait(&self, in_flight: u32) -> Option<Duration> {
        if in_flight >= self.concurrency {
            return None;
        }
        if self.rate == 0.0 || self.credit >= 1.0 {
            return Some(Duration::ZERO);
        }
        let wanted = (self.rate * GRAIN.as_secs_f64()).clamp(1.0, self.most());
        Some(Duration::from_secs_f64(
            (wanted - self.credit).max(0.0) / self.rate,
        ))
    }

    fn most(&self) -> f64 {
        (self.rate * MAX_BURST.as_secs_f64()).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_faster_than_the_rate_nor_wider_than_the_concurrency(
            rate in 1u32..100_000,
            concurrency in 1u32..1000,
            steps in proptest::collection::vec((0u64..300_000, 0u32..1000), 1..200),
        ) {
            let mut pace = Pace::new(f64::from(rate), concurrency);
            let (mut now, mut started, mut in_flight) = (Duration::ZERO, 0u64, 0u32);
            for (gap_us, ended) in steps {
                now += Duration::from_micros(gap_us);
                in_flight -= ended.min(in_flight);
                let allowed = pace.allowance(now, in_flight);
                pace.started(allowed);
                in_flight += allowed;
                started += u64::from(allowed);
                prop_assert!(in_flight <= concurrency);
                let bound = now.as_secs_f64() * f64::from(rate) + (f64::from(rate) * 0.1).max(1.0) + 1.0;
                prop_assert!(started as f64 <= bound, "{started} > {bound}");
                prop_assert_eq!(pace.wait(in_flight).is_none(), in_flight == concurrency);
            }
        }

        #[test]
        fn one_who_wakes_when_told_keeps_the_rate(rate in 1u32..100_000) {
            let mut pace = Pace::new(f64::from(rate), 1_000_000);
            let (mut now, mut started) = (Duration::ZERO, 0u64);
            while now < Duration::from_secs(3) {
                let allowed = pace.allowance(now, 0);
                pace.started(allowed);
                started += u64::from(allowed);
                now += pace.wait(0).unwrap_or(Duration::ZERO).max(Duration::from_nanos(1));
            }
            prop_assert!(started as f64 >= f64::from(rate) * 2.99 - 2.0, "{started} at {rate}/s");
        }
    }

    proptest! {
        /// Whatever is put off and by whom, connect `n` was to start `n / rate` after the start.
        #[test]
        fn what_was_intended_is_the_rate_alone(
            rate in 1u32..100_000,
            concurrency in 1u32..1000,
            start_ms in 0u64..10_000,
            steps in proptest::collection::vec((0u64..1_000_000, 0u32..1000), 1..100),
        ) {
            let start = Duration::from_millis(start_ms);
            let mut pace = Pace::new(f64::from(rate), concurrency).starting_at(start);
            let (mut now, mut started, mut in_flight) = (start, 0u64, 0u32);
            for (gap_us, ended) in steps {
                now += Duration::from_micros(gap_us);
                in_flight -= ended.min(in_flight);
                for _ in 0..pace.allowance(now, in_flight) {
                    let intended = pace.intended().unwrap_or_default().as_secs_f64();
                    let expected = start.as_secs_f64() + started as f64 / f64::from(rate);
                    prop_assert!((intended - expected).abs() < 1e-5, "{intended}, not {expected}");
                    prop_assert!(intended <= now.as_secs_f64() + 1e-9, "never before its time");
                    pace.started(1);
                    started += 1;
                    in_flight += 1;
                }
            }
        }
    }

    #[test]
    fn without_a_rate_only_the_concurrency_counts() {
        let mut pace = Pace::new(0.0, 512);
        assert_eq!(pace.intended(), None);
        assert_eq!(pace.allowance(Duration::ZERO, 500), 12);
        pace.started(12);
        assert_eq!(pace.allowance(Duration::ZERO, 512), 0);
        assert_eq!(pace.wait(512), None);
        assert_eq!(pace.wait(511), Some(Duration::ZERO));
    }

    #[test]
    fn a_stall_is_not_made_up_for_at_once() {
        let mut pace = Pace::new(1000.0, 10_000);
        assert_eq!(pace.allowance(Duration::from_secs(60), 0), 100);
    }
}
