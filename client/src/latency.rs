//! How long things took, as a worker records it.
//!
//! Owns: a worker's histograms, one of each kind, in nanoseconds (what readers of interval logs take for granted). The
//! main thread orders a new phase or interval; the worker then hands over what it has recorded and goes on with empty
//! histograms. Invariant: each time recorded is handed over once; recording one allocates nothing and takes no lock.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use kernel_tuning::process;
use nix::time::{ClockId, clock_gettime};

use crate::counters::Interval;

/// What took its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// From the submission of a connect to its completion.
    Connect,
    /// From when the rate had a connect start to its submission.
    ConnectLate,
    /// To the end of an echo: in closed loop from the send, in open loop from when it was to be sent.
    Echo,
    /// In open loop, from the send to the end of the echo.
    EchoRaw,
    /// In open loop, from when a message was to be sent to when the client came to it.
    SendLate,
    /// By how much more than the interval a heartbeat came after the one before.
    Heartbeat,
    /// To the end of the echo of a churn cycle: from the start of its connect, by a schedule from when it was to begin.
    Cycle,
    /// The connect alone.
    CycleConnect,
    /// With cycles by a schedule, from the start of the connect.
    CycleRaw,
    /// The same, from when a cycle was to begin to when the client came to it.
    CycleLate,
    /// From a loss to when the connection was made again.
    Without,
}

impl Kind {
    const COUNT: usize = 11;
    const ALL: [Kind; Self::COUNT] = [
        Kind::Connect,
        Kind::ConnectLate,
        Kind::Echo,
        Kind::EchoRaw,
        Kind::SendLate,
        Kind::Heartbeat,
        Kind::Cycle,
        Kind::CycleConnect,
        Kind::CycleRaw,
        Kind::CycleLate,
        Kind::Without,
    ];

    /// The word for it, in JSON and as a tag of the interval log.
    pub(crate) fn name(self) -> &'static str {
        [
            "connect",
            "connect-late",
            "echo",
            "echo-raw",
            "send-late",
            "heartbeat",
            "cycle",
            "cycle-connect",
            "cycle-raw",
            "cycle-late",
            "without-connection",
        ][self as usize]
    }
}

/// Histograms, in nanoseconds, of the kinds that there is something of.
pub(crate) type Histograms = BTreeMap<Kind, Histogram<u64>>;

/// Adds `part` to `sum`.
pub(crate) fn add(sum: &mut Histograms, part: &Histograms) {
    for (kind, histogram) in part {
        sum.entry(*kind)
            .or_insert_with(|| Histogram::new_from(histogram))
            .add(histogram)
            // `Recorder::new` alone chooses bounds.
            .expect("histograms of the same bounds can be added");
    }
}

/// What a worker has measured in one interval.
pub(crate) struct Handover {
    /// Its number.
    pub(crate) worker: usize,
    pub(crate) interval: Interval,
    /// The number of the interval it goes on with.
    pub(crate) next: u64,
    pub(crate) histograms: Histograms,
    pub(crate) busy: Busy,
}

/// How much of its time a thread ran, or would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Busy {
    /// CLOCK_THREAD_CPUTIME_ID, clock_gettime(2).
    pub(crate) cpu: Duration,
    /// While others had its CPU; zero where the kernel does not tell.
    pub(crate) waited: Duration,
    pub(crate) wall: Duration,
}

impl Busy {
    /// Both one after the other.
    pub(crate) fn plus(self, other: Busy) -> Busy {
        Busy {
            cpu: self.cpu + other.cpu,
            waited: self.waited + other.waited,
            wall: self.wall + other.wall,
        }
    }
}

/// A worker's histograms.
pub(crate) struct Recorder {
    worker: usize,
    to: Sender<Handover>,
    interval: Interval,
    histograms: [Histogram<u64>; Kind::COUNT],
    since: Reading,
}

/// The clocks of a thread.
struct Reading {
    now: Instant,
    cpu: Duration,
    /// None where the kernel does not tell.
    waited: Option<Duration>,
}

impl Recorder {
    /// The shortest time told apart from none, and the longest.
    const SHORTEST_NS: u64 = 1_000;
    const LONGEST_NS: u64 = 3_600_000_000_000;

