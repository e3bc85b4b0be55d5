//! What `throng-bench memory` measures and found: plain data, and the medians drawn from it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use kernel_tuning::host::Memory;
use serde::{Deserialize, Serialize};

use crate::footprint::Growth;
use crate::peer::Peer;
use crate::report::format::{count, gib, part_of_memory};
use crate::run::About;
use crate::sample::available_bytes;
use crate::scenario::{Engine, Placement};
use crate::stats::Spread;

/// What holds the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A server that only accepts and keeps, and a client that only connects and keeps.
    Pair,
    /// A server that only accepts and keeps, with the client that the engines have.
    Bare,
    /// A server of this engine.
    Engine(Engine),
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pair => out.pad("two bare ends"),
            Self::Bare => out.pad("bare"),
            Self::Engine(engine) => engine.fmt(out),
        }
    }
}

/// What is to be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Engines to measure, beside the bare socket.
    pub engines: Vec<Engine>,
    /// How the peers among them are started.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Connections each holds.
    pub connections: u64,
    /// Rounds, each with two bare ends, the bare server and every engine.
    pub rounds: usize,
    /// Memory that is kept free.
    pub keep_free_bytes: u64,
    /// Which CPUs each side runs on.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

impl MemoryPlan {
    /// All that is measured in a round.
    pub fn subjects(&self) -> Vec<Subject> {
        let engines = self.engines.iter().copied().map(Subject::Engine);
        [Subject::Pair, Subject::Bare]
            .into_iter()
            .chain(engines)
            .collect()
    }

    /// Whether the connections fit.
    ///
    /// # Errors
    /// What they need and what there is.
    pub fn fit(&self, memory: &Memory) -> Result<(), String> {
        let each = self
            .engines
            .iter()
            .map(|engine| engine.bytes_per_connection());
        let needs = self.connections.saturating_mul(each.max().unwrap_or(0));
        let available = available_bytes(memory);
        if needs.saturating_add(self.keep_free_bytes) <= available {
            return Ok(());
        }
        Err(format!(
            "{} connections do not fit: they need about {}, {} are kept free, and {} are available; use fewer \
             --connections, or end what uses memory: ps aux --sort=-rss | head",
            count(self.connections),
            part_of_memory(needs),
            part_of_memory(self.keep_free_bytes),
            gib(available)
        ))
    }

    /// How long a client may take to connect: ten times longer than any seen.
    pub fn ramp_patience(&self) -> Duration {
        Duration::from_millis(30_000 + self.connections / 2)
    }

    /// About how long it all takes.
    pub fn estimate(&self) -> Duration {
        let each_ms = 7_000 + self.connections / 15;
        Duration::from_millis(each_ms * (self.rounds * self.subjects().len()) as u64)
    }

    /// After this time a run is stuck, and ends with what it has.
    pub fn time_limit(&self) -> Duration {
        self.estimate() * 4 + Duration::from_secs(60)
    }
}

/// One measurement. Figures are bytes a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// What held the connections.
    pub subject: Subject,
    /// The round, from one.
    pub round: usize,
    /// Server processes on one port.
    pub processes: usize,
    /// Sockets and slab were back near their base before it began.
    pub settled: bool,
    /// The kernel's memory, both ends.
    pub growth: Growth,
    /// Resident memory of the servers, above what they take empty.
    pub server_rss: f64,
    /// The same, each shared page by its share (PSS); `None` where it may not be read.
    #[serde(default)]
    pub server_pss: Option<f64>,
    /// Page tables of the servers (VmPTE), above what they take empty; a part of `page_tables`.
    #[serde(default)]
    pub server_page_tables: Option<f64>,
    /// Resident memory of the client, all of it.
    pub client_rss: Option<f64>,
    /// The same, each shared page by its share (PSS).
    #[serde(default)]
    pub client_pss: Option<f64>,
    /// Page tables of the client (VmPTE), all of them.
    #[serde(default)]
    pub client_page_tables: Option<f64>,
}

