//! Both ends on one clock: what each phase of the client cost each host, and what a connection takes of each. Pure.
//!
//! Times are microseconds since the client started. Invariant: what was spent between two looks is held against what was
//! done between the same two moments.

use std::collections::BTreeMap;

use kernel_tuning::host::MachineBusy;
use serde::{Deserialize, Serialize};

use crate::footprint::Growth;
use crate::load::Progress;
use crate::remote::look::{Look, Seen};

/// A look, and when it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Since the client started, by the clock of its host.
    pub t_us: i64,
    /// What was seen.
    #[serde(flatten)]
    pub look: Look,
}

/// The same of each end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Ends<T> {
    /// The server's host.
    pub server: T,
    /// The client's.
    pub client: T,
}

/// A phase of the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name, as in the client's samples.
    pub name: String,
    /// When it began.
    pub begin_us: i64,
    /// When it ended.
    pub end_us: i64,
    /// What there was of it, by which its cost is told.
    pub counted: Option<Counted>,
    /// What it cost each end; `None` where there are no two looks of it.
    pub spent: Ends<Option<Spent>>,
}

/// What is counted in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Established.
    Connections,
    /// Heard.
    Heartbeats,
    /// Sent, and come back.
    Messages,
    /// Connections that came, exchanged a message and went.
    Cycles,
}

/// What one end spent between the first and the last look in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Looks.
    pub looks: usize,
    /// From the first to the last.
    pub elapsed_ns: u64,
    /// What was counted meanwhile.
    pub count: f64,
    /// CPU time of the processes that are watched.
    pub processes_ns: u64,
    /// Processes that ended meanwhile: what they did after the last look at them is not known.
    pub gone: usize,
    /// CPU time of `ksoftirqd`.
    pub softirq_ns: Option<u64>,
    /// CPU time of the whole machine.
    pub machine: MachineBusy,
    /// CPU time of the looks themselves.
    pub looking_ns: u64,
}

impl Spent {
    /// CPU time of the processes and of `ksoftirqd` for each that was counted, in microseconds.
    pub fn each_us(&self) -> Option<f64> {
        self.per(self.processes_ns + self.softirq_ns.unwrap_or(0))
    }

    /// CPU time of the whole machine for each, without that of the looks.
    pub fn machine_each_us(&self) -> Option<f64> {
        self.per(self.machine.busy_ns.saturating_sub(self.looking_ns))
    }

    /// Cores that the processes and `ksoftirqd` kept busy.
    pub fn cores(&self) -> f64 {
        let spent_ns = self.processes_ns + self.softirq_ns.unwrap_or(0);
        spent_ns as f64 / self.elapsed_ns.max(1) as f64
    }

    fn per(&self, ns: u64) -> Option<f64> {
        (self.count >= 1.0).then(|| ns as f64 / 1e3 / self.count)
    }
}

/// The phases of `progress`, with what each cost.
pub fn phases(progress: &[Progress], ends: &Ends<Vec<Moment>>) -> Vec<Phase> {
    let us = |one: &Progress| i64::try_from(one.t_ms).unwrap_or(i64::MAX / 1_000) * 1_000;
    let mut begins: Vec<&Progress> = progress.iter().collect();
    begins.dedup_by_key(|one| &one.phase);
    let last_us = progress.last().map_or(0, us);
    let next_us = |index: usize| begins.get(index + 1).map_or(last_us, |next| us(next));
    let phase = |(index, first): (usize, &&Progress)| {
        let (begin_us, end_us) = (us(first), next_us(index));
        let counted = counted(&first.phase, progress, begin_us, end_us);
        let count_at = |t_us| counted.map_or(0.0, |what| count_at(progress, what, t_us));
        let spent = |moments: &[Moment]| {
            let within = match is_steady(&first.phase) {
                // As in every measurement here, the first fifth is left out.
                true => inside(moments, begin_us + (end_us - begin_us) / 5, end_us),
                false => around(moments, begin_us, end_us),
            };
            spent(within, count_at)
        };
        Phase {
            name: first.phase.clone(),
            begin_us,
            end_us,
            counted,
            spent: Ends {
                server: spent(&ends.server),
                client: spent(&ends.client),
            },
        }
    };
    let all = begins.iter().enumerate().map(phase);
    all.filter(|phase| phase.end_us > phase.begin_us).collect()
}

/// Whether the same goes on all the time in a phase of this name.
fn is_steady(name: &str) -> bool {
    matches!(name, "quiet" | "hold" | "active")
}

/// The moments from one time to another.
fn inside(moments: &[Moment], from_us: i64, to_us: i64) -> &[Moment] {
    let begin = moments.partition_point(|moment| moment.t_us < from_us);
    let end = moments.partition_point(|moment| moment.t_us <= to_us);
    &moments[begin..end.max(begin)]
}

/// The same with the moment before and the one after: all of what may be short and is done once lies between these.
fn around(moments: &[Moment], from_us: i64, to_us: i64) -> &[Moment] {
    let begin = moments.partition_point(|moment| moment.t_us <= from_us);
    let end = moments.partition_point(|moment| moment.t_us < to_us);
    &moments[begin.saturating_sub(1)..(end + 1).min(moments.len())]
}

