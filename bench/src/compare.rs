//! The whole comparison, in its order: lock, plan, a hold for each engine, echo rounds, conclusions.
//!
//! Invariant: it always comes back with a report, however much of it could be measured; a failure costs what it must
//! and no more.

use std::time::Instant;

use kernel_tuning::host::{MachineBusy, Memory, environment};
use kernel_tuning::limit::connections_that_fit;
use rand::seq::SliceRandom;

use crate::clock::{millis, unix_now_s};
use crate::echo::{self, Event};
use crate::hold::hold;
use crate::load::Stage;
use crate::lock::alone;
use crate::report::text;
use crate::result::{Echo, FORMAT_VERSION, Failure, Report};
use crate::sample::{HostSample, available_bytes, usable_bytes};
use crate::scenario::{Plan, most_connections};
use crate::screen::Screen;
use crate::stop::Cause;

/// Runs `plan` and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn compare(
    mut plan: Plan,
    command_line: Vec<String>,
    screen: &Screen,
) -> Result<Report, String> {
    let (stop, _alone) = alone(plan.time_limit(), screen)?;
    let memory = Memory::read().map_err(|error| error.to_string())?;
    let available_bytes = available_bytes(&memory);
    let each_bytes = plan.bytes_per_connection();
    let fits = connections_that_fit(available_bytes, each_bytes)
        .min(usable_bytes(&memory) / each_bytes)
        .max(1);
    let cut = plan.fit(fits, available_bytes);
    let base = HostSample::read().map_err(|error| error.to_string())?;
    let mut stage = Stage::new(plan.placement.clone(), plan.nofile_hard, stop, base)?;
    stage.launcher.learn(&plan.peers);
    let mut report = Report {
        format_version: FORMAT_VERSION,
        throng_version: env!("CARGO_PKG_VERSION").to_owned(),
        partial: false,
        started_unix_s: unix_now_s(),
        duration_ms: 0,
        command_line,
        environment: environment(),
        plan,
        cut,
        hold: Vec::new(),
        echo: Vec::new(),
        echo_summary: Vec::new(),
        machine: None,
        warnings: Vec::new(),
        failures: Vec::new(),
    };
    screen.line(&text::plan(&report, screen.paint));
    let began = Instant::now();
    run(&stage, &mut report, screen);
    screen.done();
    report.duration_ms = millis(began.elapsed());
    report.machine = MachineBusy::read()
        .ok()
        .map(|now| now.since(&stage.base.machine));
    if let Some(cause) = stage.stop.cause() {
        report.partial = true;
        note(&mut report, screen, ending(cause));
    }
    report.conclude();
    Ok(report)
}

fn run(stage: &Stage, report: &mut Report, screen: &Screen) {
    let mut engines = report.plan.engines.clone();
    engines.shuffle(&mut rand::rng());
    if let Some(plan) = report.plan.hold.clone() {
        for engine in &engines {
            if stage.stop.cause().is_some() {
                return;
            }
            // The doubts say so.
            if most_connections(*engine, stage.nofile_hard)
                .is_some_and(|most| plan.connections > most)
            {
                continue;
            }
            screen.doing(format!(
                "{engine}: holding {} connections",
                plan.connections
            ));
            let (held, failures) = hold(stage, &plan, *engine);
            if let Some(held) = held {
                screen.line(&text::hold_line(&held));
                report.hold.push(held);
            }
            failures
                .into_iter()
                .for_each(|failure| note(report, screen, failure));
        }
    }
    if let (Some(plan), None) = (report.plan.echo.clone(), stage.stop.cause()) {
        echo::rounds(stage, &plan, &engines, |event| match event {
            Event::Begin {
                round,
                active,
                engine,
            } => {
                screen.doing(format!(
                    "{engine}: echo on {active} connections, round {round} of {}",
                    plan.rounds
                ));
            }
            Event::Pair(measured) => {
                screen.line(&text::pair_line(measured, plan.rounds));
                report.echo.extend(measured.iter().map(Echo::clone));
            }
            Event::Failed(failure) => note(report, screen, failure),
        });
    }
}

fn note(report: &mut Report, screen: &Screen, failure: Failure) {
    screen.failure(&failure);
    report.failures.push(failure);
}

fn ending(cause: Cause) -> Failure {
    let what = "the run ended early; the report has what was measured until then";
    Failure {
        during: "the comparison".to_owned(),
        cause: format!("{cause}: {what}"),
        stderr_tail: Vec::new(),
    }
}
