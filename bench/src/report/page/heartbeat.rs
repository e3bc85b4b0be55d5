//! The page of the command `heartbeat`. Pure.

use super::{Finding, Page};
use crate::heartbeat::{Report, Row as Of};
use crate::report::chart::{Chart, Row, Rows, Scale};
use crate::report::format::{count, micros, span};
use crate::report::heartbeat::{findings, table};
use crate::report::ink::Ink;
use crate::report::rounds::names;
use crate::stats::Spread;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let plan = &report.plan;
    let (connections, every) = (count(plan.connections), span(plan.heartbeat_ms));
    let title = format!("Throng: heartbeats, {}", names(&plan.engines));
    let said = findings(report);
    let headline = match said.first() {
        Some(first) => format!("{connections} connections, a heartbeat every {every}. {first}"),
        None => {
            format!("{connections} connections, a heartbeat every {every}: nothing to compare.")
        }
    };
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    page.findings = said
        .into_iter()
        .skip(1)
        .map(|said| Finding::new("engines", said))
        .collect();
    if !report.summary.is_empty() {
        let cpu = |row: &Of| Some(row.figures.cpu_us);
        page.charts = vec![
            Chart::Rows(rows(report, "Server CPU a heartbeat", cpu)),
            Chart::Rows(rows(report, "Heartbeats late, p99, at the client", |row| {
                row.late_p99_us
            })),
        ];
        page.tables.push(table(report));
    }
    page
}

fn rows(report: &Report, title: &str, of: fn(&Of) -> Option<Spread>) -> Rows {
    let row = |row: &Of| {
        let (spread, engine) = (of(row)?, row.figures.engine?);
        Some(Row {
            label: engine.to_string(),
            value: spread.median,
            shown: micros(spread.median),
            range: Some((spread.min, spread.max)),
            ink: Ink::of(engine),
        })
    };
    Rows {
        title: title.to_owned(),
        about: "Median of the rounds, with the least and the most".to_owned(),
        scale: Scale::FromZero,
        tick: micros,
        rows: report.summary.iter().filter_map(row).collect(),
    }
}
