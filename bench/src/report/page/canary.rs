//! The page of the command `canary`. Pure.

use serde_json::Value;

use super::{Finding, Page};
use crate::canary::result::{Found, Held, Judged, Probe, Report};
use crate::report::canary::{named, of_others, table, verdicts};
use crate::report::chart::{Chart, PERCENTILES, Row, Rows, Scale};
use crate::report::format::{
    MIB, NOTHING, count, figure, join, mebibytes, micros, of_many, rounded,
};
use crate::report::ink::Ink;
use crate::report::series;
use crate::report::table::Table;
use crate::report::timeline::{Line, Panel, Timeline};
use crate::screen::Paint;
use crate::series::{Sample, Series};

/// Of more than these only the largest are drawn; the tables have all.
const MOST_DRAWN: usize = 4;

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
    let mut page = Page::of(
        &report.about,
        &report.warnings,
        title,
        headline(&report.held, &held),
    );
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
    page.findings.extend(report.held.iter().map(kept));
    for one in drawn(&report.held) {
        page.charts.extend(timeline(one).map(Chart::Timeline));
        page.charts.extend(latencies(one).map(Chart::Rows));
        let found = one.found();
        let probes = found.iter().flat_map(|found| &found.probes);
        let probes = probes.filter_map(|probe| chart(one, probe));
        page.charts.extend(probes.map(Chart::Rows));
    }
    for one in &report.held {
        let found = one.found();
        page.tables
            .extend(found.as_ref().map(|found| table(one, found)));
        page.tables
            .extend(series::by_phase(&named(one), &one.series));
        let lines = found.and_then(|found| verdicts(one, &found, one.path, Paint::plain()));
        page.texts
            .extend(lines.map(|lines| (format!("{}, phase by phase", named(one)), lines)));
    }
    page.tables.extend(late(&report.held));
    page.notes.push(format!("Path: {}.", report.path));
    page.notes.extend((report.held.len() > MOST_DRAWN).then(|| {
        format!(
            "The charts are of the {MOST_DRAWN} with the most connections, of {} that were held; the tables have all.",
            report.held.len()
        )
    }));
    page
}

/// Those with the most connections, in the order in which they were held.
fn drawn(held: &[Held]) -> Vec<&Held> {
    let mut largest: Vec<(usize, &Held)> = held.iter().enumerate().collect();
    largest.sort_by_key(|(_, one)| std::cmp::Reverse(one.connections));
    largest.truncate(MOST_DRAWN);
    largest.sort_by_key(|(at, _)| *at);
    largest.into_iter().map(|(_, one)| one).collect()
}

/// What became of the connections, and what they took.
fn kept(held: &Held) -> Finding {
    let (established, lost) = (held.count("/established"), held.count("/lost_while_held"));
    let took = most(&held.series).map_or_else(String::new, |(first, most)| {
        let more = |now: u64, base: u64| mebibytes(now.saturating_sub(base) as f64 / MIB);
        let rss = |bytes: Option<u64>| figure(bytes.map(|bytes| bytes as f64 / MIB), mebibytes);
        format!(
            "; with the most of them the slab, of both ends, had grown by {}, the server had {} and the client {} (RSS)",
            more(most.slab_bytes, first.slab_bytes),
            rss(most.server_rss_bytes),
            rss(most.client_rss_bytes)
        )
    });
    let late = figure(held.figure("/heartbeats/lateness_us/p99"), micros);
    let said = format!(
        "{} established, {} lost while they were held; heartbeats late by p99 {late}{took}",
        of_many(established, "connection"),
        count(lost)
    );
    Finding::new(&named(held), said)
}

/// The first sample, and the last of those with the most connections.
fn most(series: &Series) -> Option<(&Sample, &Sample)> {
    let most = series
        .samples
        .iter()
        .max_by_key(|sample| sample.connections)?;
    Some((series.samples.first()?, most))
}

