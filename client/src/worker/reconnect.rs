//! A worker's lost connections, where they are made again: each waits, longer with every attempt that failed, and is then
//! connected by the assignment it had.
//!
//! Held: 24 bytes for each that waits, in [`Lost`]; the rest is in its `Conn`. Rate and concurrency of the ramp bound these
//! connects too.
//! Invariant: a connection with `LOST` waits, connects or closes until it is established again, or until no more is to be
//! held; each loss stays counted as one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::io;
use std::time::Duration;

use nix::libc;

use super::hold::Cause;
use super::{LONGEST_WAIT, Worker};
use crate::conn::{Flags, Phase};
use crate::counters;
use crate::dial::Failure;
use crate::latency::Kind;
use crate::verify::Verifier;

/// How often those are looked for that hear nothing: a pass over all connections.
const SILENCE_GRAIN: Duration = Duration::from_secs(1);

/// A connection without a heartbeat for so many intervals is lost.
const HEARTBEATS_MISSED: u32 = 3;

/// When which connection is to be made again.
#[derive(Debug, Default)]
pub(super) struct Lost {
    waiting: BinaryHeap<Reverse<(Duration, u32)>>,
}

impl Lost {
    fn push(&mut self, due: Duration, c: u32) {
        self.waiting.push(Reverse((due, c)));
    }

    fn due(&self) -> Option<Duration> {
        self.waiting.peek().map(|Reverse((due, _))| *due)
    }

    fn next(&mut self, now: Duration) -> Option<u32> {
        if self.due()? > now {
            return None;
        }
        self.waiting.pop().map(|Reverse((_, c))| c)
    }
}

impl Worker<'_> {
    fn makes_again(&self) -> bool {
        use counters::Phase::{Active, Hold, Quiet, Ramp};
        self.config.reconnect.is_some() && matches!(self.order.phase, Ramp | Quiet | Hold | Active)
    }

    /// Connection `c` is lost, as one that was of use or not; where lost ones are made again, it is to be, and owes what
    /// was under way by a schedule: a message, or a cycle.
    pub(super) fn let_come_back(
        &mut self,
        c: u32,
        was_of_use: bool,
        (message, cycle): (bool, bool),
    ) {
        if !self.makes_again() {
            return;
        }
        let conn = &mut self.conns[c as usize];
        conn.flags.set(Flags::LOST);
        conn.flags.set(Flags::RECONNECTS);
        conn.last_heartbeat_ms = self.now.as_millis() as u32;
        if was_of_use {
            conn.attempts = 0;
        }
        self.counts.owed += u64::from(message && !cycle && self.open_loop.is_some());
        self.counts.cycles_owed += u64::from(cycle && self.open_churn.is_some());
    }

    /// Connection `c`, of which nothing is left, waits for its next attempt.
    pub(super) fn back_off(&mut self, c: u32) {
        let Some(backoff) = self.config.reconnect else {
            return;
        };
        let conn = &mut self.conns[c as usize];
        conn.phase = Phase::Waiting;
        let random = self.random.hash_one((c, self.now));
        self.lost
            .push(self.now + backoff.delay(conn.attempts, random), c);
        conn.attempts = conn.attempts.saturating_add(1);
    }

    /// Connection `c` could not even have a socket: there is nothing to close.
    pub(super) fn has_no_socket(&mut self, c: u32) {
        let conn = &mut self.conns[c as usize];
        conn.phase = Phase::Gone;
        if conn.flags.take(Flags::RECONNECTS) {
            self.back_off(c);
        }
    }

    /// How long after `now` none needs to be made again.
    pub(super) fn wait_to_reconnect(&self, now: Duration) -> Duration {
        match self.lost.due() {
            Some(due) if self.makes_again() => match due.saturating_sub(now) {
                Duration::ZERO => self.pace.wait(self.connecting).unwrap_or(LONGEST_WAIT),
                wait => wait,
            },
            _ => LONGEST_WAIT,
        }
    }

    pub(super) fn reconnect_more(&mut self) -> io::Result<()> {
        if !self.makes_again() || self.lost.due().is_none_or(|due| due > self.now) {
            return Ok(());
        }
        let allowed = self.pace.allowance(self.now, self.connecting);
        for _ in 0..allowed.min(self.batch) {
            let Some(c) = self.lost.next(self.now) else {
                break;
            };
            self.pace.started(1);
            self.report.reconnects_attempted += 1;
            let dialled = self
                .origins
                .number(c)
                .ok_or(Failure::connect(libc::EADDRNOTAVAIL))
                .and_then(|number| self.dialler.dial(number));
            match dialled {
                Ok(dialled) => {
                    self.conns[c as usize].renew(Verifier::new(self.config.protocol));
                    self.connect(c, vec![dialled])?;
                }
                Err(failure) => {
                    self.is_not_back(c, failure);
                    self.has_no_socket(c);
                }
            }
        }
        Ok(())
    }

    /// Gives up those that hear nothing for too long, where lost ones are made again: who only listens would wait for ever. Not
    /// greeted within the time that a connect may take: the last part of a handshake may be lost at a full accept queue, and a
    /// server that speaks first never comes to hear of the connection then. No heartbeat for some intervals: the server may
    /// have gone, and its reset been lost on the way, since a reset is never sent again.
    pub(super) fn leave_silent(&mut self) -> io::Result<()> {
        if !self.makes_again() || self.now < self.next_look {
            return Ok(());
        }
        self.next_look = self.now + SILENCE_GRAIN;
        let now_ms = self.now.as_millis() as u32;
        let beats = self.awaits_heartbeats && !self.config.heartbeat.is_zero();
        for c in 0..self.conns.len() as u32 {
            let conn = &self.conns[c as usize];
            // What has come and is not read yet is no silence.
            if conn.phase != Phase::Held || conn.flags.has(Flags::RECV) {
                continue;
            }
            // Until the first heartbeat it is when it was established.
            let silence_ms = now_ms.wrapping_sub(conn.last_heartbeat_ms);
            let silence = Duration::from_millis(silence_ms.into());
            if !conn.verifier.is_greeted() && silence > self.config.connect_timeout {
                self.lose(c, Cause::Mute)?;
            } else if beats && silence > self.config.heartbeat * HEARTBEATS_MISSED {
                self.lose(c, Cause::Silent)?;
            }
        }
        Ok(())
    }

    /// Connection `c` is established again.
    pub(super) fn is_back(&mut self, c: u32) -> io::Result<()> {
        let now_ms = self.now.as_millis() as u32;
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::LOST);
        let missing_ms = now_ms.wrapping_sub(conn.last_heartbeat_ms);
        conn.last_heartbeat_ms = now_ms;
        let missing = Duration::from_millis(missing_ms.into());
        self.recorder.record(Kind::Without, missing);
        self.counts.reconnected += 1;
        self.report.established_max = self.report.established_max.max(self.counts.live());
        self.poll(c)?;
        self.go_on(c)
    }

    /// An attempt to make connection `c` again has failed.
    pub(super) fn is_not_back(&mut self, c: u32, failure: Failure) {
        let Failure { step, errno, .. } = failure;
        *self
            .report
            .reconnects_failed
            .entry((step, errno))
            .or_default() += 1;
        if errno == libc::EADDRNOTAVAIL || errno == libc::EADDRINUSE {
            // Taken meanwhile, or in TIME_WAIT: by another one the next time.
            self.dialler.collisions += 1;
            if let Some(spare) = self.dialler.spare() {
                self.origins.remember(c, spare);
            }
        }
        if self.makes_again() {
            self.conns[c as usize].flags.set(Flags::RECONNECTS);
        }
    }
}
