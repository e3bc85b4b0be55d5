//! What workers and the main thread tell each other while a run goes on.
//!
//! Owns: the order, and one block of counters a worker. Invariant: a worker alone writes its block (relaxed: the
//! figures are for show and for ending, never for ordering memory), the main thread alone gives orders. A worker waits
//! for nobody: what it cannot tell now it tells in a later turn.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::shape::{Leg, step_name};

/// What the workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Establish connections.
    Ramp,
    /// Hold what a step has brought up, before the next; the first step is 1.
    Step(u8),
    /// Hold them, before the server's heartbeat begins.
    Idle,
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

    /// Whether all are up, and not yet to end.
    pub(crate) fn is_held(self) -> bool {
        self.is_exchanging() || matches!(self, Phase::Quiet | Phase::Storm)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Ramp => "ramp",
            Phase::Step(step) => step_name(step),
            Phase::Idle => "idle",
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
    counters: Block,
    /// Microseconds of the longest latency since the main thread last looked.
    slowest_us: AtomicU64,
    causes: Mutex<Causes>,
}

/// Why connects failed and connections were lost, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Causes {
    pub(crate) failed: BTreeMap<String, u64>,
    pub(crate) lost: BTreeMap<String, u64>,
}

/// The counters, each named once: as a reading, and as a worker's block of atomics.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A reading of one worker's counters, or the sum of all.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Counts {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        #[derive(Default)]
        struct Block {
            $($name: AtomicU64,)*
        }

        impl Block {
            fn store(&self, counts: Counts) {
                $(self.$name.store(counts.$name, Relaxed);)*
            }

            fn add_to(&self, sum: &mut Counts) {
                $(sum.$name += self.$name.load(Relaxed);)*
            }
        }
    };
}

counters! {
    /// Connections ever established, each once.
    established,
    failed,
    lost,
    /// Those of them that the server had served and then closed or reset: not those it turned away (ungreeted, or
    /// where it does not greet, at once and without a byte), nor those given up for what it sent.
    dropped,
    /// Those of the lost that the server had told that it ends.
    announced,
    heartbeats,
    heartbeats_late,
    messages,
    bytes_received,
    /// First connects that met nobody listening.
    refused,
    /// Messages and churn cycles under way.
    outstanding,
    /// Messages whose time has come by the schedule, and which are not sent.
    owed,
    /// Churn cycles completed.
    cycles,
    /// Churn cycles whose time has come by the schedule, and which have not begun.
    cycles_owed,
    /// Times that a lost connection was made again.
    reconnected,
    /// Connections closed in the ramp down.
    closed,
    /// The last order that the worker has carried out.
    carried_out,
    /// Connects, echoes and cycles that were timed, and the sum of their latencies.
    timed,
    timed_us,
}

impl Counts {
    /// Connections established now. Those that churn count as such, unless they are lost.
    pub(crate) fn live(&self) -> u64 {
        (self.established + self.reconnected).saturating_sub(self.lost + self.closed)
    }
}

impl Mailbox {
    pub(crate) fn publish(&self, counts: Counts) {
        self.counters.store(counts);
    }

    /// A latency that may be the longest.
    pub(crate) fn timed(&self, latency: Duration) {
        let us = latency.as_micros() as u64;
        // Most are not, and cost one load. One that is not longer than what the main thread takes belongs to that.
        if us > self.slowest_us.load(Relaxed) {
            self.slowest_us.fetch_max(us, Relaxed);
        }
    }

    /// Tells `causes`, unless the main thread looks at them just now.
    pub(crate) fn tell(&self, causes: impl FnOnce() -> Causes) -> bool {
        let told = self.causes.try_lock();
        told.is_ok_and(|mut told| {
            *told = causes();
            true
        })
    }
}

impl Shared {
    pub(crate) fn new(workers: usize, first_spare: u64) -> nix::Result<Shared> {
        let mailbox = |_| {
            Ok(Mailbox {
                wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
                counters: Block::default(),
                slowest_us: AtomicU64::new(0),
                causes: Mutex::default(),
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
        let mut sum = Counts::default();
        for mailbox in &self.workers {
            mailbox.counters.add_to(&mut sum);
        }
        sum
    }

    /// The longest latency since this was last asked.
    pub(crate) fn take_slowest(&self) -> Duration {
        let of_workers = self.workers.iter();
        let slowest = of_workers.map(|mailbox| mailbox.slowest_us.swap(0, Relaxed));
        Duration::from_micros(slowest.max().unwrap_or(0))
    }

    /// The sum of all workers' causes.
    pub(crate) fn causes(&self) -> Causes {
        let mut sum = Causes::default();
        for mailbox in &self.workers {
            // Causes are whole at any time, whoever panicked.
            let told = mailbox
                .causes
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for (sum, told) in [(&mut sum.failed, &told.failed), (&mut sum.lost, &told.lost)] {
                for (cause, count) in told {
                    *sum.entry(cause.clone()).or_default() += count;
                }
            }
        }
        sum
    }
}
