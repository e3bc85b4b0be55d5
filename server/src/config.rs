//! From flags to a [`Config`] that can be started: everything that can be refused is refused here.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kernel_tuning::process;
use nix::unistd::geteuid;
use ring::Descriptors;
use serde::Serialize;
use thiserror::Error;

use crate::admin::{Address, Socket};
use crate::admission::Bounds;
use crate::conn::Limits;
use crate::control::Control;
use crate::drain::Drain;
use crate::engine::EngineKind;
use crate::listener::{GivenError, Inherited, check, from_environment};
use crate::log::Format;
use crate::notify::Manager;
use crate::privileges::Identity;
use crate::takeover::{Predecessor, TakeoverError};
use crate::timeouts::Timeouts;

/// Everything a server needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0 takes one from the kernel.
    pub listen: SocketAddr,
    /// What carries the connections.
    pub engine: EngineKind,
    /// A worker is pinned to each of these; a core named twice gets two.
    pub cores: Vec<usize>,
    /// Time between heartbeats of one connection.
    pub heartbeat: Option<Duration>,
    /// No heartbeat is said before [`crate::worker::Command::Beat`].
    pub heartbeat_waits: bool,
    /// Who may come in, over all workers; the others are accepted and closed. With `max_per_source` the descriptors must be
    /// ordinary ones.
    pub bounds: Bounds,
    /// While less memory than this is left, nobody may come in; 0 for whatever there is.
    pub memory_reserve_bytes: u64,
    /// Who the process is from the time on at which its port is bound.
    pub identity: Option<Identity>,
    /// What those are told, as far as their sockets take it at once; nothing where it is empty. Cut off after
    /// [`Config::MAX_REFUSAL_BYTES`].
    pub refusal: Vec<u8>,
    /// Share the port with other processes.
    pub reuse_port: bool,
    /// Accepted connections the kernel keeps for each worker.
    pub backlog: u32,
    /// Bounds on waiting bytes.
    pub limits: Limits,
    /// Bounds on a peer's silence.
    pub timeouts: Timeouts,
    /// What connections inherit from their listener.
    pub inherited: Inherited,
    /// How long connections may take to go after the stop ([`drain`](crate::drain)); those that are left are closed towards
    /// its end.
    pub drain_timeout: Duration,
    /// What they are told then, evenly over the first quarter of it; nothing where it is empty.
    pub farewell: Vec<u8>,
    /// A worker that does not turn for so long ends the server with an error; never without.
    pub stall_timeout: Option<Duration>,
    /// Who is told how it goes.
    pub manager: Option<Arc<Manager>>,
    /// What an io_uring connection costs: an entry of a table, or a file descriptor.
    pub descriptors: Descriptors,
    /// Direct descriptors in each table of a worker: at most RLIMIT_NOFILE, at most 1 << 20.
    pub table_slots: u32,
    /// Somebody may ask for connections and where they come from: direct descriptors can then be asked by ordinary ones.
    pub is_inspected: bool,
    /// Sizes of the rings; none for the default.
    pub ring_sizes: RingSizes,
}

/// Sizes of a worker's rings, of engines that have rings of Throng's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingSizes {
    /// Entries of a completion queue: at most 65,536. What does not fit waits in the kernel, which costs time.
    pub cq_entries: Option<u32>,
    /// Receive buffers: connections read from in one turn. Others wait for a buffer.
    pub recv_buffers: Option<u16>,
}

impl Config {
    /// Connections that wait to be accepted, for each worker.
    pub const BACKLOG: u32 = 4096;
    /// The largest table the kernel allows (IORING_MAX_FIXED_FILES).
    pub const MAX_TABLE_SLOTS: u32 = 1 << 20;
    /// The longest refusal: it fits the buffer of any new socket.
    pub const MAX_REFUSAL_BYTES: usize = 1024;

