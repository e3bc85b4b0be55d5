//! Deterministic simulation: the whole driver, its machines, acceptor, heartbeats, timeouts and messages, on rings, peers
//! and a clock that are drawn from one seed.
//!
//! The [`kernel`] is scripted and hostile within what the real one promises; each session is a [`truth`] that knows what it
//! was given and what it said; the [`world`] goes on around them. A run is a storm of drawn length, then calm, in which
//! everything must come to an end, then the stop. What is drawn, what is held against it and how to replay a seed:
//! docs/reliability.md.
#![allow(clippy::unwrap_used)]

mod accepts;
mod kernel;
mod operations;
mod operator;
mod peer;
mod plan;
mod shared;
mod sip;
mod stop;
mod trace;
mod truth;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use wire::{Echo, Line, Session};

use self::kernel::Kernel;
use self::plan::Plan;
use self::shared::Shared;
use self::sip::Sip;
use self::trace::Trace;
use self::truth::Witness;
use self::world::World;
use crate::admission::{Admission, Bounds};
use crate::drain::Drain;
use crate::engine::uring::driver::Driver;
use crate::stats::{CloseReason, Stats};
use crate::worker::{Message, Publisher, Worker};

/// How long the test goes on where nothing else is said.
const SECONDS: u64 = 10;

/// What those are told who may not come in.
const REFUSAL: &[u8] = b"no room\n";

/// Lines told of a run that failed.
const TRACED: usize = 60;

/// Plays seeds one after the other: `THRONG_SEED` alone, or from it on for `THRONG_SECONDS`; of one that fails, the last
/// `THRONG_TRACE` lines are told.
#[test]
fn simulation() {
    let (first, seconds) = (number("THRONG_SEED"), number("THRONG_SECONDS"));
    let until = Instant::now()
        + Duration::from_secs(match (first, seconds) {
            (Some(_), None) => 0,
            (_, seconds) => seconds.unwrap_or(SECONDS),
        });
    let first = first.unwrap_or(0);
    let mut seeds = 0;
    let mut sum = Sum::default();
    loop {
        sum.add(play_or_explain(first + seeds));
        seeds += 1;
        if Instant::now() >= until {
            break;
        }
    }
    println!("seeds {first} to {}: {sum:?}", first + seeds - 1);
}

/// The number in the environment's variable `name`, where it is set.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// What some runs went through.
#[derive(Debug, Default)]
struct Sum {
    steps: u64,
    connections: u64,
    refused: u64,
    short_sends: u64,
    heartbeats: u64,
    messages: u64,
    /// Told to somebody who looked around.
    peers: u64,
    closed: BTreeMap<CloseReason, u64>,
}

impl Sum {
    fn add(&mut self, (steps, peers, stats): (u32, u64, Stats)) {
        self.steps += u64::from(steps);
        self.peers += peers;
        self.connections += stats.accepted;
        self.refused += stats.refused.values().sum::<u64>();
        self.short_sends += stats.short_sends;
        self.heartbeats += stats.heartbeats_sent;
        self.messages += stats.messages_published;
        for (reason, count) in stats.closed {
            *self.closed.entry(reason).or_default() += count;
        }
    }
}

/// Plays `seed`; where it fails, once more to tell how.
fn play_or_explain(seed: u64) -> (u32, u64, Stats) {
    let attempt = |trace: &Rc<Trace>, blame: &Blame| {
        catch_unwind(AssertUnwindSafe(|| play(seed, trace, blame)))
    };
    let blame = Blame::default();
    if let Ok(ended) = attempt(&Rc::new(Trace::Off), &blame) {
        return ended;
    }
    let trace = Rc::new(Trace::of(
        blame.get(),
        number("THRONG_TRACE").map_or(TRACED, |lines| lines as usize),
    ));
    let why = match attempt(&trace, &blame) {
        Ok(_) => {
            "it passes when it is played again: not all of it is drawn from the seed".to_owned()
        }
        Err(why) => match why.downcast::<String>() {
            Ok(why) => *why,
            Err(why) => why.downcast_ref::<&str>().unwrap_or(&"?").to_string(),
        },
    };
    panic!(
        "seed {seed} fails with {:#?}\n{}\nseed {seed} fails: {why}\nreplay it with\n  THRONG_SEED={seed} cargo test -p throng-server --lib simulation -- --nocapture",
        Plan::of(seed),
        trace.shortened(),
    )
}

/// Whose connection it was that something is wrong with.
type Blame = Rc<Cell<Option<usize>>>;

fn play(seed: u64, trace: &Rc<Trace>, blame: &Blame) -> (u32, u64, Stats) {
    let plan = Plan::of(seed);
    let mut random = StdRng::seed_from_u64(!seed);
    let unborn = |speak: fn(&mut StdRng) -> Vec<u8>, random: &mut StdRng| {
        (0..plan.connections).map(|_| speak(random)).collect()
    };
    let shared = Shared::new(plan.clone(), Rc::clone(blame));
    match seed % 8 {
        1 | 3 | 5 | 7 => run(
            seed,
            &shared,
            trace,
            Line::default,
            unborn(world::lines, &mut random),
        ),
        2 => run(
            seed,
            &shared,
            trace,
            || Sip,
            unborn(world::bytes, &mut random),
        ),
        _ => run(
            seed,
            &shared,
            trace,
            || Echo,
            unborn(world::bytes, &mut random),
        ),
    }
}

