//! Flags to a validated [`Config`].
//!
//! Touches the arguments, the name service, this thread's CPU mask, the interfaces and the list of reserved ports; nothing has started
//! when a flag is refused. Invariant: a `Config` can be run; only the host can still say no.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, CommandFactory as _, Parser, ValueEnum};
use kernel_tuning::{host, process};
use ring::SendArena;
use serde::{Serialize, Serializer};

use crate::backoff::Backoff;
use crate::canary;
use crate::part::Part;
use crate::shape::{MOST_LEVELS, Rise, Shape};
use crate::source::{HostPorts, Plan, Source};
use crate::start;

/// What is said on the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A greeting, echoed lines, heartbeats
    Line,
    /// Every byte back, and nothing else
    Echo,
}

/// How this client ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Close {
    /// By a FIN, in order: the client's side stays in TIME_WAIT for a minute
    Fin,
    /// By a reset (SO_LINGER 0), which leaves nothing behind
    Rst,
}

/// A whole resolved configuration; part of every result.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Where to connect to.
    pub targets: Vec<SocketAddr>,
    /// How many connections.
    pub connections: u64,
    /// Where from.
    pub sources: Vec<Source>,
    /// Connects per second over all workers; 0: as fast as `concurrency` allows.
    pub rate: f64,
    /// Handshakes in flight over all workers.
    pub concurrency: u32,
    /// How they are brought up, and closed at the end.
    pub shape: Shape,
    /// How each is closed.
    pub close: Close,
    /// How long to wait before a lost one is made again; none: it stays lost.
    pub reconnect: Option<Backoff>,
    /// After which a connect is given up.
    #[serde(rename = "connect_timeout_seconds", serialize_with = "seconds")]
    pub connect_timeout: Duration,
    /// How long the connections are held.
    #[serde(rename = "hold_seconds", serialize_with = "seconds")]
    pub hold: Duration,
    /// What is said.
    pub protocol: Protocol,
    /// The interval of heartbeats expected of the server; zero: none.
    #[serde(rename = "heartbeat_seconds", serialize_with = "seconds")]
    pub heartbeat: Duration,
    /// Connections that exchange messages while held.
    pub active: u64,
    /// Messages per second over all workers, sent by a schedule; none: each connection sends when it is answered.
    pub message_rate: Option<f64>,
    /// Connections that are closed and made again while held.
    pub churn: u64,
    /// Their cycles per second over all workers, begun by a schedule; none: each begins when the one before is complete.
    pub churn_rate: Option<f64>,
    /// How long all connections are held before the server's heartbeat begins.
    #[serde(rename = "idle_for_seconds", serialize_with = "seconds")]
    pub idle_for: Duration,
    /// How long all connections are held before anything is exchanged.
    #[serde(rename = "quiet_for_seconds", serialize_with = "seconds")]
    pub quiet_for: Duration,
    /// How long the server is waited for after the hold, that it publishes to all; none: not at all.
    #[serde(rename = "storm_seconds", serialize_with = "maybe_seconds")]
    pub storm: Option<Duration>,
    /// Size of a message in bytes.
    pub message_bytes: u32,
    /// What is probed meanwhile.
    pub canary: Option<canary::Config>,
    /// Which part of a fleet this is; none: all of it.
    pub part: Option<Division>,
    /// When the first connect starts; none: at once.
    #[serde(
        rename = "start_at_unix_seconds",
        serialize_with = "maybe_unix_seconds"
    )]
    pub start_at: Option<SystemTime>,
    /// The CPUs of the workers.
    pub cores: Vec<usize>,
    /// Where the summary goes; `-`: stdout.
    pub json: Option<PathBuf>,
    /// Where the samples go; `-`: stdout.
    pub samples: Option<PathBuf>,
    /// Where the interval log goes; `-`: stdout.
    pub hlog: Option<PathBuf>,
    /// How often a sample is taken, and the interval of the log.
    #[serde(rename = "sample_interval_seconds", serialize_with = "seconds")]
    pub sample_interval: Duration,
    /// End when stdin reaches its end.
    pub until_stdin_closes: bool,
    /// A live view instead of progress.
    pub tui: bool,
}

/// A part of a fleet. All that its [`Config`] counts, and each rate in it, is the part's own share.
#[derive(Clone, Debug, Serialize)]
pub struct Division {
    /// Which.
    #[serde(flatten)]
    pub part: Part,
    /// What the whole fleet was asked for.
    #[serde(skip)]
    pub whole: Box<Config>,
}

