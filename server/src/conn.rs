//! What every connection has, whatever engine carries it: its session, and the bytes that wait.
//!
//! Touches memory only. Owns: partial input and unsent output, in one box that exists only while there is some.
//! Invariants: bytes are given to the session in order and once, and leave in the order the session wrote them; an
//! idle connection owns no buffer; what waits is bounded per connection and per worker ([`Budget`]).

use wire::{Close, Out, Session};

use crate::stats::CloseReason;

/// Bounds on the bytes that wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unconsumed input of one connection. At least the longest line and one receive buffer.
    pub input_bytes_per_conn: usize,
    /// Unsent output of one connection.
    pub output_bytes_per_conn: usize,
    /// Both, over all connections of one worker.
    pub bytes_per_worker: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            input_bytes_per_conn: 128 * 1024,
            output_bytes_per_conn: 256 * 1024,
            bytes_per_worker: 64 * 1024 * 1024,
        }
    }
}

/// What is left of a worker's bound on waiting bytes.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    used_bytes: usize,
    /// The most that ever waited.
    pub peak_bytes: usize,
}

impl Budget {
    /// All of `limits` is left.
    pub fn new(limits: Limits) -> Budget {
        Budget {
            limits,
            used_bytes: 0,
            peak_bytes: 0,
        }
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes waiting now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// `bytes` more wait, where that is within the bound.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), CloseReason> {
        if self.used_bytes + bytes > self.limits.bytes_per_worker {
            return Err(CloseReason::WorkerMemory);
        }
        self.used_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
        Ok(())
    }

    /// `bytes` wait no more.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.used_bytes);
        self.used_bytes -= bytes;
    }
}

#[derive(Debug, Default)]
struct Pending {
    input: Vec<u8>,
    /// Unsent and with this connection.
    output: Vec<u8>,
    /// Unsent and with the engine ([`Conn::take_output`]).
    lent_bytes: usize,
    /// When the output began to wait, or last moved.
    since_ms: u32,
}

/// A connection: a session and what waits for it.
#[derive(Debug)]
pub struct Conn<S> {
    session: S,
    pending: Option<Box<Pending>>,
    /// Input waits that the session could not take for lack of room.
    hungry: bool,
    eof: Eof,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eof {
    /// The peer may send more.
    No,
    /// The peer has finished; the session does not know yet.
    Untold,
    Told,
}

/// What came of giving a session something: bytes at the start of the room, and what to do with the connection
/// once they are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Said {
    /// Bytes written.
    pub written: usize,
    /// Set where the connection is to be closed after those bytes.
    pub close: Option<CloseReason>,
}

impl<S: Session> Conn<S> {
    /// A connection that has just been established.
    pub fn new(session: S) -> Conn<S> {
        Conn {
            session,
            pending: None,
            hungry: false,
            eof: Eof::No,
        }
    }

    /// Lets the session greet.
    pub fn open(&mut self, room: &mut [u8]) -> Said {
        let mut out = Out::new(room);
        self.session.on_open(&mut out);
        said(&out)
    }

    /// Gives received bytes to the session; what it does not take is kept.
    pub fn receive(&mut self, input: &[u8], room: &mut [u8], budget: &mut Budget) -> Said {
        if self.has_input() || self.has_output() {
            if let Err(reason) = self.keep_input(input, budget) {
                return closing(reason);
            }
            // While output waits the session is not asked for more of it.
            return match self.has_output() {
                true => {
                    self.hungry = true;
                    NOTHING
                }
                false => self.digest(room, budget),
            };
        }
        let mut out = Out::new(room);
        let taken = self.session.on_bytes(input, &mut out).min(input.len());
        let said = said(&out);
        if said.close.is_some() || taken == input.len() {
            return said;
        }
        self.hungry = said.written > 0;
        match self.keep_input(&input[taken..], budget) {
            Ok(()) => said,
            Err(reason) => Said {
                close: Some(reason),
                ..said
            },
        }
    }

