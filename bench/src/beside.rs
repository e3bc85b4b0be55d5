//! Servers beside idle connections of their own, kept up over all rounds that are measured beside them.
//!
//! For a count of idle connections each engine's server holds that many for an idle client; a round is a short-lived
//! client of newcomers on the same server. So a million is established once and not in every round. Where the memory
//! does not carry the idle connections of all engines at once, the engines go one after the other, each in a block of
//! its own; what is compared across blocks is not of one moment, and the text says so.
//!
//! The newcomers sit in the server's last table or tables, which is where newcomers of a real server are, and they are
//! as many tables at every count of idle connections: a full table of idle ones costs nothing but its memory.
//! `--table-slots` spreads them over as many tables as one likes.
//!
//! Invariant: when a [`Beside`] exists its idle connections are established; its end tells whether one was lost.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use kernel_tuning::host::Sockstat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exchange::{Exchanged, Measured};
use crate::load::{Progress, Stage};
use crate::result::Failure;
use crate::rounds::in_random_order;
use crate::run::Run;
use crate::runner::{Child, Next};
use crate::sample::{memory_is_short, settle};
use crate::scenario::{CLIENT_SOURCE, Engine, Protocol, server_processes};
use crate::screen::Screen;
use crate::servers::{Servers, core_list};
use crate::stop::TICK;

/// One engine's servers, with their idle connections.
#[derive(Debug)]
pub struct Beside {
    /// The engine.
    pub engine: Engine,
    /// Its servers.
    pub servers: Servers,
    idle: Option<Idle>,
}

#[derive(Debug)]
struct Idle {
    client: Child,
    connections: u64,
}

/// What is beside each server.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Idle connections that it holds.
    pub idle: u64,
    /// The most that come and go beside them at a time.
    pub newcomers: u64,
    /// Slots of each of io_uring's tables; `None`: as many as there can be.
    pub table_slots: Option<u32>,
}

impl Beside {
    /// Starts the servers of `engine` and establishes what is idle.
    ///
    /// # Errors
    /// Why that cannot be; nothing is left of it.
    pub fn set_up(stage: &Stage, engine: Engine, wanted: Wanted) -> Result<Self, Failure> {
        let processes = server_processes(engine, wanted.idle + wanted.newcomers, stage.nofile_hard);
        let slots = wanted.table_slots.filter(|_| engine == Engine::Uring);
        let flags = slots.map(|slots| ["--table-slots".to_owned(), slots.to_string()]);
        let mut servers = Servers::start_with(
            &stage.launcher,
            engine,
            Protocol::Echo,
            processes,
            &stage.placement.server,
            &stage.stop,
            flags.as_ref().map_or(&[], |flags| flags),
        )?;
        let idle = match wanted.idle {
            0 => None,
            connections => Some(hold_idle(stage, engine, &mut servers, connections)?),
        };
        Ok(Self {
            engine,
            servers,
            idle,
        })
    }

    /// Whether all of it still runs.
    pub fn is_up(&mut self) -> bool {
        let idle_has_ended = self
            .idle
            .as_mut()
            .is_some_and(|idle| idle.client.has_ended());
        self.servers.are_running() && !idle_has_ended
    }

    /// Ends it; gives the servers' summaries, and a failure for each process that did not end well and for idle
    /// connections that were lost.
    pub fn end(self) -> (Vec<Value>, Vec<Failure>) {
        /// Closing a million connections takes some ten seconds.
        const CLOSES_WITHIN: Duration = Duration::from_secs(60);
        let mut failures = Vec::new();
        if let Some(Idle {
            client,
            connections,
        }) = self.idle
        {
            let ended = client.end(Duration::ZERO, CLOSES_WITHIN);
            // It was asked to end, so its exit code tells nothing.
            let lost = ended.summary.get("lost_while_held").and_then(Value::as_u64);
            if lost != Some(0) {
                let during = format!(
                    "holding {connections} idle connections with {}",
                    self.engine
                );
                let mut failure = ended.failure(during);
                if let Some(lost) = lost {
                    failure.cause = format!("{lost} of them were lost; {}", failure.cause);
                }
                failures.push(failure);
            }
        }
        let (summaries, others) = self.servers.end(&format!("serving with {}", self.engine));
        failures.extend(others);
        (summaries, failures)
    }
}

/// Engines that are up at the same time, each with its idle connections.
#[derive(Debug)]
pub struct Block {
    /// What is beside each of them.
    pub wanted: Wanted,
    /// Those that came up.
    pub up: Vec<Beside>,
    /// The sockets that there are between two measurements.
    pub base: Sockstat,
}

