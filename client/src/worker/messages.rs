//! A worker's messages, one at a time on each active connection: in closed loop as soon as the one before was answered,
//! in open loop by a schedule.
//!
//! Invariants: at most one waiting send of a connection is in flight, and a message starts only when the one before
//! was sent and answered. In open loop each message that has fallen due was started or is counted as owed, and
//! a connection that owes one sends it as soon as it is free.

use std::io;
use std::time::Duration;

use nix::libc;
use ring::{Completion, Operation};

use super::hold::Cause;
use super::{BATCH, Worker};
use crate::conn::{Conn, Flags, Phase};
use crate::latency::Kind;
use crate::schedule::Schedule;
use crate::verify::Payload;

/// Messages sent, or cycles begun, by a schedule, and whose they are.
pub(super) struct OpenLoop {
    pub(super) schedule: Schedule,
    /// The connections, by their place in the schedule.
    members: Vec<u32>,
}

impl OpenLoop {
    /// Of `members` (at least one), `per_second` together, from `start` on.
    pub(super) fn new(
        conns: &mut [Conn],
        members: Vec<u32>,
        start: Duration,
        per_second: f64,
    ) -> OpenLoop {
        for (member, c) in (0..).zip(&members) {
            let conn = &mut conns[*c as usize];
            conn.flags.set(Flags::ACTIVE);
            conn.member = member;
        }
        OpenLoop {
            schedule: Schedule::new(start, members.len() as u32, per_second),
            members,
        }
    }

    /// The next connection whose time has come at `now`, and how late this is.
    pub(super) fn next(&mut self, now: Duration) -> Option<(u32, Duration)> {
        let due = self.schedule.next(now)?;
        Some((self.members[due.member as usize], now - due.intended))
    }
}

