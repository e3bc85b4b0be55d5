//! What a run found: plain data, and with it all one needs to judge or repeat it. Pure; reads and starts nothing.
//!
//! Invariant: raw figures are kept as they were read, and everything shown is drawn from them here, so that a report
//! can be rendered again from its JSON.

use std::collections::BTreeMap;

use kernel_tuning::host::{MachineBusy, NetCounters};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rounds::pair_ratios;
use crate::run::About;
use crate::sample::HostSample;
use crate::scenario::{Cut, EchoCase, EchoPlan, Engine, Plan};
use crate::stats::Spread;
use crate::warning::{Warning, rules};

/// Everything one run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be run.
    pub plan: Plan,
    /// What the plan had to give up for lack of memory.
    pub cut: Option<Cut>,
    /// One hold for each engine, in the order they ran.
    pub hold: Vec<Hold>,
    /// Every echo measurement, in the order they ran.
    pub echo: Vec<Echo>,
    /// Medians and ratios of `echo`.
    pub echo_summary: Vec<EchoSummary>,
    /// Doubts about the figures.
    pub warnings: Vec<Warning>,
}

impl Report {
    /// Draws `echo_summary` and `warnings` from the rest.
    pub fn conclude(&mut self) {
        self.echo_summary = summarise(&self.plan, &self.echo);
        self.warnings = rules::of_compare(self);
    }

    /// Whether softirq work left to `ksoftirqd` is in every CPU time of this report.
    pub fn has_softirq(&self) -> bool {
        let held = self.hold.iter().flat_map(|hold| [hold.ramp, hold.hold]);
        let echoed = self.echo.iter().map(|echo| Some(echo.cpu));
        held.chain(echoed).flatten().all(|span| span.has_softirq())
    }

    /// Server processes of `engine` in the echo rounds, if it was measured.
    pub fn echo_processes(&self, engine: Engine) -> Option<usize> {
        let echo = self.echo.iter().find(|echo| echo.engine == engine)?;
        Some(echo.processes)
    }

    /// The hold of `engine`, if there was one.
    pub fn hold_of(&self, engine: Engine) -> Option<&Hold> {
        self.hold.iter().find(|hold| hold.engine == engine)
    }
}

/// Something that went wrong, and what the process concerned said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done.
    pub during: String,
    /// What failed, its likely cause, and what to do about it.
    pub cause: String,
    /// The last lines of the process's stderr.
    pub stderr_tail: Vec<String>,
}

/// One engine holding its connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The engine.
    pub engine: Engine,
    /// Server processes on one port.
    pub processes: usize,
    /// Connections wanted.
    pub wanted: u64,
    /// Connections established at the last look at the host; the figures per connection divide by it.
    pub established: u64,
    /// Sockets and slab were back near their base before it began.
    pub settled: bool,
    /// The host before the servers started.
    pub base: HostSample,
    /// The host at the last look before the close, if all connections wanted had been established.
    pub held: Option<HostSample>,
    /// Resident memory of the server processes without any connection.
    pub server_rss_empty_bytes: u64,
    /// Resident memory of the server processes at the same time as `held`.
    pub server_rss_held_bytes: Option<u64>,
    /// Resident memory of the client at the same time as `held`.
    pub client_rss_held_bytes: Option<u64>,
    /// CPU time from the first connect until all were established.
    pub ramp: Option<CpuSpan>,
    /// CPU time while they were held.
    pub hold: Option<CpuSpan>,
    /// What the kernel's counters grew by, from before the servers started until the client had ended.
    pub counters: NetCounters,
    /// The client's own summary (see `throng-client --help`), `null` when it left none.
    pub client: Value,
    /// Each server process's own summary.
    pub servers: Vec<Value>,
}

impl Hold {
    /// Kernel slab memory of a connection, both ends together, without what procfs kept for a monitor.
    pub fn slab_bytes_per_conn(&self) -> Option<f64> {
        let grown =
            self.held.as_ref()?.memory.slab_bytes as f64 - self.base.memory.slab_bytes as f64;
        Some(self.per_conn(grown)? - self.procfs_bytes_per_conn().unwrap_or(0.0))
    }

