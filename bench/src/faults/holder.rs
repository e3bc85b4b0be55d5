//! A client of a scene: started, listened to, killed or ended.
//!
//! Invariant: it never outlives its [`Holder`]; what it said last is what is known of it.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::load::{Progress, Stage, start_client};
use crate::report::format::count;
use crate::result::Failure;
use crate::runner::{Child, Next};
use crate::servers::Servers;

/// Ten times slower than any close seen of 100,000 connections.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// How often a client says how it stands: what a recovery is measured by.
const SAMPLES: &str = "20ms";

/// A client that runs.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    last: Progress,
    has_ended: bool,
}

impl Holder {
    /// Starts `throng-client` against `servers`, to hold `connections` from `source` until it is told otherwise.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        stage: &Stage,
        servers: &Servers,
        connections: u64,
        source: &str,
        more: &[String],
    ) -> Result<Self, Failure> {
        let connections = connections.to_string();
        let flags = [
            ["--connections", &connections],
            ["--source", source],
            ["--hold", "30days"],
            ["--sample-interval", SAMPLES],
        ];
        let flags = flags.into_iter().flatten().map(str::to_owned);
        let flags = flags.chain(more.iter().cloned()).collect();
        Self::of_role("client", stage, servers, flags)
    }

    /// Starts a client of another role that writes the same lines.
    ///
    /// # Errors
    /// As [`Holder::start`].
    pub fn of_role(
        role: &'static str,
        stage: &Stage,
        servers: &Servers,
        flags: Vec<String>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            child: start_client(stage, role, servers, flags)?,
            last: Progress::default(),
            has_ended: false,
        })
    }

    /// What it said last.
    pub fn last(&mut self) -> &Progress {
        loop {
            match self.child.next_line(Duration::ZERO) {
                Next::Line(line) => {
                    if let Ok(progress) = serde_json::from_str(&line) {
                        self.last = progress;
                    }
                }
                Next::Closed => {
                    self.has_ended = true;
                    break;
                }
                Next::Nothing => break,
            }
        }
        &self.last
    }

    /// Whether all that it was to connect is connected, or has failed.
    pub fn has_ramped(&mut self) -> bool {
        !matches!(self.last().phase.as_str(), "" | "ramp")
    }

    /// How it stands, in words.
    pub fn state(&mut self) -> String {
        let Progress {
            phase,
            established,
            failed,
            lost,
            messages,
            ..
        } = self.last().clone();
        format!(
            "a client in phase {phase:?} has {} connections, {} failed, {} lost, {} messages",
            count(established),
            count(failed),
            count(lost),
            count(messages)
        )
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.last();
        self.has_ended
    }

    /// Kills it (SIGKILL).
    pub fn kill(&self) {
        self.child.signal(Signal::SIGKILL);
    }

    /// Asks it to end, which it does by a reset of each connection.
    pub fn reset(&self) {
        self.child.signal(Signal::SIGTERM);
    }

    /// Ends it, and gives its summary and how it ended.
    pub fn end(self) -> (Value, String) {
        let ended = self.child.end(Duration::ZERO, ENDS_WITHIN);
        (ended.summary.clone(), ended.how())
    }
}
