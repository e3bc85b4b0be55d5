//! What is run, as plain data: engines, counts, durations, cores. Pure; nothing here starts anything.
//!
//! Invariant: a plan that [`Plan::fit`] has passed asks for no more connections than the memory carries.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};

use crate::exchange::Times;
use crate::peer::{Peer, PeerName};
use crate::report::format::count;
use crate::rounds::Goal;

/// Memory of one held connection with both ends on this host: 9 KB in the kernel, and below 1 KB in the two processes.
pub const BYTES_PER_CONNECTION: u64 = 10_000;

/// What tokio-uring takes in addition: a buffer and a task each.
const TOKIO_URING_BYTES_PER_CONNECTION: u64 = 6_000;

/// Where the client's connections come from: enough addresses for every count of connections.
pub const CLIENT_SOURCE: &str = "127.1.0.0/16";

/// Where short-lived connections come from while others are held: no tuple is of both.
pub const NEWCOMER_SOURCE: &str = "127.2.0.0/16";

/// Who serves: one of Throng's engines, or a program of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Engine {
    /// io_uring with direct descriptors.
    Uring,
    /// A plain epoll loop, the baseline.
    Epoll,
    /// The tokio-uring crate: an open file, a task and a buffer for each connection.
    TokioUring,
    /// A program of others, by its name in the plan; how it is started is in [`crate::peer::Peer`].
    Peer(PeerName),
}

impl Engine {
    /// Throng's own.
    const BUILT_IN: [Self; 3] = [Self::Uring, Self::Epoll, Self::TokioUring];

    /// The one of Throng's own that has this name.
    pub fn built_in(name: &str) -> Option<Self> {
        Self::BUILT_IN
            .into_iter()
            .find(|engine| engine.built_in_name() == Some(name))
    }

    /// The name that `--engine` or `--peer` takes.
    pub fn name(&self) -> &str {
        match self {
            Self::Peer(name) => name.as_str(),
            own => own.built_in_name().unwrap_or_default(),
        }
    }

    fn built_in_name(&self) -> Option<&'static str> {
        match self {
            Self::Uring => Some("uring"),
            Self::Epoll => Some("epoll"),
            Self::TokioUring => Some("tokio-uring"),
            Self::Peer(_) => None,
        }
    }

    /// About what a held connection takes, both ends on this host. What a peer takes is not known: as much as the
    /// largest of the others, for nothing is to start that does not fit.
    pub fn bytes_per_connection(self) -> u64 {
        match self {
            Self::Uring | Self::Epoll => BYTES_PER_CONNECTION,
            Self::TokioUring | Self::Peer(_) => {
                BYTES_PER_CONNECTION + TOKIO_URING_BYTES_PER_CONNECTION
            }
        }
    }
}

/// On the command line only Throng's own have a name; peers come by `--peer`.
impl ValueEnum for Engine {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::BUILT_IN
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        self.built_in_name().map(PossibleValue::new)
    }
}

impl From<Engine> for String {
    fn from(engine: Engine) -> Self {
        engine.name().to_owned()
    }
}

impl TryFrom<String> for Engine {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::built_in(&name).map_or_else(|| name.parse().map(Self::Peer), Ok)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// What a server says on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Greeting, echoed lines, a heartbeat at this interval.
    Line {
        /// Time between two heartbeats of one connection.
        heartbeat: Duration,
    },
    /// Every byte back and nothing else.
    Echo,
}

/// Connections that are established and then mostly idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldPlan {
    /// How many.
    pub connections: u64,
    /// How long they are held once all are established.
    pub hold_ms: u64,
    /// Interval of the server's heartbeat on each.
    pub heartbeat_ms: u64,
}

/// Messages in closed loop: each connection sends its next message when the last one came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EchoPlan {
    /// How many connections send at the same time; each count is measured with each size and each engine in every round.
    pub active: Vec<u64>,
    /// Bytes of a message.
    pub message_bytes: Vec<u64>,
    /// Rounds there are at least; a ratio is drawn from the two engines' figures of the same round.
    pub rounds: usize,
    /// Until when they go on then.
    pub until: Option<Goal>,
    /// Times of one measurement.
    #[serde(flatten)]
    pub times: Times,
}

impl EchoPlan {
    /// All that is measured with each engine in a round.
    pub fn cases(&self) -> Vec<EchoCase> {
        let of = |active: &u64| {
            let active = *active;
            let sizes = self.message_bytes.iter();
            sizes.map(move |bytes| EchoCase {
                active,
                message_bytes: *bytes,
            })
        };
        self.active.iter().flat_map(of).collect()
    }
}

/// One thing that is measured in every round of the echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoCase {
    /// Connections that exchange messages.
    pub active: u64,
    /// Bytes of a message.
    pub message_bytes: u64,
}

