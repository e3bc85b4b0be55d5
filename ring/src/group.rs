//! The rings one thread drives, as one thing to push operations to and take completions from.
//!
//! Owns: the rings, the memory their operations use, the waiting sends. Lives on one thread.
//! The turn of a loop over a group:
//! 1. [`Group::submit_and_wait`];
//! 2. take completions with [`Group::drain`] and act on them with [`Group::push`], until
//!    [`Group::settle`] says that all have been seen;
//! 3. do what is due, and start again.
//!
//! Invariant: spans of the arena are released in `settle` only, when every completion of every ring, overflowed
//! ones included, has been consumed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, Fixed};
use io_uring::{opcode, squeue, types};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use crate::buffers::{BufferId, RecvBuffers, SendArena, Span};
use crate::lockdown::Uses;
use crate::operation::Operation;
use crate::probe::Unavailable;
use crate::ring::{Ring, Role};
use crate::token::{Op, Token};

/// What a slot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Descriptors {
    /// An entry of the ring's own table: no file descriptor, and no share in RLIMIT_NOFILE.
    #[default]
    Direct,
    /// An ordinary file descriptor, for kernels on which closing a direct one does not release its socket
    /// ([`direct_descriptors_release`](crate::direct_descriptors_release)).
    Ordinary,
}

/// How a group is built.
#[derive(Clone, Debug)]
pub struct Config {
    /// Submission queue entries of each ring.
    pub sq_entries: u32,
    /// Completion queue entries of each ring, at least `sq_entries`. What does not fit waits in the kernel, which
    /// costs time and is counted ([`Stats::overflows`]). None: one for each slot of a table, within 4096 and 65,536,
    /// the most the kernel allows.
    pub cq_entries: Option<u32>,
    /// What a slot is.
    pub descriptors: Descriptors,
    /// Slots of each ring's table: at most RLIMIT_NOFILE and at most 1 << 20.
    pub table_slots: u32,
    /// Receive buffers of the group: the connections read from in one turn.
    pub recv_buffers: u16,
    /// Size of a receive buffer in bytes.
    pub recv_buffer_bytes: usize,
    /// Where `Connect` may connect to.
    pub targets: Vec<SocketAddr>,
    /// What is asked of the rings; the kernel refuses the rest (-EACCES).
    pub uses: Uses,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            sq_entries: 1024,
            cq_entries: None,
            descriptors: Descriptors::Direct,
            table_slots: 1024,
            recv_buffers: 256,
            recv_buffer_bytes: 32 * 1024,
            targets: Vec::new(),
            uses: Uses::All,
        }
    }
}

impl Config {
    /// Memory of the two queues of a ring, in whole pages: what the kernel charges to RLIMIT_MEMLOCK for it, on behalf of a
    /// user without CAP_IPC_LOCK (before Linux 5.12, and again since 6.14: liburing #1408). Tables are not charged.
    pub fn queue_bytes(&self, page_bytes: u64) -> u64 {
        /// Of io_uring.h, and the kernel's `struct io_rings`.
        const SQE_BYTES: u64 = 64;
        const CQE_BYTES: u64 = 16;
        const HEAD_BYTES: u64 = 192;
        let entries = |wanted: u32| u64::from(wanted.next_power_of_two());
        let submissions = entries(self.sq_entries) * SQE_BYTES;
        let completions = entries(self.cq_entries()) * CQE_BYTES + HEAD_BYTES;
        submissions.next_multiple_of(page_bytes) + completions.next_multiple_of(page_bytes)
    }

    /// Those asked for, or one for each connection of a table: all may have something to say at once.
    fn cq_entries(&self) -> u32 {
        let slots = self.table_slots.next_power_of_two();
        self.cq_entries.unwrap_or(slots.clamp(4096, 65_536))
    }
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Which ring, and so which table.
    pub ring: usize,
    /// Which operation.
    pub token: Token,
    /// What it says: not negative for success, else a negated errno.
    pub result: i32,
    /// A multishot operation goes on. Without it, it has ended, also after a success.
    pub more: bool,
    /// After a `Recv`: the socket holds more input.
    pub nonempty: bool,
    /// The received bytes of a `Recv` whose result is above 0. Give it back with [`Group::recycle`].
    pub buffer: Option<BufferId>,
    /// The span of a `Send` that was cut short: none of its bytes past the result were sent.
    pub span: Option<Span>,
    /// The bytes of a `SendWait`.
    pub bytes: Option<Vec<u8>>,
}