impl Worker<'_> {
    /// Chooses the active connections among those held that do not churn.
    pub(super) fn begin_messages(&mut self) {
        if self.active == 0 {
            return;
        }
        let held: Vec<u32> = (0..self.conns.len() as u32)
            .filter(|c| {
                let conn = &self.conns[*c as usize];
                conn.phase == Phase::Held && !conn.flags.has(Flags::CHURNS)
            })
            .collect();
        let wanted = (self.active as usize).min(held.len());
        // Spread over all of them, so that active connections are no neighbours in memory.
        let active: Vec<u32> = (0..wanted).map(|n| held[n * held.len() / wanted]).collect();
        self.report.active += wanted as u64;
        match self.message_rate {
            None => self.starters.extend(active),
            Some(rate) if wanted > 0 => {
                let start = self.shared.start.elapsed();
                self.open_loop = Some(OpenLoop::new(&mut self.conns, active, start, rate));
            }
            Some(_) => {}
        }
    }

    /// What has fallen due by now and was not sent stays owed.
    pub(super) fn end_messages(&mut self) {
        let now = self.shared.start.elapsed();
        if let Some(open) = &mut self.open_loop {
            while let Some((_, late)) = open.next(now) {
                self.recorder.record(Kind::SendLate, late);
                self.counts.owed += 1;
            }
            self.report.messages_due = open.schedule.due();
        }
        if let Some(open) = &mut self.open_churn {
            while let Some((_, late)) = open.next(now) {
                self.recorder.record(Kind::CycleLate, late);
                self.counts.cycles_owed += 1;
            }
            self.report.cycles_due = open.schedule.due();
        }
    }

    /// Starts what is to start now: in closed loop each connection's first message, in open loop what has fallen due;
    /// and first cycles.
    pub(super) fn send_messages(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(c) = self.starters.pop() else { break };
            let conn = &mut self.conns[c as usize];
            if !conn.flags.has(Flags::CHURNS) {
                conn.flags.set(Flags::ACTIVE);
            }
            self.go_on(c)?;
        }
        for _ in 0..BATCH {
            let Some(open) = &mut self.open_loop else {
                break;
            };
            let now = self.shared.start.elapsed();
            let Some((c, late)) = open.next(now) else {
                break;
            };
            // Whether or not it can be sent: a client that comes late to its schedule must show.
            self.recorder.record(Kind::SendLate, late);
            match self.conns[c as usize].is_free() {
                true => self.send(c)?,
                false => self.counts.owed += 1,
            }
        }
        Ok(())
    }

    /// What follows on a connection once it is free: on an active one its next message, if that is due.
    pub(super) fn go_on(&mut self, c: u32) -> io::Result<()> {
        let conn = &self.conns[c as usize];
        if !conn.is_free() {
            return Ok(());
        }
        if conn.flags.has(Flags::CHURNS) {
            return self.churn_on(c);
        }
        if !conn.flags.has(Flags::ACTIVE) || !self.is_exchanging() {
            return Ok(());
        }
        if let Some(open) = &self.open_loop {
            if !open.schedule.is_due(conn.member, conn.message) {
                return Ok(());
            }
            self.counts.owed -= 1;
        }
        self.send(c)
    }

    pub(super) fn payload(&self, c: u32) -> Payload {
        let number = self.conns[c as usize].message;
        Payload::new(
            self.config.protocol,
            self.first_number + u64::from(c),
            number,
            self.config.message_bytes,
        )
    }

    pub(super) fn send(&mut self, c: u32) -> io::Result<()> {
        let payload = self.payload(c);
        let len = self.config.message_bytes as usize;
        let arena = self.group.memory().1;
        payload.write(0, &mut arena.reserve()[..len]);
        let span = arena.commit(len);
        let conn = &mut self.conns[c as usize];
        conn.flags.set(Flags::AWAITS);
        // A cycle is timed, and under way, since its connect.
        if !conn.flags.has(Flags::CYCLING) {
            conn.since_us = self.shared.start.elapsed().as_micros() as u32;
            self.counts.outstanding += 1;
        }
        let generation = conn.generation;
        let (ring, slot) = self.place(c);
        self.group.push(
            ring,
            Operation::Send {
                slot,
                generation,
                span,
            },
        )
    }

    pub(super) fn answered(&mut self, c: u32) {
        let now_us = self.now.as_micros() as u32;
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::AWAITS);
        let from_send = Duration::from_micros(now_us.wrapping_sub(conn.since_us).into());
        let latency = match &self.open_loop {
            None => from_send,
            Some(open) => {
                self.recorder.record(Kind::EchoRaw, from_send);
                let intended = open.schedule.intended(conn.member, conn.message);
                self.now.saturating_sub(intended)
            }
        };
        conn.message = conn.message.wrapping_add(1);
        self.timed(Kind::Echo, latency);
        self.counts.outstanding -= 1;
        self.counts.messages += 1;
    }

    /// A send that could not take all: the rest waits for the server to read.
    pub(super) fn cut_short(&mut self, c: u32, completion: Completion) -> io::Result<()> {
        if self.conns[c as usize].phase != Phase::Held {
            return Ok(());
        }
        let sent = match completion.result {
            sent if sent >= 0 => sent as usize,
            error if -error == libc::EAGAIN => 0,
            error => return self.lose(c, Cause::Errno(-error)),
        };
        let Some(span) = completion.span else {
            return Ok(());
        };
        let rest = self.group.memory().1.bytes(span)[sent..].to_vec();
        self.send_rest(c, rest)
    }

    pub(super) fn sent(&mut self, c: u32, completion: Completion) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::SEND_WAIT);
        if conn.phase != Phase::Held {
            return self.join(c);
        }
        if completion.result < 0 {
            return self.lose(c, Cause::Errno(-completion.result));
        }
        match completion.bytes {
            Some(bytes) if (completion.result as usize) < bytes.len() => {
                self.send_rest(c, bytes[completion.result as usize..].to_vec())
            }
            // Its echo may have been heard before.
            _ => self.go_on(c),
        }
    }

    fn send_rest(&mut self, c: u32, bytes: Vec<u8>) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.set(Flags::SEND_WAIT);
        let generation = conn.generation;
        let (ring, slot) = self.place(c);
        let operation = Operation::SendWait {
            slot,
            generation,
            bytes,
            from: 0,
        };
        self.group.push(ring, operation)
    }
}
