//! Which connections have been silent for too long, or have taken nothing of what waits for them.
//!
//! Pure: takes `now`. A connection keeps one byte, the [`Tick`] at which something was last received from it; output
//! that waits knows by itself since when. A cursor sweeps the slots of all tables once a period, and the engine puts
//! each connection it passes before the [`Rules`].
//!
//! Invariant: nobody is closed before the timeout on the worker's clock, which is read once a turn, and everybody at
//! most a twentieth of the timeout, or a second where that is more, after it, as long as the worker's turns come in time.

use std::ops::Range;
use std::time::Duration;

use crate::schedule::Walk;
use crate::stats::CloseReason;

/// For how long a peer may leave a connection alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Nothing was received for so long. While output waits for the peer, the write timeout counts instead, where
    /// there is one.
    pub idle: Option<Duration>,
    /// Output waited for so long and the socket took none of it, as its buffer is full of what the peer did not take.
    pub write: Option<Duration>,
}

impl Default for Timeouts {
    /// Silence is no fault; a peer that takes nothing for 60 s is given up, as nginx (`send_timeout`) and Apache
    /// (`TimeOut`) have it.
    fn default() -> Self {
        Timeouts {
            idle: None,
            write: Some(Duration::from_secs(60)),
        }
    }
}

/// Coarse time, in 64ths of the idle timeout. It wraps after four timeouts, or more where they are short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(u8);

impl Tick {
    const MOST_PER_TIMEOUT: u64 = 64;
    /// So that several periods pass before it wraps.
    const MIN_NS: u64 = 8_000_000;
}

/// What is too long, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    now: Tick,
    /// The idle timeout.
    idle_ticks: Option<u8>,
    write_ms: Option<u32>,
}

impl Rules {
    /// Why a connection is to be closed that was `heard` last then, and whose output, where some waits, has not moved
    /// for `stalled_ms`.
    pub fn verdict(&self, heard: Tick, stalled_ms: Option<u32>) -> Option<CloseReason> {
        if let (Some(stalled_ms), Some(write_ms)) = (stalled_ms, self.write_ms) {
            return (stalled_ms > write_ms).then_some(CloseReason::WriteTimeout);
        }
        // The tick it was heard in may have been almost over: that many more have to pass in full. An age that wrapped
        // is too small, so that it closes late and never early.
        let silent_ticks = self.now.0.wrapping_sub(heard.0);
        (silent_ticks > self.idle_ticks?).then_some(CloseReason::IdleTimeout)
    }
}

/// The cursor over the slots of all tables of a worker.
#[derive(Debug)]
pub struct Sweep {
    /// The idle timeout, and a tick, in ns.
    idle: Option<(u64, u64)>,
    write_ms: Option<u32>,
    /// In which every slot is passed once.
    period_ns: u64,
    walk: Walk,
    /// Nothing is due before this.
    look_at_ns: u64,
}

impl Sweep {
    const MIN_PERIOD_NS: u64 = 250_000_000;
    /// How many times in a period it moves on.
    const STEPS: u64 = 8;
    /// Slots passed in one turn: what has come has its turn again before the next.
    pub const MOST_SLOTS: u32 = 8192;

    /// Of a worker whose clock says `now_ns`.
    pub fn new(timeouts: Timeouts, now_ns: u64) -> Sweep {
        let shortest = [timeouts.idle, timeouts.write].into_iter().flatten().min();
        let period_ns = shortest.map_or(0, |t| t.as_nanos() as u64 / 40);
        let idle_ns = timeouts.idle.map(|idle| idle.as_nanos() as u64);
        let tick_ns = |idle_ns: u64| idle_ns.div_ceil(Tick::MOST_PER_TIMEOUT).max(Tick::MIN_NS);
        Sweep {
            idle: idle_ns.map(|idle_ns| (idle_ns, tick_ns(idle_ns))),
            write_ms: timeouts
                .write
                .map(|write| u32::try_from(write.as_millis()).unwrap_or(u32::MAX)),
            period_ns: period_ns.max(Self::MIN_PERIOD_NS),
            walk: Walk::new([], 0, now_ns),
            look_at_ns: now_ns,
        }
    }

    /// What a connection remembers that is heard at `now_ns`.
    pub fn tick(&self, now_ns: u64) -> Tick {
        Tick(self.idle.map_or(0, |(_, tick_ns)| now_ns / tick_ns) as u8)
    }