    /// A configuration with everything else at its default.
    pub fn new(listen: SocketAddr, engine: EngineKind, cores: Vec<usize>) -> Config {
        let nofile = process::Nofile::read().map_or(1024, |n| n.soft);
        Config {
            listen,
            engine,
            cores,
            heartbeat: None,
            heartbeat_waits: false,
            bounds: Bounds::default(),
            memory_reserve_bytes: 0,
            identity: None,
            refusal: Vec::new(),
            reuse_port: false,
            backlog: Self::BACKLOG,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            inherited: Inherited::default(),
            drain_timeout: Drain::DEFAULT_TIMEOUT,
            farewell: Vec::new(),
            stall_timeout: Some(Duration::from_secs(10)),
            manager: None,
            descriptors: Descriptors::Direct,
            table_slots: nofile.min(u64::from(Self::MAX_TABLE_SLOTS)) as u32,
            is_inspected: false,
            ring_sizes: RingSizes::default(),
        }
    }
}

/// What is said on a connection, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A greeting, each line echoed, `quit` closes, a heartbeat
    Line,
    /// Every byte back, no greeting
    Echo,
}

/// `--engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// io_uring where it works, else epoll
    Auto,
    /// io_uring: no file descriptor per connection
    Uring,
    /// epoll: one file descriptor per connection
    Epoll,
    /// the tokio-uring crate, for comparison: a file descriptor, a task and a 4 KiB buffer per connection
    TokioUring,
}

/// `--descriptors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DescriptorChoice {
    /// direct where a test at start shows that this kernel releases them, else fd
    Auto,
    /// an entry of a ring's table: no file descriptor per connection
    Direct,
    /// a file descriptor per connection
    Fd,
}

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7000);

const EXAMPLES: &str = "\
Examples:
  throng-server                                      line protocol, a worker on every core
  throng-server --protocol echo --cores 0            echo on one core
  throng-server --listen [::]:7000 --heartbeat 30s   all addresses, a heartbeat every 30 s
  throng-server --engine epoll --max-connections 10000
  throng-server --max-connections 10000 --refusal 'busy, try later' --idle-timeout 5m
  throng-server --canary-port 7001                   answers the client's --canary too
  throng-server --admin 127.0.0.1:7070               metrics, health, status and connections over HTTP
  throng-server ctl status                           asks that; see throng-server ctl --help
  throng-server --control /run/throng --takeover /run/throng   in place of the one that runs, and none is refused

Listening sockets that a service manager has opened (LISTEN_FDS, systemd.socket(5)) are served on.

SIGINT or SIGTERM: stops accepting, tells the clients (line: `bye`), waits for them to go for --drain-timeout, closes
those that are left, prints a summary. A second one: closes at once.
Exit status: 0 ended in good order; 1 failed while running, a dead worker included; 2 bad usage.";

