//! The page of the command `remote`: what the load cost either host, on one clock. Pure.

use super::both_ends::timeline;
use super::{Finding, Page, doubted};
use crate::remote::join::{Counted, Ends, Kept, Phase, Spent};
use crate::remote::result::Report;
use crate::report::chart::{Chart, Row, Rows, Scale};
use crate::report::format::{bytes, count, figure, join, of_many, percent, rounded};
use crate::report::ink::Ink;
use crate::report::remote::{HOW_CPU_COUNTS, clocks, memory, micros_each, name, phases};
use crate::report::rounds::machine;
use crate::report::table::Table;
use crate::report::timeline::Timeline;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let (connections, targets) = (count(report.plan.connections), join(&report.plan.targets));
    let title = format!("Throng: {connections} connections to {targets}, both hosts watched");
    let headline = headline(report) + &doubted(report.warnings.len());
    let mut page = Page::of(&report.about, &[], title, headline);
    page.doubts = report.warnings.iter().map(ToString::to_string).collect();
    page.findings = findings(report);
    let timeline = timeline(report);
    if !report.phases.is_empty() {
        page.tables.push(phases(&report.phases));
        page.notes.push(HOW_CPU_COUNTS.to_owned());
    }
    page.tables.extend(memory(report));
    page.tables.extend(timeline.as_ref().map(Timeline::table));
    page.tables.extend(interfaces(report));
    page.charts.extend(timeline.map(Chart::Timeline));
    let rows = [cpu(report), takes(report)];
    let rows = rows.into_iter().filter(|rows| !rows.rows.is_empty());
    page.charts.extend(rows.map(Chart::Rows));
    page.texts.extend(counters(report));
    let host = ("server's host", machine(&report.agent.environment));
    let clients = ("client's host", machine(&report.about.environment));
    let hosts = [host, clients].map(|(name, value)| (name.to_owned(), value));
    page.setting.extend(hosts);
    // Of a server that this program did not start, nothing is known of its CPUs.
    page.setting.retain(|(_, value)| !value.is_empty());
    page
}

/// What tells most of the server, and what it cost there.
fn measured(report: &Report) -> Option<(&Phase, Counted, &Spent)> {
    let order = [
        Counted::Messages,
        Counted::Cycles,
        Counted::Heartbeats,
        Counted::Connections,
    ];
    order.into_iter().find_map(|what| {
        let mut of_it = report
            .phases
            .iter()
            .filter(|phase| phase.counted == Some(what));
        of_it.find_map(|phase| Some((phase, what, phase.spent.server.as_ref()?)))
    })
}

fn one(what: Counted) -> &'static str {
    name(what).trim_end_matches('s')
}

fn rate(spent: &Spent) -> f64 {
    spent.count * 1e9 / spent.elapsed_ns.max(1) as f64
}

fn headline(report: &Report) -> String {
    let cost = measured(report).map_or_else(
        || "What the load cost the server is not known.".to_owned(),
        |(_, what, spent)| {
            format!(
                "At {} {} a second the server took {} of CPU for each.",
                rounded(rate(spent)),
                name(what),
                micros_each(spent.each_us())
            )
        },
    );
    let took = report.kept.server.as_ref().map(|kept| {
        let kernel = bytes(kept.growth.kernel());
        match report.is_one_host {
            true => format!(
                " A connection at rest took {kernel} of the kernel, both ends together: they are on one machine."
            ),
            false => format!(" A connection at rest took {kernel} of the kernel of the server's host."),
        }
    });
    cost + &took.unwrap_or_default()
}

fn findings(report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((phase, what, spent)) = measured(report) {
        let seconds = spent.elapsed_ns as f64 / 1e9;
        let said = format!(
            "{} {} a second in {}, over {seconds:.1} s",
            rounded(rate(spent)),
            name(what),
            phase.name
        );
        findings.push(Finding::new("rate", said));
        let Ends { server, client } = &phase.spent;
        for (word, spent) in [("server's CPU", server), ("client's CPU", client)] {
            let Some(spent) = spent else { continue };
            let said = format!(
                "{} for a {} by the processes and ksoftirqd, {} by the whole machine; {} of a core",
                micros_each(spent.each_us()),
                one(what),
                micros_each(spent.machine_each_us()),
                percent(spent.cores())
            );
            findings.push(Finding::new(word, said));
        }
    }
    findings.extend(report.kept.server.as_ref().map(|kept| {
        let whose = match report.is_one_host {
            true => "of the kernel, both ends together",
            false => "of the kernel of the server's host alone",
        };
        let said = format!(
            "{} at rest: {} {whose}, {} of the server's processes above empty (RSS; by shares, PSS: {})",
            of_many(kept.connections, "connection"),
            bytes(kept.growth.kernel()),
            bytes(kept.rss_bytes),
            figure(kept.pss_bytes, bytes)
        );
        Finding::new("memory", said)
    }));
    let clocks = clocks(report);
    let said = clocks.strip_prefix("Clocks: ").unwrap_or(&clocks);
    findings.push(Finding::new("clocks", said.to_owned()));
    findings
}

/// What each thing that was counted cost either end.
fn cpu(report: &Report) -> Rows {
    let counted = report
        .phases
        .iter()
        .filter_map(|phase| Some((phase, phase.counted?)));
    let rows = counted.flat_map(|(phase, what)| {
        let ends = [
            ("server", &phase.spent.server, Ink::Uring),
            ("client", &phase.spent.client, Ink::Epoll),
        ];
        ends.into_iter().filter_map(move |(end, spent, ink)| {
            let value = spent.as_ref()?.each_us()?;
            Some(Row {
                label: format!("{}, {end}, a {}", phase.name, one(what)),
                shown: micros_each(Some(value)),
                value,
                range: None,
                ink,
            })
        })
    });
    Rows {
        title: "CPU time by phase, for each that was counted".to_owned(),
        about: "That of the processes and ksoftirqd".to_owned(),
        scale: Scale::FromZero,
        tick: |us| format!("{us:.0} µs"),
        rows: rows.collect(),
    }
}

