//! Moves completions from the rings to the machines, and operations from the machines to the rings.
//!
//! Owns: the worker's ring group, one machine per table, the acceptor and the heartbeats. One thread drives
//! all tables of a core. Decides nothing about a connection: that is the machine's.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use ring::{Completion, Config, Descriptors, Group, Op, Operation, RecvBuffers, Uses};
use tracing::{debug, warn};
use wire::Session;

use crate::admission::{Sources, peer_of};
use crate::conn::Budget;
use crate::drain::{CLOSED_PER_TURN, Drain};
use crate::engine::uring::acceptor::{Accepted, Acceptor, Step};
use crate::engine::uring::machine::{Event, Machine, Turn};
use crate::engine::uring::peers::{INSTALLED_AT_ONCE, Peers};
use crate::engine::uring::rings::Rings;
use crate::engine::{Engine, EngineError, HEARTBEATS_PER_TURN, IDLE, PUBLISHED_PER_TURN};
use crate::inquiry::{ASKED_PER_TURN, Close, Place, Report, Shelves, State, TableUse, View};
use crate::schedule::{Heartbeats, Published, STEP_NS};
use crate::stats::{CloseReason, Stats};
use crate::timeouts::{Sweep, Tick};
use crate::worker::{Clock, Command, Worker};

/// The engine of [`EngineKind::Uring`](crate::EngineKind::Uring).
pub struct Uring;

/// How long after the kernel gave no further ring it is asked again.
const RING_PAUSE_MS: u32 = 1_000;
/// Tables of one worker.
const MAX_TABLES: usize = 256;

impl Engine for Uring {
    fn run<S: Session, F: Fn() -> S>(worker: Worker<F>) -> Result<Stats, EngineError> {
        let (sizes, default) = (worker.ring_sizes, Config::default());
        let config = Config {
            // A queue of submissions may not be longer than that of completions.
            sq_entries: sizes.cq_entries.unwrap_or(u32::MAX).min(default.sq_entries),
            cq_entries: sizes.cq_entries,
            recv_buffers: sizes.recv_buffers.unwrap_or(default.recv_buffers),
            descriptors: worker.descriptors,
            table_slots: worker.table_slots,
            uses: match worker.is_inspected {
                true => Uses::Inspect,
                false => Uses::Accept,
            },
            ..default
        };
        run_on(config, worker)
    }
}

/// Serves on rings as `config` has them.
pub(super) fn run_on<S: Session, F: Fn() -> S>(
    config: Config,
    worker: Worker<F>,
) -> Result<Stats, EngineError> {
    let (group, clock) = (Group::new(config)?, Clock::new());
    if let Some(error) = group.unrestricted() {
        warn!(%error, "the kernel does not restrict rings to the operations in use");
    }
    let mut driver = Driver::new(group, move || clock.now_ns(), worker)?;
    if driver.worker.ready() {
        driver.serve()?;
    }
    Ok(driver.end())
}

/// A worker's loop over rings `R`, by the clock `C`, which gives nanoseconds.
pub(super) struct Driver<S, F, R, C> {
    pub(super) worker: Worker<F>,
    clock: C,
    pub(super) group: R,
    machines: Vec<Machine<S>>,
    heartbeats: Vec<Heartbeats>,
    published: Published,
    acceptor: Acceptor,
    sources: Sources,
    pub(super) budget: Budget,
    stats: Stats,
    /// Settlings so far. Starts above 1, so that no slot seems to have sent just now.
    turn: u32,
    now_ns: u64,
    sweep: Sweep,
    /// The sweep's tick at `now_ns`.
    tick: Tick,
    ops: Vec<Operation>,
    drain: Option<Drain>,
    peers: Peers,
    /// The kernel gave no further ring: not before this time again.
    next_ring_ms: Option<u32>,
}

impl<S: Session, F: Fn() -> S, R: Rings, C: Fn() -> u64> Driver<S, F, R, C> {
    pub(super) fn new(group: R, clock: C, worker: Worker<F>) -> Result<Self, EngineError> {
        let listener = worker.listener.as_ref().ok_or_else(|| {
            EngineError::system("finding a listener")(io::ErrorKind::NotFound.into())
        })?;
        let now_ns = clock();
        let mut driver = Driver {
            acceptor: Acceptor::new(listener.as_raw_fd()),
            sources: Sources::default(),
            budget: Budget::new(worker.limits),
            stats: Stats::new(),
            machines: Vec::new(),
            heartbeats: Vec::new(),
            published: Published::default(),
            turn: 2,
            now_ns,
            sweep: Sweep::new(worker.timeouts, now_ns),
            tick: Tick::default(),
            ops: Vec::new(),
            drain: None,
            peers: Peers::default(),
            next_ring_ms: None,
            group,
            clock,
            worker,
        };
        driver.add_machine();
        let fd = driver.worker.mailbox().fd();
        driver
            .group
            .push(0, Operation::Watch { fd, slot: 0 })
            .map_err(EngineError::system("watching the worker's mailbox"))?;
        Ok(driver)
    }

