//! The kernel's side of a run: rings, tables, sockets and peers, all drawn from one seed.
//!
//! It keeps to what the real one promises, and to nothing more. What never waits (a receive, a fast send) is done when it
//! is submitted, and its completion is there when that enter returns; everything else completes late and in any order,
//! but for one poll's own completions; queues are short and overflow; a multishot ends when it likes; a cancel may miss;
//! a closed slot is handed out again at once. What it is asked against that promise fails the run.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::libc;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use ring::{
    BufferId, Completion, Op, Operation, RecvBuffers, SendArena, Stats, Token, Unavailable,
};

use super::peer::Peer;
use super::plan::Plan;
use super::trace::Trace;
use super::truth::{Shared, Truth};
use crate::engine::uring::rings::Rings;

/// A slot of a table.
#[derive(Default)]
struct Slot {
    /// Which peer is in it.
    peer: Option<usize>,
    /// Of the peer in it, once it is known; of the last one, where it is free.
    generation: Option<u16>,
    is_known: bool,
    /// A connection that the server turned away.
    is_refused: bool,
    polled: bool,
    waiting: Option<Waiting>,
}

/// A waiting send.
struct Waiting {
    bytes: Vec<u8>,
    from: usize,
    sent: usize,
}

#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    /// Slots closed, the last one last.
    freed: Vec<u32>,
    queued: VecDeque<Operation>,
    /// To be drained.
    ready: VecDeque<Completion>,
    /// For which there was no room in `ready`.
    overflow: VecDeque<Completion>,
    /// So many of `ready` were there when the enter returned.
    owed: usize,
    /// What completes later.
    late: Vec<Completion>,
    multi: bool,
    singles: usize,
    /// Accepted since somebody looked at what is unread.
    unseen: usize,
}

/// The simulated rings of one worker.
pub struct Kernel {
    pub(super) shared: Rc<Shared>,
    pub(super) plan: Plan,
    pub(super) random: StdRng,
    pub(super) trace: Rc<Trace>,
    pub(super) tables: Vec<Table>,
    pub(super) peers: Vec<Peer>,
    /// Peers that connected and were not accepted.
    pub(super) backlog: VecDeque<usize>,
    buffers: RecvBuffers,
    /// Lent or filled.
    buffers_used: usize,
    /// Handed out and not given back.
    buffers_out: usize,
    starved: VecDeque<(usize, Operation)>,
    /// Those whose waiting sends were said to have sent something since the last enter.
    told: Vec<Rc<RefCell<Truth>>>,
    arena: SendArena,
    pub(super) step: u32,
    /// The step in which a connection was closed last.
    pub(super) closed_in: u32,
    /// Nothing fails any more, and everybody behaves.
    pub(super) is_calm: bool,
    pub(super) refused: u64,
    pub(super) accept_faults: u64,
    pub(super) file_faults: u64,
    pub(super) world: super::world::World,
}

impl Kernel {
    pub fn new(
        seed: u64,
        shared: &Rc<Shared>,
        trace: &Rc<Trace>,
        world: super::world::World,
    ) -> Kernel {
        let plan = shared.plan.clone();
        let mut kernel = Kernel {
            shared: Rc::clone(shared),
            random: StdRng::seed_from_u64(seed),
            trace: Rc::clone(trace),
            tables: Vec::new(),
            peers: Vec::new(),
            backlog: VecDeque::new(),
            buffers: RecvBuffers::new(plan.buffers, plan.buffer_bytes),
            buffers_used: 0,
            buffers_out: 0,
            starved: VecDeque::new(),
            told: Vec::new(),
            arena: SendArena::new(),
            step: 0,
            closed_in: 0,
            is_calm: false,
            refused: 0,
            accept_faults: 0,
            file_faults: 0,
            world,
            plan,
        };
        kernel.add_table();
        kernel
    }

    fn add_table(&mut self) {
        let mut table = Table::default();
        table
            .slots
            .resize_with(self.plan.slots as usize, Slot::default);
        self.tables.push(table);
    }

