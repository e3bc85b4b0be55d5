//! The page of the command `tail`. Pure.

use super::spreads::{self, Spreads, against_epoll};
use super::{Finding, Page, doubted, skipped};
use crate::report::chart::Scale;
use crate::report::format::{count, join, micros, ratio, rounded};
use crate::report::ink::Ink;
use crate::report::rounds::{name, names, notes};
use crate::report::tail::{HOW_LATENCY_COUNTS, apart, closed_loop, saturation_line, table};
use crate::stats::{Side, Spread};
use crate::tail::result::{Case, Report, Row};

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = format!(
        "Throng: latency in open loop, {}",
        names(&report.plan.engines)
    );
    let mut page = Page::of(&report.about, &report.warnings, title, headline(report));
    page.findings = findings(report);
    if !report.summary.is_empty() {
        page.tables.push(table(report));
        page.notes.push(HOW_LATENCY_COUNTS.to_owned());
        page.notes.extend(apart(report));
        let figures = report.summary.iter().map(|row| &row.figures);
        page.notes.extend(notes(figures, &report.warnings));
    }
    page.tables.extend(closed_loop(report));
    spreads::add(&mut page, &charts(report));
    page
}

/// The p99 of each engine where it is hardest: at the greatest load beside the most idle connections.
fn headline(report: &Report) -> String {
    let with_p99 = || report.summary.iter().filter(|row| row.p99_us.is_some());
    let hardest = with_p99().map(|row| (row.case.load_percent, row.case.idle));
    let Some(hardest) = hardest.max() else {
        return "No latency was measured.".to_owned();
    };
    let rows = with_p99().filter(|row| (row.case.load_percent, row.case.idle) == hardest);
    let said: Vec<String> = rows
        .filter_map(|row| {
            let p99 = micros(row.p99_us?.median);
            Some(format!("{p99} with {}", name(&row.figures.engine)))
        })
        .collect();
    let (load, idle) = hardest;
    format!(
        "At {load} % of saturation beside {} idle connections, p99 is {}.{}",
        count(idle),
        join(&said),
        doubted(report.warnings.len())
    )
}

fn findings(report: &Report) -> Vec<Finding> {
    let compared = report.summary.iter().filter_map(|row| {
        let what = format!("p99 {}", at(&row.case));
        let ratios = row.p99_of_epoll.as_ref()?;
        Some(against_epoll(
            row.figures.engine?,
            &what,
            ratios,
            Side::Below,
        ))
    });
    let short = report.summary.iter().filter(|row| row.short > 0);
    let short = short.map(|row| {
        let (short, all) = (row.short, row.figures.per_second.count);
        let engine = name(&row.figures.engine);
        format!("by {engine} {} in {short} of {all}", at(&row.case))
    });
    let short: Vec<String> = short.collect();
    let short = (!short.is_empty()).then(|| Finding::new("rate not kept", join(&short)));
    let saturation = report.saturation.as_ref().map(|saturation| {
        let line = saturation_line(saturation, &report.plan.engines);
        Finding::new("saturation", line.trim().to_owned())
    });
    compared
        .chain(short)
        .chain(saturation)
        .chain(skipped(&report.skipped))
        .collect()
}

fn at(case: &Case) -> String {
    format!(
        "at {} % beside {} idle",
        case.load_percent,
        count(case.idle)
    )
}

fn charts(report: &Report) -> Vec<Spreads> {
    let ratios = report.summary.iter().filter_map(|row| {
        let engine = row.figures.engine?;
        let label = format!("{engine} {}", at(&row.case));
        Some((label, row.p99_of_epoll?, Ink::of(engine)))
    });
    let mut charts = vec![Spreads {
        title: "p99 ÷ epoll's, pair by pair".to_owned(),
        about: "At 1.00 both are equal; less is better".to_owned(),
        scale: Scale::AroundOne,
        show: ratio,
        of: ratios.collect(),
    }];
    let mut cases: Vec<Case> = report.summary.iter().map(|row| row.case).collect();
    cases.dedup();
    charts.extend(cases.iter().map(|case| percentiles(report, case)));
    let saturations = report.saturations().into_iter().filter_map(|figures| {
        let engine = figures.engine?;
        Some((engine.to_string(), figures.per_second, Ink::of(engine)))
    });
    charts.push(Spreads {
        title: "Messages a second in closed loop".to_owned(),
        about: "Nothing idle beside; loads are shares of the slowest's".to_owned(),
        scale: Scale::FromZero,
        show: rounded,
        of: saturations.collect(),
    });
    charts
}

/// The latencies of all engines in one case.
fn percentiles(report: &Report, case: &Case) -> Spreads {
    type Percentile = (&'static str, fn(&Row) -> Option<Spread>);
    const PERCENTILES: [Percentile; 3] = [
        ("p50", |row| row.p50_us),
        ("p99", |row| row.p99_us),
        ("p99.9", |row| row.p999_us),
    ];
    let of_case = || report.summary.iter().filter(|row| row.case == *case);
    let rows = PERCENTILES.iter().flat_map(|(percentile, value)| {
        of_case().filter_map(move |row| {
            let engine = row.figures.engine?;
            let label = format!("{percentile}, {engine}");
            Some((label, value(row)?, Ink::of(engine)))
        })
    });
    Spreads {
        title: format!("Latency {}", at(case)),
        about: "From when a message was to be sent; each step to the right is ten times as long"
            .to_owned(),
        scale: Scale::Decades,
        show: micros,
        of: rows.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::html::html;
    use crate::tail::result::tests::recorded;

    #[test]
    fn latency_is_shown_by_load_and_idle_count_and_engine() {
        let report = recorded();
        let page = page(&report);
        let plan = &report.plan;
        for idle in &plan.idle {
            for load in &plan.load_percent {
                let title = format!("Latency at {load} % beside {} idle", count(*idle));
                let chart = page.charts.iter().find(|chart| chart.title() == title);
                let words = chart.unwrap().words();
                for engine in &plan.engines {
                    for percentile in ["p50", "p99", "p99.9"] {
                        let label = format!("{percentile}, {engine}: ");
                        assert!(words.contains(&label), "{words}");
                    }
                }
            }
        }
        let most = plan.idle.iter().max().unwrap();
        assert!(
            page.headline.contains(&format!(
                "beside {} idle connections, p99 is ",
                count(*most)
            )),
            "{}",
            page.headline
        );
    }

    #[test]
    fn a_rate_that_was_not_kept_is_part_of_the_verdict() {
        let mut report = recorded();
        report.summary[0].short = 2;
        let page = page(&report);
        assert!(page.findings.iter().any(|one| one.word == "rate not kept"));
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.measured.clear();
        report.closed_loop.clear();
        report.saturation = None;
        report.conclude();
        let page = page(&report);
        assert!(page.headline.contains("No latency") && page.charts.is_empty());
        html(&page).unwrap();
    }
}
