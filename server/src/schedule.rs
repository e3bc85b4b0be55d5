//! What comes to every connection, for millions of them at no bytes each: heartbeats and broadcasts.
//!
//! Pure: takes `now`. A heartbeat's phase: a slot's phase within the interval is its number with the bits reversed, so
//! that any number of connections, filled into slots from 0 upwards, is spread evenly over the interval (the van
//! der Corput sequence). A cursor runs through the phases once an interval and names the slots as they come due.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::worker::Message;

/// How far apart wake-ups for what is due are at least.
pub const STEP_NS: u64 = 1_000_000;

/// Names the slots of one table whose heartbeat is due.
#[derive(Debug)]
pub struct Heartbeats {
    interval_ns: u64,
    bits: u32,
    started_ns: u64,
    /// Phases passed since the start.
    passed: u64,
}

impl Heartbeats {
    /// A heartbeat every `interval_ns` (above 0) for each of `slots` slots, from `now_ns` on.
    pub fn new(interval_ns: u64, slots: u32, now_ns: u64) -> Heartbeats {
        Heartbeats {
            interval_ns: interval_ns.max(1),
            bits: slots.max(2).next_power_of_two().trailing_zeros(),
            started_ns: now_ns,
            passed: 0,
        }
    }

    /// The next slot below `high_water` that is due at `now_ns`, with how late that is in ns. None when
    /// all that is due has been named.
    pub fn next(&mut self, now_ns: u64, high_water: u32) -> Option<(u32, u64)> {
        let due = self.phases_by(now_ns);
        while self.passed < due {
            let (slot, at) = (self.slot(self.passed), self.due_ns(self.passed));
            self.passed += 1;
            if slot < high_water {
                return Some((slot, now_ns.saturating_sub(at)));
            }
        }
        None
    }

    /// When the next slot below `high_water` is due. None when there is no slot.
    pub fn next_due_ns(&self, high_water: u32) -> Option<u64> {
        if high_water == 0 {
            return None;
        }
        // Slots below 2^k have the phases that 2^(bits-k) divides. With 2^(k-1) <= high_water < 2^k every second
        // of these at the latest is a slot that is wanted.
        let k = (high_water.ilog2() + 1).min(self.bits);
        let step = 1 << (self.bits - k);
        (self.passed.next_multiple_of(step)..)
            .step_by(step as usize)
            .find(|phase| self.slot(*phase) < high_water)
            .map(|phase| self.due_ns(phase))
    }

    fn slot(&self, phase: u64) -> u32 {
        (phase as u32).reverse_bits() >> (32 - self.bits)
    }

    fn due_ns(&self, phase: u64) -> u64 {
        let elapsed = (u128::from(phase) * u128::from(self.interval_ns)) >> self.bits;
        self.started_ns + elapsed as u64
    }

    fn phases_by(&self, now_ns: u64) -> u64 {
        let elapsed = now_ns.saturating_sub(self.started_ns);
        let phases = (u128::from(elapsed) << self.bits) / u128::from(self.interval_ns);
        phases as u64 + 1
    }
}

/// Walks past every slot of every table, at once or evenly over a given time.
#[derive(Debug)]
pub struct Walk {
    started_ns: u64,
    over_ns: u64,
    /// Slots of each table when the walk began, and how many there are before it.
    tables: Vec<(u64, u32)>,
    total: u64,
    passed: u64,
    table: usize,
}

impl Walk {
    /// Past the slots below `high_waters[table]` of each table, from `now_ns` on, within `over_ns`.
    pub fn new(high_waters: impl IntoIterator<Item = u32>, over_ns: u64, now_ns: u64) -> Walk {
        let mut total = 0;
        let tables = high_waters
            .into_iter()
            .map(|slots| {
                let before = total;
                total += u64::from(slots);
                (before, slots)
            })
            .collect();
        Walk {
            started_ns: now_ns,
            over_ns,
            tables,
            total,
            passed: 0,
            table: 0,
        }
    }

    /// The next table and slot that is due at `now_ns`. None when nothing is.
    pub fn next(&mut self, now_ns: u64) -> Option<(usize, u32)> {
        let (table, slots) = self.next_range(now_ns, 1)?;
        Some((table, slots.start))
    }

    /// The next table, and up to `most` slots of it, that are due at `now_ns`. None when nothing is.
    pub fn next_range(&mut self, now_ns: u64, most: u32) -> Option<(usize, Range<u32>)> {
        let due = match now_ns.saturating_sub(self.started_ns) {
            elapsed if elapsed >= self.over_ns => self.total,
            elapsed => {
                let part = u128::from(self.total) * u128::from(elapsed) / u128::from(self.over_ns);
                part as u64
            }
        };
        if self.passed >= due {
            return None;
        }
        while self.tables[self.table].0 + u64::from(self.tables[self.table].1) <= self.passed {
            self.table += 1;
        }
        let (before, slots) = self.tables[self.table];
        let first = (self.passed - before) as u32;
        let due = (due - self.passed).min(most.into()) as u32;
        let past = slots.min(first + due);
        self.passed += u64::from(past - first);
        Some((self.table, first..past))
    }

    /// All slots have been passed.
    pub fn is_done(&self) -> bool {
        self.passed >= self.total
    }
}

/// Published messages on their way past the slots, oldest first, one after the other.
#[derive(Debug, Default)]
pub struct Published {
    /// The first of them walks.
    queue: VecDeque<(Arc<Message>, Option<Walk>)>,
}

impl Published {
    /// One message more, behind the others.
    pub fn push(&mut self, message: Arc<Message>) {
        self.queue.push_back((message, None));
    }

