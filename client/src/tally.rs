//! What the workers hand over, added up by phase, and by interval where there is an interval log.
//!
//! Owns: the end of the channel on which it comes, and the log. Invariant: each handover counts in one phase and, while
//! the log can be written, in one interval.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::counters::{Interval, Phase};
use crate::hlog::IntervalLog;
use crate::latency::{self, Busy, Handover, Histograms};

/// What was measured so far.
pub(crate) struct Tally {
    to: Sender<Handover>,
    from: Receiver<Handover>,
    log: Option<IntervalLog>,
    workers: usize,
    phases: Vec<Measured>,
}

/// What all workers measured in one phase.
pub(crate) struct Measured {
    pub(crate) phase: Phase,
    pub(crate) histograms: Histograms,
    /// By worker.
    pub(crate) busy: Vec<Busy>,
}

impl Tally {
    /// Of `workers` workers.
    pub(crate) fn new(workers: usize, log: Option<IntervalLog>) -> Tally {
        let (to, from) = channel();
        Tally {
            to,
            from,
            log,
            workers,
            phases: Vec::new(),
        }
    }

    /// Where a worker hands over.
    pub(crate) fn sender(&self) -> Sender<Handover> {
        self.to.clone()
    }

    /// Whether intervals shorter than a phase are of use.
    pub(crate) fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// `interval` began at `now`.
    pub(crate) fn begin(&mut self, interval: Interval, now: Duration) {
        if let Some(log) = &mut self.log {
            log.begin(interval.number, now);
        }
    }

    /// Takes in what was handed over.
    pub(crate) fn collect(&mut self) {
        for handover in self.from.try_iter() {
            if let Some(log) = &mut self.log
                && let Err(error) = log.add(&handover)
            {
                give_up(&mut self.log, &error);
            }
            let phase = handover.interval.phase;
            let at = self.phases.iter().position(|known| known.phase == phase);
            let at = at.unwrap_or_else(|| {
                self.phases.push(Measured {
                    phase,
                    histograms: Histograms::new(),
                    busy: vec![Busy::default(); self.workers],
                });
                self.phases.len() - 1
            });
            let known = &mut self.phases[at];
            latency::add(&mut known.histograms, &handover.histograms);
            let busy = &mut known.busy[handover.worker];
            *busy = busy.plus(handover.busy);
        }
        if let Some(log) = &mut self.log
            && let Err(error) = log.write()
        {
            give_up(&mut self.log, &error);
        }
    }

    /// All that was measured, by phase in the order of the run. The workers have ended.
    pub(crate) fn finish(mut self) -> Vec<Measured> {
        self.collect();
        if let Some(log) = &mut self.log
            && let Err(error) = log.finish()
        {
            give_up(&mut self.log, &error);
        }
        self.phases
    }
}

/// The run is worth more than its log.
fn give_up(log: &mut Option<IntervalLog>, error: &anyhow::Error) {
    tracing::warn!(%error, "the interval log cannot be written; it ends here");
    *log = None;
}