    /// The peer has finished sending. [`Conn::digest`] tells the session when its turn has come.
    pub fn receive_eof(&mut self) {
        if self.eof == Eof::No {
            self.eof = Eof::Untold;
        }
    }

    /// True when [`Conn::digest`] would get somewhere: no output waits, and input the session had no room for, or
    /// the end, does.
    pub fn wants_to_digest(&self) -> bool {
        !self.has_output() && (self.hungry || self.eof == Eof::Untold)
    }

    /// Gives the session the input that waits, and the end of it after the last byte.
    pub fn digest(&mut self, room: &mut [u8], budget: &mut Budget) -> Said {
        debug_assert!(!self.has_output());
        let Conn {
            session, pending, ..
        } = self;
        let mut out = Out::new(room);
        if let Some(pending) = pending {
            let taken = session
                .on_bytes(&pending.input, &mut out)
                .min(pending.input.len());
            pending.input.drain(..taken);
            budget.give_back(taken);
            self.hungry = taken > 0 && !pending.input.is_empty();
        } else {
            self.hungry = false;
        }
        // The end is told with an empty room before it, so that the last words always fit.
        if self.eof == Eof::Untold && !self.hungry && out.written() == 0 && out.closing().is_none()
        {
            self.eof = Eof::Told;
            let rest = pending
                .as_mut()
                .map_or(Vec::new(), |p| std::mem::take(&mut p.input));
            budget.give_back(rest.len());
            session.on_eof(&rest, &mut out);
            out.close(Close::Done);
            let said = said(&out);
            self.drop_empty();
            return Said {
                close: said.close.map(|_| CloseReason::PeerClosed),
                ..said
            };
        }
        let said = said(&out);
        self.drop_empty();
        said
    }

    /// Lets the session say its heartbeat.
    pub fn tick(&mut self, room: &mut [u8]) -> Said {
        let mut out = Out::new(room);
        self.session.on_tick(&mut out);
        said(&out)
    }

    /// Gives the session what was published to all.
    pub fn message(&mut self, message: &[u8], room: &mut [u8]) -> Said {
        let mut out = Out::new(room);
        self.session.on_message(message, &mut out);
        said(&out)
    }

    /// Output that could not be sent now: it waits, behind what waits already.
    pub fn keep_output(
        &mut self,
        bytes: &[u8],
        now_ms: u32,
        budget: &mut Budget,
    ) -> Result<(), CloseReason> {
        let at = self.pending.as_ref().map_or(0, |p| p.output.len());
        self.insert_output(at, bytes, now_ms, budget)
    }

    /// The unsent rest of an earlier send: it waits before what waits already.
    pub fn return_output(
        &mut self,
        bytes: &[u8],
        now_ms: u32,
        budget: &mut Budget,
    ) -> Result<(), CloseReason> {
        self.insert_output(0, bytes, now_ms, budget)
    }

