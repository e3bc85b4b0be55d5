//! A result as text: the plan, a line for each measurement, then tables, verdict and doubts. Pure.

use crate::report::format::{count, figure, gib, join, rounded, span};
use crate::report::rounds::{heading, how, peers, place, until};
use crate::report::side_by_side::{echo_table, hold_table};
use crate::report::verdict::{SOFTIRQ_NOTE, Verdict, processes_note, verdicts};
use crate::result::{Echo, Hold, Report};
use crate::scenario::Engine;
use crate::screen::Paint;

/// What will be run, where, and how long it takes.
pub fn plan(report: &Report, paint: Paint) -> String {
    let plan = &report.plan;
    let seconds = plan.estimate().as_secs();
    let mut lines = heading(&engines(&plan.engines), seconds, &report.about, paint);
    lines.extend(plan.hold.as_ref().map(|hold| {
        format!(
            "  hold     {} connections for {}, {}, once with each engine",
            count(hold.connections),
            span(hold.hold_ms),
            match hold.heartbeat_ms {
                0 => "no heartbeat".to_owned(),
                every => format!("a heartbeat every {}", span(every)),
            }
        )
    }));
    lines.extend(plan.echo.as_ref().map(|echo| {
        let counts = |values: &[u64]| values.iter().copied().map(count).collect::<Vec<_>>();
        let (active, sizes) = (counts(&echo.active), counts(&echo.message_bytes));
        format!(
            "  echo     {}-byte messages on {} connections, {}",
            join(&sizes),
            join(&active),
            how(echo.rounds, &echo.times)
        )
    }));
    let goal = plan.echo.as_ref().and_then(|echo| echo.until.as_ref());
    lines.extend(until(goal));
    lines.extend(peers(&plan.peers));
    lines.extend(report.cut.as_ref().map(|cut| {
        paint.yellow(&format!(
            "  fewer    {} connections instead of {}: {} of memory are available, a part of it is kept \
             free, and one takes about 10 KB, both ends: see throng-tune check --connections {}",
            count(cut.fits),
            count(cut.wanted),
            gib(cut.available_bytes),
            cut.wanted
        ))
    }));
    lines.extend(processes_note(report).map(|note| format!("  note     {note}")));
    lines.join("\n") + "\n"
}

/// One hold, as soon as it is over.
pub fn hold_line(hold: &Hold) -> String {
    let time = figure(hold.client_figure("/ramp_seconds"), |seconds| {
        format!("{seconds:.2} s")
    });
    let lost = figure(hold.client_figure("/lost_while_held"), rounded);
    format!(
        "  hold  {:<5}  {} established in {time}, {lost} lost",
        hold.engine,
        count(hold.established)
    )
}

/// The measurements of one count in one round, as soon as they are over.
pub fn pair_line(measured: &[Echo], rounds: usize) -> String {
    let Some(first) = measured.first() else {
        return String::new();
    };
    let mut ordered: Vec<&Echo> = measured.iter().collect();
    ordered.sort_by_key(|echo| echo.engine);
    let figures: Vec<String> = ordered
        .iter()
        .map(|echo| {
            format!(
                "{} {:>8}/s {:>6.2} µs",
                echo.engine,
                rounded(echo.per_second()),
                echo.server_cpu_us_per_message()
            )
        })
        .collect();
    format!(
        "  echo  {}  {:>23}   {}",
        place(first.round, rounds),
        first.case.to_string(),
        figures.join("   ")
    )
}

/// The tables, the sentences and the doubts.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    if !report.hold.is_empty() {
        parts.push(hold_table(report).render(paint));
    }
    if report
        .echo_summary
        .iter()
        .any(|summary| !summary.engines.is_empty())
    {
        parts.push(echo_table(report).render(paint));
    }
    parts.extend(report.has_softirq().then(|| SOFTIRQ_NOTE.to_owned()));
    parts.extend(section(
        paint.bold("Verdict: a win needs every pair of rounds"),
        verdicts(report).iter().map(Verdict::to_string).collect(),
    ));
    let warnings = report
        .warnings
        .iter()
        .map(|warning| paint.yellow(&warning.to_string()))
        .collect();
    parts.extend(section(paint.bold("Doubts"), warnings));
    let failures = report
        .about
        .failures
        .iter()
        .map(|failure| paint.red(&format!("{}: {}", failure.during, failure.cause)));
    parts.extend(section(paint.bold("Failures"), failures.collect()));
    let seconds = report.about.duration_ms as f64 / 1e3;
    parts.push(format!("The run took {seconds:.1} s."));
    if report.about.partial {
        parts.push(paint.red("Partial: the run ended early."));
    }
    format!("\n{}\n", parts.join("\n\n"))
}

