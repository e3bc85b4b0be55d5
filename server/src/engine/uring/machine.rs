//! The connections of one table as a state machine: completions in, operations out.
//!
//! Pure: knows no kernel, so tests drive it with a scripted ring. Owns: the slots of one table.
//!
//! A connection's life: accepted → greeting → parked on a multishot poll ⇄ receiving → terminate → join →
//! close. *Terminate* cancels what is armed, *join* waits until nothing is in flight, only then is the slot
//! closed and its generation grows, so that a late completion finds nobody.
//!
//! Sending. A fast send never waits; it says nothing unless it was cut short. So a connection has at most one
//! fast send between two settlings (`Turn::number` counts them): what is said meanwhile waits in its `Conn`, and
//! the unsent rest of a send that was cut short goes in front of it. Waiting output is sent by one `SendWait` at
//! a time, and while there is some, nothing is received.

use std::ops::Range;

use nix::libc;
use ring::{Op, Operation, SendArena, Span, Table, Token};
use wire::Session;

use crate::conn::{Budget, Conn, Said};
use crate::inquiry::{Place, View};
use crate::stats::{CloseReason, Stats};
use crate::timeouts::{Rules, Tick};

/// What a machine may use while it handles something: one turn of the driver's loop.
pub struct Turn<'a> {
    /// Counts settlings: sends queued in an earlier number than the last one have all been answered for.
    pub number: u32,
    /// Milliseconds on the worker's clock.
    pub now_ms: u32,
    /// What a connection remembers that is heard now.
    pub tick: Tick,
    /// Where to write what is sent at once.
    pub arena: &'a mut SendArena,
    /// Operations to queue, in order.
    pub ops: &'a mut Vec<Operation>,
    /// What may wait.
    pub budget: &'a mut Budget,
    /// What happened.
    pub stats: &'a mut Stats,
}

/// One completion, as the machine sees it.
pub struct Event<'a> {
    /// Which operation.
    pub token: Token,
    /// Not negative for success, else a negated errno.
    pub result: i32,
    /// The operation goes on.
    pub more: bool,
    /// What a receive received.
    pub input: &'a [u8],
    /// After a receive: the socket holds more.
    pub nonempty: bool,
    /// The span of a send that was cut short.
    pub span: Option<Span>,
    /// The bytes of a waiting send.
    pub bytes: Option<Vec<u8>>,
}

/// The peer has finished sending: it may still read.
const HANG_UP: i32 = libc::POLLRDHUP as i32;
/// There is no connection any more: this side never shuts down one direction alone. Known without a receive, so that
/// after a mass reset the dead do not queue before the living.
const GONE: i32 = (libc::POLLHUP | libc::POLLERR) as i32;

/// In flight, or to be remembered.
mod flag {
    pub const POLL: u8 = 1;
    pub const RECV: u8 = 2;
    pub const SEND_WAIT: u8 = 4;
    /// The socket may hold input that no poll event will announce again.
    pub const READABLE: u8 = 8;
    /// In the list of what to look at when the turn is settled.
    pub const DEFERRED: u8 = 16;
    /// Closes once all output is sent.
    pub const FINISHING: u8 = 32;
    /// Terminated: joins, then closes.
    pub const CLOSING: u8 = 64;
    /// The peer has finished sending: receive until a receive says so. The end of the input may come with the last bytes of it, and is then announced only once.
    pub const HUNG_UP: u8 = 128;
}

struct Slot<S> {
    /// None where the slot is free or closing.
    conn: Option<Conn<S>>,
    /// The turn in which the last fast send was queued.
    sent_in: u32,
    flags: u8,
    /// Why a finishing connection finishes.
    reason: CloseReason,
    /// When something was last received.
    heard: Tick,
}

/// All that userspace keeps of an idle connection, its share in the table's generations (2 bytes) aside.
const _: () = assert!(size_of::<Slot<wire::Line>>() <= 32);

/// The connections of one table.
pub struct Machine<S> {
    table: Table,
    slots: Vec<Slot<S>>,
    deferred: Vec<u32>,
    held: u32,
    waiting_sends: u32,
}

impl<S: Session> Machine<S> {
    /// No connections yet. See [`Table::new`] for `headroom`.
    pub fn new(capacity: u32, headroom: u32) -> Machine<S> {
        Machine {
            table: Table::new(capacity, headroom),
            // Reserved, not touched: memory is used as slots are.
            slots: Vec::with_capacity(capacity as usize),
            deferred: Vec::new(),
            held: 0,
            waiting_sends: 0,
        }
    }