/// What happened in a group that its user may want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Rings, and so tables.
    pub rings: u64,
    /// Those of them that do what they are for and nothing else.
    pub restricted_rings: u64,
    /// Calls of io_uring_enter.
    pub enters: u64,
    /// Operations submitted.
    pub submitted: u64,
    /// Submissions made early because a queue was full.
    pub full_flushes: u64,
    /// Turns in which completions had overflowed their queue.
    pub overflows: u64,
    /// Submissions the kernel put off for lack of memory.
    pub refused_submits: u64,
    /// Receives that had to wait for a buffer.
    pub starved_recvs: u64,
    /// Completions nobody knows. Always 0, or there is a bug here.
    pub unknown_completions: u64,
}

impl Stats {
    /// The sum of two groups' figures.
    pub fn merged(self, other: Stats) -> Stats {
        Stats {
            rings: self.rings + other.rings,
            restricted_rings: self.restricted_rings + other.restricted_rings,
            enters: self.enters + other.enters,
            submitted: self.submitted + other.submitted,
            full_flushes: self.full_flushes + other.full_flushes,
            overflows: self.overflows + other.overflows,
            refused_submits: self.refused_submits + other.refused_submits,
            starved_recvs: self.starved_recvs + other.starved_recvs,
            unknown_completions: self.unknown_completions + other.unknown_completions,
        }
    }
}

/// More than a receive buffer holds.
const MAX_DISCARD_BYTES: u32 = 1 << 30;

/// Builds an entry on the socket in a slot, whatever a slot is here.
macro_rules! on_socket {
    ($group:expr, $slot:expr, |$socket:ident| $entry:expr) => {
        match $group.config.descriptors {
            Descriptors::Direct => {
                let $socket = Fixed($slot);
                $entry
            }
            Descriptors::Ordinary => {
                let $socket = Fd($slot as RawFd);
                $entry
            }
        }
    };
}

/// All the rings of one thread.
pub struct Group {
    config: Config,
    rings: Vec<Ring>,
    /// Completions of ring `i` (of all but the first) are announced on `wakes[i - 1]`.
    wakes: Vec<EventFd>,
    recv: RecvBuffers,
    sends: SendArena,
    waiting: HashMap<(usize, u32), Vec<u8>>,
    starved: VecDeque<(usize, Token)>,
    targets: Vec<SockaddrStorage>,
    starved_recvs: u64,
    unknown_completions: u64,
}

impl Group {
    /// So many completions of a ring are handed out at a time: what they lead to, such as an end of accepting, is looked
    /// at before the next.
    pub const MOST_DRAINED: usize = 512;

    /// A group of one ring. Must be created on the thread that will drive it.
    ///
    /// # Errors
    /// Why io_uring cannot be used.
    pub fn new(config: Config) -> Result<Group, Unavailable> {
        let mut group = Group {
            rings: Vec::new(),
            wakes: Vec::new(),
            recv: RecvBuffers::new(config.recv_buffers, config.recv_buffer_bytes),
            sends: SendArena::new(),
            waiting: HashMap::new(),
            starved: VecDeque::new(),
            targets: config
                .targets
                .iter()
                .map(|t| SockaddrStorage::from(*t))
                .collect(),
            starved_recvs: 0,
            unknown_completions: 0,
            config,
        };
        group.rings.push(group.ring(Role::First)?);
        Ok(group)
    }