impl Config {
    /// The configuration that `args` (program name first) ask for, and its plan of connections.
    ///
    /// # Errors
    /// A clap error whose text says what is wrong and what to do; also `--help` and `--version`.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Config, Plan), clap::Error> {
        let flags = Flags::try_parse_from(args)?;
        let refuse = |text: String| {
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{text}\n"))
        };
        let config = flags.resolve().map_err(refuse)?;
        let ports = HostPorts {
            reserved: host::reserved_ports().map_err(|error| refuse(error.to_string()))?,
            automatic: host::ip_local_port_range().ok(),
        };
        let plan = Plan::of_part(
            &config.sources,
            &config.targets,
            &ports,
            config.connections,
            config.part.as_ref().map(|division| division.part),
        )
        .map_err(|error| refuse(error.to_string()))?;
        if config.churn > 0 && config.close == Close::Fin && plan.capacity() <= config.connections {
            return Err(refuse(format!(
                "--churn with --close fin: each cycle takes another source port, as the last one is in TIME_WAIT, and \
                 the {} that there are carry the connections held; give more addresses with --source, or use --close rst",
                plan.capacity()
            )));
        }
        Ok((config, plan))
    }

    /// That of one `part`, where `self` is asked of the whole fleet: connections and whatever is counted in them are shared
    /// out evenly, and each rate as what has it.
    fn of_part(self, part: Part) -> Result<Config, String> {
        if self.connections < part.of {
            return Err(format!(
                "--part: {} connections are fewer than {} parts; raise --connections, or take fewer parts",
                self.connections, part.of
            ));
        }
        let mut shape = self.shape.clone();
        if let Rise::Levels { levels, .. } = &mut shape.rise {
            let rises = |part: Part| {
                let mut shares = levels.iter().map(|level| part.share(*level));
                let first = shares.next();
                shares.try_fold(first, |below, share| {
                    (Some(share) > below).then_some(Some(share))
                })
            };
            let all = (1..=part.of).map(|number| Part { number, ..part });
            if levels.first() < Some(&part.of) || all.map(rises).any(|rises| rises.is_none()) {
                return Err(format!(
                    "--steps: of {} parts, each takes at least one connection more at each level; take levels further \
                     apart, or fewer parts",
                    part.of
                ));
            }
            for level in levels {
                *level = part.share(*level);
            }
        }
        let active = part.share(self.active);
        // Of both together, so that no part has more of them than connections.
        let churn = part.share(self.active + self.churn) - active;
        let rate_of = |rate: Option<f64>, mine: u64, all: u64| {
            rate.filter(|_| mine > 0)
                .map(|rate| rate * mine as f64 / all as f64)
        };
        Ok(Config {
            connections: part.share(self.connections),
            rate: part.rate(self.rate, self.connections),
            concurrency: part.share(self.concurrency.into()).max(1) as u32,
            shape,
            active,
            message_rate: rate_of(self.message_rate, active, self.active),
            churn,
            churn_rate: rate_of(self.churn_rate, churn, self.churn),
            part: Some(Division {
                part,
                whole: Box::new(self.clone()),
            }),
            ..self
        })
    }

    /// The `--source` that `address` is of.
    pub(crate) fn source_of(&self, address: IpAddr) -> Option<&Source> {
        self.sources.iter().find(|source| source.contains(address))
    }
}

/// The command line as clap has it, for man pages and completions.
pub fn command() -> clap::Command {
    Flags::command()
}

const EXAMPLES: &str = "\
Examples:
  throng-client 127.0.0.1:7000 --connections 100000 --source 127.1.0.0/16 --hold 30s
  throng-client 127.0.0.1:7000 --connections 10000 --active 500 --hold 10s --json result.json
  throng-client 127.0.0.1:7000 --connections 100000 --active 10000 --message-rate 5000 --hold 1m
  throng-client 127.0.0.1:7000 --connections 100000 --churn 200 --churn-rate 500 --hold 30s
  throng-client 127.0.0.1:7000 --connections 10000 --rate 2000 --hold 1m --hlog run.hlog
  throng-client 127.0.0.1:7000 --connections 100000 --steps 10 --step-hold 5s --ramp-down 20s --close fin
  throng-client 127.0.0.1:7000 --connections 100000 --steps 1000,10000,100000 --canary
  throng-client 127.0.0.1:7000 --connections 100000 --ramp 30s --reconnect 100ms..30s --hold 10m
  throng-client 10.0.0.1:7000 --connections 300000 --source 10.0.0.5-10.0.0.9 --source eth1
  throng-client 127.0.0.1:7000 127.0.0.1:7001 --connections 500000 --rate 20000 --samples -
  throng-client 127.0.0.1:7000 --connections 100000 --canary --canary-port 7001 --tui
  throng-client 10.0.0.1:7000 --connections 3000000 --source eth1 --rate 60000 --part 1/3 \
      --start-at 2030-01-31T12:00:00Z --json part-1.json      on the first of three hosts

Each connection is bound to a source address and port before it connects, so one address carries \
about 64,000 connections to a target. Connections are closed with a reset (SO_LINGER 0), so that none is \
left in TIME_WAIT. With --close fin they end in order: what the server sends is received until it has ended its \
side too (at most for 30 s at the end of a run), and this side of each then stays in TIME_WAIT for 60 s: \
its address and port cannot connect to that target again meanwhile (over loopback for 1 s, by \
net.ipv4.tcp_tw_reuse), and beyond net.ipv4.tcp_max_tw_buckets the kernel forgets them at once. So another \
run right after it meets ports in use, and replaces them where the sources have others.

