//! What a worker counts, and how workers' counts become one summary.
//!
//! Each worker owns its counters; they are merged after it has ended. Nothing here is shared.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};
use tracing::debug;

use crate::admission::Refusal;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The peer finished sending, and was told all there was to say.
    PeerClosed,
    /// The peer reset the connection, or the network lost it.
    Reset,
    /// The protocol came to its end (`quit`).
    Finished,
    /// A line over the limit, or more partial input than may wait.
    TooLong,
    /// More output waits than may wait: the peer does not read.
    SlowReader,
    /// Nothing was received from the peer for longer than the idle timeout.
    IdleTimeout,
    /// The peer took nothing of what waits for longer than the write timeout.
    WriteTimeout,
    /// The worker's bound on waiting bytes was reached when this connection asked for more.
    WorkerMemory,
    /// The server ended.
    Shutdown,
    /// The kernel refused an operation on it.
    Failed,
    /// Somebody asked for it on the admin side.
    Operator,
}

impl CloseReason {
    /// Every reason there is.
    pub const ALL: [CloseReason; 11] = [
        CloseReason::PeerClosed,
        CloseReason::Reset,
        CloseReason::Finished,
        CloseReason::TooLong,
        CloseReason::SlowReader,
        CloseReason::IdleTimeout,
        CloseReason::WriteTimeout,
        CloseReason::WorkerMemory,
        CloseReason::Shutdown,
        CloseReason::Failed,
        CloseReason::Operator,
    ];
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CloseReason::PeerClosed => "by the peer",
            CloseReason::Reset => "reset by the peer or the network",
            CloseReason::Finished => "after quit",
            CloseReason::TooLong => "for a line over the limit",
            CloseReason::SlowReader => "for not reading what waits",
            CloseReason::IdleTimeout => "for sending nothing within the idle timeout",
            CloseReason::WriteTimeout => "for reading nothing within the write timeout",
            CloseReason::WorkerMemory => "because the worker's bound on waiting bytes was reached",
            CloseReason::Shutdown => "by the end of the server",
            CloseReason::Failed => "because the kernel refused an operation",
            CloseReason::Operator => "by the operator",
        })
    }
}

/// The shape of a histogram, in its unit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Percentiles {
    /// Values recorded.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

impl Percentiles {
    /// Those of `histogram`; all 0 when it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Percentiles {
        Percentiles {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }

    fn serialize<S: Serializer>(histogram: &Histogram<u64>, to: S) -> Result<S::Ok, S::Error> {
        Percentiles::of(histogram).serialize(to)
    }
}

/// The counters of one worker, or of all.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Connections accepted and held.
    pub accepted: u64,
    /// The most held at one time.
    pub held_max: u64,
    /// Slots of tables that were in use at the end and had no connection: their last operations were under way, or they are
    /// lost.
    pub slots_without_connection: u64,
    /// Accepted, told so and closed at once, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Accepted by the kernel and lost because a table was full. Stays 0, or the headroom is too small.
    pub dropped_table_full: u64,
    /// Accepts that failed for lack of files or memory, and were tried again.
    pub accept_retries: u64,
    /// Connections held when the end began. Those that were not closed by it ([`CloseReason::Shutdown`]) went by
    /// themselves.
    pub drained: u64,
    /// Connections ended, by reason.
    pub closed: BTreeMap<CloseReason, u64>,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Receives that returned bytes.
    pub receives: u64,
    /// Sends.
    pub sends: u64,
    /// Sends that were cut short because the peer's window was full; the rest waited.
    pub short_sends: u64,
    /// Heartbeats said.
    pub heartbeats_sent: u64,
    /// Published messages given to sessions.
    pub messages_published: u64,
    /// When heartbeats were said, against when they were due, in µs.
    #[serde(serialize_with = "Percentiles::serialize")]
    pub heartbeat_lateness_us: Histogram<u64>,
    /// The most bytes that ever waited in a worker.
    pub pending_peak_bytes: u64,
    /// What the rings did; none for engines without.
    pub ring: Option<ring::Stats>,
}

impl Stats {
    const MAX_LATENESS_US: u64 = 600_000_000;

    /// Nothing counted yet.
    pub fn new() -> Stats {
        Stats {
            accepted: 0,
            held_max: 0,
            slots_without_connection: 0,
            refused: BTreeMap::new(),
            dropped_table_full: 0,
            accept_retries: 0,
            drained: 0,
            closed: BTreeMap::new(),
            bytes_in: 0,
            bytes_out: 0,
            receives: 0,
            sends: 0,
            short_sends: 0,
            heartbeats_sent: 0,
            messages_published: 0,
            heartbeat_lateness_us: Histogram::new_with_bounds(1, Self::MAX_LATENESS_US, 2)
                // Bounds and precision are constants the library accepts.
                .expect("constant histogram bounds"),
            pending_peak_bytes: 0,
            ring: None,
        }
    }

    /// A connection ended.
    pub fn count_close(&mut self, reason: CloseReason) {
        debug!(%reason, "a connection is closed");
        *self.closed.entry(reason).or_default() += 1;
    }

    /// A connection was refused.
    pub fn count_refusal(&mut self, reason: Refusal) {
        debug!(%reason, "a connection is refused");
        *self.refused.entry(reason).or_default() += 1;
    }

    /// Of those held when the end began, how many it closed.
    pub fn drained_closed(&self) -> u64 {
        self.closed
            .get(&CloseReason::Shutdown)
            .copied()
            .unwrap_or(0)
    }

    /// A heartbeat was said `late_ns` after it was due.
    pub fn count_heartbeat(&mut self, late_ns: u64) {
        self.heartbeats_sent += 1;
        self.heartbeat_lateness_us.saturating_record(late_ns / 1000);
    }

    /// Adds another worker's counts.
    pub fn merge(&mut self, other: &Stats) {
        self.accepted += other.accepted;
        self.held_max += other.held_max;
        self.slots_without_connection += other.slots_without_connection;
        for (reason, count) in &other.refused {
            *self.refused.entry(*reason).or_default() += count;
        }
        self.dropped_table_full += other.dropped_table_full;
        self.accept_retries += other.accept_retries;
        self.drained += other.drained;
        for (reason, count) in &other.closed {
            *self.closed.entry(*reason).or_default() += count;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.receives += other.receives;
        self.sends += other.sends;
        self.short_sends += other.short_sends;
        self.heartbeats_sent += other.heartbeats_sent;
        self.messages_published += other.messages_published;
        // Both have the same bounds.
        let _ = self.heartbeat_lateness_us.add(&other.heartbeat_lateness_us);
        self.pending_peak_bytes = self.pending_peak_bytes.max(other.pending_peak_bytes);
        self.ring = match (self.ring, other.ring) {
            (Some(a), Some(b)) => Some(a.merged(b)),
            (a, b) => a.or(b),
        };
    }
}

impl Default for Stats {
    fn default() -> Self {
        Stats::new()
    }
}
