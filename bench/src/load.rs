//! One run of the client against running servers: started, followed, ended.
//!
//! Invariant: following ends. The client says that it is done, or a server dies, memory runs short, the time is up or
//! the user interrupts; in each case the client is ended and what it measured is kept.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use kernel_tuning::process::{Ksoftirqd, ProcessError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::result::{CpuSpan, Failure};
use crate::runner::{Child, Launcher, Next};
use crate::sample::{HostSample, memory_is_short};
use crate::scenario::Placement;
use crate::servers::{Servers, core_list};
use crate::stop::{Stop, TICK};

/// What both scenarios stand on.
#[derive(Debug)]
pub struct Stage {
    /// Starts the processes.
    pub launcher: Launcher,
    /// Ends the run early.
    pub stop: Stop,
    /// Which CPUs each side runs on.
    pub placement: Placement,
    /// The threads that finish softirq work on those CPUs.
    pub softirq: SoftirqThreads,
    /// The hard open-file limit.
    pub nofile_hard: u64,
    /// The host before anything was started.
    pub base: HostSample,
}

impl Stage {
    /// For processes on `placement`, before any is started; `base` is the host as it is now.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn new(
        placement: Placement,
        nofile_hard: u64,
        stop: Stop,
        base: HostSample,
    ) -> Result<Self, String> {
        Ok(Self {
            launcher: Launcher::new()?,
            stop,
            softirq: SoftirqThreads::of(&placement),
            placement,
            nofile_hard,
            base,
        })
    }
}

/// The kernel threads that finish softirq work on each side's CPUs; `None` where they cannot be seen.
#[derive(Debug)]
pub struct SoftirqThreads {
    server: Option<Ksoftirqd>,
    client: Option<Ksoftirqd>,
}

impl SoftirqThreads {
    /// Finds them. The thread of a CPU that both sides share counts once, for the server.
    pub fn of(placement: &Placement) -> Self {
        let mut client = placement.client.clone();
        client.retain(|cpu| !placement.server.contains(cpu));
        Self {
            server: Ksoftirqd::of(&placement.server),
            client: Ksoftirqd::of(&client),
        }
    }
}

/// A line of the client's `--samples`. Counts are cumulative.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Since the client started.
    pub t_ms: u64,
    /// `ramp`, `hold` or `active`, `close`, `done`.
    pub phase: String,
    /// Connections established now.
    pub established: u64,
    /// Connects that failed.
    pub failed: u64,
    /// Connections established and then lost.
    pub lost: u64,
    /// Messages that came back.
    pub messages: u64,
    /// Heartbeats heard.
    #[serde(default)]
    pub heartbeats: u64,
    /// Connections that came, exchanged a message and went.
    #[serde(default)]
    pub cycles: u64,
    /// Lost connections that were made again.
    #[serde(default)]
    pub reconnected: u64,
}

/// How a client ended.
#[derive(Debug)]
pub struct Driven {
    /// The summary it wrote, `null` when there is none.
    pub summary: Value,
    /// Why the run is not as it should be, if so.
    pub failure: Option<Failure>,
}

/// Starts `client TARGET args…` against `servers`; each line of its stdout is a [`Progress`].
///
/// # Errors
/// When it cannot be started.
pub fn start_client(
    stage: &Stage,
    role: &'static str,
    servers: &Servers,
    args: Vec<String>,
) -> Result<Child, Failure> {
    let mut all = vec![
        servers.address().to_string(),
        "--cores".into(),
        core_list(&stage.placement.client),
    ];
    all.extend(args);
    all.extend(["--samples".into(), "-".into()]);
    let all = all.into_iter().map(OsString::from).collect();
    stage.launcher.start(role, all)
}

/// Runs `client TARGET args…` against `servers`, for `time_limit` at most, and hands each progress line to `on_progress`
/// as it comes, together with the client.
///
/// # Errors
/// When the client cannot be started.
pub fn drive(
    stage: &Stage,
    servers: &mut Servers,
    args: Vec<String>,
    during: &str,
    time_limit: Duration,
    on_progress: impl FnMut(&Progress, &Child, &Servers),
) -> Result<Driven, Failure> {
    drive_role(
        "client",
        stage,
        servers,
        args,
        during,
        time_limit,
        on_progress,
    )
}

/// As [`drive`], with a client of another role that takes the same flags and writes the same lines.
///
/// # Errors
/// When it cannot be started.
pub fn drive_role(
    role: &'static str,
    stage: &Stage,
    servers: &mut Servers,
    args: Vec<String>,
    during: &str,
    time_limit: Duration,
    mut on_progress: impl FnMut(&Progress, &Child, &Servers),
) -> Result<Driven, Failure> {
    let client = start_client(stage, role, servers, args)?;
    let driven = follow(stage, client, during, time_limit, |progress, client| {
        if let Some(progress) = progress {
            on_progress(progress, client, servers);
        }
        (!servers.are_running()).then(|| Halt {
            cause: "a server died in the middle".to_owned(),
            patience: LAST_WORDS_WITHIN,
        })
    });
    Ok(driven)
}

/// How long a client may take to write its summary after its last line, or after its server died.
pub const LAST_WORDS_WITHIN: Duration = Duration::from_secs(10);

/// Why a client is to end before it is done.
#[derive(Debug)]
pub struct Halt {
    /// What to tell the user.
    pub cause: String,
    /// How long it may take to find out by itself, and say what it saw, before it is asked to end.
    pub patience: Duration,
}

