//! Accepting: the backlog, and the accepts that take from it.

use nix::libc;
use rand::RngExt;
use rand::seq::IndexedRandom;
use ring::{Completion, Op, Token};

use super::kernel::{Kernel, Table, plain};

/// For which accepting stops after a shortage of files or memory.
const PAUSE_NS: u64 = 50_000_000;
/// In which a cancelled accept comes back, and accepts go to another table.
const MOST_UNARMED_STEPS: u32 = 8;

impl Kernel {
    pub(super) fn cancel_accept(&mut self, table: usize, kind: Op) {
        match kind {
            Op::AcceptMulti if self.tables[table].multi => {
                // It may have been woken, and then takes what is there before it is found.
                if self.random.random_range(0..3) == 0 {
                    self.tables[table].unseen = 0;
                    self.arrive();
                    self.accept(table);
                }
                // Or ends by itself.
                if std::mem::take(&mut self.tables[table].multi) {
                    let token = Token::new(Op::AcceptMulti, 0, 0);
                    self.ready(table, plain(table, token, -libc::ECANCELED));
                }
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
                if errno != libc::ECONNABORTED {
                    self.accept_faults += 1;
                    self.world.short_at_ns = Some(self.shared.now_ns.get());
                }
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
            self.world.unarmed_steps = 0;
            let table = &mut self.tables[number];
            let higher = (slot + 1).saturating_sub(table.high_water);
            table.high_water += higher;
            self.shared
                .slots
                .set(self.shared.slots.get() + u64::from(higher));
            table.slots[slot as usize].peer = Some(peer);
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

    /// Nobody waits in the backlog while there is a free slot, or a table to be had, but for a pause after a shortage.
    pub(super) fn check_accepting(&mut self) {
        let is_armed = self.tables.iter().any(|t| t.multi || t.singles > 0);
        let is_free = |table: &Table| table.slots.iter().any(|slot| slot.peer.is_none());
        let has_room = self.tables.len() < self.plan.tables || self.tables.iter().any(is_free);
        let late_ns = self.shared.late_ns.get();
        let is_over = |at_ns: u64| self.shared.now_ns.get() > at_ns + PAUSE_NS + late_ns;
        let pauses = self.world.short_at_ns.is_some_and(|at_ns| !is_over(at_ns));
        let is_stopped = self.shared.stop.get().is_some();
        match is_armed || !has_room || pauses || is_stopped || self.backlog.is_empty() {
            true => self.world.unarmed_steps = 0,
            false => self.world.unarmed_steps += 1,
        }
        if self.world.unarmed_steps > MOST_UNARMED_STEPS {
            self.fail(
                None,
                "connections wait in the backlog, and nobody accepts them",
            );
        }
    }

    pub(super) fn accept_ends(&mut self, table: usize, op: Op) {
        match op {
            Op::AcceptMulti => self.tables[table].multi = false,
            _ => self.tables[table].singles -= 1,
        }
    }
}