    /// The table's room and use.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Established connections.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// True when something must be done once this turn is settled.
    pub fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// True while output waits for peers to read.
    pub fn has_waiting_sends(&self) -> bool {
        self.waiting_sends > 0
    }

    /// The kernel put a new connection into `slot`.
    pub fn accepted(&mut self, slot: u32, session: S, turn: &mut Turn<'_>) {
        let generation = self.occupy(slot);
        self.held += 1;
        turn.stats.accepted += 1;
        let this = &mut self.slots[slot as usize];
        this.sent_in = turn.number.wrapping_sub(2);
        this.heard = turn.tick;
        this.flags |= flag::POLL;
        let conn = this.conn.insert(Conn::new(session));
        let said = conn.open(turn.arena.reserve());
        self.deliver(slot, said, turn);
        turn.ops.push(Operation::Poll { slot, generation });
    }

    /// The kernel put a connection into `slot` that is not wanted: it is told `line`, where that is not empty, and
    /// closed.
    pub fn refuse(&mut self, slot: u32, line: &[u8], turn: &mut Turn<'_>) {
        let generation = self.occupy(slot);
        self.table.close(slot);
        if !line.is_empty() {
            turn.arena.reserve()[..line.len()].copy_from_slice(line);
            let span = turn.arena.commit(line.len());
            // None of them waits, so they are done in this order; whatever they say finds nobody.
            turn.ops.extend([
                Operation::Send {
                    slot,
                    generation,
                    span,
                },
                Operation::Discard { slot, generation },
            ]);
        }
        turn.ops.push(Operation::Close { slot, generation });
    }

    /// An operation of this table completed.
    pub fn complete(&mut self, event: Event<'_>, turn: &mut Turn<'_>) {
        let slot = event.token.slot;
        if slot >= self.table.high_water() || event.token.generation != self.table.generation(slot)
        {
            return;
        }
        match event.token.op {
            Op::Poll => self.polled(slot, event.result, event.more, turn),
            Op::Recv => self.received(slot, event.result, event.input, event.nonempty, turn),
            Op::Send => self.cut_short(slot, event.result, event.span, turn),
            Op::SendWait => self.sent(slot, event.result, event.bytes, turn),
            // What it was for has completed and says so itself, or was between two waits: then once more.
            Op::Cancel => self.cancel_armed(slot, turn),
            _ => {}
        }
    }

    /// The heartbeat of `slot` is due. True where one was said.
    pub fn tick(&mut self, slot: u32, turn: &mut Turn<'_>) -> bool {
        let Some(conn) = self.open_conn(slot) else {
            return false;
        };
        let said = conn.tick(turn.arena.reserve());
        self.deliver(slot, said, turn);
        said.written > 0
    }

    /// Gives `message` to the session in `slot`. False where there is none.
    pub fn message(&mut self, slot: u32, message: &[u8], turn: &mut Turn<'_>) -> bool {
        let Some(conn) = self.open_conn(slot) else {
            return false;
        };
        let said = conn.message(message, turn.arena.reserve());
        self.deliver(slot, said, turn);
        true
    }

    /// Closes the connection in `slot`, for this reason, once what waits is sent; it is not heard any more.
    pub fn finish(&mut self, slot: u32, reason: CloseReason) {
        if self.open_conn(slot).is_some() {
            let this = &mut self.slots[slot as usize];
            this.flags |= flag::FINISHING;
            this.reason = reason;
            self.defer(slot);
        }
    }

    /// The turn is settled: `turn.number` is new. Does what had to wait for that.
    pub fn settled(&mut self, turn: &mut Turn<'_>) {
        for slot in std::mem::take(&mut self.deferred) {
            self.slots[slot as usize].flags &= !flag::DEFERRED;
            self.go_on(slot, turn);
        }
    }

    /// Terminates those of `slots` whose peers said or took nothing for too long.
    pub fn sweep(&mut self, slots: Range<u32>, rules: Rules, turn: &mut Turn<'_>) {
        for slot in slots {
            let Some(this) = self.slots.get(slot as usize) else {
                return;
            };
            let Some(conn) = &this.conn else { continue };
            let stalled_ms = conn.stalled_ms(turn.now_ms);
            // One that finishes with nothing waiting is about to close, for its own reason.
            let closes = this.flags & flag::FINISHING != 0 && stalled_ms.is_none();
            if let Some(reason) = rules.verdict(this.heard, stalled_ms)
                && !closes
            {
                self.terminate(slot, reason, turn);
            }
        }
    }