With --reconnect a connection that is lost is made again from the same address and port, first after up to \
MIN, then after up to twice as long at each attempt, at most MAX (exponential backoff, full jitter), within \
--rate and --concurrency. It counts as lost all the same, and the run goes on without a server too. One that is \
not greeted within --connect-timeout, or without a heartbeat for three intervals, is lost.

With --message-rate messages are sent by a schedule (open loop), whatever the server does. One that \
finds its connection still waiting for the last echo is owed, and sent as soon as that has come; its \
latency counts from when it was to be sent. What the client itself was late by is shown apart.

With --rate each connect has a time when it was to start, and what it queued in the client from \
then on is shown beside the latency of the connect itself.

--hlog is read by HistogramLogAnalyzer and its like. Its tags: connect (from its submission on), \
connect-late (queued before that, with --rate), echo (with --message-rate from when it was to be \
sent), echo-raw (from the send, with --message-rate), send-late (the client itself), heartbeat (how \
much later than its interval), cycle and cycle-connect (--churn). Values are in nanoseconds.

A connection of --churn connects, is greeted where the protocol greets, exchanges one message and \
is closed, again and again: from the same address and port, or with --close fin from another one, whose \
TIME_WAIT is over or which is unused. One that comes to nothing is counted as lost, and tried again only with \
--reconnect. With --churn-rate cycles begin by a schedule, and their latency counts from when they were to \
begin; one that finds all its connections busy is owed.

With --part several clients, on one host or many, are one fleet: each gets the same flags, but for I, and takes its share of \
--connections, --active, --churn, --concurrency and all rates. Addresses of --source are divided too (whole ones where there \
is one for each part, else by port), so that no address and port is taken twice; the addresses of an interface are the host's \
own and stay whole, so take one part a host then. With --start-at all begin at the same time, by the clock of day of each. \
throng-bench merge makes one report of their --json files.

With --storm every connection is held on after --hold, and only listens. Whoever makes the server publish meanwhile \
(throng-server --control, or --broadcast and SIGUSR1) has it say `ok`, as a heartbeat does: any other line is a wrong \
byte. What was heard is counted.

Exit code: 0 all connections were established, none was lost and every byte was right; 1 anything \
short of that; 2 nothing was started: bad usage, or no io_uring here.";

#[derive(Parser, Debug)]
#[command(
    name = "throng-client",
    version,
    about = "Opens, holds, exercises and checks very many TCP connections",
    after_help = EXAMPLES,
    group = ArgGroup::new("exchange").args(["active", "churn"]).multiple(true)
)]
struct Flags {
    /// Where to connect to, as HOST:PORT; several share the connections evenly
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,

    /// How many connections to establish and hold
    #[arg(long, short = 'n', default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS), help_heading = "Connections")]
    connections: u64,
    /// Where to connect from, repeatable: address, CIDR, FIRST-LAST, or interface [default to loopback: 127.1.0.0/16, ::1]
    #[arg(long, value_name = "SOURCE", help_heading = "Connections")]
    source: Vec<Source>,
    /// Be part I of a fleet of N clients, with I/N of all that is asked for; job/N: I from JOB_COMPLETION_INDEX
    #[arg(long, value_name = "I/N", value_parser = parse_part, help_heading = "Connections")]
    part: Option<Part>,
    /// Start the first connect at this time: RFC 3339, or seconds since 1970; at most an hour ahead
    #[arg(long, value_name = "TIME", value_parser = start::parse, help_heading = "Connections")]
    start_at: Option<SystemTime>,
    /// Connects per second over all workers; 0: as fast as --concurrency allows
    #[arg(long, default_value_t = 0.0, value_name = "PER_SECOND", conflicts_with = "ramp", value_parser = parse_rate, allow_negative_numbers = true, help_heading = "Connections")]
    rate: f64,
    /// Handshakes in flight, over all workers
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Connections")]
    concurrency: u32,
    /// Give a connect up after this
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Connections")]
    connect_timeout: Duration,