    /// Slab memory that came because something listed the servers' open files, for a connection; unknown to all but
    /// root.
    pub fn procfs_bytes_per_conn(&self) -> Option<f64> {
        let now = self.held.as_ref()?.procfs_slab_bytes?;
        self.per_conn(now.saturating_sub(self.base.procfs_slab_bytes?) as f64)
    }

    /// Resident memory of the servers for a connection, above what they take empty.
    pub fn server_rss_bytes_per_conn(&self) -> Option<f64> {
        self.per_conn(self.server_rss_held_bytes? as f64 - self.server_rss_empty_bytes as f64)
    }

    /// Pages of queued TCP data that came with the connections, both ends together.
    pub fn queued_pages(&self) -> Option<u64> {
        let now = self.held.as_ref()?.sockstat.mem_pages;
        Some(now.saturating_sub(self.base.sockstat.mem_pages))
    }

    /// A figure of the client's summary, by its JSON pointer.
    pub fn client_figure(&self, pointer: &str) -> Option<f64> {
        self.client.pointer(pointer)?.as_f64()
    }

    /// The largest of a figure among the server processes' summaries.
    pub fn worst_server_figure(&self, pointer: &str) -> Option<f64> {
        self.servers
            .iter()
            .filter_map(|server| server.pointer(pointer)?.as_f64())
            .max_by(f64::total_cmp)
    }

    /// Connections that did not come to be, by errno.
    pub fn failed(&self) -> BTreeMap<String, u64> {
        let failed = self.client.get("failed").and_then(Value::as_object);
        let counts = failed
            .into_iter()
            .flatten()
            .filter_map(|(errno, count)| Some((errno.clone(), count.as_u64()?)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn per_conn(&self, bytes: f64) -> Option<f64> {
        (self.established > 0).then(|| bytes / self.established as f64)
    }
}

/// CPU time of both sides over a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSpan {
    /// Length of the span, by the client's clock.
    pub elapsed_ms: u64,
    /// CPU time of all server processes.
    pub server_cpu_ns: u64,
    /// CPU time of the client.
    pub client_cpu_ns: u64,
    /// CPU time of `ksoftirqd` on the servers' CPUs; `None` where it cannot be read.
    pub server_softirq_ns: Option<u64>,
    /// CPU time of `ksoftirqd` on the client's CPUs; `None` where it cannot be read.
    pub client_softirq_ns: Option<u64>,
}

impl CpuSpan {
    /// CPU time of the server side: its processes, and the softirq work left to `ksoftirqd` where that is known.
    pub fn server_ns(&self) -> u64 {
        self.server_cpu_ns + self.server_softirq_ns.unwrap_or(0)
    }

    /// CPU time of the client side, as of the server's.
    pub fn client_ns(&self) -> u64 {
        self.client_cpu_ns + self.client_softirq_ns.unwrap_or(0)
    }

    /// CPU time of both sides together.
    pub fn both_ns(&self) -> u64 {
        self.server_ns() + self.client_ns()
    }

    /// How many cores the server side kept busy.
    pub fn server_cores(&self) -> f64 {
        cores(self.server_ns(), self.elapsed_ms)
    }

    /// How many cores the client side kept busy.
    pub fn client_cores(&self) -> f64 {
        cores(self.client_ns(), self.elapsed_ms)
    }

    /// Whether the softirq work of both sides is in their figures.
    pub fn has_softirq(&self) -> bool {
        self.server_softirq_ns.is_some() && self.client_softirq_ns.is_some()
    }
}

fn cores(cpu_ns: u64, elapsed_ms: u64) -> f64 {
    cpu_ns as f64 / (elapsed_ms.max(1) * 1_000_000) as f64
}

/// One measurement of messages going back and forth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// The round it belongs to, from one.
    pub round: usize,
    /// What was exchanged.
    #[serde(flatten)]
    pub case: EchoCase,
    /// The engine.
    pub engine: Engine,
    /// Server processes on one port.
    pub processes: usize,
    /// The sockets of the measurement before were gone when this one began.
    pub settled: bool,
    /// Messages that came back and were verified, without those of the warm-up.
    pub messages: u64,
    /// CPU time of both sides in the same time.
    pub cpu: CpuSpan,
    /// CPU time of the whole machine in the same time.
    pub machine: MachineBusy,
    /// The client's own summary.
    pub client: Value,
}

impl Echo {
    /// Messages a second.
    pub fn per_second(&self) -> f64 {
        self.messages as f64 * 1_000.0 / self.cpu.elapsed_ms.max(1) as f64
    }