/// Connections, and the memory read with them, over the whole time.
fn timeline(held: &Held) -> Option<Timeline> {
    let samples = &held.series.samples;
    let first = samples.first()?;
    let line = |label: &str, ink, of: &dyn Fn(&Sample) -> Option<f64>| Line {
        label: label.to_owned(),
        points: samples
            .iter()
            .filter_map(|sample| Some((sample.t_ms as f64 / 1e3, of(sample)?)))
            .collect(),
        ink,
    };
    let mib = |bytes: Option<u64>| Some(bytes? as f64 / MIB);
    let phases = held.series.phases();
    let phases = phases.filter_map(|phase| phase.first());
    Some(Timeline {
        title: format!("{}: connections over time, and memory", named(held)),
        about: "Seconds from the first probe; the phases are marked where they begin, and the short ones are named in the table \
                alone. Kernel slab is what it grew by, both ends; RSS is all of a process"
            .to_owned(),
        phases: phases
            .map(|first| (first.t_ms as f64 / 1e3, first.phase.clone()))
            .collect(),
        panels: vec![
            Panel {
                title: "connections established".to_owned(),
                show: rounded,
                lines: vec![line("connections", Ink::of(held.engine), &|sample| {
                    Some(sample.connections as f64)
                })],
            },
            Panel {
                title: "memory".to_owned(),
                show: mebibytes,
                lines: vec![
                    line("kernel slab", Ink::Uring, &|sample| {
                        mib(Some(sample.slab_bytes.saturating_sub(first.slab_bytes)))
                    }),
                    line("server RSS", Ink::Epoll, &|sample| mib(sample.server_rss_bytes)),
                    line("client RSS", Ink::TokioUring, &|sample| mib(sample.client_rss_bytes)),
                ],
            },
        ],
    })
}

/// What was late, or took time, beside the probes: of what, where each summary has it, and its colour.
const LATE: [(&str, &str, Ink); 3] = [
    ("heartbeats late", "/heartbeats/lateness_us", Ink::Uring),
    (
        "echo, from when it was due",
        "/messages/latency_us",
        Ink::Epoll,
    ),
    (
        "connect, in the ramp",
        "/connect_latency_us",
        Ink::TokioUring,
    ),
];

/// p50, p99 and the largest in microseconds; none of nothing.
fn percentiles(summary: &Value, histogram: &str) -> Option<[f64; 3]> {
    let histogram = summary.pointer(histogram)?;
    let at = |name: &str| histogram.get(name)?.as_f64();
    at("count").filter(|count| *count > 0.0)?;
    Some([at("p50")?, at("p99")?, at("max")?])
}

fn latencies(held: &Held) -> Option<Rows> {
    let rows = LATE.iter().filter_map(|(what, histogram, ink)| {
        let percentiles = percentiles(&held.client, histogram)?;
        Some(Row::percentiles((*what).to_owned(), percentiles, *ink))
    });
    let rows: Vec<Row> = rows.collect();
    (!rows.is_empty()).then(|| Rows {
        title: format!("{}: at the client", named(held)),
        about: format!("Over the whole time: {PERCENTILES}"),
        scale: Scale::Decades,
        tick: micros,
        rows,
    })
}

fn late(held: &[Held]) -> Option<Table> {
    let heading = ["at the client: p50 / p99 / max"];
    let heading = heading.into_iter().chain(LATE.map(|(what, ..)| what));
    let mut table = Table::new(heading.map(str::to_owned));
    for one in held {
        let cells = LATE.map(|(_, histogram, _)| {
            let percentiles = percentiles(&one.client, histogram);
            let shown = |all: [f64; 3]| all.map(micros).join(" / ");
            percentiles.map_or_else(|| NOTHING.to_owned(), shown)
        });
        table.row(&named(one), cells);
    }
    (!held.is_empty()).then_some(table)
}

fn suffered(verdict: &str) -> &'static str {
    match verdict {
        "no_worse" => "not worse",
        "worse" => "worse",
        _ => "not known",
    }
}