/// Follows a client to its end, for `time_limit` at most: `on_tick` gets each progress line as it comes, is called
/// without one at least every [`TICK`], and may ask for an early end.
pub fn follow(
    stage: &Stage,
    client: Child,
    during: &str,
    time_limit: Duration,
    mut on_tick: impl FnMut(Option<&Progress>, &Child) -> Option<Halt>,
) -> Driven {
    let (until, mut memory_looked_at) = (Instant::now() + time_limit, Instant::now());
    let at_once = |cause| Halt {
        cause,
        patience: Duration::ZERO,
    };
    let halted = loop {
        let next = client.next_line(TICK);
        let progress = match &next {
            Next::Line(line) => serde_json::from_str::<Progress>(line).ok(),
            Next::Closed => break None,
            Next::Nothing => None,
        };
        let halt = on_tick(progress.as_ref(), &client);
        if let Some(cause) = stage.stop.cause() {
            break Some(at_once(cause.to_string()));
        }
        if Instant::now() >= until {
            break Some(at_once(format!(
                "the client was not done after {} s: is a process stopped, or the machine overloaded?",
                time_limit.as_secs()
            )));
        }
        if halt.is_some() {
            break halt;
        }
        if memory_looked_at.elapsed() > Duration::from_millis(500) {
            memory_looked_at = Instant::now();
            if let Some(cause) = memory_is_short() {
                break Some(at_once(cause));
            }
        }
    };
    let patience = halted
        .as_ref()
        .map_or(LAST_WORDS_WITHIN, |halt| halt.patience);
    let ended = client.end(patience, LAST_WORDS_WITHIN);
    let summary = ended.summary.clone();
    let failure = match halted {
        Some(halt) => Some(Failure {
            during: during.to_owned(),
            cause: halt.cause,
            stderr_tail: ended.stderr_tail,
        }),
        None => (!ended.is_success()).then(|| ended.failure(during)),
    };
    Driven { summary, failure }
}

/// The CPU time of both sides at one moment.
#[derive(Debug, Clone, Copy)]
pub struct CpuMark {
    t_ms: u64,
    server_cpu_ns: u64,
    client_cpu_ns: u64,
    server_softirq_ns: Option<u64>,
    client_softirq_ns: Option<u64>,
}

impl CpuMark {
    /// Reads it as soon as `progress` came.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn read(
        stage: &Stage,
        progress: &Progress,
        client: &Child,
        servers: &Servers,
    ) -> Result<Self, ProcessError> {
        let server_cpu_ns = servers.usage()?.cpu_ns;
        Ok(Self {
            t_ms: progress.t_ms,
            server_cpu_ns,
            client_cpu_ns: client.usage()?.cpu_ns,
            server_softirq_ns: stage.softirq.server.as_ref().and_then(Ksoftirqd::cpu_ns),
            client_softirq_ns: stage.softirq.client.as_ref().and_then(Ksoftirqd::cpu_ns),
        })
    }

    /// What was spent from here to `end`; `None` when that is no time at all.
    pub fn until(&self, end: &Self) -> Option<CpuSpan> {
        let softirq = |end: Option<u64>, begin: Option<u64>| Some(end?.saturating_sub(begin?));
        (end.t_ms > self.t_ms).then(|| CpuSpan {
            elapsed_ms: end.t_ms - self.t_ms,
            server_cpu_ns: end.server_cpu_ns.saturating_sub(self.server_cpu_ns),
            client_cpu_ns: end.client_cpu_ns.saturating_sub(self.client_cpu_ns),
            server_softirq_ns: softirq(end.server_softirq_ns, self.server_softirq_ns),
            client_softirq_ns: softirq(end.client_softirq_ns, self.client_softirq_ns),
        })
    }
}

/// A duration as the programs' flags take it.
pub fn flag_ms(duration_ms: u64) -> String {
    humantime::format_duration(Duration::from_millis(duration_ms)).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_may_say_more_than_is_read() {
        let line = r#"{"t_ms":7,"phase":"hold","established":3,"failed":0,"lost":0,"messages":9,"bytes_received":1}"#;
        let progress: Progress = serde_json::from_str(line).unwrap();
        assert_eq!(
            (progress.t_ms, progress.phase.as_str(), progress.messages),
            (7, "hold", 9)
        );
    }

    #[test]
    fn a_shared_cpus_softirq_work_counts_once() {
        let shared = SoftirqThreads::of(&Placement::halves(&[0]));
        assert_eq!(shared.client.unwrap().cpu_ns(), Some(0));
    }

    #[test]
    fn a_span_needs_time() {
        let mark = |t_ms, cpu| CpuMark {
            t_ms,
            server_cpu_ns: cpu,
            client_cpu_ns: 2 * cpu,
            server_softirq_ns: Some(cpu / 10),
            client_softirq_ns: None,
        };
        let span = mark(100, 1_000).until(&mark(300, 4_000)).unwrap();
        assert_eq!(
            span,
            CpuSpan {
                elapsed_ms: 200,
                server_cpu_ns: 3_000,
                client_cpu_ns: 6_000,
                server_softirq_ns: Some(300),
                client_softirq_ns: None,
            }
        );
        assert_eq!(mark(100, 1_000).until(&mark(100, 1_000)), None);
    }
}
