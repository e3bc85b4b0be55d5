//! What the simulated kernel does with an operation on a connection, at once or late.

use std::net::SocketAddr;

use nix::libc;
use rand::RngExt;
use rand::seq::SliceRandom;
use ring::{Completion, Op, Operation, Token};

use super::REFUSAL;
use super::kernel::{Kernel, Slot, Waiting, plain};

/// Where the connection in a slot of a table comes from, so that no two have one address.
pub(super) fn address_of((table, slot): (u32, u32), generation: u64) -> SocketAddr {
    let [.., c, d] = slot.to_be_bytes();
    ([10, table as u8, c, d], generation as u16).into()
}

impl Kernel {
    pub(super) fn execute(&mut self, table: usize, operation: Operation) {
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
                let this = &mut self.tables[table].slots[slot as usize];
                let is_refusal = this.is_refused;
                this.is_told = bytes == REFUSAL;
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
            Operation::FdInstall { slot, generation } => {
                let peer = self.peer_of(table, slot, generation);
                if !self.plan.installs {
                    self.fail(Some(peer), "a descriptor of a kernel that makes none");
                }
                let place = (table as u32, slot);
                let result = match self.chance(self.plan.faults) || self.lot(self.plan.shortages) {
                    true => -self.one_of(&[libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EBADF]),
                    false => {
                        self.last_installed += 1;
                        let address = address_of(place, generation.into());
                        self.installed.insert(self.last_installed, address);
                        self.last_installed
                    }
                };
                let token = Token::new(Op::FdInstall, slot, generation);
                self.ready(table, plain(table, token, result));
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

    pub(super) fn receive(&mut self, table: usize, slot: u32, generation: u16) {
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

    pub(super) fn close(&mut self, table: usize, slot: u32, generation: u16) {
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
        let is_heard = self.peers[peer].inbound.is_empty() || self.peers[peer].reset;
        if this.is_refused && !(this.is_told && is_heard) {
            self.fail(
                Some(peer),
                "refused without a word, or with input that makes its end a reset",
            );
        }
        self.closed_in = self.step;
        let this = &mut self.tables[table].slots[slot as usize];
        *this = Slot {
            generation: Some(generation),
            ..Slot::default()
        };
        self.tables[table].freed.push(slot);
    }

    pub(super) fn cancel(&mut self, table: usize, token: Token) {
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
    pub(super) fn move_sends(&mut self, table: usize) {
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
    pub(super) fn complete_late(&mut self, table: usize) {
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
}
