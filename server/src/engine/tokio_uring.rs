//! The tokio-uring engine: io_uring by the crate of that name, a task per connection, for comparison.
//!
//! One current-thread runtime a worker; single-shot accepts, reads and writes, as that crate has them. A connection's
//! task alone reads and writes its socket: it starts the next read, then writes what was said, and looks at
//! what was read only when all of that is sent. So a peer that does not read is not heard either, and what waits is
//! bounded without more ado. One more task, the overseer, walks heartbeats, published messages and
//! stalled writes past all connections; what it makes their sessions say it leaves for their tasks.
//!
//! Owns: the runtime, and [`Hub`], everything about all connections save the futures. Stands on `wire` and
//! uses nothing of `ring`.
//!
//! Limits: each connection takes a file descriptor (RLIMIT_NOFILE), a buffer of 4 KiB that the kernel holds while it
//! waits for input, and a task. The crate has no multishot operations, buffer rings or direct descriptors, waits for its
//! ring through epoll, and panics where the kernel refuses to take an operation.
//!
//! Invariant: no operation is in flight when its future is dropped. That would not cancel it, and the crate
//! frees the buffers of such operations when its runtime ends, kernel or no. So a read is ended by `shutdown` of
//! its socket and awaited, and a runtime that is not idle in time is left alone, not dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_uring::BufResult;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};
use tracing::warn;
use wire::{Close, Out, Session};

use crate::engine::{Engine, EngineError};
use crate::schedule::{Heartbeats, Walk};
use crate::stats::{CloseReason, Stats};
use crate::worker::{Clock, Command, Message, Worker};

/// The engine of [`EngineKind::TokioUring`](crate::EngineKind::TokioUring).
pub struct TokioUring;

const SUBMISSIONS: u32 = 1024;
/// Two operations for each of 8192 connections; more wait in the kernel until these are read.
const COMPLETIONS: u32 = 16 * 1024;
/// Single-shot accepts under way at a time.
const ACCEPTS: u32 = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection's read has room for; more only while the session leaves input unconsumed.
const BUFFER_BYTES: usize = 4 * 1024;
/// Output buffers of at most [`BUFFER_BYTES`] kept for the next that has something to say.
const SPARE_BUFFERS: usize = 1024;
const SESSIONS_PER_TURN: usize = 1024;
const STEP_NS: u64 = 1_000_000;
const SWEEP_NS: u64 = 1_000_000_000;
/// How long tasks may take to end once their sockets are shut down.
const END_BOUND_NS: u64 = 5_000_000_000;

impl Engine for TokioUring {
    fn run<S: Session + 'static, F: Fn() -> S + 'static>(
        worker: Worker<F>,
    ) -> Result<Stats, EngineError> {
        let mut ring = tokio_uring::uring_builder();
        // Linux 5.19. Not deferred task work: the crate waits in epoll, where nothing would run it.
        ring.setup_cqsize(COMPLETIONS).setup_coop_taskrun();
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSIONS).uring_builder(&ring);
        let runtime = tokio_uring::Runtime::new(&builder)
            .map_err(EngineError::system("setting up tokio-uring"))?;
        let hub = Rc::new(RefCell::new(Hub::new(worker)));
        let ended = runtime.block_on(oversee(&hub));
        if hub.borrow().is_idle() {
            drop(runtime);
        } else {
            warn!("operations do not end: their memory is left to them");
            std::mem::forget(runtime);
        }
        ended?;
        let stats = hub.borrow_mut().end();
        Ok(stats)
    }
}

type Shared<S, F> = Rc<RefCell<Hub<S, F>>>;

