//! How busy the workers were: whether the client itself was the bottleneck (pure).
//!
//! Invariant: a share is CPU time of the worker's own thread by the time that has passed, so what others took of its CPU
//! does not count as busy.

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
    /// Which workers were at least 90 % busy while the connections were held and exchanged, and what that means; none where
    /// none was.
    pub bottleneck: Option<String>,
}

/// The load of one worker, a thread pinned to one CPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerLoad {
    /// Its CPU.
    pub cpu: usize,
    /// The share of its time that it ran while connections were held and exchanged, 0 to 1; none where that did not last.
    pub busy_share: Option<f64>,
    /// The same of each phase that lasted.
    pub busy_share_by_phase: BTreeMap<&'static str, f64>,
}

impl Load {
    /// Of workers on `cores`.
    pub(crate) fn new(cores: &[usize], phases: &[Measured]) -> Load {
        let worker = |(number, cpu): (usize, &usize)| WorkerLoad {
            cpu: *cpu,
            busy_share: share(
                phases
                    .iter()
                    .filter(|measured| measured.phase.is_exchanging())
                    .map(|measured| measured.busy[number])
                    .fold(Busy::default(), Busy::plus),
            ),
            busy_share_by_phase: phases
                .iter()
                .filter_map(|measured| Some((measured.phase.name(), share(measured.busy[number])?)))
                .collect(),
        };
        let workers: Vec<WorkerLoad> = cores.iter().enumerate().map(worker).collect();
        Load {
            bottleneck: bottleneck(&workers),
            workers,
        }
    }

    /// `CPU 0 12 %, CPU 1 97 %`; none where nothing was held for long enough.
    pub fn text(&self) -> Option<String> {
        let shares = self.workers.iter().filter_map(WorkerLoad::text);
        Some(shares.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    }
}

impl WorkerLoad {
    fn text(&self) -> Option<String> {
        let share = self.busy_share?;
        Some(format!("CPU {} {:.0} %", self.cpu, share * 100.0))
    }
}

fn share(busy: Busy) -> Option<f64> {
    // The two clocks are not read at the same time.
    (busy.wall >= LEAST).then(|| (busy.cpu.as_secs_f64() / busy.wall.as_secs_f64()).min(1.0))
}

fn bottleneck(workers: &[WorkerLoad]) -> Option<String> {
    let is_full = |worker: &&WorkerLoad| worker.busy_share.is_some_and(|s| s >= BOTTLENECK);
    let full: Vec<String> = workers
        .iter()
        .filter(is_full)
        .filter_map(WorkerLoad::text)
        .collect();
    (!full.is_empty()).then(|| {
        format!(
            "the client was the bottleneck (busy: {}): latency and rate say little of the server; give it more --cores or a \
             lower rate",
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
    fn a_run_that_held_nothing_has_no_share() {
        let load = Load::new(&[0, 1], &[measured(Phase::Ramp, [300, 300], 300)]);
        assert_eq!(load.workers[0].busy_share, None);
        assert_eq!((load.text(), load.bottleneck), (None, None));
    }
}
