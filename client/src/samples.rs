//! A JSON line at the start of each phase and at each interval, for programs that watch.
//!
//! Owns: the place they go to. Invariant: a line is written whole and flushed, counters are cumulative, times
//! do not go back.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::counters::{Counts, Order};

#[derive(Serialize)]
struct Sample {
    t_ms: u64,
    phase: &'static str,
    asked: u64,
    established: u64,
    failed: u64,
    lost: u64,
    heartbeats: u64,
    heartbeats_late: u64,
    messages: u64,
    owed: u64,
    cycles: u64,
    cycles_owed: u64,
    reconnected: u64,
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

    /// Writes one line. `asked` in it is how many connections are asked for now, `established` how many there are.
    pub(crate) fn take(&mut self, at: Duration, order: &Order, counts: &Counts) -> io::Result<()> {
        let sample = Sample {
            t_ms: at.as_millis() as u64,
            phase: order.phase.name(),
            asked: order.level(at),
            established: counts.live(),
            failed: counts.failed,
            lost: counts.lost,
            heartbeats: counts.heartbeats,
            heartbeats_late: counts.heartbeats_late,
            messages: counts.messages,
            owed: counts.owed,
            cycles: counts.cycles,
            cycles_owed: counts.cycles_owed,
            reconnected: counts.reconnected,
            bytes_received: counts.bytes_received,
        };
        let mut line = serde_json::to_vec(&sample)?;
        line.push(b'\n');
        self.to.write_all(&line)?;
        self.to.flush()
    }
}
