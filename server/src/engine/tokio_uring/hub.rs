//! All connections of a worker, and what waits for them: what the connections' tasks and the overseer share.
//!
//! Owns: each connection's session, its output while no task writes it, the account of all bytes that wait
//! ([`Budget`]), the counters. Input that a session leaves stays in its task's buffer and is only accounted for here:
//! [`Conn`](crate::conn::Conn) would copy it. Touches no kernel, save to shut a socket down.
//!
//! Invariant: a slot is its task's from [`Hub::open`] until the task itself says [`Hub::leave`]; output or an end that
//! comes from elsewhere wakes the task.

use std::cell::RefCell;
use std::io;
use std::net::{Shutdown, TcpListener};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio_uring::net::TcpStream;
use tracing::warn;
use wire::{Out, Session};

use crate::admission::{Sources, peer_of};
use crate::conn::Budget;
use crate::engine::turn_away;
use crate::inquiry::{Close, Place, Report, Shelves, State, TableUse, View};
use crate::stats::{CloseReason, Stats};
use crate::timeouts::{Rules, Sweep, Tick};
use crate::worker::{Clock, Worker};

/// What a connection's read has room for; more only while the session leaves input unconsumed.
pub(super) const BUFFER_BYTES: usize = 4 * 1024;
/// Output buffers of at most [`BUFFER_BYTES`] kept for the next that has something to say.
const SPARE_BUFFERS: usize = 1024;

pub(super) type Shared<S, F> = Rc<RefCell<Hub<S, F>>>;

/// The connections of one worker, by slot.
pub(super) struct Hub<S, F> {
    worker: Rc<Worker<F>>,
    clock: Clock,
    connections: Vec<Option<Connection<S>>>,
    free: Vec<u32>,
    sources: Sources,
    held: u32,
    /// Until it is to stop.
    listener: Option<Arc<TcpListener>>,
    /// Accepting tasks.
    accepting: u32,
    /// Connections with a write under way.
    writing: u32,
    /// What sessions write to.
    room: Vec<u8>,
    spare: Vec<Vec<u8>>,
    /// Unconsumed input and unsent output of all connections.
    budget: Budget,
    stats: Stats,
    sweep: Sweep,
    /// No more connections are accepted.
    stopping: bool,
    /// The overseer has something to see to before it meant to wake.
    called: bool,
    overseer: Option<Waker>,
}

struct Connection<S> {
    session: S,
    /// How many were accepted before.
    number: u64,
    stream: Rc<TcpStream>,
    /// Unsent and not with the task.
    output: Vec<u8>,
    /// Unsent and with the task.
    lent_bytes: usize,
    /// Unconsumed, in the buffer of the task.
    input_bytes: usize,
    /// When the lent bytes last moved.
    moved_ms: u32,
    /// When something was last received.
    heard: Tick,
    /// The session is not called any more; the task ends once the output is sent.
    close: Option<CloseReason>,
    /// The task waits for input, or for this.
    waiting: bool,
    waker: Option<Waker>,
}

impl<S: Session, F: Fn() -> S> Hub<S, F> {
    pub(super) fn new(worker: Rc<Worker<F>>) -> Self {
        let clock = Clock::new();
        Hub {
            sweep: Sweep::new(worker.timeouts, clock.now_ns()),
            clock,
            connections: Vec::new(),
            free: Vec::new(),
            sources: Sources::default(),
            held: 0,
            listener: None,
            accepting: 0,
            writing: 0,
            room: vec![0; Out::MIN_ROOM],
            spare: Vec::new(),
            budget: Budget::new(worker.limits),
            stats: Stats::new(),
            stopping: false,
            called: false,
            overseer: None,
            worker,
        }
    }

    pub(super) fn end(&mut self) -> Stats {
        if self.held > 0 {
            *self.stats.closed.entry(CloseReason::Shutdown).or_default() += u64::from(self.held);
            self.worker.admission.leave(u64::from(self.held));
        }
        self.stats.pending_peak_bytes = self.budget.peak_bytes as u64;
        std::mem::take(&mut self.stats)
    }

    /// No task is left.
    pub(super) fn is_idle(&self) -> bool {
        self.held == 0 && self.accepting == 0
    }

    // What accepting tasks call.

    pub(super) fn acceptor_begins(&mut self) {
        self.accepting += 1;
    }