    /// One ring more, with a table of its own. Returns its number.
    ///
    /// # Errors
    /// Why the kernel gives no further ring.
    pub fn add_ring(&mut self) -> Result<usize, Unavailable> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Unavailable::Failed(errno.into()))?;
        let number = self.rings.len();
        let mut ring = self.ring(Role::Other {
            wake: wake.as_raw_fd(),
        })?;
        ring.announce(false);
        self.watch_wake(number, wake.as_raw_fd())
            .map_err(Unavailable::Failed)?;
        self.rings.push(ring);
        self.wakes.push(wake);
        Ok(number)
    }

    /// Why the first of the rings that may be asked for anything was not restricted to [`Config::uses`]. None where all are.
    pub fn unrestricted(&self) -> Option<&io::Error> {
        self.rings
            .iter()
            .find_map(|ring| ring.unrestricted.as_ref())
    }

    /// Whether [`Operation::FdInstall`] may be asked for: of direct descriptors, from Linux 6.8 on, and where it is of use.
    pub fn installs(&self) -> bool {
        self.config.descriptors == Descriptors::Direct
            && self.rings.iter().all(|ring| ring.installs)
    }

    /// Rings so far.
    pub fn rings(&self) -> usize {
        self.rings.len()
    }

    /// Puts bound sockets into the table of `ring`, from slot `first` on. The descriptors may be closed then.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn install(&mut self, ring: usize, first: u32, sockets: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        self.rings[ring].install(first, &fds)
    }

    /// Queues an operation on `ring`; it is submitted by the next [`Group::submit_and_wait`], or earlier where
    /// the queue is full, and an end of accepting at once. A receive that finds no free buffer waits for one, in order.
    ///
    /// # Errors
    /// The ring is broken: the kernel takes no submissions.
    pub fn push(&mut self, ring: usize, operation: Operation) -> io::Result<()> {
        let is_direct = self.config.descriptors == Descriptors::Direct;
        let ends_accepting = matches!(operation, Operation::CancelAccept { .. });
        let entry = match operation {
            Operation::AcceptMulti { listener } => named(
                opcode::AcceptMulti::new(Fd(listener))
                    .allocate_file_index(is_direct)
                    .build(),
                Token::new(Op::AcceptMulti, 0, 0),
            ),
            Operation::AcceptOne { listener } => named(
                opcode::Accept::new(Fd(listener), std::ptr::null_mut(), std::ptr::null_mut())
                    .file_index(is_direct.then(types::DestinationSlot::auto_target))
                    .build(),
                Token::new(Op::AcceptOne, 0, 0),
            ),
            Operation::CancelAccept { kind } => {
                let all = types::CancelBuilder::user_data(Token::new(kind, 0, 0).encode()).all();
                named(
                    opcode::AsyncCancel2::new(all).build(),
                    Token::new(Op::Cancel, 0, 0),
                )
                .flags(squeue::Flags::SKIP_SUCCESS)
            }
            Operation::Connect {
                slot,
                generation,
                target,
            } => {
                let address = &self.targets[target as usize];
                named(
                    on_socket!(self, slot, |socket| opcode::Connect::new(
                        socket,
                        address.as_ptr().cast(),
                        address.len()
                    )
                    .build()),
                    Token::new(Op::Connect, slot, generation),
                )
            }
            Operation::Poll { slot, generation } => named(
                on_socket!(self, slot, |socket| opcode::PollAdd::new(
                    socket,
                    (libc::POLLIN | libc::POLLRDHUP) as u32
                )
                .multi(true)
                .build()),
                Token::new(Op::Poll, slot, generation),
            ),
            Operation::Recv { slot, generation } => {
                let token = Token::new(Op::Recv, slot, generation);
                if !self.starved.is_empty() || !self.recv.has_free() {
                    self.starved_recvs += 1;
                    self.starved.push_back((ring, token));
                    return Ok(());
                }
                return self.push_recv(ring, token);
            }
            Operation::Send {
                slot,
                generation,
                span,
            } => {
                let bytes = self.sends.bytes(span);
                named(
                    on_socket!(self, slot, |socket| opcode::Send::new(
                        socket,
                        bytes.as_ptr(),
                        bytes.len() as u32
                    )
                    .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
                    .build()),
                    Token::new(Op::Send, slot, generation).with_aux(SendArena::aux(span)),
                )
                .flags(squeue::Flags::SKIP_SUCCESS)
            }
            Operation::SendWait {
                slot,
                generation,
                bytes,
                from,
            } => {
                let unsent = &bytes[from..];
                let entry = named(
                    on_socket!(self, slot, |socket| opcode::Send::new(
                        socket,
                        unsent.as_ptr(),
                        unsent.len() as u32
                    )
                    .flags(libc::MSG_NOSIGNAL)
                    .build()),
                    Token::new(Op::SendWait, slot, generation),
                );
                // Before anything is replaced: the kernel reads the earlier one's bytes.
                assert!(
                    !self.waiting.contains_key(&(ring, slot)),
                    "two waiting sends on slot {slot} of ring {ring}"
                );
                self.waiting.insert((ring, slot), bytes);
                entry
            }
            Operation::Cancel { token } => named(
                opcode::AsyncCancel::new(token.encode()).build(),
                Token::new(Op::Cancel, token.slot, token.generation),
            )
            .flags(squeue::Flags::SKIP_SUCCESS),
            // TCP copies nothing with MSG_TRUNC (tcp(7)), so there need be nothing to copy to.
            Operation::Discard { slot, generation } => named(
                on_socket!(self, slot, |socket| opcode::Recv::new(
                    socket,
                    std::ptr::null_mut(),
                    MAX_DISCARD_BYTES
                )
                .flags(libc::MSG_DONTWAIT | libc::MSG_TRUNC)
                .build()),
                Token::new(Op::Discard, slot, generation),
            )
            .flags(squeue::Flags::SKIP_SUCCESS),
            Operation::Shutdown { slot, generation } => named(
                on_socket!(self, slot, |socket| opcode::Shutdown::new(
                    socket,
                    libc::SHUT_WR
                )
                .build()),
                Token::new(Op::Shutdown, slot, generation),
            ),
            Operation::FdInstall { slot, generation } => named(
                opcode::FixedFdInstall::new(Fixed(slot), 0).build(),
                Token::new(Op::FdInstall, slot, generation),
            ),
            Operation::Close { slot, generation } => named(
                on_socket!(self, slot, |socket| opcode::Close::new(socket).build()),
                Token::new(Op::Close, slot, generation),
            )
            .flags(squeue::Flags::SKIP_SUCCESS),
            Operation::Watch { fd, slot } => named(
                opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32)
                    .multi(true)
                    .build(),
                Token::new(Op::Watch, slot, 0),
            ),
        };
        // SAFETY: the memory behind each entry is this group's: arena spans stay until `settle` after the
        // submission of a send that cannot wait; waiting bytes are in `waiting` until the completion (a Vec's heap
        // memory does not move with it); targets live as long as the group, and are read when submitted.
        unsafe { self.rings[ring].push(&entry) }?;
        match ends_accepting {
            // Connections come until it is submitted.
            true => self.rings[ring].flush(),
            false => Ok(()),
        }
    }

    /// Submits everything and waits until something completes, at most for `timeout`.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()> {
        while self.recv.has_free() {
            let Some((ring, token)) = self.starved.pop_front() else {
                break;
            };
            self.push_recv(ring, token)?;
        }
        let (first, others) = self.rings.split_at_mut(1);
        let first = &mut first[0];
        let mut ready = first.has_completions();
        for ring in others.iter_mut() {
            ring.flush()?;
            // First announce, then look: what comes after the look is announced and ends the wait.
            ring.announce(true);
            ready |= ring.has_completions();
        }
        let (want, timeout) = match ready {
            true => (0, Duration::ZERO),
            false => (1, timeout),
        };
        first.submit_and_wait(want, timeout)?;
        for ring in others {
            ring.announce(false);
        }
        self.sends.retire();
        self.rings.iter_mut().for_each(Ring::mark);
        Ok(())
    }

    /// Completions of `ring` that have not been drained; none where there are more than its queue holds. Each may be an
    /// accept that its user has not counted.
    pub fn unread(&mut self, ring: usize) -> Option<usize> {
        self.rings[ring].unread()
    }

    /// Takes the first completions out of the queues, at most [`Group::MOST_DRAINED`] of each.
    pub fn drain(&mut self, into: &mut Vec<Completion>) {
        let mut woken: Vec<usize> = Vec::new();
        for (number, ring) in self.rings.iter_mut().enumerate() {
            ring.drain(Self::MOST_DRAINED, |user_data, result, flags| {
                let more = io_uring::cqueue::more(flags);
                let Some(token) = Token::decode(user_data) else {
                    self.unknown_completions += 1;
                    return;
                };
                let mut completion = Completion {
                    ring: number,
                    token: token.with_aux(0),
                    result,
                    more,
                    nonempty: io_uring::cqueue::sock_nonempty(flags),
                    buffer: None,
                    span: None,
                    bytes: None,
                };
                match token.op {
                    Op::Wake => return woken.push(token.slot as usize),
                    Op::Recv => completion.buffer = self.recv.returned(token.aux as u16, result),
                    Op::Send => completion.span = self.sends.by_aux(token.aux),
                    Op::SendWait => completion.bytes = self.waiting.remove(&(number, token.slot)),
                    _ => {}
                }
                into.push(completion);
            });
        }
        for ring in woken {
            // Only said to be readable; what it counts does not matter.
            let wake = &self.wakes[ring - 1];
            let _ = wake.read();
            let fd = wake.as_raw_fd();
            // A ring that cannot be pushed to fails the next `push` of its user in the same way.
            if self.watch_wake(ring, fd).is_err() {
                self.unknown_completions += 1;
            }
        }
    }

    /// True when every completion has been drained that was there when [`Group::submit_and_wait`] returned; then the spans
    /// of what was submitted are released. False when some are left: drain again. What has come since then belongs to the
    /// next turn, so that no turn lasts as long as completions come.
    ///
    /// # Errors
    /// The ring is broken, or the kernel had no memory to keep a completion: an operation would never end.
    pub fn settle(&mut self) -> io::Result<bool> {
        for ring in &mut self.rings {
            if ring.dropped() > 0 {
                return Err(io::Error::other(
                    "the kernel dropped completions for lack of memory (see dmesg)",
                ));
            }
            // What the kernel holds is in no queue, so nobody knows how much of it is owed.
            if ring.has_overflowed() {
                ring.flush_overflow()?;
                ring.mark();
                return Ok(false);
            }
            if !ring.is_past_mark() {
                return Ok(false);
            }
        }
        self.sends.release();
        Ok(true)
    }

    /// The bytes of a completion's buffer, and the arena to answer into.
    pub fn memory(&mut self) -> (&RecvBuffers, &mut SendArena) {
        (&self.recv, &mut self.sends)
    }

    /// Gives a completion's buffer back.
    pub fn recycle(&mut self, buffer: BufferId) {
        self.recv.recycle(buffer);
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        let sum = |f: fn(&crate::ring::Counters) -> u64| {
            self.rings.iter().map(|r| f(&r.counters)).sum::<u64>()
        };
        Stats {
            rings: self.rings.len() as u64,
            restricted_rings: self
                .rings
                .iter()
                .map(|ring| u64::from(ring.unrestricted.is_none()))
                .sum(),
            enters: sum(|c| c.enters),
            submitted: sum(|c| c.submitted),
            full_flushes: sum(|c| c.full_flushes),
            overflows: sum(|c| c.overflows),
            refused_submits: sum(|c| c.refused_submits),
            starved_recvs: self.starved_recvs,
            unknown_completions: self.unknown_completions,
        }
    }

    fn ring(&self, role: Role) -> Result<Ring, Unavailable> {
        Ring::new(
            role,
            self.config.sq_entries,
            self.config.cq_entries(),
            match self.config.descriptors {
                Descriptors::Direct => self.config.table_slots,
                Descriptors::Ordinary => 0,
            },
            self.config.uses,
        )
    }

    fn push_recv(&mut self, ring: usize, token: Token) -> io::Result<()> {
        let Some((buffer, address, size)) = self.recv.lend() else {
            self.starved.push_front((ring, token));
            return Ok(());
        };
        let entry = named(
            on_socket!(self, token.slot, |socket| opcode::Recv::new(
                socket,
                address,
                size as u32
            )
            .flags(libc::MSG_DONTWAIT)
            .build()),
            token.with_aux(u32::from(buffer)),
        );
        // SAFETY: the buffer is lent, so nobody else touches it until its completion is drained.
        unsafe { self.rings[ring].push(&entry) }
    }

    /// Lets the first ring hear of completions in `ring`, once. Not by a multishot poll: kernels before 6.18 end one
    /// on an eventfd of a ring without saying so (upstream commit 1967f0b1cafd).
    fn watch_wake(&mut self, ring: usize, wake: RawFd) -> io::Result<()> {
        let entry = named(
            opcode::PollAdd::new(Fd(wake), libc::POLLIN as u32).build(),
            Token::new(Op::Wake, ring as u32, 0),
        );
        // SAFETY: a poll uses no memory.
        unsafe { self.rings[0].push(&entry) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A ring's end is asynchronous: the kernel may read the bytes of a send that still waits
        // after its ring was closed. They are left behind, a bounded amount once in a thread's life.
        std::mem::forget(std::mem::take(&mut self.waiting));
    }
}

fn named(entry: squeue::Entry, token: Token) -> squeue::Entry {
    entry.user_data(token.encode())
}
