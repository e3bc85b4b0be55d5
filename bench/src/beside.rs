//! Servers beside idle connections of their own, kept up over all rounds that are measured beside them.
//!
//! For a count of idle connections each engine's server holds that many for an idle client; a round is a short-lived
//! client of newcomers on the same server. So a million is established once and not in every round ([`crate::blocks`]).
//!
//! The newcomers sit in the server's last table or tables, which is where newcomers of a real server are, and they are
//! as many tables at every count of idle connections: a full table of idle ones costs nothing but its memory.
//! `--table-slots` spreads them over as many tables as one likes.
//!
//! Invariant: when a [`Beside`] exists its idle connections are established; its end tells whether one was lost.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::{Progress, Stage};
use crate::result::Failure;
use crate::runner::{Child, Next};
use crate::sample::memory_is_short;
use crate::scenario::{CLIENT_SOURCE, Engine, Protocol, server_processes};
use crate::servers::{Servers, core_list};
use crate::stop::TICK;

/// One engine's servers, with their idle connections.
#[derive(Debug)]
pub struct Beside {
    /// The engine.
    pub engine: Engine,
    /// Its servers.
    pub servers: Servers,
    idle: Option<Idle>,
}

#[derive(Debug)]
struct Idle {
    client: Child,
    connections: u64,
}

/// What is beside each server.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Idle connections that it holds.
    pub idle: u64,
    /// The most that come and go beside them at a time.
    pub newcomers: u64,
    /// Slots of each of io_uring's tables; `None`: as many as there can be.
    pub table_slots: Option<u32>,
    /// What it says on a connection.
    pub protocol: Protocol,
}

impl Beside {
    /// Starts the servers of `engine` and establishes what is idle.
    ///
    /// # Errors
    /// Why that cannot be; nothing is left of it.
    pub fn set_up(stage: &Stage, engine: Engine, wanted: Wanted) -> Result<Self, Failure> {
        let processes = server_processes(engine, wanted.idle + wanted.newcomers, stage.nofile_hard);
        let slots = wanted.table_slots.filter(|_| engine == Engine::Uring);
        let flags = slots.map(|slots| ["--table-slots".to_owned(), slots.to_string()]);
        let mut servers = Servers::start_with(
            &stage.launcher,
            engine,
            wanted.protocol,
            processes,
            &stage.placement.server,
            &stage.stop,
            flags.as_ref().map_or(&[], |flags| flags),
        )?;
        let idle = match wanted.idle {
            0 => None,
            connections => Some(hold_idle(stage, engine, &mut servers, connections)?),
        };
        Ok(Self {
            engine,
            servers,
            idle,
        })
    }

    /// Whether all of it still runs.
    pub fn is_up(&mut self) -> bool {
        let idle_has_ended = self
            .idle
            .as_mut()
            .is_some_and(|idle| idle.client.has_ended());
        self.servers.are_running() && !idle_has_ended
    }

    /// Ends it; gives the servers' summaries, and a failure for each process that did not end well and for idle
    /// connections that were lost.
    pub fn end(self) -> (Vec<Value>, Vec<Failure>) {
        /// Closing a million connections takes some ten seconds.
        const CLOSES_WITHIN: Duration = Duration::from_secs(60);
        let mut failures = Vec::new();
        if let Some(Idle {
            client,
            connections,
        }) = self.idle
        {
            let ended = client.end(Duration::ZERO, CLOSES_WITHIN);
            // It was asked to end, so its exit code tells nothing.
            let lost = ended.summary.get("lost_while_held").and_then(Value::as_u64);
            if lost != Some(0) {
                let during = format!(
                    "holding {connections} idle connections with {}",
                    self.engine
                );
                let mut failure = ended.failure(during);
                if let Some(lost) = lost {
                    failure.cause = format!("{lost} of them were lost; {}", failure.cause);
                }
                failures.push(failure);
            }
        }
        let (summaries, others) = self.servers.end(&format!("serving with {}", self.engine));
        failures.extend(others);
        (summaries, failures)
    }
}

fn hold_idle(
    stage: &Stage,
    engine: Engine,
    servers: &mut Servers,
    connections: u64,
) -> Result<Idle, Failure> {
    /// The client's bound: it is ended when the rounds are over.
    const HOLD: &str = "30days";
    let during = format!("establishing {connections} idle connections with {engine}");
    let (address, cores) = (
        servers.address().to_string(),
        core_list(&stage.placement.client),
    );
    let args = [
        address.as_str(),
        "--cores",
        &cores,
        "--connections",
        &connections.to_string(),
    ]
    .into_iter()
    .chain(["--protocol", "echo", "--source", CLIENT_SOURCE])
    .chain(["--hold", HOLD, "--samples", "-", "--sample-interval", "10s"])
    .map(OsString::from)
    .collect();
    let client = stage.launcher.start("client", args)?;
    // A ramp ten times slower than any seen still finishes in this time.
    let time_limit = Duration::from_millis(30_000 + connections / 2);
    let until = Instant::now() + time_limit;
    let cause = loop {
        match client.next_line(TICK) {
            Next::Line(line) => match serde_json::from_str::<Progress>(&line) {
                Ok(progress) if progress.phase == "hold" => {
                    if progress.established == connections {
                        return Ok(Idle {
                            client,
                            connections,
                        });
                    }
                    break format!("only {} came to be", progress.established);
                }
                _ => continue,
            },
            Next::Closed => {
                return Err(client
                    .end(Duration::from_secs(5), Duration::from_secs(5))
                    .failure(during));
            }
            Next::Nothing => {}
        }
        let late = (Instant::now() >= until)
            .then(|| format!("not all were there after {} s", time_limit.as_secs()));
        let died = (!servers.are_running()).then(|| "a server died in the middle".to_owned());
        let stopped = stage.stop.cause().map(|cause| cause.to_string());
        if let Some(cause) = stopped.or(late).or(died).or_else(memory_is_short) {
            break cause;
        }
    };
    let ended = client.end(Duration::ZERO, Duration::from_secs(30));
    Err(Failure {
        during,
        cause,
        stderr_tail: ended.stderr_tail,
    })
}