    pub(super) fn acceptor_ends(&mut self) {
        self.accepting -= 1;
        self.call();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Takes a connection in and lets it greet. None where it is refused and told so.
    pub(super) fn open(&mut self, stream: &Rc<TcpStream>) -> Option<u32> {
        let source = match self.worker.admission.enter(stream.as_raw_fd()) {
            Ok(source) => source,
            Err(reason) => {
                self.stats.count_refusal(reason);
                turn_away(stream.as_raw_fd(), &self.worker.refusal);
                return None;
            }
        };
        self.stats.accepted += 1;
        self.held += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            // Its heartbeat may be due before all others'.
            self.call();
            self.connections.len() as u32 - 1
        });
        self.sources.put(slot, source);
        self.connections[slot as usize] = Some(Connection {
            session: (self.worker.session)(),
            number: self.stats.accepted,
            stream: Rc::clone(stream),
            output: Vec::new(),
            lent_bytes: 0,
            input_bytes: 0,
            moved_ms: 0,
            heard: self.heard_now(),
            close: None,
            waiting: false,
            waker: None,
        });
        self.say(slot, Session::on_open);
        Some(slot)
    }

    pub(super) fn count_retry(&mut self, error: &io::Error) {
        if self.stats.accept_retries == 0 {
            warn!(%error, "accepting pauses; connections wait in the backlog");
        }
        self.stats.accept_retries += 1;
    }

    // What connections' tasks call.

    pub(super) fn count_receive(&mut self, slot: u32, bytes: usize) {
        self.stats.receives += 1;
        self.stats.bytes_in += bytes as u64;
        let heard = self.heard_now();
        if let Some(connection) = &mut self.connections[slot as usize] {
            connection.waiting = false;
            connection.heard = heard;
        }
    }

    /// Gives the session what `buffer` holds and keeps the rest there, with room behind it. True where it may consume
    /// more once its output is sent.
    pub(super) fn digest(&mut self, slot: u32, buffer: &mut Vec<u8>) -> bool {
        let mut taken = 0;
        self.say(slot, |session, out| {
            taken = session.on_bytes(buffer, out).min(buffer.len());
        });
        buffer.drain(..taken);
        let limits = self.worker.limits;
        if buffer.is_empty() && buffer.capacity() > BUFFER_BYTES {
            *buffer = Vec::with_capacity(BUFFER_BYTES);
        } else if buffer.len() >= limits.input_bytes_per_conn {
            self.abort(slot, CloseReason::TooLong);
        } else if buffer.len() == buffer.capacity() {
            let more = (limits.input_bytes_per_conn - buffer.len()).min(buffer.len());
            buffer.reserve_exact(more);
        }
        self.keep_input(slot, buffer.len());
        taken > 0 && !buffer.is_empty()
    }

    pub(super) fn receive_eof(&mut self, slot: u32, rest: &[u8]) {
        self.say(slot, |session, out| session.on_eof(rest, out));
        if let Some(connection) = &mut self.connections[slot as usize]
            && !aborted(connection.close)
        {
            connection.close = Some(CloseReason::PeerClosed);
        }
    }

    /// The output that waits, for the task to write.
    pub(super) fn lend_output(&mut self, slot: u32) -> Option<Vec<u8>> {
        let connection = self.connections[slot as usize].as_mut()?;
        connection.waiting = false;
        if connection.output.is_empty() {
            return None;
        }
        connection.lent_bytes = connection.output.len();
        connection.moved_ms = (self.clock.now_ns() / 1_000_000) as u32;
        self.writing += 1;
        self.stats.sends += 1;
        Some(std::mem::take(&mut connection.output))
    }

    /// Of the lent output, `count` bytes were sent.
    pub(super) fn sent(&mut self, slot: u32, count: usize) {
        self.stats.bytes_out += count as u64;
        if let Some(connection) = &mut self.connections[slot as usize] {
            connection.lent_bytes -= count;
            self.budget.give_back(count);
            if connection.lent_bytes > 0 {
                connection.moved_ms = (self.clock.now_ns() / 1_000_000) as u32;
                self.stats.short_sends += 1;
                self.stats.sends += 1;
            }
        }
    }

    /// The write is over; `bytes` is memory for the next.
    pub(super) fn return_output(&mut self, slot: u32, mut bytes: Vec<u8>) {
        self.writing -= 1;
        if let Some(connection) = &mut self.connections[slot as usize] {
            self.budget
                .give_back(std::mem::take(&mut connection.lent_bytes));
        }
        if bytes.capacity() <= BUFFER_BYTES && self.spare.len() < SPARE_BUFFERS {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Nothing can be sent or received any more.
    pub(super) fn lose(&mut self, slot: u32) {
        if let Some(connection) = &mut self.connections[slot as usize] {
            self.budget.give_back(connection.output.len());
            connection.output = Vec::new();
            if !aborted(connection.close) {
                connection.close = Some(CloseReason::Reset);
            }
        }
    }

    pub(super) fn is_closing(&self, slot: u32) -> bool {
        self.connections[slot as usize]
            .as_ref()
            .is_none_or(|connection| connection.close.is_some())
    }

    /// Ready when the task has something to write, or is to end.
    pub(super) fn is_wanted(&mut self, slot: u32, cx: &mut Context<'_>) -> Poll<()> {
        let Some(connection) = &mut self.connections[slot as usize] else {
            return Poll::Ready(());
        };
        if connection.close.is_some() || !connection.output.is_empty() {
            return Poll::Ready(());
        }
        connection.waiting = true;
        keep_waker(&mut connection.waker, cx);
        Poll::Pending
    }

    /// The task has ended.
    pub(super) fn leave(&mut self, slot: u32) {
        let Some(connection) = self.connections[slot as usize].take() else {
            return;
        };
        self.budget
            .give_back(connection.input_bytes + connection.output.len());
        self.stats
            .count_close(connection.close.unwrap_or(CloseReason::Failed));
        self.held -= 1;
        self.free.push(slot);
        self.worker.admission.leave(1);
        self.worker.admission.forget(self.sources.take(slot));
        if self.is_stopping() {
            self.call();
        }
    }

    // What the overseer calls.

    pub(super) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Connections.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// All slots are below this.
    pub(super) fn high_water(&self) -> u32 {
        self.connections.len() as u32
    }

    /// Lets a session say its heartbeat.
    pub(super) fn tick(&mut self, slot: u32, late_ns: u64) {
        if self.say(slot, Session::on_tick) > 0 {
            self.stats.count_heartbeat(late_ns);
        }
    }

    /// Gives a session what was published to all.
    pub(super) fn message(&mut self, slot: u32, message: &[u8]) {
        if !self.is_closing(slot) {
            self.stats.messages_published += 1;
            self.say(slot, |session, out| session.on_message(message, out));
        }
    }

    /// Closes connections whose peers said or took nothing for too long. Returns when to look again, if ever.
    pub(super) fn sweep(&mut self, now_ns: u64) -> Option<u64> {
        let waits = || self.writing > 0;
        let high_waters = || [self.connections.len() as u32];
        if let Some((_, slots)) = self.sweep.next(now_ns, waits, high_waters) {
            let now_ms = (now_ns / 1_000_000) as u32;
            self.judge(slots, self.sweep.rules(now_ns), now_ms);
        }
        self.sweep.next_due_ns(|| self.writing > 0)
    }

    fn judge(&mut self, slots: Range<u32>, rules: Rules, now_ms: u32) {
        for slot in slots {
            let Some(connection) = &self.connections[slot as usize] else {
                continue;
            };
            let is_stalled = connection.lent_bytes > 0;
            let stalled_ms = is_stalled.then(|| now_ms.wrapping_sub(connection.moved_ms));
            // One that closes with nothing waiting ends by itself.
            if (connection.close.is_none() || is_stalled)
                && let Some(reason) = rules.verdict(connection.heard, stalled_ms)
            {
                self.abort(slot, reason);
            }
        }
    }

    /// What it shuts down when it is to stop.
    pub(super) fn listens_on(&mut self, listener: Arc<TcpListener>) {
        self.listener = Some(listener);
    }

    /// Ends the accepts that are under way, and has no more of them.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        self.stats.drained = self.held.into();
        if let Some(listener) = self.listener.take()
            && let Err(error) = SockRef::from(&*listener).shutdown(Shutdown::Both)
        {
            warn!(%error, "the listener cannot be shut down");
        }
    }

    /// Ends a connection once its output is sent.
    pub(super) fn finish(&mut self, slot: u32) {
        if let Some(Some(connection)) = self.connections.get_mut(slot as usize)
            && connection.close.is_none()
        {
            connection.close = Some(CloseReason::Shutdown);
            wake(connection);
        }
    }

    /// Ends all connections now.
    pub(super) fn abort_all(&mut self) {
        for slot in 0..self.connections.len() as u32 {
            self.abort(slot, CloseReason::Shutdown);
        }
    }

    /// What was counted so far.
    pub(super) fn report(&self) -> Report {
        let mut stats = self.stats.clone();
        stats.pending_peak_bytes = self.budget.peak_bytes as u64;
        Report {
            worker: self.worker.number,
            stats,
            held: self.held,
            waiting_bytes: self.budget.used_bytes() as u64,
            tables: vec![TableUse {
                slots: self.worker.table_slots,
                used: self.held,
                held: self.held,
                high_water: self.high_water(),
            }],
        }
    }

    /// Ends a connection for the operator, and says whether it was there.
    pub(super) fn close(&mut self, close: Close) {
        let slot = close.place.slot;
        let found = self.connections.get(slot as usize).and_then(Option::as_ref);
        let is_it = found.is_some_and(|c| c.number == close.generation && !aborted(c.close));
        if is_it {
            self.abort(slot, CloseReason::Operator);
        }
        // Nobody waits any more.
        let _ = close.reply.send(is_it);
    }

    /// Ready when there is something to see to before the overseer meant to wake.
    pub(super) fn is_called(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.called) {
            return Poll::Ready(());
        }
        keep_waker(&mut self.overseer, cx);
        Poll::Pending
    }

    // What all come to.

    /// What a connection remembers that is heard now. Without an idle timeout the clock is not asked.
    fn heard_now(&self) -> Tick {
        let idle = self.worker.timeouts.idle;
        idle.map_or(Tick::default(), |_| self.sweep.tick(self.clock.now_ns()))
    }

    /// Has the overseer look before it meant to.
    fn call(&mut self) {
        self.called = true;
        if let Some(overseer) = &self.overseer {
            overseer.wake_by_ref();
        }
    }

    /// Lets a session say something, which then waits for the task. Returns how many bytes that was.
    fn say(&mut self, slot: u32, speak: impl FnOnce(&mut S, &mut Out<'_>)) -> usize {
        let Some(connection) = &mut self.connections[slot as usize] else {
            return 0;
        };
        if connection.close.is_some() {
            return 0;
        }
        let mut out = Out::new(&mut self.room);
        speak(&mut connection.session, &mut out);
        let (written, closing, overflowed) = (out.written(), out.closing(), out.overflowed());
        let waiting = connection.output.len() + connection.lent_bytes;
        let room = if overflowed || waiting + written > self.worker.limits.output_bytes_per_conn {
            Err(CloseReason::SlowReader)
        } else {
            self.budget.take(written)
        };
        if let Err(reason) = room {
            self.abort(slot, reason);
            return 0;
        }
        if written > 0 {
            if connection.output.capacity() == 0 {
                connection.output = self.spare.pop().unwrap_or_default();
            }
            connection.output.extend_from_slice(&self.room[..written]);
        }
        connection.close = closing.map(CloseReason::from);
        if written > 0 || closing.is_some() {
            wake(connection);
        }
        written
    }

    /// What its session leaves of a connection's input is now `bytes` long.
    fn keep_input(&mut self, slot: u32, bytes: usize) {
        let Some(connection) = &mut self.connections[slot as usize] else {
            return;
        };
        let before = connection.input_bytes;
        self.budget.give_back(before.saturating_sub(bytes));
        match self.budget.take(bytes.saturating_sub(before)) {
            Ok(()) => connection.input_bytes = bytes,
            Err(reason) => self.abort(slot, reason),
        }
    }

    /// Ends a connection whatever waits: what is under way on its socket ends too, and then its task.
    fn abort(&mut self, slot: u32, reason: CloseReason) {
        let Some(connection) = &mut self.connections[slot as usize] else {
            return;
        };
        self.budget.give_back(connection.output.len());
        connection.output = Vec::new();
        if !aborted(connection.close) {
            connection.close = Some(reason);
        }
        // It fails where the peer has gone already, and then everything under way ends anyway.
        let _ = connection.stream.shutdown(Shutdown::Both);
        wake(connection);
    }
}