    pub(super) fn serve(&mut self) -> Result<(), EngineError> {
        // The ring waits for connections only where the descriptor does not ask for an answer at once.
        if let Some(listener) = &self.worker.listener {
            listener
                .set_nonblocking(false)
                .map_err(EngineError::system("making the listener blocking"))?;
        }
        let broken = EngineError::system("io_uring_enter");
        let mut completions = Vec::new();
        loop {
            self.accept()?;
            let timeout = self.timeout();
            self.group.submit_and_wait(timeout).map_err(&broken)?;
            self.now_ns = (self.clock)();
            self.tick = self.sweep.tick(self.now_ns);
            loop {
                self.group.drain(&mut completions);
                for completion in completions.drain(..) {
                    self.complete(completion).map_err(&broken)?;
                }
                if self.group.settle().map_err(&broken)? {
                    break;
                }
                // A multishot accept goes on meanwhile.
                self.accept()?;
            }
            self.turn = self.turn.wrapping_add(1);
            self.after_settling().map_err(&broken)?;
            self.worker.pulse.beat(self.turn, self.held());
            if let Some(drain) = &self.drain
                && (drain.is_over(self.now_ns) || self.is_drained())
            {
                self.group
                    .submit_and_wait(Duration::ZERO)
                    .map_err(&broken)?;
                return self.end_looks().map_err(&broken);
            }
        }
    }

    pub(super) fn end(mut self) -> Stats {
        let held = u64::from(self.held());
        if held > 0 {
            *self.stats.closed.entry(CloseReason::Shutdown).or_default() += held;
        }
        self.worker.admission.leave(held);
        self.stats.pending_peak_bytes = self.budget.peak_bytes as u64;
        let used: u64 = self
            .machines
            .iter()
            .map(|m| u64::from(m.table().used()))
            .sum();
        self.stats.slots_without_connection = used.saturating_sub(held);
        self.stats.ring = Some(self.group.stats());
        self.stats
    }

    /// Keeps accepts armed on the table that has room.
    fn accept(&mut self) -> Result<(), EngineError> {
        loop {
            let table = self.acceptor.table();
            let unseen = self.group.unread(table).unwrap_or(usize::MAX);
            let unseen = u32::try_from(unseen).unwrap_or(u32::MAX);
            let room = self.machines[table].table().room(unseen);
            match self.acceptor.step(room, self.now_ms()) {
                Step::Wait => return Ok(()),
                Step::Queue { table, operations } => {
                    for operation in operations {
                        self.group
                            .push(table, operation)
                            .map_err(EngineError::system("io_uring_enter"))?;
                    }
                    return Ok(());
                }
                Step::Move => match self.table_with_room() {
                    Some(table) => self.acceptor.move_to(table),
                    None => return Ok(()),
                },
            }
        }
    }

    /// A table to fill next: an earlier one that has become emptier, else a new one, else any with a free slot.
    fn table_with_room(&mut self) -> Option<usize> {
        let now_ms = self.now_ms();
        let free = |m: &Machine<S>| m.table().capacity() - m.table().used();
        let roomy = |m: &Machine<S>| free(m) > m.table().capacity() / 8;
        if let Some(table) = self.machines.iter().position(roomy) {
            return Some(table);
        }
        let may_try = self
            .next_ring_ms
            .is_none_or(|at| now_ms.wrapping_sub(at) as i32 >= 0);
        // Ordinary descriptors are one table, whatever the ring.
        let most = match self.worker.descriptors {
            Descriptors::Direct => MAX_TABLES,
            Descriptors::Ordinary => 1,
        };
        if self.machines.len() < most && may_try {
            match self.group.add_ring() {
                Ok(ring) => {
                    self.next_ring_ms = None;
                    self.add_machine();
                    debug!(worker = self.worker.number, table = ring, "one table more");
                    return Some(ring);
                }
                Err(error) => {
                    if self.next_ring_ms.is_none() {
                        warn!(worker = self.worker.number, %error, "no further table; connections wait in the backlog");
                    }
                    self.next_ring_ms = Some(now_ms.wrapping_add(RING_PAUSE_MS));
                }
            }
        }
        self.machines.iter().position(|m| free(m) > 0)
    }