/// Holds very many TCP connections: io_uring or epoll, one pinned worker per core.
#[derive(Debug, Parser)]
#[command(name = "throng-server", version, after_help = EXAMPLES)]
pub struct Flags {
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:7000, or where the given sockets listen]
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "What it serves")]
    pub listen: Option<SocketAddr>,
    /// Take the listening sockets over of the server whose --control is this, which drains then
    #[arg(long, value_name = "PATH", help_heading = "What it serves")]
    pub takeover: Option<PathBuf>,
    /// What is said on a connection
    #[arg(long, value_enum, default_value_t = Protocol::Line, help_heading = "What it serves")]
    pub protocol: Protocol,
    /// Time between the heartbeats of a connection (line only) [default: 10s; 0 = none]
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "What it serves")]
    pub heartbeat: Option<Duration>,
    /// Begin with the heartbeats at SIGUSR2 only, so that connections can be held without and then with them
    #[arg(long, help_heading = "What it serves")]
    pub heartbeat_at_signal: bool,
    /// Share the port with other processes that do the same (SO_REUSEPORT)
    #[arg(long, help_heading = "What it serves")]
    pub reuse_port: bool,
    /// Answer the client's canaries (UDP and TCP) on this port too, from a thread of its own; 0 takes a free one
    #[arg(long, value_name = "PORT", help_heading = "What it serves")]
    pub canary_port: Option<u16>,
    /// What carries the connections
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto, help_heading = "How it serves")]
    pub engine: EngineChoice,
    /// What a connection costs with io_uring
    #[arg(long, value_enum, default_value_t = DescriptorChoice::Auto, help_heading = "How it serves")]
    pub descriptors: DescriptorChoice,
    /// Direct descriptors in each table of a worker [default and most: what RLIMIT_NOFILE and the kernel allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..), help_heading = "How it serves")]
    pub table_slots: Option<u32>,
    /// Accepted connections that wait for each worker, at most net.core.somaxconn; what comes beyond is put off by the kernel
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_535), default_value_t = Config::BACKLOG, help_heading = "How it serves")]
    pub backlog: u32,
    /// Completions that a ring keeps before they wait in the kernel [default: one for each slot of a table, at most 65536]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=65_536), help_heading = "How it serves")]
    pub cq_entries: Option<u32>,
    /// Receive buffers of a worker, 32 KiB each, of those an io_uring connection takes one only while it is read [default: 256]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32_768), help_heading = "How it serves")]
    pub recv_buffers: Option<u16>,
    /// Cores to pin a worker to: a list such as 0,1, or all of the affinity mask
    #[arg(
        long,
        value_name = "LIST",
        default_value = "all",
        help_heading = "How it serves"
    )]
    pub cores: Cores,
    /// Hold at most this many connections; more are accepted, closed and counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Who may come in")]
    pub max_connections: Option<u64>,
    /// Hold at most this many from one IPv4 address or IPv6 /64 network; io_uring then takes a file descriptor per connection (RLIMIT_NOFILE bounds them)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Who may come in")]
    pub max_per_source: Option<u32>,
    /// Let in at most this many a second, and as many at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Who may come in")]
    pub accept_rate: Option<u32>,
    /// Let nobody in while less memory is left than so many MiB, of the host's or the control group's, or little of tcp_mem; 0 = whatever there is
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 64,
        help_heading = "Who may come in"
    )]
    pub memory_reserve: u64,
    /// Be this user once the port is bound: NAME or UID, and :GROUP or :GID
    #[arg(long, value_name = "USER", help_heading = "What it may do")]
    pub user: Option<Identity>,
    /// Make no system call that a running server does not need (seccomp); one that is made all the same ends the process
    #[arg(long, help_heading = "What it may do")]
    pub sandbox: bool,
    /// What those are told before they are closed, followed by a line end [default: nothing]
    #[arg(long, value_name = "TEXT", help_heading = "Who may come in")]
    pub refusal: Option<String>,
    /// Close a connection from which nothing was received for this long [default: none]
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0", hide_default_value = true, help_heading = "How it serves")]
    pub idle_timeout: Duration,
    /// Close a connection whose peer took nothing of what waits for it for this long; 0 = never
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s", help_heading = "How it serves")]
    pub write_timeout: Duration,
    /// At SIGTERM: how long clients may take to go; those that are left are closed evenly in its last quarter
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", help_heading = "How it ends")]
    pub drain_timeout: Duration,
    /// End with an error when a worker does nothing for this long; 0 = never
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s", help_heading = "How it ends")]
    pub stall_timeout: Duration,
    /// Probe an idle connection after this long, so that a peer that has vanished is found out [default: not]
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0", hide_default_value = true, help_heading = "How it serves")]
    pub keepalive: Duration,
    /// Give up a connection that acknowledges or takes nothing of what was sent, or no probe, for this long, also after the
    /// server has closed it (TCP_USER_TIMEOUT) [default: as the host says]
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0", hide_default_value = true, help_heading = "How it serves")]
    pub user_timeout: Duration,
    /// Keep at most so many KiB in the kernel of what a connection's peer has not taken; what is more waits in the server,
    /// where --write-timeout and the bounds on waiting bytes see it [default: as the host says, net.ipv4.tcp_wmem]
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(4..=1_048_576), help_heading = "How it serves")]
    pub send_buffer: Option<u32>,
    /// Take commands from a unix socket here: `broadcast TEXT`, `broadcast over 5s TEXT`, `held`
    #[arg(long, value_name = "PATH", help_heading = "What it broadcasts")]
    pub control: Option<PathBuf>,
    /// What every connection is told at SIGUSR1, followed by a line end
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "broadcast",
        help_heading = "What it broadcasts"
    )]
    pub broadcast: String,
    /// The time over which SIGUSR1 tells them, evenly [default: at once]
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0", hide_default_value = true, help_heading = "What it broadcasts")]
    pub broadcast_over: Duration,
    /// Waste so many percent of the CPU time that is used, with --protocol echo
    #[cfg(feature = "burn")]
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 0,
        help_heading = "How it serves"
    )]
    pub burn: u8,
    /// Panic at the line `panic`, stall at the line `stall`, with --protocol line
    #[cfg(feature = "burn")]
    #[arg(long, help_heading = "How it serves")]
    pub faults: bool,
    /// Answer /metrics, /healthz, /readyz, /status, /connections and a status page over HTTP here: an address and port, or
    /// the path of a unix socket. Whoever reaches it may list and close connections
    #[arg(long, value_name = "ADDRESS:PORT|PATH", help_heading = "What it says")]
    pub admin: Option<Address>,
    /// How lines of the log are written; RUST_LOG says which (default: warn)
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = "What it says")]
    pub log: Format,
    /// Write the summary to this file too, with more in it
    #[arg(long, value_name = "FILE", help_heading = "What it says")]
    pub json: Option<PathBuf>,
    /// End, as by SIGTERM, when standard input closes: a parent's death then ends the server too
    #[arg(long, help_heading = "How it ends")]
    pub until_stdin_closes: bool,
}

