//! What goes on around the server in a run: peers come, act and go, time passes, something is published, and at last
//! everything ends. Also what must be so after a time: nobody is forgotten.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::kernel::Kernel;
use super::operator::Operator;
use super::peer::Peer;
use super::stop::Stop;
use crate::admission::Admission;
use crate::drain::Drain;
use crate::schedule::STEP_NS;
use crate::worker::{Command, Publisher};

/// The state of a run that is neither the kernel's nor a peer's.
pub struct World {
    /// What the peers to come will write.
    pub unborn: Vec<Vec<u8>>,
    pub publisher: Publisher,
    pub admission: Arc<Admission>,
    /// There is something in the mailbox that was not told.
    pub mail: bool,
    /// The worker waits for its mailbox.
    pub is_watched: bool,
    /// Memory, so that nobody may come in.
    is_short: bool,
    stopped_in: u32,
    /// When files or memory were short for an accept last.
    pub short_at_ns: Option<u64>,
    /// Steps in a row in which connections waited for nothing.
    pub unarmed_steps: u32,
    /// When the server was told to stop, and by when sessions that were there must have been told so.
    farewell: Option<(u64, u64)>,
    /// Steps in a row in which the worker had nothing to stay for.
    idle_steps: u32,
    next_message: u64,
    /// Messages that sessions made before the first time must have by the second.
    posted: VecDeque<(u64, u64, u64)>,
    /// By when the last message must have been given.
    told_by_ns: u64,
    /// Of those in which it did not wait.
    longest_step_ns: u64,
    pub operator: Operator,
}

impl World {
    pub fn new(unborn: Vec<Vec<u8>>, publisher: Publisher, admission: Arc<Admission>) -> World {
        World {
            unborn,
            publisher,
            admission,
            mail: false,
            is_watched: false,
            is_short: false,
            stopped_in: 0,
            short_at_ns: None,
            unarmed_steps: 0,
            farewell: None,
            idle_steps: 0,
            next_message: 1,
            posted: VecDeque::new(),
            told_by_ns: 0,
            longest_step_ns: 0,
            operator: Operator::default(),
        }
    }
}

/// Steps in which the next connection must come to its end once everybody behaves.
const MOST_CALM_STEPS: u32 = 20_000;
/// What a socket holds then, and how far apart steps are, at least, so that this bound is no question of sizes.
const CALM_WINDOW: usize = 1_000;
const CALM_NAP: Duration = Duration::from_millis(10);
/// A worker reacts within so many of its turns.
const TURNS: u64 = 8;
/// What is due in steps of a millisecond may be as late as that anyhow.
pub const LEAST_LATE_NS: u64 = 5 * STEP_NS;
/// One in which it is told to stop, one that begins before the time is over.
const DRAIN_TURNS: u64 = 2;
/// One in which it is not listening to its mailbox, one in which it is told.
const MOST_ACCEPTING_STEPS: u32 = 2;
/// One in which the last of its own completions come.
const MOST_IDLE_STEPS: u32 = 2;

impl Kernel {
    /// What peers do between two enters.
    pub(super) fn happen(&mut self) {
        self.step += 1;
        self.shared.step.set(self.step);
        if !self.is_calm && self.step >= self.plan.steps {
            self.is_calm = true;
            self.trace.note(None, || "now all is calm".to_owned());
            self.peers
                .iter_mut()
                .for_each(|peer| peer.behave(&self.plan));
            self.plan.window = self.plan.window.max(CALM_WINDOW);
            self.plan.nap = self.plan.nap.max(CALM_NAP);
        }
        self.arrive();
        let ends = self
            .lot(self.plan.mass_ends)
            .then(|| self.random.random_range(0..2) == 0);
        for (table, slot, number) in self.taken() {
            let peer = &mut self.peers[number];
            let mut did = peer.act(&self.plan, &mut self.random);
            match ends {
                Some(true) => peer.reset(),
                Some(false) => peer.finish(),
                None => {}
            }
            did.finished |= ends == Some(false);
            did.reset |= ends == Some(true);
            if did.wrote > 0 || did.finished || did.reset {
                self.trace.note(Some(number), || {
                    format!("peer {number} in slot {slot} of table {table} writes {} bytes, finishes {}, resets {}", did.wrote, did.finished, did.reset)
                });
                self.wake(table, slot);
            }
        }
        self.command();
    }

    pub(super) fn lot(&mut self, of_1000: u32) -> bool {
        !self.is_calm && self.random.random_range(0..1000) < of_1000
    }

    /// Some connect.
    pub(super) fn arrive(&mut self) {
        let room = self.plan.backlog as usize - self.backlog.len();
        let most = match self.random.random_range(0..4) {
            0 => room,
            1 => room.min(1),
            _ => 0,
        };
        for _ in 0..most {
            let Some(conversation) = self.world.unborn.pop() else {
                return;
            };
            let mut peer = Peer::new(conversation, &self.plan, &mut self.random);
            if self.is_calm {
                peer.behave(&self.plan);
            }
            self.backlog.push_back(self.peers.len());
            self.peers.push(peer);
        }
    }