/// Accepts, then does what comes to every connection, until the worker is to stop and all have ended.
async fn oversee<S: Session + 'static, F: Fn() -> S + 'static>(
    hub: &Shared<S, F>,
) -> Result<(), EngineError> {
    let worker = Rc::clone(&hub.borrow().worker);
    let mailbox = worker.mailbox().wake().as_fd().try_clone_to_owned();
    let mailbox = mailbox
        .and_then(watch)
        .map_err(EngineError::system("watching the mailbox"))?;
    // On some kernels an accept on a non-blocking socket fails instead of waiting.
    let listener = worker
        .listener
        .set_nonblocking(false)
        .and_then(|()| worker.listener.try_clone())
        .map_err(EngineError::system("preparing the listener"))?;
    let listener = Rc::new(TcpListener::from_std(listener));
    hub.borrow_mut().accepting = ACCEPTS;
    for _ in 0..ACCEPTS {
        tokio_uring::spawn(accept(Rc::clone(hub), Rc::clone(&listener)));
    }
    worker.ready();
    loop {
        let (now_ns, wake_ns) = hub.borrow_mut().turn();
        if hub.borrow().has_ended(now_ns) {
            return Ok(());
        }
        if wake_ns <= now_ns {
            tokio::task::yield_now().await;
            continue;
        }
        let called = poll_fn(|cx| {
            if let Poll::Ready(Ok(mut mail)) = mailbox.poll_read_ready(cx) {
                mail.clear_ready();
                hub.borrow_mut().read_mailbox();
                return Poll::Ready(());
            }
            hub.borrow_mut().is_called(cx)
        });
        // Elapsed or called, the next turn sees to it.
        let _ = tokio::time::timeout(Duration::from_nanos(wake_ns - now_ns), called).await;
    }
}

// Deprecated for descriptors that may be closed meanwhile, in favour of an unsafe function; an owned one cannot.
#[allow(deprecated)]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

async fn accept<S: Session + 'static, F: Fn() -> S + 'static>(
    hub: Shared<S, F>,
    listener: Rc<TcpListener>,
) {
    while !hub.borrow().is_stopping() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let stream = Rc::new(stream);
                let opened = hub.borrow_mut().open(&stream);
                if let Some(slot) = opened {
                    tokio_uring::spawn(converse(Rc::clone(&hub), slot, stream));
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().map(Errno::from_raw);
                if let Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) = errno
                {
                    hub.borrow_mut().count_retry(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // Otherwise the peer has gone again, or the listener is shut down.
            }
        }
    }
    let mut hub = hub.borrow_mut();
    hub.accepting -= 1;
    hub.call();
}

/// A connection's task.
async fn converse<S: Session, F: Fn() -> S>(hub: Shared<S, F>, slot: u32, stream: Rc<TcpStream>) {
    let mut reading = pin!(read(&stream, Vec::with_capacity(BUFFER_BYTES)));
    let mut input = Input::UnderWay;
    loop {
        loop {
            let lent = hub.borrow_mut().lend_output(slot);
            let Some(bytes) = lent else { break };
            let bytes = write(&hub, slot, &stream, bytes, &mut reading, &mut input).await;
            hub.borrow_mut().return_output(slot, bytes);
        }
        if hub.borrow().is_closing(slot) {
            break;
        }
        if let Input::UnderWay = input {
            input = poll_fn(|cx| match reading.as_mut().poll(cx) {
                Poll::Ready(read) => Poll::Ready(Input::Read(read)),
                Poll::Pending => hub
                    .borrow_mut()
                    .is_wanted(slot, cx)
                    .map(|()| Input::UnderWay),
            })
            .await;
        }
        let mut hub = hub.borrow_mut();
        let mut buffer = match std::mem::replace(&mut input, Input::Ended) {
            Input::UnderWay => {
                input = Input::UnderWay;
                continue;
            }
            Input::Left(buffer) => buffer,
            Input::Read((Ok(read), buffer)) if read > 0 => {
                hub.count_receive(slot, read);
                buffer
            }
            Input::Read((Ok(_), rest)) => {
                hub.receive_eof(slot, &rest);
                continue;
            }
            Input::Read((Err(_), _)) | Input::Ended => {
                hub.lose(slot);
                continue;
            }
        };
        if hub.digest(slot, &mut buffer) {
            input = Input::Left(buffer);
        } else if !hub.is_closing(slot) {
            reading.set(read(&stream, buffer));
            input = Input::UnderWay;
        }
    }
    if let Input::UnderWay = input {
        // It fails where the peer has gone already, and then the read ends too.
        let _ = stream.shutdown(Shutdown::Both);
        let _ = reading.await;
    }
    hub.borrow_mut().leave(slot);
}

