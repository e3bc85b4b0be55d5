//! The churn as text. Pure.

use crate::churn::{Case, Plan, Report};
use crate::exchange::Measured;
use crate::report::format::{NOTHING, count, median, micros, ratio, rounded, spread};
use crate::report::rounds::{
    common_cells, common_headings, ending, heading, how, name, names, peers, place, processes_note,
    until,
};
use crate::report::table::Table;
use crate::run::About;
use crate::screen::Paint;

/// What will be run.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let what = format!("connections that come and go, {}", names(&plan.engines));
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    lines.push(format!(
        "  churn    {} connections at a time: connect, one {}-byte message, close; {}",
        count(plan.churn),
        plan.message_bytes,
        how(plan.rounds, &plan.times)
    ));
    lines.extend(until(plan.until.as_ref()));
    lines.extend(peers(&plan.peers));
    lines.join("\n") + "\n"
}

/// One round, as soon as it is over.
pub fn round_line(measured: &[Measured<Case>], rounds: usize) -> String {
    let figures: Vec<String> = measured
        .iter()
        .map(|one| {
            format!(
                "{} {:>7}/s {:>6.2} µs",
                name(&one.engine),
                rounded(one.exchanged.per_second()),
                one.exchanged.server_cpu_us()
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
    for row in &report.summary {
        if let (Some(cpu), Some(rate)) = (&row.cpu_of_epoll, &row.rate_of_epoll) {
            parts.push(format!(
                "{} of epoll's in the same round: CPU a cycle {}, cycles a second {}",
                name(&row.figures.engine),
                median(cpu, ratio),
                median(rate, ratio)
            ));
        }
    }
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

pub(crate) fn table(report: &Report) -> Table {
    let title = format!("{} at a time, median [min – max]", count(report.plan.churn));
    let headings = ["server CPU a cycle, µs", "÷ epoll's", "cycle p99"]
        .map(str::to_owned)
        .into_iter()
        .chain(common_headings("cycles"));
    let mut table = Table::new(std::iter::once(title).chain(headings));
    for row in &report.summary {
        let cells = [
            spread(&row.figures.cpu_us, |us| format!("{us:.2}")),
            row.cpu_of_epoll
                .as_ref()
                .map_or_else(String::new, |of_epoll| spread(of_epoll, ratio)),
            row.cycle_p99_us
                .as_ref()
                .map_or_else(|| NOTHING.to_owned(), |p99| spread(p99, micros)),
        ];
        let cells = cells.into_iter().chain(common_cells(&row.figures));
        table.row(name(&row.figures.engine), cells);
    }
    table
}