    /// For how long whoever was `heard` last then has been silent at `now_ns`, at least. None without an idle timeout.
    pub fn silent_ms(&self, heard: Tick, now_ns: u64) -> Option<u64> {
        let (_, tick_ns) = self.idle?;
        let ticks = u64::from(self.tick(now_ns).0.wrapping_sub(heard.0));
        // The tick it was heard in may have been almost over.
        Some(ticks.saturating_sub(1) * tick_ns / 1_000_000)
    }

    /// What is too long at `now_ns`.
    pub fn rules(&self, now_ns: u64) -> Rules {
        Rules {
            now: self.tick(now_ns),
            // At most 64.
            idle_ticks: self
                .idle
                .map(|(idle_ns, tick_ns)| idle_ns.div_ceil(tick_ns) as u8),
            write_ms: self.write_ms,
        }
    }

    /// The table, and slots of it, to look at now: at most [`Sweep::MOST_SLOTS`], to be asked for once a turn. None
    /// when it is not time, or there is nothing to be found: no idle timeout, and no output that `waits`. A period's
    /// slots are those that `high_waters` gives for each table when it begins.
    pub fn next<T: IntoIterator<Item = u32>>(
        &mut self,
        now_ns: u64,
        waits: impl Fn() -> bool,
        high_waters: impl Fn() -> T,
    ) -> Option<(usize, Range<u32>)> {
        if now_ns < self.look_at_ns || !self.has_aim(waits) {
            return None;
        }
        let passed = self.walk.next_range(now_ns, Self::MOST_SLOTS);
        if passed.is_none() {
            if self.walk.is_done() {
                self.walk = Walk::new(high_waters(), self.period_ns, now_ns);
            }
            self.look_at_ns = now_ns + self.period_ns / Self::STEPS;
        }
        passed
    }

    /// When to ask [`Sweep::next`] again. None while there is nothing to be found.
    pub fn next_due_ns(&self, waits: impl Fn() -> bool) -> Option<u64> {
        self.has_aim(waits).then_some(self.look_at_ns)
    }

