//! Where the next connection goes: which table accepts, and how many at a time.
//!
//! Pure. A worker has one listener and fills its tables one after the other. A multishot accept takes a whole
//! backlog in one pass, and a connection accepted into a full table is lost. Invariant: accepts are armed on one
//! table only, as a multishot while there is room for a whole backlog, counted single ones below that, and never
//! more of those than there are free slots.

use nix::libc;
use ring::{Op, Operation, Room};
use std::os::fd::RawFd;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Multi {
    Idle,
    Armed,
    Cancelling,
}

/// The state of accepting on one worker.
#[derive(Debug)]
pub struct Acceptor {
    listener: RawFd,
    table: usize,
    multi: Multi,
    singles: u32,
    singles_cancelled: bool,
    stopped: bool,
    /// Accepting failed for lack of files or memory: not before this time.
    retry_at_ms: Option<u32>,
}

/// What the driver has to do about accepting.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Queue these on the ring of `table`.
    Queue {
        /// The table.
        table: usize,
        /// The operations.
        operations: Vec<Operation>,
    },
    /// The table is full and idle: choose another ([`Acceptor::move_to`]).
    Move,
}

/// What came of an accept.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A connection in this slot.
    Connection(u32),
    /// The table was full: the connection is lost.
    Lost,
    /// No connection: files or memory are short, errno given. Accepting pauses.
    Short(i32),
    /// No connection, and nothing wrong.
    Nothing,
}

impl Acceptor {
    const MAX_SINGLES: u32 = 64;
    const PAUSE_MS: u32 = 50;

    /// Accepts from `listener` into the first table.
    pub fn new(listener: RawFd) -> Acceptor {
        Acceptor {
            listener,
            table: 0,
            multi: Multi::Idle,
            singles: 0,
            singles_cancelled: false,
            stopped: false,
            retry_at_ms: None,
        }
    }

    /// Accepts go to this table from now on. Only after [`Step::Move`].
    pub fn move_to(&mut self, table: usize) {
        debug_assert!(self.is_idle());
        self.table = table;
    }