    fn fail(&self, peer: Option<usize>, why: &str) -> ! {
        self.shared.blame.set(peer);
        panic!("{why}")
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        !self.is_calm && of_1000 > 0 && self.random.random_range(0..1000) < of_1000
    }

    /// The peer that an operation is about, which must be the one that `generation` means.
    fn peer_of(&mut self, table: usize, slot: u32, generation: u16) -> usize {
        let this = &mut self.tables[table].slots[slot as usize];
        let Some(peer) = this.peer else {
            self.fail(
                None,
                &format!("an operation on slot {slot} of table {table}, which is free"),
            )
        };
        if !this.is_known {
            let last = this.generation.replace(generation);
            this.is_known = true;
            match self.shared.unbound.take() {
                None => {
                    this.is_refused = true;
                    self.refused += 1;
                }
                Some(truth) => {
                    let other = &mut self.peers[peer];
                    truth.borrow_mut().id = Some(peer);
                    truth.borrow_mut().broken = other.reset;
                    other.truth = Some(truth);
                }
            }
            if last == Some(generation) {
                self.fail(Some(peer), "a slot was opened again in its old generation");
            }
        } else if this.generation != Some(generation) {
            self.fail(Some(peer), "an operation of another generation");
        }
        peer
    }

    fn submit(&mut self, table: usize) {
        while let Some(operation) = self.tables[table].queued.pop_front() {
            let peer = named_slot(&operation)
                .and_then(|(slot, _)| self.tables[table].slots[slot as usize].peer);
            self.trace
                .note(peer, || format!("  table {table}: {}", short(&operation)));
            self.execute(table, operation);
        }
    }

    fn execute(&mut self, table: usize, operation: Operation) {
        match operation {
            Operation::AcceptMulti { .. } => {
                if self.tables.iter().any(|t| t.multi || t.singles > 0) {
                    self.fail(None, "accepts are armed twice");
                }
                self.tables[table].multi = true;
            }
            Operation::AcceptOne { .. } => {
                if self.tables.iter().any(|t| t.multi) {
                    self.fail(None, "single accepts beside a multishot");
                }
                self.tables[table].singles += 1;
            }
            Operation::CancelAccept { kind } => self.cancel_accept(table, kind),
            Operation::Poll { slot, generation } => {
                let peer = self.peer_of(table, slot, generation);
                let token = Token::new(Op::Poll, slot, generation);
                if self.chance(self.plan.faults / 4) {
                    self.break_off(peer);
                    let result = -self.one_of(&[libc::ENOMEM, libc::ENOBUFS]);
                    return self.ready(table, plain(table, token, result));
                }
                let this = &mut self.tables[table].slots[slot as usize];
                if std::mem::replace(&mut this.polled, true) {
                    self.fail(Some(peer), "polled twice");
                }
                let peer = &self.peers[peer];
                if !peer.inbound.is_empty() || peer.finished || peer.reset {
                    self.wake(table, slot);
                }
            }
            Operation::Recv { slot, generation } => self.receive(table, slot, generation),
            Operation::Send {
                slot,
                generation,
                span,
            } => {
                let peer = self.peer_of(table, slot, generation);
                let bytes = self.arena.bytes(span).to_vec();
                let is_refusal = self.tables[table].slots[slot as usize].is_refused;
                let mut room = self.peers[peer].room(self.plan.window);
                if self.chance(20) {
                    room = room.min(self.random.random_range(0..bytes.len().max(1)));
                }
                let fails = self.chance(self.plan.faults);
                let result = if self.peers[peer].reset {
                    -self.one_of(&[libc::EPIPE, libc::ECONNRESET])
                } else if fails && !is_refusal {
                    self.break_off(peer);
                    -self.one_of(&[libc::ENOBUFS, libc::ENOMEM, libc::EHOSTUNREACH])
                } else {
                    let sent = bytes.len().min(room);
                    self.peers[peer].enter(&bytes[..sent], true);
                    if sent == bytes.len() {
                        return;
                    }
                    match sent {
                        0 => -libc::EAGAIN,
                        sent => sent as i32,
                    }
                };
                let token = Token::new(Op::Send, slot, generation);
                let completion = Completion {
                    span: Some(span),
                    ..plain(table, token, result)
                };
                self.ready(table, completion);
            }
            Operation::SendWait {
                slot,
                generation,
                bytes,
                from,
            } => {
                let peer = self.peer_of(table, slot, generation);
                let this = &mut self.tables[table].slots[slot as usize];
                let is_second = this.waiting.is_some();
                this.waiting = Some(Waiting {
                    bytes,
                    from,
                    sent: 0,
                });
                if is_second {
                    self.fail(Some(peer), "two waiting sends");
                }
            }
            Operation::Cancel { token } => self.cancel(table, token),
            Operation::Discard { slot, generation } => {
                let peer = self.peer_of(table, slot, generation);
                if std::mem::take(&mut self.peers[peer].inbound).is_empty() {
                    let token = Token::new(Op::Discard, slot, generation);
                    self.ready(table, plain(table, token, -libc::EAGAIN));
                }
            }
            Operation::Close { slot, generation } => self.close(table, slot, generation),
            Operation::Watch { .. } => {
                if std::mem::replace(&mut self.world.is_watched, true) {
                    self.fail(None, "the mailbox is watched twice");
                }
            }
            other => self.fail(None, &format!("nobody should ask for {other:?}")),
        }
    }

