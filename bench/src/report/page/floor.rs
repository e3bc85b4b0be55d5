//! The page of the command `floor`. Pure.

use super::spreads::{self, Spreads};
use super::{Finding, Page, doubted, skipped};
use crate::floor::result::{Report, Row};
use crate::report::chart::Scale;
use crate::report::floor::{of_floor, table, waits};
use crate::report::format::{count, join, ratio};
use crate::report::ink::Ink;
use crate::report::rounds::{name, names, notes};
use crate::scenario::Engine;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = format!(
        "Throng: {} against the floor of the TCP stack",
        names(&report.plan.engines)
    );
    let mut page = Page::of(&report.about, &report.warnings, title, headline(report));
    let said = of_floor(report).into_iter();
    page.findings = said.map(|(what, said)| Finding::new(&what, said)).collect();
    page.findings.extend(skipped(&report.skipped));
    if !report.summary.is_empty() {
        page.tables.push(table(report));
        let figures = report.summary.iter().map(|row| &row.figures);
        page.notes.extend(waits(report));
        page.notes.extend(notes(figures, &report.warnings));
    }
    spreads::add(&mut page, &charts(report));
    page
}

/// From which multiple to which each engine comes.
fn headline(report: &Report) -> String {
    let said = report.plan.engines.iter().filter_map(|engine| {
        let (low, high) = range(report, *engine)?;
        let [low, high] = [low, high].map(ratio);
        Some(match low == high {
            true => format!("{low} times with {engine}"),
            false => format!("{low} to {high} times with {engine}"),
        })
    });
    let said: Vec<String> = said.collect();
    match said.as_slice() {
        [] => "Nothing was measured against the floor.".to_owned(),
        said => format!(
            "A message costs the server {} what the TCP stack alone takes for it.{}",
            join(said),
            doubted(report.warnings.len())
        ),
    }
}

/// The least and the greatest median of the multiples.
fn range(report: &Report, engine: Engine) -> Option<(f64, f64)> {
    let of_engine = |row: &&Row| row.figures.engine == Some(engine);
    let rows = report.summary.iter().filter(of_engine);
    let medians = rows.filter_map(|row| Some(row.of_floor?.median));
    medians.fold(None, |range, median| {
        let (low, high) = range.unwrap_or((median, median));
        Some((low.min(median), high.max(median)))
    })
}

/// For each count of idle connections: the multiples, and the CPU time itself.
fn charts(report: &Report) -> Vec<Spreads> {
    let beside = |idle: &u64| {
        let idle = *idle;
        let rows = || {
            report
                .summary
                .iter()
                .filter(move |row| row.case.idle == idle)
        };
        let multiples = rows().filter_map(|row| {
            let engine = row.figures.engine?;
            Some((label(row), row.of_floor?, Ink::of(engine)))
        });
        let costs = rows().map(|row| {
            let ink = row.figures.engine.map_or(Ink::Bare, Ink::of);
            (label(row), row.figures.cpu_us, ink)
        });
        [
            Spreads {
                title: format!("Server CPU a message ÷ the floor's, {} idle", count(idle)),
                about: "Round by round; at 1.00 stands the floor, and less is better".to_owned(),
                scale: Scale::AroundOne,
                show: ratio,
                of: multiples.collect(),
            },
            Spreads {
                title: format!("Server CPU a message, µs, {} idle", count(idle)),
                about: "The floor is what the TCP stack alone takes".to_owned(),
                scale: Scale::FromZero,
                show: |us| format!("{us:.2}"),
                of: costs.collect(),
            },
        ]
    };
    report.plan.idle.iter().flat_map(beside).collect()
}

fn label(row: &Row) -> String {
    // The floor is measured beside each engine's own idle connections.
    let whose = match (row.figures.engine, row.case.idle) {
        (None, idle) if idle > 0 => format!(" beside {}'s", names(&row.beside)),
        _ => String::new(),
    };
    format!(
        "{}{whose}, {} active",
        name(&row.figures.engine),
        count(row.case.active)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::floor::result::tests::recorded;
    use crate::report::html::html;

    #[test]
    fn each_engine_is_shown_as_a_multiple_of_the_floor_by_active_and_idle() {
        let report = recorded();
        let page = page(&report);
        let plan = &report.plan;
        assert_eq!(page.charts.len(), 2 * plan.idle.len());
        for idle in &plan.idle {
            let of_idle = page
                .charts
                .iter()
                .find(|chart| {
                    chart.title()
                        == format!("Server CPU a message ÷ the floor's, {} idle", count(*idle))
                })
                .unwrap();
            let words = of_idle.words();
            for engine in &plan.engines {
                for active in &plan.active {
                    let label = format!("{engine}, {} active: ", count(*active));
                    assert!(words.contains(&label), "{words}");
                }
            }
            assert!(
                of_idle.about().contains("95 % interval"),
                "{}",
                of_idle.about()
            );
        }
        assert_eq!(page.findings.len(), plan.engines.len() * plan.active.len());
        assert!(
            page.headline.contains(" times with uring"),
            "{}",
            page.headline
        );
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.measured.clear();
        report.conclude();
        let page = page(&report);
        assert!(page.headline.contains("Nothing") && page.charts.is_empty());
        html(&page).unwrap();
    }
}
