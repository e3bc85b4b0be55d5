//! What comes to all connections of a worker in time: heartbeats, published messages, stalled writes, the end.
//!
//! Owns: the schedules, and the reading of the mailbox. Touches no socket; what it makes sessions say the
//! [`hub`](super::hub) leaves for their tasks.
//!
//! Invariant: a turn calls at most [`SESSIONS_PER_TURN`] sessions for heartbeats and as many for messages, and the
//! connections' tasks run between two turns. It is over at most [`END_BOUND_NS`] after the drain's time.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wire::Session;

use super::hub::{Hub, Shared};
use crate::drain::{CLOSED_PER_TURN, Drain};
use crate::engine::IDLE;
use crate::schedule::{Heartbeats, Published, STEP_NS};
use crate::worker::{Command, Mailbox, Worker};

const SESSIONS_PER_TURN: usize = 1024;
/// How long tasks may take to end once their sockets are shut down.
const END_BOUND_NS: u64 = 5_000_000_000;

/// Makes the mailbox something to wait for. Within a runtime only.
// Deprecated for descriptors that may be closed meanwhile, in favour of an unsafe function; an owned one cannot.
#[allow(deprecated)]
pub(super) fn watch(mailbox: &Mailbox) -> io::Result<AsyncFd<OwnedFd>> {
    let wake = mailbox.wake().as_fd().try_clone_to_owned()?;
    AsyncFd::with_interest(wake, Interest::READABLE)
}

/// Does what comes to every connection, until the worker is to stop and all tasks have ended, or do not in time.
pub(super) async fn oversee<S: Session, F: Fn() -> S>(
    hub: &Shared<S, F>,
    worker: &Worker<F>,
    mailbox: &AsyncFd<OwnedFd>,
) {
    let mut overseer = Overseer::new(hub, worker);
    loop {
        let (now_ns, wake_ns) = overseer.turn();
        if overseer.has_ended(now_ns) {
            return;
        }
        if wake_ns <= now_ns {
            tokio::task::yield_now().await;
            continue;
        }
        let called = poll_fn(|cx| {
            if let Poll::Ready(Ok(mut mail)) = mailbox.poll_read_ready(cx) {
                mail.clear_ready();
                overseer.read_mailbox();
                return Poll::Ready(());
            }
            hub.borrow_mut().is_called(cx)
        });
        // Elapsed or called, the next turn sees to it.
        let _ = tokio::time::timeout(Duration::from_nanos(wake_ns - now_ns), called).await;
    }
}

struct Overseer<'a, S, F> {
    hub: &'a RefCell<Hub<S, F>>,
    worker: &'a Worker<F>,
    heartbeats: Option<Heartbeats>,
    published: Published,
    drain: Option<Drain>,
    turns: u32,
}

impl<'a, S: Session, F: Fn() -> S> Overseer<'a, S, F> {
    fn new(hub: &'a RefCell<Hub<S, F>>, worker: &'a Worker<F>) -> Self {
        let now_ns = hub.borrow().now_ns();
        Overseer {
            hub,
            worker,
            heartbeats: worker
                .heartbeat_at_start()
                .map(|every| Heartbeats::new(every.as_nanos() as u64, worker.table_slots, now_ns)),
            published: Published::default(),
            drain: None,
            turns: 0,
        }
    }

    /// Does what is due. Returns the time, and when to look again.
    fn turn(&mut self) -> (u64, u64) {
        let now_ns = self.hub.borrow().now_ns();
        let busy = self.beat(now_ns) | self.publish(now_ns);
        let mut hub = self.hub.borrow_mut();
        let mut wake_ns = now_ns + IDLE.as_nanos() as u64;
        if let Some(due_ns) = hub.sweep(now_ns) {
            wake_ns = wake_ns.min(due_ns);
        }
        if let Some(drain) = &mut self.drain {
            for _ in 0..CLOSED_PER_TURN {
                let Some((_, slot)) = drain.next(now_ns, || [hub.high_water()]) else {
                    break;
                };
                hub.finish(slot);
            }
            if drain.is_over(now_ns) {
                hub.abort_all();
            }
            wake_ns = wake_ns.min(drain.next_due_ns(now_ns).max(now_ns + STEP_NS));
        }
        self.turns = self.turns.wrapping_add(1);
        self.worker.pulse.beat(self.turns, hub.held());
        if busy {
            return (now_ns, now_ns);
        }
        if let Some(due_ns) = self.published.next_due_ns(now_ns) {
            wake_ns = wake_ns.min(due_ns);
        }
        if let Some(heartbeats) = &self.heartbeats
            && hub.held() > 0
            && let Some(due_ns) = heartbeats.next_due_ns(hub.high_water())
        {
            wake_ns = wake_ns.min(due_ns.max(now_ns + STEP_NS));
        }
        (now_ns, wake_ns)
    }

    /// Lets sessions say the heartbeats that are due. True where some are left for the next turn.
    fn beat(&mut self, now_ns: u64) -> bool {
        let Some(heartbeats) = &mut self.heartbeats else {
            return false;
        };
        let mut hub = self.hub.borrow_mut();
        for _ in 0..SESSIONS_PER_TURN {
            let Some((slot, late_ns)) = heartbeats.next(now_ns, hub.high_water()) else {
                return false;
            };
            hub.tick(slot, late_ns);
        }
        true
    }

    /// Gives published messages to the sessions whose time has come. True where some are left for the next turn.
    fn publish(&mut self, now_ns: u64) -> bool {
        let mut hub = self.hub.borrow_mut();
        for _ in 0..SESSIONS_PER_TURN {
            let high_waters = || [hub.high_water()];
            let Some((message, _, slot)) = self.published.next(now_ns, high_waters) else {
                return false;
            };
            hub.message(slot, &message.bytes);
        }
        true
    }

    fn read_mailbox(&mut self) {
        let mut hub = self.hub.borrow_mut();
        for command in self.worker.mailbox().take() {
            match command {
                Command::Stop => {
                    if self.drain.is_none() {
                        self.drain = Some(Drain::new(self.worker.drain_timeout, hub.now_ns()));
                        self.published.end_with(self.worker.farewell.clone());
                        hub.stop();
                    }
                }
                Command::End => {
                    if self.drain.is_none() {
                        hub.stop();
                    }
                    self.drain = Some(Drain::new(Duration::ZERO, hub.now_ns()));
                }
                Command::Beat if self.heartbeats.is_none() => {
                    let (slots, now_ns) = (self.worker.table_slots, hub.now_ns());
                    let begun =
                        |every: Duration| Heartbeats::new(every.as_nanos() as u64, slots, now_ns);
                    self.heartbeats = self.worker.heartbeat.map(begun);
                }
                Command::Beat => {}
                Command::Publish(message) => self.published.push(message),
            }
        }
    }

    fn has_ended(&self, now_ns: u64) -> bool {
        self.drain.as_ref().is_some_and(|drain| {
            self.hub.borrow().is_idle() || drain.is_over(now_ns.saturating_sub(END_BOUND_NS))
        })
    }
}
