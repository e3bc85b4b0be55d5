//! How many connections a run asks for at a time: how many may have been started, and how many may still be up.
//!
//! Pure: times are given. A run rises leg by leg to all of its connections, rests between two legs, stays, and falls in
//! one. What limits the rate of connects is [`crate::pace`]; a shape says what is asked of it.
//! Invariant: the level of a leg goes one way, by one connection at a time, and is at its end when its time is over.

use std::time::Duration;

use serde::Serialize;

use crate::config::seconds;

/// The course of the number of connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// How all of them are brought up.
    #[serde(flatten)]
    pub rise: Rise,
    /// The time over which they are closed at the end; zero: all at once.
    #[serde(rename = "ramp_down_seconds", serialize_with = "seconds")]
    pub fall: Duration,
}

/// How connections are brought up.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "ramp")]
pub enum Rise {
    /// As fast as the rate and the concurrency allow.
    AtOnce,
    /// Evenly over a time.
    Linear {
        /// From the first connect to when all have been started.
        #[serde(rename = "ramp_seconds", serialize_with = "seconds")]
        over: Duration,
    },
    /// In equal parts, each as fast as the rate and the concurrency allow.
    Steps {
        /// How many.
        steps: u64,
        /// How long each but the last is held before the next.
        #[serde(rename = "step_hold_seconds", serialize_with = "seconds")]
        hold: Duration,
    },
    /// To level after level, each as fast as the rate and the concurrency allow.
    Levels {
        /// Connections at the end of each; the last has all of them.
        levels: Vec<u64>,
        /// How long each but the last is held before the next.
        #[serde(rename = "step_hold_seconds", serialize_with = "seconds")]
        hold: Duration,
    },
}

/// To so many levels at most: what is held at each but the last is a stage of its own to the canaries.
pub const MOST_LEVELS: usize = 9;

/// The name of what is held at the end of `step`, the first of which is 1.
pub(crate) fn step_name(step: u8) -> &'static str {
    const NAMES: [&str; MOST_LEVELS - 1] = [
        "step-1", "step-2", "step-3", "step-4", "step-5", "step-6", "step-7", "step-8",
    ];
    let index = usize::from(step).saturating_sub(1);
    NAMES[index.min(NAMES.len() - 1)]
}

/// From one number of connections to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Connections at its beginning.
    pub from: u64,
    /// Connections at its end.
    pub to: u64,
    /// How long it takes; each connection has its own time within this.
    pub over: Duration,
    /// How long its end is held before the next leg.
    pub rest: Duration,
}

impl Shape {
    /// The legs that bring up `connections`, in order.
    pub fn rise(&self, connections: u64) -> Vec<Leg> {
        let leg = |from, to, over, rest| Leg {
            from,
            to,
            over,
            rest,
        };
        match &self.rise {
            Rise::AtOnce => vec![leg(0, connections, Duration::ZERO, Duration::ZERO)],
            Rise::Linear { over } => vec![leg(0, connections, *over, Duration::ZERO)],
            Rise::Steps { steps, hold } => {
                let end = |step: u64| {
                    (u128::from(connections) * u128::from(step) / u128::from(*steps)) as u64
                };
                (1..=*steps)
                    .map(|step| {
                        let rest = if step < *steps { *hold } else { Duration::ZERO };
                        leg(end(step - 1), end(step), Duration::ZERO, rest)
                    })
                    .collect()
            }
            Rise::Levels { levels, hold } => {
                let begins = std::iter::once(&0).chain(levels);
                begins
                    .zip(levels)
                    .map(|(from, to)| {
                        let rest = if *to < connections {
                            *hold
                        } else {
                            Duration::ZERO
                        };
                        leg(*from, *to, Duration::ZERO, rest)
                    })
                    .collect()
            }
        }
    }
}

impl Leg {
    /// From `connections` to none, over a time.
    pub fn down(connections: u64, over: Duration) -> Leg {
        Leg {
            from: connections,
            to: 0,
            over,
            rest: Duration::ZERO,
        }
    }

    /// The number of connections asked for `since` its beginning. The first is asked for at once, each other its even
    /// part of the time later.
    pub fn level(&self, since: Duration) -> u64 {
        let all = self.from.abs_diff(self.to);
        let moved = match since < self.over {
            // The quotient is below `all`, so this fits.
            true => (u128::from(all) * since.as_nanos() / self.over.as_nanos()) as u64 + 1,
            false => all,
        };
        match self.to >= self.from {
            true => self.from + moved.min(all),
            false => self.from - moved.min(all),
        }
    }

    /// How long after its beginning `level` is first asked for; zero for one that lies before, none for one past its end.
    pub fn when(&self, level: u64) -> Option<Duration> {
        let is_rising = self.to >= self.from;
        let (moved, is_past) = match is_rising {
            true => (level.saturating_sub(self.from), level > self.to),
            false => (self.from.saturating_sub(level), level < self.to),
        };
        if is_past {
            return None;
        }
        let all = u128::from(self.from.abs_diff(self.to).max(1));
        let nanos = (u128::from(moved.saturating_sub(1)) * self.over.as_nanos()).div_ceil(all);
        // At most `over`, of which 64 bits hold 584 years.
        Some(Duration::from_nanos(nanos as u64))
    }
}

