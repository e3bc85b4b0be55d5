//! By which assignments of the plan connections were made that may be made again.
//!
//! Pure: times are given. Owns 4 bytes for each churning connection, or for each of all where lost ones are made again,
//! and nothing where neither is asked for.
//! Invariant: an assignment is that of one connection, or rests, or is nobody's.

use std::collections::VecDeque;
use std::time::Duration;

use crate::churn::Churners;

/// What the client's side of an orderly close occupies its address and port for: TIME_WAIT, TCP_TIMEWAIT_LEN of the
/// kernel, 60 seconds.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// The assignments of one worker's connections, by their number in the plan.
#[derive(Clone, Debug)]
pub(crate) struct Origins {
    churners: Churners,
    are_all_kept: bool,
    /// By connection, or by rank of those that churn.
    numbers: Vec<u32>,
    /// Those left by an orderly close, and when, the oldest first.
    resting: VecDeque<(Duration, u32)>,
}

impl Origins {
    /// Those of the churning connections, or of all.
    pub(crate) fn new(churners: Churners, are_all_kept: bool) -> Origins {
        Origins {
            churners,
            are_all_kept,
            numbers: Vec::new(),
            resting: VecDeque::new(),
        }
    }

    /// Connection `c` is made by assignment `number`. New connections come in order.
    pub(crate) fn remember(&mut self, c: u32, number: u32) {
        let Some(index) = self.index(c) else { return };
        match self.numbers.get_mut(index) {
            Some(earlier) => *earlier = number,
            None => self.numbers.push(number),
        }
    }

    /// What connection `c`, one of those remembered, was made by.
    pub(crate) fn number(&self, c: u32) -> Option<u32> {
        self.numbers.get(self.index(c)?).copied()
    }

    /// The assignment of connection `c` rests from `now` on: it was closed in order, or found to rest still.
    pub(crate) fn rest(&mut self, c: u32, now: Duration) {
        if let Some(number) = self.number(c) {
            self.resting.push_back((now, number));
        }
    }

    /// An assignment to connect by at `now`, after an orderly close: one that has rested, else a `spare` one, else the
    /// one that has rested longest.
    pub(crate) fn fresh(
        &mut self,
        now: Duration,
        spare: impl FnOnce() -> Option<u32>,
    ) -> Option<u32> {
        let has_rested = |(since, _): &(Duration, u32)| now.saturating_sub(*since) > TIME_WAIT;
        if !self.resting.front().is_some_and(has_rested)
            && let Some(spare) = spare()
        {
            return Some(spare);
        }
        self.resting.pop_front().map(|(_, number)| number)
    }

    fn index(&self, c: u32) -> Option<usize> {
        if self.are_all_kept {
            return Some(c as usize);
        }
        let rank = || self.churners.rank(c.into()) as usize;
        self.churners.has(c).then(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_keeps_its_own(connections in 1u64..2000, share in 0.0..=1.0f64, are_all_kept: bool) {
            let count = (connections as f64 * share) as u64;
            let churners = Churners::new(count, connections);
            let mut origins = Origins::new(churners, are_all_kept);
            for c in 0..connections as u32 {
                origins.remember(c, c + 7);
            }
            let kept: Vec<u32> = (0..connections as u32).filter(|c| are_all_kept || churners.has(*c)).collect();
            prop_assert_eq!(origins.numbers.len(), kept.len());
            // A port that was taken.
            if let Some(first) = kept.first() {
                origins.remember(*first, 60_000);
                prop_assert_eq!(origins.number(*first), Some(60_000));
            }
            for c in kept.iter().skip(1) {
                prop_assert_eq!(origins.number(*c), Some(c + 7));
            }
        }
    }

    #[test]
    fn after_an_orderly_close_the_longest_rested_comes_last_but_before_none() {
        let mut origins = Origins::new(Churners::new(2, 2), false);
        origins.remember(0, 0);
        origins.remember(1, 1);
        let at = Duration::from_secs;
        origins.rest(0, at(1));
        assert_eq!(origins.fresh(at(2), || Some(5)), Some(5));
        origins.rest(1, at(3));
        assert_eq!(
            origins.fresh(at(62), || panic!("0 has rested for a minute")),
            Some(0)
        );
        assert_eq!(origins.fresh(at(62), || None), Some(1));
        assert_eq!(origins.fresh(at(62), || None), None);
    }
}
