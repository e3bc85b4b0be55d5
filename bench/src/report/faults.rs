//! Faults as text. Pure.

use crate::faults::fault::{Fault, Kind};
use crate::faults::plan::Plan;
use crate::faults::result::{Faulted, Footing, Report};
use crate::report::format::{NOTHING, bytes, count, join, micros, of_many, rounded, span, spread};
use crate::report::rounds::{ending, heading};
use crate::report::table::Table;
use crate::run::About;
use crate::screen::Paint;
use crate::stats::Spread;

/// What will be run.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let what = format!("faults, {}", plan.engine);
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    let often = match plan.soak {
        Some(soak) => format!(
            "for {}, in random order (seed {})",
            span(soak.for_ms),
            soak.seed
        ),
        None => format!("{} each", times(plan.cycles)),
    };
    lines.push(format!("  faults   {}; {often}", join(&plan.faults)));
    lines.push(format!(
        "  held     {} connections, of which {} exchange {} messages a second",
        count(plan.connections),
        count(plan.active),
        count(plan.message_rate)
    ));
    lines.join("\n") + "\n"
}

/// A fault, as soon as it is over.
pub fn fault_line(faulted: &Faulted, paint: Paint) -> String {
    let recovered: Vec<String> = recovered(faulted)
        .map(|(fault, took)| match faulted.fault {
            Some(_) => took,
            None => format!("{fault} {took}"),
        })
        .collect();
    let wrong = match faulted.wrong.as_slice() {
        [] => String::new(),
        wrong => format!("; {}", paint.red(&join(wrong))),
    };
    format!(
        "  {:<14} {}: lost outside {}; back within {}{wrong}",
        faulted.name(),
        times(faulted.cycles.len() as u64),
        count(faulted.outside.sum()),
        match recovered.is_empty() {
            true => NOTHING.to_owned(),
            false => recovered.join(", "),
        },
    )
}

/// A fault that cannot be brought about here.
pub fn skipped_line(fault: Fault, why: &str) -> String {
    format!("  {:<14} skipped: {why}", fault.name())
}

/// The table, what it says, and the doubts.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    if !report.faulted.is_empty() {
        parts.push(table(report).render(paint));
        parts.push(notes().join("\n"));
    }
    for (name, wrong) in wrong(report) {
        parts.push(paint.red(&format!("{name}: {wrong}")));
    }
    for skipped in &report.skipped {
        parts.push(format!("Skipped: {}: {}", skipped.fault, skipped.why));
    }
    parts.extend(ending(&report.about, &[], None, &report.warnings, paint));
    format!("\n{}\n", parts.join("\n\n"))
}

/// What is not as it should be, by fault.
pub(crate) fn wrong(report: &Report) -> impl Iterator<Item = (String, String)> {
    let faulted = report.faulted.iter().filter(|one| !one.wrong.is_empty());
    faulted.map(|one| (one.name(), join(&one.wrong)))
}

/// What one has to know to read the table.
pub(crate) fn notes() -> [String; 2] {
    [
        "Lost outside: connections, and messages, greetings and heartbeats, of those that the fault was not meant for; \
         where a server ends or is replaced, of all that came back."
            .to_owned(),
        "Growth: after the last quarter of the times against after the quarter before the middle (medians), since a leak adds each time, while tables, buffers and what an allocator keeps come with the first ones; of fewer than 8 times, after the last against after the first. \
         Sockets and slab are the whole host's, and so is how often a connect found an accept queue full (it is repeated); slots are those of the servers' tables that were in use at the end without a connection."
            .to_owned(),
    ]
}

pub(crate) fn table(report: &Report) -> Table {
    let headings = [
        "times",
        "hit",
        "held outside",
        "connections lost",
        "bytes lost",
        "back within, median [min – max]",
        "other server ready",
        "accept queue found full",
        "server RSS growth",
        "sockets growth",
        "slab growth",
        "slots lost",
    ];
    let headings = std::iter::once(format!("faults, {}", report.plan.engine))
        .chain(headings.map(str::to_owned));
    let mut table = Table::new(headings);
    for faulted in &report.faulted {
        rows(faulted)
            .into_iter()
            .for_each(|(name, cells)| table.row(&name, cells));
    }
    table
}

/// One row, or of a soak one for each fault, under one for all.
fn rows(faulted: &Faulted) -> Vec<(String, Vec<String>)> {
    let growth = |of: fn(&Footing) -> u64| faulted.growth(of);
    let signed = |more: Option<i64>, each: fn(f64) -> String| {
        more.map_or(NOTHING.to_owned(), |more| each(more as f64))
    };
    let outside = match faulted.fault.map(Fault::kind) {
        Some(Kind::All) => NOTHING.to_owned(),
        _ => count(faulted.held),
    };
    let took: Vec<(Fault, String)> = recovered(faulted).collect();
    let ready: Vec<f64> = faulted
        .cycles
        .iter()
        .filter_map(|cycle| cycle.ready_ms)
        .map(|ms| ms as f64 * 1e3)
        .collect();
    let overflows = faulted.cycles.iter();
    let overflows = overflows.map(|cycle| cycle.listen_overflows as f64);
    let name = match faulted.fault {
        Some(_) if faulted.engine.name() != "uring" => {
            format!("{} ({})", faulted.name(), faulted.engine)
        }
        _ => faulted.name(),
    };
    let of_one = match (faulted.fault, took.as_slice()) {
        (Some(_), [(_, took)]) => took.clone(),
        _ => String::new(),
    };
    let mut rows = vec![(
        name,
        vec![
            count(faulted.cycles.len() as u64),
            count(faulted.victims),
            outside,
            count(faulted.outside.connections + faulted.outside.refused),
            count(faulted.outside.said()),
            of_one,
            Spread::of(ready).map_or(String::new(), |ready| spread(&ready, micros)),
            Spread::of(overflows).map_or(String::new(), |overflows| spread(&overflows, rounded)),
            signed(growth(|footing| footing.server_rss_bytes), bytes),
            signed(growth(|footing| footing.sockets), |more| {
                format!("{more:.0}")
            }),
            signed(growth(|footing| footing.slab_bytes), bytes),
            faulted.slots_lost().map_or(NOTHING.to_owned(), count),
        ],
    )];
    if faulted.fault.is_none() {
        for (fault, took) in took {
            let cycles = faulted.cycles.iter();
            let times = cycles.filter(|cycle| cycle.fault == fault).count();
            let mut cells = vec![String::new(); 6];
            cells[0] = count(times as u64);
            cells[5] = took;
            rows.push((format!("  {fault}"), cells));
        }
    }
    rows
}

/// How long recovery took, by fault.
fn recovered(faulted: &Faulted) -> impl Iterator<Item = (Fault, String)> {
    let took = faulted.recovered().into_iter();
    took.map(|(fault, ms)| (fault, spread(&ms, |ms| micros(ms * 1e3))))
}

fn times(number: u64) -> String {
    match number {
        1 => "once".to_owned(),
        number => of_many(number, "time"),
    }
}