    /// Start all connects evenly over this time [default: as fast as --rate and --concurrency allow]
    #[arg(long, value_name = "DURATION", conflicts_with = "steps", value_parser = humantime::parse_duration, help_heading = "Shape")]
    ramp: Option<Duration>,
    /// Bring the connections up in so many equal parts, or to these levels, each when the one before is up and was held
    #[arg(long, value_name = "N|N,N", help_heading = "Shape")]
    steps: Option<Steps>,
    /// How long each part but the last is held before the next
    #[arg(long, default_value = "10s", value_name = "DURATION", requires = "steps", value_parser = humantime::parse_duration, help_heading = "Shape")]
    step_hold: Duration,
    /// Close the connections evenly over this time at the end [default: all at once]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Shape")]
    ramp_down: Option<Duration>,
    /// How connections are closed
    #[arg(long, value_enum, default_value = "rst", help_heading = "Shape")]
    close: Close,
    /// Make lost connections again, after a wait that grows from MIN to MAX [default without a value: 100ms..30s]
    #[arg(
        long,
        value_name = "MIN..MAX",
        num_args = 0..=1,
        default_missing_value = "100ms..30s",
        help_heading = "Shape"
    )]
    reconnect: Option<Backoff>,

    /// How long to hold the connections
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "While held")]
    hold: Duration,
    /// What the server speaks
    #[arg(long, value_enum, default_value = "line", help_heading = "While held")]
    protocol: Protocol,
    /// Interval of the server's heartbeats, 0: none [default: 10s; with --protocol echo 0]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "While held")]
    heartbeat: Option<Duration>,
    /// Connections that exchange messages, each waiting for its echo before the next; evenly among all
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        help_heading = "While held"
    )]
    active: u64,
    /// Messages per second over all active connections, each at its own even interval [default: as fast as echoes come]
    #[arg(long, value_name = "PER_SECOND", requires = "active", value_parser = parse_message_rate, allow_negative_numbers = true, help_heading = "While held")]
    message_rate: Option<f64>,
    /// Further connections that are closed and made again all the time, with one message each time
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        help_heading = "While held"
    )]
    churn: u64,
    /// Cycles per second over all churning connections, begun by a schedule [default: as fast as they complete]
    #[arg(long, value_name = "PER_SECOND", requires = "churn", value_parser = parse_churn_rate, allow_negative_numbers = true, help_heading = "While held")]
    churn_rate: Option<f64>,
    /// How long to hold all connections before the server's heartbeat begins (throng-server --heartbeat-at-signal)
    #[arg(long, default_value = "0s", hide_default_value = true, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "While held")]
    idle_for: Duration,
    /// How long to hold all connections before the first message or close; --hold begins then
    #[arg(long, default_value = "0s", hide_default_value = true, value_name = "DURATION", requires = "exchange", value_parser = humantime::parse_duration, help_heading = "While held")]
    quiet_for: Duration,
    /// Stay for this long after --hold, for a broadcast to all: a stage of its own to the canaries
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "While held")]
    storm: Option<Duration>,
    /// Size of a message; with --protocol line its line end counts
    #[arg(long, default_value_t = 64, value_name = "N", requires = "exchange", value_parser = clap::value_parser!(u32).range(1..=MAX_MESSAGE_BYTES), help_heading = "While held")]
    message_bytes: u32,

    #[command(flatten)]
    canary: canary::CanaryFlags,

    /// CPUs to run on, one worker each: a list such as 0,1, or all [default: the affinity mask]
    #[arg(
        long,
        default_value = "all",
        value_name = "LIST",
        help_heading = "Process"
    )]
    cores: String,
    /// End in good order when stdin reaches its end
    #[arg(long, help_heading = "Process")]
    until_stdin_closes: bool,

    /// Write the summary as JSON to this file; -: stdout
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// Write a JSON line per sample to this file; -: stdout
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    samples: Option<PathBuf>,
    /// Write an HdrHistogram interval log to this file, a line per interval and kind of latency; -: stdout
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    hlog: Option<PathBuf>,
    /// A live view on the terminal: rates, latency, canaries; q or Ctrl-C ends the run in good order
    #[arg(long, conflicts_with = "until_stdin_closes", help_heading = "Output")]
    tui: bool,
    /// How often to sample, to end an interval of --hlog and to show progress
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Output")]
    sample_interval: Duration,
}

/// The value of `--steps`.
#[derive(Clone, Debug)]
enum Steps {
    Parts(u64),
    Levels(Vec<u64>),
}

impl std::str::FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Steps, String> {
        let number = |word: &str| {
            word.parse::<u64>().map_err(|_| {
                format!("{word:?} is no number: give how many parts, or levels such as 1000,10000")
            })
        };
        match text.contains(',') {
            false => Ok(Steps::Parts(number(text)?)),
            true => text
                .split(',')
                .map(number)
                .collect::<Result<_, _>>()
                .map(Steps::Levels),
        }
    }
}

impl Steps {
    /// How `connections` come up by them, each held for `hold` but the last.
    fn rise(self, connections: u64, hold: Duration) -> Result<Rise, String> {
        match self {
            Steps::Parts(steps) if !(2..=MAX_STEPS).contains(&steps) => {
                Err(format!("--steps {steps}: in 2 to {MAX_STEPS} parts"))
            }
            Steps::Parts(steps) if steps > connections => Err(format!(
                "--steps {steps}: {connections} connections cannot be brought up in more parts than they are; raise \
                 --connections or lower --steps"
            )),
            Steps::Parts(steps) => Ok(Rise::Steps { steps, hold }),
            Steps::Levels(levels) => {
                let rises =
                    levels.first() > Some(&0) && levels.windows(2).all(|two| two[0] < two[1]);
                if !rises || levels.len() > MOST_LEVELS || levels.last() != Some(&connections) {
                    return Err(format!(
                        "--steps: give at most {MOST_LEVELS} levels that rise from above 0 to --connections {connections}"
                    ));
                }
                Ok(Rise::Levels { levels, hold })
            }
        }
    }
}