    fn add_machine(&mut self) {
        let slots = self.worker.table_slots;
        // What a multishot accept can take before it is stopped: one backlog after a look at the room, one more while the
        // cancel is on its way.
        self.machines
            .push(Machine::new(slots, 2 * self.worker.backlog));
        self.begin_heartbeats();
    }

    /// For each table that has none yet, unless they wait.
    fn begin_heartbeats(&mut self) {
        let Some(interval) = self.worker.heartbeat_at_start() else {
            return;
        };
        let (interval_ns, slots) = (interval.as_nanos() as u64, self.worker.table_slots);
        self.heartbeats.resize_with(self.machines.len(), || {
            Heartbeats::new(interval_ns, slots, self.now_ns)
        });
    }

    fn complete(&mut self, completion: Completion) -> io::Result<()> {
        let table = completion.ring;
        match completion.token.op {
            op @ (Op::AcceptMulti | Op::AcceptOne) => {
                self.accepted(table, op, completion.result, completion.more)?;
            }
            Op::Watch => {
                self.read_mailbox()?;
                if !completion.more {
                    let fd = self.worker.mailbox().fd();
                    self.group.push(0, Operation::Watch { fd, slot: 0 })?;
                }
            }
            Op::FdInstall => self.installed(&completion),
            Op::Close => {
                warn!(
                    errno = -completion.result,
                    slot = completion.token.slot,
                    "closing a direct descriptor failed"
                );
            }
            _ => {
                let Completion {
                    token,
                    result,
                    more,
                    nonempty,
                    buffer,
                    span,
                    bytes,
                    ..
                } = completion;
                self.with_turn(table, |machine, buffers, turn| {
                    let event = Event {
                        token,
                        result,
                        more,
                        input: buffer.map_or(&[], |id| buffers.bytes(id)),
                        nonempty,
                        span,
                        bytes,
                    };
                    machine.complete(event, turn);
                })?;
                if let Some(buffer) = buffer {
                    self.group.recycle(buffer);
                }
            }
        }
        Ok(())
    }

    fn accepted(&mut self, table: usize, op: Op, result: i32, more: bool) -> io::Result<()> {
        let room = self.machines[table].table().room(0);
        match self
            .acceptor
            .completed(op, result, more, room, self.now_ms())
        {
            Accepted::Connection(slot) => {
                // Sources are counted of ordinary descriptors only, of which each is its slot.
                match self.worker.admission.enter(slot as RawFd) {
                    Ok(source) => self.sources.put(slot, source),
                    Err(reason) => {
                        self.stats.count_refusal(reason);
                        let line = Arc::clone(&self.worker.refusal);
                        return self.with_turn(table, |machine, _, turn| {
                            machine.refuse(slot, &line, turn)
                        });
                    }
                }
                let session = (self.worker.session)();
                let held = self.machines[table].held();
                self.with_turn(table, |machine, _, turn| {
                    machine.accepted(slot, session, turn);
                })?;
                // Its session may have ended it in its first words.
                if self.machines[table].held() == held {
                    self.worker.admission.leave(1);
                }
            }
            Accepted::Lost => self.stats.dropped_table_full += 1,
            Accepted::Short(errno) => {
                if self.stats.accept_retries == 0 {
                    let errno = nix::errno::Errno::from_raw(errno);
                    warn!(%errno, "accepting pauses; connections wait in the backlog");
                }
                self.stats.accept_retries += 1;
            }
            Accepted::Nothing => {}
        }
        Ok(())
    }

    /// What had to wait for the end of a turn, and what is due.
    fn after_settling(&mut self) -> io::Result<()> {
        for table in 0..self.machines.len() {
            if self.machines[table].has_deferred() {
                self.with_turn(table, |machine, _, turn| machine.settled(turn))?;
            }
            self.beat(table)?;
        }
        self.sweep()?;
        self.publish()?;
        self.let_go();
        self.look()
    }

    /// Terminates connections whose peers said or took nothing for too long.
    fn sweep(&mut self) -> io::Result<()> {
        let waits = || self.machines.iter().any(Machine::has_waiting_sends);
        let high_waters = || self.machines.iter().map(|m| m.table().high_water());
        let Some((table, slots)) = self.sweep.next(self.now_ns, waits, high_waters) else {
            return Ok(());
        };
        let rules = self.sweep.rules(self.now_ns);
        self.with_turn(table, |machine, _, turn| machine.sweep(slots, rules, turn))
    }