/// Whose side of a connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// Half of two bare ends.
    Bare,
    /// That of the client that the engines have.
    Client,
    /// That of the server of an engine.
    Server(Engine),
}

impl fmt::Display for Whose {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => out.pad("one bare side"),
            Self::Client => out.pad("Throng's client"),
            Self::Server(engine) => out.pad(&format!("{engine} server")),
        }
    }
}

/// What one side of a connection takes of the kernel, in bytes, over the rounds.
///
/// Slab is of the whole host, so no reading shows which end an object belongs to. Two bare ends are alike, but for the
/// address and port that the client binds (its bind buckets, 128 to 256 bytes): one bare side is half of what they take.
/// The client that the engines have takes what it and the bare server take together, less one bare side; an engine's server
/// takes what it and that client take together, less that client. All of the same round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Whose it is.
    pub whose: Whose,
    /// All that is accounted for (see [`Growth::kernel`]).
    pub kernel: Spread,
    /// Objects in use of all slab caches; `None` where they cannot be read.
    pub slab_in_use: Option<Spread>,
    /// Those of each cache, the median over the rounds.
    pub caches: Option<BTreeMap<String, f64>>,
    /// The process's own memory above what it takes empty, by shares (PSS), of the client all of it.
    pub pss: Option<Spread>,
}

/// Everything one run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// What every report says.
    #[serde(flatten)]
    pub about: About,
    /// What was to be measured.
    pub plan: MemoryPlan,
    /// Every measurement, in the order they ran.
    pub kept: Vec<Kept>,
    /// What one side takes.
    #[serde(default)]
    pub sides: Vec<Side>,
}

impl MemoryReport {
    /// The medians of `subject` over the rounds, figure by figure.
    pub fn median_growth(&self, subject: Subject) -> Option<Growth> {
        let growths: Vec<&Growth> = self.of(subject).map(|kept| &kept.growth).collect();
        median_of(&growths)
    }

    /// A figure of `subject` over the rounds.
    pub fn figure(&self, subject: Subject, of: impl Fn(&Kept) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.of(subject).filter_map(of))
    }

    /// By how much a figure of `engine` is above that of the bare socket in the same round.
    pub fn above_bare(&self, engine: Engine, of: impl Fn(&Kept) -> Option<f64>) -> Option<Spread> {
        let bare = |round| self.of(Subject::Bare).find(|kept| kept.round == round);
        let above = self
            .of(Subject::Engine(engine))
            .filter_map(|kept| Some(of(kept)? - of(bare(kept.round)?)?));
        Spread::of(above)
    }

    /// Draws `sides` from the rest.
    pub fn conclude(&mut self) {
        let servers = self.plan.engines.iter().copied().map(Whose::Server);
        let all = [Whose::Bare, Whose::Client].into_iter().chain(servers);
        self.sides = all.filter_map(|whose| self.side(whose)).collect();
    }

    fn side(&self, whose: Whose) -> Option<Side> {
        let kernel = self.side_by(whose, |kept| Some(kept.growth.kernel()));
        let own = |of: fn(&Kept) -> Option<f64>, subject| self.figure(subject, of);
        Some(Side {
            whose,
            kernel: kernel?,
            slab_in_use: self.side_by(whose, |kept| kept.growth.slab_in_use),
            caches: self.side_caches(whose),
            pss: match whose {
                Whose::Bare => own(|kept| kept.server_pss, Subject::Pair),
                Whose::Client => own(|kept| kept.client_pss, Subject::Bare),
                Whose::Server(engine) => own(|kept| kept.server_pss, Subject::Engine(engine)),
            },
        })
    }

    fn side_caches(&self, whose: Whose) -> Option<BTreeMap<String, f64>> {
        let known: Option<Vec<_>> = self
            .kept
            .iter()
            .map(|kept| kept.growth.caches.as_ref())
            .collect();
        let names: BTreeSet<&String> = known?
            .into_iter()
            .flat_map(|caches| caches.keys())
            .collect();
        let of_side = names.into_iter().filter_map(|name| {
            let side = self.side_by(whose, |kept| {
                Some(kept.growth.of_cache(name).unwrap_or(0.0))
            });
            Some((name.clone(), side?.median))
        });
        Some(of_side.filter(|(_, bytes)| bytes.abs() >= 1.0).collect())
    }

    /// As [`Side`] says, of the figure that `of` takes from what both ends took.
    fn side_by(&self, whose: Whose, of: impl Fn(&Kept) -> Option<f64>) -> Option<Spread> {
        let both = |subject: Subject, round: usize| {
            of(self.of(subject).find(|kept| kept.round == round)?)
        };
        let by_round = |round: usize| {
            let bare_side = both(Subject::Pair, round)? / 2.0;
            let client = || Some(both(Subject::Bare, round)? - bare_side);
            match whose {
                Whose::Bare => Some(bare_side),
                Whose::Client => client(),
                Whose::Server(engine) => Some(both(Subject::Engine(engine), round)? - client()?),
            }
        };
        Spread::of((1..=self.plan.rounds).filter_map(by_round))
    }

    fn of(&self, subject: Subject) -> impl Iterator<Item = &Kept> {
        self.kept.iter().filter(move |kept| kept.subject == subject)
    }
}