/// `--cores`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The affinity mask.
    All,
    /// These.
    List(Vec<usize>),
}

impl std::str::FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Cores, String> {
        if text == "all" {
            return Ok(Cores::All);
        }
        text.split(',')
            .map(|part| {
                part.trim().parse().map_err(|_| {
                    format!("`{part}` is not a core: give a list such as 0,1, or `all`")
                })
            })
            .collect::<Result<_, _>>()
            .map(Cores::List)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}: give a time such as 500ms or 10s"))
}

/// Why flags cannot be served. Exit status 2.
#[derive(Debug, Error)]
pub enum UsageError {
    /// The command line's own errors, help and version included.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// A heartbeat for a protocol without.
    #[error("--heartbeat goes with --protocol line: echo says nothing of its own")]
    HeartbeatWithEcho,
    /// A signal for nothing.
    #[error(
        "--heartbeat-at-signal: there is no heartbeat to begin with; it goes with --protocol line and --heartbeat TIME"
    )]
    NoHeartbeatToBegin,
    /// A time nobody can keep.
    #[error("{0} must be at least 10ms (or 0 for none)")]
    TooShort(&'static str),
    /// Nobody can say where a direct descriptor comes from.
    #[error(
        "--max-per-source asks each connection where it comes from, which direct descriptors cannot say: use --descriptors fd"
    )]
    NoSource,
    /// The user cannot be taken on.
    #[error("--user: only root may become another user; start as root, or without it")]
    NotRoot,
    /// The kernel takes no other.
    #[error("--keepalive must be between 1s and 32767s (or 0 for none)")]
    Keepalive,
    /// A worker that is idle turns twice a second.
    #[error(
        "--stall-timeout must be at least 1s (or 0 for none): an idle worker turns twice a second"
    )]
    StallTimeout,
    /// A refusal that a new socket might not take at once.
    #[error("--refusal has {0} bytes: at most {most} go out without waiting", most = Config::MAX_REFUSAL_BYTES - 1)]
    RefusalTooLong(usize),
    /// A table larger than can be had.
    #[error(
        "--table-slots {wanted}: RLIMIT_NOFILE and the kernel allow {most} in a table; raise the hard limit (ulimit -Hn) or use fewer"
    )]
    TableSlots {
        /// What was asked for.
        wanted: u32,
        /// What there can be.
        most: u32,
    },
    /// Tables for an engine without.
    #[error("--table-slots goes with --engine uring: the others have no tables")]
    NoTables,
    /// A table whose slots are file descriptors.
    #[error(
        "--table-slots goes with direct descriptors; a file descriptor per connection, as here, is bounded by RLIMIT_NOFILE (ulimit -n)"
    )]
    NoTableOfFiles,
    /// Sizes of rings for an engine without.
    #[error(
        "--cq-entries and --recv-buffers go with --engine uring: the others have no rings to size"
    )]
    NoRings,
    /// The responder and the server on one port.
    #[error("--canary-port {0} is the port of --listen: choose another, or 0 for a free one")]
    CanaryPort(u16),
    /// A core outside the affinity mask.
    #[error(
        "core {core} is not in this process's affinity mask {mask:?}: choose from those (see `taskset -p $$`)"
    )]
    Core {
        /// The core.
        core: usize,
        /// The mask.
        mask: Vec<usize>,
    },
    /// The mask cannot be read.
    #[error("the affinity mask cannot be read: {0}")]
    Mask(#[from] process::ProcessError),
    /// The summary cannot be written.
    #[error("{path} cannot be written: {error}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The control socket cannot be opened.
    #[error("no control socket at {path}: {error}")]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The admin side cannot be opened.
    #[error("--admin {address}: {error}{}", hint(.address, .error))]
    Admin {
        /// Where.
        address: Address,
        /// Why.
        error: std::io::Error,
    },
    /// The admin side and the server on one port.
    #[error(
        "--admin {0} is where connections are served: choose another port, or 0 for a free one"
    )]
    AdminPort(SocketAddr),
    /// Nothing was taken over.
    #[error("--takeover: {0}")]
    Takeover(#[from] TakeoverError),
    /// Given sockets that cannot be served on.
    #[error("the sockets given {by}: {error}")]
    Given {
        /// By whom.
        by: String,
        /// Why.
        error: GivenError,
    },
    /// Which are to be served on?
    #[error("sockets are given by LISTEN_FDS, and --takeover asks for others: use one of the two")]
    GivenTwice,
    /// It would end them for everybody.
    #[error(
        "--engine tokio-uring cannot serve on given sockets (LISTEN_FDS, --takeover): it ends its accepts by shutting its \
         sockets down, for whoever has them; use uring or epoll"
    )]
    GivenToTokio,
    /// io_uring was asked for and is not to be had.
    #[error("io_uring cannot be used: {0}; to do without it, use --engine epoll")]
    NoUring(#[from] ring::Unavailable),
}

