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
        self.reached[handover.worker] = handover.next;
        let number = handover.interval.number;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::counters::{Interval, Phase};
    use crate::latency::{Busy, Kind};
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Clone, Default)]
    struct Page(Rc<RefCell<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        /// Start, length and maximum of each line, in milliseconds and nanoseconds.
        fn lines(&self) -> Vec<(u128, u128, f64)> {
            IntervalLogIterator::new(&self.0.borrow())
                .filter_map(|entry| match entry.unwrap() {
                    LogEntry::Interval(line) => Some((
                        line.start_timestamp().as_millis(),
                        line.duration().as_millis(),
                        line.max(),
                    )),
                    _ => None,
                })
                .collect()
        }
    }

    fn handover(worker: usize, interval: u64, next: u64, ns: u64) -> Handover {
        let mut histogram = Histogram::new_with_bounds(1, 1 << 40, 5).unwrap();
        histogram.record(ns).unwrap();
        Handover {
            worker,
            interval: Interval {
                number: interval,
                phase: Phase::Hold,
            },
            next,
            histograms: Histograms::from([(Kind::Echo, histogram)]),
            busy: Busy::default(),
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_interval_waits_for_the_last_worker_and_one_left_late_stays_whole() {
        let page = Page::default();
        let mut log = IntervalLog::new(Box::new(page.clone()), SystemTime::UNIX_EPOCH, 2).unwrap();
        log.begin(1, ms(100));
        log.add(&handover(0, 0, 1, 5000)).unwrap();
        log.write().unwrap();
        assert_eq!(page.lines(), []);
        log.add(&handover(1, 0, 1, 7000)).unwrap();
        log.write().unwrap();
        assert_eq!(page.lines(), [(0, 100, 7000.0)]);

        // The second worker sees only the third order: what it did meanwhile is of the interval it was in.
        log.begin(2, ms(200));
        log.begin(3, ms(350));
        log.add(&handover(0, 1, 2, 1000)).unwrap();
        log.add(&handover(0, 2, 3, 2000)).unwrap();
        log.write().unwrap();
        assert_eq!(page.lines().len(), 1);
        log.add(&handover(1, 1, 3, 9000)).unwrap();
        log.write().unwrap();
        let expected = [(0, 100, 7000.0), (100, 100, 9000.0), (200, 150, 2000.0)];
        assert_eq!(page.lines(), expected);
    }

    #[test]
    fn what_others_recorded_is_written_though_a_worker_never_came() {
        let page = Page::default();
        let mut log = IntervalLog::new(Box::new(page.clone()), SystemTime::UNIX_EPOCH, 2).unwrap();
        log.begin(1, ms(40));
        log.add(&handover(0, 0, 1, 3000)).unwrap();
        log.finish().unwrap();
        assert_eq!(page.lines(), [(0, 40, 3000.0)]);
        assert!(
            page.0
                .borrow()
                .starts_with(b"#[Histogram log format version 1.3]\n")
        );
    }
}
