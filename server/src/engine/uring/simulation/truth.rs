//! What is true of a connection, whatever the server thinks: the session's own record of what it was given and said.
//!
//! Invariant: each byte a session is given was received on its own connection, in order and once; each byte it says
//! enters its own socket, in order and once ([`Truth::enters`]); and it ends for a reason that is true.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use wire::{Close, Out, Session};

use super::plan::Plan;
use super::shared::Shared;
use crate::stats::CloseReason;

/// One connection's truth.
pub struct Truth {
    shared: Rc<Shared>,
    /// Which connection, once that is known.
    pub id: Option<usize>,
    /// Received by the kernel, not yet consumed by the session.
    received: VecDeque<u8>,
    /// The session took something when it was asked last.
    took: bool,
    /// So much of `received` it has been shown and did not take.
    left: usize,
    /// Said by the session, not yet in the socket.
    unsent: VecDeque<u8>,
    /// In the socket by a waiting send that has not completed: they wait as far as the server knows.
    untold: usize,
    /// Its peer has finished, and the kernel said so.
    pub eof: bool,
    /// Reset, or given up by the kernel.
    pub broken: bool,
    pub asked: Option<Close>,
    told_eof: bool,
    /// It wanted to say more than there was room for.
    overflowed: bool,
    pub ended: bool,
    pub made_ns: u64,
    /// The step in which it last said something, and how much.
    pub said_in: u32,
    said_bytes: usize,
    /// When something was last received from the peer.
    pub heard_ns: u64,
    /// When output began to wait, or last moved.
    pub moved_ns: u64,
    pub beat_ns: u64,
    pub last_message: Option<u64>,
    pub told_farewell: bool,
    /// Somebody wants it closed.
    pub is_dismissed: bool,
}

impl Truth {
    fn fail(&self, why: &str) -> ! {
        self.shared.blame.set(self.id);
        panic!("connection {:?}: {why}", self.id)
    }

    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Output waits, as far as the server knows.
    fn waits(&self) -> bool {
        self.unsent.len() + self.untold > 0
    }

    /// The session has been shown all that was received, or will be shown nothing more.
    pub fn has_seen_all(&self) -> bool {
        self.received.len() == self.left || self.is_finishing()
    }

    /// It will be said nothing more.
    pub fn is_finishing(&self) -> bool {
        self.asked.is_some() || self.told_eof || self.ended
    }

