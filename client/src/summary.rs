//! What was measured: each worker's report, merged, and as data that can be written.
//!
//! Pure. Invariant: what is said of the whole run is the sum of its phases and workers; no sample is dropped (a value past
//! the last bucket counts in it).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use kernel_tuning::limit;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::canary;
use crate::config::Config;
use crate::counters::{Causes, Counts};
use crate::latency::{self, Histograms, Kind};
use crate::load::Load;
use crate::mergeable::Mergeable;
use crate::outlook::Outlook;
use crate::phases::HostCounters;
use crate::start::Start;
use crate::tally::Measured;

/// One worker's figures at its end.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) first_connect: Option<Duration>,
    pub(crate) last_established: Option<Duration>,
    /// The most connections established at once.
    pub(crate) established_max: u64,
    /// By step and errno.
    pub(crate) failed: BTreeMap<(limit::Step, i32), u64>,
    /// A source address that is not one of this host.
    pub(crate) unbound: Option<IpAddr>,
    pub(crate) lost: BTreeMap<String, u64>,
    /// What came with the first wrong byte.
    pub(crate) stray: Vec<u8>,
    /// Connections that churned.
    pub(crate) churning: u64,
    pub(crate) cycles_unfinished: u64,
    /// Cycles without a connection, by step and errno.
    pub(crate) churn_failed: BTreeMap<(limit::Step, i32), u64>,
    /// Attempts to make a lost connection again, and those of them that failed, by step and errno.
    pub(crate) reconnects_attempted: u64,
    pub(crate) reconnects_failed: BTreeMap<(limit::Step, i32), u64>,
    /// Connections still lost at the end, which were to be made again.
    pub(crate) still_lost: u64,
    /// Orderly closes that the server had not answered at the end.
    pub(crate) unended: u64,
    pub(crate) collisions: u64,
    pub(crate) greetings_verified: u64,
    pub(crate) greetings_missing: u64,
    pub(crate) heartbeats_missing: u64,
    pub(crate) active: u64,
    /// Messages whose time has come by the schedule.
    pub(crate) messages_due: u64,
    /// The same of churn cycles.
    pub(crate) cycles_due: u64,
    pub(crate) messages_mismatched: u64,
    pub(crate) messages_unanswered: u64,
    pub(crate) ring: ring::Stats,
}

impl Report {
    /// Why what failed and was lost so far did.
    pub(crate) fn causes(&self) -> Causes {
        Causes {
            failed: by_errno(&self.failed),
            lost: self.lost.clone(),
        }
    }

    /// Takes `other` in.
    pub(crate) fn merge(&mut self, other: Report) {
        self.first_connect = [self.first_connect, other.first_connect]
            .into_iter()
            .flatten()
            .min();
        self.last_established = self.last_established.max(other.last_established);
        self.established_max += other.established_max;
        for (failure, count) in other.failed {
            *self.failed.entry(failure).or_default() += count;
        }
        self.unbound = self.unbound.or(other.unbound);
        for (cause, count) in other.lost {
            *self.lost.entry(cause).or_default() += count;
        }
        if self.stray.is_empty() {
            self.stray = other.stray;
        }
        self.churning += other.churning;
        self.cycles_unfinished += other.cycles_unfinished;
        for (failure, count) in other.churn_failed {
            *self.churn_failed.entry(failure).or_default() += count;
        }
        self.reconnects_attempted += other.reconnects_attempted;
        for (failure, count) in other.reconnects_failed {
            *self.reconnects_failed.entry(failure).or_default() += count;
        }
        self.still_lost += other.still_lost;
        self.unended += other.unended;
        self.collisions += other.collisions;
        self.greetings_verified += other.greetings_verified;
        self.greetings_missing += other.greetings_missing;
        self.heartbeats_missing += other.heartbeats_missing;
        self.active += other.active;
        self.messages_due += other.messages_due;
        self.cycles_due += other.cycles_due;
        self.messages_mismatched += other.messages_mismatched;
        self.messages_unanswered += other.messages_unanswered;
        self.ring = self.ring.merged(other.ring);
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ended {
    /// It held for as long as was asked.
    #[serde(rename = "complete")]
    Complete,
    /// A signal, or the end of stdin.
    #[serde(rename = "interrupted")]
    Interrupted,
    /// The first connects met nobody listening.
    #[serde(rename = "refused")]
    Refused,
    /// Every connect failed.
    #[serde(rename = "nothing established")]
    NothingEstablished,
    /// Connects stayed unanswered.
    #[serde(rename = "stalled")]
    Stalled,
    /// The server closed or reset at least half of the connections that it had greeted.
    #[serde(rename = "server gone")]
    ServerGone,
    /// No connection is left: the server turned them away, or what it sent was wrong.
    #[serde(rename = "all lost")]
    AllLost,
    /// The host ran low on memory.
    #[serde(rename = "low memory")]
    LowMemory,
}

impl Ended {
    /// The word for it, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Ended::Complete => "complete",
            Ended::Interrupted => "interrupted",
            Ended::Refused => "refused",
            Ended::NothingEstablished => "nothing established",
            Ended::Stalled => "stalled",
            Ended::ServerGone => "server gone",
            Ended::AllLost => "all lost",
            Ended::LowMemory => "low memory",
        }
    }
}

