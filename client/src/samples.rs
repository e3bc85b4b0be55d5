//! A JSON line at the start of each phase and at each interval, for programs that watch.
//!
//! Owns: the place they go to. Invariant: a line is written whole and flushed, counters are cumulative, times
//! do not go back.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::counters::{Counts, Phase};

#[derive(Serialize)]
struct Sample {
    t_ms: u64,
    phase: &'static str,
    established: u64,
    failed: u64,
    lost: u64,
    heartbeats: u64,
    heartbeats_late: u64,
    messages: u64,
    owed: u64,
    cycles: u64,
    bytes_received: u64,
}

/// Where samples are written.
pub(crate) struct Samples {
    to: Box<dyn Write>,
}

impl Samples {
    pub(crate) fn new(to: Box<dyn Write>) -> Samples {
        Samples { to }
    }

    /// Writes one line. `established` in it is the number established now.
    pub(crate) fn take(&mut self, at: Duration, phase: Phase, counts: &Counts) -> io::Result<()> {
        let sample = Sample {
            t_ms: at.as_millis() as u64,
            phase: phase.name(),
            established: counts.live(),
            failed: counts.failed,
            lost: counts.lost,
            heartbeats: counts.heartbeats,
            heartbeats_late: counts.heartbeats_late,
            messages: counts.messages,
            owed: counts.owed,
            cycles: counts.cycles,
            bytes_received: counts.bytes_received,
        };
        let mut line = serde_json::to_vec(&sample)?;
        line.push(b'\n');
        self.to.write_all(&line)?;
        self.to.flush()
    }
}