    fn beat(&mut self, table: usize) -> io::Result<()> {
        if self.heartbeats.is_empty() {
            return Ok(());
        }
        let high_water = self.machines[table].table().high_water();
        for _ in 0..HEARTBEATS_PER_TURN {
            let Some((slot, late_ns)) = self.heartbeats[table].next(self.now_ns, high_water) else {
                break;
            };
            self.with_turn(table, |machine, _, turn| {
                if machine.tick(slot, turn) {
                    turn.stats.count_heartbeat(late_ns);
                }
            })?;
        }
        Ok(())
    }

    /// Gives published messages to the sessions whose time has come.
    fn publish(&mut self) -> io::Result<()> {
        for _ in 0..PUBLISHED_PER_TURN {
            let high_waters = || self.machines.iter().map(|m| m.table().high_water());
            let Some((message, table, slot)) = self.published.next(self.now_ns, high_waters) else {
                break;
            };
            self.with_turn(table, |machine, _, turn| {
                let given = machine.message(slot, &message.bytes, turn);
                turn.stats.messages_published += u64::from(given);
            })?;
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        if self.machines.iter().any(Machine::has_deferred) {
            return Duration::ZERO;
        }
        let now_ns = (self.clock)();
        let mut wake_ns = now_ns + IDLE.as_nanos() as u64;
        if let Some(due) = self.published.next_due_ns(now_ns) {
            wake_ns = due;
        }
        let waits = || self.machines.iter().any(Machine::has_waiting_sends);
        if let Some(due) = self.sweep.next_due_ns(waits) {
            wake_ns = wake_ns.min(due);
        }
        for (heartbeats, machine) in self.heartbeats.iter().zip(&self.machines) {
            if machine.held() > 0
                && let Some(due) = heartbeats.next_due_ns(machine.table().high_water())
            {
                wake_ns = wake_ns.min(due.max(self.now_ns + STEP_NS));
            }
        }
        if let Some(at) = self.acceptor.retry_at_ms() {
            wake_ns = wake_ns.min(u64::from(at) * 1_000_000);
        }
        if let Some(drain) = &self.drain {
            wake_ns = wake_ns.min(drain.next_due_ns(now_ns));
        }
        Duration::from_nanos(wake_ns.saturating_sub(now_ns))
    }

    fn read_mailbox(&mut self) -> io::Result<()> {
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
                Command::Beat => {
                    self.worker.heartbeat_waits = false;
                    self.begin_heartbeats();
                }
                Command::Publish(message) => self.published.push(message),
                Command::Report(reply) => drop(reply.send(self.report())),
                Command::Look(look) => self.peers.push(look),
                Command::Close(close) => self.close(close)?,
            }
        }
        Ok(())
    }

    fn report(&self) -> Report {
        let mut stats = self.stats.clone();
        stats.pending_peak_bytes = self.budget.peak_bytes as u64;
        stats.ring = Some(self.group.stats());
        let used = |machine: &Machine<S>| TableUse {
            slots: machine.table().capacity(),
            used: machine.table().used(),
            held: machine.held(),
            high_water: machine.table().high_water(),
        };
        Report {
            worker: self.worker.number,
            stats,
            held: self.held(),
            waiting_bytes: self.budget.used_bytes() as u64,
            tables: self.machines.iter().map(used).collect(),
        }
    }

    /// Looks, and answers as far as no descriptors are to come for that.
    fn look(&mut self) -> io::Result<()> {
        while let Some(look) = self.peers.next() {
            match self.group.installs() {
                true => {
                    let glance = look.glance(&*self);
                    for (table, install) in self.peers.ask(glance) {
                        self.group.push(table, install)?;
                    }
                }
                false => look.answer(&*self),
            }
        }
        Ok(())
    }

    /// A descriptor that a look waited for has come, and is closed; or there is none to be had, for this connection.
    fn installed(&mut self, completion: &Completion) {
        let Completion {
            ring,
            token,
            result,
            ..
        } = *completion;
        let peer = match result {
            0.. => self.group.take_peer(result),
            _ => None,
        };
        if let Some(mut glance) = self.peers.told(ring, token, peer) {
            glance.retain(|then| {
                self.view(then.place)
                    .is_some_and(|now| now.generation == then.generation)
            });
            glance.answer();
        }
    }

    /// All has been submitted, and nothing more will be: closes what descriptors have come, and answers whoever waits.
    fn end_looks(&mut self) -> io::Result<()> {
        let mut completions = Vec::new();
        while self.peers.is_asking() {
            self.group.drain(&mut completions);
            for completion in completions.drain(..) {
                if completion.token.op == Op::FdInstall {
                    self.installed(&completion);
                }
            }
            if self.group.settle()? {
                break;
            }
        }
        while let Some(look) = self.peers.next() {
            look.answer(&*self);
        }
        Ok(())
    }

    fn close(&mut self, close: Close) -> io::Result<()> {
        let Place { table, slot } = close.place;
        let mut is_it = false;
        if (table as usize) < self.machines.len() {
            self.with_turn(table as usize, |machine, _, turn| {
                is_it = machine.close(slot, close.generation, turn);
            })?;
        }
        // Nobody waits any more.
        let _ = close.reply.send(is_it);
        Ok(())
    }

    fn begin_drain(&mut self, timeout: Duration) {
        if self.drain.is_none() {
            self.acceptor.stop();
            self.stats.drained = self.held().into();
            self.drain = Some(Drain::new(timeout, self.now_ns));
        }
    }

    /// Closes those whose turn it is in a drain, and the listener once no accept is armed on it: that holds it open.
    fn let_go(&mut self) {
        if self.drain.is_some() && self.acceptor.is_idle() {
            self.worker.listener = None;
        }
        for _ in 0..CLOSED_PER_TURN {
            let Some(drain) = &mut self.drain else { break };
            let high_waters = || self.machines.iter().map(|m| m.table().high_water());
            let Some((table, slot)) = drain.next(self.now_ns, high_waters) else {
                break;
            };
            self.machines[table].finish(slot, CloseReason::Shutdown);
        }
    }

    /// True when nobody is held, and no accept is armed. Whoever left in good order had sent everything before.
    fn is_drained(&self) -> bool {
        self.acceptor.is_idle() && self.held() == 0
    }

    fn held(&self) -> u32 {
        self.machines.iter().map(Machine::held).sum()
    }

    /// Lets the machine of `table` act, queues what it asks for, and takes those who left off the count.
    fn with_turn(
        &mut self,
        table: usize,
        act: impl FnOnce(&mut Machine<S>, &RecvBuffers, &mut Turn<'_>),
    ) -> io::Result<()> {
        let machine = &mut self.machines[table];
        let held = machine.held();
        let (buffers, arena) = self.group.memory();
        let mut turn = Turn {
            number: self.turn,
            now_ms: (self.now_ns / 1_000_000) as u32,
            tick: self.tick,
            arena,
            ops: &mut self.ops,
            budget: &mut self.budget,
            stats: &mut self.stats,
        };
        act(machine, buffers, &mut turn);
        let left = held.saturating_sub(machine.held());
        if left > 0 {
            self.worker.admission.leave(u64::from(left));
        }
        for operation in self.ops.drain(..) {
            if let Operation::Close { slot, .. } = operation
                && let Some(source) = self.sources.take(slot)
            {
                self.worker.admission.forget(Some(source));
            }
            self.group.push(table, operation)?;
        }
        Ok(())
    }

    fn now_ms(&self) -> u32 {
        (self.now_ns / 1_000_000) as u32
    }
}

impl<S: Session, F: Fn() -> S, R: Rings, C: Fn() -> u64> Shelves for Driver<S, F, R, C> {
    fn high_water(&self, table: u32) -> Option<u32> {
        let machine = self.machines.get(table as usize)?;
        Some(machine.table().high_water())
    }

    fn view(&self, place: Place) -> Option<View> {
        let machine = self.machines.get(place.table as usize)?;
        let (mut view, heard) = machine.view(place.table, place.slot, self.now_ms())?;
        view.idle_ms = heard.and_then(|heard| self.sweep.silent_ms(heard, self.now_ns));
        Some(view)
    }

    /// A direct descriptor cannot be asked at once; an ordinary one is its slot, until it is closed: it may be somebody else's then.
    fn ask_kernel(&self, view: &mut View) {
        if self.worker.descriptors == Descriptors::Ordinary && view.state != State::Closing {
            view.peer = peer_of(view.place.slot as RawFd);
        }
    }

    fn asked_per_turn(&self) -> u32 {
        match self.group.installs() {
            true => INSTALLED_AT_ONCE,
            false => ASKED_PER_TURN,
        }
    }
}
