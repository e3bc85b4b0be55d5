//! What of each command's report can be held against another. Pure.

use crate::diff::{Better, Figure};
use crate::exchange::Figures;
use crate::memory::result::{MemoryReport, Subject};
use crate::report::rounds::name;
use crate::result::Report as Compare;
use crate::stats::Spread;
use crate::{churn, floor, heartbeat, tail};

/// Nothing: it measures each thing once, so that noise and change cannot be told apart.
pub fn of_none<R>(_: &R) -> Vec<Figure> {
    Vec::new()
}

/// Of `compare`: the echo rounds; a hold is one value each.
pub fn of_compare(report: &Compare) -> Vec<Figure> {
    let mut all = Vec::new();
    for summary in &report.echo_summary {
        let case = summary.case;
        for one in &summary.engines {
            let engine = one.engine;
            all.extend([
                relative(
                    format!("CPU a message ÷ epoll's, {case}, {engine}"),
                    Better::Less,
                    one.cpu_of_epoll,
                ),
                relative(
                    format!("messages a second ÷ epoll's, {case}, {engine}"),
                    Better::More,
                    one.rate_of_epoll,
                ),
                absolute(
                    format!("CPU a message, µs, {case}, {engine}"),
                    Better::Less,
                    one.cpu_us_per_message,
                ),
                absolute(
                    format!("messages a second, {case}, {engine}"),
                    Better::More,
                    one.per_second,
                ),
            ]);
        }
    }
    all.into_iter().flatten().collect()
}

/// Of `memory`: what each engine takes above the bare socket.
pub fn of_memory(report: &MemoryReport) -> Vec<Figure> {
    let engines = report.plan.engines.iter();
    let figures = engines.flat_map(|engine| {
        let kernel = report.above_bare(*engine, |kept| Some(kept.growth.kernel()));
        let rss = report.figure(Subject::Engine(*engine), |kept| Some(kept.server_rss));
        [
            relative(
                format!("kernel bytes a connection above bare, {engine}"),
                Better::Less,
                kernel,
            ),
            relative(
                format!("server RSS bytes a connection, {engine}"),
                Better::Less,
                rss,
            ),
        ]
    });
    figures.flatten().collect()
}

/// Of `floor`: multiples of the floor.
pub fn of_floor(report: &floor::result::Report) -> Vec<Figure> {
    let rows = report.summary.iter();
    let figures = rows.flat_map(|row| {
        let case = format!("{} active beside {} idle", row.case.active, row.case.idle);
        let of_floor = format!(
            "CPU a message ÷ the floor's, {case}, {}",
            name(&row.figures.engine)
        );
        let [cpu, rate] = common(&row.figures, "message", &case);
        [relative(of_floor, Better::Less, row.of_floor), cpu, rate]
    });
    figures.flatten().collect()
}

/// Of `tail`: latencies.
pub fn of_tail(report: &tail::result::Report) -> Vec<Figure> {
    let rows = report.summary.iter();
    let figures = rows.flat_map(|row| {
        let engine = name(&row.figures.engine);
        let case = format!("{} % beside {} idle", row.case.load_percent, row.case.idle);
        let latency = |quantile: &str, spread: Option<Spread>| {
            let name = format!("latency {quantile}, µs, {case}, {engine}");
            absolute(name, Better::Less, spread?)
        };
        [
            relative(
                format!("p99 ÷ epoll's, {case}, {engine}"),
                Better::Less,
                row.p99_of_epoll,
            ),
            latency("p50", row.p50_us),
            latency("p99", row.p99_us),
            latency("p99.9", row.p999_us),
        ]
    });
    figures.flatten().collect()
}

/// Of `heartbeat`: what one costs, and how late it comes.
pub fn of_heartbeat(report: &heartbeat::Report) -> Vec<Figure> {
    let case = format!("{} connections", report.plan.connections);
    let rows = report.summary.iter();
    let figures = rows.flat_map(|row| {
        let engine = name(&row.figures.engine);
        let [cpu, rate] = common(&row.figures, "heartbeat", &case);
        let late = row.late_p99_us.and_then(|late| {
            absolute(
                format!("late p99, µs, {case}, {engine}"),
                Better::Less,
                late,
            )
        });
        let of_epoll = format!("CPU a heartbeat ÷ epoll's, {case}, {engine}");
        [
            relative(of_epoll, Better::Less, row.cpu_of_epoll),
            cpu,
            rate,
            late,
        ]
    });
    figures.flatten().collect()
}

/// Of `churn`: cycles.
pub fn of_churn(report: &churn::Report) -> Vec<Figure> {
    let case = format!("{} at a time", report.plan.churn);
    let rows = report.summary.iter();
    let figures = rows.flat_map(|row| {
        let engine = name(&row.figures.engine);
        let [cpu, rate] = common(&row.figures, "cycle", &case);
        [
            relative(
                format!("CPU a cycle ÷ epoll's, {case}, {engine}"),
                Better::Less,
                row.cpu_of_epoll,
            ),
            relative(
                format!("cycles a second ÷ epoll's, {case}, {engine}"),
                Better::More,
                row.rate_of_epoll,
            ),
            cpu,
            rate,
        ]
    });
    figures.flatten().collect()
}

fn common(figures: &Figures, counted: &str, case: &str) -> [Option<Figure>; 2] {
    let engine = name(&figures.engine);
    [
        absolute(
            format!("CPU a {counted}, µs, {case}, {engine}"),
            Better::Less,
            figures.cpu_us,
        ),
        absolute(
            format!("{counted}s a second, {case}, {engine}"),
            Better::More,
            figures.per_second,
        ),
    ]
}

fn relative(name: String, better: Better, spread: Option<Spread>) -> Option<Figure> {
    Some(Figure {
        name,
        better,
        is_relative: true,
        spread: spread?,
    })
}

fn absolute(name: String, better: Better, spread: Spread) -> Option<Figure> {
    Some(Figure {
        name,
        better,
        is_relative: false,
        spread,
    })
}
