//! A worker's messages: sent in closed loop on some of the held connections, one at a time on each.
//!
//! Invariant: at most one waiting send of a connection is in flight, and a message starts only when the one before
//! was sent and answered.

use std::io;

use nix::libc;
use ring::{Completion, Operation};

use super::hold::Cause;
use super::{BATCH, Worker};
use crate::conn::{Flags, Phase};
use crate::counters;
use crate::verify::Payload;

impl Worker<'_> {
    pub(super) fn start_messages(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(c) = self.starters.pop() else { break };
            let conn = &mut self.conns[c as usize];
            if conn.phase != Phase::Held {
                continue;
            }
            conn.flags.set(Flags::ACTIVE);
            if conn.verifier.is_greeted() {
                self.send(c)?;
            }
        }
        Ok(())
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
        conn.since_us = self.shared.start.elapsed().as_micros() as u32;
        self.counts.outstanding += 1;
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

    pub(super) fn answered(&mut self, c: u32) -> io::Result<()> {
        let now_us = self.now.as_micros() as u32;
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::AWAITS);
        conn.message = conn.message.wrapping_add(1);
        let latency_us = now_us.wrapping_sub(conn.since_us);
        self.report
            .message_latency
            .saturating_record(u64::from(latency_us));
        self.counts.outstanding -= 1;
        self.counts.messages += 1;
        // A waiting send ends before its echo is whole, but its completion may come later.
        match self.phase {
            counters::Phase::Active if !conn.flags.has(Flags::SEND_WAIT) => self.send(c),
            _ => Ok(()),
        }
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
        let is_answered = conn.flags.has(Flags::ACTIVE) && !conn.flags.has(Flags::AWAITS);
        match completion.bytes {
            Some(bytes) if (completion.result as usize) < bytes.len() => {
                self.send_rest(c, bytes[completion.result as usize..].to_vec())
            }
            _ if is_answered && self.phase == counters::Phase::Active => self.send(c),
            _ => Ok(()),
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