/// What tells the cost of a phase of this name.
fn counted(name: &str, progress: &[Progress], begin_us: i64, end_us: i64) -> Option<Counted> {
    let grown = |what| count_at(progress, what, end_us) > count_at(progress, what, begin_us);
    let candidates: &[Counted] = match name {
        "ramp" => &[Counted::Connections],
        "quiet" => &[Counted::Heartbeats],
        "hold" => &[Counted::Cycles, Counted::Heartbeats],
        "active" => &[Counted::Messages],
        _ => &[],
    };
    candidates.iter().copied().find(|what| grown(*what))
}

/// How many there had been at a time: between two lines of the client as if they had come evenly.
fn count_at(progress: &[Progress], what: Counted, t_us: i64) -> f64 {
    let value = |one: &Progress| match what {
        Counted::Connections => one.established,
        Counted::Heartbeats => one.heartbeats,
        Counted::Messages => one.messages,
        Counted::Cycles => one.cycles,
    } as f64;
    let us = |one: &Progress| one.t_ms as f64 * 1e3;
    let t_us = t_us as f64;
    let after = progress.partition_point(|one| us(one) <= t_us);
    match (
        after.checked_sub(1).map(|index| &progress[index]),
        progress.get(after),
    ) {
        (Some(before), Some(next)) => {
            let share = (t_us - us(before)) / (us(next) - us(before));
            value(before) + share * (value(next) - value(before))
        }
        (Some(only), None) | (None, Some(only)) => value(only),
        (None, None) => 0.0,
    }
}

/// Between the first and the last of the moments of a phase.
fn spent(within: &[Moment], count_at: impl Fn(i64) -> f64) -> Option<Spent> {
    let (first, last) = (within.first()?, within.last()?);
    let elapsed_us = u64::try_from(last.t_us - first.t_us).ok()?;
    let (begin, end) = (&first.look, &last.look);
    // Also of processes that came and went in between.
    let mut most: BTreeMap<u32, u64> = BTreeMap::new();
    for seen in within.iter().flat_map(|moment| &moment.look.processes) {
        let cpu_ns = most.entry(seen.pid).or_default();
        *cpu_ns = seen.cpu_ns.max(*cpu_ns);
    }
    let at_begin: u64 = begin.processes.iter().map(|seen| seen.cpu_ns).sum();
    Some(Spent {
        looks: within.len(),
        elapsed_ns: elapsed_us * 1_000,
        count: count_at(last.t_us) - count_at(first.t_us),
        processes_ns: most.values().sum::<u64>().saturating_sub(at_begin),
        gone: most.len() - end.processes.len(),
        softirq_ns: end
            .softirq_ns
            .zip(begin.softirq_ns)
            .map(|(end, begin)| end.saturating_sub(begin)),
        machine: end.machine.since(&begin.machine),
        looking_ns: end.own_cpu_ns.saturating_sub(begin.own_cpu_ns),
    })
    .filter(|spent| spent.elapsed_ns > 0)
}

/// What the connections took of one end while they rested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How many there were.
    pub connections: u64,
    /// Of the kernel's memory, for each.
    pub growth: Growth,
    /// Of the processes' resident memory, for each.
    pub rss_bytes: f64,
    /// The same with shared pages counted once; only root, and their user, may read it.
    pub pss_bytes: Option<f64>,
    /// Open files of the processes, for each; `None` where it cannot be read.
    pub open_files: Option<f64>,
}