/// What the flags come to.
pub struct Resolved {
    /// The server's configuration.
    pub config: Config,
    /// What is said.
    pub protocol: Protocol,
    /// Direct descriptors do not release their sockets on this kernel, so ordinary ones are used.
    pub leaks: bool,
    /// Why `--engine auto` did not take io_uring.
    pub fallback: Option<ring::Unavailable>,
    /// Listening sockets to serve on; none where they are to be bound.
    pub sockets: Vec<TcpListener>,
    /// The server they are taken over from.
    pub predecessor: Option<Predecessor>,
    /// Where canaries are answered.
    pub canary_port: Option<u16>,
    /// Where the summary goes.
    pub json: Option<(PathBuf, std::fs::File)>,
    /// Whether system calls are filtered.
    pub sandbox: bool,
    /// Where the admin side listens.
    pub admin: Option<Socket>,
    /// How the log is written.
    pub log: Format,
    /// Where commands come from.
    pub control: Option<(Control, UnixListener)>,
    /// What SIGUSR1 tells every connection, and over which time.
    pub broadcast: (Vec<u8>, Duration),
    /// Whether standard input is a lifeline.
    pub until_stdin_closes: bool,
    /// How much CPU time is wasted, in percent of what is used.
    #[cfg(feature = "burn")]
    pub burn: u8,
    /// Whether two lines break it.
    #[cfg(feature = "burn")]
    pub faults: bool,
}