    /// Whoever is in `slot` of this table, which is number `table`, and when it was heard last.
    pub fn view(&self, table: u32, slot: u32, now_ms: u32) -> Option<(View, Option<Tick>)> {
        let this = self.slots.get(slot as usize)?;
        let (place, generation) = (Place { table, slot }, self.table.generation(slot).into());
        let has = |flag| this.flags & flag != 0;
        match &this.conn {
            Some(conn) => {
                let view = View::of(place, generation, conn, has(flag::FINISHING), now_ms);
                Some((view, Some(this.heard)))
            }
            None => has(flag::CLOSING).then(|| (View::closing(place, generation), None)),
        }
    }

    /// Terminates the connection in `slot` for the operator, where it is still the one of that generation.
    pub fn close(&mut self, slot: u32, generation: u64, turn: &mut Turn<'_>) -> bool {
        let is_open = |this: &Slot<S>| this.conn.is_some();
        let is_it = self.slots.get(slot as usize).is_some_and(is_open)
            && u64::from(self.table.generation(slot)) == generation;
        if is_it {
            self.terminate(slot, CloseReason::Operator, turn);
        }
        is_it
    }

    fn polled(&mut self, slot: u32, result: i32, more: bool, turn: &mut Turn<'_>) {
        let this = &mut self.slots[slot as usize];
        if !more {
            this.flags &= !flag::POLL;
        }
        if this.flags & flag::CLOSING != 0 {
            return self.join(slot, turn);
        }
        if result < 0 {
            return self.terminate(slot, CloseReason::Failed, turn);
        }
        if result & GONE != 0 {
            return self.terminate(slot, CloseReason::Reset, turn);
        }
        this.flags |= flag::READABLE;
        if result & HANG_UP != 0 {
            this.flags |= flag::HUNG_UP;
        }
        self.receive_if_ready(slot, turn);
    }

    fn received(
        &mut self,
        slot: u32,
        result: i32,
        input: &[u8],
        nonempty: bool,
        turn: &mut Turn<'_>,
    ) {
        let this = &mut self.slots[slot as usize];
        this.flags &= !flag::RECV;
        if this.flags & flag::CLOSING != 0 {
            return self.join(slot, turn);
        }
        if result < 0 {
            match -result {
                // The event was for input that an earlier receive took.
                libc::EAGAIN => {}
                // What is there will not be announced again.
                libc::EINTR => this.flags |= flag::READABLE,
                _ => return self.terminate(slot, CloseReason::Reset, turn),
            }
            return self.receive_if_ready(slot, turn);
        }
        let Some(conn) = &mut this.conn else { return };
        if input.is_empty() {
            conn.receive_eof();
            return self.defer(slot);
        }
        if nonempty || this.flags & flag::HUNG_UP != 0 {
            this.flags |= flag::READABLE;
        }
        this.heard = turn.tick;
        turn.stats.receives += 1;
        turn.stats.bytes_in += input.len() as u64;
        let said = conn.receive(input, turn.arena.reserve(), turn.budget);
        self.deliver(slot, said, turn);
        self.receive_if_ready(slot, turn);
    }

    /// A fast send was cut short: `result` bytes of it went, or none where it is negative.
    fn cut_short(&mut self, slot: u32, result: i32, span: Option<Span>, turn: &mut Turn<'_>) {
        let Some(span) = span else { return };
        let unsent = &turn.arena.bytes(span)[result.max(0) as usize..];
        turn.stats.bytes_out -= unsent.len() as u64;
        if result < 0 && result != -libc::EAGAIN {
            return self.terminate(slot, CloseReason::Reset, turn);
        }
        let Some(conn) = &mut self.slots[slot as usize].conn else {
            return;
        };
        turn.stats.short_sends += 1;
        match conn.return_output(unsent, turn.now_ms, turn.budget) {
            Ok(()) => self.defer(slot),
            Err(reason) => self.terminate(slot, reason, turn),
        }
    }

    fn sent(&mut self, slot: u32, result: i32, bytes: Option<Vec<u8>>, turn: &mut Turn<'_>) {
        let generation = self.table.generation(slot);
        let this = &mut self.slots[slot as usize];
        this.flags &= !flag::SEND_WAIT;
        self.waiting_sends -= 1;
        if this.flags & flag::CLOSING != 0 {
            return self.join(slot, turn);
        }
        let (Some(conn), Some(bytes)) = (&mut this.conn, bytes) else {
            return;
        };
        if result < 0 {
            return self.terminate(slot, CloseReason::Reset, turn);
        }
        let sent = result as usize;
        turn.stats.bytes_out += sent as u64;
        conn.lent_sent(sent, turn.now_ms, turn.budget);
        let unsent = conn.lent_bytes();
        if unsent > 0 {
            this.flags |= flag::SEND_WAIT;
            self.waiting_sends += 1;
            let from = bytes.len() - unsent;
            turn.ops.push(Operation::SendWait {
                slot,
                generation,
                bytes,
                from,
            });
            return;
        }
        self.go_on(slot, turn);
    }