impl fmt::Display for EchoCase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (active, size) = (count(self.active), count(self.message_bytes));
        write!(out, "{active} active, {size} B")
    }
}

/// Which CPUs each side runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// CPUs of the servers.
    pub server: Vec<usize>,
    /// CPUs of the client.
    pub client: Vec<usize>,
}

impl Placement {
    /// One half of `cpus` for each side; with one CPU both share it.
    pub fn halves(cpus: &[usize]) -> Self {
        let (server, client) = cpus.split_at(cpus.len().div_ceil(2));
        let client = if client.is_empty() { server } else { client };
        Self {
            server: server.to_vec(),
            client: client.to_vec(),
        }
    }

    /// One CPU of each side: for what is counted in CPU time a message, where more of them would only add noise.
    pub fn one_each(&self) -> Self {
        let first = |cpus: &[usize]| cpus.iter().copied().take(1).collect();
        Self {
            server: first(&self.server),
            client: first(&self.client),
        }
    }

    /// Whether both sides run on the same CPU.
    pub fn is_shared(&self) -> bool {
        self.server == self.client
    }
}

/// The whole of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Engines to compare, and peers.
    pub engines: Vec<Engine>,
    /// How the peers among them are started.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// The hold, unless it is left out.
    pub hold: Option<HoldPlan>,
    /// The echo rounds, unless they are left out.
    pub echo: Option<EchoPlan>,
    /// Which CPUs each side runs on.
    pub placement: Placement,
    /// The hard open-file limit, which bounds what one process of an engine with ordinary descriptors can hold.
    pub nofile_hard: u64,
}

/// What a plan had to give up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Connections the plan asked for.
    pub wanted: u64,
    /// Connections that fit.
    pub fits: u64,
    /// Memory that is available.
    pub available_bytes: u64,
}

impl Plan {
    /// Reduces the plan to `fits` connections, and says so when it had to.
    pub fn fit(&mut self, fits: u64, available_bytes: u64) -> Option<Cut> {
        let held = self.hold.iter().map(|hold| hold.connections);
        let active = self
            .echo
            .iter()
            .flat_map(|echo| echo.active.iter().copied());
        let wanted = held.chain(active).max().filter(|wanted| *wanted > fits)?;
        if let Some(hold) = &mut self.hold {
            hold.connections = hold.connections.min(fits);
        }
        if let Some(echo) = &mut self.echo {
            echo.active
                .iter_mut()
                .for_each(|active| *active = (*active).min(fits));
            echo.active.dedup();
        }
        Some(Cut {
            wanted,
            fits,
            available_bytes,
        })
    }

    /// About what a held connection takes with the engine that takes most.
    pub fn bytes_per_connection(&self) -> u64 {
        let each = self
            .engines
            .iter()
            .copied()
            .map(Engine::bytes_per_connection);
        each.max().unwrap_or(BYTES_PER_CONNECTION)
    }

    /// About how long the whole plan takes.
    pub fn estimate(&self) -> Duration {
        let engines = self.engines.len() as u64;
        let hold_ms = self.hold.as_ref().map_or(0, |hold| {
            // Some 25,000 connects a second, then starting, closing and waiting for the kernel to clean up.
            engines * (hold.connections / 25 + hold.hold_ms + 3_000)
        });
        let echo_ms = self.echo.as_ref().map_or(0, |echo| {
            let each_ms = |case: EchoCase| echo.times.exchange_ms + 400 + case.active / 15;
            let round_ms: u64 = echo.cases().into_iter().map(each_ms).sum();
            let at_least_ms = engines * echo.rounds as u64 * round_ms;
            at_least_ms.max(echo.until.map_or(0, |goal| goal.at_most_ms))
        });
        Duration::from_millis(hold_ms + echo_ms)
    }
}

/// How many server processes `connections` need; of a peer there is always one, which may start others by itself.
///
/// io_uring's direct descriptors are no open files, so one process holds all. Otherwise every connection is an open
/// file of its process. SO_REUSEPORT deals connections to processes by a hash, so that of n connections over k
/// processes each gets n/k ± √(n/k); room for six such deviations is kept in each.
pub fn server_processes(engine: Engine, connections: u64, nofile_hard: u64) -> usize {
    match engine {
        Engine::Uring | Engine::Peer(_) => 1,
        Engine::Epoll | Engine::TokioUring => processes_by_files(connections, nofile_hard),
    }
}

/// The most connections that `engine` is asked to take here; `None`: as many as there are.
///
/// Nobody but itself can start a peer a second time on the same port, and whether it has processes of its own is not
/// known: so it gets what the open files of one process carry, and is not blamed for a limit of this machine.
pub fn most_connections(engine: Engine, nofile_hard: u64) -> Option<u64> {
    matches!(engine, Engine::Peer(_)).then(|| nofile_hard.saturating_sub(OTHER_FILES).max(1))
}

