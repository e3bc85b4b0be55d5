//! The epoll engine: the baseline, as a good C programmer would write it.
//!
//! Readiness, then non-blocking calls: accept4 in batches, one receive per event, the answer sent straight after
//! it, no allocation per message. Owns: the epoll instance, the connections by descriptor, two buffers.
//! Uses nothing of `ring`. Level-triggered: edge-triggered measured the same at 500 active connections and 11 % dearer at
//! 10,000 (docs/measurements.md).
//!
//! Invariant: a connection with output that waits asks for room only, one without asks for input only. An event for a
//! descriptor that was closed and given out again within one batch is harmless: the call says EAGAIN.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv, send};
use tracing::warn;
use wire::{Out, Session};

use crate::admission::Sources;
use crate::conn::{Budget, Conn, Said};
use crate::drain::{CLOSED_PER_TURN, Drain};
use crate::engine::{
    Engine, EngineError, HEARTBEATS_PER_TURN, IDLE, PUBLISHED_PER_TURN, turn_away,
};
use crate::schedule::{Heartbeats, Published, STEP_NS};
use crate::stats::{CloseReason, Stats};
use crate::timeouts::{Sweep, Tick};
use crate::worker::{Clock, Command, Worker};

/// The engine of [`EngineKind::Epoll`](crate::EngineKind::Epoll).
pub struct EpollEngine;

const EVENTS: usize = 512;
const ACCEPTS_PER_EVENT: usize = 256;
const RECV_BYTES: usize = 32 * 1024;
const ACCEPT_PAUSE_MS: u32 = 50;

const SEND_FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// What a connection asks for that has nothing waiting to be sent. The end of the input counts as input.
const INPUT: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

/// Event data that no connection's descriptor has.
const LISTENER: u64 = u64::MAX;
const MAILBOX: u64 = u64::MAX - 1;

impl Engine for EpollEngine {
    fn run<S: Session, F: Fn() -> S>(worker: Worker<F>) -> Result<Stats, EngineError> {
        let mut server = Loop::new(worker)?;
        if server.worker.ready() {
            server.serve()?;
        }
        Ok(server.end())
    }
}

struct Connection<S> {
    conn: Conn<S>,
    fd: OwnedFd,
    /// Asks for room, not for input.
    awaits_room: bool,
    /// When something was last received.
    heard: Tick,
    /// Closes, for this reason, once all output is sent.
    finishing: Option<CloseReason>,
}

/// All that userspace keeps of an idle connection.
const _: () = assert!(size_of::<Option<Connection<wire::Line>>>() <= 24);

struct Loop<S, F> {
    worker: Worker<F>,
    clock: Clock,
    epoll: Epoll,
    /// By descriptor.
    connections: Vec<Option<Connection<S>>>,
    held: u32,
    sources: Sources,
    heartbeats: Option<Heartbeats>,
    published: Published,
    budget: Budget,
    stats: Stats,
    now_ns: u64,
    sweep: Sweep,
    /// The sweep's tick at `now_ns`.
    tick: Tick,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Connections with output that waits.
    waiting: u32,
    accept_at_ms: Option<u32>,
    drain: Option<Drain>,
    turn: u32,
}