    fn receive(&mut self, table: usize, slot: u32, generation: u16) {
        let peer = self.peer_of(table, slot, generation);
        let token = Token::new(Op::Recv, slot, generation);
        let fails = self.chance(self.plan.faults);
        let interrupted = self.chance(self.plan.faults);
        let most = self.random.random_range(1..=self.plan.buffer_bytes);
        let this = &mut self.peers[peer];
        let result = match this.inbound.len().min(most) {
            _ if this.reset => -libc::ECONNRESET,
            _ if fails => {
                self.break_off(peer);
                -self.one_of(&[
                    libc::ETIMEDOUT,
                    libc::ENOBUFS,
                    libc::ENOMEM,
                    libc::ECONNRESET,
                ])
            }
            _ if interrupted => -libc::EINTR,
            0 if this.finished => {
                if let Some(truth) = &this.truth {
                    truth.borrow_mut().eof = true;
                }
                0
            }
            0 => -libc::EAGAIN,
            taken => taken as i32,
        };
        let mut completion = plain(table, token, result);
        let this = &mut self.peers[peer];
        if result > 0 {
            let bytes: Vec<u8> = this.inbound.drain(..result as usize).collect();
            if let Some(truth) = &this.truth {
                truth.borrow_mut().receives(&bytes);
            }
            completion.nonempty = !this.inbound.is_empty();
            completion.buffer = self.buffers.fill(&bytes);
            if completion.buffer.is_none() {
                self.fail(Some(peer), "a receive buffer was lost");
            }
        } else {
            self.buffers_used -= 1;
        }
        self.ready(table, completion);
    }

    fn close(&mut self, table: usize, slot: u32, generation: u16) {
        let peer = self.peer_of(table, slot, generation);
        let is_mine = |token: &Token| {
            token.slot == slot
                && token.generation == generation
                && matches!(token.op, Op::Poll | Op::Recv | Op::SendWait)
        };
        let in_table = &self.tables[table];
        let this = &in_table.slots[slot as usize];
        let completions = in_table.ready.iter().chain(&in_table.overflow);
        if this.polled || this.waiting.is_some() {
            self.fail(Some(peer), "closed while something is armed");
        }
        if completions.chain(&in_table.late).any(|c| is_mine(&c.token))
            || self.starved.iter().any(|(t, o)| {
                *t == table && matches!(o, Operation::Recv { slot: s, .. } if *s == slot)
            })
        {
            self.fail(Some(peer), "closed before the last completion");
        }
        let truth = self.peers[peer].truth.as_ref();
        if truth.is_some_and(|truth| !truth.borrow().ended) {
            self.fail(Some(peer), "closed under a living session");
        }
        self.closed_in = self.step;
        let this = &mut self.tables[table].slots[slot as usize];
        *this = Slot {
            generation: Some(generation),
            ..Slot::default()
        };
        self.tables[table].freed.push(slot);
    }

