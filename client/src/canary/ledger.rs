//! What became of each probe (pure: takes the times).
//!
//! Owns: the probes under way of one kind to one target, and the tally of each stage. Invariant: a probe that was sent
//! ends as answered or as lost, exactly once; a slot that was not sent is neither. Two clocks: `Duration`s since the
//! canaries' start are monotonic; since the epoch they are CLOCK_REALTIME, the one the kernel stamps packets with.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::news::News;
use super::timeline::Stage;

/// An answer that takes longer is a loss.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// A stamp may lie outside what the monotonic clock allows by this much before it is taken for a step of the clock.
const CLOCK_SLACK: Duration = Duration::from_millis(1);

/// When a probe was sent, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) since_start: Duration,
    pub(super) since_epoch: Duration,
}

/// Figures of one stage.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// Slots in which the prober did not run, or had nothing to send with.
    pub(super) not_sent: u64,
    /// Of those answered, in nanoseconds.
    pub(super) rtt_ns: Histogram<u64>,
    /// From the intended to the real send, in nanoseconds.
    pub(super) lateness_ns: Histogram<u64>,
    /// Answers timed by the prober's own wake-up, for lack of a stamp of the kernel's or because the clock was set.
    pub(super) unstamped: u64,
    /// Connects tried as most programs do, without a bind.
    pub(super) unbound: u64,
    /// Those of them that found no port: every one that connect(2) may choose was bound.
    pub(super) unbound_without_port: u64,
}

impl Tally {
    fn new() -> anyhow::Result<Tally> {
        // Three digits up to an hour. Untouched buckets cost address space only.
        let histogram = || Histogram::new_with_max(3_600_000_000_000, 3);
        Ok(Tally {
            sent: 0,
            lost: 0,
            not_sent: 0,
            rtt_ns: histogram()?,
            lateness_ns: histogram()?,
            unstamped: 0,
            unbound: 0,
            unbound_without_port: 0,
        })
    }
}

#[derive(Debug)]
struct Flight {
    sent: Sent,
    stage: Stage,
}

/// The books of one kind of probe to one target.
#[derive(Debug)]
pub(super) struct Ledger {
    flights: BTreeMap<u64, Flight>,
    tallies: BTreeMap<Stage, Tally>,
    /// Since they were last taken.
    news: News,
    /// What the kernel said instead of an answer.
    pub(super) errors: BTreeMap<String, u64>,
    /// Answers to a probe that was answered, or given up, before.
    pub(super) duplicates: u64,
    /// What came that answers no probe of ours.
    pub(super) strangers: u64,
}

