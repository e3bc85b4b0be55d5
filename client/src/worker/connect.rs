//! A worker's connects, in the ramp, in churn and after a loss: sockets into slots, connects into flight, and what becomes of
//! them.
//!
//! Invariant: `connecting` is the number of connects in flight, each ends by its timeout at the latest, and each
//! assignment ends as established or as a counted failure.

use std::io;
use std::time::Duration;

use nix::libc;
use ring::{Op, Operation};

use super::{LONGEST_WAIT, Worker};
use crate::config::Close;
use crate::conn::{Conn, Flags, Phase};
use crate::counters;
use crate::dial::{Dialled, Failure};
use crate::latency::Kind;
use crate::shape;
use crate::verify::Verifier;

/// How often connects in flight are looked at for their timeout.
const TIMEOUT_GRAIN: Duration = Duration::from_millis(50);
/// After an orderly close a churn cycle takes another port. How many may be taken one after the other before there are none.
const MOST_COLLISIONS_IN_A_ROW: u32 = 256;

impl Worker<'_> {
    /// A first refusal says that nobody listens: no use in trying them all.
    pub(super) fn nobody_listens(&self) -> bool {
        self.counts.refused > 0
            && self.counts.established == 0
            && self.shared.counts().established == 0
    }

    /// Connections asked for at `now` and not started.
    fn asked(&self, now: Duration) -> u64 {
        self.share(self.order.level(now))
            .saturating_sub(self.started())
    }

    fn started(&self) -> u64 {
        self.share(self.config.connections) - self.dialler.remaining()
    }

    /// Whether each connection that the ramp's leg leads to is established or has failed.
    pub(super) fn has_brought_up(&self) -> bool {
        self.counts.established + self.counts.failed >= self.share(self.order.leg.to)
    }

    /// How long after `now` no first connect needs to be started.
    pub(super) fn wait_to_connect(&self, now: Duration) -> Duration {
        if self.order.phase != counters::Phase::Ramp || self.nobody_listens() {
            return LONGEST_WAIT;
        }
        if self.asked(now) > 0 || !self.retries.is_empty() {
            return self.pace.wait(self.connecting).unwrap_or(LONGEST_WAIT);
        }
        let (number, workers) = self.number;
        let next = shape::level_of(self.started() + 1, number, workers);
        self.order.leg.when(next).map_or(LONGEST_WAIT, |when| {
            (self.order.began + when).saturating_sub(now)
        })
    }

    pub(super) fn connect_more(&mut self) -> io::Result<()> {
        let asked = self.asked(self.now);
        let has_more = !self.nobody_listens() && (asked > 0 || !self.retries.is_empty());
        let mut allowed = match has_more {
            true => self
                .pace
                .allowance(self.now, self.connecting)
                .min(self.batch),
            false => 0,
        };
        while allowed > 0
            && let Some(c) = self.retries.pop()
        {
            allowed -= 1;
            match self.dialler.replace() {
                Ok(dialled) => {
                    self.connect(c, vec![dialled])?;
                    self.paced(1);
                }
                Err(failure) => self.fail(c, failure)?,
            }
        }
        let first = self.conns.len() as u32;
        // One installation fills neighbouring slots, so it ends with the table.
        let in_table = self.slots - first % self.slots;
        let room = u64::from(in_table.min(allowed)).min(asked) as usize;
        let mut batch = Vec::with_capacity(room);
        while batch.len() < room
            && let Some(dialled) = self.dialler.next()
        {
            match dialled {
                Ok(dialled) => batch.push(dialled),
                Err(failure) => {
                    self.count_failure(failure);
                    break;
                }
            }
        }
        if !batch.is_empty() {
            let conn = Conn::new(Verifier::new(self.config.protocol));
            self.conns.resize(self.conns.len() + batch.len(), conn);
            let count = batch.len() as u32;
            self.connect(first, batch)?;
            self.paced(count);
        }
        Ok(())
    }

    /// `count` connects of the ramp were submitted: how late, by the rate.
    fn paced(&mut self, count: u32) {
        let now = self.shared.start.elapsed();
        for _ in 0..count {
            if let Some(intended) = self.pace.intended() {
                let late = now.saturating_sub(intended);
                self.recorder.record(Kind::ConnectLate, late);
            }
            self.pace.started(1);
        }
    }

    /// Installs sockets into the slots from connection `first` on, and starts their connects.
    pub(super) fn connect(&mut self, first: u32, dialled: Vec<Dialled>) -> io::Result<()> {
        let (assignments, sockets): (Vec<_>, Vec<_>) = dialled
            .into_iter()
            .map(|d| ((d.number, d.target), d.socket))
            .unzip();
        let (ring, slot) = self.place(first);
        self.group.install(ring, slot, &sockets)?;
        drop(sockets);
        let now = self.shared.start.elapsed();
        self.report.first_connect.get_or_insert(now);
        for (c, (number, target)) in (first..).zip(assignments) {
            self.origins.remember(c, number);
            let conn = &mut self.conns[c as usize];
            if self.churners.has(c) {
                conn.flags.set(Flags::CHURNS);
            }
            conn.phase = Phase::Connecting;
            conn.since_us = now.as_micros() as u32;
            let generation = conn.generation;
            let slot = slot + (c - first);
            self.group.push(
                ring,
                Operation::Connect {
                    slot,
                    generation,
                    target,
                },
            )?;
            if !conn.flags.has(Flags::WATCHED) {
                conn.flags.set(Flags::WATCHED);
                self.in_flight.push(c);
            }
            self.connecting += 1;
        }
        Ok(())
    }

    pub(super) fn connected(&mut self, c: u32, result: i32) -> io::Result<()> {
        if self.conns[c as usize].phase != Phase::Connecting {
            return Ok(());
        }
        self.connecting -= 1;
        let (now, now_us) = (self.now, self.now.as_micros() as u32);
        let conn = &mut self.conns[c as usize];
        let timed_out = conn.flags.take(Flags::TIMED_OUT);
        let is_cycling = conn.flags.has(Flags::CYCLING);
        let is_lost = conn.flags.has(Flags::LOST);
        match -result {
            0 => {
                conn.phase = Phase::Held;
                if is_lost {
                    return self.is_back(c);
                }
                conn.last_heartbeat_ms = now.as_millis() as u32;
                let latency = Duration::from_micros(now_us.wrapping_sub(conn.since_us).into());
                if is_cycling {
                    self.collisions_in_a_row = 0;
                    self.recorder.record(Kind::CycleConnect, latency);
                    self.poll(c)?;
                    return self.go_on(c);
                }
                self.timed(Kind::Connect, latency);
                self.report.last_established = Some(now);
                self.counts.established += 1;
                self.report.established_max = self.report.established_max.max(self.counts.live());
                self.poll(c)
            }
            // The tuple exists already: another process uses the port, or a socket of an earlier run lingers.
            libc::EADDRNOTAVAIL | libc::EADDRINUSE if !is_cycling && !is_lost => {
                conn.phase = Phase::Waiting;
                conn.generation = conn.generation.wrapping_add(1);
                self.retries.push(c);
                Ok(())
            }
            // The same, or it is in TIME_WAIT.
            libc::EADDRNOTAVAIL | libc::EADDRINUSE
                if is_cycling
                    && self.config.close == Close::Fin
                    && self.collisions_in_a_row < MOST_COLLISIONS_IN_A_ROW =>
            {
                conn.phase = Phase::Waiting;
                conn.generation = conn.generation.wrapping_add(1);
                self.collisions_in_a_row += 1;
                self.dialler.collisions += 1;
                self.closed.push_back(c);
                Ok(())
            }
            libc::ECANCELED if timed_out => self.fail(c, Failure::connect(libc::ETIMEDOUT)),
            errno => self.fail(c, Failure::connect(errno)),
        }
    }

    pub(super) fn fail(&mut self, c: u32, failure: Failure) -> io::Result<()> {
        let flags = self.conns[c as usize].flags;
        match (flags.has(Flags::LOST), flags.has(Flags::CYCLING)) {
            (true, _) => self.is_not_back(c, failure),
            (false, true) => self.cycle_failed(c, failure),
            (false, false) => self.count_failure(failure),
        }
        self.close(c)
    }

    pub(super) fn count_failure(&mut self, failure: Failure) {
        let Failure {
            step,
            errno,
            source,
        } = failure;
        self.counts.failed += 1;
        self.counts.refused += u64::from(errno == libc::ECONNREFUSED);
        // With any other errno it is the port that could not be had.
        if errno == libc::EADDRNOTAVAIL {
            self.report.unbound = self.report.unbound.or(source);
        }
        *self.report.failed.entry((step, errno)).or_default() += 1;
    }

    pub(super) fn cancel_overdue(&mut self) -> io::Result<()> {
        if self.now < self.next_timeouts {
            return Ok(());
        }
        self.next_timeouts = self.now + TIMEOUT_GRAIN;
        // Not `self.now`: connects of this very turn are younger than that.
        let now_us = self.shared.start.elapsed().as_micros() as u32;
        let limit_us = self.config.connect_timeout.as_micros() as u32;
        let mut overdue = Vec::new();
        self.in_flight.retain(|c| {
            let conn = &mut self.conns[*c as usize];
            let is_connecting =
                conn.phase == Phase::Connecting && !conn.flags.has(Flags::TIMED_OUT);
            let is_overdue = now_us.wrapping_sub(conn.since_us) >= limit_us;
            if is_connecting && is_overdue {
                overdue.push(*c);
            }
            let stays = is_connecting && !is_overdue;
            if !stays {
                conn.flags.take(Flags::WATCHED);
            }
            stays
        });
        for c in overdue {
            self.conns[c as usize].flags.set(Flags::TIMED_OUT);
            self.cancel(c, Op::Connect)?;
        }
        Ok(())
    }
}