/// Reads and checks the command line. The soft limit of open files is raised to the hard one first: it
/// bounds the tables.
///
/// # Errors
/// What is wrong with it.
pub fn resolve(args: impl Iterator<Item = OsString>) -> Result<Resolved, UsageError> {
    let flags = Flags::try_parse_from(args)?;
    let given = from_environment().map_err(|error| UsageError::Given {
        by: "by LISTEN_FDS".into(),
        error,
    });
    let heartbeat = match (flags.protocol, flags.heartbeat) {
        (Protocol::Echo, Some(every)) if !every.is_zero() => {
            return Err(UsageError::HeartbeatWithEcho);
        }
        (Protocol::Echo, _) => None,
        (Protocol::Line, every) => {
            Some(every.unwrap_or(Duration::from_secs(10))).filter(|e| !e.is_zero())
        }
    };
    if flags.heartbeat_at_signal && heartbeat.is_none() {
        return Err(UsageError::NoHeartbeatToBegin);
    }
    let timeouts = Timeouts {
        idle: Some(flags.idle_timeout).filter(|t| !t.is_zero()),
        write: Some(flags.write_timeout).filter(|t| !t.is_zero()),
    };
    let inherited = Inherited {
        keepalive: Some(flags.keepalive).filter(|t| !t.is_zero()),
        user_timeout: Some(flags.user_timeout).filter(|t| !t.is_zero()),
        send_buffer_bytes: flags.send_buffer.map(|kib| kib as usize * 1024),
    };
    // The kernel's bounds (tcp(7)): whole seconds, and those of a signed 16-bit number.
    let seconds = 1.0..=32_767.0;
    if inherited
        .keepalive
        .is_some_and(|t| !seconds.contains(&t.as_secs_f64()))
    {
        return Err(UsageError::Keepalive);
    }
    for (flag, time) in [
        ("--user-timeout", inherited.user_timeout),
        ("--heartbeat", heartbeat),
        ("--idle-timeout", timeouts.idle),
        ("--write-timeout", timeouts.write),
    ] {
        if time.is_some_and(|time| time < Duration::from_millis(10)) {
            return Err(UsageError::TooShort(flag));
        }
    }
    let stall_timeout = Some(flags.stall_timeout).filter(|t| !t.is_zero());
    if stall_timeout.is_some_and(|t| t < Duration::from_secs(1)) {
        return Err(UsageError::StallTimeout);
    }
    let refusal = flags
        .refusal
        .map_or(Vec::new(), |text| format!("{text}\n").into_bytes());
    if refusal.len() > Config::MAX_REFUSAL_BYTES {
        return Err(UsageError::RefusalTooLong(refusal.len() - 1));
    }
    let mask = process::affinity()?;
    let cores = match flags.cores {
        Cores::All => mask,
        Cores::List(cores) => match cores.iter().find(|core| !mask.contains(core)) {
            Some(&core) => return Err(UsageError::Core { core, mask }),
            None => cores,
        },
    };
    if let Some(user) = flags.user
        && !geteuid().is_root()
        && geteuid() != user.uid
    {
        return Err(UsageError::NotRoot);
    }
    // Open from now on: it could not be opened by another user, or in the sandbox.
    let json = match flags.json {
        None => None,
        Some(path) => match std::fs::File::create(&path) {
            Ok(file) => Some((path, file)),
            Err(error) => return Err(UsageError::Json { path, error }),
        },
    };
    process::raise_nofile()?;
    let releases = || ring::probe().and_then(|()| ring::direct_descriptors_release());
    let (engine, releases, fallback) = match flags.engine {
        EngineChoice::Epoll => (EngineKind::Epoll, true, None),
        EngineChoice::TokioUring => {
            ring::probe()?;
            (EngineKind::TokioUring, true, None)
        }
        EngineChoice::Uring => (EngineKind::Uring, releases()?, None),
        EngineChoice::Auto => match releases() {
            Ok(releases) => (EngineKind::Uring, releases, None),
            Err(why) => (EngineKind::Epoll, true, Some(why)),
        },
    };
    let (descriptors, leaks) = match (engine, flags.descriptors) {
        // A direct descriptor has no address that could be asked for at once before Linux 6.19.
        (EngineKind::Uring, DescriptorChoice::Direct) if flags.max_per_source.is_some() => {
            return Err(UsageError::NoSource);
        }
        (EngineKind::Uring, _) if flags.max_per_source.is_some() => (Descriptors::Ordinary, false),
        (EngineKind::Uring, DescriptorChoice::Fd) => (Descriptors::Ordinary, false),
        (EngineKind::Uring, DescriptorChoice::Auto) if !releases => (Descriptors::Ordinary, true),
        _ => (Descriptors::Direct, false),
    };
    let (mut sockets, mut predecessor, mut by) = (given?, None, "by LISTEN_FDS".to_owned());
    let is_given = flags.takeover.is_some() || !sockets.is_empty();
    if is_given && engine == EngineKind::TokioUring {
        return Err(UsageError::GivenToTokio);
    }
    if let Some(path) = &flags.takeover {
        if !sockets.is_empty() {
            return Err(UsageError::GivenTwice);
        }
        let (server, theirs) = Predecessor::ask(path)?;
        (sockets, predecessor) = (theirs, Some(server));
        by = format!("by the server at {}", path.display());
    }
    let listen = match is_given {
        false => flags.listen.unwrap_or(DEFAULT_LISTEN),
        true => check(&sockets, flags.listen, &cores)
            .map_err(|error| UsageError::Given { by, error })?,
    };
    if let Some(port) = flags.canary_port
        && port != 0
        && port == listen.port()
    {
        return Err(UsageError::CanaryPort(port));
    }
    let admin = match &flags.admin {
        None => None,
        Some(address) => Some(admin(
            address,
            listen,
            flags.canary_port,
            predecessor.as_mut(),
        )?),
    };
    let control = match flags.control {
        None => None,
        Some(path) => {
            let shared = flags.takeover.filter(|old| is_same_file(old, &path));
            let theirs = predecessor.as_mut().filter(|_| shared.is_some());
            Some(match theirs.and_then(Predecessor::take_control) {
                Some(listener) => (Control::inherited(&path), listener),
                None => {
                    Control::bind(&path).map_err(|error| UsageError::Control { path, error })?
                }
            })
        }
    };
    let config = Config::new(listen, engine, cores);
    let most = config.table_slots;
    let table_slots = match flags.table_slots {
        Some(_) if engine != EngineKind::Uring => return Err(UsageError::NoTables),
        // Its numbers are the kernel's, from all that are open.
        Some(_) if descriptors == Descriptors::Ordinary => return Err(UsageError::NoTableOfFiles),
        Some(wanted) if wanted > most => return Err(UsageError::TableSlots { wanted, most }),
        wanted => wanted.unwrap_or(most),
    };
    let ring_sizes = RingSizes {
        cq_entries: flags.cq_entries,
        recv_buffers: flags.recv_buffers,
    };
    if engine != EngineKind::Uring && ring_sizes != RingSizes::default() {
        return Err(UsageError::NoRings);
    }
    Ok(Resolved {
        leaks,
        config: Config {
            descriptors,
            heartbeat,
            heartbeat_waits: flags.heartbeat_at_signal,
            timeouts,
            inherited,
            drain_timeout: flags.drain_timeout,
            farewell: match flags.protocol {
                Protocol::Line => wire::line::FAREWELL.to_vec(),
                Protocol::Echo => Vec::new(),
            },
            stall_timeout,
            bounds: Bounds {
                max_connections: flags.max_connections,
                max_per_source: flags.max_per_source,
                accept_rate: flags.accept_rate,
            },
            memory_reserve_bytes: flags.memory_reserve.saturating_mul(1 << 20),
            identity: flags.user,
            refusal,
            reuse_port: flags.reuse_port,
            table_slots,
            is_inspected: admin.is_some(),
            ring_sizes,
            backlog: flags.backlog,
            ..config
        },
        protocol: flags.protocol,
        fallback,
        sockets,
        predecessor,
        canary_port: flags.canary_port,
        json,
        sandbox: flags.sandbox,
        admin,
        log: flags.log,
        control,
        broadcast: (
            format!("{}\n", flags.broadcast).into_bytes(),
            flags.broadcast_over,
        ),
        until_stdin_closes: flags.until_stdin_closes,
        #[cfg(feature = "burn")]
        burn: flags.burn,
        #[cfg(feature = "burn")]
        faults: flags.faults,
    })
}

