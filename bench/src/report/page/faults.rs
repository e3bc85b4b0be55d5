//! The page of the command `faults`. Pure.

use super::spreads::{self, Spreads};
use super::{Finding, Page};
use crate::faults::result::Report;
use crate::report::chart::Scale;
use crate::report::faults::{notes, table, wrong};
use crate::report::format::{count, micros, of_many};
use crate::report::ink::Ink;
use crate::stats::Spread;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = format!("Throng: faults, {}", report.plan.engine);
    let mut page = Page::of(&report.about, &report.warnings, title, headline(report));
    let wrong = wrong(report).map(|(name, wrong)| Finding::new(&name, wrong));
    let skipped = report.skipped.iter();
    let skipped = skipped.map(|one| Finding::new("skipped", format!("{}: {}", one.fault, one.why)));
    page.findings = wrong.chain(skipped).collect();
    if !report.faulted.is_empty() {
        page.tables.push(table(report));
        page.notes.extend(notes());
    }
    spreads::add(&mut page, &[chart(report)]);
    page
}

fn headline(report: &Report) -> String {
    let cycles: usize = report.faulted.iter().map(|one| one.cycles.len()).sum();
    if cycles == 0 {
        return "Nothing was measured.".to_owned();
    }
    let lost: u64 = report.faulted.iter().map(|one| one.outside.sum()).sum();
    let lost = match lost {
        0 => "nothing was lost outside them".to_owned(),
        lost => format!("{} lost outside them", of_many(lost, "thing was")),
    };
    format!(
        "With {} connections held, {} came, and {lost}.",
        count(report.plan.connections),
        of_many(cycles as u64, "fault")
    )
}

fn chart(report: &Report) -> Spreads {
    let all = report.faulted.iter().flat_map(|faulted| {
        let ink = Ink::of(faulted.engine);
        faulted
            .recovered()
            .into_iter()
            .map(move |(fault, ms)| (fault.name(), in_us(ms), ink))
    });
    Spreads {
        title: "Back within".to_owned(),
        about: "From the fault, or its end, until all was as before; each step to the right is ten times as long".to_owned(),
        scale: Scale::Decades,
        show: micros,
        of: all.collect(),
    }
}

fn in_us(ms: Spread) -> Spread {
    let us = |ms: f64| ms * 1e3;
    Spread {
        min: us(ms.min),
        q1: us(ms.q1),
        median: us(ms.median),
        q3: us(ms.q3),
        max: us(ms.max),
        interval: ms.interval.map(|interval| crate::stats::Interval {
            low: us(interval.low),
            high: us(interval.high),
        }),
        ..ms
    }
}
