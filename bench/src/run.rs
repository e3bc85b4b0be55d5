//! What surrounds every measurement of this machine: the lock, the bounds, what was there before, and what a report says
//! of the run whatever it measured.
//!
//! Invariant: while a [`Run`] exists no other heavy run is on this machine, and its end comes at the latest with its
//! time limit.

use std::time::{Duration, Instant};

use kernel_tuning::host::{Environment, MachineBusy, Memory, environment};
use serde::{Deserialize, Serialize};

use crate::clock::{millis, unix_now_s};
use crate::load::Stage;
use crate::lock::{MachineLock, alone};
use crate::result::Failure;
use crate::sample::{HostSample, available_bytes, usable_bytes};
use crate::scenario::Placement;
use crate::screen::Screen;

/// Version of the JSON form of every command's report; it grows when a reader of the old form would misread the new one.
pub const FORMAT_VERSION: u32 = 3;

/// What a report says of its run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// [`FORMAT_VERSION`] of the program that wrote it.
    pub format_version: u32,
    /// What measured it: `compare`, `hold`, …; the rest of the report is of that one's form.
    pub command: String,
    /// Version of Throng.
    pub throng_version: String,
    /// The run ended early, and only what is here was measured.
    pub partial: bool,
    /// When it started, in seconds since 1970.
    pub started_unix_s: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// The whole command line.
    pub command_line: Vec<String>,
    /// Where it ran.
    pub environment: Environment,
    /// Which CPUs each side ran on.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
    /// CPU time of the whole machine during the run.
    pub machine: Option<MachineBusy>,
    /// What went wrong; empty after a good run.
    pub failures: Vec<Failure>,
}

/// A run that has the machine for itself.
#[derive(Debug)]
pub struct Run {
    /// What its measurements stand on.
    pub stage: Stage,
    /// What its report will say of it.
    pub about: About,
    /// Memory that it may take: a part of what is available stays free.
    pub room_bytes: u64,
    began: Instant,
    _alone: MachineLock,
}

impl Run {
    /// Waits for the machine, and notes how it is. The run is ended when it takes far longer than the `estimate`.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn begin(
        command: &str,
        placement: Placement,
        nofile_hard: u64,
        estimate: Duration,
        command_line: Vec<String>,
        screen: &Screen,
    ) -> Result<Self, String> {
        let (stop, alone) = alone(estimate * 4 + Duration::from_secs(60), screen)?;
        let memory = Memory::read().map_err(|error| error.to_string())?;
        let room_bytes = (available_bytes(&memory) / 100 * 85).min(usable_bytes(&memory));
        let base = HostSample::read().map_err(|error| error.to_string())?;
        let about = About {
            format_version: FORMAT_VERSION,
            command: command.to_owned(),
            throng_version: env!("CARGO_PKG_VERSION").to_owned(),
            partial: false,
            started_unix_s: unix_now_s(),
            duration_ms: 0,
            command_line,
            environment: environment(),
            placement: placement.clone(),
            nofile_hard,
            machine: None,
            failures: Vec::new(),
        };
        let stage = Stage::new(placement, nofile_hard, stop, base)?;
        Ok(Self {
            stage,
            about,
            room_bytes,
            began: Instant::now(),
            _alone: alone,
        })
    }

    /// Tells a failure and keeps it for the report.
    pub fn note(&mut self, screen: &Screen, failure: Failure) {
        screen.failure(&failure);
        self.about.failures.push(failure);
    }

    /// What there is to say of the run, now that it has ended.
    pub fn end(mut self, screen: &Screen) -> About {
        screen.done();
        if let Some(cause) = self.stage.stop.cause() {
            self.about.partial = true;
            let failure = Failure {
                during: "the run".to_owned(),
                cause: format!("{cause}: the report has what was measured until then"),
                stderr_tail: Vec::new(),
            };
            self.note(screen, failure);
        }
        self.about.duration_ms = millis(self.began.elapsed());
        self.about.machine = MachineBusy::read()
            .ok()
            .map(|now| now.since(&self.stage.base.machine));
        self.about
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a report of `command` says that took a second and went well.
    pub(crate) fn about(command: &str) -> About {
        About {
            format_version: FORMAT_VERSION,
            command: command.to_owned(),
            throng_version: "0".to_owned(),
            partial: false,
            started_unix_s: 0,
            duration_ms: 1_000,
            command_line: Vec::new(),
            environment: environment(),
            placement: Placement::halves(&[0, 1]),
            nofile_hard: 20_000,
            machine: None,
            failures: Vec::new(),
        }
    }
}