/// From the close looks before the client started, and those in the phase in which connections rest.
pub fn kept(
    moments: &[Moment],
    phases: &[Phase],
    resting: &str,
    progress: &[Progress],
) -> Option<Kept> {
    let phase = phases.iter().find(|phase| phase.name == resting)?;
    let close = |from_us: i64, to_us: i64| {
        let within = moments
            .iter()
            .filter(move |moment| moment.look.closely.is_some());
        within.filter(move |moment| (from_us..to_us).contains(&moment.t_us))
    };
    // The last of them has the least of all.
    let base = close(i64::MIN, 0).next_back()?;
    let held = close(phase.begin_us, phase.end_us).next_back()?;
    let connections = count_at(progress, Counted::Connections, held.t_us) as u64;
    let footprint = |moment: &Moment| Some(moment.look.closely.as_ref()?.footprint.clone());
    let growth = Growth::between(&footprint(base)?, &footprint(held)?, connections)?;
    let each = |now: u64, base: u64| (now as f64 - base as f64) / connections as f64;
    let sum = |moment: &Moment, of: fn(&Seen) -> Option<u64>| -> Option<u64> {
        moment.look.processes.iter().map(of).sum()
    };
    let grown = |of| Some(each(sum(held, of)?, sum(base, of)?));
    let pss = |moment: &Moment| moment.look.closely.as_ref()?.pss_bytes;
    Some(Kept {
        connections,
        growth,
        rss_bytes: grown(|seen| Some(seen.rss_bytes))?,
        pss_bytes: pss(held)
            .zip(pss(base))
            .map(|(held, base)| each(held, base)),
        open_files: grown(|seen| seen.open_files),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kernel_tuning::host::{Memory, Sockstat};

    use super::*;

    /// At a time, with the CPU time of some processes.
    fn moment(t_ms: i64, cpu_ms: &[(u32, u64)]) -> Moment {
        let seen = |(pid, cpu_ms): &(u32, u64)| Seen {
            pid: *pid,
            cpu_ns: cpu_ms * 1_000_000,
            rss_bytes: 1 << 20,
            threads: None,
            open_files: None,
        };
        let ns = u64::try_from(t_ms.max(0)).unwrap() * 1_000_000;
        Moment {
            t_us: t_ms * 1_000,
            look: Look {
                at_ns: ns,
                unix_ns: ns,
                took_ns: 0,
                processes: cpu_ms.iter().map(seen).collect(),
                softirq_ns: Some(ns / 100),
                own_cpu_ns: ns / 1_000,
                machine: MachineBusy {
                    busy_ns: ns / 2,
                    steal_ns: 0,
                    idle_ns: ns / 2,
                },
                memory: Memory::read().unwrap(),
                sockstat: Sockstat::read().unwrap(),
                closely: None,
            },
        }
    }

    fn line(t_ms: u64, phase: &str, established: u64, messages: u64) -> Progress {
        Progress {
            t_ms,
            phase: phase.to_owned(),
            established,
            messages,
            ..Progress::default()
        }
    }

    fn of_server(progress: &[Progress], server: Vec<Moment>) -> Vec<Phase> {
        let client = Vec::new();
        phases(progress, &Ends { server, client })
    }

    #[test]
    fn a_steady_phase_is_counted_after_its_first_fifth_between_the_same_moments() {
        let progress = [
            line(0, "ramp", 0, 0),
            line(1_000, "active", 10, 0),
            line(2_000, "active", 10, 10_000),
            line(11_000, "close", 10, 100_000),
            line(11_100, "done", 0, 100_000),
        ];
        // 2 µs of each of ten messages a millisecond.
        let server = (0..=110).map(|tenth| {
            let t_ms = tenth * 100 + 50;
            moment(t_ms, &[(7, u64::try_from(t_ms - 1_000).unwrap_or(0) * 20)])
        });
        let phases = of_server(&progress, server.collect());
        let names: Vec<&str> = phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["ramp", "active", "close"]);
        let active = &phases[1];
        assert_eq!((active.begin_us, active.end_us), (1_000_000, 11_000_000));
        assert_eq!(active.counted, Some(Counted::Messages));
        let spent = active.spent.server.unwrap();
        assert_eq!((spent.looks, spent.elapsed_ns), (80, 7_900_000_000));
        assert!((spent.count - 79_000.0).abs() < 1.0, "{spent:?}");
        assert_eq!(spent.processes_ns, 158_000_000_000);
        // With ksoftirqd's hundredth of the time.
        assert!((spent.each_us().unwrap() - 2_001.0).abs() < 0.1);
        // Half of two cores' time, but for the looks.
        assert!((spent.machine_each_us().unwrap() - 49.9).abs() < 0.1);
        assert_eq!(active.spent.client, None);
    }

    #[test]
    fn a_short_ramp_is_counted_between_the_looks_around_it() {
        let progress = [
            line(10, "ramp", 0, 0),
            line(60, "hold", 500, 0),
            line(900, "done", 500, 0),
        ];
        let server = vec![
            moment(-90, &[(7, 5)]),
            moment(5, &[(7, 5)]),
            moment(105, &[(7, 25)]),
        ];
        let ramp = &of_server(&progress, server)[0];
        assert_eq!(ramp.counted, Some(Counted::Connections));
        let spent = ramp.spent.server.unwrap();
        assert_eq!((spent.looks, spent.count), (2, 500.0));
        assert_eq!(spent.processes_ns, 20_000_000);
    }

    #[test]
    fn processes_that_come_and_go_are_counted_and_those_that_went_are_told() {
        let progress = [line(0, "ramp", 0, 0), line(100, "hold", 5, 0)];
        let server = vec![
            moment(-10, &[(1, 100), (2, 50)]),
            moment(50, &[(1, 110), (2, 70), (3, 9)]),
            moment(110, &[(1, 120)]),
        ];
        let spent = of_server(&progress, server)[0].spent.server.unwrap();
        assert_eq!(spent.processes_ns, (20 + 20 + 9) * 1_000_000);
        assert_eq!(spent.gone, 2);
    }

    #[test]
    fn without_looks_or_samples_there_is_nothing_and_no_panic() {
        assert_eq!(phases(&[], &Ends::default()), []);
        let progress = [line(0, "ramp", 0, 0), line(100, "hold", 5, 0)];
        let phases = of_server(&progress, Vec::new());
        assert_eq!(phases[0].spent.server, None);
        assert!(kept(&[], &phases, "hold", &progress).is_none());
        let one = of_server(&progress, vec![moment(50, &[])]);
        assert_eq!(one[0].spent.server, None);
    }
}