impl Block {
    /// The engines that came up.
    pub fn engines(&self) -> Vec<Engine> {
        self.up.iter().map(|beside| beside.engine).collect()
    }
}

/// Who is measured in a round.
#[derive(Debug)]
pub enum Contender<'a> {
    /// The floor, which has its own server.
    Floor,
    /// An engine.
    Engine(&'a mut Beside),
}

/// What is measured in a block.
#[derive(Debug)]
pub struct Rounds<'a, Case> {
    /// How many rounds.
    pub count: usize,
    /// What is measured in each.
    pub cases: &'a [Case],
    /// The floor is measured too.
    pub has_floor: bool,
}

impl Block {
    /// Measures all `rounds`. `measure` gives the figures of one contender in one case, and the summary of a server that
    /// was there for it alone; `line` says what came of a case in one round. A failure costs its one measurement.
    pub fn measure<Case: Copy>(
        &mut self,
        run: &mut Run,
        screen: &Screen,
        rounds: &Rounds<'_, Case>,
        mut measure: impl FnMut(
            &Stage,
            &Case,
            &Sockstat,
            &mut Contender<'_>,
        ) -> Result<(Exchanged, Value), Failure>,
        line: impl Fn(&[Measured<Case>]) -> String,
    ) -> Vec<Measured<Case>> {
        let beside = self.engines();
        let mut contenders: Vec<Contender<'_>> =
            self.up.iter_mut().map(Contender::Engine).collect();
        contenders.extend(rounds.has_floor.then_some(Contender::Floor));
        let (mut all, mut failures) = (Vec::new(), Vec::new());
        let (stage, base) = (&run.stage, &self.base);
        in_random_order(
            rounds.count,
            rounds.cases,
            &mut contenders,
            &stage.stop,
            |round, case, contender| {
                let (engine, processes) = match contender {
                    Contender::Floor => (None, 1),
                    Contender::Engine(beside) => (Some(beside.engine), beside.servers.count()),
                };
                let name = engine.map_or("the floor", Engine::name);
                screen.doing(format!("{name}, round {round} of {}", rounds.count));
                match measure(stage, case, base, contender) {
                    Ok((exchanged, server)) => Some(Measured {
                        round,
                        case: *case,
                        engine,
                        beside: beside.clone(),
                        processes,
                        exchanged,
                        server,
                    }),
                    Err(failure) => {
                        screen.failure(&failure);
                        failures.push(failure);
                        None
                    }
                }
            },
            |mut measured, contenders| {
                if !measured.is_empty() {
                    measured.sort_by_key(|one| one.engine);
                    screen.line(&line(&measured));
                }
                all.extend(measured);
                contenders.retain_mut(|contender| match contender {
                    Contender::Floor => true,
                    Contender::Engine(beside) => beside.is_up(),
                });
            },
        );
        run.about.failures.extend(failures);
        all
    }
}

/// A block that could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Idle connections that each engine was to hold.
    pub idle: u64,
    /// The engines.
    pub engines: Vec<Engine>,
    /// Why not.
    pub why: String,
}

/// What is left of all blocks.
#[derive(Debug, Default)]
pub struct Ended {
    /// Blocks that could not be.
    pub skipped: Vec<Skipped>,
    /// Each server process's own summary, in the order they ended.
    pub servers: Vec<Value>,
}

/// Sets up a block for each of `wanted`, hands it to `measure`, and takes it down; all engines are in one block where
/// they hold no more than `most_together` idle connections in sum and the memory carries them, and else each has its own.
pub fn in_blocks(
    run: &mut Run,
    screen: &Screen,
    engines: &[Engine],
    wanted: &[Wanted],
    most_together: u64,
    mut measure: impl FnMut(&mut Run, &mut Block),
) -> Ended {
    let mut ended = Ended::default();
    for wanted in wanted {
        let carried = run.fits.saturating_sub(wanted.newcomers);
        for engines in blocks(engines, wanted.idle, most_together.min(carried)) {
            if run.stage.stop.cause().is_some() {
                return ended;
            }
            let connections = wanted.idle * engines.len() as u64 + wanted.newcomers;
            if connections > run.fits {
                let skipped = Skipped {
                    idle: wanted.idle,
                    engines,
                    why: format!(
                        "{connections} connections do not fit into the memory that is available, which carries {}",
                        run.fits
                    ),
                };
                screen.line(&format!("  skipped  {}", skipped.said()));
                ended.skipped.push(skipped);
                continue;
            }
            let mut block = set_up(run, screen, &engines, *wanted);
            if !block.up.is_empty() {
                measure(run, &mut block);
            }
            for beside in block.up {
                let (servers, failures) = beside.end();
                ended.servers.extend(servers);
                failures
                    .into_iter()
                    .for_each(|failure| run.note(screen, failure));
            }
        }
    }
    ended
}

