//! When each active connection is to send its next message, in open loop.
//!
//! Pure: takes `now`. Message `n` of the schedule belongs to member `n % members`, is its round `n / members`, and is to be
//! sent `n / rate` after the start: each member sends every `members / rate`, and their phases are spread evenly over
//! that. So one cursor is all the state there is, however many members: when a message was to be sent follows from its
//! number, also long after.
//! Invariant: every message falls due exactly once, in order, and never before its time.

use std::time::Duration;

/// The send times of the active connections of one worker.
#[derive(Clone, Debug)]
pub struct Schedule {
    start: Duration,
    members: u32,
    per_second: f64,
    /// Messages that have fallen due; the number of the next.
    due: u64,
}

/// A message whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Whose it is.
    pub member: u32,
    /// When it was to be sent.
    pub intended: Duration,
}

impl Schedule {
    /// `members` (at least one) that send `per_second` messages (above 0) together, the first at `start`.
    pub fn new(start: Duration, members: u32, per_second: f64) -> Schedule {
        Schedule {
            start,
            members,
            per_second,
            due: 0,
        }
    }

    /// The next message whose time has come at `now`, if there is one.
    pub fn next(&mut self, now: Duration) -> Option<Due> {
        let intended = self.time(self.due);
        if intended > now {
            return None;
        }
        let member = (self.due % u64::from(self.members)) as u32;
        self.due += 1;
        Some(Due { member, intended })
    }

    /// How long after `now` the next message falls due.
    pub fn wait(&self, now: Duration) -> Duration {
        self.time(self.due).saturating_sub(now)
    }

    /// When message `round` of `member` is to be sent.
    pub fn intended(&self, member: u32, round: u32) -> Duration {
        self.time(self.number(member, round))
    }

    /// Whether [`Schedule::next`] has given message `round` of `member`.
    pub fn is_due(&self, member: u32, round: u32) -> bool {
        self.number(member, round) < self.due
    }

    /// How many messages have fallen due.
    pub fn due(&self) -> u64 {
        self.due
    }

    fn number(&self, member: u32, round: u32) -> u64 {
        u64::from(round) * u64::from(self.members) + u64::from(member)
    }

    fn time(&self, number: u64) -> Duration {
        self.start + Duration::from_secs_f64(number as f64 / self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Times of a run, in any unevenness.
    fn gaps() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec(0u64..50_000_000, 1..100)
    }

    proptest! {
        #[test]
        fn each_message_falls_due_once_in_order_and_never_early(
            members in 1u32..500,
            rate in 1u32..100_000,
            start_ms in 0u64..100_000,
            gaps in gaps(),
        ) {
            let start = Duration::from_millis(start_ms);
            let mut schedule = Schedule::new(start, members, f64::from(rate));
            prop_assert_eq!(schedule.clone().next(start.saturating_sub(Duration::from_nanos(1))).is_some(), start_ms == 0);
            let (mut now, mut number) = (start, 0u64);
            for gap in gaps {
                now += Duration::from_nanos(gap);
                while let Some(due) = schedule.next(now) {
                    let (member, round) = ((number % u64::from(members)) as u32, (number / u64::from(members)) as u32);
                    prop_assert_eq!(due.member, member);
                    prop_assert_eq!(due.intended, schedule.intended(member, round));
                    prop_assert!(due.intended <= now);
                    prop_assert!(schedule.is_due(member, round) && !schedule.is_due(member, round + 1));
                    number += 1;
                }
                prop_assert_eq!(schedule.due(), number);
                // The rate is kept over any span: none skipped, none invented.
                let expected = (now - start).as_secs_f64() * f64::from(rate);
                prop_assert!((number as f64 - expected).abs() <= 1.001, "{number} due, {expected} expected");
            }
        }

        #[test]
        fn one_who_wakes_when_told_is_on_time(members in 1u32..500, rate in 1u32..100_000, gaps in gaps()) {
            let mut schedule = Schedule::new(Duration::ZERO, members, f64::from(rate));
            let mut now = Duration::ZERO;
            for late in gaps {
                now += schedule.wait(now);
                let due = schedule.next(now);
                prop_assert_eq!(due.map(|due| due.intended <= now), Some(true));
                while schedule.next(now).is_some() {}
                let wait = schedule.wait(now);
                prop_assert!(wait > Duration::ZERO);
                prop_assert_eq!(schedule.next(now + wait - Duration::from_nanos(1)), None);
                now += Duration::from_nanos(late);
            }
        }

        #[test]
        fn a_member_sends_at_its_own_even_interval(members in 1u32..10_000, rate in 1u32..100_000, member: u32, round in 0u32..100_000) {
            let schedule = Schedule::new(Duration::from_secs(3), members, f64::from(rate));
            let member = member % members;
            let gap = schedule.intended(member, round + 1) - schedule.intended(member, round);
            let interval = f64::from(members) / f64::from(rate);
            prop_assert!((gap.as_secs_f64() - interval).abs() < 1e-6, "{gap:?} instead of {interval} s");
        }
    }
}
