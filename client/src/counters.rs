//! What workers and the main thread tell each other while a run goes on.
//!
//! Owns: the phase, and one block of counters a worker. Invariant: a worker alone writes its block (relaxed: the
//! figures are for show and for ending, never for ordering memory), the main thread alone writes the phase.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

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
    /// Hold them, while the server publishes to all.
    Storm,
    /// Start nothing more; what is under way ends.
    Close,
    /// Report, and reset every connection.
    Done,
    /// Nothing any more. No worker is left to be told.
    Recovery,
}

impl Phase {
    const ALL: [Phase; 8] = [
        Phase::Ramp,
        Phase::Quiet,
        Phase::Hold,
        Phase::Active,
        Phase::Storm,
        Phase::Close,
        Phase::Done,
        Phase::Recovery,
    ];

    pub(crate) fn name(self) -> &'static str {
        [
            "ramp", "quiet", "hold", "active", "storm", "close", "done", "recovery",
        ][self as usize]
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
    counters: [AtomicU64; FIELDS],
}

const FIELDS: usize = 13;

/// A reading of one worker's counters, or the sum of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections ever established.
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
    /// Connects that met nobody listening.
    pub(crate) refused: u64,
    /// Messages and churn cycles under way.
    pub(crate) outstanding: u64,
    /// Messages whose time has come by the schedule, and which are not sent.
    pub(crate) owed: u64,
    /// Churn cycles completed.
    pub(crate) cycles: u64,
    /// Workers that have nothing left to connect.
    pub(crate) ramped: u64,
}

impl Counts {
    /// Connections established now. Those that churn count as such, unless they are lost.
    pub(crate) fn live(&self) -> u64 {
        self.established - self.lost.min(self.established)
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
            self.ramped,
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
            ramped,
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
            ramped,
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
        let mut sum = [0; FIELDS];
        for mailbox in &self.workers {
            for (sum, counter) in sum.iter_mut().zip(&mailbox.counters) {
                *sum += counter.load(Relaxed);
            }
        }
        Counts::from_array(sum)
    }
}
