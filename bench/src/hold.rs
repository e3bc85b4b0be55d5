//! The hold: one engine takes all connections and holds them with heartbeats.
//!
//! Invariant: whatever happens, what was measured until then is returned beside the failures.

use std::time::Duration;

use kernel_tuning::host::NetCounters;
use serde_json::Value;

use crate::load::{CpuMark, Driven, Stage, drive, flag_ms};
use crate::result::{Failure, Hold};
use crate::sample::{HostSample, settle};
use crate::scenario::{CLIENT_SOURCE, Engine, HoldPlan, Protocol, server_processes};
use crate::servers::Servers;

/// Runs the hold with `engine`. There is no [`Hold`] when it could not even begin.
pub fn hold(stage: &Stage, plan: &HoldPlan, engine: Engine) -> (Option<Hold>, Vec<Failure>) {
    match begin(stage, plan, engine) {
        // A client that never began leaves nothing to show.
        Ok((hold, failures)) => (
            (!hold.client.is_null() || hold.held.is_some()).then_some(hold),
            failures,
        ),
        Err(failure) => (None, vec![failure]),
    }
}

/// Sockets go within a second or two of their process; slab pages may take longer, and are not waited for in vain.
const SETTLES_WITHIN: Duration = Duration::from_secs(8);

fn begin(stage: &Stage, plan: &HoldPlan, engine: Engine) -> Result<(Hold, Vec<Failure>), Failure> {
    let during = format!("holding {} connections with {engine}", plan.connections);
    let broken = |cause: String| Failure {
        during: during.clone(),
        cause,
        stderr_tail: Vec::new(),
    };
    let settled = settle(&stage.base, SETTLES_WITHIN, &stage.stop);
    let base = HostSample::read().map_err(|error| broken(error.to_string()))?;
    let processes = server_processes(engine, plan.connections, stage.nofile_hard);
    let protocol = protocol(plan, engine);
    let cores = &stage.placement.server;
    let mut servers = Servers::start(
        &stage.launcher,
        engine,
        protocol,
        processes,
        cores,
        &stage.stop,
    )?;
    let empty = servers.usage().map_err(|error| broken(error.to_string()))?;
    let mut hold = Hold {
        engine,
        processes,
        wanted: plan.connections,
        established: 0,
        settled,
        base,
        held: None,
        server_rss_empty_bytes: empty.rss_bytes,
        server_rss_held_bytes: None,
        client_rss_held_bytes: None,
        ramp: None,
        hold: None,
        counters: NetCounters::default(),
        client: Value::Null,
        servers: Vec::new(),
    };
    let driven = ramp_and_hold(stage, plan, &mut servers, &during, &mut hold);
    if let Ok(now) = NetCounters::read() {
        hold.counters = now.since(&hold.base.counters);
    }
    let mut failures = Vec::new();
    match driven {
        Ok(Driven { summary, failure }) => {
            hold.client = summary;
            failures.extend(failure);
        }
        Err(failure) => failures.push(failure),
    }
    let (summaries, server_failures) = servers.end(&during);
    hold.servers = summaries;
    failures.extend(server_failures);
    if let (None, Some(most)) = (
        &hold.held,
        hold.client.get("established").and_then(Value::as_u64),
    ) {
        hold.established = most;
    }
    Ok((hold, failures))
}

/// A peer knows of no heartbeats: it holds, and that is all.
fn protocol(plan: &HoldPlan, engine: Engine) -> Protocol {
    match engine {
        Engine::Peer(_) => Protocol::Echo,
        Engine::Uring | Engine::Epoll | Engine::TokioUring => Protocol::Line {
            heartbeat: Duration::from_millis(plan.heartbeat_ms),
        },
    }
}

fn ramp_and_hold(
    stage: &Stage,
    plan: &HoldPlan,
    servers: &mut Servers,
    during: &str,
    hold: &mut Hold,
) -> Result<Driven, Failure> {
    let heartbeat = flag_ms(plan.heartbeat_ms);
    let args = [
        "--connections",
        &plan.connections.to_string(),
        "--source",
        CLIENT_SOURCE,
    ]
    .into_iter()
    .chain(["--hold", &flag_ms(plan.hold_ms)])
    .chain(match protocol(plan, hold.engine) {
        Protocol::Echo => ["--protocol", "echo"],
        Protocol::Line { .. } => ["--heartbeat", &heartbeat],
    })
    .map(str::to_owned)
    .collect();
    // A ramp ten times slower than any seen still finishes in this time.
    let time_limit = Duration::from_millis(plan.hold_ms + 30_000 + plan.connections / 2);
    let (mut ramp_began, mut hold_began) = (None, None);
    drive(
        stage,
        servers,
        args,
        during,
        time_limit,
        |progress, client, servers| {
            let Ok(mark) = CpuMark::read(stage, progress, client, servers) else {
                return;
            };
            match progress.phase.as_str() {
                "ramp" => {
                    ramp_began.get_or_insert(mark);
                }
                "hold" => {
                    let began = *hold_began.get_or_insert(mark);
                    hold.ramp = ramp_began.and_then(|ramp_began: CpuMark| ramp_began.until(&began));
                    hold.hold = began.until(&mark);
                    hold.established = progress.established;
                    hold.held = HostSample::read().ok();
                    hold.server_rss_held_bytes = servers.usage().ok().map(|usage| usage.rss_bytes);
                    hold.client_rss_held_bytes = client.usage().ok().map(|usage| usage.rss_bytes);
                }
                _ => {}
            }
        },
    )
}
