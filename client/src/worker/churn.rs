//! A worker's churn: connections that are closed, made again from the same address and port, and exchange one message,
//! again and again.
//!
//! A turn of one: held → cancel, join, `Close` (a reset) → submitted, so the socket is gone and its port free → a new
//! socket in the same slot, under the next generation → `Connect` → greeting → message → echo.
//! Invariant: a cycle begins with its connect and is one of `outstanding` until its echo, its failure or its loss.
//! A connection whose cycle came to nothing does not try again: it is counted as lost.

use std::io;
use std::time::Duration;

use nix::libc;

use super::{Worker, record};
use crate::conn::{Flags, Phase};
use crate::dial::{self, Failure};
use crate::verify::Verifier;

impl Worker<'_> {
    /// Lets every churning connection that is held begin.
    pub(super) fn begin_churn(&mut self) {
        if self.config.churn == 0 {
            return;
        }
        let churning = (0..self.conns.len() as u32).filter(|c| {
            let conn = &self.conns[*c as usize];
            conn.phase == Phase::Held && conn.flags.has(Flags::CHURNS)
        });
        let before = self.starters.len();
        self.starters.extend(churning);
        self.report.churning += (self.starters.len() - before) as u64;
    }

    /// The next step of a churning connection that is free.
    pub(super) fn churn_on(&mut self, c: u32) -> io::Result<()> {
        let may_reconnect = self.is_exchanging();
        let conn = &mut self.conns[c as usize];
        match conn.flags.has(Flags::CYCLING) {
            true => self.send(c),
            false if may_reconnect => {
                conn.flags.set(Flags::RECONNECTS);
                self.terminate(c)
            }
            false => Ok(()),
        }
    }

    /// The echo has come: the cycle is complete.
    pub(super) fn cycled(&mut self, c: u32) {
        let now_us = self.now.as_micros() as u32;
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::AWAITS);
        conn.flags.take(Flags::CYCLING);
        conn.message = conn.message.wrapping_add(1);
        let time = Duration::from_micros(now_us.wrapping_sub(conn.since_us).into());
        record(&mut self.report.cycle, time);
        self.timed(time);
        self.counts.outstanding -= 1;
        self.counts.cycles += 1;
    }

    /// The closes that this enter has submitted are done: a close of a direct descriptor does not wait.
    pub(super) fn closes_submitted(&mut self) {
        self.closed.extend(self.closing.drain(..));
    }

    /// True when there is something for [`Worker::reconnect`], now or after the next enter.
    pub(super) fn has_more_to_reconnect(&self) -> bool {
        !self.closing.is_empty() || !self.closed.is_empty()
    }

    /// Begins the next cycle of those that are closed.
    pub(super) fn reconnect(&mut self) -> io::Result<()> {
        for _ in 0..self.batch {
            let Some(c) = self.closed.pop_front() else {
                break;
            };
            match dial::dial(self.churners.assignment(c)) {
                Ok(dialled) => {
                    let conn = &mut self.conns[c as usize];
                    conn.renew(Verifier::new(self.config.protocol));
                    conn.flags.set(Flags::CYCLING);
                    self.counts.outstanding += 1;
                    self.connect(c, vec![dialled])?;
                }
                Err(failure) => {
                    self.conns[c as usize].phase = Phase::Gone;
                    self.not_reconnected(failure);
                }
            }
        }
        Ok(())
    }

    /// There is no connection for a cycle.
    pub(super) fn not_reconnected(&mut self, failure: Failure) {
        let Failure { step, errno, .. } = failure;
        *self.report.churn_failed.entry((step, errno)).or_default() += 1;
        *self
            .report
            .lost
            .entry("not reconnected".into())
            .or_default() += 1;
        self.counts.lost += 1;
        // It served before.
        self.counts.dropped += u64::from(errno == libc::ECONNREFUSED);
    }
}