fn headline(all: &[Held], held: &[&Judged<'_>]) -> String {
    let what = match all.len() <= MOST_DRAWN {
        true => join(&all.iter().map(named).collect::<Vec<_>>()),
        false => "the connections".to_owned(),
    };
    let of = |verdict: &str| held.iter().filter(|one| one.verdict == verdict).count();
    let (worse, no_worse) = (of("worse"), of("no_worse"));
    match held.len() {
        0 => "Nothing is known of the hold.".to_owned(),
        all => format!(
            "While {what} were held, of {all} probes {worse} fared worse than before, {no_worse} did not, and of {} it is not known.",
            all - worse - no_worse
        ),
    }
}

/// What one probe met in each stage.
fn chart(held: &Held, probe: &Probe) -> Option<Rows> {
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
        title: format!("{}: {} {}", named(held), probe.kind, probe.target.ip()),
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
    fn each_that_was_held_stands_over_time_and_each_probe_by_phase_with_what_was_lost() {
        let report = recorded();
        let page = page(&report);
        // Each engine: over time, at the client, and two probes.
        assert_eq!(page.charts.len(), 8);
        for (held, charts) in report.held.iter().zip(page.charts.chunks(4)) {
            let Chart::Timeline(timeline) = &charts[0] else {
                panic!("{:?}", charts[0])
            };
            let panels = timeline.panels.iter();
            let lines: Vec<usize> = panels.map(|panel| panel.lines.len()).collect();
            assert_eq!(lines, [1, 3]);
            let phases: Vec<&str> = timeline
                .phases
                .iter()
                .map(|(_, name)| name.as_str())
                .collect();
            assert_eq!(phases[..3], ["baseline", "ramp", "step-1"]);
            let words = charts[0].words();
            assert!(words.contains("2,000 at the end of quiet"), "{words}");
            assert!(words.contains("memory, server RSS: "), "{words}");
            assert!(charts[1].words().contains("heartbeats late: "));
            for chart in &charts[2..] {
                let words = chart.words();
                assert!(
                    words.contains("baseline, 0 of") && words.contains("recovery, 0 of"),
                    "{words}"
                );
            }
            let of_it = |finding: &&Finding| finding.word == named(held);
            let finding = page.findings.iter().find(of_it).unwrap();
            assert!(
                finding
                    .said
                    .starts_with("2,000 connections established, 0 lost")
            );
            assert!(
                charts
                    .iter()
                    .all(|chart| chart.title().starts_with(&named(held)))
            );
        }
        let words = |words: &str| page.headline.contains(words);
        assert!(words(
            "2,000 with uring over loopback and 2,000 with epoll over loopback"
        ));
        let of_hold = page.findings.iter();
        let of_hold =
            of_hold.filter(|one| one.said.contains("at 2,000 held, ") && one.word == "not worse");
        assert_eq!(of_hold.count(), 4, "{:?}", page.findings);
        // By phase and by end of phase for each, and how late things were.
        assert_eq!(page.tables.len(), 5);
        assert!(html(&page).unwrap().contains("phase by phase"));
    }

    #[test]
    fn of_many_only_the_largest_are_drawn_and_all_stand_in_the_tables() {
        let mut report = recorded();
        let (few, many) = (report.held[0].clone(), report.held[1].clone());
        report.held = vec![few; 6];
        report.held.push(many);
        report.held[6].connections = 1_000_000;
        let page = page(&report);
        assert_eq!(page.charts.len(), 4 * MOST_DRAWN);
        assert!(
            page.charts
                .iter()
                .any(|chart| chart.title().starts_with("1,000,000 with"))
        );
        assert_eq!(page.tables.len(), 2 * 7 + 1);
        assert!(
            page.notes
                .iter()
                .any(|note| note.contains("of 7 that were held"))
        );
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.held.truncate(1);
        report.held[0].client = Value::Null;
        report.held[0].series = Series::default();
        let page = page(&report);
        assert!(page.headline.contains("Nothing is known") && page.charts.is_empty());
        html(&page).unwrap();
    }
}