/// What a connection at rest takes of either end.
fn takes(report: &Report) -> Rows {
    type Of = fn(&Kept) -> Option<f64>;
    let kernel: Of = |kept| Some(kept.growth.kernel());
    let rss: Of = |kept| Some(kept.rss_bytes);
    let pss: Of = |kept| kept.pss_bytes;
    let Ends { server, client } = &report.kept;
    let mut all: Vec<(&str, &Option<Kept>, Of, Ink)> = match report.is_one_host {
        true => vec![("kernel, both ends", server, kernel, Ink::Uring)],
        false => vec![
            ("kernel, server's host", server, kernel, Ink::Uring),
            ("kernel, client's host", client, kernel, Ink::Epoll),
        ],
    };
    all.extend([
        ("server RSS, above empty", server, rss, Ink::Uring),
        ("server PSS, above empty", server, pss, Ink::Uring),
        ("client RSS", client, rss, Ink::Epoll),
        ("client PSS", client, pss, Ink::Epoll),
    ]);
    let rows = all.into_iter().filter_map(|(label, kept, of, ink)| {
        let value = of(kept.as_ref()?)?;
        Some(Row {
            label: label.to_owned(),
            shown: format!("{value:.0}"),
            value,
            range: None,
            ink,
        })
    });
    Rows {
        title: "Memory of a connection at rest, bytes".to_owned(),
        about: "By whose it is".to_owned(),
        scale: Scale::FromZero,
        tick: |bytes| format!("{bytes:.0}"),
        rows: rows.collect(),
    }
}

/// What the interfaces between the two counted.
fn interfaces(report: &Report) -> Option<Table> {
    let heading = [
        "the interface to the other end",
        "server's host",
        "client's host",
    ];
    let mut table = Table::new(heading.map(str::to_owned));
    let Ends { server, client } = &report.interface;
    for (name, _) in server.iter().filter(|(_, by)| *by > 0) {
        let by = [server, client].map(|end| figure(end.get(name).map(|by| by as f64), rounded));
        table.row(name, by);
    }
    (!table.rows().is_empty()).then_some(table)
}

/// All network counters that grew.
fn counters(report: &Report) -> Vec<(String, String)> {
    let Ends { server, client } = &report.counters;
    let ends: &[_] = match report.is_one_host {
        true => &[("both ends", server)],
        false => &[("the server's host", server), ("the client's host", client)],
    };
    let of_end = |(end, counters): &(&str, &kernel_tuning::host::NetCounters)| {
        let grown = counters.iter().filter(|(_, by)| *by > 0);
        let lines: Vec<String> = grown
            .map(|(name, by)| format!("{name:<28} {}", count(by)))
            .collect();
        let title = format!("Network counters that grew, {end}");
        (!lines.is_empty()).then(|| (title, lines.join("\n")))
    };
    ends.iter().filter_map(of_end).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::html::html;
    use crate::report::markdown::markdown;

    /// Recorded from a short run over loopback; most looks are cut out.
    fn recorded() -> Report {
        serde_json::from_str(include_str!("../../../testdata/remote.json")).unwrap()
    }

    #[test]
    fn the_verdict_is_the_servers_cost_then_both_ends_stand_on_one_clock() {
        let report = recorded();
        let page = page(&report);
        for said in [
            " messages a second the server took ",
            "both ends together",
            "doubt",
        ] {
            assert!(page.headline.contains(said), "{}", page.headline);
        }
        let words: Vec<&str> = page.findings.iter().map(|one| one.word.as_str()).collect();
        assert_eq!(
            words,
            ["rate", "server's CPU", "client's CPU", "memory", "clocks"]
        );
        assert!(page.findings[4].said.contains("known to ±"));
        let titles: Vec<&str> = page.charts.iter().map(|chart| chart.title()).collect();
        assert_eq!(titles.len(), 3, "{titles:?}");
        let Chart::Timeline(timeline) = &page.charts[0] else {
            panic!()
        };
        let lines = timeline.panels.iter().map(|panel| panel.lines.len());
        assert!(lines.eq([1, 2, 1, 2]));
        let lines = timeline.panels.iter().flat_map(|panel| &panel.lines);
        for line in lines {
            assert!(line.points.len() > 2 && line.points.is_sorted_by(|one, next| one.0 <= next.0));
        }
        // All of the charts stands in the tables, and all of it in Markdown.
        let text = markdown(&page);
        for row in [
            "| active |",
            "server PSS",
            "kernel, all of these",
            "connections established",
        ] {
            let row = row.replace("server PSS", "PSS of the server");
            assert!(text.contains(&row), "{row}: {text}");
        }
        html(&page).unwrap();
    }

    #[test]
    fn on_two_hosts_the_servers_side_stands_alone() {
        let mut report = recorded();
        report.is_one_host = false;
        let page = page(&report);
        assert!(
            page.headline.contains("of the server's host"),
            "{}",
            page.headline
        );
        assert!(page.charts[2].words().contains("kernel, server's host: "));
        html(&page).unwrap();
    }

    #[test]
    fn a_run_that_came_to_nothing_is_told() {
        let mut report = recorded();
        report.phases.clear();
        report.kept = Ends::default();
        report.moments = Ends::default();
        report.progress.clear();
        report.clock = None;
        let page = page(&report);
        assert!(page.headline.contains("is not known") && page.charts.is_empty());
        html(&page).unwrap();
    }
}