/// What a process opens besides its connections, with a wide margin.
const OTHER_FILES: u64 = 64;

/// How many processes can have `connections` as open files, as [`server_processes`] reckons it.
pub fn processes_by_files(connections: u64, nofile_hard: u64) -> usize {
    let room = nofile_hard.saturating_sub(OTHER_FILES).max(1);
    if connections <= room {
        return 1;
    }
    let fits = |processes: &u64| {
        let mean = connections.div_ceil(*processes);
        mean + 6 * (mean as f64).sqrt().ceil() as u64 <= room
    };
    let most = connections.min(1 << 16);
    (2..=most).find(fits).unwrap_or(most) as usize
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan() -> Plan {
        Plan {
            engines: vec![Engine::Uring, Engine::Epoll],
            peers: Vec::new(),
            hold: Some(HoldPlan {
                connections: 100_000,
                hold_ms: 10_000,
                heartbeat_ms: 5_000,
            }),
            echo: Some(EchoPlan {
                active: vec![500, 10_000],
                message_bytes: vec![64],
                rounds: 5,
                until: None,
                times: Times {
                    exchange_ms: 1_500,
                    warm_up_ms: 300,
                    sample_interval_ms: 100,
                },
            }),
            placement: Placement::halves(&[0, 1]),
            nofile_hard: 20_000,
        }
    }

    #[test]
    fn a_plan_that_fits_stays_as_it_is() {
        let mut fitted = plan();
        assert_eq!(fitted.fit(100_000, 1 << 34), None);
        assert_eq!(fitted, plan());
    }

    #[test]
    fn a_plan_too_large_is_cut_down_to_what_fits_and_says_so() {
        let mut cut = plan();
        let said = cut.fit(40_000, 1 << 29).unwrap();
        assert_eq!(
            said,
            Cut {
                wanted: 100_000,
                fits: 40_000,
                available_bytes: 1 << 29
            }
        );
        assert_eq!(cut.hold.unwrap().connections, 40_000);
        assert_eq!(cut.echo.unwrap().active, [500, 10_000]);
    }

    #[test]
    fn echo_counts_that_do_not_fit_become_one() {
        let mut cut = plan();
        cut.fit(300, 1 << 22).unwrap();
        assert_eq!(cut.echo.unwrap().active, [300]);
    }

    #[test]
    fn the_default_plan_takes_less_than_two_minutes() {
        assert!(plan().estimate() < Duration::from_secs(110));
    }

    #[test]
    fn each_side_gets_half_of_the_cpus() {
        assert_eq!(
            Placement::halves(&[0, 1]),
            Placement {
                server: vec![0],
                client: vec![1]
            }
        );
        assert_eq!(
            Placement::halves(&[2, 4, 6]),
            Placement {
                server: vec![2, 4],
                client: vec![6]
            }
        );
        assert!(Placement::halves(&[3]).is_shared());
    }

    #[test]
    fn an_engine_is_its_name_in_a_report_and_so_is_a_peer() {
        for name in ["uring", "epoll", "tokio-uring", "go-echo"] {
            let engine = Engine::try_from(name.to_owned()).unwrap();
            let text = serde_json::to_string(&engine).unwrap();
            assert_eq!(text, format!("{name:?}"));
            assert_eq!(serde_json::from_str::<Engine>(&text).unwrap(), engine);
            assert_eq!(
                engine.to_possible_value().is_some(),
                Engine::built_in(name).is_some()
            );
        }
        assert!(serde_json::from_str::<Engine>("\"a b\"").is_err());
    }

    #[test]
    fn only_epoll_needs_more_processes_than_one() {
        assert_eq!(server_processes(Engine::Uring, 100_000, 20_000), 1);
        assert_eq!(server_processes(Engine::Epoll, 10_000, 20_000), 1);
        assert_eq!(server_processes(Engine::Epoll, 100_000, 1_000_000), 1);
        assert_eq!(server_processes(Engine::Epoll, 100_000, 20_000), 6);
    }

    #[test]
    fn a_peer_is_asked_for_no_more_than_one_process_carries() {
        let peer = Engine::try_from("go".to_owned()).unwrap();
        assert_eq!(server_processes(peer, 100_000, 20_000), 1);
        assert_eq!(most_connections(peer, 20_000), Some(19_936));
        assert_eq!(most_connections(Engine::Epoll, 20_000), None);
    }

    proptest! {
        #[test]
        fn each_process_has_room_for_the_imbalance(
            connections in 1u64..2_000_000,
            nofile in 1_024u64..1_100_000,
        ) {
            let processes = server_processes(Engine::Epoll, connections, nofile);
            let mean = connections as f64 / processes as f64;
            let deviation = if processes > 1 { mean.sqrt() } else { 0.0 };
            prop_assert!(mean + 6.0 * deviation < nofile as f64);
        }
    }
}