/// Indented lines under a title; nothing without lines.
pub(crate) fn section(title: String, lines: Vec<String>) -> Option<String> {
    let indented: Vec<String> = lines.iter().map(|line| format!("\n  {line}")).collect();
    (!indented.is_empty()).then(|| title + &indented.concat())
}

/// The engines by name.
pub(crate) fn engines(engines: &[Engine]) -> String {
    engines
        .iter()
        .map(|engine| engine.name())
        .collect::<Vec<_>>()
        .join(" beside ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::format::{NOTHING, ratio};
    use crate::result::Failure;
    use crate::result::tests::recorded;
    use crate::scenario::Cut;

    /// The cells of the row that begins with `name`, split where two spaces or more are.
    fn row(text: &str, name: &str) -> Vec<String> {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name))
            .unwrap();
        line.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn the_engines_stand_side_by_side_with_their_ratio() {
        let report = recorded();
        let text = results(&report, Paint::plain());
        let established = count(report.hold[0].established);
        assert_eq!(
            row(&text, "established"),
            ["established", &established, &established]
        );
        let [uring, epoll] =
            [Engine::Uring, Engine::Epoll].map(|engine| report.hold_of(engine).unwrap());
        let quotient = uring.slab_bytes_per_conn().unwrap() / epoll.slab_bytes_per_conn().unwrap();
        assert_eq!(
            row(&text, "kernel memory a connection").last().unwrap(),
            &ratio(quotient)
        );
        let cpu = row(&text, "server CPU a message");
        assert_eq!(cpu.len(), 4);
        assert!(cpu[3].starts_with(&ratio(report.echo_summary[0].cpu_ratio().unwrap().median)));
        assert!(cpu[0].contains("softirq included") && text.contains("ksoftirqd on their cores"));
        assert!(text.contains("Verdict") && !text.contains('\x1b'));
        let took = format!("took {:.1} s", report.about.duration_ms as f64 / 1e3);
        assert!(text.contains(&took), "{text}");
    }

    #[test]
    fn figures_without_softirq_work_do_not_claim_it() {
        let mut report = recorded();
        report.echo[0].cpu.client_softirq_ns = None;
        report.conclude();
        let text = results(&report, Paint::plain());
        assert!(!text.contains("softirq included") && text.contains("cannot be read here"));
    }

    #[test]
    fn the_processes_of_the_echo_are_in_its_table() {
        let mut report = recorded();
        for echo in &mut report.echo {
            echo.processes = if echo.engine == Engine::Epoll { 3 } else { 1 };
        }
        report.hold.clear();
        report.conclude();
        let text = results(&report, Paint::plain());
        assert_eq!(row(&text, "server processes")[1..], ["1", "3"]);
    }

    #[test]
    fn one_engine_has_no_ratio() {
        let mut report = recorded();
        report.plan.engines = vec![Engine::Epoll];
        report.hold.retain(|hold| hold.engine == Engine::Epoll);
        report.echo.retain(|echo| echo.engine == Engine::Epoll);
        report.conclude();
        let text = results(&report, Paint::plain());
        assert!(!text.contains(" uring") && !text.contains("wins"), "{text}");
        assert_eq!(row(&text, "established").len(), 2);
    }

    #[test]
    fn what_is_missing_is_shown_as_missing_and_why() {
        let mut report = recorded();
        report.hold.retain(|hold| hold.engine == Engine::Uring);
        report.about.partial = true;
        let cause = "the server died".to_owned();
        report.about.failures = vec![Failure {
            during: "holding".to_owned(),
            cause,
            stderr_tail: Vec::new(),
        }];
        let text = results(&report, Paint::plain());
        assert_eq!(row(&text, "connects a second").last().unwrap(), NOTHING);
        assert!(text.contains("holding: the server died") && text.contains("Partial"));
    }

    #[test]
    fn the_plan_says_what_it_gave_up() {
        let mut report = recorded();
        assert!(!plan(&report, Paint::plain()).contains("instead of"));
        report.cut = Some(Cut {
            wanted: 100_000,
            fits: 40_000,
            available_bytes: 1 << 29,
        });
        assert!(
            plan(&report, Paint::plain())
                .contains("40,000 connections instead of 100,000: 0.5 GiB")
        );
    }

    #[test]
    fn each_measurement_has_its_line() {
        let report = recorded();
        let line = hold_line(&report.hold[0]);
        assert!(
            line.contains("established") && line.contains("0 lost"),
            "{line}"
        );
        let line = pair_line(&report.echo[..2], 5);
        assert!(
            line.contains("1/5") && line.find("uring") < line.find("epoll"),
            "{line}"
        );
    }
}