    fn cancel(&mut self, table: usize, token: Token) {
        let peer = self.peer_of(table, token.slot, token.generation);
        // What is between two waits is not found, and goes on.
        let misses = self.random.random_range(0..6) == 0;
        let this = &mut self.tables[table].slots[token.slot as usize];
        let missed = Token::new(Op::Cancel, token.slot, token.generation);
        let (is_armed, canceled) = match token.op {
            Op::Poll => (this.polled, plain(table, token, -libc::ECANCELED)),
            Op::SendWait => match &this.waiting {
                None => (false, plain(table, token, 0)),
                Some(waiting) => {
                    let result = match waiting.sent {
                        0 => -libc::ECANCELED,
                        sent => sent as i32,
                    };
                    let completion = Completion {
                        bytes: Some(waiting.bytes.clone()),
                        ..plain(table, token, result)
                    };
                    (true, completion)
                }
            },
            _ => self.fail(Some(peer), "a cancel of what cannot be armed"),
        };
        match (is_armed, misses) {
            (false, _) => self.ready(table, plain(table, missed, -libc::ENOENT)),
            (true, true) => self.ready(table, plain(table, missed, -libc::EALREADY)),
            (true, false) => {
                match token.op {
                    Op::Poll => this.polled = false,
                    _ => this.waiting = None,
                }
                self.tables[table].late.push(canceled);
            }
        }
    }

    fn cancel_accept(&mut self, table: usize, kind: Op) {
        match kind {
            Op::AcceptMulti if self.tables[table].multi => {
                // It may have been woken, and then takes what is there before it is found.
                if self.random.random_range(0..3) == 0 {
                    self.tables[table].unseen = 0;
                    self.accept(table);
                }
                self.tables[table].multi = false;
                let token = Token::new(Op::AcceptMulti, 0, 0);
                self.ready(table, plain(table, token, -libc::ECANCELED));
            }
            Op::AcceptOne => {
                for _ in 0..std::mem::take(&mut self.tables[table].singles) {
                    let token = Token::new(Op::AcceptOne, 0, 0);
                    self.ready(table, plain(table, token, -libc::ECANCELED));
                }
            }
            _ => {}
        }
    }

    /// One pass over the backlog.
    pub(super) fn accept(&mut self, number: usize) {
        loop {
            let table = &mut self.tables[number];
            let op = match (table.multi, table.singles) {
                (true, _) => Op::AcceptMulti,
                (false, 0) => return,
                _ => Op::AcceptOne,
            };
            let token = Token::new(op, 0, 0);
            if self.backlog.is_empty() || table.unseen >= self.plan.backlog as usize {
                return;
            }
            if self.chance(self.plan.faults) {
                let errno = self.one_of(&[
                    libc::ENFILE,
                    libc::EMFILE,
                    libc::ENOMEM,
                    libc::ENOBUFS,
                    libc::ECONNABORTED,
                ]);
                self.file_faults += u64::from(errno == libc::ENFILE);
                self.accept_faults += u64::from(errno != libc::ECONNABORTED);
                self.accept_ends(number, op);
                self.ready(number, plain(number, token, -errno));
                continue;
            }
            let table = &mut self.tables[number];
            table.unseen += 1;
            // The one closed last, or any.
            let free = |slot: &u32| table.slots[*slot as usize].peer.is_none();
            let again = table.freed.pop().filter(free);
            let all: Vec<u32> = (0..self.plan.slots).filter(free).collect();
            let reuse = self.random.random_range(0..2) == 0;
            let any = all.choose(&mut self.random).copied();
            let Some(slot) = again.filter(|_| reuse).or(any) else {
                self.fail(
                    None,
                    "a connection was accepted into a full table, and lost",
                );
            };
            let Some(peer) = self.backlog.pop_front() else {
                return;
            };
            let this = &mut self.tables[number].slots[slot as usize];
            this.peer = Some(peer);
            self.trace.note(Some(peer), || {
                format!("peer {peer} is in slot {slot} of table {number}")
            });
            let more = op == Op::AcceptMulti && self.random.random_range(0..8) > 0;
            if !more {
                self.accept_ends(number, op);
            }
            let completion = Completion {
                more,
                ..plain(number, token, slot as i32)
            };
            self.ready(number, completion);
        }
    }

