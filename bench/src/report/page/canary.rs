//! The page of the command `canary`. Pure.

use super::{Finding, Page, Ran};
use crate::canary::result::{Found, Judged, Probe, Report};
use crate::report::canary::{of_others, short, table, verdicts};
use crate::report::chart::{Chart, Ink, Row, Rows, Scale};
use crate::report::format::{count, micros};
use crate::screen::Paint;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let about = &report.about;
    let ran = Ran {
        throng_version: &about.throng_version,
        format_version: about.format_version,
        started_unix_s: about.started_unix_s,
        duration_ms: about.duration_ms,
        command_line: &about.command_line,
        environment: &about.environment,
        placement: &about.placement,
        nofile_hard: about.nofile_hard,
        machine: about.machine.as_ref(),
        is_partial: about.partial,
        warnings: &report.warnings,
        failures: &about.failures,
    };
    let counts: Vec<String> = report
        .plan
        .connections
        .iter()
        .map(|wanted| count(*wanted))
        .collect();
    let title = format!(
        "Throng: does the network suffer from {} connections with {}?",
        counts.join(", then "),
        report.plan.engine
    );
    let found: Vec<Found> = report.held.iter().filter_map(|held| held.found()).collect();
    let judged: Vec<Judged<'_>> = found.iter().flat_map(Found::judged).collect();
    let (held, others): (Vec<_>, Vec<_>) = judged.iter().partition(|one| one.stage == "hold");
    let mut page = ran.page(title, headline(&held));
    let said = |judged: &Judged<'_>| {
        format!(
            "{}, {}: {}",
            judged.said.when, judged.said.probe, judged.said.words
        )
    };
    page.findings = held
        .iter()
        .map(|one| Finding::new(short(one.verdict), said(one)))
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
        let lines = verdicts(one, &found, report.plan.path, Paint::plain());
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
        title: format!("{} {}, {} connections", probe.kind, probe.target.ip(), count(connections)),
        about: "Round trip by phase: p99, with p50 and the largest at the ends; each step to the right is ten times as long".to_owned(),
        scale: Scale::Decades,
        tick: micros,
        rows,
    })
}