    /// True while unsent output waits here or is lent to the engine.
    pub fn has_output(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|p| !p.output.is_empty() || p.lent_bytes > 0)
    }

    /// The output that waits here.
    pub fn output(&self) -> &[u8] {
        self.pending.as_ref().map_or(&[], |p| &p.output)
    }

    /// What waits: input for the session, and output for the peer, what is lent included.
    pub fn waiting_bytes(&self) -> (usize, usize) {
        self.pending
            .as_ref()
            .map_or((0, 0), |p| (p.input.len(), p.output.len() + p.lent_bytes))
    }

    /// The first `sent` bytes of [`Conn::output`] were sent.
    pub fn sent(&mut self, sent: usize, now_ms: u32, budget: &mut Budget) {
        if let Some(pending) = &mut self.pending {
            pending.output.drain(..sent);
            pending.since_ms = now_ms;
            budget.give_back(sent);
        }
        self.drop_empty();
    }

    /// Lends all the output that waits to the engine, which sends it and says [`Conn::lent_sent`].
    pub fn take_output(&mut self, now_ms: u32) -> Vec<u8> {
        let Some(pending) = &mut self.pending else {
            return Vec::new();
        };
        debug_assert_eq!(pending.lent_bytes, 0);
        pending.lent_bytes = pending.output.len();
        pending.since_ms = now_ms;
        std::mem::take(&mut pending.output)
    }

    /// `sent` more of the lent bytes were sent.
    pub fn lent_sent(&mut self, sent: usize, now_ms: u32, budget: &mut Budget) {
        if let Some(pending) = &mut self.pending {
            pending.lent_bytes -= sent;
            pending.since_ms = now_ms;
            budget.give_back(sent);
        }
        self.drop_empty();
    }

    /// Bytes lent and not yet sent.
    pub fn lent_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |p| p.lent_bytes)
    }

    /// For how long output has waited without moving. None when none waits.
    pub fn stalled_ms(&self, now_ms: u32) -> Option<u32> {
        let pending = self.pending.as_ref().filter(|_| self.has_output())?;
        Some(now_ms.wrapping_sub(pending.since_ms))
    }

    /// Nothing waits any more: the connection is being closed.
    pub fn discard(&mut self, budget: &mut Budget) {
        if let Some(pending) = self.pending.take() {
            budget.give_back(pending.input.len() + pending.output.len() + pending.lent_bytes);
        }
    }

    fn has_input(&self) -> bool {
        self.pending.as_ref().is_some_and(|p| !p.input.is_empty())
    }

    fn keep_input(&mut self, bytes: &[u8], budget: &mut Budget) -> Result<(), CloseReason> {
        let pending = self.pending.get_or_insert_default();
        if pending.input.len() + bytes.len() > budget.limits.input_bytes_per_conn {
            return Err(CloseReason::TooLong);
        }
        budget.take(bytes.len())?;
        pending.input.extend_from_slice(bytes);
        Ok(())
    }

    fn insert_output(
        &mut self,
        at: usize,
        bytes: &[u8],
        now_ms: u32,
        budget: &mut Budget,
    ) -> Result<(), CloseReason> {
        if bytes.is_empty() {
            return Ok(());
        }
        let began = !self.has_output();
        let pending = self.pending.get_or_insert_default();
        let waiting = pending.output.len() + pending.lent_bytes;
        if waiting + bytes.len() > budget.limits.output_bytes_per_conn {
            return Err(CloseReason::SlowReader);
        }
        budget.take(bytes.len())?;
        if began {
            pending.since_ms = now_ms;
        }
        pending.output.splice(at..at, bytes.iter().copied());
        Ok(())
    }

    fn drop_empty(&mut self) {
        if let Some(p) = &self.pending
            && p.input.is_empty()
            && p.output.is_empty()
            && p.lent_bytes == 0
        {
            self.pending = None;
        }
    }
}

const NOTHING: Said = Said {
    written: 0,
    close: None,
};

fn closing(reason: CloseReason) -> Said {
    Said {
        written: 0,
        close: Some(reason),
    }
}

fn said(out: &Out<'_>) -> Said {
    let asked = out.closing().map(CloseReason::from);
    Said {
        written: out.written(),
        close: asked.or(out.overflowed().then_some(CloseReason::SlowReader)),
    }
}

