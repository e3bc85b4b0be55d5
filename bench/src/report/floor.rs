//! The floor as text. Pure.

use crate::exchange::Measured;
use crate::floor::Plan;
use crate::floor::result::{Case, Report, Row};
use crate::report::format::{count, join, median, percent, ratio, spread};
use crate::report::rounds::{
    common_cells, common_headings, ending, heading, how, name, names, peers, place, processes_note,
    until,
};
use crate::report::table::Table;
use crate::run::About;
use crate::screen::Paint;

/// What will be run.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let mut lines = heading(
        &format!(
            "{} against the floor of the TCP stack",
            names(&plan.engines)
        ),
        plan.estimate().as_secs(),
        about,
        paint,
    );
    let counts = |values: &[u64]| {
        let values: Vec<String> = values.iter().copied().map(count).collect();
        join(&values)
    };
    lines.push(format!(
        "  echo     {}-byte messages on {} connections beside {} idle, {}",
        plan.message_bytes,
        counts(&plan.active),
        counts(&plan.idle),
        how(plan.rounds, &plan.times)
    ));
    lines.extend(until(plan.until.as_ref()));
    if let Some(slots) = plan.table_slots {
        lines.push(format!("  tables   of {} slots", count(slots.into())));
    }
    lines.extend(peers(&plan.peers));
    lines.join("\n") + "\n"
}

/// One case of one round, as soon as it is over.
pub fn round_line(measured: &[Measured<Case>], rounds: usize) -> String {
    let Some(first) = measured.first() else {
        return String::new();
    };
    let figures: Vec<String> = measured
        .iter()
        .map(|one| {
            let us = one.exchanged.server_cpu_us();
            format!("{} {us:>6.2} µs", name(&one.engine))
        })
        .collect();
    format!(
        "  {}  {:>7} active beside {:>9} idle   {}",
        place(first.round, rounds),
        count(first.case.active),
        count(first.case.idle),
        figures.join("   ")
    )
}

/// The tables, what they say, and the doubts.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    if !report.summary.is_empty() {
        parts.push(table(report).render(paint));
        parts.push(multiples(report, paint));
        parts.extend(waits(report));
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
    let title = format!(
        "{}-byte echo, median [min – max]",
        report.plan.message_bytes
    );
    let headings = ["server CPU a message, µs", "× floor"]
        .map(str::to_owned)
        .into_iter()
        .chain(common_headings("messages"));
    let mut table = Table::new(std::iter::once(title).chain(headings));
    let mut group = None;
    for row in &report.summary {
        if group != Some((row.case, &row.beside)) {
            group = Some((row.case, &row.beside));
            let Case { idle, active } = row.case;
            let held_by = match idle {
                0 => String::new(),
                _ => format!(" (held by {})", names(&row.beside)),
            };
            let named = format!("{} active, {} idle{held_by}", count(active), count(idle));
            table.row(&named, []);
        }
        let cells = [
            spread(&row.figures.cpu_us, |us| format!("{us:.2}")),
            row.of_floor
                .map_or_else(String::new, |of_floor| spread(&of_floor, ratio)),
        ];
        let cells = cells.into_iter().chain(common_cells(&row.figures));
        table.row(&format!("  {}", name(&row.figures.engine)), cells);
    }
    table
}

/// Each engine as a multiple of the floor, and how much that changes with the idle connections.
fn multiples(report: &Report, paint: Paint) -> String {
    let said = of_floor(report).into_iter();
    let said = said.map(|(what, said)| format!("\n  {what}: {said}"));
    paint.bold("Server CPU a message, as a multiple of the floor's in the same round: median")
        + &said.collect::<String>()
}

/// Of which engine on how many connections, and what is to be said of its multiples.
pub(crate) fn of_floor(report: &Report) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for engine in &report.plan.engines {
        for active in &report.plan.active {
            let rows: Vec<(&Row, String, f64)> = report
                .summary
                .iter()
                .filter(|row| row.figures.engine == Some(*engine) && row.case.active == *active)
                .filter_map(|row| {
                    let of_floor = row.of_floor?;
                    Some((row, median(&of_floor, ratio), of_floor.median))
                })
                .collect();
            if rows.is_empty() {
                continue;
            }
            let said: Vec<String> = rows
                .iter()
                .map(|(row, said, _)| format!("{said} beside {} idle", count(row.case.idle)))
                .collect();
            let medians = rows.iter().map(|(.., median)| *median);
            let most = medians.clone().fold(f64::MIN, f64::max);
            let least = medians.fold(f64::MAX, f64::min);
            let change = match rows.len() {
                1 => String::new(),
                _ => format!(
                    "; the most is {} above the least",
                    percent(most / least - 1.0)
                ),
            };
            all.push((
                format!("{engine}, {} active", count(*active)),
                format!("{}{change}", said.join(", ")),
            ));
        }
    }
    all
}

/// Whether the floor was one: its receives are to find a message waiting.
pub(crate) fn waits(report: &Report) -> Option<String> {
    let most = report
        .summary
        .iter()
        .filter_map(|row| row.waits_per_message)
        .max_by(f64::total_cmp)?;
    Some(format!(
        "The floor's server slept in at most {} of its receives; in the others a message was waiting.",
        percent(most)
    ))
}
