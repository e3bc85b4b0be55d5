//! Several clients that hold connections to the same servers: started one after the other, followed together, ended.
//!
//! Invariant: following ends, at its time or for a named reason, and whatever the reason, the clients are still here to
//! be ended in good order.

use std::time::{Duration, Instant};

use kernel_tuning::process::{ProcessError, ProcessMemory};

use crate::guard::{Guard, Limit};
use crate::load::{Progress, Stage, start_client};
use crate::report::format::of_many;
use crate::result::Failure;
use crate::runner::{Child, Ended, Next};
use crate::servers::{Servers, sum};
use crate::stop::{Cause, TICK};

/// Why a run does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// Something was about to run out.
    Limit(Limit),
    /// Ctrl-C, or no time left.
    Stop(Cause),
    /// A server ended by itself.
    ServerDied,
    /// A client ended by itself; its own summary says why.
    ClientEnded,
    /// A client has connected what it could, and that is not all.
    Short {
        /// Connections that failed.
        failed: u64,
    },
    /// A client was not done in the time it had.
    TooLong {
        /// That time.
        seconds: u64,
    },
}

impl Halt {
    /// What to tell the user, with the client's own words where they say more.
    pub fn words(self, client: &str) -> String {
        match self {
            Self::Limit(limit) => format!("stopped by {limit}"),
            Self::Stop(cause) => cause.to_string(),
            Self::ServerDied => "a server ended in the middle".to_owned(),
            Self::ClientEnded => format!("a client ended in the middle: {client}"),
            Self::Short { failed } => {
                let failed = of_many(failed, "connection");
                format!("{failed} did not come to be: {client}")
            }
            Self::TooLong { seconds } => format!(
                "a client was not done after {seconds} s: is a process stopped, or the machine overloaded?"
            ),
        }
    }
}

/// The clients.
#[derive(Debug, Default)]
pub struct Crowd {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    child: Child,
    last: Option<Progress>,
    /// When the client's ramp and its hold began, by its own clock.
    ramp_began_ms: Option<u64>,
    hold_began_ms: Option<u64>,
    has_ended: bool,
}

impl Crowd {
    /// Starts one more client, with `args`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &mut self,
        stage: &Stage,
        servers: &Servers,
        args: Vec<String>,
    ) -> Result<(), Failure> {
        self.start_as("client", stage, servers, args)
    }

    /// As [`Crowd::start`], with a client of another role that takes the same flags and writes the same lines.
    ///
    /// # Errors
    /// As there.
    pub fn start_as(
        &mut self,
        role: &'static str,
        stage: &Stage,
        servers: &Servers,
        args: Vec<String>,
    ) -> Result<(), Failure> {
        self.members.push(Member {
            child: start_client(stage, role, servers, args)?,
            last: None,
            ramp_began_ms: None,
            hold_began_ms: None,
            has_ended: false,
        });
        Ok(())
    }

    /// What the last client to be started said last.
    pub fn newest(&self) -> Option<&Progress> {
        self.members.last()?.last.as_ref()
    }

    /// How long the last client to be started took to connect, if it is done with that.
    pub fn ramp_ms(&self) -> Option<u64> {
        let newest = self.members.last()?;
        Some(newest.hold_began_ms? - newest.ramp_began_ms?)
    }

    /// Connections established now.
    pub fn established(&self) -> u64 {
        self.progress().map(|last| last.established).sum()
    }

    /// Connections established and then lost.
    pub fn lost(&self) -> u64 {
        self.progress().map(|last| last.lost).sum()
    }

    /// Resident memory of all clients; `None` when one has ended.
    pub fn rss_bytes(&self) -> Option<u64> {
        let usages = self.members.iter().map(|member| member.child.usage());
        usages.map(|usage| Some(usage.ok()?.rss_bytes)).sum()
    }

    /// Memory of all clients together.
    ///
    /// # Errors
    /// When one has ended.
    pub fn memory(&self) -> Result<ProcessMemory, ProcessError> {
        sum(self.members.iter().map(|member| member.child.memory()))
    }

    /// Listens to all of them until `is_done` (true), or until that time (false).
    ///
    /// # Errors
    /// Why the run cannot go on.
    pub fn follow(
        &mut self,
        stage: &Stage,
        servers: &mut Servers,
        guard: &Guard,
        until: Instant,
        mut is_done: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Halt> {
        loop {
            self.members.iter_mut().for_each(Member::listen);
            if let Some(limit) = guard.limit() {
                return Err(Halt::Limit(limit));
            }
            if let Some(cause) = stage.stop.cause() {
                return Err(Halt::Stop(cause));
            }
            if !servers.are_running() {
                return Err(Halt::ServerDied);
            }
            if self.members.iter().any(|member| member.has_ended) {
                return Err(Halt::ClientEnded);
            }
            if is_done(self) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until the last client to be started has connected all that it was to, at most for `patience`.
    ///
    /// # Errors
    /// Why it has not.
    pub fn connect(
        &mut self,
        stage: &Stage,
        servers: &mut Servers,
        guard: &Guard,
        patience: Duration,
    ) -> Result<(), Halt> {
        let has_ramped = |crowd: &Self| crowd.newest().is_some_and(|last| last.phase != "ramp");
        if !self.follow(stage, servers, guard, Instant::now() + patience, has_ramped)? {
            return Err(Halt::TooLong {
                seconds: patience.as_secs(),
            });
        }
        match self.newest() {
            Some(Progress { failed, .. }) if *failed > 0 => Err(Halt::Short { failed: *failed }),
            _ => Ok(()),
        }
    }

    /// Ends them, the newest first, each within a time that fits `most_connections`, and gives what is left of each, the
    /// oldest first. One at a time, so that not all resets are under way at once.
    pub fn end(self, most_connections: u64) -> Vec<Ended> {
        // Ten times slower than any close seen.
        let grace = Duration::from_secs(20) + Duration::from_micros(200) * most_connections as u32;
        let newest_first = self.members.into_iter().rev();
        let mut ended: Vec<Ended> = newest_first
            .map(|member| member.child.end(Duration::ZERO, grace))
            .collect();
        ended.reverse();
        ended
    }

    fn progress(&self) -> impl Iterator<Item = &Progress> {
        self.members
            .iter()
            .filter_map(|member| member.last.as_ref())
    }
}

impl Member {
    fn listen(&mut self) {
        loop {
            match self.child.next_line(Duration::ZERO) {
                Next::Line(line) => {
                    if let Ok(progress) = serde_json::from_str::<Progress>(&line) {
                        self.note(progress);
                    }
                }
                Next::Closed => {
                    self.has_ended = true;
                    return;
                }
                Next::Nothing => return,
            }
        }
    }

    fn note(&mut self, progress: Progress) {
        match progress.phase.as_str() {
            "ramp" => self.ramp_began_ms.get_or_insert(progress.t_ms),
            _ => self.hold_began_ms.get_or_insert(progress.t_ms),
        };
        self.last = Some(progress);
    }
}