impl From<Close> for CloseReason {
    fn from(close: Close) -> CloseReason {
        match close {
            Close::Done => CloseReason::Finished,
            Close::TooLong => CloseReason::TooLong,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wire::{Echo, Line};

    fn limits() -> Limits {
        Limits {
            input_bytes_per_conn: 1000,
            output_bytes_per_conn: 500,
            bytes_per_worker: 1200,
        }
    }

    #[test]
    fn an_idle_connection_owns_nothing() {
        let (mut budget, mut room) = (Budget::new(limits()), [0; 200]);
        let mut conn = Conn::new(Line::default());
        assert_eq!(conn.receive(b"par", &mut room, &mut budget).written, 0);
        assert!(conn.pending.is_some() && budget.used_bytes() == 3);
        assert_eq!(conn.receive(b"tial\n", &mut room, &mut budget).written, 8);
        assert!(conn.pending.is_none() && budget.used_bytes() == 0);
        assert!(size_of::<Conn<Line>>() <= 24);
    }

    #[test]
    fn each_bound_closes_with_its_own_reason() {
        let (mut budget, mut room) = (Budget::new(limits()), [0; 200]);
        let mut conn = Conn::new(Line::default());
        let said = conn.receive(&[b'x'; 1001], &mut room, &mut budget);
        assert_eq!(said.close, Some(CloseReason::TooLong));
        let mut slow = Conn::new(Echo);
        slow.keep_output(&[0; 400], 0, &mut budget).unwrap();
        let full = slow.keep_output(&[0; 101], 0, &mut budget);
        assert_eq!(full, Err(CloseReason::SlowReader));
        let mut other = Conn::new(Line::default());
        let said = other.receive(&[b'x'; 801], &mut room, &mut budget);
        assert_eq!(said.close, Some(CloseReason::WorkerMemory));
        // What one gives back, another may have.
        slow.discard(&mut budget);
        let said = other.receive(&[b'x'; 801], &mut room, &mut budget);
        assert_eq!((said.close, budget.used_bytes()), (None, 801));
        other.discard(&mut budget);
        assert_eq!((budget.used_bytes(), budget.peak_bytes), (0, 801));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_known_by_time() {
        let mut budget = Budget::new(limits());
        let mut conn = Conn::new(Echo);
        assert_eq!(conn.stalled_ms(1000), None);
        conn.keep_output(b"abc", 1000, &mut budget).unwrap();
        conn.keep_output(b"def", 1040, &mut budget).unwrap();
        assert_eq!(conn.stalled_ms(1060), Some(60));
        conn.sent(1, 1060, &mut budget);
        assert_eq!(conn.stalled_ms(1061), Some(1));
        assert_eq!(conn.output(), b"bcdef");
    }

    proptest! {
        /// Output is taken in any pieces, by copy or by loan, and leaves whole and in order.
        #[test]
        fn what_waits_leaves_in_order(steps in proptest::collection::vec((0u8..5, 1usize..60), 1..80)) {
            let mut budget = Budget::new(Limits { output_bytes_per_conn: 1 << 20, bytes_per_worker: 1 << 20, ..limits() });
            let mut conn = Conn::new(Echo);
            let (mut next, mut left): (u8, Vec<u8>) = (0, Vec::new());
            let mut lent: Vec<u8> = Vec::new();
            let mut written: Vec<u8> = Vec::new();
            for (step, count) in steps {
                match step {
                    0 | 1 => {
                        let bytes: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                        written.extend(&bytes);
                        conn.keep_output(&bytes, 0, &mut budget).unwrap();
                    }
                    2 if lent.is_empty() => {
                        let sent = count.min(conn.output().len());
                        left.extend(&conn.output()[..sent]);
                        conn.sent(sent, 0, &mut budget);
                    }
                    3 if lent.is_empty() => lent = conn.take_output(0),
                    4 if !lent.is_empty() => {
                        let sent = count.min(lent.len());
                        left.extend(lent.drain(..sent));
                        conn.lent_sent(sent, 0, &mut budget);
                        prop_assert_eq!(conn.lent_bytes(), lent.len());
                    }
                    _ => {}
                }
                prop_assert_eq!(budget.used_bytes(), written.len() - left.len());
                prop_assert_eq!(conn.has_output(), written.len() > left.len());
            }
            left.extend(lent);
            left.extend(conn.output());
            prop_assert_eq!(left, written);
        }
    }
}
