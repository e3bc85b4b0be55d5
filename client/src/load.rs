//! How busy the workers were: whether the client itself was the bottleneck (pure).
//!
//! Invariant: a share is time of the worker's own thread by the time that has passed; that in which it ran and that in which
//! it would have run, had not others had its CPU, are told apart.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::latency::Busy;
use crate::tally::Measured;

/// From this share on a worker had no time left to be on time.
const BOTTLENECK: f64 = 0.9;
/// Less than this says nothing of a share.
const LEAST: Duration = Duration::from_millis(100);

/// The load of all workers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// In the order of their CPUs in the configuration.
    pub workers: Vec<WorkerLoad>,
    /// Which workers were busy, or waited for their CPU, for at least 90 % of the time in which connections were held and
    /// exchanged, and what that means; none where none was.
    pub bottleneck: Option<String>,
}

/// The load of one worker, a thread pinned to one CPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerLoad {
    /// Its CPU.
    pub cpu: usize,
    /// The share of its time that it ran while connections were held and exchanged, 0 to 1; none where that did not last.
    pub busy_share: Option<f64>,
    /// The share of the same time that it waited while others had its CPU (`/proc/thread-self/schedstat`); 0 where the
    /// kernel does not tell.
    pub waited_share: Option<f64>,
    /// The same of each phase that lasted.
    pub busy_share_by_phase: BTreeMap<&'static str, f64>,
}

impl Load {
    /// Of workers on `cores`.
    pub(crate) fn new(cores: &[usize], phases: &[Measured]) -> Load {
        let worker = |(number, cpu): (usize, &usize)| {
            let held = phases
                .iter()
                .filter(|measured| measured.phase.is_exchanging())
                .map(|measured| measured.busy[number])
                .fold(Busy::default(), Busy::plus);
            let in_phase = |measured: &Measured| {
                let Busy { cpu, wall, .. } = measured.busy[number];
                Some((measured.phase.name(), share(cpu, wall)?))
            };
            WorkerLoad {
                cpu: *cpu,
                busy_share: share(held.cpu, held.wall),
                waited_share: share(held.waited, held.wall),
                busy_share_by_phase: phases.iter().filter_map(in_phase).collect(),
            }
        };
        let workers: Vec<WorkerLoad> = cores.iter().enumerate().map(worker).collect();
        Load {
            bottleneck: bottleneck(&workers),
            workers,
        }
    }

    /// `CPU 0 12 %, CPU 1 57 % and waiting for it 40 %`; none where nothing was held for long enough.
    pub fn text(&self) -> Option<String> {
        let shares = self.workers.iter().filter_map(WorkerLoad::text);
        Some(shares.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    }
}

impl WorkerLoad {
    fn text(&self) -> Option<String> {
        let busy = self.busy_share? * 100.0;
        let waiting = match self.waited_share? * 100.0 {
            percent if percent >= 1.0 => format!(" and waiting for it {percent:.0} %"),
            _ => String::new(),
        };
        Some(format!("CPU {} {busy:.0} %{waiting}", self.cpu))
    }

    fn is_full(&self) -> bool {
        self.busy_share.unwrap_or(0.0) + self.waited_share.unwrap_or(0.0) >= BOTTLENECK
    }
}

fn share(part: Duration, wall: Duration) -> Option<f64> {
    // The clocks are not read at the same time.
    (wall >= LEAST).then(|| (part.as_secs_f64() / wall.as_secs_f64()).min(1.0))
}

fn bottleneck(workers: &[WorkerLoad]) -> Option<String> {
    let full: Vec<String> = workers
        .iter()
        .filter(|worker| worker.is_full())
        .filter_map(WorkerLoad::text)
        .collect();
    (!full.is_empty()).then(|| {
        format!(
            "the client was the bottleneck (busy: {}): latency and rate say little of the server; give it more --cores of \
             its own, or a lower rate",
            full.join(", ")
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::counters::Phase;
    use crate::latency::Histograms;

    fn measured(phase: Phase, cpu_ms: [u64; 2], wall_ms: u64) -> Measured {
        let busy = |cpu| Busy {
            cpu: Duration::from_millis(cpu),
            waited: Duration::ZERO,
            wall: Duration::from_millis(wall_ms),
        };
        Measured {
            phase,
            histograms: Histograms::new(),
            busy: cpu_ms.map(busy).into(),
        }
    }

    #[test]
    fn a_worker_without_time_left_while_exchanging_is_the_bottleneck() {
        let load = |active| {
            let phases = [
                measured(Phase::Ramp, [1000, 1000], 1000),
                measured(Phase::Active, active, 2000),
                measured(Phase::Close, [10, 10], 10),
            ];
            Load::new(&[4, 7], &phases)
        };
        let idle = load([400, 1799]);
        assert_eq!(idle.workers[0].busy_share, Some(0.2));
        assert_eq!(idle.workers[1].busy_share_by_phase["ramp"], 1.0);
        assert_eq!(idle.workers[1].busy_share_by_phase.get("close"), None);
        assert_eq!(idle.bottleneck, None, "a busy ramp is no busy exchange");
        let said = load([400, 1900]).bottleneck.unwrap();
        assert!(
            said.contains("CPU 7 95 %") && !said.contains("CPU 4"),
            "{said}"
        );
    }

    #[test]
    fn a_worker_that_others_keep_off_its_cpu_is_one_too() {
        let mut active = measured(Phase::Active, [400, 400], 1000);
        active.busy[0].waited = Duration::from_millis(550);
        active.busy[1].waited = Duration::from_millis(5);
        let load = Load::new(&[4, 7], &[active]);
        let text = load.text().unwrap();
        assert_eq!(text, "CPU 4 40 % and waiting for it 55 %, CPU 7 40 %");
        let said = load.bottleneck.unwrap();
        assert!(said.contains("CPU 4") && !said.contains("CPU 7"), "{said}");
    }

    #[test]
    fn a_run_that_held_nothing_has_no_share() {
        let load = Load::new(&[0, 1], &[measured(Phase::Ramp, [300, 300], 300)]);
        assert_eq!(load.workers[0].busy_share, None);
        assert_eq!((load.text(), load.bottleneck), (None, None));
    }
}
