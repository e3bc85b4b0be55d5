//! The server processes of one engine: one, or several on one port where open files are scarce.
//!
//! Invariant: when this exists all of them are ready on the same address.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kernel_tuning::process::{ProcessError, ProcessMemory, Usage};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::peer::PeerName;
use crate::peer::guard;
use crate::peer::tree;
use crate::result::Failure;
use crate::runner::{Child, Launcher, Next};
use crate::scenario::{Engine, Protocol};
use crate::stop::{Stop, TICK};

/// A server answers within milliseconds; on a machine with other load it may take its time.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// What never was ready has little to close.
const CLOSES_WITHIN: Duration = Duration::from_secs(2);
/// Closing 100,000 connections takes some seconds.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// The running server processes of one engine.
#[derive(Debug)]
pub struct Servers {
    processes: Vec<Child>,
    address: SocketAddr,
    canary: Option<SocketAddr>,
    /// The one process is a peer's guard; what the peer uses is what the guard's descendants do.
    is_peer: bool,
    /// A peer that failed a measurement is measured no more.
    is_out: bool,
}

impl Servers {
    /// Starts `count` processes and waits until all are ready.
    ///
    /// # Errors
    /// When one does not become ready; those already running are ended.
    pub fn start(
        launcher: &Launcher,
        engine: Engine,
        protocol: Protocol,
        count: usize,
        cores: &[usize],
        stop: &Stop,
    ) -> Result<Self, Failure> {
        Self::start_with(launcher, engine, protocol, count, cores, stop, &[])
    }

    /// As [`Servers::start`], with further flags of the server.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        launcher: &Launcher,
        engine: Engine,
        protocol: Protocol,
        count: usize,
        cores: &[usize],
        stop: &Stop,
        flags: &[String],
    ) -> Result<Self, Failure> {
        if let Engine::Peer(name) = engine {
            return Self::start_peer(launcher, name, cores, stop);
        }
        let arguments = |listen: &str| {
            let mut args = arguments(engine, protocol, count, cores, listen);
            args.extend(flags.iter().map(OsString::from));
            args
        };
        let what = format!("the {engine} server");
        Self::start_all(launcher, "server", arguments, count, &what, stop)
    }

    /// Starts `count` processes that accept and keep connections and do nothing else (see [`crate::bare`]), and waits
    /// until all are ready.
    ///
    /// # Errors
    /// As [`Servers::start`].
    pub fn start_bare(
        launcher: &Launcher,
        count: usize,
        cores: &[usize],
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let arguments = |listen: &str| {
            let args = shared_arguments(count, cores, listen).into_iter();
            args.map(OsString::from).collect()
        };
        Self::start_all(launcher, "bare", arguments, count, "the bare server", stop)
    }

    fn start_peer(
        launcher: &Launcher,
        name: PeerName,
        cores: &[usize],
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let during = format!("starting the peer {name}");
        let command = launcher.peer_command(name).ok_or_else(|| Failure {
            during: during.clone(),
            cause: "the plan does not say how: its \"peers\" do not have it".to_owned(),
            stderr_tail: Vec::new(),
        })?;
        let listen = SocketAddr::new(launcher.address(), 0).to_string();
        let mut args = shared_arguments(1, cores, &listen);
        args.extend(["--command".to_owned(), command.to_owned()]);
        let args = args.into_iter().map(OsString::from).collect();
        let guard = launcher.start(guard::ROLE, args)?;
        // The guard's own patience ends first, and it knows more.
        let within = guard::READY_WITHIN + READY_WITHIN;
        let what = format!("the peer {name}");
        Ok(Self {
            is_peer: true,
            ..until_ready(guard, &what, within, stop)?
        })
    }

    fn start_all(
        launcher: &Launcher,
        role: &'static str,
        arguments: impl Fn(&str) -> Vec<OsString>,
        count: usize,
        what: &str,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        let start = |listen: &str| {
            let child = launcher.start(role, arguments(listen))?;
            until_ready(child, what, READY_WITHIN, stop)
        };
        // The first has its port from the kernel, the others share it.
        let mut servers = start(&SocketAddr::new(launcher.address(), 0).to_string())?;
        while servers.processes.len() < count {
            let another = start(&servers.address.to_string())?;
            servers.processes.extend(another.processes);
        }
        Ok(servers)
    }

    /// One process of another role, which says that it is ready as a server does.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn of_role(
        launcher: &Launcher,
        role: &'static str,
        args: Vec<OsString>,
        stop: &Stop,
    ) -> Result<Self, Failure> {
        until_ready(launcher.start(role, args)?, role, READY_WITHIN, stop)
    }

    /// Where they listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the first of them answers canaries, if it does.
    pub fn canary(&self) -> Option<SocketAddr> {
        self.canary
    }

    /// Has all of them publish their `--broadcast`.
    pub fn broadcast(&self) {
        self.signal(Signal::SIGUSR1);
    }

    /// Has all of them begin with the heartbeats that wait for it (`--heartbeat-at-signal`).
    pub fn begin_heartbeats(&self) {
        self.signal(Signal::SIGUSR2);
    }

    /// Sends a signal to all of them.
    pub fn signal(&self, signal: Signal) {
        let processes = self.processes.iter();
        processes.for_each(|process| process.signal(signal));
    }

    /// Their ids.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Child::id).collect()
    }

    /// How many processes there are.
    pub fn count(&self) -> usize {
        self.processes.len()
    }

    /// What all of them use together.
    ///
    /// # Errors
    /// When one has ended.
    pub fn usage(&self) -> Result<Usage, ProcessError> {
        self.processes.iter().try_fold(
            Usage {
                rss_bytes: 0,
                cpu_ns: 0,
            },
            |sum, process| {
                let usage = match self.is_peer {
                    true => tree::usage(process.id())?,
                    false => process.usage()?,
                };
                Ok(Usage {
                    rss_bytes: sum.rss_bytes + usage.rss_bytes,
                    cpu_ns: sum.cpu_ns + usage.cpu_ns,
                })
            },
        )
    }

    /// A peer that did not serve as it should is out from now on: what it does is not ours to find out, and it would
    /// fail in every round.
    pub fn failed(&mut self) {
        self.is_out = self.is_peer;
    }

    /// The memory of all of them together.
    ///
    /// # Errors
    /// When one has ended.
    pub fn memory(&self) -> Result<ProcessMemory, ProcessError> {
        sum(self.processes.iter().map(Child::memory))
    }

    /// Whether all of them run, and none is out.
    pub fn are_running(&mut self) -> bool {
        !self.is_out && !self.processes.iter_mut().any(Child::has_ended)
    }

    /// Ends all; gives their summaries, and a failure for each that did not end well.
    pub fn end(self, during: &str) -> (Vec<Value>, Vec<Failure>) {
        self.end_after(Duration::ZERO, during)
    }

    /// The same, once they had so long to end by themselves.
    pub fn end_after(self, patience: Duration, during: &str) -> (Vec<Value>, Vec<Failure>) {
        let (mut summaries, mut failures) = (Vec::new(), Vec::new());
        for process in self.processes {
            let ended = process.end(patience, ENDS_WITHIN);
            summaries.push(ended.summary.clone());
            if !ended.is_success() {
                failures.push(ended.failure(during));
            }
        }
        (summaries, failures)
    }
}

