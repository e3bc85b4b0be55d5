//! Blocks: engines that are up at the same time, each beside its own idle connections, and the rounds measured in them.
//!
//! Where the memory does not carry the idle connections of all engines at once, the engines go one after the other, each
//! in a block of its own; what is compared across blocks is not of one moment, and the texts say so.
//!
//! Invariant: a block is taken down before the next is set up, and one that does not fit is told and never begun.

use std::time::{Duration, Instant};

use kernel_tuning::host::Sockstat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::{Beside, Wanted};
use crate::exchange::{Exchanged, Measured};
use crate::load::Stage;
use crate::report::format::gib;
use crate::result::Failure;
use crate::rounds::{Goal, in_random_order};
use crate::run::Run;
use crate::sample::settle;
use crate::scenario::{Engine, most_connections};
use crate::screen::Screen;
use crate::stats::Spread;

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

/// Rounds that go on until these ratios are as narrow as is asked for.
#[derive(Debug)]
pub struct Until<Case> {
    /// How narrow.
    pub goal: Goal,
    /// The ratios of what was measured so far.
    pub ratios: fn(&[Measured<Case>]) -> Vec<Option<Spread>>,
}

/// What is measured in a block.
#[derive(Debug)]
pub struct Rounds<'a, Case> {
    /// How many rounds there are at least.
    pub count: usize,
    /// Until when they go on then.
    pub until: Option<Until<Case>>,
    /// What is measured in each.
    pub cases: &'a [Case],
    /// The floor is measured too.
    pub has_floor: bool,
    /// About how long one measurement takes.
    pub each: Duration,
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
        let mut failures = Vec::new();
        let (stage, base, began) = (&run.stage, &self.base, Instant::now());
        let is_enough = |until: &Until<Case>, measured: &[Measured<Case>]| {
            let spreads = (until.ratios)(measured);
            until.goal.is_reached(began.elapsed(), &spreads)
        };
        let all = in_random_order(
            |done, measured| {
                let until = rounds.until.as_ref();
                done >= rounds.count && until.is_none_or(|until| is_enough(until, measured))
            },
            rounds.cases,
            &mut contenders,
            &stage.stop,
            |round, case, contender| {
                let (engine, processes) = match contender {
                    Contender::Floor => (None, 1),
                    Contender::Engine(beside) => (Some(beside.engine), beside.servers.count()),
                };
                let name = engine.as_ref().map_or("the floor", Engine::name);
                screen.doing_for(format!("{name}, round {round}"), rounds.each);
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
            |measured, contenders| {
                if !measured.is_empty() {
                    measured.sort_by_key(|one| one.engine);
                    screen.line(&line(measured));
                }
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
        let room_bytes = run.room_bytes;
        for engines in blocks(engines, wanted, most_together, room_bytes) {
            if run.stage.stop.cause().is_some() {
                return ended;
            }
            let bytes = bytes_of(&engines, wanted);
            if bytes > room_bytes {
                let skipped = Skipped {
                    idle: wanted.idle,
                    engines,
                    why: format!(
                        "both ends take about {}, and {} of memory may be taken here",
                        gib(bytes),
                        gib(room_bytes)
                    ),
                };
                screen.line(&format!("  skipped  {}", skipped.said()));
                ended.skipped.push(skipped);
                continue;
            }
            let engines = carried(run, screen, engines, wanted, &mut ended.skipped);
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

fn blocks(
    engines: &[Engine],
    wanted: &Wanted,
    most_together: u64,
    room_bytes: u64,
) -> Vec<Vec<Engine>> {
    let is_little = wanted.idle.saturating_mul(engines.len() as u64) <= most_together;
    if is_little && bytes_of(engines, wanted) <= room_bytes {
        vec![engines.to_vec()]
    } else {
        engines.iter().map(|engine| vec![*engine]).collect()
    }
}

/// Those of `engines` that this machine's open files let take what is wanted; the others are told, and skipped.
fn carried(
    run: &Run,
    screen: &Screen,
    engines: Vec<Engine>,
    wanted: &Wanted,
    skipped: &mut Vec<Skipped>,
) -> Vec<Engine> {
    let connections = wanted.idle.saturating_add(wanted.newcomers);
    let mut carried = engines;
    let is_too_much = |engine: &mut Engine| {
        let most = most_connections(*engine, run.stage.nofile_hard);
        most.is_some_and(|most| connections > most)
    };
    for engine in carried.extract_if(.., is_too_much) {
        let left_out = Skipped {
            idle: wanted.idle,
            engines: vec![engine],
            why: format!(
                "with {} that come and go each connection is an open file, and one process may have {} here (ulimit -Hn)",
                wanted.newcomers, run.stage.nofile_hard
            ),
        };
        screen.line(&format!("  skipped  {}", left_out.said()));
        skipped.push(left_out);
    }
    carried
}

fn bytes_of(engines: &[Engine], wanted: &Wanted) -> u64 {
    let connections = wanted.idle.saturating_add(wanted.newcomers);
    let each = engines
        .iter()
        .map(|engine| engine.bytes_per_connection().saturating_mul(connections));
    each.fold(0, u64::saturating_add)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Protocol;

    #[test]
    fn engines_are_up_together_where_their_idle_connections_are_few_and_the_memory_carries_them() {
        let engines = [Engine::Uring, Engine::Epoll];
        let apart = [vec![Engine::Uring], vec![Engine::Epoll]];
        let of = |idle, most_together, room_bytes| {
            let wanted = Wanted {
                idle,
                newcomers: 10,
                table_slots: None,
                protocol: Protocol::Echo,
            };
            blocks(&engines, &wanted, most_together, room_bytes)
        };
        let plenty = 1 << 40;
        assert_eq!(of(0, 0, plenty), [engines.to_vec()]);
        assert_eq!(of(100, 200, plenty), [engines.to_vec()]);
        assert_eq!(of(101, 200, plenty), apart);
        assert_eq!(of(100, 200, 2_200_000), [engines.to_vec()]);
        assert_eq!(of(100, 200, 2_199_999), apart);
    }
}
