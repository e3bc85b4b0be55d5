//! One measurement of running servers by a client of their own: what it did, and what that cost each side.
//!
//! Every scenario with rounds measures through here, the floor included, so that their figures are counted alike.
//! Invariant: a figure counts only when its client said that all went well.

use std::time::Duration;

use kernel_tuning::host::{MachineBusy, Sockstat};
use serde_json::Value;

use crate::load::{CpuMark, Progress, Stage, drive_role, flag_ms};
use crate::result::{CpuSpan, Failure};
use crate::runner::Child;
use crate::sample::sockets_settle;
use crate::servers::Servers;

/// What is to be measured.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// What is being done, for a failure's text.
    pub during: String,
    /// `client`, or another role that takes the same flags and writes the same lines.
    pub client: &'static str,
    /// The client's flags but for the times.
    pub args: Vec<String>,
    /// Connections it makes.
    pub connections: u64,
    /// Its times.
    pub times: Times,
    /// What of its progress counts.
    pub count: fn(&Progress) -> u64,
    /// The sockets that there are without it.
    pub base: &'a Sockstat,
}

/// The times of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Times {
    /// How long messages are exchanged, the warm-up included.
    pub exchange_ms: u64,
    /// The first part of that time, which is not counted.
    pub warm_up_ms: u64,
    /// How often the client reports.
    pub sample_interval_ms: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Exchanged {
    /// The sockets of the measurement before were gone when this one began.
    pub settled: bool,
    /// What was counted after the warm-up.
    pub count: u64,
    /// CPU time of both sides in the same time.
    pub cpu: CpuSpan,
    /// CPU time of the whole machine in the same time.
    pub machine: MachineBusy,
    /// The client's own summary.
    pub client: Value,
}

/// What is read at each sample of the client.
struct Mark {
    cpu: CpuMark,
    count: u64,
    machine: MachineBusy,
}

impl Mark {
    fn read(
        stage: &Stage,
        count: u64,
        progress: &Progress,
        client: &Child,
        servers: &Servers,
    ) -> Option<Self> {
        let cpu = CpuMark::read(stage, progress, client, servers).ok()?;
        Some(Self {
            cpu,
            count,
            machine: MachineBusy::read().ok()?,
        })
    }
}

/// The closing sockets of the measurement before would be work for the kernel, and not this one's.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

/// Measures `servers`.
///
/// # Errors
/// Why there is no figure.
pub fn measure(
    stage: &Stage,
    servers: &mut Servers,
    exchange: Exchange<'_>,
) -> Result<Exchanged, Failure> {
    let Exchange { during, times, .. } = exchange;
    let mut args = exchange.args;
    args.extend(["--hold".to_owned(), flag_ms(times.exchange_ms)]);
    args.extend([
        "--sample-interval".to_owned(),
        flag_ms(times.sample_interval_ms),
    ]);
    let time_limit = Duration::from_millis(times.exchange_ms + 20_000 + exchange.connections / 2);
    let settled = sockets_settle(exchange.base, SETTLES_WITHIN, &stage.stop);
    let (mut began_ms, mut first, mut last) = (None, None, None);
    let driven = drive_role(
        exchange.client,
        stage,
        servers,
        args,
        &during,
        time_limit,
        |progress, client, servers| {
            if progress.phase != "active" {
                return;
            }
            let began_ms = *began_ms.get_or_insert(progress.t_ms);
            if progress.t_ms < began_ms + times.warm_up_ms {
                return;
            }
            let count = (exchange.count)(progress);
            let mark = Mark::read(stage, count, progress, client, servers);
            if first.is_none() {
                first = mark;
            } else if mark.is_some() {
                last = mark;
            }
        },
    )?;
    if let Some(failure) = driven.failure {
        return Err(failure);
    }
    let unmeasured = || Failure {
        during: during.clone(),
        cause: "the client reported too seldom to measure anything; is the machine overloaded?"
            .to_owned(),
        stderr_tail: Vec::new(),
    };
    let (first, last) = first.zip(last).ok_or_else(unmeasured)?;
    let count = last.count.saturating_sub(first.count);
    let cpu = first
        .cpu
        .until(&last.cpu)
        .filter(|_| count > 0)
        .ok_or_else(unmeasured)?;
    Ok(Exchanged {
        settled,
        count,
        cpu,
        machine: last.machine.since(&first.machine),
        client: driven.summary,
    })
}
