//! The tail as text. Pure.

use crate::exchange::Measured;
use crate::report::format::{NOTHING, count, join, micros, of_many, ratio, rounded, spread};
use crate::report::rounds::{
    common_cells, common_headings, ending, heading, how, name, names, peers, place, processes_note,
    until,
};
use crate::report::table::Table;
use crate::run::About;
use crate::scenario::Engine;
use crate::screen::Paint;
use crate::stats::Spread;
use crate::tail::result::{Case, Report, Saturation};
use crate::tail::{Plan, SATURATION_ROUNDS, is_left_out};

/// What will be run.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let what = format!("latency in open loop, {}", names(&plan.engines));
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    let idle: Vec<String> = plan.idle.iter().copied().map(count).collect();
    let load: Vec<String> = plan.load_percent.iter().map(u64::to_string).collect();
    lines.push(format!(
        "  tail     {}-byte messages on {} connections beside {} idle, at {} % of saturation, {}",
        plan.message_bytes,
        count(plan.active),
        join(&idle),
        join(&load),
        how(plan.rounds, &plan.times)
    ));
    lines.extend(until(plan.until.as_ref()));
    lines.push(format!(
        "  first    the saturation: {} in closed loop, nothing idle beside",
        of_many(SATURATION_ROUNDS as u64, "round")
    ));
    lines.extend(peers(&plan.peers));
    lines.join("\n") + "\n"
}

/// One round of closed loop, as soon as it is over.
pub fn closed_line(measured: &[Measured<Case>], rounds: usize) -> String {
    let figures: Vec<String> = measured
        .iter()
        .map(|one| {
            let rate = rounded(one.exchanged.per_second());
            let cpu = &one.exchanged.cpu;
            format!(
                "{} {rate:>8}/s (server {:.0} %, client {:.0} % busy)",
                name(&one.engine),
                cpu.server_cores() * 100.0,
                cpu.client_cores() * 100.0
            )
        })
        .collect();
    let round = measured.first().map_or(0, |one| one.round);
    format!("  closed loop  {round}/{rounds}   {}", figures.join("   "))
}

/// What the loads are shares of.
pub fn saturation_line(saturation: &Saturation, engines: &[Engine]) -> String {
    let (left_out, others): (Vec<_>, Vec<_>) = engines.iter().copied().partition(is_left_out);
    let without = match left_out.is_empty() || others.is_empty() {
        true => String::new(),
        false => format!(", {} left out", names(&left_out)),
    };
    format!(
        "  loads are shares of {} messages a second: {}, the slowest in closed loop{without}",
        rounded(saturation.per_second),
        saturation.engine
    )
}

/// One case of one round, as soon as it is over.
pub fn round_line(measured: &[Measured<Case>], rounds: usize) -> String {
    let Some(first) = measured.first() else {
        return String::new();
    };
    let figures: Vec<String> = measured
        .iter()
        .map(|one| {
            let p99 = one.exchanged.client_figure("/messages/latency_us/p99");
            let p99 = p99.map_or_else(|| NOTHING.to_owned(), micros);
            format!("{} {p99:>8}", name(&one.engine))
        })
        .collect();
    format!(
        "  {}  {:>3} % beside {:>9} idle   p99  {}",
        place(first.round, rounds),
        first.case.load_percent,
        count(first.case.idle),
        figures.join("   ")
    )
}

/// How the figures are to be read.
pub(crate) const HOW_LATENCY_COUNTS: &str = "Latency counts from when a message was to be sent, and is that of the whole measurement. Where the client itself came \
     late, it and not the server was starved.";

/// The table, what was skipped, and the doubts.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    if !report.summary.is_empty() {
        parts.push(table(report).render(paint));
        parts.push(HOW_LATENCY_COUNTS.to_owned());
    }
    parts.extend(report.saturation.as_ref().map(|saturation| {
        saturation_line(saturation, &report.plan.engines)
            .trim()
            .to_owned()
    }));
    parts.extend(apart(report));
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

/// Which engines could not be up at the same time.
pub(crate) fn apart(report: &Report) -> Option<String> {
    let mut idle: Vec<u64> = report
        .summary
        .iter()
        .filter(|row| row.beside.len() < report.plan.engines.len())
        .map(|row| row.case.idle)
        .collect();
    idle.dedup();
    let idle: Vec<String> = idle.into_iter().map(count).collect();
    (!idle.is_empty()).then(|| {
        format!(
            "Beside {} idle connections the engines were not all up at the same time, for lack of memory: there their figures \
             are not of the same moments.",
            join(&idle)
        )
    })
}

/// What each engine reached in closed loop; `None` where none was measured.
pub(crate) fn closed_loop(report: &Report) -> Option<Table> {
    let title = format!(
        "{} active in closed loop, nothing idle beside, median [min – max]",
        count(report.plan.active)
    );
    let headings = std::iter::once("server CPU a message, µs".to_owned());
    let headings = headings.chain(common_headings("messages"));
    let mut table = Table::new(std::iter::once(title).chain(headings));
    for figures in report.saturations() {
        let cpu = spread(&figures.cpu_us, |us| format!("{us:.2}"));
        let cells = std::iter::once(cpu).chain(common_cells(&figures));
        table.row(name(&figures.engine), cells);
    }
    (!table.rows().is_empty()).then_some(table)
}

pub(crate) fn table(report: &Report) -> Table {
    let plan = &report.plan;
    let title = format!(
        "{} active, {}-byte messages, median [min – max]",
        count(plan.active),
        plan.message_bytes
    );
    let headings = ["p50", "p99", "p99.9", "p99 ÷ epoll's", "client late p99"]
        .into_iter()
        .chain(["rate not kept", "server CPU a message, µs"])
        .map(str::to_owned)
        .chain(common_headings("messages"));
    let mut table = Table::new(std::iter::once(title).chain(headings));
    let shown = |value: &Option<Spread>, each: fn(f64) -> String| {
        value
            .as_ref()
            .map_or_else(|| NOTHING.to_owned(), |value| spread(value, each))
    };
    let mut group = None;
    for row in &report.summary {
        if group != Some(row.case) {
            group = Some(row.case);
            let named = format!(
                "{} idle, {} % load, {}/s",
                count(row.case.idle),
                row.case.load_percent,
                count(row.case.asked_per_second.unwrap_or(0))
            );
            table.row(&named, []);
        }
        let kept = match row.short {
            0 => String::new(),
            short => format!("{short} of {}", row.figures.per_second.count),
        };
        let ratio = row
            .p99_of_epoll
            .as_ref()
            .map_or_else(String::new, |of_epoll| spread(of_epoll, ratio));
        let cells = [
            shown(&row.p50_us, micros),
            shown(&row.p99_us, micros),
            shown(&row.p999_us, micros),
            ratio,
            shown(&row.client_lateness_p99_us, micros),
            kept,
            spread(&row.figures.cpu_us, |us| format!("{us:.2}")),
        ];
        let cells = cells.into_iter().chain(common_cells(&row.figures));
        table.row(&format!("  {}", name(&row.figures.engine)), cells);
    }
    table
}
