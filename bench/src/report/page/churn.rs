//! The page of the command `churn`. Pure.

use super::spreads::{self, Spreads, against_epoll};
use super::{Finding, Page, doubted, skipped};
use crate::churn::{Report, Row};
use crate::report::chart::Scale;
use crate::report::churn::table;
use crate::report::format::{count, join, micros, ratio, rounded};
use crate::report::ink::Ink;
use crate::report::rounds::{name, names, notes};
use crate::stats::{Side, Spread};

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = format!(
        "Throng: {} connections that come and go, {}",
        count(report.plan.churn),
        names(&report.plan.engines)
    );
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
    let said = report.summary.iter().map(|row| {
        let us = row.figures.cpu_us.median;
        format!("{us:.2} µs with {}", name(&row.figures.engine))
    });
    let said: Vec<String> = said.collect();
    match said.as_slice() {
        [] => "Nothing was measured.".to_owned(),
        said => format!(
            "A connection that comes, exchanges a message and goes costs the server {} of CPU time.{}",
            join(said),
            doubted(report.warnings.len())
        ),
    }
}

fn findings(report: &Report) -> Vec<Finding> {
    let each = |row: &Row| {
        let engine = row.figures.engine?;
        let cpu = row.cpu_of_epoll.as_ref();
        let rate = row.rate_of_epoll.as_ref();
        Some([
            cpu.map(|ratios| against_epoll(engine, "CPU a cycle", ratios, Side::Below)),
            rate.map(|ratios| against_epoll(engine, "cycles a second", ratios, Side::Above)),
        ])
    };
    let compared = report.summary.iter().filter_map(each).flatten().flatten();
    let p99 = report.summary.iter().filter_map(|row| {
        let p99 = micros(row.cycle_p99_us?.median);
        Some(format!("{p99} with {}", name(&row.figures.engine)))
    });
    let p99: Vec<String> = p99.collect();
    let p99 = (!p99.is_empty()).then(|| {
        let said = format!("from connect to the echo's end, p99: {}", join(&p99));
        Finding::new("a cycle takes", said)
    });
    compared
        .chain(p99)
        .chain(skipped(&report.skipped))
        .collect()
}

fn charts(report: &Report) -> Vec<Spreads> {
    let of = |value: fn(&Row) -> Option<Spread>| {
        let rows = report.summary.iter().filter_map(move |row| {
            let engine = row.figures.engine?;
            Some((engine.to_string(), value(row)?, Ink::of(engine)))
        });
        rows.collect::<Vec<_>>()
    };
    let ratios = report.summary.iter().flat_map(|row| {
        let both = [
            ("CPU a cycle", row.cpu_of_epoll),
            ("cycles a second", row.rate_of_epoll),
        ];
        both.into_iter().filter_map(|(what, ratios)| {
            let engine = row.figures.engine?;
            Some((format!("{engine}, {what}"), ratios?, Ink::of(engine)))
        })
    });
    let chart = |title: &str, about: &str, show, of| Spreads {
        title: title.to_owned(),
        about: about.to_owned(),
        scale: Scale::FromZero,
        show,
        of,
    };
    vec![
        Spreads {
            title: "Share of epoll's, pair by pair".to_owned(),
            about: "At 1.00 both are equal. Less CPU is better, more cycles are better".to_owned(),
            scale: Scale::AroundOne,
            show: ratio,
            of: ratios.collect(),
        },
        chart(
            "Server CPU a cycle, µs",
            "A cycle is a connect, a message echoed, a close; less is better",
            |us| format!("{us:.2}"),
            of(|row| Some(row.figures.cpu_us)),
        ),
        chart(
            "Cycles a second",
            "More is better",
            rounded,
            of(|row| Some(row.figures.per_second)),
        ),
        chart(
            "Time of a cycle, p99",
            "From the start of a connect to the end of the echo, at the client",
            micros,
            of(|row| row.cycle_p99_us),
        ),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::churn::tests::recorded;
    use crate::report::html::html;

    #[test]
    fn a_cycle_is_shown_by_its_cost_its_rate_and_its_time() {
        let page = page(&recorded());
        let titles: Vec<&str> = page.charts.iter().map(|chart| chart.title()).collect();
        assert_eq!(
            titles,
            [
                "Share of epoll's, pair by pair",
                "Server CPU a cycle, µs",
                "Cycles a second",
                "Time of a cycle, p99"
            ]
        );
        for chart in &page.charts[1..] {
            let words = chart.words();
            assert!(
                words.contains("uring: ") && words.contains("epoll: "),
                "{words}"
            );
        }
        let said: Vec<&str> = page.findings.iter().map(|one| one.said.as_str()).collect();
        assert!(said[0].starts_with("CPU a cycle: uring has "), "{said:?}");
        assert!(page.headline.contains("µs with epoll"), "{}", page.headline);
    }

    #[test]
    fn a_run_of_one_engine_and_one_that_came_to_nothing_are_told() {
        let mut report = recorded();
        report
            .measured
            .retain(|one| one.beside[0] != one.engine.unwrap() || one.round == 1);
        report.measured.truncate(1);
        report.conclude();
        html(&page(&report)).unwrap();
        report.measured.clear();
        report.conclude();
        let page = page(&report);
        assert!(page.headline == "Nothing was measured." && page.charts.is_empty());
        html(&page).unwrap();
    }
}
