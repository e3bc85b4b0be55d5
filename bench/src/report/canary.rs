//! What `throng-bench canary` found, as text: what each probe met in each stage, the verdicts in words, and what the
//! counters of both ends say beside them. Pure.

use crate::canary::ends::EndCounters;
use crate::canary::path::Kind;
use crate::canary::plan::Plan;
use crate::canary::result::{Figures, Found, Held, Judged, Probe, Report, Said, Stage};
use crate::report::format::{NOTHING, count, figure, join, micros, of_many, rounded, span};
use crate::report::rounds::heading;
use crate::report::series;
use crate::report::table::Table;
use crate::report::text::section;
use crate::run::About;
use crate::screen::Paint;

/// What will be done, and over what.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let counts: Vec<String> = plan.connections.iter().map(|n| count(*n)).collect();
    let what = format!(
        "does the network suffer from {} connections with {}",
        counts.join(", then "),
        join(&plan.engines)
    );
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    lines.push(format!("  path     {}", join(&plan.paths)));
    lines.extend(
        plan.why_not_veth
            .as_ref()
            .map(|why| paint.yellow(&format!("           not veth: {why}"))),
    );
    let heartbeat = match plan.heartbeat_ms {
        0 => "no heartbeat".to_owned(),
        every => format!("a heartbeat every {}", span(every)),
    };
    let mut phases = vec![format!("baseline {}", span(plan.baseline_ms)), ramp(plan)];
    if plan.idle_ms > 0 {
        phases.push(format!(
            "idle {} before the heartbeat begins",
            span(plan.idle_ms)
        ));
    }
    phases.push(format!("hold {} with {heartbeat}", span(plan.hold_ms)));
    if plan.active > 0 {
        phases.push(format!(
            "{} messages a second on up to {} of them for {}",
            count(plan.message_rate),
            count(plan.active),
            span(plan.active_ms)
        ));
    }
    if plan.storm > 0 {
        let how = match plan.storm_over_ms {
            0 => "at once".to_owned(),
            over => format!("over {} each", span(over)),
        };
        let broadcasts = of_many(plan.storm, "broadcast");
        phases.push(format!("{broadcasts} to all, {how}"));
    }
    phases.push("mass close".to_owned());
    phases.push(format!("recovery {}", span(plan.recovery_ms)));
    lines.push(format!("  phases   {}", phases.join(", ")));
    let neighbour = match plan.paths.contains(&Kind::Veth) {
        true => ", and ping to a neighbour over another veth",
        false => "",
    };
    lines.push(format!(
        "  probes   ping, connect and udp to the server{neighbour}, each every {}",
        span(plan.interval_ms)
    ));
    lines.join("\n") + "\n"
}

fn ramp(plan: &Plan) -> String {
    let most = plan.connections.iter().max();
    let steps = plan.steps.iter().filter(|step| most > Some(*step));
    let steps: Vec<String> = steps.map(|step| count(*step)).collect();
    match steps.is_empty() {
        true => "ramp".to_owned(),
        false => format!(
            "ramp with {} held for {} on the way",
            join(&steps),
            span(plan.step_hold_ms)
        ),
    }
}

/// One count of connections, as soon as it is over.
pub fn held(held: &Held, paint: Paint) -> String {
    let mut parts = vec![summary(held)];
    if let Some(found) = held.found() {
        parts.push(table(held, &found).render(paint));
        parts.extend(verdicts(held, &found, held.path, paint));
    }
    parts.extend(series::by_phase(&named(held), &held.series).map(|table| table.render(paint)));
    format!("\n{}\n", parts.join("\n\n"))
}

/// The answer, the doubts and the failures.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    let found = report.found();
    let judged: Vec<Judged<'_>> = found.iter().flat_map(Found::judged).collect();
    let line = |judged: &Judged<'_>| {
        let Said { when, probe, words } = judged.said;
        let short = match judged.verdict {
            "no_worse" => paint.bold("no"),
            "worse" => paint.bold("YES"),
            _ => paint.bold("not known"),
        };
        format!("{when}, {probe}: {short}: {words}")
    };
    let (held, others): (Vec<_>, Vec<_>) = judged.iter().partition(|one| one.stage == "hold");
    let title = paint.bold("Does a ping, does a new connect, change while they are held?");
    parts.extend(section(title, held.into_iter().map(line).collect()));
    let title = paint.bold("And in the other phases?");
    parts.extend(section(title, of_others(&others, line)));
    parts.push(format!("path: {}", report.path));
    let warnings = report.warnings.iter();
    let warnings = warnings.map(|warning| paint.yellow(&warning.to_string()));
    parts.extend(section(paint.bold("Doubts"), warnings.collect()));
    let failures = report.about.failures.iter();
    let failures =
        failures.map(|failure| paint.red(&format!("{}: {}", failure.during, failure.cause)));
    parts.extend(section(paint.bold("Failures"), failures.collect()));
    let seconds = report.about.duration_ms as f64 / 1e3;
    parts.push(format!("The run took {seconds:.1} s."));
    if report.about.partial {
        parts.push(paint.red("Partial: the run ended early."));
    }
    format!("{}\n", parts.join("\n\n"))
}