    /// The kernel received `bytes` for it.
    pub fn receives(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.received.extend(bytes);
            self.shared.wait(bytes.len());
        }
    }

    /// `bytes` enter the socket, which the server knows at once, or with [`Truth::is_told`].
    pub fn enters(&mut self, bytes: &[u8], is_known: bool) {
        if self.ended {
            return;
        }
        if bytes.len() > self.unsent.len() || !self.unsent.iter().take(bytes.len()).eq(bytes) {
            self.fail("what is sent is not what the session said next");
        }
        self.unsent.drain(..bytes.len());
        match is_known {
            true => self.shared.wait_no_more(bytes.len()),
            false => self.untold += bytes.len(),
        }
    }

    /// The server knows all that a waiting send sent.
    pub fn is_told(&mut self) {
        if !self.ended {
            self.shared.wait_no_more(std::mem::take(&mut self.untold));
        }
    }

    /// Its last heartbeat was too long ago.
    pub fn is_beat_late(&self) -> bool {
        let since_ns = self.shared.beating_since_ns.get();
        let (Some(interval), Some(since_ns)) = (self.shared.plan.heartbeat, since_ns) else {
            return false;
        };
        let due_ns = self.beat_ns.max(since_ns) + interval.as_nanos() as u64;
        self.shared.now_ns.get() > due_ns + self.shared.late_ns.get()
    }

    /// More input waits than may: it is closed for that once its output is sent.
    pub fn has_too_much(&self) -> bool {
        self.received.len() > self.shared.plan.limits.input_bytes_per_conn
    }

    /// What waits is within the bounds of a connection. Asked when the server has nothing more to do: then what was said
    /// before this step has been answered for, and one receive may have happened that it does not know.
    pub fn check_bounds(&self) {
        let Plan {
            limits,
            buffer_bytes,
            ..
        } = &self.shared.plan;
        let fresh = match self.said_in == self.shared.step.get() {
            true => self.said_bytes,
            false => 0,
        };
        let output = (self.unsent.len() + self.untold).saturating_sub(fresh);
        if output > limits.output_bytes_per_conn {
            self.fail("more output waits than may");
        }
        if self.received.len() > limits.input_bytes_per_conn + buffer_bytes {
            self.fail("more input waits than may");
        }
    }

    /// The reasons for which it may end now.
    fn reasons(&self) -> Vec<CloseReason> {
        let Plan {
            limits, timeouts, ..
        } = &self.shared.plan;
        let elapsed_ns = |since_ns| u128::from(self.shared.now_ns.get() - since_ns);
        let said_all = self.unsent.is_empty();
        // Read in whole milliseconds, at both ends.
        let too_long_ms = |since_ns, most: std::time::Duration| {
            elapsed_ns(since_ns) + 1_000_000 > most.as_nanos()
        };
        [
            (CloseReason::PeerClosed, self.told_eof && said_all),
            (
                CloseReason::Finished,
                self.asked == Some(Close::Done) && said_all,
            ),
            (
                CloseReason::TooLong,
                (self.asked == Some(Close::TooLong) && said_all) || self.has_too_much(),
            ),
            (CloseReason::Operator, self.is_dismissed),
            (CloseReason::Reset, self.broken),
            (CloseReason::Failed, self.broken),
            (
                CloseReason::SlowReader,
                self.overflowed || self.unsent.len() + self.untold > limits.output_bytes_per_conn,
            ),
            (
                CloseReason::IdleTimeout,
                // Who goes anyway goes for his own reason, once all is sent.
                timeouts.idle.is_some_and(|idle| {
                    let goes = self.is_finishing() && !self.waits();
                    elapsed_ns(self.heard_ns) >= idle.as_nanos() && !goes
                }),
            ),
            (
                CloseReason::WriteTimeout,
                timeouts
                    .write
                    .is_some_and(|write| self.waits() && too_long_ms(self.moved_ns, write)),
            ),
            (
                CloseReason::WorkerMemory,
                self.shared.waiting_bytes.get() > limits.bytes_per_worker,
            ),
            (
                CloseReason::Shutdown,
                self.shared
                    .stop
                    .get()
                    .is_some_and(|stop| stop.excuses(self.shared.now_ns.get(), said_all)),
            ),
        ]
        .into_iter()
        .filter_map(|(reason, is_true)| is_true.then_some(reason))
        .collect()
    }

    /// Where it ended for the drain alone: it was its turn.
    fn check_let_go(&self, reasons: &[CloseReason]) {
        if let (Some(mut stop), [CloseReason::Shutdown]) = (self.shared.stop.get(), reasons) {
            stop.let_go += 1;
            let most = stop.most_let_go(self.shared.now_ns.get(), self.shared.slots.get());
            if stop.let_go > most {
                let said = format!("{} were let go where {most} may have been", stop.let_go);
                self.shared.blame.set(self.id);
                self.shared.wrong.borrow_mut().get_or_insert(said);
            }
            self.shared.stop.set(Some(stop));
        }
    }

    /// The session is told that the server ends: after what was published before, once.
    fn hears_farewell(&mut self) {
        let after = self.shared.farewell_after.get();
        if self.shared.stop.get().is_none() || self.told_farewell {
            self.fail("told farewell before the stop, or twice");
        }
        if self.last_message.is_some_and(|last| last != after) {
            self.fail(&format!("farewell after message {:?}", self.last_message));
        }
        self.told_farewell = true;
        self.last_message = Some(after);
    }

    /// Has said everything, and said nothing in the last `turns`, nor for `ns`.
    pub fn is_silent_for(&self, turns: u32, ns: u64) -> bool {
        !self.waits()
            && self.said_in + turns < self.shared.step.get()
            && self.moved_ns + ns < self.shared.now_ns.get()
    }

    fn end(&mut self) {
        let reasons = self.reasons();
        if reasons.is_empty() {
            let (unsent, received) = (self.unsent.len(), self.received.len());
            let said = format!(
                "connection {:?} was closed for no reason, with {unsent} bytes unsent and {received} not given to its session (asked {:?}, told the end {})",
                self.id, self.asked, self.told_eof
            );
            self.shared.blame.set(self.id);
            self.shared.wrong.borrow_mut().get_or_insert(said);
        }
        self.check_let_go(&reasons);
        self.shared.endings.borrow_mut().push(reasons);
        self.ended = true;
        self.shared
            .wait_no_more(self.unsent.len() + self.untold + self.received.len());
        self.shared.alive.set(self.shared.alive.get() - 1);
    }
}

/// A session that writes the truth down.
pub struct Witness<S> {
    inner: S,
    truth: Rc<RefCell<Truth>>,
    shared: Rc<Shared>,
}

