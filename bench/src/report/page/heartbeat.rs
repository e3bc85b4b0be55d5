//! The page of the command `heartbeat`. Pure.

use super::spreads::{self, Spreads, against_epoll};
use super::{Finding, Page, doubted, skipped};
use crate::heartbeat::{Report, Row};
use crate::report::chart::Scale;
use crate::report::format::{count, join, micros, of_many, ratio, span};
use crate::report::heartbeat::table;
use crate::report::ink::Ink;
use crate::report::rounds::{name, names, notes};
use crate::stats::{Side, Spread};

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = format!("Throng: heartbeats, {}", names(&report.plan.engines));
    let mut page = Page::of(&report.about, &report.warnings, title, headline(report));
    page.findings = findings(report);
    if !report.summary.is_empty() {
        page.tables.push(table(report));
        let figures = report.summary.iter().map(|row| &row.figures);
        page.notes.extend(notes(figures, &report.warnings));
    }
    spreads::add(&mut page, &charts(report));
    page
}

fn headline(report: &Report) -> String {
    let plan = &report.plan;
    let said = report.summary.iter().map(|row| {
        let us = row.figures.cpu_us.median;
        format!("{us:.2} µs with {}", name(&row.figures.engine))
    });
    let said: Vec<String> = said.collect();
    match said.as_slice() {
        [] => "Nothing was measured.".to_owned(),
        said => format!(
            "On {} connections with a heartbeat every {}, one costs the server {} of CPU time.{}",
            count(plan.connections),
            span(plan.heartbeat_ms),
            join(said),
            doubted(report.warnings.len())
        ),
    }
}

fn findings(report: &Report) -> Vec<Finding> {
    let compared = report.summary.iter().filter_map(|row| {
        let ratios = row.cpu_of_epoll.as_ref()?;
        let engine = row.figures.engine?;
        Some(against_epoll(
            engine,
            "CPU a heartbeat",
            ratios,
            Side::Below,
        ))
    });
    let late = report.summary.iter().filter_map(|row| {
        let p99 = micros(row.late_p99_us?.median);
        Some(format!("{p99} with {}", name(&row.figures.engine)))
    });
    let late: Vec<String> = late.collect();
    let late = (!late.is_empty()).then(|| {
        let said = format!("at the client, p99: {}", join(&late));
        Finding::new("late", said)
    });
    let missing = report.summary.iter().filter(|row| row.missing > 0);
    let missing = missing.map(|row| {
        let engine = name(&row.figures.engine);
        let said = format!("{} with {engine}", of_many(row.missing, "heartbeat"));
        Finding::new("missing", said)
    });
    compared
        .chain(late)
        .chain(missing)
        .chain(skipped(&report.skipped))
        .collect()
}

fn charts(report: &Report) -> Vec<Spreads> {
    type Figure = (&'static str, fn(&Row) -> Option<Spread>);
    const LATE: [Figure; 3] = [
        ("p50", |row| row.late_p50_us),
        ("p99", |row| row.late_p99_us),
        ("p99.9", |row| row.late_p999_us),
    ];
    let of = |value: fn(&Row) -> Option<Spread>| {
        report.summary.iter().filter_map(move |row| {
            let engine = row.figures.engine?;
            Some((engine.to_string(), value(row)?, Ink::of(engine)))
        })
    };
    let late = LATE.iter().flat_map(|(percentile, value)| {
        of(*value).map(move |(engine, late, ink)| (format!("{percentile}, {engine}"), late, ink))
    });
    vec![
        Spreads {
            title: "CPU a heartbeat ÷ epoll's, pair by pair".to_owned(),
            about: "At 1.00 both are equal; less is better".to_owned(),
            scale: Scale::AroundOne,
            show: ratio,
            of: of(|row| row.cpu_of_epoll).collect(),
        },
        Spreads {
            title: "Server CPU a heartbeat, µs".to_owned(),
            about: "Less is better".to_owned(),
            scale: Scale::FromZero,
            show: |us| format!("{us:.2}"),
            of: of(|row| Some(row.figures.cpu_us)).collect(),
        },
        Spreads {
            title: "Heartbeats late, at the client".to_owned(),
            about: "From when one was due; each step to the right is ten times as long, and what is below 1 µs stands at 1 µs"
                .to_owned(),
            scale: Scale::Decades,
            show: micros,
            of: late.collect(),
        },
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::heartbeat::tests::recorded;
    use crate::report::html::html;

    #[test]
    fn a_heartbeat_is_shown_by_its_cost_and_how_late_it_came() {
        let page = page(&recorded());
        assert_eq!(page.charts.len(), 3);
        let late = page.charts[2].words();
        for label in ["p50, uring: ", "p99, epoll: ", "p99.9, uring: "] {
            assert!(late.contains(label), "{late}");
        }
        assert!(page.findings[0].said.starts_with("CPU a heartbeat: uring"));
        assert!(page.headline.contains("µs with epoll"), "{}", page.headline);
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.measured.clear();
        report.conclude();
        let page = page(&report);
        assert!(page.headline == "Nothing was measured." && page.charts.is_empty());
        html(&page).unwrap();
    }
}