/// Of `level` connections dealt out in turn to `workers`, those of worker `number`.
pub fn share(level: u64, number: u64, workers: u64) -> u64 {
    level / workers + u64::from(number < level % workers)
}

/// The least level of which worker `number` has `share` connections.
pub fn level_of(share: u64, number: u64, workers: u64) -> u64 {
    match share {
        0 => 0,
        _ => (share - 1) * workers + number + 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leg() -> impl Strategy<Value = Leg> {
        (0u64..200_000, 0u64..200_000, 0u64..100_000_000_000).prop_map(|(from, to, nanos)| Leg {
            from,
            to,
            over: Duration::from_nanos(nanos),
            rest: Duration::ZERO,
        })
    }

    proptest! {
        #[test]
        fn a_leg_goes_one_way_evenly_and_is_done_in_time(leg in leg(), mut parts in proptest::collection::vec(0.0..1.2f64, 1..50)) {
            parts.sort_by(f64::total_cmp);
            let all = leg.from.abs_diff(leg.to);
            let mut last = leg.from;
            for part in parts {
                let since = leg.over.mul_f64(part);
                let level = leg.level(since);
                let (moved, before) = (level.abs_diff(leg.from), last.abs_diff(leg.from));
                prop_assert!(moved >= before && moved <= all);
                prop_assert_eq!(level.abs_diff(leg.to) + moved, all);
                // Never ahead of its time by more than the one that is asked for at once, and never behind.
                let even = all as f64 * part.min(1.0);
                prop_assert!(moved as f64 <= even + 1.01 && moved as f64 >= (even - 0.01).floor().min(all as f64), "{moved} of {even}");
                last = level;
            }
            prop_assert_eq!(leg.level(leg.over), leg.to);
        }

        #[test]
        fn one_who_waits_as_told_meets_each_connection_at_its_time(leg in leg(), part in 0.0..=1.0f64) {
            let all = leg.from.abs_diff(leg.to);
            let moved = ((all as f64 * part) as u64).min(all);
            let level = if leg.to >= leg.from { leg.from + moved } else { leg.from - moved };
            let when = leg.when(level).unwrap();
            prop_assert!(when <= leg.over);
            prop_assert!(leg.level(when).abs_diff(leg.from) >= moved);
            if moved > 1 && !when.is_zero() {
                prop_assert!(leg.level(when - Duration::from_nanos(1)).abs_diff(leg.from) < moved);
            }
            let past = if leg.to >= leg.from { Some(leg.to + 1) } else { leg.to.checked_sub(1) };
            prop_assert_eq!(past.and_then(|past| leg.when(past)), None);
        }

        #[test]
        fn steps_are_equal_and_end_with_all(connections in 1u64..1_000_000, steps in 1u64..100) {
            let steps = steps.min(connections);
            let hold = Duration::from_secs(5);
            let shape = Shape { rise: Rise::Steps { steps, hold }, fall: Duration::ZERO };
            let legs = shape.rise(connections);
            prop_assert_eq!(legs.len() as u64, steps);
            prop_assert_eq!((legs[0].from, legs.last().unwrap().to), (0, connections));
            for (leg, next) in legs.iter().zip(&legs[1..]) {
                prop_assert_eq!(leg.to, next.from);
                prop_assert_eq!(leg.rest, hold);
            }
            let sizes: Vec<u64> = legs.iter().map(|leg| leg.to - leg.from).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            prop_assert_eq!(legs.last().unwrap().rest, Duration::ZERO);
        }

        #[test]
        fn workers_share_a_level_evenly(level in 0u64..100_000, workers in 1u64..64) {
            let shares: Vec<u64> = (0..workers).map(|number| share(level, number, workers)).collect();
            prop_assert_eq!(shares.iter().sum::<u64>(), level);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
            for (number, of_worker) in (0..).zip(shares) {
                let least = level_of(of_worker, number, workers);
                prop_assert_eq!(share(least, number, workers), of_worker);
                prop_assert!(least <= level && (of_worker == 0 || share(least - 1, number, workers) < of_worker));
            }
        }
    }

    #[test]
    fn levels_are_held_but_the_last() {
        let hold = Duration::from_secs(5);
        let rise = Rise::Levels {
            levels: vec![10, 100, 1_000],
            hold,
        };
        let shape = Shape {
            rise,
            fall: Duration::ZERO,
        };
        let legs: Vec<_> = shape
            .rise(1_000)
            .iter()
            .map(|leg| (leg.from, leg.to, leg.rest))
            .collect();
        assert_eq!(
            legs,
            [(0, 10, hold), (10, 100, hold), (100, 1_000, Duration::ZERO)]
        );
        assert_eq!(
            (step_name(1), step_name(8), step_name(200)),
            ("step-1", "step-8", "step-8")
        );
    }

    #[test]
    fn a_linear_ramp_of_ten_over_ten_seconds_is_one_a_second() {
        let shape = Shape {
            rise: Rise::Linear {
                over: Duration::from_secs(10),
            },
            fall: Duration::from_secs(10),
        };
        let up = shape.rise(10)[0];
        let down = Leg::down(10, shape.fall);
        for second in 0..10 {
            let since = Duration::from_secs(second);
            assert_eq!(up.level(since), second + 1);
            assert_eq!(down.level(since), 9 - second);
            assert_eq!(up.when(second + 1), Some(since));
        }
    }
}