    /// The server side's CPU time for a message, in microseconds.
    pub fn server_cpu_us_per_message(&self) -> f64 {
        self.cpu.server_ns() as f64 / 1_000.0 / self.messages.max(1) as f64
    }

    /// The whole machine's CPU time for a message, in microseconds.
    pub fn machine_cpu_us_per_message(&self) -> f64 {
        self.machine.busy_ns as f64 / 1_000.0 / self.messages.max(1) as f64
    }
}

/// What the rounds say of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EchoSummary {
    /// What was exchanged.
    #[serde(flatten)]
    pub case: EchoCase,
    /// Each engine's figures over the rounds.
    pub engines: Vec<EngineEcho>,
}

impl EchoSummary {
    /// The figures of `engine`, if it was measured.
    pub fn of(&self, engine: Engine) -> Option<&EngineEcho> {
        self.engines.iter().find(|figures| figures.engine == engine)
    }

    /// uring ÷ epoll of messages a second, pair by pair.
    pub fn rate_ratio(&self) -> Option<Spread> {
        self.of(Engine::Uring)?.rate_of_epoll
    }

    /// uring ÷ epoll of the server side's CPU time for a message, pair by pair.
    pub fn cpu_ratio(&self) -> Option<Spread> {
        self.of(Engine::Uring)?.cpu_of_epoll
    }
}

/// One engine's figures over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EngineEcho {
    /// The engine.
    pub engine: Engine,
    /// Messages a second.
    pub per_second: Spread,
    /// The server side's CPU time for a message, in microseconds.
    pub cpu_us_per_message: Spread,
    /// The whole machine's CPU time for a message, in microseconds: both sides, and what nobody's account has.
    pub machine_cpu_us_per_message: Spread,
    /// Cores the server side kept busy.
    pub server_cores: Spread,
    /// Cores the client side kept busy.
    pub client_cores: Spread,
    /// Its messages a second ÷ epoll's, pair by pair; none of epoll.
    pub rate_of_epoll: Option<Spread>,
    /// Its CPU time for a message ÷ epoll's, pair by pair; none of epoll.
    pub cpu_of_epoll: Option<Spread>,
}

/// uring ÷ epoll of `echoes`, case by case: messages a second, and CPU time for a message.
pub fn echo_ratios(plan: &EchoPlan, echoes: &[Echo]) -> Vec<Option<Spread>> {
    let cases = plan.cases().into_iter();
    cases
        .flat_map(|case| ratios_of(case, Engine::Uring, echoes))
        .collect()
}

/// `engine` ÷ epoll in one case, round by round: messages a second, and CPU time for a message.
fn ratios_of(case: EchoCase, engine: Engine, echoes: &[Echo]) -> [Option<Spread>; 2] {
    if engine == Engine::Epoll {
        return [None, None];
    }
    let rounds = echoes.iter().map(|echo| echo.round).max().unwrap_or(0);
    [Echo::per_second, Echo::server_cpu_us_per_message].map(|figure| {
        let in_round = |engine, round| {
            let is_it =
                |echo: &&Echo| (echo.case, echo.engine, echo.round) == (case, engine, round);
            echoes.iter().find(is_it).map(figure)
        };
        pair_ratios(
            rounds,
            |round| in_round(engine, round),
            |round| in_round(Engine::Epoll, round),
        )
    })
}

