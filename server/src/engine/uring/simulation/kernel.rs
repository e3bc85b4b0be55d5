//! The kernel's side of a run: rings, tables, sockets and peers, all drawn from one seed.
//!
//! It keeps to what the real one promises, and to nothing more. What never waits (a receive, a fast send) is done when it
//! is submitted, and its completion is there when that enter returns; everything else completes late and in any order,
//! but for one poll's own completions; queues are short and overflow; a multishot ends when it likes; a cancel may miss;
//! a closed slot is handed out again at once. What it is asked against that promise fails the run.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use ring::{
    BufferId, Completion, Op, Operation, RecvBuffers, SendArena, Stats, Token, Unavailable,
};

use super::peer::Peer;
use super::plan::Plan;
use super::shared::Shared;
use super::trace::Trace;
use super::truth::Truth;
use crate::engine::uring::peers::INSTALLED_AT_ONCE;
use crate::engine::uring::rings::Rings;

/// A slot of a table.
#[derive(Default)]
pub(super) struct Slot {
    /// Which peer is in it.
    pub(super) peer: Option<usize>,
    /// Of the peer in it, once it is known; of the last one, where it is free.
    pub(super) generation: Option<u16>,
    pub(super) is_known: bool,
    /// A connection that the server turned away.
    pub(super) is_refused: bool,
    /// It was told why, as far as its socket took that.
    pub(super) is_told: bool,
    pub(super) polled: bool,
    pub(super) waiting: Option<Waiting>,
}

/// A waiting send.
pub(super) struct Waiting {
    pub(super) bytes: Vec<u8>,
    pub(super) from: usize,
    pub(super) sent: usize,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) slots: Vec<Slot>,
    /// One past the highest slot that ever held a connection.
    pub(super) high_water: u32,
    /// Slots closed, the last one last.
    pub(super) freed: Vec<u32>,
    pub(super) queued: VecDeque<Operation>,
    /// To be drained.
    pub(super) ready: VecDeque<Completion>,
    /// For which there was no room in `ready`.
    pub(super) overflow: VecDeque<Completion>,
    /// So many of `ready` were there when the enter returned.
    pub(super) owed: usize,
    /// What completes later.
    pub(super) late: Vec<Completion>,
    pub(super) multi: bool,
    pub(super) singles: usize,
    /// Accepted since somebody looked at what is unread.
    pub(super) unseen: usize,
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
    pub(super) buffers: RecvBuffers,
    /// Lent or filled.
    pub(super) buffers_used: usize,
    /// Handed out and not given back.
    pub(super) buffers_out: usize,
    pub(super) starved: VecDeque<(usize, Operation)>,
    /// Those whose waiting sends were said to have sent something since the last enter.
    pub(super) told: Vec<Rc<RefCell<Truth>>>,
    pub(super) arena: SendArena,
    pub(super) step: u32,
    /// The step in which a connection was closed last.
    pub(super) closed_in: u32,
    /// Nothing fails any more, and everybody behaves.
    pub(super) is_calm: bool,
    pub(super) refused: u64,
    pub(super) accept_faults: u64,
    pub(super) file_faults: u64,
    /// Ordinary descriptors that were made and not closed, and the addresses of their peers.
    pub(super) installed: HashMap<RawFd, SocketAddr>,
    /// Those of them that the server knows.
    installed_known: HashSet<RawFd>,
    /// The last one that was made.
    pub(super) last_installed: RawFd,
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
            installed: HashMap::new(),
            installed_known: HashSet::new(),
            last_installed: 0,
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

    pub(super) fn fail(&self, peer: Option<usize>, why: &str) -> ! {
        self.shared.blame.set(peer);
        panic!("{why}")
    }

    pub(super) fn chance(&mut self, of_1000: u32) -> bool {
        !self.is_calm && of_1000 > 0 && self.random.random_range(0..1000) < of_1000
    }

    /// The peer that an operation is about, which must be the one that `generation` means.
    pub(super) fn peer_of(&mut self, table: usize, slot: u32, generation: u16) -> usize {
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

    pub(super) fn ready(&mut self, table: usize, completion: Completion) {
        let table = &mut self.tables[table];
        match table.overflow.is_empty() && table.ready.len() < self.plan.cq_entries {
            true => table.ready.push_back(completion),
            false => table.overflow.push_back(completion),
        }
    }

    pub(super) fn break_off(&mut self, peer: usize) {
        if let Some(truth) = &self.peers[peer].truth {
            truth.borrow_mut().broken = true;
        }
    }

    pub(super) fn one_of(&mut self, errnos: &[i32]) -> i32 {
        errnos
            .choose(&mut self.random)
            .copied()
            .unwrap_or(nix::libc::EIO)
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
        self.tables.iter().any(filled) || (self.world.mail && self.world.is_watched)
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
                // What is late, and who has come, gets its turn too, as by any enter.
                self.arrive();
                self.accept(number);
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

    fn installs(&self) -> bool {
        self.plan.installs
    }

    fn take_peer(&mut self, installed: RawFd) -> Option<SocketAddr> {
        if !self.installed_known.remove(&installed) {
            self.fail(None, "a descriptor is closed that is somebody else's");
        }
        // One that is gone has no peer any more.
        self.installed
            .remove(&installed)
            .filter(|_| installed % 16 > 0)
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

impl Kernel {
    /// What a completion means for what is true, from the moment it is handed out.
    fn tell(&mut self, table: usize, completion: &Completion) {
        let token = completion.token;
        if token.op == Op::FdInstall && completion.result >= 0 {
            self.installed_known.insert(completion.result);
        }
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
        if !self.installed_known.is_empty() || self.installed.len() > INSTALLED_AT_ONCE as usize {
            self.fail(
                None,
                "descriptors were made, and not closed in the turn they came",
            );
        }
        if self.shared.unbound.borrow().is_some() {
            self.fail(None, "a session was made, and nothing was asked for it");
        }
        self.check_accepting();
        for (_, _, peer) in self.taken() {
            if let Some(truth) = self.peers[peer].truth.as_ref()
                && !truth.borrow().ended
            {
                truth.borrow().check_bounds();
            }
        }
        self.check_times();
    }
}

pub(super) fn plain(ring: usize, token: Token, result: i32) -> Completion {
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
        | Operation::FdInstall { slot, generation }
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