/// What the main thread saw.
pub(crate) struct Course {
    pub(crate) ended: Ended,
    pub(crate) counts: Counts,
    /// When the hold began, in which messages are exchanged and connections churn, how long it lasted, and the counts at
    /// its end.
    pub(crate) hold_from: Duration,
    pub(crate) hold: Duration,
    pub(crate) at_hold_end: Counts,
    /// Of a stepped ramp; else none.
    pub(crate) steps: Vec<Step>,
    pub(crate) storm: Option<Storm>,
    pub(crate) peak_rss_bytes: u64,
}

/// Percentiles in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub count: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub p9999: u64,
    pub max: u64,
}

impl Percentiles {
    /// Of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Percentiles {
        let at = |quantile| histogram.value_at_quantile(quantile) / 1000;
        Percentiles {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max() / 1000,
        }
    }
}

/// How long things took in one phase of the run.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseLatency {
    /// Its name, as in samples.
    pub phase: &'static str,
    /// By what took its time, as tagged in the interval log: `connect`, `connect-late`, `echo`, `echo-raw`, `send-late`,
    /// `heartbeat`, `cycle`, `cycle-connect`. Only what there was.
    pub latency_us: BTreeMap<&'static str, Percentiles>,
}

impl PhaseLatency {
    fn new(measured: &Measured) -> PhaseLatency {
        let of_kind = |(kind, histogram): (&Kind, _)| (kind.name(), Percentiles::of(histogram));
        PhaseLatency {
            phase: measured.phase.name(),
            latency_us: measured.histograms.iter().map(of_kind).collect(),
        }
    }
}

/// The percentiles of a kind over the whole run; of nothing, where there was none of it.
struct Whole(Histograms);

impl Whole {
    fn new(phases: &[Measured]) -> Whole {
        let mut sum = Histograms::new();
        for measured in phases {
            latency::add(&mut sum, &measured.histograms);
        }
        Whole(sum)
    }

    fn of(&self, kind: Kind) -> Percentiles {
        self.0
            .get(&kind)
            .map_or_else(Percentiles::default, Percentiles::of)
    }
}

/// Heartbeats heard.
#[derive(Clone, Debug, Serialize)]
pub struct Heartbeats {
    /// All of them.
    pub received: u64,
    /// Those that came more than a second after their interval.
    pub late: u64,
    /// Connections that at the end had had none for more than two intervals.
    pub missing: u64,
    /// How much longer than the interval it took from one to the next.
    pub lateness_us: Percentiles,
}

/// Messages exchanged.
#[derive(Clone, Debug, Serialize)]
pub struct Messages {
    /// Connections that took part.
    pub active: u64,
    /// Messages whose whole echo came back right.
    pub completed: u64,
    /// Messages whose echo had a wrong byte.
    pub mismatched: u64,
    /// Messages whose echo had not come within the grace at the end.
    pub unanswered: u64,
    /// When the hold began in which they were, from the start of the run on: the `t_ms` of samples counts from there too.
    pub began_seconds: f64,
    /// How long it lasted.
    pub seconds: f64,
    /// Messages completed in that time, by it.
    pub per_second: f64,
    /// To the end of the echo: in closed loop from the send, in open loop from when it was to be sent.
    pub latency_us: Percentiles,
    /// What there is to say of an open loop; none in a closed one.
    pub open_loop: Option<OpenLoop>,
}

