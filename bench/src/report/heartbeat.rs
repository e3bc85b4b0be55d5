//! The heartbeat as text. Pure.

use crate::exchange::Measured;
use crate::heartbeat::{Case, Plan, Report};
use crate::report::format::{NOTHING, count, median, micros, ratio, rounded, span, spread};
use crate::report::rounds::{
    common_cells, common_headings, ending, heading, how, name, names, place, processes_note, until,
};
use crate::report::table::Table;
use crate::run::About;
use crate::screen::Paint;
use crate::stats::Spread;

/// What will be run.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let what = format!("heartbeats, {}", names(&plan.engines));
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    lines.push(format!(
        "  hold     {} connections with a heartbeat every {}; {}",
        count(plan.connections),
        span(plan.heartbeat_ms),
        how(plan.rounds, &plan.times)
    ));
    lines.extend(until(plan.until.as_ref()));
    lines.join("\n") + "\n"
}

/// One round, as soon as it is over.
pub fn round_line(measured: &[Measured<Case>], rounds: usize) -> String {
    let figures: Vec<String> = measured
        .iter()
        .map(|one| {
            let late = one.exchanged.client_figure("/heartbeats/lateness_us/p99");
            format!(
                "{} {:>7}/s {:>6.2} µs, p99 late {}",
                name(&one.engine),
                rounded(one.exchanged.per_second()),
                one.exchanged.server_cpu_us(),
                late.map_or_else(|| NOTHING.to_owned(), micros)
            )
        })
        .collect();
    let round = measured.first().map_or(0, |one| one.round);
    let place = place(round, rounds);
    format!("  {place}   {}", figures.join("   "))
}

/// The table, what it says, and the doubts.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    if !report.summary.is_empty() {
        parts.push(table(report).render(paint));
    }
    parts.extend(findings(report));
    let processes = processes_note(report.summary.iter().map(|row| &row.figures));
    parts.extend(ending(
        &report.about,
        &report.skipped,
        processes,
        &report.warnings,
        paint,
    ));
    format!("\n{}\n", parts.join("\n\n"))
}

/// What the rounds say, in sentences.
fn findings(report: &Report) -> Vec<String> {
    let ratios = report.summary.iter().filter_map(|row| {
        let cpu = row.cpu_of_epoll.as_ref()?;
        let engine = name(&row.figures.engine);
        let cpu = median(cpu, ratio);
        Some(format!(
            "{engine}: CPU a heartbeat {cpu} of epoll's in the same round."
        ))
    });
    let missing = report.summary.iter().filter(|row| row.missing > 0);
    let missing = missing.map(|row| {
        let engine = name(&row.figures.engine);
        format!("{engine}: {} heartbeats missing.", count(row.missing))
    });
    ratios.chain(missing).collect()
}

pub(crate) fn table(report: &Report) -> Table {
    let title = format!(
        "{} connections, median [min – max]",
        count(report.plan.connections)
    );
    let headings = [
        "server CPU a heartbeat, µs",
        "÷ epoll's",
        "late p50",
        "late p99",
        "late p99.9",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(common_headings("heartbeats"));
    let mut table = Table::new(std::iter::once(title).chain(headings));
    for row in &report.summary {
        let late = |late: &Option<Spread>| {
            late.as_ref()
                .map_or_else(|| NOTHING.to_owned(), |late| spread(late, micros))
        };
        let cells = [
            spread(&row.figures.cpu_us, |us| format!("{us:.2}")),
            row.cpu_of_epoll
                .as_ref()
                .map_or_else(String::new, |of_epoll| spread(of_epoll, ratio)),
            late(&row.late_p50_us),
            late(&row.late_p99_us),
            late(&row.late_p999_us),
        ];
        let cells = cells.into_iter().chain(common_cells(&row.figures));
        table.row(name(&row.figures.engine), cells);
    }
    table
}
