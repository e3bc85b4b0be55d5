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
use crate::report::format::{count, gib};
use crate::result::Failure;
use crate::run::Run;
use crate::runner::Launcher;
use crate::sample::settle;
use crate::scenario::{Protocol, server_processes};
use crate::screen::Screen;
use crate::servers::Servers;

/// Sockets and slab of half a million connections are gone in half of this.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// Runs `plan` over `way` and tells of it on `screen`.
///
/// # Errors
/// When nothing could be started at all: what to tell the user.
pub fn run(
    plan: Plan,
    way: &Way,
    command_line: Vec<String>,
    screen: &Screen,
) -> Result<Report, String> {
    let mut run = Run::begin(
        plan.placement.clone(),
        plan.nofile_hard,
        plan.estimate(),
        command_line,
        screen,
    )?;
    run.about.environment = way.environment();
    run.stage.launcher = way.client()?;
    let server = way.server()?;
    screen.line(&report::canary::plan(&plan, &run.about, screen.paint));
    let mut all = Vec::new();
    for connections in &plan.connections {
        if run.stage.stop.cause().is_some() {
            break;
        }
        let during = format!("holding {} connections", count(*connections));
        let needed = connections.saturating_mul(plan.engine.bytes_per_connection());
        if needed > run.room_bytes {
            let (needed, room) = (gib(needed), gib(run.room_bytes));
            let cause = format!("they need about {needed}, and {room} may be used: hold fewer");
            run.note(screen, failure(&during, cause));
            continue;
        }
        let count = Count {
            plan: &plan,
            way,
            stage: &run.stage,
            server: &server,
            connections: *connections,
            during: &during,
        };
        let (held, failures) = count.hold(screen);
        if let Some(held) = held {
            screen.line(&report::canary::held(&held, plan.path, screen.paint));
            all.push(held);
        }
        for failure in failures {
            run.note(screen, failure);
        }
    }
    let mut report = Report {
        about: run.end(screen),
        path: plan.path.to_string(),
        plan,
        held: all,
        warnings: Vec::new(),
    };
    report.conclude();
    Ok(report)
}

/// One count of connections, and all it takes to hold them.
struct Count<'a> {
    plan: &'a Plan,
    way: &'a Way,
    stage: &'a Stage,
    server: &'a Launcher,
    connections: u64,
    during: &'a str,
}

impl Count<'_> {
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
        let processes = server_processes(plan.engine, self.connections, stage.nofile_hard);
        let protocol = Protocol::Line {
            heartbeat: Duration::from_millis(plan.heartbeat_ms),
        };
        let mut servers = Servers::start_with(
            self.server,
            plan.engine,
            protocol,
            processes,
            &stage.placement.server,
            &stage.stop,
            &plan.server_flags(),
        )?;
        let mut held = Held {
            connections: self.connections,
            settled,
            processes,
            broadcasts: 0,
            client: Value::Null,
            server_counters: None,
            servers: Vec::new(),
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
        failures.extend(self.unheard(&held));
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
        let mut phase = "baseline".to_owned();
        screen.doing(format!("{}: {phase}", self.during));
        let time_limit = plan.estimate_of(self.connections) * 3 + Duration::from_secs(60);
        let driven = drive(
            stage,
            servers,
            flags,
            self.during,
            time_limit,
            |progress, _, servers| {
                if progress.phase != phase {
                    progress.phase.clone_into(&mut phase);
                    if let Some(watch) = &mut watch {
                        watch.enter(&phase);
                    }
                    screen.doing(format!("{}: {phase}", self.during));
                }
                if storm.is_due(progress) {
                    servers.broadcast();
                }
            },
        );
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