/// Messages sent, or churn cycles begun, by a schedule.
#[derive(Clone, Debug, Serialize)]
pub struct OpenLoop {
    /// How many per second were asked for.
    pub asked_per_second: f64,
    /// Those whose time has come.
    pub due: u64,
    /// Those of them that were sent, or begun.
    pub sent: u64,
    /// Those that never were: their connection still waited for an echo, or was lost (with what was under way on it, if it
    /// was to be made again), or the client was late.
    pub owed: u64,
    /// Less than 99 % of those due were completed: the rate was not kept.
    pub is_short: bool,
    /// From the send, or the start of the connect, whenever that was, to the end of the echo.
    pub latency_from_send_us: Percentiles,
    /// How late the client itself came to each that was due, sent or owed: a starved client, not a slow server.
    pub client_lateness_us: Percentiles,
}

impl OpenLoop {
    fn of_messages(
        asked_per_second: f64,
        report: &Report,
        whole: &Whole,
        counts: Counts,
    ) -> OpenLoop {
        let due = report.messages_due;
        OpenLoop {
            asked_per_second,
            due,
            sent: due - counts.owed,
            owed: counts.owed,
            is_short: counts.messages * 100 < due * 99,
            latency_from_send_us: whole.of(Kind::EchoRaw),
            client_lateness_us: whole.of(Kind::SendLate),
        }
    }

    fn of_cycles(
        asked_per_second: f64,
        report: &Report,
        whole: &Whole,
        counts: Counts,
    ) -> OpenLoop {
        let due = report.cycles_due;
        OpenLoop {
            asked_per_second,
            due,
            sent: due - counts.cycles_owed,
            owed: counts.cycles_owed,
            is_short: counts.cycles * 100 < due * 99,
            latency_from_send_us: whole.of(Kind::CycleRaw),
            client_lateness_us: whole.of(Kind::CycleLate),
        }
    }
}

/// Connections closed and made again, with one message each time.
#[derive(Clone, Debug, Serialize)]
pub struct Churn {
    /// Connections that took part.
    pub connections: u64,
    /// Cycles completed: connect, greeting, message, echo.
    pub cycles: u64,
    /// Cycles without a connection, by errno. Each is a loss of its connection, which churns no more unless it is made again.
    pub failed: BTreeMap<String, u64>,
    /// Cycles whose echo had not come within the grace at the end.
    pub unfinished: u64,
    /// When it began, from the start of the run on.
    pub began_seconds: f64,
    /// How long it went on.
    pub seconds: f64,
    /// Cycles completed in that time, by it.
    pub per_second: f64,
    /// To the end of the echo: from the start of the connect, or by a schedule from when the cycle was to begin.
    pub cycle_us: Percentiles,
    /// The connect alone.
    pub connect_us: Percentiles,
    /// What there is to say of a schedule; none where each cycle follows the one before.
    pub open_loop: Option<OpenLoop>,
}

impl Churn {
    fn new(churn_rate: Option<f64>, report: &Report, whole: &Whole, course: &Course) -> Churn {
        Churn {
            connections: report.churning,
            cycles: course.counts.cycles,
            failed: by_errno(&report.churn_failed),
            unfinished: report.cycles_unfinished,
            began_seconds: course.hold_from.as_secs_f64(),
            seconds: course.hold.as_secs_f64(),
            per_second: per_second(course.at_hold_end.cycles, course.hold),
            cycle_us: whole.of(Kind::Cycle),
            connect_us: whole.of(Kind::CycleConnect),
            open_loop: churn_rate
                .map(|asked| OpenLoop::of_cycles(asked, report, whole, course.counts)),
        }
    }
}

/// A step of the ramp.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Connections asked for up to its end.
    pub connections: u64,
    /// When it began, from the start of the run on.
    pub began_seconds: f64,
    /// Until each of them was established or had failed.
    pub up_seconds: f64,
    /// How long that was held before the next step; the last is held as all connections are.
    pub held_seconds: f64,
    /// Connections established at its end.
    pub established: u64,
}

