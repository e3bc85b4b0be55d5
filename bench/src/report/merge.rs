//! The parts of a fleet as text. Pure.

use crate::merge::result::{Latency, PartRow, Report};
use crate::report::format::{NOTHING, count, figure, micros, of_many, rounded};
use crate::report::table::Table;
use crate::report::text::section;
use crate::screen::Paint;

/// The tables, the clocks, the doubts and the failures.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = vec![paint.bold(&title(report))];
    parts.push(table(report).render(paint));
    parts.extend(latency(report).map(|table| table.render(paint)));
    let lines = findings(report);
    let lines = lines
        .into_iter()
        .map(|(name, said)| format!("{name:<11} {said}"));
    parts.push(lines.collect::<Vec<_>>().join("\n"));
    let doubts = report.warnings.iter();
    let doubts = doubts.map(|doubt| paint.yellow(&doubt.to_string()));
    parts.extend(section(paint.bold("Doubts"), doubts.collect()));
    let failures = report.about.failures.iter();
    let failures =
        failures.map(|failure| paint.red(&format!("{}: {}", failure.during, failure.cause)));
    parts.extend(section(paint.bold("Failures"), failures.collect()));
    if report.about.partial {
        parts.push(paint.red("Partial: parts are missing, or did not run to their end."));
    }
    format!("{}\n", parts.join("\n\n"))
}

pub(crate) fn title(report: &Report) -> String {
    format!(
        "Throng {}: {} of {}, connections to {}",
        report.about.throng_version,
        report.parts.len(),
        of_many(report.of, "part"),
        report.targets()
    )
}

/// What the whole did, in a line each.
pub(crate) fn findings(report: &Report) -> Vec<(&'static str, String)> {
    let counter = |name| count(report.counter(name));
    let mut lines = vec![(
        "established",
        format!(
            "{} of {} at once{}; {} failed, {} lost",
            counter("established_at_once"),
            report.asked("/connections").map_or_else(
                || NOTHING.to_owned(),
                |asked| { asked.parse().map_or(asked, count) }
            ),
            report.ramp.as_ref().map_or_else(String::new, |ramp| {
                let took = micros((ramp.to_us - ramp.from_us) as f64);
                match ramp.connects_per_second {
                    Some(rate) => format!(", in {took} ({} a second)", rounded(rate)),
                    None => format!(", in {took}, steps between"),
                }
            }),
            counter("failed"),
            counter("lost"),
        ),
    )];
    if let Some(held) = &report.hold {
        let together = micros(held.common_us as f64);
        let whole = micros((held.to_us - held.from_us) as f64);
        lines.push((
            "held",
            format!("{together} by all parts together, {whole} from the first to the last"),
        ));
        lines.extend(held.messages_per_second.map(|rate| {
            let said = format!(
                "{} on {} connections, {} a second; {} wrong, {} unanswered",
                counter("messages"),
                counter("active"),
                rounded(rate),
                counter("messages_mismatched"),
                counter("messages_unanswered"),
            );
            ("messages", said)
        }));
        lines.extend(held.cycles_per_second.map(|rate| {
            let said = format!(
                "{} on {} connections, {} a second",
                counter("cycles"),
                counter("churning"),
                rounded(rate)
            );
            ("churn", said)
        }));
    }
    if report.counter("heartbeats") > 0 {
        let said = format!(
            "{} heard, {} late, {} connections missing theirs",
            counter("heartbeats"),
            counter("heartbeats_late"),
            counter("heartbeats_missing")
        );
        lines.push(("heartbeats", said));
    }
    let starts = || report.parts.iter().filter_map(|part| part.first_connect_us);
    if let (Some(first), Some(last)) = (starts().min(), starts().max()) {
        let [first, last] = [first, last].map(|us| micros(us as f64));
        lines.push((
            "start",
            format!("first connects from {first} to {last} after the common start"),
        ));
    }
    lines.push(("clocks", report.clocks.to_string()));
    lines
}

/// Part by part, and the whole.
pub(crate) fn table(report: &Report) -> Table {
    let headings = [
        "part",
        "host",
        "first connect",
        "established",
        "failed",
        "lost",
        "heartbeats",
        "messages",
        "cycles",
        "ended",
    ];
    const COUNTED: [&str; 6] = [
        "established",
        "failed",
        "lost",
        "heartbeats",
        "messages",
        "cycles",
    ];
    let mut table = Table::new(headings.map(str::to_owned));
    let cells = |counter: &dyn Fn(&str) -> u64| COUNTED.map(|name| count(counter(name)));
    for part in &report.parts {
        let own = |name: &str| part.counters.get(name).copied().unwrap_or(0);
        let mut row = vec![
            part.host.clone().unwrap_or_else(|| NOTHING.to_owned()),
            first_connect(part),
        ];
        row.extend(cells(&own));
        row.push(part.ended.clone());
        table.row(&part.number.to_string(), row);
    }
    let mut row = vec![String::new(), String::new()];
    row.extend(cells(&|name: &str| report.counter(name)));
    table.row("together", row);
    table
}

fn first_connect(part: &PartRow) -> String {
    figure(part.first_connect_us.map(|us| us as f64), micros)
}

/// What took how long, over the whole run and in each phase; none where nothing was measured.
pub(crate) fn latency(report: &Report) -> Option<Table> {
    let headings = [
        "latency of all parts",
        "count",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
    ];
    let mut table = Table::new(headings.map(str::to_owned));
    for latency in report.latency.iter().chain(&report.latency_by_phase) {
        let p = &latency.latency_us;
        let times = [p.p50, p.p90, p.p99, p.p999, p.p9999, p.max];
        let times = times.map(|us| micros(us as f64));
        table.row(
            &named(latency),
            std::iter::once(count(p.count)).chain(times),
        );
    }
    (!table.rows().is_empty()).then_some(table)
}

pub(crate) fn named(latency: &Latency) -> String {
    match &latency.phase {
        Some(phase) => format!("{}, {phase}", latency.kind),
        None => latency.kind.clone(),
    }
}