    /// The last message: those before it are given at once, so that none of them, spread over a long time, keeps it until the
    /// connections have gone.
    pub fn end_with(&mut self, last: Option<Arc<Message>>) {
        for (message, walk) in &mut self.queue {
            *message = Arc::new(Message {
                bytes: message.bytes.clone(),
                over: Duration::ZERO,
            });
            if let Some(walk) = walk {
                walk.over_ns = 0;
            }
        }
        self.queue.extend(last.map(|message| (message, None)));
    }

    /// No message is on its way.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The next message, table and slot that are due at `now_ns`. None when nothing is. A message passes the slots
    /// that `high_waters` gives for each table when its turn comes.
    pub fn next<T: IntoIterator<Item = u32>>(
        &mut self,
        now_ns: u64,
        high_waters: impl Fn() -> T,
    ) -> Option<(Arc<Message>, usize, u32)> {
        loop {
            let (message, walk) = self.queue.front_mut()?;
            let walk = walk.get_or_insert_with(|| {
                Walk::new(high_waters(), message.over.as_nanos() as u64, now_ns)
            });
            if !walk.is_done() {
                let (table, slot) = walk.next(now_ns)?;
                return Some((Arc::clone(message), table, slot));
            }
            self.queue.pop_front();
        }
    }

    /// When to look again. None when no message is on its way.
    pub fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        let (message, _) = self.queue.front()?;
        Some(match message.over.is_zero() {
            true => now_ns,
            false => now_ns + STEP_NS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_message_is_not_kept_by_one_that_takes_its_time() {
        const S: u64 = 1_000_000_000;
        let message = |text: &str, seconds| {
            Arc::new(Message {
                bytes: text.as_bytes().to_vec(),
                over: Duration::from_secs(seconds),
            })
        };
        let mut published = Published::default();
        published.push(message("slow", 60));
        published.push(message("slower", 600));
        let high_waters = || [10];
        assert!(published.next(0, high_waters).is_none());
        assert!(published.next(7 * S, high_waters).is_some());
        published.end_with(Some(message("bye", 2)));
        let mut given = Vec::new();
        while let Some((message, _, slot)) = published.next(7 * S, high_waters) {
            given.push((String::from_utf8_lossy(&message.bytes).into_owned(), slot));
        }
        let rest = (1..10).map(|slot| ("slow".to_owned(), slot));
        let expected: Vec<_> = rest
            .chain((0..10).map(|slot| ("slower".to_owned(), slot)))
            .collect();
        assert_eq!(given, expected);
        let last = published
            .next(8 * S, high_waters)
            .map(|(message, ..)| message.bytes.clone());
        assert_eq!(last.as_deref(), Some(&b"bye"[..]));
    }

    proptest! {
        /// Each slot of each table once, in order, evenly, and all of them by the end of the time.
        #[test]
        fn a_walk_passes_every_slot_once(
            tables in proptest::collection::vec(0u32..50, 0..6),
            over in 0u64..10_000,
            looks in proptest::collection::vec(1u64..3_000, 0..20),
            most in 1u32..60,
        ) {
            let mut walk = Walk::new(tables.clone(), over, 7);
            let total: u32 = tables.iter().sum();
            let (mut now, mut passed) = (7, Vec::new());
            for step in looks.into_iter().chain([over + 1]) {
                now += step;
                while let Some((table, slots)) = walk.next_range(now, most) {
                    prop_assert!((1..=most as usize).contains(&slots.len()));
                    passed.extend(slots.map(|slot| (table, slot)));
                }
                let share = u64::from(total) * (now - 7).min(over) / over.max(1);
                prop_assert!(over == 0 || passed.len() as u64 == share);
            }
            prop_assert!(walk.is_done());
            let all: Vec<_> = tables.iter().enumerate().flat_map(|(t, n)| (0..*n).map(move |s| (t, s))).collect();
            prop_assert_eq!(passed, all);
        }

        /// Each slot once an interval, whatever the moments at which one looks.
        #[test]
        fn every_slot_beats_once_an_interval(
            slots in 1u32..200,
            interval in 1_000u64..1_000_000,
            looks in proptest::collection::vec(1u64..200_000, 1..60),
        ) {
            let mut heartbeats = Heartbeats::new(interval, slots, 5_000);
            let mut now = 5_000;
            let mut beats = vec![0u64; slots as usize];
            for step in looks {
                for high_water in 1..=slots {
                    let slow = (heartbeats.passed..).find(|phase| heartbeats.slot(*phase) < high_water);
                    prop_assert_eq!(heartbeats.next_due_ns(high_water), slow.map(|phase| heartbeats.due_ns(phase)));
                }
                now += step;
                while let Some((slot, late)) = heartbeats.next(now, slots) {
                    prop_assert!(late <= now - 5_000);
                    beats[slot as usize] += 1;
                }
                let elapsed = (now - 5_000) / interval;
                for count in &beats {
                    prop_assert!((elapsed..=elapsed + 1).contains(count), "{count} beats in {elapsed} intervals");
                }
            }
        }

        /// However many connections there are, no tenth of the interval has much more than its tenth of them.
        #[test]
        fn phases_are_even(slots_log2 in 4u32..14, part in 1u32..=16) {
            let slots = 1 << slots_log2;
            let high_water = (slots * part / 16).max(1);
            let mut heartbeats = Heartbeats::new(1_000_000, slots, 0);
            let mut tenths = Vec::new();
            for tenth in 1..=10u64 {
                let mut count = 0;
                while heartbeats.next(tenth * 100_000 - 1, high_water).is_some() { count += 1; }
                tenths.push(count);
            }
            prop_assert_eq!(tenths.iter().sum::<u32>(), high_water);
            let bound = high_water / 10 + 2 * slots_log2 + 2;
            prop_assert!(tenths.iter().all(|c| *c <= bound), "{tenths:?} of {high_water}");
        }
    }
}