impl Ledger {
    pub(super) fn new() -> anyhow::Result<Ledger> {
        let tallies = Stage::all()
            .map(|stage| Ok((stage, Tally::new()?)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Ledger {
            flights: BTreeMap::new(),
            tallies,
            news: News::default(),
            errors: BTreeMap::new(),
            duplicates: 0,
            strangers: 0,
        })
    }

    pub(super) fn tally(&self, stage: Stage) -> &Tally {
        &self.tallies[&stage]
    }

    fn tally_mut(&mut self, stage: Stage) -> &mut Tally {
        self.tallies
            .get_mut(&stage)
            .unwrap_or_else(|| unreachable!("there is a tally of each stage"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    pub(super) fn missed(&mut self, stage: Stage) {
        self.tally_mut(stage).not_sent += 1;
        self.news.not_sent += 1;
    }

    /// A connect without a bind was tried.
    pub(super) fn unbound(&mut self, stage: Stage, has_port: bool) {
        let tally = self.tally_mut(stage);
        tally.unbound += 1;
        tally.unbound_without_port += u64::from(!has_port);
    }

    pub(super) fn sent(&mut self, seq: u64, stage: Stage, intended: Duration, sent: Sent) {
        let lateness = sent.since_start.saturating_sub(intended);
        let tally = self.tally_mut(stage);
        tally.sent += 1;
        tally.lateness_ns.saturating_record(nanos(lateness));
        self.news.sent(lateness);
        self.flights.insert(seq, Flight { sent, stage });
    }

    /// An answer, stamped by the kernel or not, seen at `now`.
    pub(super) fn answered(&mut self, seq: u64, stamp: Option<Duration>, now: Duration) {
        let Some(flight) = self.flights.remove(&seq) else {
            self.duplicates += 1;
            return;
        };
        let longest = now.saturating_sub(flight.sent.since_start);
        let stamped = stamp
            .and_then(|stamp| stamp.checked_sub(flight.sent.since_epoch))
            .filter(|rtt| *rtt <= longest + CLOCK_SLACK);
        let rtt = stamped.unwrap_or(longest);
        if rtt > PATIENCE {
            return self.lost(flight.stage);
        }
        self.news.answered(rtt);
        let tally = self.tally_mut(flight.stage);
        tally.unstamped += u64::from(stamped.is_none());
        tally.rtt_ns.saturating_record(nanos(rtt));
    }

    /// A probe met an error: it is lost.
    pub(super) fn failed(&mut self, seq: u64, error: &str) {
        if let Some(flight) = self.flights.remove(&seq) {
            self.lost(flight.stage);
            self.noted(error);
        }
    }

    /// An error that says not of which probe: that one will be given up in its time.
    pub(super) fn noted(&mut self, error: &str) {
        *self.errors.entry(error.into()).or_default() += 1;
    }

    /// When the oldest probe under way is given up.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let (_, oldest) = self.flights.first_key_value()?;
        Some(oldest.sent.since_start + PATIENCE)
    }

    /// Gives up what has waited too long. To be called only after all that has come was read: an answer that waits for
    /// a starved prober is no loss.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<u64> {
        let mut given_up = Vec::new();
        while self.next_expiry().is_some_and(|expiry| expiry < now)
            && let Some((seq, flight)) = self.flights.pop_first()
        {
            self.lost(flight.stage);
            given_up.push(seq);
        }
        given_up
    }

    fn lost(&mut self, stage: Stage) {
        self.tally_mut(stage).lost += 1;
        self.news.lost += 1;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH: Duration = Duration::from_secs(1_800_000_000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(since_start: Duration) -> Sent {
        Sent {
            since_start,
            since_epoch: EPOCH + since_start,
        }
    }

    fn near(histogram: &Histogram<u64>, expected: Duration) -> bool {
        histogram.max().abs_diff(nanos(expected)) <= nanos(expected) / 500
    }

    #[test]
    fn a_starved_prober_is_late_and_neither_the_answer_nor_its_time_suffers() {
        let mut ledger = Ledger::new().unwrap();
        ledger.sent(1, Stage::Ramp, ms(100), at(ms(400)));
        for _ in 0..14 {
            ledger.missed(Stage::Ramp);
        }
        // Looked at 22 s later; the kernel had the answer after 20 µs.
        let stamp = EPOCH + ms(400) + Duration::from_micros(20);
        ledger.answered(1, Some(stamp), ms(22_400));
        let tally = ledger.tally(Stage::Ramp);
        assert_eq!((tally.sent, tally.lost, tally.not_sent), (1, 0, 14));
        assert!(near(&tally.rtt_ns, Duration::from_micros(20)));
        assert!(near(&tally.lateness_ns, ms(300)));
    }

    #[test]
    fn loss_is_what_has_no_answer_within_the_patience() {
        let mut ledger = Ledger::new().unwrap();
        for seq in 0..4 {
            ledger.sent(seq, Stage::Hold, ms(seq), at(ms(seq)));
        }
        ledger.failed(1, "ECONNREFUSED");
        // In time, by its stamp; too late, by its stamp.
        ledger.answered(2, Some(EPOCH + ms(500)), ms(1_500));
        ledger.answered(3, Some(EPOCH + ms(1_100)), ms(1_500));
        assert_eq!(ledger.expire(ms(1_500)), [0]);
        ledger.answered(0, Some(EPOCH + ms(1_600)), ms(1_600));
        let tally = ledger.tally(Stage::Hold);
        assert_eq!((tally.sent, tally.lost, tally.rtt_ns.len()), (4, 3, 1));
        assert_eq!(ledger.errors["ECONNREFUSED"], 1);
        assert_eq!(ledger.duplicates, 1);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_clock_that_was_set_is_not_taken_for_a_round_trip() {
        let mut ledger = Ledger::new().unwrap();
        for (seq, stamp) in [(0, EPOCH - ms(5)), (1, EPOCH + ms(900))] {
            ledger.sent(seq, Stage::Hold, ms(0), at(ms(0)));
            ledger.answered(seq, Some(stamp), ms(3));
        }
        let tally = ledger.tally(Stage::Hold);
        assert_eq!((tally.unstamped, tally.rtt_ns.len()), (2, 2));
        assert!(near(&tally.rtt_ns, ms(3)));
    }

    proptest! {
        /// Whatever comes, in any order, each probe sent ends as answered or as lost.
        #[test]
        fn the_books_balance(events in prop::collection::vec((0_u8..4, 0_u64..40, 0_u64..3_000), 0..200)) {
            let mut ledger = Ledger::new().unwrap();
            let (mut now, mut next) = (ms(0), 0);
            for (event, seq, wait) in events {
                match event {
                    0 => {
                        ledger.sent(next, Stage::Ramp, now, at(now));
                        next += 1;
                    }
                    1 => ledger.answered(seq, Some(EPOCH + now), now),
                    2 => ledger.failed(seq, "EPERM"),
                    _ => {
                        now += ms(wait);
                        ledger.expire(now);
                    }
                }
            }
            ledger.expire(now + ms(2_000));
            let tally = ledger.tally(Stage::Ramp);
            prop_assert!(ledger.is_empty());
            prop_assert_eq!(tally.sent, next);
            prop_assert_eq!(tally.sent, tally.lost + tally.rtt_ns.len());
        }
    }
}
