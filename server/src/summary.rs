//! What a server says when it has ended: text for people, JSON for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::canary::ResponderSummary;
use crate::config::{Protocol, Resolved};
use crate::engine::EngineKind;
use crate::server::Ended;
use crate::stats::{Percentiles, Stats};

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
    /// For how long nothing need be received, in ms; 0 without a bound.
    pub idle_timeout_ms: u64,
    /// For how long a peer may take nothing of what waits, in ms; 0 without a bound.
    pub write_timeout_ms: u64,
    /// What canaries got, where `--canary-port` answers them.
    pub canary: Option<ResponderSummary>,
    /// Why it ended.
    pub cause: &'static str,
    /// For how long it ran, in seconds.
    pub seconds: f64,
    /// What all workers counted.
    #[serde(flatten)]
    pub stats: Stats,
}

impl Summary {
    /// Of a run that has ended.
    pub fn new(resolved: &Resolved, listen: String, seconds: f64, ended: Ended) -> Summary {
        let config = &resolved.config;
        let ms = |time: Option<Duration>| time.map_or(0, |time| time.as_millis() as u64);
        Summary {
            engine: config.engine,
            protocol: resolved.protocol,
            listen,
            workers: config.cores.len(),
            cores: config.cores.clone(),
            table_slots: config.table_slots,
            heartbeat_ms: ms(config.heartbeat),
            idle_timeout_ms: ms(config.timeouts.idle),
            write_timeout_ms: ms(config.timeouts.write),
            canary: None,
            cause: ended.cause,
            seconds,
            stats: ended.stats,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
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
            stats.accepted, stats.held_max
        )?;
        for (reason, count) in &stats.refused {
            writeln!(f, "  refused      {count} {reason}")?;
        }
        for (reason, count) in &stats.closed {
            writeln!(f, "  closed       {count} {reason}")?;
        }
        if stats.drained > 0 {
            let closed = stats.drained_closed();
            writeln!(
                f,
                "  drained      {} held at the stop: {} went by themselves, {closed} were closed",
                stats.drained,
                stats.drained.saturating_sub(closed),
            )?;
        }
        writeln!(
            f,
            "  traffic      {} bytes in {} receives, {} bytes out {} sends, {} cut short",
            stats.bytes_in, stats.receives, stats.bytes_out, stats.sends, stats.short_sends
        )?;
        if stats.heartbeats_sent > 0 {
            let late = Percentiles::of(&stats.heartbeat_lateness_us);
            writeln!(
                f,
                "  heartbeats   {} sent, late by {:.1} ms in the median, {:.1} p99, {:.1} at most",
                stats.heartbeats_sent,
                late.p50 as f64 / 1e3,
                late.p99 as f64 / 1e3,
                late.max as f64 / 1e3
            )?;
        }
        for (what, count) in [
            (
                "published    {} messages given to sessions",
                stats.messages_published,
            ),
            ("LOST         {} in a full table", stats.dropped_table_full),
            (
                "accept       {} times put off for lack of files or memory",
                stats.accept_retries,
            ),
        ] {
            if count > 0 {
                writeln!(f, "  {}", what.replace("{}", &count.to_string()))?;
            }
        }
        if let Some(canary) = &self.canary {
            writeln!(
                f,
                "  canaries     {} datagrams and {} connections answered on {}; {} datagrams ignored, {} connections too many",
                canary.datagrams,
                canary.connections,
                canary.address,
                canary.datagrams_ignored,
                canary.connections_refused
            )?;
        }
        if let Some(ring) = &stats.ring {
            write!(
                f,
                "  rings        {} tables, {} restricted to what they are for, {} enters",
                ring.rings, ring.restricted_rings, ring.enters
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
