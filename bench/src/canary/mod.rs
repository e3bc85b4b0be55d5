//! The command `canary`: does a ping, does a new connect, suffer while very many connections are opened, held, exercised,
//! told something all at once, and closed?
//!
//! | room | owns |
//! |---|---|
//! | [`plan`] | the flags, and what they make of a run |
//! | [`path`] | loopback, or namespaces joined by veth |
//! | [`ends`] | the counters at the server's end, by phase |
//! | [`result`] | what was found |
//!
//! The client probes and judges; this starts both ends across the path, has the server broadcast when the client's storm
//! begins, and keeps what both ends counted. Invariant: what was measured is returned, however a count ends.

pub mod ends;
pub mod path;
pub mod plan;
pub mod result;

use std::time::Duration;

use serde_json::Value;

use crate::canary::ends::Watch;
use crate::canary::path::Way;
use crate::canary::plan::Plan;
use crate::canary::result::{Held, Report};
use crate::load::{Driven, Progress, Stage, drive};
use crate::report;
use crate::report::Reported;
use crate::report::format::{count, gib, join};
use crate::result::Failure;
use crate::run::Run;
use crate::runner::Launcher;
use crate::sample::settle;
use crate::scenario::{Engine, Protocol, server_processes};
use crate::screen::Screen;
use crate::series::{Sampler, Series};
use crate::servers::Servers;

/// Sockets and slab of half a million connections are gone in half of this.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// Runs `plan` over `ways` and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn run(
    (plan, ways): (Plan, Vec<Way>),
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
    if let Some(first) = ways.first() {
        run.about.environment = first.environment();
    }
    screen.line(&report::canary::plan(&plan, &run.about, screen.paint));
    let mut all = Vec::new();
    for way in &ways {
        run.stage.launcher = way.client()?;
        let server = way.server()?;
        for (engine, wanted) in plan.cases() {
            if run.stage.stop.cause().is_some() {
                break;
            }
            let bytes_each = engine.bytes_per_connection();
            let Some(connections) = plan.fitting(wanted, bytes_each, run.room_bytes) else {
                let needed = gib(wanted.saturating_mul(bytes_each));
                let room = gib(run.room_bytes);
                let cause = format!("they need about {needed}, and {room} may be used: hold fewer");
                let during = format!("holding {} connections", count(wanted));
                run.note(screen, failure(&during, cause));
                continue;
            };
            let (held, over) = (count(connections), way.kind().name());
            let case = Case {
                plan: &plan,
                way,
                stage: &run.stage,
                server: &server,
                engine,
                connections,
                wanted,
                during: &format!("holding {held} connections with {engine} over {over}"),
            };
            let (held, failures) = case.hold(screen);
            if let Some(held) = held {
                screen.line(&report::canary::held(&held, screen.paint));
                all.push(held);
            }
            for failure in failures {
                run.note(screen, failure);
            }
        }
    }
    let mut report = Report {
        about: run.end(screen),
        path: join(&plan.paths),
        plan,
        held: all,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

/// One count of connections with one engine over one path, and all it takes to hold them.
struct Case<'a> {
    plan: &'a Plan,
    way: &'a Way,
    stage: &'a Stage,
    server: &'a Launcher,
    engine: Engine,
    connections: u64,
    /// By the plan.
    wanted: u64,
    during: &'a str,
}

