//! `/metrics`: what the workers have counted, as OpenMetrics text, by the reference crate for that format.
//!
//! Owns: the names. A count is that of one worker; whoever wants the server's adds them up. A worker that does not answer
//! keeps the counts that it said last, so that none of them goes backwards, and `throng_worker_up` is 0.

use std::fmt;
use std::time::SystemTime;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::desk::{Account, Phase, Served};
use super::status::resident_bytes;
use crate::admission::Refusal;
use crate::inquiry::{Report, TableUse};
use crate::stats::{CloseReason, Stats};

/// Of the text (OpenMetrics 1.0).
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds in µs.
const LATENESS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// The text.
///
/// # Errors
/// None that is known: it is written to memory.
pub(super) fn exposition(served: &Served, accounts: Vec<Account>) -> Result<String, fmt::Error> {
    let started = served.started_at.duration_since(SystemTime::UNIX_EPOCH);
    let mut registry = Registry::with_prefix("throng");
    registry.register_collector(Box::new(Sheet {
        engine: served.engine,
        protocol: label(&served.protocol),
        is_ready: served.phase() == Phase::Serving,
        started_seconds: started.map_or(0.0, |since| since.as_secs_f64()),
        resident_bytes: resident_bytes(),
        accounts,
    }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// All of one scrape.
#[derive(Debug)]
struct Sheet {
    engine: &'static str,
    protocol: String,
    is_ready: bool,
    started_seconds: f64,
    resident_bytes: Option<u64>,
    accounts: Vec<Account>,
}

/// A counter of each worker.
type Count = (&'static str, &'static str, fn(&Stats) -> u64);

const COUNTS: [Count; 11] = [
    ("accepted", "Connections accepted and held", |s| s.accepted),
    (
        "dropped_table_full",
        "Connections lost because a table was full",
        |s| s.dropped_table_full,
    ),
    (
        "accept_retries",
        "Accepts put off for lack of files or memory",
        |s| s.accept_retries,
    ),
    ("received_bytes", "Bytes received", |s| s.bytes_in),
    ("sent_bytes", "Bytes sent", |s| s.bytes_out),
    ("receives", "Receives that returned bytes", |s| s.receives),
    ("sends", "Sends", |s| s.sends),
    (
        "short_sends",
        "Sends cut short because the peer's window was full",
        |s| s.short_sends,
    ),
    ("heartbeats", "Heartbeats said", |s| s.heartbeats_sent),
    (
        "published_messages",
        "Published messages given to sessions",
        |s| s.messages_published,
    ),
    ("drain_held", "Connections held when the end began", |s| {
        s.drained
    }),
];

/// A counter of each worker's rings.
type RingCount = (&'static str, &'static str, fn(&ring::Stats) -> u64);

const RING_COUNTS: [RingCount; 7] = [
    ("ring_enters", "Calls of io_uring_enter", |r| r.enters),
    ("ring_submitted", "Operations submitted", |r| r.submitted),
    (
        "ring_full_flushes",
        "Submissions made early because a queue was full",
        |r| r.full_flushes,
    ),
    (
        "ring_overflows",
        "Turns in which completions had overflowed their queue",
        |r| r.overflows,
    ),
    (
        "ring_refused_submits",
        "Submissions the kernel put off for lack of memory",
        |r| r.refused_submits,
    ),
    (
        "ring_starved_receives",
        "Receives that had to wait for a buffer",
        |r| r.starved_recvs,
    ),
    (
        "ring_unknown_completions",
        "Completions nobody knows: always 0, or there is a bug",
        |r| r.unknown_completions,
    ),
];

/// A gauge of each worker.
type Level = (&'static str, &'static str, fn(&Report) -> u64);

const LEVELS: [Level; 3] = [
    ("connections", "Connections held", |r| r.held.into()),
    (
        "waiting_bytes",
        "Input and output that wait in the server",
        |r| r.waiting_bytes,
    ),
    (
        "waiting_bytes_peak",
        "The most bytes that ever waited in the server",
        |r| r.stats.pending_peak_bytes,
    ),
];

/// A gauge of each table.
type TableLevel = (&'static str, &'static str, fn(&TableUse) -> u64);

const TABLE_LEVELS: [TableLevel; 3] = [
    ("table_slots", "Slots of a table", |t| t.slots.into()),
    ("table_slots_used", "Slots that are not free", |t| {
        t.used.into()
    }),
    ("table_connections", "Connections in a table", |t| {
        t.held.into()
    }),
];

impl Collector for Sheet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let to = &mut encoder;
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("engine", self.engine),
            ("protocol", self.protocol.as_str()),
        ];
        to.encode_descriptor("build", "What runs", None, MetricType::Info)?
            .encode_info(&build)?;
        let levels = [
            (
                "ready",
                "1 while connections are accepted",
                f64::from(u8::from(self.is_ready)),
            ),
            (
                "start_time_seconds",
                "When the server began, since the epoch",
                self.started_seconds,
            ),
        ];
        for (name, help, value) in levels {
            let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        if let Some(bytes) = self.resident_bytes {
            let help = "Memory of the process that is in RAM";
            let metric =
                to.encode_descriptor("resident_memory_bytes", help, None, MetricType::Gauge)?;
            ConstGauge::new(bytes as f64).encode(metric)?;
        }
        let up = self.accounts.iter().enumerate();
        let up =
            up.map(|(worker, account)| (worker_label(worker), u64::from(!account.is_silent())));
        family(
            to,
            MetricType::Gauge,
            ("worker_up", "1 where the worker answered in time"),
            up,
        )?;
        for (name, help, count) in COUNTS {
            let all = self
                .reports()
                .map(|r| (worker_label(r.worker), count(&r.stats)));
            family(to, MetricType::Counter, (name, help), all)?;
        }
        for (name, help, level) in LEVELS {
            let all = self.reports().map(|r| (worker_label(r.worker), level(r)));
            family(to, MetricType::Gauge, (name, help), all)?;
        }
        for (name, help, count) in RING_COUNTS {
            let of = |r: &Report| Some((worker_label(r.worker), count(r.stats.ring.as_ref()?)));
            let all: Vec<_> = self.reports().filter_map(of).collect();
            if !all.is_empty() {
                family(to, MetricType::Counter, (name, help), all)?;
            }
        }
        self.reasons(to)?;
        self.tables(to)?;
        self.lateness(to)
    }
}

impl Sheet {
    /// The last of each worker that has ever answered.
    fn reports(&self) -> impl Iterator<Item = &Report> {
        let said = self.accounts.iter().filter_map(|a| a.report.as_ref());
        said.map(|(report, _)| &**report)
    }

    /// Each reason from the start on, so that its first time is an increase.
    fn reasons(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let closed = self.reports().flat_map(|r| {
            CloseReason::ALL.map(|why| {
                let count = r.stats.closed.get(&why).copied();
                (reason_label(r.worker, &why), count.unwrap_or(0))
            })
        });
        let help = "Connections ended, by reason";
        family(to, MetricType::Counter, ("closed", help), closed)?;
        let refused = self.reports().flat_map(|r| {
            Refusal::ALL.map(|why| {
                let count = r.stats.refused.get(&why).copied();
                (reason_label(r.worker, &why), count.unwrap_or(0))
            })
        });
        let help = "Connections accepted, told so and closed at once, by reason";
        family(to, MetricType::Counter, ("refused", help), refused)
    }

    fn tables(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, level) in TABLE_LEVELS {
            let all = self.reports().flat_map(|r| {
                r.tables.iter().enumerate().map(move |(number, table)| {
                    let labels = [
                        ("worker", r.worker.to_string()),
                        ("table", number.to_string()),
                    ];
                    (labels, level(table))
                })
            });
            family(to, MetricType::Gauge, (name, help), all)?;
        }
        Ok(())
    }

    fn lateness(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut metric = to.encode_descriptor(
            "heartbeat_lateness_seconds",
            "When heartbeats were said, against when they were due",
            None,
            MetricType::Histogram,
        )?;
        for report in self.reports() {
            let (sum, buckets) = buckets(&report.stats.heartbeat_lateness_us);
            let count = report.stats.heartbeat_lateness_us.len();
            let labels = worker_label(report.worker);
            metric
                .encode_family(&labels)?
                .encode_histogram::<[(&str, &str); 0]>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// One metric for all its labels.
fn family<L: EncodeLabelSet>(
    to: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    (name, help): (&str, &str),
    all: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), fmt::Error> {
    let is_counter = matches!(kind, MetricType::Counter);
    let mut metric = to.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in all {
        let one = metric.encode_family(&labels)?;
        match is_counter {
            true => ConstCounter::new(value).encode(one)?,
            // Exact below 2^53.
            false => ConstGauge::new(value as f64).encode(one)?,
        }
    }
    Ok(())
}

fn worker_label(worker: usize) -> [(&'static str, String); 1] {
    [("worker", worker.to_string())]
}

fn reason_label(worker: usize, reason: &impl Serialize) -> [(&'static str, String); 2] {
    [("worker", worker.to_string()), ("reason", label(reason))]
}

/// The name that it has in JSON.
fn label(of: &impl Serialize) -> String {
    let value = serde_json::to_value(of).ok();
    let name = value.as_ref().and_then(|value| value.as_str());
    name.unwrap_or_default().to_owned()
}

/// The sum in seconds, and how many are in each bucket; the last is for whatever is later. A step of `late_us` is a hundredth
/// wide, and counts as a whole: by its start, so that nobody is in a later bucket than it was.
fn buckets(late_us: &Histogram<u64>) -> (f64, Vec<(f64, u64)>) {
    let bounds = LATENESS_US.map(|bound| (bound as f64 / 1e6, 0));
    let mut buckets: Vec<(f64, u64)> = bounds.into_iter().chain([(f64::MAX, 0)]).collect();
    let mut sum_us = 0;
    for step in late_us.iter_recorded() {
        let value = step.value_iterated_to();
        let least = late_us.lowest_equivalent(value);
        let at = LATENESS_US.partition_point(|bound| *bound < least);
        buckets[at].1 += step.count_at_value();
        sum_us += late_us.median_equivalent(value) * step.count_at_value();
    }
    (sum_us as f64 / 1e6, buckets)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    fn sheet() -> Sheet {
        let mut stats = Stats::new();
        stats.accepted = 7;
        stats.count_close(CloseReason::Operator);
        for late_us in [100, 900, 20_000_000] {
            stats.count_heartbeat(late_us * 1000);
        }
        let report = Report {
            worker: 0,
            stats,
            held: 3,
            waiting_bytes: 5,
            tables: vec![TableUse {
                slots: 64,
                used: 4,
                held: 3,
                high_water: 9,
            }],
        };
        let answered = Account {
            report: Some((Arc::new(report), Instant::now())),
            asked: None,
        };
        let silent = Account {
            report: None,
            asked: Some(Instant::now()),
        };
        Sheet {
            engine: "uring",
            protocol: "line".into(),
            is_ready: true,
            started_seconds: 1.5,
            resident_bytes: Some(1024),
            accounts: vec![answered, silent],
        }
    }

    #[test]
    fn what_was_counted_is_said_under_its_name() {
        let mut registry = Registry::with_prefix("throng");
        registry.register_collector(Box::new(sheet()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "throng_ready 1.0",
            "throng_worker_up{worker=\"0\"} 1.0",
            "throng_worker_up{worker=\"1\"} 0.0",
            "throng_accepted_total{worker=\"0\"} 7",
            "throng_connections{worker=\"0\"} 3.0",
            "throng_closed_total{worker=\"0\",reason=\"operator\"} 1",
            "throng_closed_total{worker=\"0\",reason=\"reset\"} 0",
            "throng_refused_total{worker=\"0\",reason=\"max_per_source\"} 0",
            "throng_table_slots{worker=\"0\",table=\"0\"} 64.0",
            "throng_heartbeat_lateness_seconds_count{worker=\"0\"} 3",
            "throng_heartbeat_lateness_seconds_bucket{le=\"+Inf\",worker=\"0\"} 3",
            "# TYPE throng_closed counter",
            "# EOF",
        ] {
            assert!(text.lines().any(|said| said == line), "{line} in {text}");
        }
        assert!(
            !text.contains("worker=\"1\",") && !text.contains("throng_ring"),
            "{text}"
        );
    }

    #[test]
    fn each_value_is_in_the_bucket_of_the_least_bound_above_it() {
        let (sum, buckets) = buckets(
            &sheet()
                .reports()
                .next()
                .unwrap()
                .stats
                .heartbeat_lateness_us,
        );
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!((counts[0], counts[1], counts[14]), (1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 3);
        assert!((sum - 20.001).abs() < 0.2, "{sum}");
    }

    #[test]
    fn who_is_late_by_a_bound_is_in_its_bucket() {
        let mut stats = Stats::new();
        for late_us in LATENESS_US {
            stats.count_heartbeat(late_us * 1000);
        }
        let (_, buckets) = buckets(&stats.heartbeat_lateness_us);
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [&[1; LATENESS_US.len()][..], &[0]].concat());
    }
}