/// Lost connections made again.
#[derive(Clone, Debug, Serialize)]
pub struct Reconnects {
    /// Attempts.
    pub attempted: u64,
    /// Those that came to a connection.
    pub succeeded: u64,
    /// Those that did not, by errno.
    pub failed: BTreeMap<String, u64>,
    /// Connections still lost at the end.
    pub still_lost: u64,
    /// From a loss to when the connection was made again, of those that were, to the millisecond.
    pub without_connection_us: Percentiles,
}

impl Reconnects {
    fn new(report: &Report, whole: &Whole, counts: Counts) -> Reconnects {
        Reconnects {
            attempted: report.reconnects_attempted,
            succeeded: counts.reconnected,
            failed: by_errno(&report.reconnects_failed),
            still_lost: report.still_lost,
            without_connection_us: whole.of(Kind::Without),
        }
    }
}

/// What was heard while the server published to all.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// When it began, from the start of the run on.
    pub began_seconds: f64,
    /// How long it went on.
    pub seconds: f64,
    /// Lines that came, heartbeats that were due anyway included: a broadcast says what they say.
    pub heard: u64,
}

/// A run's result.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The target, or all of them with commas between.
    pub target: String,
    /// Connections asked for.
    pub connections_wanted: u64,
    /// The most connections established at once (the sum of each worker's most).
    pub established: u64,
    /// Connects that failed, by errno.
    pub failed: BTreeMap<String, u64>,
    /// Times that an established connection was lost, whether or not it was made again.
    pub lost_while_held: u64,
    /// Those of them that the server had told that it ends (`bye`): they were closed when nothing more was awaited.
    pub announced: u64,
    /// Those by cause.
    pub lost_by_cause: BTreeMap<String, u64>,
    /// Lost connections made again; none where that was not asked for.
    pub reconnects: Option<Reconnects>,
    /// Connections closed in order that the server had not ended at its side when this client gave them up.
    pub unended: u64,
    /// Source ports that were in use and replaced by others.
    pub ports_in_use: u64,
    /// From the first connect to the last that was established, without the time that steps were held.
    pub ramp_seconds: f64,
    /// Connections established by that time.
    pub connects_per_second: f64,
    /// The steps of a stepped ramp; else empty.
    pub steps: Vec<Step>,
    /// From the submission of a connect to its completion.
    pub connect_latency_us: Percentiles,
    /// From when `--rate` had a connect start, whatever stalls and the concurrency put off, to its submission: how long
    /// it queued in the client. None without a rate.
    pub connect_lateness_us: Option<Percentiles>,
    /// Connections whose greeting was right.
    pub greetings_verified: u64,
    /// Connections held at the end without one.
    pub greetings_missing: u64,
    /// Heartbeats.
    pub heartbeats: Heartbeats,
    /// Messages.
    pub messages: Messages,
    /// Connections closed and made again; none where that was not asked for.
    pub churn: Option<Churn>,
    /// What took how long in each phase.
    pub latency_by_phase: Vec<PhaseLatency>,
    /// How busy the client itself was.
    pub load: Load,
    /// What the server published; none where that was not waited for, or the run ended before.
    pub storm: Option<Storm>,
    /// Bytes received on all connections.
    pub bytes_received: u64,
    /// The most resident memory this process had (VmHWM).
    pub peak_rss_bytes: u64,
    /// How many connections the sources and the host allow, by the plan made before the start.
    pub plan: Option<Outlook>,
    /// What the counters of this host and of the interfaces to the targets did in each phase.
    pub host_counters: Option<HostCounters>,
    /// What the rings did.
    pub ring: ring::Stats,
    /// What lies between here and the first target.
    pub path: canary::Path,
    /// What the canaries found.
    pub canaries: Option<canary::Report>,
    /// What stopped it short, and what to do about it.
    pub diagnosis: Option<String>,
    /// How the time was kept at which it was to start; none where that was at once.
    pub start: Option<Start>,
    /// What the reports of all parts of a fleet are made of; none of one that is no part.
    pub part: Option<Mergeable>,
    /// Why it ended.
    pub ended: Ended,
    /// The whole configuration.
    pub config: Config,
}

