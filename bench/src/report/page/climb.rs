//! The page of the command `hold`. Pure.

use super::{Finding, Page};
use crate::climb::result::{Climb, Step};
use crate::footprint::CACHES_UNREADABLE;
use crate::report::chart::{Chart, PERCENTILES, Row, Rows, Scale};
use crate::report::climb::{memory, steps, whole};
use crate::report::format::{bytes, count, figure, micros, of_many, rounded};
use crate::report::ink::Ink;
use crate::report::timeline::{Line, Panel, Timeline};

/// The page of `report`.
pub fn page(report: &Climb) -> Page {
    let engine = report.plan.engine;
    let title = format!(
        "Throng: {} connections held with {engine}",
        count(report.plan.most())
    );
    let stopped = report
        .stopped_by
        .map_or(String::new(), |limit| format!(" Stopped by {limit}."));
    let headline = format!(
        "Held {} with {engine}, {} lost.{stopped}",
        of_many(report.held(), "connection"),
        count(lost(report))
    );
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    page.findings = findings(report);
    page.charts = [timeline(report).map(Chart::Timeline)]
        .into_iter()
        .flatten()
        .collect();
    let rows = [each(report), caches(report), latencies(report)];
    page.charts.extend(
        rows.into_iter()
            .filter(|rows| !rows.rows.is_empty())
            .map(Chart::Rows),
    );
    page.tables = vec![steps(report), whole(report)];
    page.tables.extend(memory(report));
    page.notes
        .extend(report.lacks_caches().then(|| CACHES_UNREADABLE.to_owned()));
    page
}

fn lost(report: &Climb) -> u64 {
    report.steps.last().map_or(0, |step| step.lost)
}

fn findings(report: &Climb) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(step) = report.highest() {
        let kernel = figure(step.growth.as_ref().map(|growth| growth.kernel()), bytes);
        let server = figure(report.server_rss_bytes_per_conn(step), bytes);
        let said = format!(
            "a connection took {kernel} of the kernel, both ends together, and {server} of the server"
        );
        findings.push(Finding::new("memory", said));
    }
    let late = [
        (
            "at the server",
            report.worst_server_figure("/heartbeat_lateness_us/p99"),
        ),
        (
            "at the client",
            report.worst_client_figure("/heartbeats/lateness_us/p99"),
        ),
    ];
    if report.plan.heartbeat_ms > 0 {
        let late = late.map(|(side, p99)| format!("{} {side}", figure(p99, micros)));
        findings.push(Finding::new(
            "heartbeats",
            format!("late by p99 {}", late.join(" and ")),
        ));
    }
    findings.extend(
        report
            .worst_client_figure("/connects_per_second")
            .map(|each_second| {
                Finding::new(
                    "connects",
                    format!("{} a second, at the fastest", rounded(each_second)),
                )
            }),
    );
    findings.extend(report.close.as_ref().and_then(|close| {
        let gone = close.sockets_gone_ms? as f64 / 1e3;
        Some(Finding::new(
            "close",
            format!("the last socket was gone {gone:.1} s after the close began"),
        ))
    }));
    findings
}

/// Connections, and the memory read with them, over the time of the run.
fn timeline(report: &Climb) -> Option<Timeline> {
    // So that the steps of the axis are whole ones.
    const GIB: f64 = (1 << 30) as f64;
    let mut now = 0.0;
    let mut connections = vec![(0.0, 0.0)];
    let mut memory = vec![(0.0, report.server_rss_empty_bytes as f64 / GIB)];
    for step in &report.steps {
        let Some(ramp_ms) = step.ramp_ms else { break };
        let established = step.established as f64;
        now += ramp_ms as f64 / 1e3;
        connections.push((now, established));
        now += step.held_ms as f64 / 1e3;
        connections.push((now, established));
        memory.extend(taken(step).map(|taken| (now, taken / GIB)));
    }
    if connections.len() < 2 {
        return None;
    }
    if let (Some(plan), Some(_)) = (report.plan.active, report.active) {
        now += plan.for_ms as f64 / 1e3;
        connections.push((
            now,
            report
                .steps
                .last()
                .map_or(0.0, |step| step.established as f64),
        ));
    }
    if let Some(close) = &report.close {
        connections.push((now + close.clients_ended_ms as f64 / 1e3, 0.0));
    }
    let panel = |title: &str, show: fn(f64) -> String, points, ink| Panel {
        title: title.to_owned(),
        show,
        lines: vec![Line {
            label: title.to_owned(),
            points,
            ink,
        }],
    };
    Some(Timeline {
        title: "Connections over time, and the memory they took".to_owned(),
        about: "Seconds from the first connect. Memory is that of the kernel (both ends), the server and the clients, read before \
                the start and at the end of each hold; between two readings the line is only drawn straight"
            .to_owned(),
        phases: Vec::new(),
        panels: vec![
            panel("connections established", rounded, connections, Ink::Uring),
            panel("memory taken", |gib| format!("{gib:.1} GiB"), memory, Ink::Epoll),
        ],
    })
}

/// What the connections of a step took of kernel, servers and clients; `None` where one of them was not read.
fn taken(step: &Step) -> Option<f64> {
    let kernel = step.growth.as_ref()?.kernel() * step.established as f64;
    Some(kernel + step.server_rss_bytes? as f64 + step.client_rss_bytes? as f64)
}

