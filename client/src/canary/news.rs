//! What has become of probes since somebody last looked: for a live view, the report is made of the ledger.
//!
//! Pure. Invariant: news that are absorbed one after the other say the same as all of them at once.

use std::time::Duration;

/// Of the probes of one kind to one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The round trip of the latest answer.
    pub(crate) rtt: Option<Duration>,
    /// The longest.
    pub(crate) slowest: Option<Duration>,
    pub(crate) lost: u64,
    /// Slots in which the prober did not run, or had nothing to send with.
    pub(crate) not_sent: u64,
    /// The most that the prober was late by.
    pub(crate) lateness: Duration,
}

impl News {
    /// An answer.
    pub(super) fn answered(&mut self, rtt: Duration) {
        self.rtt = Some(rtt);
        self.slowest = self.slowest.max(Some(rtt));
    }

    /// A probe was sent.
    pub(super) fn sent(&mut self, lateness: Duration) {
        self.lateness = self.lateness.max(lateness);
    }

    /// Takes in what came after.
    pub(crate) fn absorb(&mut self, newer: News) {
        self.rtt = newer.rtt.or(self.rtt);
        self.slowest = self.slowest.max(newer.slowest);
        self.lost += newer.lost;
        self.not_sent += newer.not_sent;
        self.lateness = self.lateness.max(newer.lateness);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn looks_in_between_change_nothing(
            events in prop::collection::vec((0_u8..3, 0_u64..1_000), 0..50),
            looks in prop::collection::vec(any::<bool>(), 50),
        ) {
            let (mut all, mut recent, mut sum) = (News::default(), News::default(), News::default());
            for ((event, us), look) in events.into_iter().zip(looks) {
                for news in [&mut all, &mut recent] {
                    match event {
                        0 => news.answered(Duration::from_micros(us)),
                        1 => news.sent(Duration::from_micros(us)),
                        _ => news.lost += 1,
                    }
                }
                if look {
                    sum.absorb(std::mem::take(&mut recent));
                }
            }
            sum.absorb(recent);
            prop_assert_eq!(sum, all);
        }
    }
}