impl Case<'_> {
    fn hold(&self, screen: &Screen) -> (Option<Held>, Vec<Failure>) {
        match self.begin(screen) {
            Ok((held, failures)) => (Some(held), failures),
            Err(failure) => (None, vec![failure]),
        }
    }

    fn begin(&self, screen: &Screen) -> Result<(Held, Vec<Failure>), Failure> {
        let Self { plan, stage, .. } = *self;
        screen.doing(format!("{}: starting", self.during));
        let settled = settle(&stage.base, SETTLES_WITHIN, &stage.stop);
        let processes = server_processes(self.engine, self.connections, stage.nofile_hard);
        let protocol = Protocol::Line {
            heartbeat: Duration::from_millis(plan.heartbeat_ms),
        };
        let mut servers = Servers::start_with(
            self.server,
            self.engine,
            protocol,
            processes,
            &stage.placement.server,
            &stage.stop,
            &plan.server_flags(),
        )?;
        let mut held = Held {
            path: self.way.kind(),
            engine: self.engine,
            connections: self.connections,
            instead_of: (self.wanted != self.connections).then_some(self.wanted),
            settled,
            processes,
            broadcasts: 0,
            client: Value::Null,
            server_counters: None,
            servers: Vec::new(),
            series: Series::default(),
        };
        let driven = self.drive(&mut servers, &mut held, screen);
        let mut failures = Vec::new();
        match driven {
            Ok(driven) => {
                held.client = driven.summary;
                failures.extend(driven.failure);
            }
            Err(failure) => failures.push(failure),
        }
        let (summaries, of_servers) = servers.end(self.during);
        held.servers = summaries;
        failures.extend(of_servers);
        if stage.stop.cause().is_none() {
            failures.extend(self.unheard(&held));
        }
        Ok((held, failures))
    }

    fn drive(
        &self,
        servers: &mut Servers,
        held: &mut Held,
        screen: &Screen,
    ) -> Result<Driven, Failure> {
        let Self { plan, stage, .. } = *self;
        let Some(canary) = servers.canary() else {
            let cause = "the server does not say where it answers canaries: this is a bug";
            return Err(failure(self.during, cause.to_owned()));
        };
        let mut flags = plan.client_flags(self.connections, self.way.source(), canary.port());
        if let Some(neighbour) = self.way.neighbour() {
            flags.extend(["--canary-neighbour".to_owned(), neighbour.to_string()]);
        }
        let joined = self.way.joined.as_ref();
        let mut watch = joined.map(|joined| Watch::new(&joined.server));
        let mut storm = Storm::new(plan, self.connections);
        let inside = joined.map(|joined| joined.server.clone());
        let mut phase = "baseline".to_owned();
        let mut legs = 0;
        let sampler = Sampler::start(&phase, servers.pids(), inside);
        let show = |phase: &str, leg: usize| {
            let expected = plan.expected(phase, leg, self.connections);
            let phase = match phase {
                "quiet" => "hold",
                "done" => "mass close",
                phase => phase,
            };
            screen.phase(format!("{}: {phase}", self.during), expected);
        };
        show(&phase, 0);
        let time_limit = plan.estimate_of(self.connections) * 3 + Duration::from_secs(60);
        let driven = drive(
            stage,
            servers,
            flags,
            self.during,
            time_limit,
            |progress, client, servers| {
                sampler.note(progress, client.id());
                if progress.phase != phase {
                    if phase == "idle" {
                        servers.begin_heartbeats();
                    }
                    progress.phase.clone_into(&mut phase);
                    if let Some(watch) = &mut watch {
                        watch.enter(&phase);
                    }
                    show(&phase, legs);
                    legs += usize::from(phase == "ramp");
                }
                if storm.is_due(progress) {
                    servers.broadcast();
                }
            },
        );
        held.series = sampler.finish();
        held.broadcasts = storm.done;
        held.server_counters = watch.map(Watch::finish);
        driven
    }

    /// A broadcast that some did not hear.
    fn unheard(&self, held: &Held) -> Option<Failure> {
        let heard = held.client.pointer("/storm/heard")?.as_u64()?;
        let wanted = held.broadcasts * held.count("/established");
        (heard < wanted).then(|| {
            let (heard, wanted) = (count(heard), count(wanted));
            let cause = format!(
                "{heard} lines were heard in the storm, of {wanted} broadcast: the server, or the client, was too slow \
                 (fewer connections, or --storm-over)"
            );
            failure(self.during, cause)
        })
    }
}

/// When broadcasts are due, by the client's clock.
struct Storm {
    count: u64,
    every_ms: u64,
    next_ms: Option<u64>,
    done: u64,
}

impl Storm {
    fn new(plan: &Plan, connections: u64) -> Self {
        Self {
            count: plan.storm,
            every_ms: plan.storm_every_ms(connections),
            next_ms: None,
            done: 0,
        }
    }

    /// Whether one is to be made now. Each is told once.
    fn is_due(&mut self, progress: &Progress) -> bool {
        if progress.phase != "storm" || self.done == self.count {
            return false;
        }
        let next_ms = self.next_ms.get_or_insert(progress.t_ms);
        let is_due = progress.t_ms >= *next_ms;
        if is_due {
            *next_ms += self.every_ms;
            self.done += 1;
        }
        is_due
    }
}

fn failure(during: &str, cause: String) -> Failure {
    Failure {
        during: during.to_owned(),
        cause,
        stderr_tail: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_are_evenly_apart_and_only_in_the_storm() {
        let mut storm = Storm {
            count: 3,
            every_ms: 2_000,
            next_ms: None,
            done: 0,
        };
        let mut due = |phase: &str, t_ms| {
            storm.is_due(&Progress {
                t_ms,
                phase: phase.to_owned(),
                ..Progress::default()
            })
        };
        assert!(!due("active", 900));
        let times = [1_000, 1_200, 2_900, 3_000, 3_200, 5_050, 7_100];
        let told: Vec<u64> = times.into_iter().filter(|t| due("storm", *t)).collect();
        assert_eq!(told, [1_000, 3_000, 5_050]);
    }
}