    fn accept_ends(&mut self, table: usize, op: Op) {
        match op {
            Op::AcceptMulti => self.tables[table].multi = false,
            _ => self.tables[table].singles -= 1,
        }
    }

    /// The poll of `slot`, where there is one, tells what is there.
    pub(super) fn wake(&mut self, table: usize, slot: u32) {
        let ends = self.random.random_range(0..8) == 0;
        let this = &self.tables[table].slots[slot as usize];
        let (Some(peer), Some(generation), true) = (this.peer, this.generation, this.polled) else {
            return;
        };
        let peer = &self.peers[peer];
        let mut result = i32::from(libc::POLLIN);
        if peer.finished || peer.reset {
            result |= i32::from(libc::POLLRDHUP);
        }
        if peer.reset {
            result |= i32::from(libc::POLLHUP | libc::POLLERR);
        }
        let token = Token::new(Op::Poll, slot, generation);
        let table_state = &mut self.tables[table];
        // The kernel tells once of what has happened since it was last asked.
        if let Some(untold) = table_state.late.iter_mut().find(|c| c.token == token) {
            untold.result |= result;
            return;
        }
        table_state.slots[slot as usize].polled = !ends;
        table_state.late.push(Completion {
            more: !ends,
            ..plain(table, token, result)
        });
    }

    /// Waiting sends move on.
    fn move_sends(&mut self, table: usize) {
        for slot in 0..self.plan.slots {
            let this = &mut self.tables[table].slots[slot as usize];
            let (Some(peer), Some(generation), Some(mut waiting)) =
                (this.peer, this.generation, this.waiting.take())
            else {
                continue;
            };
            let fails = self.chance(self.plan.faults / 4);
            if fails {
                self.break_off(peer);
            }
            let other = &mut self.peers[peer];
            let rest = &waiting.bytes[waiting.from + waiting.sent..];
            let moves = match other.reset {
                true => 0,
                false => rest.len().min(other.room(self.plan.window)),
            };
            other.enter(&rest[..moves], false);
            waiting.sent += moves;
            let done = waiting.from + waiting.sent == waiting.bytes.len();
            let short = waiting.sent > 0 && self.random.random_range(0..3) > 0;
            let reset = self.peers[peer].reset;
            if !(done || reset || fails || short) {
                self.tables[table].slots[slot as usize].waiting = Some(waiting);
                continue;
            }
            let result = match reset || fails {
                true => -self.one_of(&[libc::EPIPE, libc::ECONNRESET]),
                false => waiting.sent as i32,
            };
            let token = Token::new(Op::SendWait, slot, generation);
            self.tables[table].late.push(Completion {
                bytes: Some(waiting.bytes),
                ..plain(table, token, result)
            });
        }
    }

    /// Some of what is late completes, in any order, but for the completions of one operation.
    fn complete_late(&mut self, table: usize) {
        let mut still_late: Vec<Completion> = Vec::new();
        let mut now: Vec<Completion> = Vec::new();
        for completion in std::mem::take(&mut self.tables[table].late) {
            let waits = self.random.random_range(0..3) == 0;
            match waits || still_late.iter().any(|c| c.token == completion.token) {
                true => still_late.push(completion),
                false => now.push(completion),
            }
        }
        self.tables[table].late = still_late;
        now.shuffle(&mut self.random);
        for at in 1..now.len() {
            if now[at].more
                && let Some(last) = now[..at].iter().position(|c| c.token == now[at].token)
            {
                now.swap(at, last);
            }
        }
        for completion in now {
            self.ready(table, completion);
        }
    }