    /// Of worker `worker`, on its own thread, from `interval` on.
    pub(crate) fn new(
        worker: usize,
        to: Sender<Handover>,
        interval: Interval,
    ) -> anyhow::Result<Recorder> {
        let empty = Histogram::new_with_bounds(Self::SHORTEST_NS, Self::LONGEST_NS, 3)?;
        Ok(Recorder {
            worker,
            to,
            interval,
            histograms: std::array::from_fn(|_| empty.clone()),
            since: Reading::take(),
        })
    }

    /// One more of `kind`. A time past the longest counts as that.
    pub(crate) fn record(&mut self, kind: Kind, time: Duration) {
        self.histograms[kind as usize].saturating_record(time.as_nanos() as u64);
    }

    /// What was recorded goes to the main thread; what follows belongs to `next`.
    pub(crate) fn hand_over(&mut self, next: Interval) {
        let mut histograms = Histograms::new();
        for (kind, histogram) in Kind::ALL.into_iter().zip(&mut self.histograms) {
            if !histogram.is_empty() {
                let empty = Histogram::new_from(histogram);
                histograms.insert(kind, std::mem::replace(histogram, empty));
            }
        }
        let reading = Reading::take();
        let busy = reading.since(&self.since);
        // Nobody hears it only where the run has failed.
        let _ = self.to.send(Handover {
            worker: self.worker,
            interval: self.interval,
            next: next.number,
            histograms,
            busy,
        });
        (self.interval, self.since) = (next, reading);
    }
}

impl Reading {
    fn take() -> Reading {
        Reading {
            now: Instant::now(),
            cpu: thread_cpu(),
            waited: process::run_delay(),
        }
    }

    fn since(&self, earlier: &Reading) -> Busy {
        Busy {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            waited: match (self.waited, earlier.waited) {
                (Some(waited), Some(earlier)) => waited.saturating_sub(earlier),
                _ => Duration::ZERO,
            },
            wall: self.now - earlier.now,
        }
    }
}

/// The CPU time of this thread. There is such a clock in every Linux since 2.6.12.
fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::counters::Phase;
    use proptest::prelude::*;
    use std::sync::mpsc::channel;

    proptest! {
        /// Whenever orders come, each time is handed over once, under the order it was recorded in.
        #[test]
        fn nothing_is_lost_or_told_twice(times in proptest::collection::vec((0usize..Kind::COUNT, 0u64..u64::MAX / 2), 0..50), orders in 1usize..5) {
            let (to, from) = channel();
            let order = |number| Interval { number, phase: Phase::Hold };
            let mut recorder = Recorder::new(3, to, order(0)).unwrap();
            let mut expected = BTreeMap::<(u64, Kind), u64>::new();
            for (number, (kind, ns)) in times.iter().enumerate() {
                let interval = (number % orders) as u64;
                if recorder.interval.number != interval {
                    recorder.hand_over(order(interval));
                }
                recorder.record(Kind::ALL[*kind], Duration::from_nanos(*ns));
                *expected.entry((interval, Kind::ALL[*kind])).or_default() += 1;
            }
            recorder.hand_over(order(99));
            let mut heard = BTreeMap::new();
            for handover in from.try_iter() {
                prop_assert_eq!(handover.worker, 3);
                for (kind, histogram) in handover.histograms {
                    *heard.entry((handover.interval.number, kind)).or_default() += histogram.len();
                }
            }
            prop_assert_eq!(heard, expected);
        }
    }

    #[test]
    fn a_thread_that_sleeps_is_not_busy_and_one_that_works_is() {
        let (to, from) = channel();
        let order = |phase| Interval { number: 0, phase };
        let mut recorder = Recorder::new(0, to, order(Phase::Quiet)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        recorder.hand_over(order(Phase::Hold));
        let cpu = thread_cpu();
        while thread_cpu() < cpu + Duration::from_millis(50) {}
        recorder.hand_over(order(Phase::Done));
        let [slept, worked] = [from.recv().unwrap().busy, from.recv().unwrap().busy];
        assert!(
            slept.wall >= Duration::from_millis(50) && slept.cpu < slept.wall / 2,
            "{slept:?}"
        );
        assert!(worked.cpu >= Duration::from_millis(50), "{worked:?}");
        assert!(worked.wall + Duration::from_millis(1) >= worked.cpu);
    }
}
