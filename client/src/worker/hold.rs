//! A worker's held connections: parked on a poll, read when it speaks, verified, and closed when lost.
//!
//! Invariant: at most one receive of a connection is in flight, and a poll that speaks meanwhile leads to one more; a lost
//! connection is closed only when nothing is in flight on it. In an orderly close what the server still sends is received and
//! verified until it ends too: what meets a closed socket is answered by a reset.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use ring::{Completion, Op, Operation};

use super::Worker;
use crate::config::Close;
use crate::conn::{Flags, Phase};
use crate::latency::Kind;
use crate::verify::Wrong;

/// What a poll says when the server has finished sending, or the connection is gone.
const HANG_UP: i32 = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as i32;

/// A heartbeat is late when it comes this long after its interval.
pub(crate) const LATE: Duration = Duration::from_secs(1);

/// A server that says nothing of its own turns a connection away, rather than drops it, when it ends within this.
const TURNED_AWAY: Duration = Duration::from_secs(1);

/// What is kept of bytes that were wrong, to be shown.
const STRAY_BYTES: usize = 40;

impl Worker<'_> {
    pub(super) fn polled(&mut self, c: u32, result: i32, more: bool) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        if !more {
            conn.flags.take(Flags::POLL);
        }
        if !conn.is_read() {
            return self.join(c);
        }
        if result < 0 {
            return self.lose(c, Cause::Errno(-result));
        }
        if result & HANG_UP != 0 {
            self.conns[c as usize].flags.set(Flags::HUNG_UP);
        }
        match self.conns[c as usize].flags.has(Flags::RECV) {
            true => self.conns[c as usize].flags.set(Flags::RECV_AGAIN),
            false => self.receive(c)?,
        }
        Ok(())
    }

    pub(super) fn received(&mut self, c: u32, completion: &Completion) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::RECV);
        let again = conn.flags.take(Flags::RECV_AGAIN);
        let hung_up = conn.flags.has(Flags::HUNG_UP);
        if !conn.is_read() {
            return self.join(c);
        }
        match completion.result {
            0 => return self.lose(c, Cause::Closed),
            1.. => {
                self.hear(c, completion)?;
                if !self.conns[c as usize].is_read() {
                    return Ok(());
                }
                if completion.nonempty || again || hung_up {
                    return self.receive(c);
                }
            }
            error if -error == libc::EAGAIN => {
                if again {
                    return self.receive(c);
                }
            }
            error => return self.lose(c, Cause::Errno(-error)),
        }
        // A poll that has ended is armed again only here: before its receive it would end at once for the same input,
        // and where completions overflow that goes round for ever.
        match self.conns[c as usize].flags.has(Flags::POLL) {
            true => Ok(()),
            false => self.poll(c),
        }
    }

    pub(super) fn hear(&mut self, c: u32, completion: &Completion) -> io::Result<()> {
        let Some(buffer) = completion.buffer else {
            return Ok(());
        };
        let expected = self.payload(c);
        let conn = &mut self.conns[c as usize];
        let expected = conn.flags.has(Flags::AWAITS).then_some(expected);
        let input = self.group.memory().0.bytes(buffer);
        conn.flags.set(Flags::HEARD);
        self.counts.bytes_received += input.len() as u64;
        let heard = conn.verifier.hear(input, expected);
        let stray = match heard.wrong {
            Some(_) => input[..input.len().min(STRAY_BYTES)].to_vec(),
            None => Vec::new(),
        };
        // Of each connection once.
        self.report.greetings_verified +=
            u64::from(heard.greeting && !conn.flags.has(Flags::CYCLING) && conn.attempts == 0);
        if heard.heartbeats > 0 {
            self.heartbeats(c, heard.heartbeats);
        }
        if heard.message {
            match self.conns[c as usize].flags.has(Flags::CYCLING) {
                true => self.cycled(c),
                false => self.answered(c),
            }
        }
        match heard.wrong {
            Some(wrong) => {
                if self.report.stray.is_empty() {
                    self.report.stray = stray;
                }
                self.report.messages_mismatched += u64::from(wrong == Wrong::Message);
                self.lose(c, Cause::Wrong(wrong))
            }
            None if self.is_to_leave(c) => self.lose(c, Cause::Closed),
            None if heard.message || heard.greeting => self.go_on(c),
            None => Ok(()),
        }
    }

    /// From now on each connection is told one by the server, once an interval.
    pub(super) fn begin_heartbeats(&mut self) {
        self.awaits_heartbeats = true;
        let now_ms = self.now.as_millis() as u32;
        for conn in &mut self.conns {
            conn.last_heartbeat_ms = now_ms;
        }
    }

    pub(super) fn heartbeats(&mut self, c: u32, count: u32) {
        self.counts.heartbeats += u64::from(count);
        let conn = &mut self.conns[c as usize];
        let now_ms = self.now.as_millis() as u32;
        let gap_ms = now_ms.wrapping_sub(conn.last_heartbeat_ms);
        conn.last_heartbeat_ms = now_ms;
        let has_predecessor = conn.flags.has(Flags::BEATEN);
        conn.flags.set(Flags::BEATEN);
        let interval_ms = self.config.heartbeat.as_millis() as u32;
        if interval_ms == 0 {
            return;
        }
        let late_ms = gap_ms.saturating_sub(interval_ms);
        self.counts.heartbeats_late += u64::from(u128::from(late_ms) > LATE.as_millis());
        // The phase of the first is the server's choice: it can be late, but not by how much.
        if has_predecessor {
            self.recorder
                .record(Kind::Heartbeat, Duration::from_millis(late_ms.into()));
        }
    }

    /// The server has said that it ends, and nothing more is awaited from it.
    fn is_to_leave(&self, c: u32) -> bool {
        let conn = &self.conns[c as usize];
        let is_free = !conn.flags.has(Flags::AWAITS) && !conn.flags.has(Flags::CYCLING);
        conn.phase == Phase::Held && conn.verifier.is_dismissed() && is_free
    }

    pub(super) fn lose(&mut self, c: u32, cause: Cause) -> io::Result<()> {
        if self.conns[c as usize].phase == Phase::Ending {
            return self.terminate(c);
        }
        let now_ms = self.now.as_millis() as u32;
        let conn = &mut self.conns[c as usize];
        // Without a heartbeat, the last one is when it was established. A server that greets has turned away whom it
        // did not greet, however long it took to accept.
        let age_ms = now_ms.wrapping_sub(conn.last_heartbeat_ms);
        let came_to_nothing =
            !conn.flags.has(Flags::HEARD) && age_ms <= TURNED_AWAY.as_millis() as u32;
        let is_announced = conn.verifier.is_dismissed() && !matches!(cause, Cause::Wrong(_));
        let cause = if is_announced {
            Cause::Announced
        } else {
            cause
        };
        let is_dropped = conn.verifier.is_greeted() && !came_to_nothing && !is_announced;
        let (awaits, cycling) = (
            conn.flags.take(Flags::AWAITS),
            conn.flags.take(Flags::CYCLING),
        );
        self.counts.outstanding -= u64::from(awaits || cycling);
        self.counts.lost += 1;
        self.counts.dropped += u64::from(is_dropped);
        self.counts.announced += u64::from(is_announced);
        *self.report.lost.entry(cause.name(is_dropped)).or_default() += 1;
        self.let_come_back(c, !came_to_nothing, (awaits, cycling));
        self.terminate(c)
    }

    /// Ends a connection as it was asked for: by a reset, or in order.
    pub(super) fn end(&mut self, c: u32) -> io::Result<()> {
        if self.config.close == Close::Rst {
            return self.terminate(c);
        }
        let conn = &mut self.conns[c as usize];
        conn.phase = Phase::Ending;
        conn.flags.set(Flags::SHUTDOWN);
        self.ending += 1;
        let generation = conn.generation;
        let (ring, slot) = self.place(c);
        self.group
            .push(ring, Operation::Shutdown { slot, generation })
    }

    /// It has been said that nothing more is sent.
    pub(super) fn shut_down(&mut self, c: u32, result: i32) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.take(Flags::SHUTDOWN);
        match conn.phase == Phase::Ending && result < 0 {
            // The server has reset it meanwhile.
            true => self.terminate(c),
            false => self.join(c),
        }
    }

    /// Ends what is in flight on a connection, and then closes it.
    pub(super) fn terminate(&mut self, c: u32) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        self.ending += u32::from(conn.phase != Phase::Ending);
        conn.phase = Phase::Closing;
        let flags = conn.flags;
        for (flag, op) in [(Flags::POLL, Op::Poll), (Flags::SEND_WAIT, Op::SendWait)] {
            if flags.has(flag) {
                self.cancel(c, op)?;
            }
        }
        self.join(c)
    }

    /// Closes a connection that is ending, once nothing is in flight on it.
    pub(super) fn join(&mut self, c: u32) -> io::Result<()> {
        let conn = &self.conns[c as usize];
        match conn.phase == Phase::Closing && conn.is_quiet() {
            true => self.close(c),
            false => Ok(()),
        }
    }

    pub(super) fn close(&mut self, c: u32) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        let generation = conn.generation;
        self.ending -= u32::from(conn.phase == Phase::Closing);
        conn.phase = match conn.flags.take(Flags::RECONNECTS) {
            true => {
                self.closing.push(c);
                Phase::Waiting
            }
            false => Phase::Gone,
        };
        conn.generation = generation.wrapping_add(1);
        let (ring, slot) = self.place(c);
        self.group.push(ring, Operation::Close { slot, generation })
    }
}

/// Why an established connection was lost.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    Errno(i32),
    Closed,
    /// By whichever end, after the server said that it ends.
    Announced,
    /// Never greeted.
    Mute,
    /// No heartbeat for some intervals.
    Silent,
    Wrong(Wrong),
}

impl Cause {
    fn name(self, is_dropped: bool) -> String {
        match self {
            Cause::Errno(errno) => format!("{:?}", Errno::from_raw(errno)),
            Cause::Announced => "announced by the server".into(),
            Cause::Mute => "no greeting within --connect-timeout".into(),
            Cause::Silent => "no heartbeat for three intervals".into(),
            Cause::Closed if is_dropped => "closed by the server".into(),
            Cause::Closed => "closed before the first byte".into(),
            Cause::Wrong(Wrong::Greeting) => "wrong bytes in the greeting".into(),
            Cause::Wrong(Wrong::Message) => "wrong bytes in an echo".into(),
            Cause::Wrong(Wrong::Unexpected) => "bytes nobody asked for".into(),
        }
    }
}