fn summarise(plan: &Plan, echoes: &[Echo]) -> Vec<EchoSummary> {
    let cases = plan.echo.iter().flat_map(EchoPlan::cases);
    cases
        .map(|case| summarise_one(plan, case, echoes))
        .collect()
}

fn summarise_one(plan: &Plan, case: EchoCase, echoes: &[Echo]) -> EchoSummary {
    let engines = plan.engines.iter().filter_map(|engine| {
        let of = || {
            let is_it = |echo: &&Echo| (echo.case, echo.engine) == (case, *engine);
            echoes.iter().filter(is_it)
        };
        let spread = |figure: fn(&Echo) -> f64| Spread::of(of().map(figure));
        let [rate_of_epoll, cpu_of_epoll] = ratios_of(case, *engine, echoes);
        Some(EngineEcho {
            engine: *engine,
            per_second: spread(Echo::per_second)?,
            cpu_us_per_message: spread(Echo::server_cpu_us_per_message)?,
            machine_cpu_us_per_message: spread(Echo::machine_cpu_us_per_message)?,
            server_cores: spread(|echo| echo.cpu.server_cores())?,
            client_cores: spread(|echo| echo.cpu.client_cores())?,
            rate_of_epoll,
            cpu_of_epoll,
        })
    });
    EchoSummary {
        case,
        engines: engines.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A result recorded from a whole run.
    pub(crate) fn recorded() -> Report {
        serde_json::from_str(include_str!("../testdata/report.json")).unwrap()
    }

    #[test]
    fn json_holds_everything() {
        let report = recorded();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn conclusions_can_be_drawn_again_from_the_raw_figures() {
        let report = recorded();
        let mut again = report.clone();
        again.echo_summary.clear();
        again.warnings.clear();
        again.conclude();
        let kinds = |report: &Report| {
            report
                .warnings
                .iter()
                .map(std::mem::discriminant)
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&again), kinds(&report));
        for (new, old) in again.echo_summary.iter().zip(&report.echo_summary) {
            assert_eq!(new.case, old.case);
            let (new, old) = (new.cpu_ratio().unwrap(), old.cpu_ratio().unwrap());
            assert!((new.median - old.median).abs() < 1e-9 && new.count == old.count);
        }
        assert_eq!(again.echo_summary.len(), report.echo_summary.len());
    }

    #[test]
    fn softirq_work_of_the_servers_cores_is_the_servers() {
        let mut report = recorded();
        for echo in &mut report.echo {
            let is_uring = echo.engine == Engine::Uring;
            echo.messages = 1_000;
            echo.cpu.elapsed_ms = 10;
            echo.cpu.server_cpu_ns = if is_uring { 8_000_000 } else { 9_000_000 };
            echo.cpu.server_softirq_ns = Some(if is_uring { 1_500_000 } else { 500_000 });
        }
        report.conclude();
        let summary = &report.echo_summary[0];
        assert_eq!(summary.cpu_ratio().unwrap().median, 1.0);
        let uring = summary.of(Engine::Uring).unwrap();
        assert_eq!(
            (uring.cpu_us_per_message.median, uring.server_cores.median),
            (9.5, 0.95)
        );
    }

    #[test]
    fn a_lost_measurement_costs_its_pair_only() {
        let mut report = recorded();
        let case = report.echo[0].case;
        let before = report
            .echo_summary
            .iter()
            .find(|summary| summary.case == case)
            .unwrap()
            .clone();
        report.echo.remove(0);
        report.conclude();
        let after = report
            .echo_summary
            .iter()
            .find(|summary| summary.case == case)
            .unwrap();
        assert_eq!(
            after.cpu_ratio().unwrap().count,
            before.cpu_ratio().unwrap().count - 1
        );
    }
}