/// Opens the admin side, or takes over that of the `predecessor`, where it is the same.
fn admin(
    address: &Address,
    listen: SocketAddr,
    canary_port: Option<u16>,
    predecessor: Option<&mut Predecessor>,
) -> Result<Socket, UsageError> {
    if let Address::Tcp(at) = *address {
        let is_same_host =
            at.ip() == listen.ip() || at.ip().is_unspecified() || listen.ip().is_unspecified();
        let is_taken = at.port() == listen.port() || Some(at.port()) == canary_port;
        if at.port() != 0 && is_same_host && is_taken {
            return Err(UsageError::AdminPort(at));
        }
    }
    if let Some(theirs) = predecessor.and_then(|server| server.take_admin(address)) {
        return Ok(theirs);
    }
    Socket::bind(address).map_err(|error| UsageError::Admin {
        address: address.clone(),
        error,
    })
}

fn hint(address: &Address, error: &std::io::Error) -> &'static str {
    match (error.kind(), address) {
        (std::io::ErrorKind::AddrInUse, Address::Tcp(_)) => {
            "; choose another, or port 0 for a free one (`ss -ltnp` says who has it)"
        }
        (std::io::ErrorKind::AddrInUse, Address::Unix(_)) => {
            "; something is there: choose another path"
        }
        (std::io::ErrorKind::AddrNotAvailable, _) => {
            "; this host has no such address (`ip address`)"
        }
        (std::io::ErrorKind::NotFound, _) => "; make the directory first",
        (std::io::ErrorKind::PermissionDenied, _) => "; choose what this user may open",
        _ => "",
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(flags: &str) -> String {
        let args = format!("throng-server {flags}");
        match resolve(args.split_whitespace().map(OsString::from)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("`{flags}` was taken"),
        }
    }

    #[test]
    fn bad_usage_is_refused_with_the_reason() {
        assert!(refused("--protocol echo --heartbeat 5s").contains("--protocol line"));
        assert!(refused("--heartbeat 1ms").contains("at least 10ms"));
        assert!(refused("--heartbeat 0 --heartbeat-at-signal").contains("--heartbeat TIME"));
        assert!(refused("--idle-timeout 1ms").contains("--idle-timeout"));
        assert!(refused("--stall-timeout 10ms").contains("at least 1s"));
        assert!(refused("--write-timeout soon").contains("500ms"));
        assert!(refused("--cores 4096").contains("affinity mask"));
        assert!(refused("--cores 0,x").contains("not a core"));
        assert!(refused("--listen nowhere").contains("--listen"));
        assert!(refused("--canary-port 7000").contains("--canary-port"));
        assert!(refused("--admin 7070").contains("ADDRESS:PORT"));
        assert!(refused("--admin 127.0.0.1:7000").contains("choose another port"));
        assert!(refused("--admin 0.0.0.0:7001 --canary-port 7001").contains("choose another port"));
        assert!(refused("--admin /nonexistent/admin").contains("make the directory first"));
        assert!(refused("--log xml").contains("json"));
        assert!(refused("--max-connections 0").contains("--max-connections"));
        assert!(refused("--max-per-source 0").contains("--max-per-source"));
        assert!(refused("--keepalive 500ms").contains("1s"));
        assert!(refused("--user-timeout 1ms").contains("--user-timeout"));
        assert!(refused("--accept-rate 0").contains("--accept-rate"));
        assert!(refused("--user root").contains("ordinary"));
        let long = format!("--max-connections 1 --refusal {}", "x".repeat(1024));
        assert!(refused(&long).contains("at most 1023"));
        assert!(refused("--json /nonexistent/x.json").contains("cannot be written"));
        assert!(refused("--engine kqueue").contains("uring"));
        assert!(refused("--engine epoll --table-slots 64").contains("--engine uring"));
        assert!(refused("--table-slots 63").contains("--table-slots"));
        if ring::probe().is_ok() {
            assert!(
                refused("--engine uring --descriptors direct --max-per-source 1").contains("fd")
            );
            assert!(refused("--engine uring --table-slots 4000000000").contains("RLIMIT_NOFILE"));
        }
    }
}