    fn has_aim(&self, waits: impl Fn() -> bool) -> bool {
        self.idle.is_some() || (self.write_ms.is_some() && waits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn idle(timeout_ms: u64) -> Timeouts {
        Timeouts {
            idle: Some(Duration::from_millis(timeout_ms)),
            write: None,
        }
    }

    /// How late a connection may be closed.
    fn slack_ns(timeout_ms: u64) -> u64 {
        (timeout_ms * MS / 20).max(1_000 * MS)
    }

    #[test]
    fn without_timeouts_nothing_is_swept() {
        let none = Timeouts {
            idle: None,
            write: None,
        };
        let mut sweep = Sweep::new(none, 0);
        assert_eq!(sweep.next(u64::MAX, || true, || [5]), None);
        assert_eq!(sweep.next_due_ns(|| true), None);
        assert_eq!(sweep.rules(u64::MAX).verdict(Tick(1), Some(u32::MAX)), None);
    }

    #[test]
    fn a_write_timeout_sweeps_only_while_output_waits() {
        let mut sweep = Sweep::new(Timeouts::default(), 0);
        assert_eq!(sweep.next(9_000 * MS, || false, || [5]), None);
        assert_eq!(sweep.next_due_ns(|| false), None);
        assert!(
            sweep
                .next_due_ns(|| true)
                .is_some_and(|due| due <= 9_000 * MS)
        );
        let rules = sweep.rules(0);
        assert_eq!(rules.verdict(Tick(0), Some(60_000)), None);
        assert_eq!(
            rules.verdict(Tick(0), Some(60_001)),
            Some(CloseReason::WriteTimeout)
        );
        assert_eq!(rules.verdict(Tick(1), None), None);
    }

    #[test]
    fn while_output_waits_the_write_timeout_counts() {
        let both = Timeouts {
            write: Some(Duration::from_secs(5)),
            ..idle(1_000)
        };
        let (sweep, late) = (Sweep::new(both, 0), 2_000 * MS);
        let heard = sweep.tick(0);
        assert_eq!(sweep.rules(late).verdict(heard, Some(4_000)), None);
        let silent = Some(CloseReason::IdleTimeout);
        assert_eq!(sweep.rules(late).verdict(heard, None), silent);
        // Without one, silence counts all the same.
        let rules = Sweep::new(idle(1_000), 0).rules(late);
        assert_eq!(rules.verdict(heard, Some(4_000)), silent);
    }

    proptest! {
        /// Whatever the ticks: silence is never seen early, and once seen it is for as long as the tick does not wrap.
        #[test]
        fn silence_is_never_seen_early(
            timeout_ms in 10u64..100_000,
            heard_ns in 0u64..1 << 50,
            since in 0.0f64..20.0,
        ) {
            let sweep = Sweep::new(idle(timeout_ms), 0);
            let timeout_ns = timeout_ms * MS;
            let now_ns = heard_ns + (timeout_ns as f64 * since) as u64;
            let verdict = sweep.rules(now_ns).verdict(sweep.tick(heard_ns), None);
            if now_ns - heard_ns < timeout_ns {
                prop_assert_eq!(verdict, None);
            } else if timeout_ms > 512 && (1.0 + 1.1 / 64.0..3.9).contains(&since) {
                prop_assert_eq!(verdict, Some(CloseReason::IdleTimeout));
            }
        }

        /// Connections that come, talk and fall silent when they like, over many wraps of the tick: each is closed once it
        /// was silent for the timeout, and soon after.
        #[test]
        fn the_silent_go_in_time_and_the_talking_stay(
            timeout_ms in prop_oneof![10u64..500, 500u64..60_000],
            tables in proptest::collection::vec(1u32..40, 1..5),
            talk in proptest::collection::vec((0usize..160, 0.0f64..20.0), 0..200),
        ) {
            let (timeout_ns, turn_ns) = (timeout_ms * MS, (timeout_ms * MS / 100).min(20 * MS));
            let mut sweep = Sweep::new(idle(timeout_ms), 0);
            // Of each slot: when it was heard last, in both measures. None once it is closed.
            let mut slots: Vec<Vec<Option<(u64, Tick)>>> =
                tables.iter().map(|n| vec![Some((0, sweep.tick(0))); *n as usize]).collect();
            let mut talk: Vec<(usize, u64)> =
                talk.into_iter().map(|(who, at)| (who, (timeout_ns as f64 * at) as u64)).collect();
            talk.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
            let mut now_ns = 0;
            while slots.iter().flatten().any(Option::is_some) {
                let next = sweep.next_due_ns(|| false).unwrap_or(0).max(now_ns);
                let next = talk.last().map_or(next, |(_, at)| next.min((*at).max(now_ns)));
                now_ns = next + turn_ns;
                while let Some((who, _)) = talk.pop_if(|(_, at)| *at <= now_ns) {
                    let table = who % slots.len();
                    let slot = who / slots.len() % slots[table].len();
                    slots[table][slot] = Some((now_ns, sweep.tick(now_ns)));
                }
                while let Some((table, range)) = sweep.next(now_ns, || false, || tables.clone()) {
                    for slot in range {
                        let this = &mut slots[table][slot as usize];
                        let Some((heard_ns, heard)) = *this else { continue };
                        let silent_ns = now_ns - heard_ns;
                        if sweep.rules(now_ns).verdict(heard, None).is_some() {
                            prop_assert!(silent_ns >= timeout_ns, "{silent_ns} is early");
                            *this = None;
                        } else {
                            let bound = timeout_ns + slack_ns(timeout_ms);
                            prop_assert!(silent_ns <= bound, "{silent_ns} is over {bound}");
                        }
                    }
                }
                let bound = timeout_ns + slack_ns(timeout_ms) + 3 * turn_ns;
                for (heard_ns, _) in slots.iter().flatten().flatten() {
                    prop_assert!(now_ns - heard_ns <= bound, "{} is over {bound}", now_ns - heard_ns);
                }
            }
        }

        /// A worker that was held up passes every slot all the same, a bounded number in a turn.
        #[test]
        fn a_late_sweep_is_cut_into_turns(tables in proptest::collection::vec(0u32..30_000, 1..6)) {
            let mut sweep = Sweep::new(idle(1_000), 0);
            prop_assert_eq!(sweep.next(0, || false, || tables.clone()), None);
            let mut passed = vec![0; tables.len()];
            while let Some((table, range)) = sweep.next(3_600_000 * MS, || false, || tables.clone()) {
                prop_assert!(range.len() as u32 <= Sweep::MOST_SLOTS);
                prop_assert_eq!(range.start, passed[table]);
                passed[table] = range.end;
            }
            prop_assert_eq!(passed, tables);
        }
    }
}
