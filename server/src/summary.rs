//! What a server says when it has ended: text for people, JSON for programs.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::config::{Protocol, Resolved};
use crate::engine::EngineKind;
use crate::server::Ended;
use crate::stats::CloseReason;

/// The whole run of a server.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Which engine carried the connections.
    pub engine: EngineKind,
    /// What was said on them.
    pub protocol: Protocol,
    /// Where it listened.
    pub listen: String,
    /// Threads.
    pub workers: usize,
    /// Their cores.
    pub cores: Vec<usize>,
    /// Direct descriptors per table, or the bound on open files for engines without tables.
    pub table_slots: u32,
    /// Time between heartbeats in ms; 0 without.
    pub heartbeat_ms: u64,
    /// Why it ended.
    pub cause: &'static str,
    /// For how long it ran, in seconds.
    pub seconds: f64,
    /// Connections accepted and held.
    pub accepted: u64,
    /// The most held at one time.
    pub held_max: u64,
    /// Closed at once because `--max-connections` were held.
    pub refused_max_connections: u64,
    /// Lost in a full table; 0 unless there is a bug.
    pub dropped_table_full: u64,
    /// Accepts put off for lack of files or memory.
    pub accept_retries: u64,
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
    /// Sends cut short by a full window.
    pub short_sends: u64,
    /// Heartbeats said.
    pub heartbeats_sent: u64,
    /// Published messages given to sessions.
    pub messages_published: u64,
    /// How late they were said.
    pub heartbeat_lateness_us: Percentiles,
    /// The most bytes that ever waited in a worker.
    pub pending_peak_bytes: u64,
    /// What the rings did.
    pub ring: Option<ring::Stats>,
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
}

impl Summary {
    /// Of a run that has ended.
    pub fn new(resolved: &Resolved, listen: String, seconds: f64, ended: Ended) -> Summary {
        let config = &resolved.config;
        let stats = ended.stats;
        Summary {
            engine: config.engine,
            protocol: resolved.protocol,
            listen,
            workers: config.cores.len(),
            cores: config.cores.clone(),
            table_slots: config.table_slots,
            heartbeat_ms: config.heartbeat.map_or(0, |h| h.as_millis() as u64),
            cause: ended.cause,
            seconds,
            accepted: stats.accepted,
            held_max: stats.held_max,
            refused_max_connections: stats.refused_max_connections,
            dropped_table_full: stats.dropped_table_full,
            accept_retries: stats.accept_retries,
            heartbeat_lateness_us: Percentiles::of(&stats.heartbeat_lateness_us),
            closed: stats.closed,
            bytes_in: stats.bytes_in,
            bytes_out: stats.bytes_out,
            receives: stats.receives,
            sends: stats.sends,
            short_sends: stats.short_sends,
            heartbeats_sent: stats.heartbeats_sent,
            messages_published: stats.messages_published,
            pending_peak_bytes: stats.pending_peak_bytes,
            ring: stats.ring,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ended after {:.1} s ({}), engine {}",
            self.seconds,
            self.cause,
            self.engine.name()
        )?;
        writeln!(
            f,
            "  connections  {} accepted, {} held at most",
            self.accepted, self.held_max
        )?;
        for (reason, count) in &self.closed {
            writeln!(f, "  closed       {count} {reason}")?;
        }
        writeln!(
            f,
            "  traffic      {} bytes in {} receives, {} bytes out {} sends, {} cut short",
            self.bytes_in, self.receives, self.bytes_out, self.sends, self.short_sends
        )?;
        if self.heartbeats_sent > 0 {
            let late = &self.heartbeat_lateness_us;
            writeln!(
                f,
                "  heartbeats   {} sent, late by {:.1} ms in the median, {:.1} p99, {:.1} at most",
                self.heartbeats_sent,
                late.p50 as f64 / 1e3,
                late.p99 as f64 / 1e3,
                late.max as f64 / 1e3
            )?;
        }
        for (what, count) in [
            (
                "published    {} messages given to sessions",
                self.messages_published,
            ),
            (
                "refused      {} over --max-connections",
                self.refused_max_connections,
            ),
            ("LOST         {} in a full table", self.dropped_table_full),
            (
                "accept       {} times put off for lack of files or memory",
                self.accept_retries,
            ),
        ] {
            if count > 0 {
                writeln!(f, "  {}", what.replace("{}", &count.to_string()))?;
            }
        }
        if let Some(ring) = &self.ring {
            write!(
                f,
                "  rings        {} tables, {} enters",
                ring.rings, ring.enters
            )?;
            for (what, count) in [
                ("turns with overflowed completions", ring.overflows),
                ("full queues", ring.full_flushes),
                ("receives that waited for a buffer", ring.starved_recvs),
                ("submissions put off by the kernel", ring.refused_submits),
                ("UNKNOWN completions", ring.unknown_completions),
            ] {
                if count > 0 {
                    write!(f, ", {count} {what}")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