    /// What the worker is told.
    fn command(&mut self) {
        let now_ns = self.shared.now_ns.get();
        if self.plan.heartbeat_waits
            && self.shared.beating_since_ns.get().is_none()
            && self.step > self.plan.steps / 3
        {
            self.shared.beating_since_ns.set(Some(now_ns));
            self.post(Command::Beat);
        }
        if self.is_calm || self.lot(self.plan.shortages) {
            self.world.is_short = !self.is_calm && !self.world.is_short;
            self.world
                .admission
                .set_memory_is_short(self.world.is_short);
        }
        if self.lot(self.plan.publishes) {
            let number = self.world.next_message;
            self.world.next_message += 1;
            let padding = self.random.random_range(0..=self.plan.published_bytes);
            let text = format!("{number} {}\n", "m".repeat(padding));
            let over = match self.random.random_range(0..3) {
                0 => Duration::from_micros(self.random.random_range(0..300_000)),
                _ => Duration::ZERO,
            };
            let by_ns = self.told_by_ns(over);
            self.world.posted.push_back((number, now_ns, by_ns));
            self.trace.note(None, || {
                format!("message {number} is published over {over:?}")
            });
            if self.world.publisher.publish(text, over).is_err() {
                panic!("message {number} is too long");
            }
            self.world.mail = true;
        }
        self.operate();
        let is_time = match self.plan.stops_early {
            true => self.step > self.plan.steps / 2,
            false => self.is_calm && self.is_at_rest(),
        };
        if is_time && self.shared.stop.get().is_none() {
            self.stop();
        }
        self.hurry();
        if self.step > self.plan.steps.max(self.closed_in) + MOST_CALM_STEPS {
            let left = self.taken();
            self.shared
                .blame
                .set(left.first().map(|(_, _, peer)| *peer));
            let (unborn, backlog) = (self.world.unborn.len(), self.backlog.len());
            panic!(
                "nothing comes to rest: held are (table, slot, peer) {left:?}; {backlog} are in the backlog, {unborn} have not come"
            );
        }
    }

    fn stop(&mut self) {
        let now_ns = self.shared.now_ns.get();
        let stop = Stop::new(now_ns, self.plan.drain_timeout);
        self.shared.stop.set(Some(stop));
        self.world.stopped_in = self.step;
        if self.plan.farewell {
            self.shared.farewell_after.set(self.world.next_message - 1);
            let by_ns = self.told_by_ns(Drain::farewell_over(self.plan.drain_timeout));
            self.world.farewell = Some((now_ns, by_ns));
        }
        self.trace
            .note(None, || "the worker is told to stop".to_owned());
        self.post(Command::Stop);
    }

    /// The worker is asked once more to end, and does so at once.
    fn hurry(&mut self) {
        if let (Some(mut stop), Some(after)) = (self.shared.stop.get(), self.plan.hurries_after)
            && !stop.is_hurried()
            && self.step >= self.world.stopped_in + after
        {
            stop.hurry(self.shared.now_ns.get());
            self.shared.stop.set(Some(stop));
            self.trace
                .note(None, || "the worker is told to end at once".to_owned());
            self.post(Command::End);
        }
    }

    /// By when sessions are told what is published now: after what was published before, and then within `over`.
    fn told_by_ns(&mut self, over: Duration) -> u64 {
        let from_ns = self.world.told_by_ns.max(self.shared.now_ns.get());
        self.world.told_by_ns = from_ns + over.as_nanos() as u64;
        self.world.told_by_ns
    }

    pub(super) fn post(&mut self, command: Command) {
        self.world.publisher.post(command);
        self.world.mail = true;
    }

    /// Everybody who was to come has come and gone.
    fn is_at_rest(&self) -> bool {
        self.world.unborn.is_empty() && self.backlog.is_empty() && self.taken().is_empty()
    }

    /// The worker waits for completions, for at most `timeout`.
    pub(super) fn pass_time(&mut self, timeout: Duration, has_ready: bool) {
        let nap_ns = self.plan.nap.as_nanos() as u64;
        let most_ns = timeout.as_nanos() as u64;
        let is_busy = has_ready || most_ns == 0;
        let ns = match is_busy {
            true if self.random.random_range(0..200) == 0 => self.random.random_range(0..=nap_ns),
            true => self.random.random_range(0..=50_000),
            false => self
                .random
                .random_range(most_ns.min(nap_ns) / 2..=most_ns.min(nap_ns)),
        };
        // What the worker sleeps by its own will is no excuse for being late.
        if is_busy {
            self.world.longest_step_ns = self.world.longest_step_ns.max(ns);
            let late_ns = TURNS * self.world.longest_step_ns + LEAST_LATE_NS;
            self.shared.late_ns.set(late_ns);
        }
        self.shared.now_ns.set(self.shared.now_ns.get() + ns);
        self.trace
            .note(None, || format!("step {}: {ns} ns pass", self.step));
    }

