//! A worker's churn: connections that are closed, made again, and exchange one message, again and again, each as soon as its
//! cycle is complete, or by a schedule.
//!
//! A turn of one: held → (for an orderly close `Shutdown`, and the server's end) → cancel, join, `Close` → submitted, so the socket is gone, and after a reset its port is free (after
//! an orderly close it is in TIME_WAIT, and another one is taken) → a new socket in the same slot, under the next
//! generation → `Connect` → greeting → message → echo.
//! Invariant: a cycle begins with the close of the one before and is one of `outstanding` until its echo, its failure or its
//! loss. A connection whose cycle came to nothing is counted as lost, and churns again only where lost ones are made again.
//! By a schedule, each cycle that has fallen due was begun or is counted as owed.

use std::io;
use std::time::Duration;

use nix::libc;

use super::messages::OpenLoop;
use super::{BATCH, Worker};
use crate::config::Close;
use crate::conn::{Flags, Phase};
use crate::dial::Failure;
use crate::latency::Kind;
use crate::verify::Verifier;

impl Worker<'_> {
    /// Lets every churning connection that is held begin, or fall due.
    pub(super) fn begin_churn(&mut self) {
        if self.config.churn == 0 {
            return;
        }
        let churning = (0..self.conns.len() as u32).filter(|c| {
            let conn = &self.conns[*c as usize];
            conn.phase == Phase::Held && conn.flags.has(Flags::CHURNS)
        });
        let churning: Vec<u32> = churning.collect();
        self.report.churning += churning.len() as u64;
        match self.config.churn_rate {
            None => self.starters.extend(churning),
            Some(_) if churning.is_empty() => {}
            Some(rate) => {
                // By churning connections, so that the interval is the same on all workers.
                let of_worker = self.churners.rank(self.share(self.config.connections));
                let rate = rate * of_worker as f64 / self.config.churn as f64;
                let start = self.shared.start.elapsed();
                self.open_churn = Some(OpenLoop::new(&mut self.conns, churning, start, rate));
            }
        }
    }

    /// Begins the cycles that have fallen due.
    pub(super) fn begin_due_cycles(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(open) = &mut self.open_churn else {
                break;
            };
            let now = self.shared.start.elapsed();
            let Some((c, late)) = open.next(now) else {
                break;
            };
            // Whether or not it can begin: a client that comes late to its schedule must show.
            self.recorder.record(Kind::CycleLate, late);
            let conn = &self.conns[c as usize];
            match conn.is_free() && !conn.flags.has(Flags::CYCLING) {
                true => self.begin_cycle(c)?,
                false => self.counts.cycles_owed += 1,
            }
        }
        Ok(())
    }

    /// The next step of a churning connection that is free.
    pub(super) fn churn_on(&mut self, c: u32) -> io::Result<()> {
        let conn = &self.conns[c as usize];
        if conn.flags.has(Flags::CYCLING) {
            return self.send(c);
        }
        if !self.is_exchanging() {
            return Ok(());
        }
        if let Some(open) = &self.open_churn {
            let is_member = conn.flags.has(Flags::ACTIVE);
            if !is_member || !open.schedule.is_due(conn.member, conn.message) {
                return Ok(());
            }
            self.counts.cycles_owed -= 1;
        }
        self.begin_cycle(c)
    }

    fn begin_cycle(&mut self, c: u32) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.set(Flags::CYCLING);
        conn.flags.set(Flags::RECONNECTS);
        self.counts.outstanding += 1;
        self.end(c)
    }

    /// The echo has come: the cycle is complete.
    pub(super) fn cycled(&mut self, c: u32) {
        let now_us = self.now.as_micros() as u32;
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::AWAITS);
        conn.flags.take(Flags::CYCLING);
        let from_connect = Duration::from_micros(now_us.wrapping_sub(conn.since_us).into());
        let time = match &self.open_churn {
            None => from_connect,
            Some(open) => {
                self.recorder.record(Kind::CycleRaw, from_connect);
                let intended = open.schedule.intended(conn.member, conn.message);
                self.now.saturating_sub(intended)
            }
        };
        conn.message = conn.message.wrapping_add(1);
        self.timed(Kind::Cycle, time);
        self.counts.outstanding -= 1;
        self.counts.cycles += 1;
    }

    /// The closes that this enter has submitted are done: a close of a direct descriptor does not wait.
    pub(super) fn closes_submitted(&mut self) {
        for c in std::mem::take(&mut self.closing) {
            match self.conns[c as usize].flags.has(Flags::LOST) {
                true => self.back_off(c),
                false => self.closed.push_back(c),
            }
        }
    }

    /// True when there is something for [`Worker::cycle_more`], now or after the next enter.
    pub(super) fn has_more_to_cycle(&self) -> bool {
        !self.closing.is_empty() || !self.closed.is_empty()
    }

    /// Connects those that are closed.
    pub(super) fn cycle_more(&mut self) -> io::Result<()> {
        for _ in 0..self.batch {
            let Some(c) = self.closed.pop_front() else {
                break;
            };
            if self.config.close == Close::Fin {
                self.origins.rest(c, self.now);
            }
            let number = match self.config.close {
                Close::Rst => self.origins.number(c),
                Close::Fin => self.origins.fresh(self.now, || self.dialler.spare()),
            };
            let dialled = number
                .ok_or(Failure::connect(libc::EADDRNOTAVAIL))
                .and_then(|number| self.dialler.dial(number));
            match dialled {
                Ok(dialled) => {
                    self.conns[c as usize].renew(Verifier::new(self.config.protocol));
                    self.connect(c, vec![dialled])?;
                }
                Err(failure) => {
                    self.cycle_failed(c, failure);
                    self.has_no_socket(c);
                }
            }
        }
        Ok(())
    }

    /// There is no connection for a cycle.
    pub(super) fn cycle_failed(&mut self, c: u32, failure: Failure) {
        let Failure { step, errno, .. } = failure;
        self.conns[c as usize].flags.take(Flags::CYCLING);
        self.counts.outstanding -= 1;
        *self.report.churn_failed.entry((step, errno)).or_default() += 1;
        *self
            .report
            .lost
            .entry("not reconnected".into())
            .or_default() += 1;
        self.counts.lost += 1;
        // It served before.
        self.counts.dropped += u64::from(errno == libc::ECONNREFUSED);
        self.let_come_back(c, true, (false, true));
    }
}