impl<S: Session> Witness<S> {
    pub fn new(inner: S, shared: &Rc<Shared>) -> Witness<S> {
        let now_ns = shared.now_ns.get();
        shared.alive.set(shared.alive.get() + 1);
        shared.made.set(shared.made.get() + 1);
        let truth = Rc::new(RefCell::new(Truth {
            shared: Rc::clone(shared),
            id: None,
            received: VecDeque::new(),
            took: false,
            left: 0,
            unsent: VecDeque::new(),
            untold: 0,
            eof: false,
            broken: false,
            asked: None,
            told_eof: false,
            overflowed: false,
            ended: false,
            made_ns: now_ns,
            said_in: 0,
            said_bytes: 0,
            heard_ns: now_ns,
            moved_ns: now_ns,
            beat_ns: now_ns,
            last_message: None,
            told_farewell: false,
            is_dismissed: false,
        }));
        let before = shared.unbound.borrow_mut().replace(Rc::clone(&truth));
        assert!(before.is_none(), "a session without a slot");
        Witness {
            inner,
            truth,
            shared: Rc::clone(shared),
        }
    }

    fn say<T>(&mut self, out: &mut Out<'_>, act: impl FnOnce(&mut S, &mut Out<'_>) -> T) -> T {
        let mut scratch = self.shared.scratch.borrow_mut();
        let mut own = Out::new(&mut scratch[..out.room()]);
        let result = act(&mut self.inner, &mut own);
        let (written, closing) = (own.written(), own.closing());
        let truth = &mut *self.truth.borrow_mut();
        if truth.is_finishing() && !truth.told_eof {
            truth.fail("called after it asked to close");
        }
        if own.overflowed() {
            truth.fail("given too little room");
        }
        out.put(&scratch[..written]);
        if let Some(close) = closing {
            out.close(close);
            truth.asked = Some(close);
        }
        if !truth.waits() {
            truth.moved_ns = self.shared.now_ns.get();
        }
        truth.unsent.extend(&scratch[..written]);
        if truth.said_in != self.shared.step.get() {
            truth.said_in = self.shared.step.get();
            truth.said_bytes = 0;
        }
        truth.said_bytes += written;
        self.shared.wait(written);
        result
    }
}

impl<S: Session> Session for Witness<S> {
    fn on_open(&mut self, out: &mut Out<'_>) {
        if self.shared.plan.is_rude && self.shared.made.get().is_multiple_of(8) {
            self.truth.borrow_mut().overflowed = !out.put(&vec![b'!'; out.room() + 1]);
            return;
        }
        self.say(out, |inner, out| inner.on_open(out));
    }

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        let taken = self.say(out, |inner, out| inner.on_bytes(input, out));
        let truth = &mut *self.truth.borrow_mut();
        let is_next = input.len() <= truth.received.len()
            && truth.received.iter().take(input.len()).eq(input);
        if !is_next {
            truth.fail("the session is given what was not received next");
        }
        truth.received.drain(..taken);
        truth.took = taken > 0;
        truth.left = input.len() - taken;
        self.shared.wait_no_more(taken);
        taken
    }

    fn on_tick(&mut self, out: &mut Out<'_>) {
        let before = out.written();
        self.say(out, |inner, out| inner.on_tick(out));
        let beats = u64::from(out.written() > before);
        self.shared.beats.set(self.shared.beats.get() + beats);
        let truth = &mut *self.truth.borrow_mut();
        if truth.is_beat_late() {
            truth.fail("its heartbeat is late");
        }
        truth.beat_ns = self.shared.now_ns.get();
    }

    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>) {
        self.say(out, |inner, out| inner.on_message(message, out));
        self.shared.messages.set(self.shared.messages.get() + 1);
        let truth = &mut *self.truth.borrow_mut();
        if message == self.shared.farewell {
            return truth.hears_farewell();
        }
        let number = message.iter().take_while(|b| b.is_ascii_digit());
        let number = number.fold(0, |sum, b| sum * 10 + u64::from(b - b'0'));
        if truth.last_message.is_some_and(|last| number != last + 1) {
            truth.fail(&format!("message {number} after {:?}", truth.last_message));
        }
        truth.last_message = Some(number);
    }

    fn on_eof(&mut self, rest: &[u8], out: &mut Out<'_>) {
        {
            let truth = &mut *self.truth.borrow_mut();
            if !truth.eof || !truth.received.iter().eq(rest) || truth.is_finishing() {
                truth.fail("told an end that has not come");
            }
            if truth.took && !rest.is_empty() {
                truth.fail("told the end with input left that it would take");
            }
            truth.received.clear();
            self.shared.wait_no_more(rest.len());
            truth.told_eof = true;
        }
        self.say(out, |inner, out| inner.on_eof(rest, out));
    }
}

impl<S> Drop for Witness<S> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.truth.borrow_mut().end();
        }
    }
}
