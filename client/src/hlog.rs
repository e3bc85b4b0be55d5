//! The interval log (`.hlog`) of HdrHistogram: what was measured in each interval, a line for each kind.
//!
//! Owns: the place it goes to, and the intervals that some worker may still be in. Format version 1.3 of
//! `HistogramLogWriter`, histograms as V2 deflate, in nanoseconds; times of intervals count from StartTime.
//! Invariants: intervals follow each other without a gap, an interval is written when the last worker has left it, whole
//! and flushed, and all of them together hold each time recorded once.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::latency::{self, Handover, Histograms};

/// Where intervals are written.
pub(crate) struct IntervalLog {
    to: Box<dyn Write>,
    serializer: V2DeflateSerializer,
    /// In order; the last is that of the moment.
    open: VecDeque<Interval>,
    /// By worker, the interval it records into.
    reached: Vec<u64>,
}

struct Interval {
    number: u64,
    from: Duration,
    histograms: Histograms,
}

impl IntervalLog {
    /// A log of `workers` workers, whose first interval, number 0, begins at `start`.
    ///
    /// # Errors
    /// The header cannot be written.
    pub(crate) fn new(
        mut to: Box<dyn Write>,
        start: SystemTime,
        workers: usize,
    ) -> anyhow::Result<IntervalLog> {
        let mut serializer = V2DeflateSerializer::new();
        IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("[Throng: values in nanoseconds]")
            .with_start_time(start)
            .with_base_time(start)
            .begin_log_with(&mut to, &mut serializer)?;
        to.flush()?;
        Ok(IntervalLog {
            to,
            serializer,
            open: VecDeque::from([Interval::new(0, Duration::ZERO)]),
            reached: vec![0; workers],
        })
    }

    /// Interval `number` begins, and the one before ends, `now` after the start.
    pub(crate) fn begin(&mut self, number: u64, now: Duration) {
        self.open.push_back(Interval::new(number, now));
    }

    /// Takes in what a worker recorded in an interval that it has left.
    pub(crate) fn add(&mut self, handover: &Handover) -> anyhow::Result<()> {
        self.reached[handover.worker] = handover.next_interval;
        let number = handover.order.interval;
        let mut open = self.open.iter_mut();
        let interval = open
            .find(|interval| interval.number == number)
            .context("a worker was in an interval that was over")?;
        latency::add(&mut interval.histograms, &handover.histograms);
        Ok(())
    }

    /// Writes the intervals that all workers have left.
    ///
    /// # Errors
    /// The log cannot be written.
    pub(crate) fn write(&mut self) -> anyhow::Result<()> {
        let reached = self.reached.iter().min().copied().unwrap_or(0);
        // The last has no end yet.
        while self.open.len() > 1 && self.open[0].number < reached {
            let Some(Interval {
                from, histograms, ..
            }) = self.open.pop_front()
            else {
                break;
            };
            let lasted = self.open[0].from.saturating_sub(from);
            // Without a header to write, this begins nothing but a line.
            let mut log = IntervalLogWriterBuilder::new()
                .begin_log_with(&mut self.to, &mut self.serializer)?;
            for (kind, histogram) in &histograms {
                log.write_histogram(histogram, from, lasted, Tag::new(kind.name()))?;
            }
        }
        Ok(self.to.flush()?)
    }

    /// Writes what is left: no worker records any more, however it ended.
    ///
    /// # Errors
    /// The log cannot be written.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.reached.fill(u64::MAX);
        self.write()
    }
}

impl Interval {
    fn new(number: u64, from: Duration) -> Interval {
        Interval {
            number,
            from,
            histograms: Histograms::new(),
        }
    }
}