/// Each that is worse; of the rest, how many are not, and how many are not known.
pub(crate) fn of_others(
    others: &[&Judged<'_>],
    line: impl Fn(&Judged<'_>) -> String,
) -> Vec<String> {
    let of = |verdict: &str| others.iter().filter(|one| one.verdict == verdict).count();
    let (worse, no_worse) = (of("worse"), of("no_worse"));
    let is_worse = |one: &&&Judged<'_>| one.verdict == "worse";
    let mut lines: Vec<String> = others
        .iter()
        .filter(is_worse)
        .map(|one| line(one))
        .collect();
    let not_known = others.len() - worse - no_worse;
    if !others.is_empty() {
        lines.push(format!(
            "of {} pairs of a phase and a probe {worse} are worse, {no_worse} are not shown to be, and {not_known} are not known: too \
             few probes fell into the phase, or the prober was starved (see above)",
            others.len()
        ));
    }
    lines
}

/// How many, with what, over what.
pub(crate) fn named(held: &Held) -> String {
    format!("{} with {}", count(held.connections), held.case())
}

/// What was held, in a line or two.
fn summary(held: &Held) -> String {
    let mut said = vec![
        format!(
            "{}{}: {} of {} established in {} ({} a second, p99 {}), {} lost",
            held.case(),
            held.instead_of.map_or_else(String::new, |wanted| format!(
                " ({} do not fit into memory)",
                count(wanted)
            )),
            count(held.count("/established")),
            count(held.connections),
            figure(held.figure("/ramp_seconds"), |time| format!("{time:.2} s")),
            figure(held.figure("/connects_per_second"), rounded),
            figure(held.figure("/connect_latency_us/p99"), micros),
            count(held.count("/lost_while_held")),
        ),
        format!(
            "{} heard, late by p99 {}",
            of_many(held.count("/heartbeats/received"), "heartbeat"),
            figure(held.figure("/heartbeats/lateness_us/p99"), micros),
        ),
    ];
    if held.count("/messages/active") > 0 {
        said.push(format!(
            "{} answered, p99 {} from when they were due",
            of_many(held.count("/messages/completed"), "message"),
            figure(held.figure("/messages/latency_us/p99"), micros),
        ));
    }
    if held.broadcasts > 0 {
        said.push(format!(
            "{} lines heard of {}, heartbeats included",
            count(held.count("/storm/heard")),
            of_many(held.broadcasts, "broadcast"),
        ));
    }
    said.join("; ")
}

/// What each probe met in each stage.
pub(crate) fn table(held: &Held, found: &Found) -> Table {
    let title = format!("{}: p50 / p99 / max in ms", named(held));
    let whom = |probe: &Probe| format!("{} {}", probe.kind, probe.target.ip());
    let headings = found.probes.iter().map(whom);
    let mut table = Table::new(std::iter::once(title).chain(headings));
    for Stage { stage, seconds } in &found.stages {
        let cells = found.probes.iter().map(|probe| {
            let figures = probe.stages.iter().find(|figures| figures.stage == *stage);
            figures.map_or_else(String::new, cell)
        });
        table.row(&format!("{stage}, {seconds:.1} s"), cells);
    }
    table
}

fn cell(figures: &Figures) -> String {
    if figures.sent == 0 {
        return NOTHING.to_owned();
    }
    let rtt = &figures.rtt_ns;
    let rtt = match figures.answered {
        0 => "no answer".to_owned(),
        _ => [rtt.p50, rtt.p99, rtt.max].map(ms).join(" / "),
    };
    let (lost, sent) = (count(figures.lost), count(figures.sent));
    format!("{rtt}, {lost} of {sent} lost")
}

/// Nanoseconds as milliseconds, with as many digits as mean something.
fn ms(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    match ms {
        ms if ms < 0.1 => format!("{ms:.3}"),
        ms if ms < 10.0 => format!("{ms:.2}"),
        _ => format!("{ms:.1}"),
    }
}

/// Stage by stage: each probe's verdict, then what the counters of each end say.
pub(crate) fn verdicts(held: &Held, found: &Found, path: Kind, paint: Paint) -> Option<String> {
    let client = held.client_counters().unwrap_or_default();
    let ends = match (&held.server_counters, path) {
        (Some(server), _) => vec![("client's end", &client), ("server's end", server)],
        (None, Kind::Veth) => vec![("client's end", &client)],
        (None, Kind::Loopback) => vec![("both ends", &client)],
    };
    let mut lines = Vec::new();
    let judged: Vec<Judged<'_>> = found.judged().collect();
    for Stage { stage, .. } in found.stages.iter().skip(1) {
        let said = || {
            judged
                .iter()
                .filter(|one| one.stage == stage)
                .map(|one| one.said)
        };
        let when = said().next().map_or(stage, |said| &said.when);
        lines.push(format!("{when}:"));
        for Said { probe, words, .. } in said() {
            lines.push(format!("  {probe:<26} {words}"));
        }
        for (end, counters) in &ends {
            let trouble = trouble(counters, stage);
            let said = match trouble.is_empty() {
                true => "nothing dropped or sent again".to_owned(),
                false => paint.yellow(&trouble.join("; ")),
            };
            lines.push(format!("  {end:<26} {said}"));
        }
    }
    for missing in &found.not_measured {
        let said = format!("{}: could not measure: {}", missing.kind, missing.why);
        lines.push(paint.yellow(&said));
    }
    for (end, counters) in &ends {
        let unread = counters.unread.iter();
        lines.extend(unread.map(|what| paint.yellow(&format!("{end}: {what}"))));
    }
    section(paint.bold("Verdicts, beside the baseline"), lines)
}

/// What moved in a stage. The wait for the last echoes is told with the close that follows.
fn trouble(counters: &EndCounters, stage: &str) -> Vec<String> {
    let is_of_stage = |phase: &str| match phase {
        "quiet" => stage == "hold",
        "done" => stage == "close",
        phase => stage == phase,
    };
    let phases = counters.phases.iter();
    let of_stage = phases.filter(|counters| is_of_stage(&counters.phase));
    of_stage.flat_map(|phase| phase.trouble.clone()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::scenario::Engine;
    use crate::series::Series;

    fn figures(stage: &str, verdict: Option<&str>) -> Value {
        let quantiles = json!({"p50": 20_000, "p99": 130_000, "max": 1_700_000});
        json!({"stage": stage, "sent": 500, "answered": 500, "lost": 0, "rtt_ns": quantiles, "verdict": verdict})
    }

    fn recorded() -> Held {
        let said = |when: &str, words: &str| json!({"when": when, "probe": "ping 10.77.0.2", "words": words});
        let client = json!({
            "established": 100_000,
            "canaries": {
                "stages": [{"stage": "baseline", "seconds": 10.0}, {"stage": "hold", "seconds": 30.0}, {"stage": "close", "seconds": 1.0}],
                "probes": [{"kind": "ping", "target": "10.77.0.2:0", "stages": [
                    figures("baseline", None), figures("hold", Some("no_worse")), figures("close", Some("worse")),
                ]}],
                "not_measured": [{"kind": "udp", "target": "10.77.0.2:1", "why": "nobody answers"}],
                "verdicts": [said("at 100,000 held", "p99 0.11 → 0.13 ms, no loss"), said("during the mass close of 100,000", "p99 0.11 → 1.8 ms (WORSE)")],
            },
            "host_counters": {"interfaces": ["throng-client"], "unread": [], "phases": [
                {"phase": "quiet", "seconds": 30.0, "network": {}, "interfaces": {}, "trouble": ["3 segments [RetransSegs]"]},
            ]},
        });
        let of_server = json!({"interfaces": ["throng-server"], "unread": [], "phases": [
            {"phase": "done", "seconds": 1.0, "network": {}, "interfaces": {}, "trouble": ["849 packets [SoftnetDropped]"]},
        ]});
        Held {
            path: Kind::Veth,
            engine: Engine::Uring,
            connections: 100_000,
            instead_of: None,
            settled: true,
            processes: 1,
            broadcasts: 0,
            client,
            server_counters: Some(serde_json::from_value(of_server).unwrap()),
            servers: Vec::new(),
            series: Series::default(),
        }
    }

    #[test]
    fn each_phase_has_its_verdict_with_what_either_end_counted_in_it() {
        let text = held(&recorded(), Paint::plain());
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let hold = lines
            .iter()
            .position(|line| *line == "at 100,000 held:")
            .unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let after: Vec<String> = lines[hold + 1..].iter().map(|line| words(line)).collect();
        assert_eq!(
            after[..7],
            [
                "ping 10.77.0.2 p99 0.11 → 0.13 ms, no loss",
                "client's end 3 segments [RetransSegs]",
                "server's end nothing dropped or sent again",
                "during the mass close of 100,000:",
                "ping 10.77.0.2 p99 0.11 → 1.8 ms (WORSE)",
                "client's end nothing dropped or sent again",
                "server's end 849 packets [SoftnetDropped]",
            ]
        );
        assert!(text.contains("udp: could not measure: nobody answers"));
        assert!(
            text.contains("0.020 / 0.13 / 1.70, 0 of 500 lost"),
            "{text}"
        );
    }

    #[test]
    fn the_answer_is_of_the_hold_and_what_is_worse_elsewhere_is_told() {
        let found = recorded().found().unwrap();
        let judged: Vec<Judged<'_>> = found.judged().collect();
        assert_eq!(judged[0].verdict, "no_worse");
        let others: Vec<&Judged<'_>> = judged.iter().filter(|one| one.stage != "hold").collect();
        let said = of_others(&others, |one| one.said.words.clone());
        assert_eq!(said[0], "p99 0.11 → 1.8 ms (WORSE)");
        assert!(
            said[1].starts_with("of 1 pairs of a phase and a probe 1 are worse, 0 are not shown")
        );
        assert!(of_others(&[], |_| String::new()).is_empty());
    }
}