const MAX_CONNECTIONS: u64 = 100_000_000;
const MAX_STEPS: u64 = 10_000;
const MAX_MESSAGE_BYTES: i64 = SendArena::SPAN_BYTES as i64;
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);
/// Latencies of a connection are kept in 32 bits of microseconds: 71 minutes.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const MAX_HEARTBEAT: Duration = Duration::from_secs(24 * 3600);
const MAX_HOLD: Duration = Duration::from_secs(30 * 24 * 3600);

impl Flags {
    fn resolve(self) -> Result<Config, String> {
        let shape = self.shape()?;
        let targets = self
            .targets
            .iter()
            .map(|text| resolve_target(text))
            .collect::<Result<Vec<_>, _>>()?;
        let sources = match self.source.is_empty() {
            false => resolve_sources(self.source, &targets)?,
            true => default_sources(&targets)?,
        };
        within(
            "--connect-timeout",
            self.connect_timeout,
            Duration::from_millis(1),
            MAX_CONNECT_TIMEOUT,
        )?;
        within("--hold", self.hold, Duration::ZERO, MAX_HOLD)?;
        within("--quiet-for", self.quiet_for, Duration::ZERO, MAX_HOLD)?;
        within("--idle-for", self.idle_for, Duration::ZERO, MAX_HOLD)?;
        within(
            "--sample-interval",
            self.sample_interval,
            Duration::from_millis(10),
            MAX_HOLD,
        )?;
        let heartbeat = match (self.protocol, self.heartbeat) {
            (Protocol::Echo, Some(interval)) if !interval.is_zero() => {
                return Err("--heartbeat: the echo protocol has no heartbeats; leave it out, or use --protocol line".into());
            }
            (Protocol::Echo, _) => Duration::ZERO,
            (Protocol::Line, interval) => interval.unwrap_or(DEFAULT_HEARTBEAT),
        };
        if !heartbeat.is_zero() {
            within(
                "--heartbeat",
                heartbeat,
                Duration::from_millis(10),
                MAX_HEARTBEAT,
            )?;
        }
        if heartbeat.is_zero() && !self.idle_for.is_zero() {
            return Err("--idle-for: no heartbeat begins after it; hold without one by --hold, or give a --heartbeat".into());
        }
        if self.active > self.connections {
            return Err(format!(
                "--active {}: only {} connections are asked for; raise --connections or lower --active",
                self.active, self.connections
            ));
        }
        if self.active.saturating_add(self.churn) > self.connections {
            return Err(format!(
                "--churn {}: with {} active ones there are {} connections left to churn; raise --connections or lower --churn",
                self.churn,
                self.active,
                self.connections - self.active
            ));
        }
        if self.message_rate.is_some() && self.active == 0 {
            return Err(
                "--message-rate: no connection sends; say how many do with --active".into(),
            );
        }
        if self.churn_rate.is_some() && self.churn == 0 {
            return Err("--churn-rate: no connection churns; say how many do with --churn".into());
        }
        if let Some(storm) = self.storm {
            within("--storm", storm, Duration::from_millis(10), MAX_HOLD)?;
            if self.protocol == Protocol::Echo {
                return Err("--storm: nothing but echoes is expected of an echo server; use --protocol line".into());
            }
        }
        let canary = self
            .canary
            .resolve(&targets, self.protocol == Protocol::Line)?;
        if let Some(start_at) = self.start_at {
            start::check(start_at, SystemTime::now())?;
        }
        let part = self.part;
        let whole = Config {
            canary,
            targets,
            connections: self.connections,
            sources,
            rate: self.rate,
            concurrency: self.concurrency,
            shape,
            close: self.close,
            reconnect: self.reconnect,
            connect_timeout: self.connect_timeout,
            hold: self.hold,
            protocol: self.protocol,
            heartbeat,
            active: self.active,
            message_rate: self.message_rate,
            churn: self.churn,
            churn_rate: self.churn_rate,
            idle_for: self.idle_for,
            quiet_for: self.quiet_for,
            storm: self.storm,
            message_bytes: self.message_bytes,
            part: None,
            start_at: self.start_at,
            cores: resolve_cores(&self.cores)?,
            json: self.json,
            samples: self.samples,
            hlog: self.hlog,
            sample_interval: self.sample_interval,
            until_stdin_closes: self.until_stdin_closes,
            tui: self.tui,
        };
        match part {
            Some(part) => whole.of_part(part),
            None => Ok(whole),
        }
    }

