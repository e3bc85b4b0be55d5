//! The page of the command `merge`: what all parts of a fleet did together. Pure.

use super::{Finding, Page, doubted};
use crate::merge::result::{PartRow, Report};
use crate::report::chart::{Chart, PERCENTILES, Row, Rows, Scale};
use crate::report::format::{count, micros, of_many, rounded};
use crate::report::ink::Ink;
use crate::report::merge::{findings, latency, table, title};

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let headline = headline(report) + &doubted(report.warnings.len());
    let mut page = Page::of(&report.about, &[], title(report), headline);
    page.doubts = report.warnings.iter().map(ToString::to_string).collect();
    let said = findings(report).into_iter();
    page.findings = said.map(|(word, said)| Finding::new(word, said)).collect();
    page.tables.push(table(report));
    page.tables.extend(latency(report));
    let rows = [latencies(report), parts(report)];
    let rows = rows.into_iter().filter(|rows| !rows.rows.is_empty());
    page.charts.extend(rows.map(Chart::Rows));
    page.texts.extend(counters(report));
    // Of the hosts there may be many, and of their CPUs the parts say nothing.
    let of_first = |name: &str| format!("{name}, of part {}'s host", first(report));
    page.setting
        .retain(|(name, value)| !value.is_empty() && name != "open files of a measured process");
    for (name, _) in &mut page.setting {
        if [
            "kernel",
            "CPU",
            "CPUs online",
            "memory",
            "clock source",
            "open files (nofile)",
        ]
        .contains(&name.as_str())
        {
            *name = of_first(name);
        }
    }
    page
}

fn first(report: &Report) -> u64 {
    report.parts.first().map_or(1, |part| part.number)
}

fn headline(report: &Report) -> String {
    let held = count(report.counter("established_at_once"));
    let parts = of_many(report.parts.len() as u64, "client");
    let lost = match report.counter("lost") {
        0 => "none was lost".to_owned(),
        lost => format!("{} were lost", count(lost)),
    };
    let missing = match report.missing.len() as u64 {
        0 => String::new(),
        missing => format!(" Not counted: {} of the fleet.", of_many(missing, "part")),
    };
    format!("{held} connections were established at once by {parts}; {lost}.{missing}")
}

fn latencies(report: &Report) -> Rows {
    let rows = report.latency.iter().map(|latency| {
        let p = &latency.latency_us;
        let of = [p.p50, p.p99, p.max].map(|us| us as f64);
        Row::percentiles(latency.kind.clone(), of, Ink::Uring)
    });
    Rows {
        title: "Latency of all parts together".to_owned(),
        about: PERCENTILES.to_owned(),
        scale: Scale::Decades,
        tick: micros,
        rows: rows.collect(),
    }
}

fn parts(report: &Report) -> Rows {
    let row = |part: &PartRow| {
        let established = part.counters.get("established").copied().unwrap_or(0);
        Row {
            label: format!("part {}", part.number),
            shown: count(established),
            value: established as f64,
            range: None,
            ink: Ink::Uring,
        }
    };
    /// More of them make no picture.
    const MOST: usize = 32;
    Rows {
        title: "Connections established, part by part".to_owned(),
        about: match report.parts.len() {
            0..=MOST => "Each was to have its even share".to_owned(),
            more => format!("The first {MOST} of {more}; all stand in the table"),
        },
        scale: Scale::FromZero,
        tick: rounded,
        rows: report.parts.iter().take(MOST).map(row).collect(),
    }
}

/// All sums, and what was asked for.
fn counters(report: &Report) -> Vec<(String, String)> {
    let width = report.counters.keys().map(String::len).max().unwrap_or(0);
    let sums = report.counters.iter();
    let mut sums: Vec<String> = sums
        .map(|(name, sum)| format!("{name:<width$}  {}", count(*sum)))
        .collect();
    for (kind, by_cause) in &report.causes {
        let causes = by_cause.iter();
        sums.extend(causes.map(|(cause, sum)| format!("{kind}, {cause}: {}", count(*sum))));
    }
    let asked = serde_json::to_string_pretty(&report.asked).unwrap_or_default();
    vec![
        ("Counts of all parts, added up".to_owned(), sums.join("\n")),
        ("What the fleet was asked for".to_owned(), asked),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::html::html;
    use crate::report::markdown::markdown;

    /// Recorded from three small clients over loopback.
    fn recorded() -> Report {
        serde_json::from_str(include_str!("../../../testdata/merge.json")).unwrap()
    }

    #[test]
    fn the_whole_stands_first_and_each_part_in_the_table() {
        let report = recorded();
        let page = page(&report);
        let whole = count(report.counter("established_at_once"));
        assert!(
            page.headline.starts_with(&whole) && page.headline.contains("3 clients"),
            "{}",
            page.headline
        );
        let titles: Vec<&str> = page.charts.iter().map(|chart| chart.title()).collect();
        assert_eq!(titles.len(), 2, "{titles:?}");
        let text = markdown(&page);
        for said in [
            "| 1 |",
            "| together |",
            "| connect |",
            "messages_at_hold_end",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        html(&page).unwrap();
    }

    #[test]
    fn what_is_missing_is_in_the_headline() {
        let mut report = recorded();
        report.missing = vec![2];
        report.latency.clear();
        report.latency_by_phase.clear();
        let page = page(&report);
        assert!(
            page.headline.contains("Not counted: 1 part of the fleet"),
            "{}",
            page.headline
        );
        html(&page).unwrap();
    }
}
