//! The page of the command `selfcheck`. Pure.

use super::spreads::{self, Spreads};
use super::{Finding, Page, doubted};
use crate::exchange::figures;
use crate::report::chart::Scale;
use crate::report::format::percent;
use crate::report::ink::Ink;
use crate::report::rounds::notes;
use crate::report::selfcheck::{counted, table, verdict};
use crate::selfcheck::result::{Report, RunRatios, WIDEST};
use crate::stats::Spread;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = format!(
        "Throng: is {} the same as itself?",
        report.plan.engine.name()
    );
    let headline = verdict(report) + &doubted(report.warnings.len());
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    let tallies = [
        ("CPU a message", &report.verdict.cpu),
        ("messages a second", &report.verdict.rate),
    ];
    page.findings = tallies
        .into_iter()
        .map(|(what, tally)| Finding::new(what, counted(tally).join("; ")))
        .collect();
    if !report.measured.is_empty() {
        page.tables.push(table(report));
        let figures = figures(report.measured.iter());
        page.notes.extend(notes(figures.iter(), &report.warnings));
    }
    spreads::add(
        &mut page,
        &[
            runs(report, "CPU a message", Ink::Uring, |run| run.cpu),
            runs(report, "Messages a second", Ink::Epoll, |run| run.rate),
        ],
    );
    page
}

/// The interval of each run beside 1.00.
fn runs(report: &Report, what: &str, ink: Ink, of: fn(&RunRatios) -> Option<Spread>) -> Spreads {
    let rows = report
        .runs
        .iter()
        .filter_map(|run| Some((format!("run {}", run.run), of(run)?, ink)));
    Spreads {
        title: format!("{what}, B ÷ A, run by run"),
        about: format!(
            "The lines are 1.00 and ±{}, the widest that an interval may be",
            percent(WIDEST)
        ),
        scale: Scale::Within(WIDEST),
        show: |ratio| format!("{ratio:.3}"),
        of: rows.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::html::html;
    use crate::selfcheck::result::tests::recorded;

    #[test]
    fn the_interval_of_each_run_is_shown_for_both_figures() {
        let report = recorded();
        let page = page(&report);
        assert_eq!(page.charts.len(), 2);
        for chart in &page.charts {
            for run in &report.runs {
                let words = chart.words();
                assert!(words.contains(&format!("run {}: ", run.run)), "{words}");
            }
            assert!(chart.about().contains("±8.0 %") && chart.about().contains("95 %"));
        }
        assert_eq!(page.findings.len(), 2);
        assert!(page.findings[0].said.contains("holds 1.00 in"));
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.measured.clear();
        report.conclude();
        let page = page(&report);
        assert!(page.headline.starts_with("No verdict") && page.charts.is_empty());
        html(&page).unwrap();
    }
}