impl<S: Session, F: Fn() -> S> Loop<S, F> {
    fn new(worker: Worker<F>) -> Result<Self, EngineError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| EngineError::system("epoll_create1")(e.into()))?;
        let add = |fd: &dyn std::os::fd::AsFd, data| {
            epoll
                .add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data))
                .map_err(|e| EngineError::system("epoll_ctl")(e.into()))
        };
        if let Some(listener) = &worker.listener {
            add(&**listener, LISTENER)?;
        }
        add(worker.mailbox().wake(), MAILBOX)?;
        let clock = Clock::new();
        let slots = worker.table_slots;
        Ok(Loop {
            epoll,
            connections: Vec::with_capacity(slots as usize),
            held: 0,
            sources: Sources::default(),
            heartbeats: worker
                .heartbeat_at_start()
                .map(|every| Heartbeats::new(every.as_nanos() as u64, slots, clock.now_ns())),
            published: Published::default(),
            budget: Budget::new(worker.limits),
            stats: Stats::new(),
            now_ns: clock.now_ns(),
            sweep: Sweep::new(worker.timeouts, clock.now_ns()),
            tick: Tick::default(),
            input: vec![0; RECV_BYTES],
            output: vec![0; Out::MIN_ROOM],
            waiting: 0,
            accept_at_ms: None,
            drain: None,
            turn: 0,
            clock,
            worker,
        })
    }

    fn serve(&mut self) -> Result<(), EngineError> {
        if let Some(listener) = &self.worker.listener {
            listener
                .set_nonblocking(true)
                .map_err(EngineError::system("making the listener non-blocking"))?;
        }
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            let ready = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(EngineError::system("epoll_wait")(errno.into())),
            };
            self.now_ns = self.clock.now_ns();
            self.tick = self.sweep.tick(self.now_ns);
            for event in &events[..ready] {
                match event.data() {
                    LISTENER => self.accept(),
                    MAILBOX => self.read_mailbox(),
                    fd => self.ready(fd as RawFd),
                }
            }
            self.beat();
            self.publish();
            self.sweep();
            if self.accept_at_ms.is_some_and(|at| self.now_ms() >= at) {
                self.accept_at_ms = None;
                self.listen(EpollFlags::EPOLLIN);
            }
            self.let_go();
            self.turn = self.turn.wrapping_add(1);
            self.worker.pulse.beat(self.turn, self.held);
            if let Some(drain) = &self.drain
                && (drain.is_over(self.now_ns) || self.held == 0)
            {
                return Ok(());
            }
        }
    }

    fn end(mut self) -> Stats {
        if self.held > 0 {
            *self.stats.closed.entry(CloseReason::Shutdown).or_default() += u64::from(self.held);
        }
        self.worker.admission.leave(u64::from(self.held));
        self.stats.pending_peak_bytes = self.budget.peak_bytes as u64;
        self.stats
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_EVENT {
            let Some(listener) = &self.worker.listener else {
                return;
            };
            // One accept4. The socket stays blocking, which costs a system call less; every receive and send says
            // MSG_DONTWAIT instead.
            match listener.accept().map_err(errno_of) {
                Ok((stream, _)) => self.accepted(stream.into()),
                Err(Errno::EAGAIN) => return,
                Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)) => {
                    if self.stats.accept_retries == 0 {
                        warn!(%errno, "accepting pauses; connections wait in the backlog");
                    }
                    self.stats.accept_retries += 1;
                    self.accept_at_ms = Some(self.now_ms() + ACCEPT_PAUSE_MS);
                    // The listener stays readable: without this the loop would spin on it.
                    self.listen(EpollFlags::empty());
                    return;
                }
                // The peer has gone again; the next one may be there.
                Err(_) => {}
            }
        }
    }

    fn accepted(&mut self, fd: OwnedFd) {
        let raw = fd.as_raw_fd();
        let source = match self.worker.admission.enter(raw) {
            Ok(source) => source,
            Err(reason) => {
                self.stats.count_refusal(reason);
                return turn_away(raw, &self.worker.refusal);
            }
        };
        if let Err(errno) = self.epoll.add(&fd, EpollEvent::new(INPUT, raw as u64)) {
            self.stats.accepted += 1;
            let closed = self.stats.closed.entry(CloseReason::Failed).or_default();
            if *closed == 0 {
                warn!(%errno, "a connection cannot be watched and is closed; see fs.epoll.max_user_watches");
            }
            *closed += 1;
            self.worker.admission.leave(1);
            self.worker.admission.forget(source);
            return;
        }
        self.sources.put(raw as u32, source);
        self.stats.accepted += 1;
        self.held += 1;
        if self.connections.len() <= raw as usize {
            self.connections.resize_with(raw as usize + 1, || None);
        }
        let connection = self.connections[raw as usize].insert(Connection {
            conn: Conn::new((self.worker.session)()),
            fd,
            awaits_room: false,
            heard: self.tick,
            finishing: None,
        });
        let said = connection.conn.open(&mut self.output);
        self.deliver(raw, said);
    }

    fn ready(&mut self, fd: RawFd) {
        match self.connection(fd) {
            Some(connection) if connection.awaits_room => self.flush(fd),
            Some(_) => self.receive(fd),
            None => {}
        }
    }

    /// One receive: what is left in the socket is announced again.
    fn receive(&mut self, fd: RawFd) {
        match recv(fd, &mut self.input, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => {
                if let Some(connection) = self.connection(fd) {
                    connection.conn.receive_eof();
                }
                self.digest(fd);
            }
            Ok(received) => {
                self.stats.receives += 1;
                self.stats.bytes_in += received as u64;
                let Some(Some(connection)) = self.connections.get_mut(fd as usize) else {
                    return;
                };
                connection.heard = self.tick;
                let said = connection.conn.receive(
                    &self.input[..received],
                    &mut self.output,
                    &mut self.budget,
                );
                self.deliver(fd, said);
                self.digest(fd);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.close(fd, CloseReason::Reset),
        }
    }

    /// Gives the session what waits for it, as long as that gets somewhere.
    fn digest(&mut self, fd: RawFd) {
        while let Some(Some(connection)) = self.connections.get_mut(fd as usize) {
            if connection.finishing.is_some() || !connection.conn.wants_to_digest() {
                return;
            }
            let said = connection.conn.digest(&mut self.output, &mut self.budget);
            self.deliver(fd, said);
        }
    }

    /// Sends what a session said, or lets it wait, and closes where that is asked for.
    fn deliver(&mut self, fd: RawFd, said: Said) {
        let now_ms = self.now_ms();
        let Some(Some(connection)) = self.connections.get_mut(fd as usize) else {
            return;
        };
        if said.written > 0 {
            let mut sent = 0;
            if !connection.conn.has_output() {
                self.stats.sends += 1;
                sent = match send(fd, &self.output[..said.written], SEND_FLAGS) {
                    Ok(sent) => sent,
                    Err(Errno::EAGAIN | Errno::EINTR) => 0,
                    Err(_) => return self.close(fd, CloseReason::Reset),
                };
                self.stats.bytes_out += sent as u64;
            }
            let unsent = &self.output[sent..said.written];
            if !unsent.is_empty() {
                self.stats.short_sends += 1;
                if let Err(reason) = connection
                    .conn
                    .keep_output(unsent, now_ms, &mut self.budget)
                {
                    return self.close(fd, reason);
                }
                self.await_room(fd, true);
            }
        }
        match said.close {
            None => {}
            Some(
                reason @ (CloseReason::Finished | CloseReason::PeerClosed | CloseReason::TooLong),
            ) => {
                self.finish(fd, reason);
            }
            Some(reason) => self.close(fd, reason),
        }
    }

    /// Sends what waits, then goes on with what waited for that.
    fn flush(&mut self, fd: RawFd) {
        let now_ms = self.now_ms();
        let Some(Some(connection)) = self.connections.get_mut(fd as usize) else {
            return;
        };
        if !connection.conn.has_output() {
            return;
        }
        self.stats.sends += 1;
        match send(fd, connection.conn.output(), SEND_FLAGS) {
            Ok(sent) => {
                self.stats.bytes_out += sent as u64;
                connection.conn.sent(sent, now_ms, &mut self.budget);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => return self.close(fd, CloseReason::Reset),
        }
        if connection.conn.has_output() {
            return;
        }
        if let Some(reason) = connection.finishing {
            return self.close(fd, reason);
        }
        self.await_room(fd, false);
        self.digest(fd);
    }

    fn finish(&mut self, fd: RawFd, reason: CloseReason) {
        let Some(connection) = self.connection(fd) else {
            return;
        };
        if connection.conn.has_output() {
            connection.finishing = Some(reason);
        } else {
            self.close(fd, reason);
        }
    }

    fn close(&mut self, fd: RawFd, reason: CloseReason) {
        let Some(mut connection) = self.connections.get_mut(fd as usize).and_then(Option::take)
        else {
            return;
        };
        connection.conn.discard(&mut self.budget);
        self.waiting -= u32::from(connection.awaits_room);
        self.held -= 1;
        self.stats.count_close(reason);
        self.worker.admission.leave(1);
        self.worker.admission.forget(self.sources.take(fd as u32));
    }

    fn await_room(&mut self, fd: RawFd, on: bool) {
        let Some(Some(connection)) = self.connections.get_mut(fd as usize) else {
            return;
        };
        if connection.awaits_room == on {
            return;
        }
        connection.awaits_room = on;
        let interest = match on {
            true => {
                self.waiting += 1;
                EpollFlags::EPOLLOUT
            }
            false => {
                self.waiting -= 1;
                INPUT
            }
        };
        let mut event = EpollEvent::new(interest, fd as u64);
        if self.epoll.modify(&connection.fd, &mut event).is_err() {
            self.close(fd, CloseReason::Failed);
        }
    }

    fn beat(&mut self) {
        let high_water = self.connections.len() as u32;
        for _ in 0..HEARTBEATS_PER_TURN {
            let Some(heartbeats) = &mut self.heartbeats else {
                return;
            };
            let Some((slot, late_ns)) = heartbeats.next(self.now_ns, high_water) else {
                return;
            };
            let Some(connection) = &mut self.connections[slot as usize] else {
                continue;
            };
            if connection.finishing.is_some() {
                continue;
            }
            let said = connection.conn.tick(&mut self.output);
            if said.written > 0 {
                self.stats.count_heartbeat(late_ns);
            }
            self.deliver(slot as RawFd, said);
        }
    }

    /// Gives published messages to the sessions whose time has come.
    fn publish(&mut self) {
        for _ in 0..PUBLISHED_PER_TURN {
            let high_waters = || [self.connections.len() as u32];
            let Some((message, _, fd)) = self.published.next(self.now_ns, high_waters) else {
                return;
            };
            let Some(connection) = &mut self.connections[fd as usize] else {
                continue;
            };
            if connection.finishing.is_some() {
                continue;
            }
            let said = connection.conn.message(&message.bytes, &mut self.output);
            self.stats.messages_published += 1;
            self.deliver(fd as RawFd, said);
        }
    }

    /// Closes connections whose peers said or took nothing for too long.
    fn sweep(&mut self) {
        let (waits, high_waters) = (|| self.waiting > 0, || [self.connections.len() as u32]);
        let Some((_, fds)) = self.sweep.next(self.now_ns, waits, high_waters) else {
            return;
        };
        let (rules, now_ms) = (self.sweep.rules(self.now_ns), self.now_ms());
        for fd in fds {
            if let Some(connection) = &self.connections[fd as usize]
                && let stalled_ms = connection.conn.stalled_ms(now_ms)
                && let Some(reason) = rules.verdict(connection.heard, stalled_ms)
            {
                self.close(fd as RawFd, reason);
            }
        }
    }

    fn read_mailbox(&mut self) {
        for command in self.worker.mailbox().take() {
            match command {
                Command::Stop => {
                    self.begin_drain(self.worker.drain_timeout);
                    self.published.end_with(self.worker.farewell.take());
                }
                Command::End => {
                    self.begin_drain(Duration::ZERO);
                    if let Some(drain) = &mut self.drain {
                        drain.cut_short(self.now_ns);
                    }
                }
                Command::Beat if self.heartbeats.is_none() => {
                    let (slots, now_ns) = (self.worker.table_slots, self.now_ns);
                    let begun =
                        |every: Duration| Heartbeats::new(every.as_nanos() as u64, slots, now_ns);
                    self.heartbeats = self.worker.heartbeat.map(begun);
                }
                Command::Beat => {}
                Command::Publish(message) => self.published.push(message),
            }
        }
    }

    /// Closes the listener, after those that it holds already are let in.
    fn begin_drain(&mut self, timeout: Duration) {
        if self.drain.is_some() {
            return;
        }
        self.accept();
        if let Some(listener) = self.worker.listener.take() {
            // Closing it does not end its events while somebody else has it open (epoll(7), Q6).
            let _ = self.epoll.delete(&*listener);
        }
        self.accept_at_ms = None;
        self.stats.drained = self.held.into();
        self.drain = Some(Drain::new(timeout, self.now_ns));
    }

    /// Closes those whose turn it is in a drain.
    fn let_go(&mut self) {
        for _ in 0..CLOSED_PER_TURN {
            let Some(drain) = &mut self.drain else { return };
            let high_waters = || [self.connections.len() as u32];
            let Some((_, fd)) = drain.next(self.now_ns, high_waters) else {
                return;
            };
            self.finish(fd as RawFd, CloseReason::Shutdown);
        }
    }

    fn listen(&mut self, interest: EpollFlags) {
        let Some(listener) = &self.worker.listener else {
            return;
        };
        let mut event = EpollEvent::new(interest, LISTENER);
        if let Err(errno) = self.epoll.modify(&**listener, &mut event) {
            warn!(%errno, "the listener cannot be watched as it should");
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let now_ns = self.clock.now_ns();
        let mut wake_ns = now_ns + IDLE.as_nanos() as u64;
        if let Some(due) = self.published.next_due_ns(now_ns) {
            wake_ns = due;
        }
        if self.held > 0
            && let Some(heartbeats) = &self.heartbeats
            && let Some(due) = heartbeats.next_due_ns(self.connections.len() as u32)
        {
            wake_ns = wake_ns.min(due.max(self.now_ns + STEP_NS));
        }
        if let Some(due) = self.sweep.next_due_ns(|| self.waiting > 0) {
            wake_ns = wake_ns.min(due);
        }
        if let Some(at) = self.accept_at_ms {
            wake_ns = wake_ns.min(u64::from(at) * 1_000_000);
        }
        if let Some(drain) = &self.drain {
            wake_ns = wake_ns.min(drain.next_due_ns(now_ns));
        }
        let left_ms = wake_ns.saturating_sub(now_ns).div_ceil(1_000_000);
        EpollTimeout::try_from(left_ms as u32).unwrap_or(EpollTimeout::ZERO)
    }

    fn connection(&mut self, fd: RawFd) -> Option<&mut Connection<S>> {
        self.connections.get_mut(fd as usize)?.as_mut()
    }

    fn now_ms(&self) -> u32 {
        (self.now_ns / 1_000_000) as u32
    }
}

fn errno_of(error: io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}