    /// No more accepts.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.retry_at_ms = None;
    }

    /// True when nothing is armed.
    pub fn is_idle(&self) -> bool {
        self.multi == Multi::Idle && self.singles == 0
    }

    /// When accepting goes on after a pause.
    pub fn retry_at_ms(&self) -> Option<u32> {
        self.retry_at_ms
    }

    /// The table that accepts.
    pub fn table(&self) -> usize {
        self.table
    }

    /// An accept of `op` completed; `room` is what is left after the completions before it.
    pub fn completed(
        &mut self,
        op: Op,
        result: i32,
        more: bool,
        room: Room,
        now_ms: u32,
    ) -> Accepted {
        match op {
            Op::AcceptMulti if !more => self.multi = Multi::Idle,
            Op::AcceptOne => self.singles -= 1,
            _ => {}
        }
        match -result {
            ..=0 => Accepted::Connection(result as u32),
            // ENFILE says that the table is full, after the connection was taken (which cannot come while the
            // invariant holds), or that fs.file-max is reached, before it was.
            libc::ENFILE if room == Room::Full => Accepted::Lost,
            errno @ (libc::ENFILE | libc::EMFILE | libc::ENOMEM | libc::ENOBUFS) => {
                self.retry_at_ms = Some(now_ms.wrapping_add(Self::PAUSE_MS));
                Accepted::Short(errno)
            }
            // ECANCELED: as asked. ECONNABORTED and network errors: the peer has gone again.
            _ => Accepted::Nothing,
        }
    }

    /// What to do now, given the room in the table that accepts.
    pub fn step(&mut self, room: Room, now_ms: u32) -> Step {
        if let Some(at) = self.retry_at_ms.filter(|_| !self.stopped) {
            if (at.wrapping_sub(now_ms) as i32) > 0 {
                return Step::Wait;
            }
            self.retry_at_ms = None;
        }
        let mut operations = Vec::new();
        let wants_multi = !self.stopped && room == Room::Plenty;
        if self.multi == Multi::Armed && !wants_multi {
            self.multi = Multi::Cancelling;
            operations.push(Operation::CancelAccept {
                kind: Op::AcceptMulti,
            });
        }
        if self.stopped && self.singles > 0 && !self.singles_cancelled {
            self.singles_cancelled = true;
            operations.push(Operation::CancelAccept {
                kind: Op::AcceptOne,
            });
        }
        match room {
            _ if self.stopped => {}
            Room::Plenty if self.is_idle() => {
                self.multi = Multi::Armed;
                operations.push(Operation::AcceptMulti {
                    listener: self.listener,
                });
            }
            Room::Counted(free) if self.multi == Multi::Idle => {
                while self.singles < free.min(Self::MAX_SINGLES) {
                    self.singles += 1;
                    operations.push(Operation::AcceptOne {
                        listener: self.listener,
                    });
                }
            }
            Room::Full if self.is_idle() => return Step::Move,
            _ => {}
        }
        match operations.is_empty() {
            true => Step::Wait,
            false => Step::Queue {
                table: self.table,
                operations,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const BACKLOG: u32 = 16;

    proptest! {
        /// Against a kernel that takes up to a backlog in a pass: no connection is ever lost, and all tables fill.
        #[test]
        fn a_full_table_never_loses_a_connection(
            capacity in 1u32..120,
            passes in proptest::collection::vec((0u32..=BACKLOG, any::<bool>(), 0u32..3, 0usize..40), 1..400),
        ) {
            let mut acceptor = Acceptor::new(3);
            let mut tables = vec![ring::Table::new(capacity, 2 * BACKLOG)];
            let mut used = vec![0u32];
            let (mut multi, mut singles, mut cancelled, mut late) = (false, 0u32, false, false);
            // Completions that the driver has not come to, in order: of a connection, or of the end of the multishot.
            let mut unread = VecDeque::new();
            for (arrivals, late_cancel, closes, read) in passes {
                match acceptor.step(tables[acceptor.table()].room(unread.len() as u32), 0) {
                    Step::Wait => {}
                    Step::Move => {
                        let next = (0..tables.len()).find(|t| tables[*t].room(0) != Room::Full).unwrap_or(tables.len());
                        if next == tables.len() { tables.push(ring::Table::new(capacity, 2 * BACKLOG)); used.push(0); }
                        acceptor.move_to(next);
                        continue;
                    }
                    Step::Queue { operations, .. } => for operation in operations {
                        match operation {
                            Operation::AcceptMulti { .. } => { prop_assert!(!multi); multi = true; }
                            Operation::AcceptOne { .. } => singles += 1,
                            // A cancel takes effect at once, or after one pass more.
                            Operation::CancelAccept { .. } => { cancelled = true; late = late_cancel; }
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                }
                let table = acceptor.table();
                prop_assert!(singles == 0 || !multi);
                prop_assert!(singles <= capacity - used[table]);
                if cancelled && !late {
                    (multi, cancelled) = (false, false);
                    unread.push_back((Op::AcceptMulti, -libc::ECANCELED, false));
                }
                late = false;
                // The kernel's pass.
                let mut left = arrivals;
                while left > 0 && (multi || singles > 0) {
                    left -= 1;
                    prop_assert!(used[table] < capacity, "a connection was lost");
                    let op = if multi { Op::AcceptMulti } else { singles -= 1; Op::AcceptOne };
                    unread.push_back((op, used[table] as i32, multi));
                    used[table] += 1;
                }
                for _ in 0..read.min(unread.len()) {
                    // There are as many as that.
                    let (op, result, more) = unread.pop_front().unwrap_or((Op::Cancel, 0, false));
                    let said = acceptor.completed(op, result, more, tables[table].room(0), 0);
                    match result {
                        ..0 => prop_assert_eq!(said, Accepted::Nothing),
                        slot => {
                            prop_assert_eq!(said, Accepted::Connection(slot as u32));
                            tables[table].open(slot as u32);
                        }
                    }
                }
                // The slots of connections that nobody has seen cannot be closed.
                if unread.is_empty() {
                    for _ in 0..closes.min(used[table]) {
                        used[table] -= 1;
                        let last = used[table];
                        tables[table].close(last);
                    }
                }
            }
        }
    }

    #[test]
    fn shortage_does_not_hold_up_the_stop() {
        let mut acceptor = Acceptor::new(3);
        acceptor.step(Room::Counted(2), 100);
        acceptor.stop();
        let room = Room::Counted(2);
        let short = acceptor.completed(Op::AcceptOne, -libc::ENFILE, false, room, 100);
        assert_eq!(short, Accepted::Short(libc::ENFILE));
        let cancel = Operation::CancelAccept {
            kind: Op::AcceptOne,
        };
        let now = Step::Queue {
            table: 0,
            operations: vec![cancel],
        };
        assert_eq!(acceptor.step(room, 101), now);
    }

    #[test]
    fn shortage_pauses_and_goes_on() {
        let mut acceptor = Acceptor::new(3);
        assert!(matches!(
            acceptor.step(Room::Plenty, 100),
            Step::Queue { .. }
        ));
        assert_eq!(
            acceptor.completed(Op::AcceptMulti, -libc::ENOMEM, false, Room::Plenty, 100),
            Accepted::Short(libc::ENOMEM)
        );
        assert_eq!(acceptor.step(Room::Plenty, 110), Step::Wait);
        assert!(matches!(
            acceptor.step(Room::Plenty, 150),
            Step::Queue { .. }
        ));
    }
}