impl Skipped {
    /// In words.
    pub fn said(&self) -> String {
        let engines: Vec<&str> = self.engines.iter().map(|engine| engine.name()).collect();
        format!(
            "{} with {} idle connections: {}",
            engines.join(" and "),
            self.idle,
            self.why
        )
    }
}

fn blocks(engines: &[Engine], idle: u64, most_together: u64) -> Vec<Vec<Engine>> {
    if idle.saturating_mul(engines.len() as u64) <= most_together {
        vec![engines.to_vec()]
    } else {
        engines.iter().map(|engine| vec![*engine]).collect()
    }
}

fn set_up(run: &mut Run, screen: &Screen, engines: &[Engine], wanted: Wanted) -> Block {
    /// The kernel frees the million sockets of the block before within some seconds.
    const SETTLES_WITHIN: Duration = Duration::from_secs(30);
    settle(&run.stage.base, SETTLES_WITHIN, &run.stage.stop);
    let mut up = Vec::new();
    for engine in engines {
        screen.doing(format!(
            "{engine}: establishing {} idle connections",
            wanted.idle
        ));
        match Beside::set_up(&run.stage, *engine, wanted) {
            Ok(beside) => up.push(beside),
            Err(failure) => run.note(screen, failure),
        }
    }
    let base = Sockstat::read().unwrap_or(run.stage.base.sockstat);
    Block { wanted, up, base }
}

fn hold_idle(
    stage: &Stage,
    engine: Engine,
    servers: &mut Servers,
    connections: u64,
) -> Result<Idle, Failure> {
    /// The client's bound: it is ended when the rounds are over.
    const HOLD: &str = "30days";
    let during = format!("establishing {connections} idle connections with {engine}");
    let (address, cores) = (
        servers.address().to_string(),
        core_list(&stage.placement.client),
    );
    let args = [
        address.as_str(),
        "--cores",
        &cores,
        "--connections",
        &connections.to_string(),
    ]
    .into_iter()
    .chain(["--protocol", "echo", "--source", CLIENT_SOURCE])
    .chain(["--hold", HOLD, "--samples", "-", "--sample-interval", "10s"])
    .map(OsString::from)
    .collect();
    let client = stage.launcher.start("client", args)?;
    // A ramp ten times slower than any seen still finishes in this time.
    let time_limit = Duration::from_millis(30_000 + connections / 2);
    let until = Instant::now() + time_limit;
    let cause = loop {
        match client.next_line(TICK) {
            Next::Line(line) => match serde_json::from_str::<Progress>(&line) {
                Ok(progress) if progress.phase == "hold" => {
                    if progress.established == connections {
                        return Ok(Idle {
                            client,
                            connections,
                        });
                    }
                    break format!("only {} came to be", progress.established);
                }
                _ => continue,
            },
            Next::Closed => {
                return Err(client
                    .end(Duration::from_secs(5), Duration::from_secs(5))
                    .failure(during));
            }
            Next::Nothing => {}
        }
        let late = (Instant::now() >= until)
            .then(|| format!("not all were there after {} s", time_limit.as_secs()));
        let died = (!servers.are_running()).then(|| "a server died in the middle".to_owned());
        let stopped = stage.stop.cause().map(|cause| cause.to_string());
        if let Some(cause) = stopped.or(late).or(died).or_else(memory_is_short) {
            break cause;
        }
    };
    let ended = client.end(Duration::ZERO, Duration::from_secs(30));
    Err(Failure {
        during,
        cause,
        stderr_tail: ended.stderr_tail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_up_together_where_their_idle_connections_are_few() {
        let engines = [Engine::Uring, Engine::Epoll];
        assert_eq!(blocks(&engines, 0, 0), [engines.to_vec()]);
        assert_eq!(blocks(&engines, 100, 200), [engines.to_vec()]);
        assert_eq!(
            blocks(&engines, 101, 200),
            [vec![Engine::Uring], vec![Engine::Epoll]]
        );
    }
}