    fn shape(&self) -> Result<Shape, String> {
        let least = Duration::from_millis(1);
        for (flag, time) in [("--ramp", self.ramp), ("--ramp-down", self.ramp_down)] {
            within(flag, time.unwrap_or(least), least, MAX_HOLD)?;
        }
        within("--step-hold", self.step_hold, Duration::ZERO, MAX_HOLD)?;
        let rise = match (self.ramp, self.steps.clone()) {
            (Some(over), _) => Rise::Linear { over },
            (None, Some(steps)) => steps.rise(self.connections, self.step_hold)?,
            (None, None) => Rise::AtOnce,
        };
        Ok(Shape {
            rise,
            fall: self.ramp_down.unwrap_or(Duration::ZERO),
        })
    }
}

fn resolve_target(text: &str) -> Result<SocketAddr, String> {
    let address = text
        .to_socket_addrs()
        .map_err(|error| {
            format!("target {text:?}: {error}; it has the form HOST:PORT, such as 127.0.0.1:7000")
        })?
        .next()
        .ok_or_else(|| format!("target {text:?} has no address"))?;
    match (address.port(), address.ip().is_unspecified()) {
        (0, _) => Err(format!("target {text:?}: port 0 cannot be connected to")),
        (_, true) => Err(format!(
            "target {text:?}: name one address of the server, such as 127.0.0.1:{}",
            address.port()
        )),
        _ => Ok(address),
    }
}

fn resolve_sources(sources: Vec<Source>, targets: &[SocketAddr]) -> Result<Vec<Source>, String> {
    let interfaces = host::interface_addresses()
        .map_err(|errno| format!("the interfaces cannot be listed: {errno}"))?;
    let is_wanted = |address: IpAddr| targets.iter().any(|t| t.is_ipv4() == address.is_ipv4());
    sources
        .into_iter()
        .map(|source| source.on(&interfaces, is_wanted))
        .collect()
}

fn default_sources(targets: &[SocketAddr]) -> Result<Vec<Source>, String> {
    if let Some(target) = targets.iter().find(|t| !t.ip().is_loopback()) {
        return Err(format!(
            "--source is needed: {target} is not a loopback address, so the addresses to connect from cannot be \
             guessed; one address carries about 64,000 connections (see `ip addr`)"
        ));
    }
    let of_family = |is_ipv4| targets.iter().any(|t| t.is_ipv4() == is_ipv4);
    let ipv4 = of_family(true).then_some("127.1.0.0/16");
    let ipv6 = of_family(false).then_some("::1");
    ipv4.into_iter().chain(ipv6).map(str::parse).collect()
}

fn resolve_cores(text: &str) -> Result<Vec<usize>, String> {
    let mask = process::affinity().map_err(|error| error.to_string())?;
    if text == "all" {
        return Ok(mask);
    }
    let mut cores = Vec::new();
    for item in text.split(',') {
        let core: usize = item.trim().parse().map_err(|_| {
            format!("--cores {text}: {item:?} is no CPU number; give a list such as 0,1, or all")
        })?;
        if !mask.contains(&core) {
            return Err(format!(
                "--cores {text}: CPU {core} is not among those this process may use, {mask:?} (see taskset -p, or the container's cpuset)"
            ));
        }
        if cores.contains(&core) {
            return Err(format!("--cores {text}: CPU {core} is named twice"));
        }
        cores.push(core);
    }
    Ok(cores)
}

fn parse_part(text: &str) -> Result<Part, String> {
    let job_index = std::env::var("JOB_COMPLETION_INDEX").ok();
    Part::parse(text, job_index.as_deref())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(0.0) => Ok(0.0),
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err("it is a number of connects per second from 0.001 to 1e9, or 0".into()),
    }
}

fn parse_message_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e7).contains(&rate) => Ok(rate),
        _ => Err("it is a number of messages per second from 0.001 to 10 million".into()),
    }
}

fn parse_churn_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("it is a number of cycles per second from 0.001 to 1 million".into()),
    }
}

fn within(flag: &str, value: Duration, least: Duration, most: Duration) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(humantime::format_duration);
    Err(format!("{flag} {value}: it is between {least} and {most}"))
}

pub(crate) fn seconds<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn maybe_seconds<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    duration
        .map(|duration| duration.as_secs_f64())
        .serialize(to)
}

