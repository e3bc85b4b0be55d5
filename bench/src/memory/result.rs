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
    /// A server that only accepts and keeps.
    Bare,
    /// A server of this engine.
    Engine(Engine),
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
    /// Rounds, each with the bare socket and every engine.
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
        std::iter::once(Subject::Bare).chain(engines).collect()
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
    /// Resident memory of the client, all of it.
    pub client_rss: Option<f64>,
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
            client_rss: Some(48.0),
        });
        MemoryReport {
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
        }
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