impl Summary {
    pub(crate) fn new(
        config: Config,
        report: &Report,
        measured: &[Measured],
        course: &Course,
    ) -> Summary {
        let whole = Whole::new(measured);
        let whole_ramp = match (report.first_connect, report.last_established) {
            (Some(first), Some(last)) => last.saturating_sub(first),
            _ => Duration::ZERO,
        };
        // The last step is held as all connections are, or was cut short.
        let before_last = course.steps.iter().rev().skip(1);
        let rests = before_last.map(|step| step.held_seconds).sum();
        let ramp = whole_ramp.saturating_sub(Duration::from_secs_f64(rests));
        let targets: Vec<String> = config.targets.iter().map(ToString::to_string).collect();
        let counts = course.counts;
        Summary {
            target: targets.join(","),
            connections_wanted: config.connections,
            established: report.established_max,
            failed: by_errno(&report.failed),
            lost_while_held: counts.lost,
            announced: counts.announced,
            lost_by_cause: report.lost.clone(),
            reconnects: config
                .reconnect
                .map(|_| Reconnects::new(report, &whole, counts)),
            unended: report.unended,
            ports_in_use: report.collisions,
            ramp_seconds: ramp.as_secs_f64(),
            connects_per_second: per_second(counts.established, ramp),
            connect_latency_us: whole.of(Kind::Connect),
            connect_lateness_us: (config.rate > 0.0).then(|| whole.of(Kind::ConnectLate)),
            steps: course.steps.clone(),
            greetings_verified: report.greetings_verified,
            greetings_missing: report.greetings_missing,
            heartbeats: Heartbeats {
                received: counts.heartbeats,
                late: counts.heartbeats_late,
                missing: report.heartbeats_missing,
                lateness_us: whole.of(Kind::Heartbeat),
            },
            messages: Messages {
                active: report.active,
                completed: counts.messages,
                mismatched: report.messages_mismatched,
                unanswered: report.messages_unanswered,
                began_seconds: course.hold_from.as_secs_f64(),
                seconds: course.hold.as_secs_f64(),
                per_second: per_second(course.at_hold_end.messages, course.hold),
                latency_us: whole.of(Kind::Echo),
                open_loop: config
                    .message_rate
                    .map(|asked| OpenLoop::of_messages(asked, report, &whole, counts)),
            },
            churn: (config.churn > 0)
                .then(|| Churn::new(config.churn_rate, report, &whole, course)),
            storm: course.storm.clone(),
            latency_by_phase: measured.iter().map(PhaseLatency::new).collect(),
            load: Load::new(&config.cores, measured),
            bytes_received: counts.bytes_received,
            peak_rss_bytes: course.peak_rss_bytes,
            plan: None,
            host_counters: None,
            ring: report.ring,
            path: config
                .targets
                .first()
                .map_or(canary::Path::Unknown, |target| {
                    canary::Path::to(target.ip()).0
                }),
            canaries: None,
            diagnosis: None,
            start: None,
            part: None,
            ended: course.ended,
            config,
        }
    }

    /// All wanted connections were established, none was lost, and all that was heard was right.
    pub fn is_flawless(&self) -> bool {
        self.ended == Ended::Complete
            && self.established == self.connections_wanted
            && self.lost_while_held == 0
            && self.greetings_missing == 0
            && self.heartbeats.missing == 0
            && self.messages.mismatched == 0
            && self.messages.unanswered == 0
            && self
                .churn
                .as_ref()
                .is_none_or(|churn| churn.unfinished == 0)
    }
}

/// `ECONNREFUSED` and the like.
pub(crate) fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno {errno}"),
        known => format!("{known:?}"),
    }
}

pub(crate) fn by_errno(failed: &BTreeMap<(limit::Step, i32), u64>) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for ((_, errno), count) in failed {
        *sum.entry(errno_name(*errno)).or_default() += count;
    }
    sum
}

fn per_second(count: u64, time: Duration) -> f64 {
    match time.is_zero() {
        true => 0.0,
        false => count as f64 / time.as_secs_f64(),
    }
}