/// Where a connection's input is.
enum Input {
    /// The kernel has the buffer.
    UnderWay,
    /// The read has ended; nobody has looked yet.
    Read(BufResult<usize, Vec<u8>>),
    /// The session has more to consume once its output is sent.
    Left(Vec<u8>),
    /// No more comes.
    Ended,
}

/// Reads behind what `buffer` holds.
async fn read(stream: &TcpStream, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
    let from = buffer.len();
    let (result, buffer) = stream.read(buffer.slice(from..)).await;
    (result, buffer.into_inner())
}

/// Writes all of `bytes` while a read may be under way, and returns them. A connection that is lost meanwhile is closing.
async fn write<S: Session, F: Fn() -> S>(
    hub: &Shared<S, F>,
    slot: u32,
    stream: &TcpStream,
    mut bytes: Vec<u8>,
    reading: &mut Pin<&mut impl Future<Output = BufResult<usize, Vec<u8>>>>,
    input: &mut Input,
) -> Vec<u8> {
    let mut written = 0;
    while written < bytes.len() {
        let mut writing = stream.write(bytes.slice(written..)).submit();
        let (result, slice) = poll_fn(|cx| {
            if let Input::UnderWay = input
                && let Poll::Ready(read) = reading.as_mut().poll(cx)
            {
                *input = Input::Read(read);
            }
            Pin::new(&mut writing).poll(cx)
        })
        .await;
        bytes = slice.into_inner();
        match result {
            Ok(count) if count > 0 => {
                written += count;
                hub.borrow_mut().sent(slot, count);
            }
            _ => {
                hub.borrow_mut().lose(slot);
                break;
            }
        }
    }
    bytes
}

struct Connection<S> {
    session: S,
    stream: Rc<TcpStream>,
    /// Unsent and not with the task.
    output: Vec<u8>,
    /// Unsent and with the task.
    lent_bytes: usize,
    /// Unconsumed, in the buffer of the task.
    input_bytes: usize,
    /// When the lent bytes last moved.
    moved_ms: u32,
    /// The session is not called any more; the task ends once the output is sent.
    close: Option<CloseReason>,
    /// The task waits for input, or for this.
    waiting: bool,
    waker: Option<Waker>,
}

/// All connections of a worker, and what comes to all of them. Touches no kernel, save to shut a socket down.
struct Hub<S, F> {
    worker: Rc<Worker<F>>,
    clock: Clock,
    connections: Vec<Option<Connection<S>>>,
    free: Vec<u32>,
    held: u32,
    /// Accepting tasks.
    accepting: u32,
    /// Connections with a write under way.
    writing: u32,
    heartbeats: Option<Heartbeats>,
    /// Published messages on their way past the connections, oldest first, the first of them walking.
    published: VecDeque<(Arc<Message>, Option<Walk>)>,
    /// What sessions write to.
    room: Vec<u8>,
    spare: Vec<Vec<u8>>,
    /// Unconsumed input and unsent output of all connections.
    used_bytes: usize,
    stats: Stats,
    swept_ns: u64,
    drain_until_ns: Option<u64>,
    /// The overseer has something to see to before it meant to wake.
    called: bool,
    overseer: Option<Waker>,
}

impl<S: Session, F: Fn() -> S> Hub<S, F> {
    fn new(worker: Worker<F>) -> Self {
        let clock = Clock::new();
        Hub {
            clock,
            connections: Vec::new(),
            free: Vec::new(),
            held: 0,
            accepting: 0,
            writing: 0,
            heartbeats: worker.heartbeat.map(|every| {
                Heartbeats::new(every.as_nanos() as u64, worker.table_slots, clock.now_ns())
            }),
            published: VecDeque::new(),
            room: vec![0; Out::MIN_ROOM],
            spare: Vec::new(),
            used_bytes: 0,
            stats: Stats::new(),
            swept_ns: 0,
            drain_until_ns: None,
            called: false,
            overseer: None,
            worker: Rc::new(worker),
        }
    }