fn run<S: Session>(
    seed: u64,
    shared: &Rc<Shared>,
    trace: &Rc<Trace>,
    session: fn() -> S,
    unborn: Vec<Vec<u8>>,
) -> (u32, u64, Stats) {
    let plan = &shared.plan;
    let publisher = Publisher::new(1).unwrap();
    let admission = Arc::new(Admission::new(Bounds {
        max_connections: plan.max_connections,
        ..Bounds::default()
    }));
    let world = World::new(unborn, publisher.clone(), Arc::clone(&admission));
    if !plan.heartbeat_waits {
        shared.beating_since_ns.set(Some(plan.clock_ns));
    }
    let kernel = Kernel::new(seed, shared, trace, world);
    let (events, _ready) = channel();
    let making = Rc::clone(shared);
    let worker = Worker {
        number: 0,
        // Nobody ever connects to it.
        listener: Some(Arc::new(TcpListener::bind("127.0.0.1:0").unwrap())),
        backlog: plan.backlog,
        session: move || Witness::new(session(), &making),
        heartbeat: plan.heartbeat,
        heartbeat_waits: plan.heartbeat_waits,
        limits: plan.limits,
        timeouts: plan.timeouts,
        drain_timeout: plan.drain_timeout,
        farewell: (!shared.farewell.is_empty()).then(|| {
            Arc::new(Message {
                bytes: shared.farewell.clone(),
                over: Drain::farewell_over(plan.drain_timeout),
            })
        }),
        descriptors: ring::Descriptors::Direct,
        table_slots: plan.slots,
        is_inspected: true,
        ring_sizes: crate::config::RingSizes::default(),
        admission: Arc::clone(&admission),
        refusal: Arc::from(REFUSAL),
        publisher,
        events,
        pulse: Arc::default(),
        gate: Arc::new(true.into()),
    };
    let clock = Rc::clone(shared);
    let mut driver = Driver::new(kernel, move || clock.now_ns.get(), worker).unwrap();
    driver.serve().unwrap();

    driver.group.check_all_answered();
    let kernel = &driver.group;
    assert!(
        kernel.tables.iter().all(|table| table.queued.is_empty()),
        "it ended with something said and not sent"
    );
    assert!(
        kernel.installed.is_empty(),
        "it ended with a descriptor open that it was given"
    );
    let peers = kernel.world.operator.peers;
    let (step, refused) = (kernel.step, kernel.refused);
    let closed_by_operator = kernel.world.operator.closed;
    let (accept_faults, file_faults) = (kernel.accept_faults, kernel.file_faults);
    let entered: u64 = kernel
        .peers
        .iter()
        .filter(|p| p.truth.is_some())
        .map(|p| p.entered)
        .sum();
    let stop = shared.stop.get().expect("it ended, and nobody had said so");
    assert!(
        driver.worker.listener.is_none() || shared.now_ns.get() >= stop.ends_at_ns(),
        "it ended with its listener open"
    );
    let waits_bytes = driver.budget.used_bytes();
    assert!(
        waits_bytes <= shared.waiting_bytes.get(),
        "{waits_bytes} bytes wait that nobody said"
    );
    assert!(
        plan.stops_early || shared.alive.get() == 0,
        "it ended before its connections"
    );
    let stats = driver.end();

    assert_eq!(admission.held(), 0, "connections counted after the end");
    assert_eq!(stats.accepted, shared.made.get(), "connections accepted");
    assert_eq!(
        stats.refused.values().sum::<u64>(),
        refused,
        "connections refused"
    );
    let said = stats.closed.get(&CloseReason::Operator).copied();
    assert_eq!(said.unwrap_or(0), closed_by_operator, "closed on request");
    assert_eq!(stats.heartbeats_sent, shared.beats.get(), "heartbeats");
    assert_eq!(stats.messages_published, shared.messages.get(), "messages");
    assert!(
        stats.pending_peak_bytes <= plan.limits.bytes_per_worker as u64,
        "{} bytes waited at once",
        stats.pending_peak_bytes
    );
    assert!(
        stats.dropped_table_full <= file_faults,
        "connections were lost"
    );
    assert!(
        stats.accept_retries <= accept_faults,
        "accepts were tried again for nothing"
    );
    check_endings(&stats, shared);
    let is_orderly = |reason: &CloseReason| {
        matches!(
            reason,
            CloseReason::PeerClosed | CloseReason::Finished | CloseReason::TooLong
        )
    };
    if stats.closed.keys().all(is_orderly) && !plan.stops_early {
        assert_eq!(stats.bytes_out, entered, "bytes sent");
    }
    (step, peers, stats)
}

/// Every end is counted once, under a reason that was true.
fn check_endings(stats: &Stats, shared: &Shared) {
    assert_eq!(shared.wrong.take(), None);
    let endings = shared.endings.take();
    assert_eq!(endings.len() as u64, shared.made.get(), "sessions ended");
    assert_eq!(
        stats.closed.values().sum::<u64>(),
        shared.made.get(),
        "ends counted"
    );
    for (reason, count) in &stats.closed {
        let may = endings
            .iter()
            .filter(|reasons| reasons.contains(reason))
            .count() as u64;
        assert!(
            *count <= may,
            "{count} connections were closed {reason}, where {may} may have been"
        );
    }
}
