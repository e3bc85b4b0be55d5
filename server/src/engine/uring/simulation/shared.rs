//! What the kernel, the world and the sessions of a run have in common.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::plan::Plan;
use super::stop::Stop;
use super::truth::Truth;
use super::world::LEAST_LATE_NS;
use crate::stats::CloseReason;

/// No published message looks like it.
const FAREWELL: &[u8] = b"farewell\n";

/// What all sessions of a run share.
pub struct Shared {
    pub plan: Plan,
    pub now_ns: Cell<u64>,
    /// Enters of the kernel so far.
    pub step: Cell<u32>,
    /// Bytes that wait anywhere between sockets and sessions, at most.
    pub waiting_bytes: Cell<usize>,
    pub alive: Cell<u64>,
    pub made: Cell<u64>,
    pub beats: Cell<u64>,
    pub messages: Cell<u64>,
    /// What is said to every session when the server is told to stop; nothing where it is empty.
    pub farewell: Vec<u8>,
    /// The number of the last message published before that.
    pub farewell_after: Cell<u64>,
    /// When heartbeats were let begin.
    pub beating_since_ns: Cell<Option<u64>>,
    /// How late the worker may be with what is due.
    pub late_ns: Cell<u64>,
    /// Once the server was told to stop.
    pub stop: Cell<Option<Stop>>,
    /// Slots of all tables, up to the highest that ever held a connection.
    pub slots: Cell<u64>,
    /// The session made last, until its slot is known.
    pub unbound: RefCell<Option<Rc<RefCell<Truth>>>>,
    /// The reasons for which each session may have ended.
    pub endings: RefCell<Vec<Vec<CloseReason>>>,
    /// What is wrong, found where one may not panic.
    pub wrong: RefCell<Option<String>>,
    /// Whose fault it was.
    pub blame: Rc<Cell<Option<usize>>>,
    /// Where a session writes before it is believed.
    pub scratch: RefCell<Vec<u8>>,
}

impl Shared {
    pub fn new(plan: Plan, blame: Rc<Cell<Option<usize>>>) -> Rc<Shared> {
        Rc::new(Shared {
            now_ns: Cell::new(plan.clock_ns),
            step: Cell::default(),
            waiting_bytes: Cell::default(),
            alive: Cell::default(),
            made: Cell::default(),
            beats: Cell::default(),
            messages: Cell::default(),
            farewell: match plan.farewell {
                true => FAREWELL.to_vec(),
                false => Vec::new(),
            },
            farewell_after: Cell::default(),
            beating_since_ns: Cell::default(),
            late_ns: Cell::new(LEAST_LATE_NS),
            stop: Cell::default(),
            slots: Cell::default(),
            unbound: RefCell::default(),
            endings: RefCell::default(),
            wrong: RefCell::default(),
            blame,
            scratch: RefCell::new(vec![0; ring::SendArena::SPAN_BYTES]),
            plan,
        })
    }

    pub fn wait(&self, bytes: usize) {
        self.waiting_bytes.set(self.waiting_bytes.get() + bytes);
    }

    pub fn wait_no_more(&self, bytes: usize) {
        self.waiting_bytes.set(self.waiting_bytes.get() - bytes);
    }
}
