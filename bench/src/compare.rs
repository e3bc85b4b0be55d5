//! The whole comparison, in its order: lock, plan, a hold for each engine, echo rounds, conclusions.
//!
//! Invariant: it always comes back with a report, however much of it could be measured; a failure costs what it must
//! and no more.

use kernel_tuning::limit::connections_that_fit;
use rand::seq::SliceRandom;

use crate::echo::{self, Event};
use crate::hold::hold;
use crate::report::rounds::place;
use crate::report::{Reported, text};
use crate::result::{Echo, Report};
use crate::run::Run;
use crate::sample::{available_bytes, usable_bytes};
use crate::scenario::{Plan, most_connections};
use crate::screen::Screen;

/// Runs `plan` and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn compare(
    mut plan: Plan,
    command_line: Vec<String>,
    screen: &Screen,
) -> Result<Report, String> {
    let mut run = Run::begin(
        Report::COMMAND,
        plan.placement.clone(),
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    let memory = &run.stage.base.memory;
    let available_bytes = available_bytes(memory);
    let each_bytes = plan.bytes_per_connection();
    let fits = connections_that_fit(available_bytes, each_bytes)
        .min(usable_bytes(memory) / each_bytes)
        .max(1);
    let cut = plan.fit(fits, available_bytes);
    run.stage.launcher.learn(&plan.peers);
    let mut report = Report {
        about: run.about.clone(),
        plan,
        cut,
        hold: Vec::new(),
        echo: Vec::new(),
        echo_summary: Vec::new(),
        warnings: Vec::new(),
    };
    screen.line(&text::plan(&report, screen.paint));
    measure(&mut run, &mut report, screen);
    report.about = run.end(screen);
    report.conclude();
    Ok(report)
}

fn measure(run: &mut Run, report: &mut Report, screen: &Screen) {
    let mut engines = report.plan.engines.clone();
    engines.shuffle(&mut rand::rng());
    if let Some(plan) = report.plan.hold.clone() {
        for engine in &engines {
            if run.stage.stop.cause().is_some() {
                return;
            }
            // The doubts say so.
            if most_connections(*engine, run.stage.nofile_hard)
                .is_some_and(|most| plan.connections > most)
            {
                continue;
            }
            screen.doing(format!(
                "{engine}: holding {} connections",
                plan.connections
            ));
            let (held, failures) = hold(&run.stage, &plan, *engine);
            if let Some(held) = held {
                screen.line(&text::hold_line(&held));
                report.hold.push(held);
            }
            failures
                .into_iter()
                .for_each(|failure| run.note(screen, failure));
        }
    }
    if let (Some(plan), None) = (report.plan.echo.clone(), run.stage.stop.cause()) {
        let mut failures = Vec::new();
        echo::rounds(&run.stage, &plan, &engines, |event| match event {
            Event::Begin {
                round,
                case,
                engine,
            } => {
                screen.doing_for(
                    format!(
                        "{engine}: echo, {case}, round {}",
                        place(round, plan.rounds)
                    ),
                    plan.times.about(case.active),
                );
            }
            Event::Pair(measured) => {
                screen.line(&text::pair_line(measured, plan.rounds));
                report.echo.extend(measured.iter().map(Echo::clone));
            }
            Event::Failed(failure) => {
                screen.failure(&failure);
                failures.push(failure);
            }
        });
        run.about.failures.extend(failures);
    }
}
