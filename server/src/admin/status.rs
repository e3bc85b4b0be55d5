//! `/status`: all that there is to know of a server in one JSON object, and what the page and `ctl status` show.
//!
//! Counts are since the start; whoever wants rates looks twice.

use serde::Serialize;

use super::desk::{Account, Phase, Served};
use crate::inquiry::TableUse;
use crate::stats::Stats;

/// A server and its workers.
#[derive(Debug, Serialize)]
pub(super) struct Status<'a> {
    version: &'static str,
    pid: u32,
    phase: Phase,
    engine: &'static str,
    protocol: crate::config::Protocol,
    listen: &'a str,
    uptime_seconds: f64,
    /// Connections, as the workers count them together.
    held: u64,
    held_max: u64,
    /// Of the whole process; None where /proc does not say.
    resident_bytes: Option<u64>,
    /// The sum over the workers, as far as they have answered once.
    total: Stats,
    workers: Vec<WorkerStatus<'a>>,
}

#[derive(Debug, Serialize)]
struct WorkerStatus<'a> {
    worker: usize,
    core: usize,
    /// False where it has not answered in time: what follows is what it said last.
    answers: bool,
    /// How old that is at most: since it was asked for.
    age_ms: Option<u64>,
    /// What its thread is seen to do, where it does not answer.
    doing: Option<String>,
    held: u32,
    waiting_bytes: u64,
    tables: &'a [TableUse],
    stats: Option<&'a Stats>,
}

impl<'a> Status<'a> {
    pub(super) fn new(served: &'a Served, accounts: &'a [Account]) -> Status<'a> {
        let mut total = Stats::new();
        for (report, _) in accounts.iter().filter_map(|a| a.report.as_ref()) {
            total.merge(&report.stats);
        }
        total.held_max = served.admission.held_max();
        let workers = accounts.iter().zip(&served.cores).enumerate();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            phase: served.phase(),
            engine: served.engine,
            protocol: served.protocol,
            listen: &served.listen,
            uptime_seconds: served.started.elapsed().as_secs_f64(),
            held: served.admission.held(),
            held_max: total.held_max,
            resident_bytes: resident_bytes(),
            total,
            workers: workers
                .map(|(worker, (account, core))| WorkerStatus::new(served, worker, *core, account))
                .collect(),
        }
    }
}

impl<'a> WorkerStatus<'a> {
    fn new(served: &Served, worker: usize, core: usize, account: &'a Account) -> WorkerStatus<'a> {
        let report = account.report.as_ref().map(|(report, _)| &**report);
        let pulse = served.pulses.get(worker).filter(|_| account.is_silent());
        WorkerStatus {
            worker,
            core,
            answers: !account.is_silent(),
            age_ms: account
                .report
                .as_ref()
                .map(|(_, at)| at.elapsed().as_millis() as u64),
            doing: pulse.map(|pulse| match pulse.state() {
                Some(state) => state.to_string(),
                None => "it has ended".into(),
            }),
            held: report.map_or(0, |report| report.held),
            waiting_bytes: report.map_or(0, |report| report.waiting_bytes),
            tables: report.map_or(&[][..], |report| &report.tables[..]),
            stats: report.map(|report| &report.stats),
        }
    }
}

/// Memory of this process that is in RAM (proc_pid_status(5), VmRSS).
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_memory() {
        assert!(resident_bytes() > Some(1 << 20));
    }
}