    fn ready(&mut self, table: usize, completion: Completion) {
        let table = &mut self.tables[table];
        match table.overflow.is_empty() && table.ready.len() < self.plan.cq_entries {
            true => table.ready.push_back(completion),
            false => table.overflow.push_back(completion),
        }
    }

    fn break_off(&mut self, peer: usize) {
        if let Some(truth) = &self.peers[peer].truth {
            truth.borrow_mut().broken = true;
        }
    }

    fn one_of(&mut self, errnos: &[i32]) -> i32 {
        errnos
            .choose(&mut self.random)
            .copied()
            .unwrap_or(libc::EIO)
    }

    /// Connections of table and slot that are with the kernel.
    pub(super) fn taken(&self) -> Vec<(usize, u32, usize)> {
        let slots = |(number, table): (usize, &Table)| {
            let taken = table.slots.iter().enumerate();
            taken
                .filter_map(|(slot, this)| Some((number, slot as u32, this.peer?)))
                .collect::<Vec<_>>()
        };
        self.tables.iter().enumerate().flat_map(slots).collect()
    }

    fn has_ready(&self) -> bool {
        let filled = |table: &Table| !table.ready.is_empty() || !table.overflow.is_empty();
        self.tables.iter().any(filled)
    }
}

impl Rings for Kernel {
    fn add_ring(&mut self) -> Result<usize, Unavailable> {
        if self.tables.len() >= self.plan.tables {
            return Err(Unavailable::Failed(io::ErrorKind::OutOfMemory.into()));
        }
        self.add_table();
        Ok(self.tables.len() - 1)
    }

    fn push(&mut self, ring: usize, operation: Operation) -> io::Result<()> {
        // What the slot of an accepted connection is for is known with its first operation.
        if let Some((slot, generation)) = named_slot(&operation) {
            self.peer_of(ring, slot, generation);
        }
        let ends_accepting = matches!(operation, Operation::CancelAccept { .. });
        if matches!(operation, Operation::Recv { .. }) {
            if !self.starved.is_empty() || self.buffers_used == usize::from(self.plan.buffers) {
                self.starved.push_back((ring, operation));
                return Ok(());
            }
            self.buffers_used += 1;
        }
        if self.tables[ring].queued.len() >= self.plan.sq_entries {
            self.submit(ring);
        }
        self.tables[ring].queued.push_back(operation);
        if ends_accepting {
            self.submit(ring);
        }
        Ok(())
    }

    fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.check();
        while self.buffers_used < usize::from(self.plan.buffers) {
            let Some((ring, operation)) = self.starved.pop_front() else {
                break;
            };
            self.buffers_used += 1;
            self.tables[ring].queued.push_back(operation);
        }
        for table in (0..self.tables.len()).rev() {
            self.submit(table);
        }
        self.arena.retire();
        self.happen();
        for table in 0..self.tables.len() {
            self.accept(table);
            self.move_sends(table);
            self.complete_late(table);
            // In no order, whatever was first.
            let random = &mut self.random;
            let ready = self.tables[table].ready.make_contiguous();
            let tells = ready.iter().any(|c| c.more);
            if !tells {
                ready.shuffle(random);
            }
        }
        self.pass_time(timeout, self.has_ready());
        for table in &mut self.tables {
            table.owed = table.ready.len();
        }
        Ok(())
    }

    fn unread(&mut self, ring: usize) -> Option<usize> {
        let table = &mut self.tables[ring];
        table.unseen = 0;
        table.overflow.is_empty().then_some(table.ready.len())
    }

    fn drain(&mut self, into: &mut Vec<Completion>) {
        for number in 0..self.tables.len() {
            let most = self.random.random_range(1..=8);
            for _ in 0..most {
                let table = &mut self.tables[number];
                let Some(completion) = table.ready.pop_front() else {
                    break;
                };
                table.owed = table.owed.saturating_sub(1);
                self.buffers_out += usize::from(completion.buffer.is_some());
                self.tell(number, &completion);
                into.push(completion);
            }
        }
        if std::mem::take(&mut self.world.mail) && self.world.is_watched {
            let more = self.random.random_range(0..4) > 0;
            self.world.is_watched = more;
            into.push(Completion {
                more,
                ..plain(0, Token::new(Op::Watch, 0, 0), 1)
            });
        }
    }

    fn settle(&mut self) -> io::Result<bool> {
        for number in 0..self.tables.len() {
            let table = &mut self.tables[number];
            if !table.overflow.is_empty() {
                let most = self.plan.cq_entries - table.ready.len().min(self.plan.cq_entries);
                let flushed = most.min(table.overflow.len());
                table.ready.extend(table.overflow.drain(..flushed));
                // What is late gets its turn too, as by any enter.
                self.complete_late(number);
                let table = &mut self.tables[number];
                table.owed = table.ready.len();
                return Ok(false);
            }
            if table.owed > 0 {
                return Ok(false);
            }
        }
        self.arena.release();
        Ok(true)
    }

    fn memory(&mut self) -> (&RecvBuffers, &mut SendArena) {
        (&self.buffers, &mut self.arena)
    }

    fn recycle(&mut self, buffer: BufferId) {
        self.buffers.recycle(buffer);
        self.buffers_used -= 1;
        self.buffers_out -= 1;
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

impl Kernel {
    /// What a completion means for what is true, from the moment it is handed out.
    fn tell(&mut self, table: usize, completion: &Completion) {
        let token = completion.token;
        let this = &self.tables[table].slots[token.slot as usize];
        let is_now = this.is_known && this.generation == Some(token.generation);
        let peer = this.peer.filter(|_| is_now);
        self.trace.note(peer, || {
            let (op, slot, result) = (token.op, token.slot, completion.result);
            let more = if completion.more { ", and goes on" } else { "" };
            format!("    {op:?} of slot {slot} of table {table} says {result}{more}")
        });
        let truth = peer.and_then(|peer| self.peers[peer].truth.as_ref());
        if let Some(truth) = truth
            && completion.result > 0
        {
            match token.op {
                Op::Recv => truth.borrow_mut().heard_ns = self.shared.now_ns.get(),
                Op::SendWait => {
                    truth.borrow_mut().moved_ns = self.shared.now_ns.get();
                    // Once it has looked at all of its completions, in whatever order.
                    self.told.push(Rc::clone(truth));
                }
                _ => {}
            }
        }
    }

    /// What must be so whenever the server has nothing more to do.
    fn check(&mut self) {
        if let Some(wrong) = self.shared.wrong.take() {
            panic!("{wrong}");
        }
        for truth in self.told.drain(..) {
            truth.borrow_mut().is_told();
        }
        if self.buffers_out > 0 {
            self.fail(None, "a receive buffer was not given back");
        }
        if self.shared.unbound.borrow().is_some() {
            self.fail(None, "a session was made, and nothing was asked for it");
        }
        self.check_times();
    }
}

fn plain(ring: usize, token: Token, result: i32) -> Completion {
    Completion {
        ring,
        token,
        result,
        more: false,
        nonempty: false,
        buffer: None,
        span: None,
        bytes: None,
    }
}

/// The slot that an operation is about, and its generation.
fn named_slot(operation: &Operation) -> Option<(u32, u16)> {
    match operation {
        Operation::Poll { slot, generation }
        | Operation::Recv { slot, generation }
        | Operation::Send {
            slot, generation, ..
        }
        | Operation::SendWait {
            slot, generation, ..
        }
        | Operation::Discard { slot, generation }
        | Operation::Close { slot, generation } => Some((*slot, *generation)),
        Operation::Cancel { token } => Some((token.slot, token.generation)),
        _ => None,
    }
}

/// An operation in a line, however many bytes it sends.
fn short(operation: &Operation) -> String {
    match operation {
        Operation::SendWait {
            slot,
            generation,
            bytes,
            from,
        } => {
            let bytes = bytes.len();
            format!("SendWait {{ slot: {slot}, generation: {generation}, bytes: {from}..{bytes} }}")
        }
        other => format!("{other:?}"),
    }
}
