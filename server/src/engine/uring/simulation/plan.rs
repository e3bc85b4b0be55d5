//! What one seed draws before it begins: the server's configuration, the kernel's sizes, and how bad the world is.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::conn::Limits;
use crate::timeouts::Timeouts;

/// What a run is made of. Small numbers, so that what is rare at scale happens all the time.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Steps of the storm; a step is one enter of the kernel.
    pub steps: u32,
    /// Connections that come in all.
    pub connections: usize,
    /// Slots of a table.
    pub slots: u32,
    /// Tables the kernel gives.
    pub tables: usize,
    pub backlog: u32,
    pub max_connections: Option<u64>,
    pub sq_entries: usize,
    /// Completions a queue holds; what is more overflows.
    pub cq_entries: usize,
    pub buffers: u16,
    pub buffer_bytes: usize,
    /// What a socket holds that its peer has not read.
    pub window: usize,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub heartbeat: Option<Duration>,
    pub heartbeat_waits: bool,
    pub drain_timeout: Duration,
    /// Chances in 1000 that an operation fails for no reason of its own.
    pub faults: u32,
    /// Chances in 1000, for each connection and step, that its peer resets it.
    pub resets: u32,
    /// Chances in 1000, for each step, that all peers reset or finish at once.
    pub mass_ends: u32,
    /// Chances in 1000, for each step, that something is published.
    pub publishes: u32,
    /// The most bytes published at once.
    pub published_bytes: usize,
    /// Of 100 peers, how many never read.
    pub deaf: u32,
    /// The longest a step takes when nothing happens.
    pub nap: Duration,
    /// Told to stop in the middle of the storm, or when all have gone.
    pub stops_early: bool,
    /// The worker's clock when it begins: its milliseconds wrap.
    pub clock_ns: u64,
    /// Sessions are told when the server stops.
    pub farewell: bool,
    /// Steps after the stop in which it is told to end at once.
    pub hurries_after: Option<u32>,
    /// Chances in 1000, for each step, that memory becomes short, or is no more.
    pub shortages: u32,
    /// Some sessions greet with more than there is room for.
    pub is_rude: bool,
    /// Peers stay until the server closes, where it is told to stop early.
    pub lingers: bool,
    /// Chances in 1000, for each step, that somebody looks around, or has a connection closed.
    pub inquiries: u32,
    /// The kernel makes ordinary descriptors of direct ones.
    pub installs: bool,
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        // A stream of its own, so that the rest of a run does not change with what is drawn here.
        let random = &mut StdRng::seed_from_u64(seed ^ 0x9E37_79B9_7F4A_7C15);
        let buffer_bytes = random.random_range(1..=12) * random.random_range(16..=200);
        let is_tight = random.random_range(0..3) == 0;
        // Whoever speaks in lines needs room for the longest.
        let longest = buffer_bytes
            + match seed % 2 {
                0 => random.random_range(0..4_000),
                _ => wire::Out::MIN_ROOM,
            };
        let ms = Duration::from_millis;
        let maybe_ms = |random: &mut StdRng, within: std::ops::Range<u64>| {
            (random.random_range(0..3) == 0).then(|| ms(random.random_range(within)))
        };
        Plan {
            steps: random.random_range(50..600),
            connections: random.random_range(1..60),
            slots: random.random_range(1..24),
            tables: random.random_range(1..=4),
            backlog: random.random_range(1..8),
            max_connections: match random.random_range(0..4) {
                0 => Some(random.random_range(1..20)),
                _ => None,
            },
            sq_entries: random.random_range(1..40),
            cq_entries: random.random_range(1..40),
            buffers: random.random_range(1..6),
            buffer_bytes,
            window: random.random_range(1..3000),
            limits: match is_tight {
                true => Limits {
                    input_bytes_per_conn: longest,
                    output_bytes_per_conn: random.random_range(1..8000),
                    bytes_per_worker: random.random_range(100..100_000),
                },
                false => Limits {
                    input_bytes_per_conn: longest,
                    output_bytes_per_conn: 1 << 30,
                    bytes_per_worker: 1 << 30,
                },
            },
            timeouts: Timeouts {
                idle: maybe_ms(random, 100..5_000),
                write: maybe_ms(random, 100..5_000),
            },
            heartbeat: maybe_ms(random, 5..2_000),
            heartbeat_waits: random.random_range(0..3) == 0,
            drain_timeout: ms(random.random_range(0..2_000)),
            faults: *[0, 0, 1, 5, 30].choose(random).unwrap_or(&0),
            resets: *[0, 0, 1, 5, 20].choose(random).unwrap_or(&0),
            mass_ends: *[0, 0, 0, 5].choose(random).unwrap_or(&0),
            publishes: *[0, 0, 10, 100].choose(random).unwrap_or(&0),
            published_bytes: *[20, 300, 20_000].choose(random).unwrap_or(&0),
            deaf: *[0, 0, 10, 50].choose(random).unwrap_or(&0),
            nap: Duration::from_micros(*[100, 2_000, 20_000, 500_000].choose(random).unwrap_or(&0)),
            stops_early: random.random_range(0..3) == 0,
            clock_ns: match random.random_range(0..3) {
                0 => (u64::from(u32::MAX) - random.random_range(0..2_000)) * 1_000_000,
                _ => 0,
            },
            farewell: random.random_range(0..3) > 0,
            hurries_after: (random.random_range(0..6) == 0).then(|| random.random_range(0..60)),
            shortages: *[0, 0, 0, 20].choose(random).unwrap_or(&0),
            is_rude: random.random_range(0..8) == 0,
            lingers: random.random_range(0..2) == 0,
            inquiries: *[0, 0, 10, 100].choose(random).unwrap_or(&0),
            installs: random.random_range(0..4) > 0,
        }
    }
}