/// What a connection takes, step by step.
fn each(report: &Climb) -> Rows {
    let rows = report.steps.iter().flat_map(|step| {
        let parts = [
            (
                "kernel, both ends",
                step.growth.as_ref().map(|growth| growth.kernel()),
                Ink::Uring,
            ),
            (
                "client RSS",
                report.client_rss_bytes_per_conn(step),
                Ink::TokioUring,
            ),
            (
                "server RSS",
                report.server_rss_bytes_per_conn(step),
                Ink::Epoll,
            ),
        ];
        let established = count(step.established);
        parts.into_iter().filter_map(move |(what, value, ink)| {
            Some(of_bytes(format!("{what}, at {established}"), value?, ink))
        })
    });
    Rows {
        title: "Memory a connection".to_owned(),
        about: "At the end of each hold, by who has it".to_owned(),
        scale: Scale::FromZero,
        tick: bytes,
        rows: rows.collect(),
    }
}

/// The slab caches that a connection takes most of.
fn caches(report: &Climb) -> Rows {
    const SHOWN: usize = 8;
    let caches = report
        .highest()
        .and_then(|step| step.growth.as_ref()?.caches.as_ref());
    let mut caches: Vec<(&String, f64)> = caches
        .into_iter()
        .flatten()
        .map(|(name, bytes)| (name, *bytes))
        .collect();
    caches.sort_by(|one, other| other.1.total_cmp(&one.1));
    caches.retain(|(_, bytes)| *bytes > 0.0);
    let rows = caches
        .into_iter()
        .take(SHOWN)
        .map(|(name, bytes)| of_bytes(name.clone(), bytes, Ink::Uring));
    Rows {
        title: "Kernel memory a connection, by slab cache".to_owned(),
        about: format!("The largest {SHOWN}, objects in use, both ends together"),
        scale: Scale::FromZero,
        tick: bytes,
        rows: rows.collect(),
    }
}

fn of_bytes(label: String, value: f64, ink: Ink) -> Row {
    let shown = bytes(value);
    Row {
        label,
        shown,
        value,
        range: None,
        ink,
    }
}

fn latencies(report: &Climb) -> Rows {
    let by_server = |pointer: &str| report.worst_server_figure(pointer);
    let by_client = |pointer: &str| report.worst_client_figure(pointer);
    type Figure<'a> = &'a dyn Fn(&str) -> Option<f64>;
    let kinds: [(&str, Figure<'_>, &str, Ink); 4] = [
        (
            "heartbeats late, at the server",
            &by_server,
            "/heartbeat_lateness_us",
            Ink::Uring,
        ),
        (
            "heartbeats late, at the client",
            &by_client,
            "/heartbeats/lateness_us",
            Ink::Epoll,
        ),
        (
            "connect latency",
            &by_client,
            "/connect_latency_us",
            Ink::Epoll,
        ),
        (
            "echo, from when it was due",
            &by_client,
            "/messages/latency_us",
            Ink::Epoll,
        ),
    ];
    let rows = kinds.into_iter().filter_map(|(label, of, histogram, ink)| {
        let at = |name: &str| of(&format!("{histogram}/{name}"));
        at("count").filter(|count| *count > 0.0)?;
        Some(Row::percentiles(
            label.to_owned(),
            [at("p50")?, at("p99")?, at("max")?],
            ink,
        ))
    });
    Rows {
        title: "Latency and lateness".to_owned(),
        about: PERCENTILES.to_owned(),
        scale: Scale::Decades,
        tick: micros,
        rows: rows.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::climb::result::tests::recorded;
    use crate::report::html::html;

    #[test]
    fn the_connections_are_shown_over_time_with_their_memory() {
        let report = recorded();
        let page = page(&report);
        assert!(
            page.headline
                .starts_with("Held 1,250,000 connections with uring, 0 lost."),
            "{}",
            page.headline
        );
        let Chart::Timeline(timeline) = &page.charts[0] else {
            panic!("{:?}", page.charts[0])
        };
        let [connections, memory] = timeline.panels.as_slice() else {
            panic!("{timeline:?}")
        };
        // Up and held, twice, and closed.
        let [connections, memory] = [connections, memory].map(|panel| &panel.lines[0]);
        assert_eq!(connections.points.len(), 6);
        assert!(connections.points.is_sorted_by(|one, next| one.0 <= next.0));
        assert_eq!(memory.points.len(), 3);
        assert!(memory.points.is_sorted_by(|one, next| one.1 < next.1));
        for title in [
            "Memory a connection",
            "by slab cache",
            "Latency and lateness",
        ] {
            assert!(
                page.charts
                    .iter()
                    .any(|chart| chart.title().contains(title)),
                "{title}"
            );
        }
        assert!(html(&page).unwrap().contains("1,250,000 at"));
    }

    #[test]
    fn a_climb_that_was_stopped_says_by_what_and_one_without_a_step_is_told_too() {
        let mut report = recorded();
        report.stopped_by = Some(crate::guard::Limit::Files { open: 10, max: 20 });
        assert!(page(&report).headline.contains("Stopped by open files"));
        report.steps.clear();
        report.clients.clear();
        report.close = None;
        report.conclude();
        let page = page(&report);
        assert!(page.is_partial && page.headline.contains("Held 0 connections"));
        html(&page).unwrap();
    }
}