fn median_of(growths: &[&Growth]) -> Option<Growth> {
    let median = |of: &dyn Fn(&Growth) -> f64| {
        Spread::of(growths.iter().map(|growth| of(growth))).map(|spread| spread.median)
    };
    let median_where_known = |of: &dyn Fn(&Growth) -> Option<f64>| {
        let known: Option<Vec<f64>> = growths.iter().map(|growth| of(growth)).collect();
        Some(Spread::of(known?)?.median)
    };
    let names: Option<Vec<_>> = growths
        .iter()
        .map(|growth| growth.caches.as_ref())
        .collect();
    let caches = names.map(|maps| {
        let names: BTreeSet<&String> = maps.iter().flat_map(|map| map.keys()).collect();
        let medians = names.into_iter().filter_map(|name| {
            let of = |growth: &Growth| growth.of_cache(name).unwrap_or(0.0);
            Some((name.clone(), median(&of)?))
        });
        medians.collect::<BTreeMap<String, f64>>()
    });
    Some(Growth {
        caches,
        slab_in_use: median_where_known(&|growth| growth.slab_in_use),
        procfs: median_where_known(&|growth| growth.procfs),
        slab_pages: median(&|growth| growth.slab_pages)?,
        page_tables: median(&|growth| growth.page_tables)?,
        percpu: median_where_known(&|growth| growth.percpu),
        vmalloc: median(&|growth| growth.vmalloc)?,
        queued: median(&|growth| growth.queued)?,
        sockets: median(&|growth| growth.sockets)?,
        available: median(&|growth| growth.available)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A result recorded from a short run as root.
    pub(crate) fn recorded() -> MemoryReport {
        serde_json::from_str(include_str!("../../testdata/memory.json")).unwrap()
    }

    pub(crate) fn growth(socket: f64, extra: f64) -> Growth {
        let mut caches = BTreeMap::from([("TCP".to_owned(), socket)]);
        if extra > 0.0 {
            caches.insert("io_kiocb".to_owned(), extra);
        }
        Growth {
            caches: Some(caches),
            slab_in_use: Some(socket + extra),
            procfs: Some(0.0),
            slab_pages: socket + extra + 10.0,
            page_tables: 0.0,
            percpu: None,
            vmalloc: 0.0,
            queued: 0.0,
            sockets: 2.0,
            available: socket + extra + 20.0,
        }
    }

    pub(crate) fn report(kept: Vec<(Subject, usize, Growth)>) -> MemoryReport {
        let kept = kept.into_iter().map(|(subject, round, growth)| Kept {
            subject,
            round,
            processes: 1,
            settled: true,
            growth,
            server_rss: 64.0,
            server_pss: Some(60.0),
            server_page_tables: Some(1.0),
            client_rss: Some(48.0),
            client_pss: Some(40.0),
            client_page_tables: Some(1.0),
        });
        let mut report = MemoryReport {
            about: crate::run::tests::about("memory"),
            plan: MemoryPlan {
                engines: vec![Engine::Uring],
                peers: Vec::new(),
                connections: 20_000,
                rounds: 3,
                keep_free_bytes: 1 << 30,
                placement: Placement::halves(&[0, 1]),
                nofile_hard: 20_000,
            },
            kept: kept.collect(),
            sides: Vec::new(),
        };
        report.conclude();
        report
    }

    #[test]
    fn the_sides_of_a_connection_add_up_and_the_bare_half_cancels() {
        let uring = Subject::Engine(Engine::Uring);
        let report = report(vec![
            (Subject::Pair, 1, growth(8_000.0, 0.0)),
            (Subject::Bare, 1, growth(8_000.0, 350.0)),
            (uring, 1, growth(8_000.0, 650.0)),
            // Without the pair of its round nothing is said of it.
            (Subject::Bare, 2, growth(9_000.0, 350.0)),
            (uring, 2, growth(9_900.0, 650.0)),
        ]);
        let side = |whose| {
            report
                .sides
                .iter()
                .find(|side| side.whose == whose)
                .unwrap()
        };
        let in_use = |whose| side(whose).slab_in_use.unwrap().median;
        assert_eq!(in_use(Whose::Bare), 4_000.0);
        assert_eq!(in_use(Whose::Client), 4_350.0);
        assert_eq!(in_use(Whose::Server(Engine::Uring)), 4_300.0);
        let caches = |whose| side(whose).caches.clone().unwrap();
        assert!(!caches(Whose::Bare).contains_key("io_kiocb"));
        assert_eq!(caches(Whose::Client)["io_kiocb"], 350.0);
        assert_eq!(caches(Whose::Server(Engine::Uring))["io_kiocb"], 300.0);
        assert_eq!(side(Whose::Client).kernel.count, 1);
        assert_eq!(side(Whose::Client).pss.unwrap().median, 40.0);
    }

    #[test]
    fn above_the_bare_socket_is_drawn_from_the_same_round() {
        let uring = Subject::Engine(Engine::Uring);
        let report = report(vec![
            (Subject::Bare, 1, growth(8_000.0, 0.0)),
            (uring, 1, growth(8_000.0, 300.0)),
            (uring, 2, growth(8_100.0, 300.0)),
            (Subject::Bare, 2, growth(8_100.0, 0.0)),
            (uring, 3, growth(9_000.0, 300.0)),
        ]);
        let above = report
            .above_bare(Engine::Uring, |kept| kept.growth.slab_in_use)
            .unwrap();
        assert_eq!((above.count, above.min, above.max), (2, 300.0, 300.0));
        assert!(
            report
                .above_bare(Engine::Epoll, |kept| Some(kept.server_rss))
                .is_none()
        );
    }

    #[test]
    fn medians_are_taken_cache_by_cache_and_a_missing_one_is_none_of_it() {
        let report = report(vec![
            (Subject::Bare, 1, growth(10.0, 0.0)),
            (Subject::Bare, 2, growth(30.0, 5.0)),
            (Subject::Bare, 3, growth(20.0, 0.0)),
        ]);
        let median = report.median_growth(Subject::Bare).unwrap();
        let caches = median.caches.as_ref().unwrap();
        assert_eq!((caches["TCP"], caches["io_kiocb"]), (20.0, 0.0));
        assert_eq!(median.percpu, None);
        assert_eq!(report.median_growth(Subject::Engine(Engine::Epoll)), None);
    }
}
