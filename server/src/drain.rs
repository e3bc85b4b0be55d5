//! How a worker lets its connections go once it is told to stop: told, waited for, then closed, and nothing all at once.
//!
//! Pure: takes `now`. Of the drain's time the first quarter is for telling them (the server's farewell, published like
//! any message), and from three quarters on those that are left are closed, evenly: closing very many at once charges
//! their queued ends to the kernel's TCP memory, and brings all of them back to somebody else in one moment. What is
//! left at the end has output that its peer does not take, and is cut off.
//!
//! Invariant: a connection is named once, not before three quarters of the time, and the drain is over when its time is.

use std::time::Duration;

use crate::schedule::{STEP_NS, Walk};

/// Connections closed in one turn: what has come has its turn again before the next.
pub const CLOSED_PER_TURN: usize = 256;

/// The drain of one worker.
#[derive(Debug)]
pub struct Drain {
    closes_from_ns: u64,
    closes_over_ns: u64,
    ends_at_ns: u64,
    /// From the first connection closed on.
    walk: Option<Walk>,
}

impl Drain {
    /// What is asked for when nothing else is.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// Begins at `now_ns` and takes at most `timeout`.
    pub fn new(timeout: Duration, now_ns: u64) -> Drain {
        let timeout_ns = timeout.as_nanos() as u64;
        Drain {
            closes_from_ns: now_ns + timeout_ns / 4 * 3,
            // The last twentieth is for what was said to the last of them.
            closes_over_ns: timeout_ns / 5,
            ends_at_ns: now_ns + timeout_ns,
            walk: None,
        }
    }

    /// Over which time connections are told.
    pub fn farewell_over(timeout: Duration) -> Duration {
        timeout / 4
    }

    /// It ends now.
    pub fn cut_short(&mut self, now_ns: u64) {
        self.ends_at_ns = now_ns;
    }

    /// Its time is over.
    pub fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.ends_at_ns
    }

    /// The table and slot whose connection is to be closed now, if there is one in it. None when none is due. The slots
    /// are those that `high_waters` gives for each table when the closing begins.
    pub fn next<T: IntoIterator<Item = u32>>(
        &mut self,
        now_ns: u64,
        high_waters: impl Fn() -> T,
    ) -> Option<(usize, u32)> {
        if now_ns < self.closes_from_ns {
            return None;
        }
        let over_ns = self.closes_over_ns;
        self.walk
            .get_or_insert_with(|| Walk::new(high_waters(), over_ns, now_ns))
            .next(now_ns)
    }

    /// When to ask again.
    pub fn next_due_ns(&self, now_ns: u64) -> u64 {
        let due_ns = match &self.walk {
            None => self.closes_from_ns,
            Some(walk) if walk.is_done() => self.ends_at_ns,
            Some(_) => now_ns + STEP_NS,
        };
        due_ns.min(self.ends_at_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn those_left_are_named_once_and_evenly_at_the_end_of_the_time() {
        let mut drain = Drain::new(Duration::from_secs(20), 5 * S);
        let high_waters = || [300, 100];
        assert_eq!(drain.next(20 * S - 1, high_waters), None);
        assert_eq!(drain.next_due_ns(6 * S), 20 * S);
        let mut named = Vec::new();
        for second in 20..=24 {
            let before = named.len();
            while let Some(slot) = drain.next(second * S, high_waters) {
                named.push(slot);
            }
            let most = if second == 20 { 0 } else { 100 };
            assert_eq!(named.len() - before, most, "in second {second}");
        }
        let expected: Vec<_> = (0..300)
            .map(|slot| (0, slot))
            .chain((0..100).map(|slot| (1, slot)))
            .collect();
        assert_eq!(named, expected);
        assert!(!drain.is_over(25 * S - 1) && drain.is_over(25 * S));
        assert_eq!(drain.next_due_ns(24 * S), 25 * S);
    }

    #[test]
    fn it_ends_early_when_told_to_and_at_once_without_a_time() {
        let mut drain = Drain::new(Duration::from_secs(20), 0);
        drain.cut_short(S);
        assert!(drain.is_over(S) && drain.next_due_ns(S) == S);
        assert!(Drain::new(Duration::ZERO, S).is_over(S));
    }
}
