//! What workers and the main thread tell each other while a run goes on.
//!
//! Owns: the phase, and one block of counters a worker. Invariant: a worker alone writes its block (relaxed: the
//! figures are for show and for ending, never for ordering memory), the main thread alone writes the phase. A worker
//! waits for nobody: what it cannot tell now it tells in a later turn.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// What the workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Establish connections.
    Ramp,
    /// Hold them, before anything is exchanged.
    Quiet,
    /// Hold them.
    Hold,
    /// Hold them, and exchange messages.
    Active,
    /// Start nothing more; what is under way ends.
    Close,
    /// Report, and reset every connection.
    Done,
}

impl Phase {
    const ALL: [Phase; 6] = [
        Phase::Ramp,
        Phase::Quiet,
        Phase::Hold,
        Phase::Active,
        Phase::Close,
        Phase::Done,
    ];

    pub(crate) fn name(self) -> &'static str {
        ["ramp", "quiet", "hold", "active", "close", "done"][self as usize]
    }
}

/// What a run's threads share.
pub(crate) struct Shared {
    /// All times of a run count from here.
    pub(crate) start: Instant,
    /// Next of the plan's spare assignments.
    pub(crate) next_spare: AtomicU64,
    pub(crate) workers: Vec<Mailbox>,
    phase: AtomicU8,
}

/// What the main thread and one worker share. A cache line of its own, so that workers do not slow each other.
#[repr(align(128))]
pub(crate) struct Mailbox {
    /// Readable when there is a new phase.
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
    /// Connections ever established.
    established,
    failed,
    lost,
    /// Those of them that the server had served and then closed or reset: not those it turned away (ungreeted, or
    /// where it does not greet, at once and without a byte), nor those given up for what it sent.
    dropped,
    heartbeats,
    heartbeats_late,
    messages,
    bytes_received,
    /// Connects that met nobody listening.
    refused,
    /// Messages and churn cycles under way.
    outstanding,
    /// Messages whose time has come by the schedule, and which are not sent.
    owed,
    /// Churn cycles completed.
    cycles,
    /// Workers that have nothing left to connect.
    ramped,
    /// Connects, echoes and cycles that were timed, and the sum of their latencies.
    timed,
    timed_us,
}

impl Counts {
    /// Connections established now. Those that churn count as such, unless they are lost.
    pub(crate) fn live(&self) -> u64 {
        self.established - self.lost.min(self.established)
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
            phase: AtomicU8::new(Phase::Ramp as u8),
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Relaxed))]
    }

    /// Starts `phase` in every worker.
    pub(crate) fn enter(&self, phase: Phase) -> nix::Result<()> {
        self.phase.store(phase as u8, Relaxed);
        for mailbox in &self.workers {
            mailbox.wake.write(1)?;
        }
        Ok(())
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
