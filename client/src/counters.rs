//! What workers and the main thread tell each other while a run goes on.
//!
//! Owns: the order, and one block of counters a worker. Invariant: a worker alone writes its block (relaxed: the
//! figures are for show and for ending, never for ordering memory), the main thread alone gives orders.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::shape::Leg;

/// What the workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Establish connections.
    Ramp,
    /// Hold them, before anything is exchanged.
    Quiet,
    /// Hold them.
    Hold,
    /// Hold them, and exchange messages.
    Active,
    /// Hold them, while the server publishes to all.
    Storm,
    /// Start nothing more; what is under way ends.
    Close,
    /// Close connection after connection, as the leg says.
    RampDown,
    /// Report, and close every connection at once.
    Done,
    /// Nothing any more. No worker is left to be told.
    Recovery,
}

impl Phase {
    /// Whether messages and cycles may start.
    pub(crate) fn is_exchanging(self) -> bool {
        matches!(self, Phase::Hold | Phase::Active)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Ramp => "ramp",
            Phase::Quiet => "quiet",
            Phase::Hold => "hold",
            Phase::Active => "active",
            Phase::Close => "close",
            Phase::Storm => "storm",
            Phase::RampDown => "ramp-down",
            Phase::Done => "done",
            Phase::Recovery => "recovery",
        }
    }
}

/// What the main thread has last told the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Counts from 1; the same for all intervals of a phase and leg.
    pub(crate) number: u64,
    /// Counts the intervals too.
    pub(crate) interval: u64,
    pub(crate) phase: Phase,
    /// How many connections are asked for, and since when, from the start of the run on.
    pub(crate) leg: Leg,
    pub(crate) began: Duration,
}

/// What the workers measure belongs to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    /// Counts up through the run.
    pub(crate) number: u64,
    pub(crate) phase: Phase,
}

impl Order {
    pub(crate) fn interval(&self) -> Interval {
        Interval {
            number: self.interval,
            phase: self.phase,
        }
    }

    /// The number of connections asked for at `now`.
    pub(crate) fn level(&self, now: Duration) -> u64 {
        self.leg.level(now.saturating_sub(self.began))
    }
}

/// What a run's threads share.
pub(crate) struct Shared {
    /// All times of a run count from here.
    pub(crate) start: Instant,
    /// Next of the plan's spare assignments.
    pub(crate) next_spare: AtomicU64,
    pub(crate) workers: Vec<Mailbox>,
    order: Mutex<Order>,
}

/// What the main thread and one worker share. A cache line of its own, so that workers do not slow each other.
#[repr(align(128))]
pub(crate) struct Mailbox {
    /// Readable when there is a new order.
    pub(crate) wake: EventFd,
    counters: [AtomicU64; FIELDS],
}

const FIELDS: usize = 16;

/// A reading of one worker's counters, or the sum of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections ever established, each once.
    pub(crate) established: u64,
    pub(crate) failed: u64,
    pub(crate) lost: u64,
    /// Those of them that the server had served and then closed or reset: not those it turned away (ungreeted, or
    /// where it does not greet, at once and without a byte), nor those given up for what it sent.
    pub(crate) dropped: u64,
    pub(crate) heartbeats: u64,
    pub(crate) heartbeats_late: u64,
    pub(crate) messages: u64,
    pub(crate) bytes_received: u64,
    /// First connects that met nobody listening.
    pub(crate) refused: u64,
    /// Messages and churn cycles under way.
    pub(crate) outstanding: u64,
    /// Messages whose time has come by the schedule, and which are not sent.
    pub(crate) owed: u64,
    /// Churn cycles completed.
    pub(crate) cycles: u64,
    /// Churn cycles whose time has come by the schedule, and which have not begun.
    pub(crate) cycles_owed: u64,
    /// Times that a lost connection was made again.
    pub(crate) reconnected: u64,
    /// Connections closed in the ramp down.
    pub(crate) closed: u64,
    /// The last order that the worker has carried out.
    pub(crate) carried_out: u64,
}

impl Counts {
    /// Connections established now. Those that churn count as such, unless they are lost.
    pub(crate) fn live(&self) -> u64 {
        (self.established + self.reconnected).saturating_sub(self.lost + self.closed)
    }

    fn to_array(self) -> [u64; FIELDS] {
        [
            self.established,
            self.failed,
            self.lost,
            self.dropped,
            self.heartbeats,
            self.heartbeats_late,
            self.messages,
            self.bytes_received,
            self.refused,
            self.outstanding,
            self.owed,
            self.cycles,
            self.cycles_owed,
            self.reconnected,
            self.closed,
            self.carried_out,
        ]
    }

    fn from_array(values: [u64; FIELDS]) -> Counts {
        let [
            established,
            failed,
            lost,
            dropped,
            heartbeats,
            heartbeats_late,
            messages,
            bytes_received,
            refused,
            outstanding,
            owed,
            cycles,
            cycles_owed,
            reconnected,
            closed,
            carried_out,
        ] = values;
        Counts {
            established,
            failed,
            lost,
            dropped,
            heartbeats,
            heartbeats_late,
            messages,
            bytes_received,
            refused,
            outstanding,
            owed,
            cycles,
            cycles_owed,
            reconnected,
            closed,
            carried_out,
        }
    }
}

impl Mailbox {
    pub(crate) fn publish(&self, counts: Counts) {
        for (counter, value) in self.counters.iter().zip(counts.to_array()) {
            counter.store(value, Relaxed);
        }
    }
}

impl Shared {
    pub(crate) fn new(workers: usize, first_spare: u64) -> nix::Result<Shared> {
        let mailbox = |_| {
            Ok(Mailbox {
                wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
                counters: Default::default(),
            })
        };
        Ok(Shared {
            start: Instant::now(),
            next_spare: AtomicU64::new(first_spare),
            workers: (0..workers).map(mailbox).collect::<nix::Result<_>>()?,
            order: Mutex::new(Order {
                number: 0,
                interval: 0,
                phase: Phase::Ramp,
                leg: Leg::down(0, Duration::ZERO),
                began: Duration::ZERO,
            }),
        })
    }

    /// What there is to do.
    pub(crate) fn order(&self) -> Order {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `phase`, and with it an interval, in every worker, with as many connections as the last leg led to, or with
    /// a new `leg`. Returns the order as given.
    pub(crate) fn enter(&self, phase: Phase, leg: Option<Leg>) -> nix::Result<Order> {
        self.give(|order| {
            order.number += 1;
            order.phase = phase;
            if let Some(leg) = leg {
                (order.leg, order.began) = (leg, self.start.elapsed());
            }
        })
    }

    /// Starts an interval of the same phase in every worker.
    pub(crate) fn next_interval(&self) -> nix::Result<Order> {
        self.give(|_| {})
    }

    fn give(&self, change: impl FnOnce(&mut Order)) -> nix::Result<Order> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        order.interval += 1;
        change(&mut order);
        let given = *order;
        drop(order);
        for mailbox in &self.workers {
            mailbox.wake.write(1)?;
        }
        Ok(given)
    }

    /// The sum of all workers' counters.
    pub(crate) fn counts(&self) -> Counts {
        let mut sum = [0; FIELDS];
        for mailbox in &self.workers {
            for (sum, counter) in sum.iter_mut().zip(&mailbox.counters) {
                *sum += counter.load(Relaxed);
            }
        }
        Counts::from_array(sum)
    }
}