    // What connections' tasks call.

    /// Takes a connection in and lets it greet. None where it is refused.
    fn open(&mut self, stream: &Rc<TcpStream>) -> Option<u32> {
        if !self.worker.admission.enter() {
            self.stats.refused_max_connections += 1;
            return None;
        }
        self.stats.accepted += 1;
        self.held += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            // Its heartbeat may be due before all others'.
            self.call();
            self.connections.len() as u32 - 1
        });
        self.connections[slot as usize] = Some(Connection {
            session: (self.worker.session)(),
            stream: Rc::clone(stream),
            output: Vec::new(),
            lent_bytes: 0,
            input_bytes: 0,
            moved_ms: 0,
            close: None,
            waiting: false,
            waker: None,
        });
        self.say(slot, Session::on_open);
        Some(slot)
    }

    fn count_retry(&mut self, error: &io::Error) {
        if self.stats.accept_retries == 0 {
            warn!(%error, "accepting pauses; connections wait in the backlog");
        }
        self.stats.accept_retries += 1;
    }

    fn count_receive(&mut self, slot: u32, bytes: usize) {
        self.stats.receives += 1;
        self.stats.bytes_in += bytes as u64;
        if let Some(connection) = &mut self.connections[slot as usize] {
            connection.waiting = false;
        }
    }

    /// Gives the session what `buffer` holds and keeps the rest there, with room behind it. True where it may consume
    /// more once its output is sent.
    fn digest(&mut self, slot: u32, buffer: &mut Vec<u8>) -> bool {
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

    fn receive_eof(&mut self, slot: u32, rest: &[u8]) {
        self.say(slot, |session, out| session.on_eof(rest, out));
        if let Some(connection) = &mut self.connections[slot as usize]
            && !aborted(connection.close)
        {
            connection.close = Some(CloseReason::PeerClosed);
        }
    }

    /// The output that waits, for the task to write.
    fn lend_output(&mut self, slot: u32) -> Option<Vec<u8>> {
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
    fn sent(&mut self, slot: u32, count: usize) {
        self.stats.bytes_out += count as u64;
        if let Some(connection) = &mut self.connections[slot as usize] {
            connection.lent_bytes -= count;
            self.used_bytes -= count;
            if connection.lent_bytes > 0 {
                connection.moved_ms = (self.clock.now_ns() / 1_000_000) as u32;
                self.stats.short_sends += 1;
                self.stats.sends += 1;
            }
        }
    }

    /// The write is over; `bytes` is memory for the next.
    fn return_output(&mut self, slot: u32, mut bytes: Vec<u8>) {
        self.writing -= 1;
        if let Some(connection) = &mut self.connections[slot as usize] {
            self.used_bytes -= std::mem::take(&mut connection.lent_bytes);
        }
        if bytes.capacity() <= BUFFER_BYTES && self.spare.len() < SPARE_BUFFERS {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// Nothing can be sent or received any more.
    fn lose(&mut self, slot: u32) {
        if let Some(connection) = &mut self.connections[slot as usize] {
            self.used_bytes -= connection.output.len();
            connection.output = Vec::new();
            if !aborted(connection.close) {
                connection.close = Some(CloseReason::Reset);
            }
        }
    }

    fn is_closing(&self, slot: u32) -> bool {
        self.connections[slot as usize]
            .as_ref()
            .is_none_or(|connection| connection.close.is_some())
    }

    /// Ready when the task has something to write, or is to end.
    fn is_wanted(&mut self, slot: u32, cx: &mut Context<'_>) -> Poll<()> {
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
    fn leave(&mut self, slot: u32) {
        let Some(connection) = self.connections[slot as usize].take() else {
            return;
        };
        self.used_bytes -= connection.input_bytes + connection.output.len();
        self.stats
            .count_close(connection.close.unwrap_or(CloseReason::Failed));
        self.held -= 1;
        self.free.push(slot);
        self.worker.admission.leave(1);
        if self.is_stopping() {
            self.call();
        }
    }

    // What the overseer calls.

    /// Does what is due. Returns the time, and when to look again.
    fn turn(&mut self) -> (u64, u64) {
        let now_ns = self.clock.now_ns();
        let busy = self.beat(now_ns) | self.publish(now_ns);
        if now_ns - self.swept_ns >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.sweep((now_ns / 1_000_000) as u32);
        }
        let mut wake_ns = self.swept_ns + SWEEP_NS;
        if let Some(until_ns) = self.drain_until_ns {
            self.drain(now_ns >= until_ns);
            wake_ns = wake_ns.min(until_ns.max(now_ns + STEP_NS));
        }
        if busy {
            return (now_ns, now_ns);
        }
        if !self.published.is_empty() {
            wake_ns = wake_ns.min(now_ns + STEP_NS);
        }
        if let Some(heartbeats) = &self.heartbeats
            && self.held > 0
            && let Some(due_ns) = heartbeats.next_due_ns(self.connections.len() as u32)
        {
            wake_ns = wake_ns.min(due_ns.max(now_ns + STEP_NS));
        }
        (now_ns, wake_ns)
    }

    /// Lets sessions say the heartbeats that are due. True where some are left for the next turn.
    fn beat(&mut self, now_ns: u64) -> bool {
        let high_water = self.connections.len() as u32;
        for _ in 0..SESSIONS_PER_TURN {
            let Some(heartbeats) = &mut self.heartbeats else {
                return false;
            };
            let Some((slot, late_ns)) = heartbeats.next(now_ns, high_water) else {
                return false;
            };
            if self.say(slot, Session::on_tick) > 0 {
                self.stats.count_heartbeat(late_ns);
            }
        }
        true
    }

    /// Gives published messages to the sessions whose time has come. True where some are left for the next turn.
    fn publish(&mut self, now_ns: u64) -> bool {
        for _ in 0..SESSIONS_PER_TURN {
            let high_water = self.connections.len() as u32;
            let Some((message, walk)) = self.published.front_mut() else {
                return false;
            };
            let walk = walk.get_or_insert_with(|| {
                Walk::new([high_water], message.over.as_nanos() as u64, now_ns)
            });
            if walk.is_done() {
                self.published.pop_front();
                continue;
            }
            let Some((_, slot)) = walk.next(now_ns) else {
                return false;
            };
            let message = Arc::clone(message);
            if !self.is_closing(slot) {
                self.stats.messages_published += 1;
                self.say(slot, |session, out| session.on_message(&message.bytes, out));
            }
        }
        true
    }

    /// Closes connections whose peers took nothing for too long.
    fn sweep(&mut self, now_ms: u32) {
        if self.writing == 0 {
            return;
        }
        for slot in 0..self.connections.len() {
            if let Some(connection) = &self.connections[slot]
                && connection.lent_bytes > 0
                && now_ms.wrapping_sub(connection.moved_ms) > self.worker.limits.write_timeout_ms
            {
                self.abort(slot as u32, CloseReason::WriteTimeout);
            }
        }
    }

    fn read_mailbox(&mut self) {
        let worker = Rc::clone(&self.worker);
        for command in worker.mailbox().take() {
            match command {
                Command::Stop if self.drain_until_ns.is_none() => {
                    let timeout = worker.drain_timeout.as_nanos() as u64;
                    self.drain_until_ns = Some(self.clock.now_ns() + timeout);
                    // Ends the accepts that are under way.
                    if let Err(error) = SockRef::from(&worker.listener).shutdown(Shutdown::Both) {
                        warn!(%error, "the listener cannot be shut down");
                    }
                }
                Command::Stop => {}
                Command::Publish(message) => self.published.push_back((message, None)),
            }
        }
    }

    /// Ends connections: once all is published and their output is sent, or `now`.
    fn drain(&mut self, now: bool) {
        if !self.published.is_empty() && !now {
            return;
        }
        for slot in 0..self.connections.len() as u32 {
            if now {
                self.abort(slot, CloseReason::Shutdown);
            } else if let Some(connection) = &mut self.connections[slot as usize]
                && connection.close.is_none()
            {
                connection.close = Some(CloseReason::Shutdown);
                wake(connection);
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.drain_until_ns.is_some()
    }

    fn is_idle(&self) -> bool {
        self.held == 0 && self.accepting == 0
    }

    fn has_ended(&self, now_ns: u64) -> bool {
        self.drain_until_ns
            .is_some_and(|until_ns| self.is_idle() || now_ns >= until_ns + END_BOUND_NS)
    }

    fn is_called(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.called) {
            return Poll::Ready(());
        }
        keep_waker(&mut self.overseer, cx);
        Poll::Pending
    }

    fn end(&mut self) -> Stats {
        if self.held > 0 {
            *self.stats.closed.entry(CloseReason::Shutdown).or_default() += u64::from(self.held);
            self.worker.admission.leave(u64::from(self.held));
        }
        std::mem::take(&mut self.stats)
    }

    // What both come to.

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
        let limits = &self.worker.limits;
        let waiting = connection.output.len() + connection.lent_bytes;
        if overflowed || waiting + written > limits.output_bytes_per_conn {
            self.abort(slot, CloseReason::SlowReader);
            return 0;
        }
        if self.used_bytes + written > limits.bytes_per_worker {
            self.abort(slot, CloseReason::WorkerMemory);
            return 0;
        }
        if written > 0 {
            if connection.output.capacity() == 0 {
                connection.output = self.spare.pop().unwrap_or_default();
            }
            connection.output.extend_from_slice(&self.room[..written]);
        }
        connection.close = closing.map(|close| match close {
            Close::Done => CloseReason::Finished,
            Close::TooLong => CloseReason::TooLong,
        });
        if written > 0 || closing.is_some() {
            wake(connection);
        }
        self.use_bytes(written);
        written
    }

    fn keep_input(&mut self, slot: u32, bytes: usize) {
        let Some(connection) = &mut self.connections[slot as usize] else {
            return;
        };
        let before = std::mem::replace(&mut connection.input_bytes, bytes);
        self.used_bytes -= before;
        self.use_bytes(bytes);
        if bytes > before && self.used_bytes > self.worker.limits.bytes_per_worker {
            self.abort(slot, CloseReason::WorkerMemory);
        }
    }

    fn use_bytes(&mut self, bytes: usize) {
        self.used_bytes += bytes;
        self.stats.pending_peak_bytes = self.stats.pending_peak_bytes.max(self.used_bytes as u64);
    }

    /// Ends a connection whatever waits: what is under way on its socket ends too, and then its task.
    fn abort(&mut self, slot: u32, reason: CloseReason) {
        let Some(connection) = &mut self.connections[slot as usize] else {
            return;
        };
        self.used_bytes -= connection.output.len();
        connection.output = Vec::new();
        if !aborted(connection.close) {
            connection.close = Some(reason);
        }
        // It fails where the peer has gone already, and then everything under way ends anyway.
        let _ = connection.stream.shutdown(Shutdown::Both);
        wake(connection);
    }
}

/// Whether this reason stands, however the connection's last operations end.
fn aborted(close: Option<CloseReason>) -> bool {
    matches!(
        close,
        Some(
            CloseReason::SlowReader
                | CloseReason::WriteTimeout
                | CloseReason::WorkerMemory
                | CloseReason::Shutdown
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use super::*;
    use crate::{Config, EngineKind, Server};

    const LONG: Duration = Duration::from_secs(20);

    /// None, said loudly, where this machine has no io_uring.
    fn serve<S: Session + 'static>(
        change: impl FnOnce(&mut Config),
        session: impl Fn() -> S + Clone + Send + 'static,
    ) -> Option<Server> {
        if let Err(why) = ring::probe() {
            eprintln!("SKIPPED: {why}");
            return None;
        }
        let core = kernel_tuning::process::affinity().unwrap()[0];
        let address = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::new(address, EngineKind::TokioUring, vec![core]);
        change(&mut config);
        Some(crate::start(&config, |_| session).unwrap())
    }

    fn connect(server: &Server) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Writes until the server reads no more.
    fn be_deaf(stream: &mut std::net::TcpStream) {
        let patience = Some(Duration::from_millis(300));
        stream.set_write_timeout(patience).unwrap();
        while stream.write(&[1; 1 << 16]).is_ok() {}
    }

    fn until(done: impl Fn() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < LONG, "it does not come to pass");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn closed(server: Server) -> Vec<(CloseReason, u64)> {
        server
            .stopper()
            .send(crate::worker::Event::Stop("test"))
            .unwrap();
        let stats = server.wait().unwrap().stats;
        stats.closed.into_iter().collect()
    }

    /// Consumes nothing.
    #[derive(Clone)]
    struct Stubborn;

    impl Session for Stubborn {
        fn on_open(&mut self, _out: &mut Out<'_>) {}
        fn on_bytes(&mut self, _input: &[u8], _out: &mut Out<'_>) -> usize {
            0
        }
        fn on_tick(&mut self, _out: &mut Out<'_>) {}
        fn on_message(&mut self, _message: &[u8], _out: &mut Out<'_>) {}
        fn on_eof(&mut self, _rest: &[u8], _out: &mut Out<'_>) {}
    }

    #[test]
    fn a_peer_that_takes_nothing_is_closed_in_time() {
        let Some(server) = serve(|c| c.limits.write_timeout_ms = 500, || wire::Echo) else {
            return;
        };
        let mut deaf = connect(&server);
        be_deaf(&mut deaf);
        until(|| server.held() == 0);
        assert_eq!(closed(server), [(CloseReason::WriteTimeout, 1)]);
    }

    #[test]
    fn a_peer_that_takes_nothing_does_not_keep_the_server() {
        let short = Duration::from_millis(300);
        let Some(server) = serve(|c| c.drain_timeout = short, || wire::Echo) else {
            return;
        };
        let mut deaf = connect(&server);
        be_deaf(&mut deaf);
        let started = Instant::now();
        assert_eq!(closed(server), [(CloseReason::Shutdown, 1)]);
        assert!(started.elapsed() >= short && started.elapsed() < LONG);
    }

    #[test]
    fn unsaid_bytes_and_unread_messages_are_bounded() {
        let bounded = |c: &mut Config| {
            c.limits.input_bytes_per_conn = 10_000;
            c.limits.output_bytes_per_conn = 100_000;
            c.limits.bytes_per_worker = 150_000;
        };
        let Some(server) = serve(bounded, || Stubborn) else {
            return;
        };
        let mut talker = connect(&server);
        let _ = talker.write_all(&[0; 20_000]);
        let _ = talker.read(&mut [0]);
        let many: Vec<_> = (0..20).map(|_| connect(&server)).collect();
        for mut stream in &many {
            stream.write_all(&[0; 9_000]).unwrap();
        }
        until(|| server.held() == 16);
        let expected = [
            (CloseReason::TooLong, 1),
            (CloseReason::WorkerMemory, 4),
            (CloseReason::Shutdown, 16),
        ];
        assert_eq!(closed(server), expected);

        let Some(server) = serve(bounded, || wire::Echo) else {
            return;
        };
        let mut deaf = connect(&server);
        be_deaf(&mut deaf);
        for _ in 0..10 {
            server
                .publisher()
                .publish([7; 50_000], Duration::ZERO)
                .unwrap();
        }
        until(|| server.held() == 0);
        assert_eq!(closed(server), [(CloseReason::SlowReader, 1)]);
    }
}
