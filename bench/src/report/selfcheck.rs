//! The self-check as text. Pure.

use crate::exchange::{Measured, figures};
use crate::report::format::{count, of_many, percent, ratio};
use crate::report::rounds::{
    common_cells, common_headings, ending, heading, how, processes_note, until,
};
use crate::report::table::Table;
use crate::run::About;
use crate::screen::Paint;
use crate::selfcheck::Plan;
use crate::selfcheck::result::{Case, Name, Report, RunRatios, Tally, WIDEST, chance};
use crate::stats::Spread;

/// What will be run.
pub fn plan(plan: &Plan, about: &About, paint: Paint) -> String {
    let what = format!("{} against itself", plan.engine);
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    lines.push(format!(
        "  echo     {}-byte messages on {} connections: A and B, {} of {}",
        plan.message_bytes,
        count(plan.active),
        of_many(plan.runs as u64, "run"),
        how(plan.rounds, &plan.times)
    ));
    lines.extend(until(plan.until.as_ref()));
    lines.extend(
        plan.slow_down_percent
            .map(|percent| format!("  slowed   B burns {percent} % of the CPU time that it uses")),
    );
    lines.join("\n") + "\n"
}

/// One run, as soon as it is over.
pub fn run_line(ratios: &[RunRatios], runs: usize) -> String {
    let said = |run: &RunRatios| {
        format!(
            "  run {}/{runs}   B ÷ A: CPU a message {}, messages a second {}",
            run.run,
            interval(run.cpu.as_ref()),
            interval(run.rate.as_ref())
        )
    };
    match ratios.last() {
        Some(run) => said(run),
        None => "  a run without a single pair".to_owned(),
    }
}

fn interval(spread: Option<&Spread>) -> String {
    let Some(spread) = spread else {
        return "without a pair".to_owned();
    };
    let pairs = of_many(spread.count as u64, "pair");
    match spread.interval {
        Some(interval) => format!(
            "{:.3} (95 %: {:.3} – {:.3}, {pairs})",
            spread.median, interval.low, interval.high
        ),
        None => format!("{:.3} ({pairs}: too few for an interval)", spread.median),
    }
}

/// The figures of both, the verdict, and the doubts.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = vec![table(report).render(paint)];
    parts.push(paint.bold(&verdict(report)));
    let verdict = &report.verdict;
    parts.push(
        [
            tally("CPU a message", &verdict.cpu),
            tally("messages a second", &verdict.rate),
        ]
        .join("\n"),
    );
    let processes = processes_note(figures(report.measured.iter()).iter());
    parts.extend(ending(
        &report.about,
        &[],
        processes,
        &report.warnings,
        paint,
    ));
    format!("\n{}\n", parts.join("\n\n"))
}

pub(crate) fn table(report: &Report) -> Table {
    let title = format!(
        "{} as, median [min – max] of all runs",
        report.plan.engine.name()
    );
    let headings = std::iter::once("server CPU a message, µs".to_owned());
    let headings = headings.chain(common_headings("messages"));
    let mut table = Table::new(std::iter::once(title).chain(headings));
    for name in [Name::A, Name::B] {
        let its = |one: &&Measured<Case>| one.case.name == name;
        if let Some(figures) = figures(report.measured.iter().filter(its)) {
            let cpu = crate::report::format::spread(&figures.cpu_us, |us| format!("{us:.2}"));
            let cells = std::iter::once(cpu).chain(common_cells(&figures));
            table.row(&name.to_string(), cells);
        }
    }
    table
}

pub(crate) fn verdict(report: &Report) -> String {
    let (plan, verdict) = (&report.plan, &report.verdict);
    let (cpu, rate) = (&verdict.cpu, &verdict.rate);
    let (runs, needed) = (of_many(plan.runs as u64, "run"), cpu.needed);
    if cpu.intervals < plan.runs && !verdict.holds {
        let few = cpu.intervals;
        return format!("No verdict: only {few} of {runs} came to an interval.");
    }
    if let Some(percent) = plan.slow_down_percent {
        let found = match verdict.holds {
            true => "The slow-down is found",
            false => "The slow-down is not found often enough",
        };
        return format!(
            "{found}: in {} of {runs} B, slowed by {percent} %, is dearer beyond doubt (needed: {needed}).",
            cpu.good
        );
    }
    let widest = percent(WIDEST);
    let says = format!(
        "of the same engine it says \"the same\", within ±{widest}, in {} (CPU) and {} (rate) of {runs} (needed: {needed})",
        cpu.good, rate.good
    );
    if verdict.holds {
        format!("The method holds: {says}.")
    } else if cpu.with_one.min(rate.with_one) >= needed {
        format!(
            "This machine's noise forbids it: {says}; it is right often enough, and its intervals are too wide."
        )
    } else {
        format!(
            "The method does not hold here: {says}. A sound one fails so with a chance of {} for each of the two.",
            percent(1.0 - chance(plan.runs, needed))
        )
    }
}

fn tally(what: &str, tally: &Tally) -> String {
    let said = counted(tally).join(&format!("\n  {:<18} ", ""));
    format!("  {what:<18} {said}")
}

/// Where the intervals lie and how wide they are, in a sentence or two.
pub(crate) fn counted(tally: &Tally) -> Vec<String> {
    let of = |count: usize| format!("{count} of {}", tally.intervals);
    let mut said = format!(
        "the interval holds {} in {}, lies above in {}, below in {}",
        ratio(1.0),
        of(tally.with_one),
        tally.above,
        tally.below
    );
    if let Some(width) = &tally.half_width {
        said += &format!(
            "; no wider than ±{} in {} (±{} at the median, ±{} at the most)",
            percent(WIDEST),
            of(tally.narrow),
            percent(width.median),
            percent(width.max)
        );
    }
    let rounds = tally.rounds_that_do.map(|rounds| {
        format!(
            "too wide by this machine's noise: about --rounds {rounds} would do, for a width goes with 1/√rounds"
        )
    });
    std::iter::once(said).chain(rounds).collect()
}