/// Of several processes together.
pub fn sum(
    mut each: impl Iterator<Item = Result<ProcessMemory, ProcessError>>,
) -> Result<ProcessMemory, ProcessError> {
    let none = ProcessMemory {
        pss_bytes: Some(0),
        ..ProcessMemory::default()
    };
    each.try_fold(none, |sum, memory| Ok(sum.plus(memory?)))
}

fn arguments(
    engine: Engine,
    protocol: Protocol,
    count: usize,
    cores: &[usize],
    listen: &str,
) -> Vec<OsString> {
    let mut args = shared_arguments(count, cores, listen);
    args.extend(["--engine".to_owned(), engine.name().to_owned()]);
    match protocol {
        Protocol::Echo => args.extend(["--protocol".to_owned(), "echo".to_owned()]),
        Protocol::Line { heartbeat } => {
            args.extend(["--protocol".to_owned(), "line".to_owned()]);
            args.extend([
                "--heartbeat".to_owned(),
                humantime::format_duration(heartbeat).to_string(),
            ]);
        }
    }
    args.into_iter().map(OsString::from).collect()
}

/// What every server is told, of `count` on one port.
fn shared_arguments(count: usize, cores: &[usize], listen: &str) -> Vec<String> {
    let mut args = vec!["--listen".to_owned(), listen.to_owned()];
    args.extend(["--cores".to_owned(), core_list(cores)]);
    if count > 1 {
        args.push("--reuse-port".to_owned());
    }
    args
}

/// As `--cores` takes it.
pub fn core_list(cores: &[usize]) -> String {
    cores
        .iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn until_ready(
    server: Child,
    what: &str,
    within: Duration,
    stop: &Stop,
) -> Result<Servers, Failure> {
    let during = format!("starting {what}");
    let until = Instant::now() + within;
    loop {
        match server.next_line(TICK) {
            Next::Line(line) => match ready_address(&line) {
                Some(address) => {
                    return Ok(Servers {
                        processes: vec![server],
                        address,
                        canary: canary_address(&line),
                        is_peer: false,
                        is_out: false,
                    });
                }
                None => continue,
            },
            Next::Closed => {
                return Err(server.end(CLOSES_WITHIN, Duration::ZERO).failure(during));
            }
            Next::Nothing => {}
        }
        let late =
            (Instant::now() >= until).then(|| format!("not ready after {} s", within.as_secs()));
        if let Some(cause) = stop.cause().map(|cause| cause.to_string()).or(late) {
            let ended = server.end(Duration::ZERO, CLOSES_WITHIN);
            return Err(Failure {
                during,
                cause,
                stderr_tail: ended.stderr_tail,
            });
        }
    }
}

/// The address in `ready on ADDRESS (…)`.
fn ready_address(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("ready on ")?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The address in `(…, canary ADDRESS)`.
fn canary_address(line: &str) -> Option<SocketAddr> {
    let (_, address) = line.rsplit_once(", canary ")?;
    address.strip_suffix(')')?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_the_address() {
        let line = "ready on 127.0.0.1:43210 (engine uring, workers 1 on cores 0, protocol line, heartbeat 10s)";
        assert_eq!(
            ready_address(line),
            Some("127.0.0.1:43210".parse().unwrap())
        );
        assert_eq!(
            ready_address("ready on [::1]:7 (…)"),
            Some("[::1]:7".parse().unwrap())
        );
        assert_eq!(canary_address(line), None);
        let line = "ready on 10.0.0.1:7 (protocol line, heartbeat 10s, canary 10.0.0.1:8)";
        assert_eq!(canary_address(line), Some("10.0.0.1:8".parse().unwrap()));
        assert_eq!(ready_address("not ready on 127.0.0.1:1"), None);
    }

    #[test]
    fn the_port_is_shared_only_by_several() {
        let args = |count| arguments(Engine::Epoll, Protocol::Echo, count, &[0, 2], "127.0.0.1:0");
        assert!(!args(1).contains(&"--reuse-port".into()));
        assert!(args(2).contains(&"--reuse-port".into()));
        assert!(args(1).contains(&"0,2".into()));
        assert!(!args(1).contains(&"--heartbeat".into()));
    }
}