fn maybe_unix_seconds<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    time.map(start::unix_seconds).serialize(to)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<(Config, Plan), String> {
        let args = std::iter::once("throng-client").chain(args.split_whitespace());
        Config::parse(args.map(OsString::from)).map_err(|error| {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        })
    }

    #[test]
    fn a_target_alone_is_enough_on_loopback() {
        let (config, plan) = parse("127.0.0.1:7000").unwrap();
        assert_eq!(config.connections, 1000);
        assert_eq!(
            config.sources,
            vec!["127.1.0.0/16".parse::<Source>().unwrap()]
        );
        assert_eq!(config.heartbeat, Duration::from_secs(10));
        assert!(!config.cores.is_empty());
        assert_eq!(plan.addresses(), 1);
        let (echo, _) = parse("127.0.0.1:7000 --protocol echo --heartbeat 0 --rate 50000").unwrap();
        assert_eq!(echo.heartbeat, Duration::ZERO);
        assert_eq!(echo.rate, 50_000.0);
    }

    #[test]
    fn shapes_are_values_of_the_configuration() {
        let shape = |args: &str| parse(&format!("127.0.0.1:7000 {args}")).unwrap().0;
        let seconds = Duration::from_secs;
        let plain = shape("--rate 5");
        assert_eq!(plain.shape.rise, Rise::AtOnce);
        assert_eq!((plain.close, plain.reconnect), (Close::Rst, None));
        let linear = shape("--ramp 5s --ramp-down 2s --close fin");
        assert_eq!(linear.shape.rise, Rise::Linear { over: seconds(5) });
        assert_eq!((linear.shape.fall, linear.close), (seconds(2), Close::Fin));
        let steps =
            shape("--steps 4 --step-hold 3s --rate 100 --reconnect --churn 5 --churn-rate 7.5");
        let rise = Rise::Steps {
            steps: 4,
            hold: seconds(3),
        };
        assert_eq!(steps.shape.rise, rise);
        let levels = shape("--connections 100 --steps 1,10,100 --step-hold 3s --idle-for 2s");
        let rise = Rise::Levels {
            levels: vec![1, 10, 100],
            hold: seconds(3),
        };
        assert_eq!((levels.shape.rise, levels.idle_for), (rise, seconds(2)));
        assert_eq!(steps.reconnect.unwrap().max, seconds(30));
        assert_eq!(steps.churn_rate, Some(7.5));
        let json = serde_json::to_value(&steps).unwrap();
        assert_eq!(
            json["shape"],
            serde_json::json!({"ramp": "steps", "steps": 4, "step_hold_seconds": 3.0, "ramp_down_seconds": 0.0})
        );
    }

    #[test]
    fn the_parts_of_a_fleet_have_together_what_was_asked_for() {
        let flags = "127.0.0.1:7000 --connections 1001 --rate 900 --concurrency 100 --active 10 --message-rate 50 --churn 4 \
                     --churn-rate 8";
        let parts: Vec<Config> = (1..=3)
            .map(|number| parse(&format!("{flags} --part {number}/3")).unwrap().0)
            .collect();
        let of = |value: fn(&Config) -> u64| parts.iter().map(value).collect::<Vec<_>>();
        assert_eq!(of(|part| part.connections), [334, 334, 333]);
        assert_eq!(of(|part| part.active), [4, 3, 3]);
        assert_eq!(of(|part| part.churn), [1, 2, 1]);
        assert_eq!(of(|part| part.concurrency.into()), [34, 33, 33]);
        let sum = |value: fn(&Config) -> f64| parts.iter().map(value).sum::<f64>();
        assert!((sum(|part| part.rate) - 900.0).abs() < 1e-6);
        assert!((sum(|part| part.message_rate.unwrap()) - 50.0).abs() < 1e-6);
        assert!((sum(|part| part.churn_rate.unwrap()) - 8.0).abs() < 1e-6);
        let json = serde_json::to_value(&parts[1]).unwrap();
        assert_eq!(json["part"], serde_json::json!({"number": 2, "of": 3}));
        assert_eq!(parts[1].part.as_ref().unwrap().whole.connections, 1001);

        // A part without active ones has no rate of theirs.
        let (few, _) = parse("127.0.0.1:7000 --active 1 --message-rate 5 --part 2/2").unwrap();
        assert_eq!((few.active, few.message_rate), (0, None));
        let (steps, _) =
            parse("127.0.0.1:7000 --connections 100 --steps 10,100 --part 3/3").unwrap();
        let Rise::Levels { levels, .. } = steps.shape.rise else {
            panic!()
        };
        assert_eq!(levels, [3, 33]);
    }

    #[test]
    fn bad_input_is_refused_with_what_is_wrong() {
        for (args, expected) in [
            ("", "TARGET"),
            ("127.0.0.1", "HOST:PORT"),
            ("127.0.0.1:0", "port 0"),
            ("0.0.0.0:7000", "127.0.0.1:7000"),
            ("192.0.2.1:7000", "--source is needed"),
            ("127.0.0.1:7000 --source ::1", "IPv6"),
            ("127.0.0.1:7000 --source 127.1.0.0/33", "CIDR"),
            ("127.0.0.1:7000 --source 127.1.0.9-8", "a range goes"),
            ("127.0.0.1:7000 --source no-such0", "nor an interface"),
            ("127.0.0.1:7000 [::1]:7000 --source 127.0.0.1", "[::1]:7000"),
            (
                "127.0.0.1:7000 --source 127.0.0.1 --connections 65000",
                "source ports",
            ),
            ("127.0.0.1:7000 --connections 0", "--connections"),
            ("127.0.0.1:7000 --connections 10 --active 11", "--active 11"),
            ("127.0.0.1:7000 --rate -1", "--rate"),
            ("127.0.0.1:7000 --rate nan", "--rate"),
            ("127.0.0.1:7000 --hold soon", "--hold"),
            ("127.0.0.1:7000 --connect-timeout 0", "--connect-timeout"),
            ("127.0.0.1:7000 --concurrency 0", "--concurrency"),
            (
                "127.0.0.1:7000 --protocol echo --heartbeat 10s",
                "no heartbeats",
            ),
            ("127.0.0.1:7000 --protocol echo --storm 5s", "--storm"),
            ("127.0.0.1:7000 --storm 0s", "--storm"),
            (
                "127.0.0.1:7000 --active 1 --message-bytes 65537",
                "--message-bytes",
            ),
            ("127.0.0.1:7000 --message-bytes 64", "--active"),
            ("127.0.0.1:7000 --message-rate 100", "--active"),
            ("127.0.0.1:7000 --churn 1001", "--churn 1001"),
            (
                "127.0.0.1:7000 --connections 10 --active 6 --churn 5",
                "4 connections left",
            ),
            ("127.0.0.1:7000 --active 0 --message-rate 100", "--active"),
            (
                "127.0.0.1:7000 --active 1 --message-rate 0",
                "--message-rate",
            ),
            (
                "127.0.0.1:7000 --active 1 --message-rate -5",
                "--message-rate",
            ),
            (
                "127.0.0.1:7000 --active 1 --message-rate 1e8",
                "--message-rate",
            ),
            (
                "127.0.0.1:7000 --active 1 --message-rate inf",
                "--message-rate",
            ),
            ("127.0.0.1:7000 --ramp 0s", "--ramp 0s"),
            ("127.0.0.1:7000 --ramp 5s --rate 100", "--rate"),
            ("127.0.0.1:7000 --ramp 5s --steps 2", "--steps"),
            ("127.0.0.1:7000 --steps 1", "--steps"),
            ("127.0.0.1:7000 --steps 10,x", "\"x\""),
            (
                "127.0.0.1:7000 --connections 10 --steps 5,5,10",
                "levels that rise",
            ),
            (
                "127.0.0.1:7000 --connections 10 --steps 5,9",
                "to --connections 10",
            ),
            ("127.0.0.1:7000 --heartbeat 0s --idle-for 1s", "--idle-for"),
            (
                "127.0.0.1:7000 --steps 11 --connections 10",
                "lower --steps",
            ),
            ("127.0.0.1:7000 --step-hold 1s", "--steps"),
            ("127.0.0.1:7000 --ramp-down 31days", "--ramp-down"),
            ("127.0.0.1:7000 --close politely", "--close"),
            ("--reconnect 127.0.0.1:7000", "MIN..MAX"),
            ("127.0.0.1:7000 --reconnect 5s", "MIN..MAX"),
            ("127.0.0.1:7000 --reconnect 5s..1s", "MAX from MIN"),
            ("127.0.0.1:7000 --churn-rate 5", "--churn"),
            ("127.0.0.1:7000 --churn 0 --churn-rate 5", "--churn-rate"),
            ("127.0.0.1:7000 --churn 5 --churn-rate 0", "--churn-rate"),
            (
                "127.0.0.1:7000 --source 127.0.0.1 --connections 64511 --churn 5 --close fin",
                "--close rst",
            ),
            ("127.0.0.1:7000 --part 4/3", "counted from 1 to 3"),
            ("127.0.0.1:7000 --part 3", "I/N"),
            (
                "127.0.0.1:7000 --connections 2 --part 1/3",
                "fewer than 3 parts",
            ),
            (
                "127.0.0.1:7000 --connections 10 --steps 1,10 --part 1/3",
                "each level",
            ),
            (
                "127.0.0.1:7000 --connections 10 --steps 9,10 --part 1/3",
                "each level",
            ),
            (
                "127.0.0.1:7000 --source lo --source 127.1.0.0/16 --part 1/3",
                "not both",
            ),
            ("127.0.0.1:7000 --start-at noon", "--start-at"),
            ("127.0.0.1:7000 --start-at 1000000000", "ago"),
            ("127.0.0.1:7000 --start-at 9999-01-01T00:00:00Z", "ahead"),
            ("127.0.0.1:7000 --cores 9999", "CPU 9999"),
            ("127.0.0.1:7000 --cores 0,x", "\"x\""),
            ("127.0.0.1:7000 --cores 0,0", "twice"),
            ("127.0.0.1:7000 --quickly", "--quickly"),
        ] {
            let error = parse(args).expect_err(args);
            assert!(error.contains(expected), "{args}: {error}");
        }
    }
}