impl<S: Session, F: Fn() -> S> Shelves for Hub<S, F> {
    fn high_water(&self, table: u32) -> Option<u32> {
        (table == 0).then_some(self.connections.len() as u32)
    }

    fn view(&self, place: Place) -> Option<View> {
        let connection = self.connections.get(place.slot as usize)?.as_ref()?;
        let now_ns = self.clock.now_ns();
        let output_bytes = connection.output.len() + connection.lent_bytes;
        let is_stalled = connection.lent_bytes > 0;
        Some(View {
            state: State::of(connection.close.is_some(), output_bytes > 0),
            idle_ms: self.sweep.silent_ms(connection.heard, now_ns),
            input_bytes: connection.input_bytes,
            output_bytes,
            stalled_ms: is_stalled
                .then(|| ((now_ns / 1_000_000) as u32).wrapping_sub(connection.moved_ms)),
            ..View::closing(place, connection.number)
        })
    }

    fn ask_kernel(&self, view: &mut View) {
        if let Some(Some(connection)) = self.connections.get(view.place.slot as usize) {
            view.peer = peer_of(connection.stream.as_raw_fd());
        }
    }
}

/// Whether this reason stands, however the connection's last operations end.
fn aborted(close: Option<CloseReason>) -> bool {
    matches!(
        close,
        Some(
            CloseReason::SlowReader
                | CloseReason::IdleTimeout
                | CloseReason::WriteTimeout
                | CloseReason::WorkerMemory
                | CloseReason::Shutdown
                | CloseReason::Operator
        )
    )
}

fn wake<S>(connection: &mut Connection<S>) {
    if std::mem::take(&mut connection.waiting)
        && let Some(waker) = &connection.waker
    {
        waker.wake_by_ref();
    }
}

fn keep_waker(kept: &mut Option<Waker>, cx: &Context<'_>) {
    if !kept.as_ref().is_some_and(|kept| kept.will_wake(cx.waker())) {
        *kept = Some(cx.waker().clone());
    }
}
