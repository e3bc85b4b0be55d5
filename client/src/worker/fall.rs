//! A worker's ramp down: its connections are closed one after the other, in the order in which they were made, as the
//! order's leg falls.
//!
//! Invariant: the `fallen` first connections were closed, or were there no more when their turn came.

use std::io;
use std::time::Duration;

use super::{LONGEST_WAIT, Worker};
use crate::conn::{Flags, Phase};
use crate::counters;
use crate::shape;

/// The most closes begun in one turn. Each takes two or three operations.
const CLOSES: u32 = 256;

impl Worker<'_> {
    pub(super) fn close_more(&mut self) -> io::Result<()> {
        let mut allowed = CLOSES;
        while allowed > 0 && self.has_more_to_close(self.now) {
            let c = self.fallen;
            self.fallen += 1;
            let conn = &mut self.conns[c as usize];
            let is_between_cycles = conn.flags.has(Flags::CYCLING)
                && matches!(conn.phase, Phase::Waiting | Phase::Ending | Phase::Closing);
            if conn.phase == Phase::Held {
                allowed -= 1;
                self.counts.closed += 1;
                self.last_look(c);
                self.end(c)?;
            } else if is_between_cycles {
                self.counts.closed += 1;
                conn.flags.take(Flags::RECONNECTS);
            }
        }
        Ok(())
    }

    /// Whether all are closed.
    pub(super) fn has_fallen(&self) -> bool {
        self.fallen as usize == self.conns.len() && self.ending == 0
    }

    /// How long after `now` none needs to be closed.
    pub(super) fn wait_to_close(&self, now: Duration) -> Duration {
        if self.order.phase != counters::Phase::RampDown || self.fallen as usize == self.conns.len()
        {
            return LONGEST_WAIT;
        }
        if self.has_more_to_close(now) {
            return Duration::ZERO;
        }
        let (number, workers) = self.number;
        let left = self.share(self.order.leg.from) - u64::from(self.fallen);
        let next = shape::level_of(left, number, workers).saturating_sub(1);
        self.order.leg.when(next).map_or(LONGEST_WAIT, |when| {
            (self.order.began + when).saturating_sub(now)
        })
    }

    fn has_more_to_close(&self, now: Duration) -> bool {
        let left = self.share(self.order.level(now));
        let asked = self.share(self.order.leg.from) - left;
        u64::from(self.fallen) < asked.min(self.conns.len() as u64)
    }
}