    /// Nobody is forgotten: what is due has come.
    pub(super) fn check_times(&mut self) {
        let now_ns = self.shared.now_ns.get();
        let late_ns = self.shared.late_ns.get();
        let timeouts = self.plan.timeouts;
        let swept_ns = |timeout: Duration| {
            let slack = (timeout / 20).max(Duration::from_secs(1));
            (timeout + slack).as_nanos() as u64 + late_ns
        };
        let held = self.world.admission.held();
        assert_eq!(
            held,
            self.shared.alive.get(),
            "connections counted, and alive"
        );
        let stop = self.shared.stop.get();
        if let Some(stop) = stop {
            self.check_drain(stop);
        }
        let may_be_let_go = stop.is_some_and(|stop| now_ns >= stop.lets_go_from_ns());
        let farewell = self
            .world
            .farewell
            .filter(|(_, by_ns)| by_ns + late_ns < now_ns);
        while self.world.posted.len() > 1
            && self.world.posted[0].2 + late_ns < now_ns
            && self.world.posted[1].2 + late_ns < now_ns
        {
            self.world.posted.pop_front();
        }
        let message = self
            .world
            .posted
            .front()
            .filter(|(_, _, by_ns)| by_ns + late_ns < now_ns);
        for (_, _, number) in self.taken() {
            let Some(truth) = &self.peers[number].truth else {
                continue;
            };
            let truth = truth.borrow();
            if truth.is_finishing() || truth.has_too_much() {
                continue;
            }
            let waits = truth.unsent() > 0;
            let is_over = |since_ns: u64, timeout: Option<Duration>| {
                timeout.is_some_and(|timeout| now_ns - since_ns > swept_ns(timeout))
            };
            let has_missed = |message: u64| truth.last_message.is_none_or(|last| last < message);
            let forgotten = if is_over(truth.moved_ns, timeouts.write.filter(|_| waits)) {
                Some("takes nothing for too long, and is still held")
            } else if may_be_let_go {
                None
            // While output waited, its own timeout counted.
            } else if is_over(truth.heard_ns, timeouts.idle.filter(|_| !waits))
                && is_over(truth.moved_ns, Some(Duration::ZERO))
            {
                Some("is silent for too long, and still held")
            } else if truth.is_beat_late() {
                Some("was told no heartbeat")
            } else if let Some((message, at_ns, _)) = message
                && truth.made_ns < *at_ns
                && has_missed(*message)
            {
                Some("was not given a message")
            } else if let Some((at_ns, _)) = farewell
                && truth.made_ns < at_ns
                && !truth.told_farewell
            {
                Some("was not told farewell")
            } else {
                None
            };
            if let Some(forgotten) = forgotten {
                self.shared.blame.set(Some(number));
                panic!("connection {number} {forgotten}");
            }
        }
    }

    /// It ends when nobody is left, or its time is over, and lets all go before that.
    fn check_drain(&mut self, stop: Stop) {
        let now_ns = self.shared.now_ns.get();
        let turn_ns = self.world.longest_step_ns + STEP_NS;
        assert!(
            now_ns <= stop.ends_at_ns() + DRAIN_TURNS * turn_ns,
            "it goes on at {now_ns} ns: {stop:?}"
        );
        let accepts = self.tables.iter().any(|t| t.multi || t.singles > 0);
        if accepts && self.step > self.world.stopped_in + MOST_ACCEPTING_STEPS {
            self.fail(None, "it was told to stop, and goes on accepting");
        }
        match self.shared.alive.get() == 0 && !accepts {
            true => self.world.idle_steps += 1,
            false => self.world.idle_steps = 0,
        }
        assert!(
            self.world.idle_steps <= MOST_IDLE_STEPS,
            "nobody is left, and it goes on: {stop:?}"
        );
        if now_ns <= stop.has_let_go_ns() + TURNS * turn_ns {
            return;
        }
        for (_, _, number) in self.taken() {
            if let Some(truth) = &self.peers[number].truth
                && !truth.borrow().ended
                && !truth.borrow().broken
                && truth.borrow().is_silent_for(TURNS as u32, TURNS * turn_ns)
            {
                self.fail(Some(number), "was not let go");
            }
        }
    }
}

/// What a peer will write in the `line` protocol: lines of any length, rarely one too long, sometimes the end.
pub fn lines(random: &mut rand::rngs::StdRng) -> Vec<u8> {
    let mut text = Vec::new();
    for number in 0..random.random_range(0..40) {
        let longest = *[3, 40, 400].choose(random).unwrap_or(&3);
        let length = match random.random_range(0..400) {
            0 => wire::Out::MIN_ROOM - random.random_range(0..40),
            _ => random.random_range(0..=longest),
        };
        text.extend(format!("{number} {}\n", "x".repeat(length)).into_bytes());
    }
    match random.random_range(0..6) {
        0 => text.extend(b"quit\r\nnobody hears this\n"),
        1 => text.extend(b"unfinished"),
        _ => {}
    }
    text
}

/// What a peer will write where everything is echoed.
pub fn bytes(random: &mut rand::rngs::StdRng) -> Vec<u8> {
    let most = *[0, 100, 3_000, 20_000].choose(random).unwrap_or(&0);
    let first: u8 = random.random();
    (0..random.random_range(0..=most))
        .map(|at: usize| (at * 7 + at / 256) as u8 ^ first)
        .collect()
}