    /// Sends what a session said, or lets it wait, and closes where that is asked for.
    fn deliver(&mut self, slot: u32, said: Said, turn: &mut Turn<'_>) {
        let generation = self.table.generation(slot);
        let this = &mut self.slots[slot as usize];
        let Some(conn) = &mut this.conn else { return };
        if said.written > 0 {
            let span = turn.arena.commit(said.written);
            // One fast send may be unanswered: this turn's, or the last one's.
            let unanswered = turn.number.wrapping_sub(this.sent_in) <= 1;
            if unanswered || conn.has_output() {
                let bytes = turn.arena.bytes(span);
                if let Err(reason) = conn.keep_output(bytes, turn.now_ms, turn.budget) {
                    return self.terminate(slot, reason, turn);
                }
                self.defer(slot);
            } else {
                this.sent_in = turn.number;
                turn.stats.sends += 1;
                turn.stats.bytes_out += said.written as u64;
                turn.ops.push(Operation::Send {
                    slot,
                    generation,
                    span,
                });
            }
        }
        match said.close {
            None => {
                if self.slots[slot as usize]
                    .conn
                    .as_ref()
                    .is_some_and(Conn::wants_to_digest)
                {
                    self.defer(slot);
                }
            }
            Some(
                reason @ (CloseReason::Finished | CloseReason::PeerClosed | CloseReason::TooLong),
            ) => {
                let this = &mut self.slots[slot as usize];
                this.flags |= flag::FINISHING;
                this.reason = reason;
                self.defer(slot);
            }
            Some(reason) => self.terminate(slot, reason, turn),
        }
    }

    /// Whatever this connection waited for may have come: does the next thing.
    fn go_on(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let generation = self.table.generation(slot);
        let this = &mut self.slots[slot as usize];
        let Some(conn) = &mut this.conn else { return };
        if this.flags & flag::SEND_WAIT != 0 {
            return;
        }
        if turn.number.wrapping_sub(this.sent_in) <= 1 {
            return self.defer(slot);
        }
        if conn.has_output() {
            this.flags |= flag::SEND_WAIT;
            self.waiting_sends += 1;
            turn.stats.sends += 1;
            turn.ops.push(Operation::SendWait {
                slot,
                generation,
                bytes: conn.take_output(turn.now_ms),
                from: 0,
            });
            return;
        }
        if this.flags & flag::FINISHING != 0 {
            let reason = this.reason;
            return self.terminate(slot, reason, turn);
        }
        if conn.wants_to_digest() {
            let said = conn.digest(turn.arena.reserve(), turn.budget);
            self.deliver(slot, said, turn);
            return self.receive_if_ready(slot, turn);
        }
        self.receive_if_ready(slot, turn);
    }

    /// Receives, if there may be input, no receive is under way, and nothing waits that comes first. Where there is none, a
    /// poll that has ended is armed again: not before, as it would end at once for the same input, and where completions
    /// overflow that goes round for ever.
    fn receive_if_ready(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let generation = self.table.generation(slot);
        let this = &mut self.slots[slot as usize];
        let Some(conn) = &this.conn else { return };
        if this.flags & (flag::RECV | flag::FINISHING | flag::CLOSING) != 0 {
            return;
        }
        if this.flags & flag::READABLE == 0 {
            if this.flags & flag::POLL == 0 {
                this.flags |= flag::POLL;
                turn.ops.push(Operation::Poll { slot, generation });
            }
            return;
        }
        if conn.has_output() || conn.wants_to_digest() {
            return;
        }
        this.flags = this.flags & !flag::READABLE | flag::RECV;
        turn.ops.push(Operation::Recv { slot, generation });
    }

    fn terminate(&mut self, slot: u32, reason: CloseReason, turn: &mut Turn<'_>) {
        let this = &mut self.slots[slot as usize];
        let Some(mut conn) = this.conn.take() else {
            return;
        };
        conn.discard(turn.budget);
        self.held -= 1;
        turn.stats.count_close(reason);
        this.flags |= flag::CLOSING;
        self.cancel_armed(slot, turn);
        self.join(slot, turn);
    }

