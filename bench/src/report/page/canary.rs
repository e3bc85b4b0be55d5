//! The page of the command `canary`. Pure.

use super::{Finding, Page};
use crate::canary::result::{Found, Judged, Probe, Report};
use crate::report::canary::{of_others, table, verdicts};
use crate::report::chart::{Chart, PERCENTILES, Row, Rows, Scale};
use crate::report::format::{count, join, micros};
use crate::report::ink::Ink;
use crate::screen::Paint;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let counts: Vec<String> = report
        .plan
        .connections
        .iter()
        .map(|wanted| count(*wanted))
        .collect();
    let title = format!(
        "Throng: does the network suffer from {} connections with {}?",
        counts.join(", then "),
        join(&report.plan.engines)
    );
    let found = report.found();
    let judged: Vec<Judged<'_>> = found.iter().flat_map(Found::judged).collect();
    let (held, others): (Vec<_>, Vec<_>) = judged.iter().partition(|one| one.stage == "hold");
    let mut page = Page::of(&report.about, &report.warnings, title, headline(&held));
    let said = |judged: &Judged<'_>| {
        format!(
            "{}, {}: {}",
            judged.said.when, judged.said.probe, judged.said.words
        )
    };
    page.findings = held
        .iter()
        .map(|one| Finding::new(suffered(one.verdict), said(one)))
        .collect();
    page.findings.extend(
        of_others(&others, said)
            .into_iter()
            .map(|said| Finding::new("other phases", said)),
    );
    for one in &report.held {
        let Some(found) = one.found() else { continue };
        page.charts.extend(
            found
                .probes
                .iter()
                .filter_map(|probe| chart(one.connections, probe))
                .map(Chart::Rows),
        );
        page.tables.push(table(one, &found));
        let lines = verdicts(one, &found, one.path, Paint::plain());
        page.texts.extend(lines.map(|lines| {
            (
                format!("{} connections, phase by phase", count(one.connections)),
                lines,
            )
        }));
    }
    page.notes.push(format!("Path: {}.", report.path));
    page
}

fn suffered(verdict: &str) -> &'static str {
    match verdict {
        "no_worse" => "not worse",
        "worse" => "worse",
        _ => "not known",
    }
}

fn headline(held: &[&Judged<'_>]) -> String {
    let of = |verdict: &str| held.iter().filter(|one| one.verdict == verdict).count();
    let (worse, no_worse) = (of("worse"), of("no_worse"));
    match held.len() {
        0 => "Nothing is known of the hold.".to_owned(),
        all => format!(
            "While the connections were held, of {all} probes {worse} fared worse than before, {no_worse} did not, and of {} it is not known.",
            all - worse - no_worse
        ),
    }
}

/// What one probe met in each stage.
fn chart(connections: u64, probe: &Probe) -> Option<Rows> {
    let rows = probe
        .stages
        .iter()
        .filter(|figures| figures.answered > 0)
        .map(|figures| {
            let rtt = &figures.rtt_ns;
            let label = format!(
                "{}, {} of {} lost",
                figures.stage,
                count(figures.lost),
                count(figures.sent)
            );
            let ink = if figures.stage == "baseline" {
                Ink::Epoll
            } else {
                Ink::Uring
            };
            Row::percentiles(
                label,
                [rtt.p50, rtt.p99, rtt.max].map(|ns| ns as f64 / 1e3),
                ink,
            )
        });
    let rows: Vec<Row> = rows.collect();
    (!rows.is_empty()).then(|| Rows {
        title: format!(
            "{} {}, {} connections",
            probe.kind,
            probe.target.ip(),
            count(connections)
        ),
        about: format!("Round trip by phase: {PERCENTILES}"),
        scale: Scale::Decades,
        tick: micros,
        rows,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::canary::result::tests::recorded;
    use crate::report::html::html;

    #[test]
    fn each_probe_has_its_chart_by_phase_with_what_was_lost() {
        let page = page(&recorded());
        assert_eq!(page.charts.len(), 2);
        for chart in &page.charts {
            let words = chart.words();
            assert!(
                words.contains("baseline, 0 of") && words.contains("recovery, 0 of"),
                "{words}"
            );
        }
        let of_hold = page
            .findings
            .iter()
            .filter(|finding| finding.said.starts_with("at 100,000 held, "));
        assert_eq!(
            of_hold
                .filter(|finding| finding.word == "not worse")
                .count(),
            2
        );
        assert!(html(&page).unwrap().contains("phase by phase"));
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.held[0].client = serde_json::Value::Null;
        let page = page(&report);
        assert!(page.headline.contains("Nothing is known") && page.charts.is_empty());
        html(&page).unwrap();
    }
}