    /// Cancels what a closing connection still has armed.
    fn cancel_armed(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let generation = self.table.generation(slot);
        let this = &self.slots[slot as usize];
        if this.flags & flag::CLOSING == 0 {
            return;
        }
        for (armed, op) in [(flag::POLL, Op::Poll), (flag::SEND_WAIT, Op::SendWait)] {
            if this.flags & armed != 0 {
                let token = Token::new(op, slot, generation);
                turn.ops.push(Operation::Cancel { token });
            }
        }
    }

    fn join(&mut self, slot: u32, turn: &mut Turn<'_>) {
        let generation = self.table.generation(slot);
        let this = &mut self.slots[slot as usize];
        if this.flags & (flag::POLL | flag::RECV | flag::SEND_WAIT) == 0 {
            this.flags &= flag::DEFERRED;
            self.table.close(slot);
            turn.ops.push(Operation::Close { slot, generation });
        }
    }

    fn occupy(&mut self, slot: u32) -> u16 {
        if self.slots.len() <= slot as usize {
            self.slots.resize_with(slot as usize + 1, || Slot {
                conn: None,
                sent_in: 0,
                flags: 0,
                reason: CloseReason::Failed,
                heard: Tick::default(),
            });
        }
        debug_assert_eq!(self.slots[slot as usize].flags & !flag::DEFERRED, 0);
        self.table.open(slot)
    }

    fn open_conn(&mut self, slot: u32) -> Option<&mut Conn<S>> {
        let this = self.slots.get_mut(slot as usize)?;
        if this.flags & flag::FINISHING != 0 {
            return None;
        }
        this.conn.as_mut()
    }

    fn defer(&mut self, slot: u32) {
        let this = &mut self.slots[slot as usize];
        if this.flags & flag::DEFERRED == 0 {
            this.flags |= flag::DEFERRED;
            self.deferred.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    //! What the [`simulation`](super::super::simulation) meets by chance alone, or rarely.

    use std::time::Duration;

    use super::*;
    use crate::conn::Limits;
    use crate::timeouts::{Sweep, Timeouts};
    use wire::Echo;

    /// Gives `act` a machine of four slots and a turn; returns the operations asked for.
    fn operations(act: impl FnOnce(&mut Machine<Echo>, &mut Turn<'_>)) -> Vec<Operation> {
        let (mut arena, mut ops, mut stats) = (SendArena::new(), Vec::new(), Stats::new());
        let mut budget = Budget::new(Limits::default());
        let mut turn = Turn {
            number: 2,
            now_ms: 0,
            tick: Tick::default(),
            arena: &mut arena,
            ops: &mut ops,
            budget: &mut budget,
            stats: &mut stats,
        };
        act(&mut Machine::new(4, 0), &mut turn);
        ops
    }

    fn plain(op: Op, generation: u16, result: i32) -> Event<'static> {
        Event {
            token: Token::new(op, 0, generation),
            result,
            more: true,
            input: &[],
            nonempty: false,
            span: None,
            bytes: None,
        }
    }

    #[test]
    fn a_late_completion_finds_nobody() {
        operations(|machine, turn| {
            machine.refuse(0, b"", turn);
            machine.accepted(0, Echo, turn);
            for op in [Op::Poll, Op::Recv, Op::Send] {
                machine.complete(plain(op, 0, -libc::ECONNRESET), turn);
            }
            assert_eq!(machine.held(), 1);
        });
    }

    #[test]
    fn who_goes_anyway_is_not_swept() {
        operations(|machine, turn| {
            machine.accepted(0, Echo, turn);
            machine.complete(plain(Op::Poll, 0, libc::POLLIN.into()), turn);
            machine.complete(plain(Op::Recv, 0, 0), turn);
            machine.settled(turn);
            let idle = Timeouts {
                idle: Some(Duration::from_secs(1)),
                write: None,
            };
            let silent = Sweep::new(idle, 0).rules(2_000_000_000);
            machine.sweep(0..1, silent, turn);
            assert_eq!(machine.held(), 1);
            machine.settled(turn);
            assert_eq!(turn.stats.closed.get(&CloseReason::PeerClosed), Some(&1));
        });
    }

    #[test]
    fn an_interrupted_receive_is_made_again() {
        let ops = operations(|machine, turn| {
            machine.accepted(0, Echo, turn);
            machine.complete(plain(Op::Poll, 0, libc::POLLIN.into()), turn);
            turn.ops.clear();
            machine.complete(plain(Op::Recv, 0, -libc::EINTR), turn);
        });
        let again = Operation::Recv {
            slot: 0,
            generation: 0,
        };
        assert_eq!(ops, [again]);
    }
}
