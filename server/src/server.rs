//! A running server: its workers' threads, from start to joined end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::warn;
use wire::Session;

use crate::admission::Admission;
use crate::config::Config;
use crate::drain::Drain;
use crate::engine::epoll::EpollEngine;
use crate::engine::tokio_uring::TokioUring;
use crate::engine::uring::Uring;
use crate::engine::{EngineError, EngineKind};
use crate::guard::Guard;
use crate::listener::{Inherited, ListenError, adopt, listen};
use crate::notify::{Manager, Word};
use crate::privileges::PrivilegeError;
use crate::stats::Stats;
use crate::takeover::Handover;
use crate::watchdog::{Pulse, State, Watchdog};
use crate::worker::{self, Command, Event, Gate, Message, Publisher, Worker};

/// Why a server did not start or ended early.
#[derive(Debug, Error)]
pub enum StartError {
    /// No listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Still more than an ordinary user.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// No thread, no eventfd.
    #[error("a worker could not be started: {0}")]
    Spawn(#[source] io::Error),
    /// A worker failed.
    #[error("worker {worker}: {source}")]
    Worker {
        /// Which.
        worker: usize,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// A worker does nothing any more.
    #[error(
        "worker {worker} has not turned for the stall timeout, {state}; see /proc/PID/task/*/stack of another run, or raise --stall-timeout"
    )]
    Stalled {
        /// Which.
        worker: usize,
        /// What it was doing.
        state: State,
    },
    /// A worker did not say that it is ready, or did not end, in time.
    #[error("a worker did not answer within {0:?}")]
    Stuck(Duration),
}

/// What a server did.
#[derive(Debug)]
pub struct Ended {
    /// All workers' counts.
    pub stats: Stats,
    /// Why it ended.
    pub cause: &'static str,
}

/// A server whose workers all accept, or would. Ends when it is told to ([`Server::stopper`]), or when a worker fails.
pub struct Server {
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
    publisher: Publisher,
    admission: Arc<Admission>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    drain_timeout: Duration,
    pulses: Vec<Arc<Pulse>>,
    watchdog: Option<Watchdog>,
    guard: Option<Guard>,
    gate: Arc<Gate>,
    handover: Arc<Handover>,
    /// It was told to end.
    is_draining: Arc<AtomicBool>,
    manager: Option<Arc<Manager>>,
    /// What its sockets are to become that were given.
    adopts: Option<(u32, Inherited)>,
}

/// How long a worker may take to set up.
const START_BOUND: Duration = Duration::from_secs(20);
/// How long the others may take to end when one worker has stalled.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a worker may take to end, beyond the drain.
const END_BOUND: Duration = Duration::from_secs(20);

/// Starts a worker on each of `config.cores`, and returns once all of them accept. `sessions` is given the
/// server's publisher, and returns what makes the session of a new connection.
///
/// # Errors
/// Nothing is left running where one worker could not start.
pub fn start<S, F>(
    config: &Config,
    sessions: impl FnOnce(&Publisher) -> F,
) -> Result<Server, StartError>
where
    S: Session + 'static,
    F: Fn() -> S + Clone + Send + 'static,
{
    let server = prepare(config, Vec::new(), sessions)?;
    server.open();
    Ok(server)
}

/// As [`start`], and returns when nothing is left to do but accept ([`Server::open`]). Serves on `given` sockets, at most
/// one a worker, where there are such: with fewer, workers share them.
///
/// # Errors
/// As [`start`]; nobody has accepted from the given sockets.
pub(crate) fn prepare<S, F>(
    config: &Config,
    given: Vec<TcpListener>,
    sessions: impl FnOnce(&Publisher) -> F,
) -> Result<Server, StartError>
where
    S: Session + 'static,
    F: Fn() -> S + Clone + Send + 'static,
{
    let adopts = (!given.is_empty()).then_some((config.backlog, config.inherited));
    let listeners = match adopts {
        Some(_) => given,
        None => listen(
            config.listen,
            config.cores.len(),
            config.backlog,
            config.reuse_port,
            config.inherited,
        )?,
    };
    let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
    let address = listeners
        .first()
        .map_or(Ok(config.listen), |l| l.local_addr())
        .map_err(StartError::Spawn)?;
    if let Some(identity) = config.identity {
        identity.assume()?;
    }
    let publisher = Publisher::new(config.cores.len()).map_err(StartError::Spawn)?;
    let session = sessions(&publisher);
    let (sender, events) = channel();
    let handover = Handover::new(&listeners, config.engine, sender.clone());
    let mut server = Server {
        address,
        threads: Vec::new(),
        publisher,
        admission: Arc::new(Admission::new(config.bounds)),
        events,
        sender,
        drain_timeout: config.drain_timeout,
        pulses: config.cores.iter().map(|_| Arc::default()).collect(),
        watchdog: None,
        guard: None,
        gate: Arc::default(),
        handover: Arc::new(handover),
        is_draining: Arc::default(),
        manager: config.manager.clone(),
        adopts,
    };
    let farewell = (!config.farewell.is_empty()).then(|| {
        Arc::new(Message {
            bytes: config.farewell.clone(),
            over: Drain::farewell_over(config.drain_timeout),
        })
    });
    let refusal = &config.refusal[..config.refusal.len().min(Config::MAX_REFUSAL_BYTES)];
    for (number, core) in config.cores.iter().enumerate() {
        let worker = Worker {
            number,
            listener: Some(Arc::clone(&listeners[number % listeners.len()])),
            backlog: config.backlog,
            session: session.clone(),
            heartbeat: config.heartbeat,
            heartbeat_waits: config.heartbeat_waits,
            limits: config.limits,
            timeouts: config.timeouts,
            drain_timeout: config.drain_timeout,
            farewell: farewell.clone(),
            descriptors: config.descriptors,
            table_slots: config.table_slots,
            is_inspected: config.is_inspected,
            ring_sizes: config.ring_sizes,
            admission: Arc::clone(&server.admission),
            refusal: refusal.into(),
            publisher: server.publisher.clone(),
            events: server.sender.clone(),
            pulse: Arc::clone(&server.pulses[number]),
            gate: Arc::clone(&server.gate),
        };
        let thread = match config.engine {
            EngineKind::Uring => worker::spawn::<Uring, S, F>(*core, worker),
            EngineKind::Epoll => worker::spawn::<EpollEngine, S, F>(*core, worker),
            EngineKind::TokioUring => worker::spawn::<TokioUring, S, F>(*core, worker),
        };
        match thread {
            Ok(thread) => server.threads.push(thread),
            Err(error) => {
                server.stop();
                return Err(StartError::Spawn(error));
            }
        }
    }
    let deadline = Instant::now() + START_BOUND;
    for _ in 0..server.threads.len() {
        match server
            .events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(Event::Ready) => {}
            Ok(Event::Ended { worker, result }) => {
                server.stop();
                let source = result.err().unwrap_or_else(|| EngineError::System {
                    what: "serving",
                    source: io::Error::other("ended before it was ready"),
                });
                return Err(StartError::Worker { worker, source });
            }
            Ok(Event::Stop(_) | Event::Stalled { .. }) | Err(_) => {
                server.stop();
                return Err(StartError::Stuck(START_BOUND));
            }
        }
    }
    if config.memory_reserve_bytes > 0 {
        let guard = Guard::start(Arc::clone(&server.admission), config.memory_reserve_bytes);
        server.guard = Some(guard.map_err(StartError::Spawn)?);
    }
    if let Some(timeout) = config.stall_timeout {
        let (pulses, events, gate) = (&server.pulses, &server.sender, &server.gate);
        let manager = config.manager.clone();
        let (events, gate) = (events.clone(), Arc::clone(gate));
        let watchdog = Watchdog::start(pulses.clone(), timeout, events, gate, manager);
        server.watchdog = Some(watchdog.map_err(StartError::Spawn)?);
    }
    Ok(server)
}

impl Server {
    /// Accepts from now on.
    pub(crate) fn open(&self) {
        if let Some((backlog, inherited)) = self.adopts {
            for listener in self.handover.listeners().unwrap_or_default() {
                if let Err(error) = adopt(&listener, backlog, inherited) {
                    warn!(%error, "a socket that was given stays as it is (backlog, --keepalive, --user-timeout)");
                }
            }
        }
        // Open only once.
        let _ = self.gate.set(true);
    }

    /// Whether it accepts, or never will.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Whether it was told to end.
    pub(crate) fn is_draining(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_draining)
    }

    /// Gives its sockets to a successor.
    pub(crate) fn handover(&self) -> Arc<Handover> {
        Arc::clone(&self.handover)
    }

    /// Where it listens, the port included that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections held now, over all workers.
    pub fn held(&self) -> u64 {
        self.admission.held()
    }

    /// The count of connections, kept up to date by the workers.
    pub fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.admission)
    }

    /// Reaches every session.
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Ends the server from any thread, with a word on why: sending [`Event::Stop`] drains it.
    pub fn stopper(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// What the workers show of themselves, by their numbers.
    pub fn pulses(&self) -> &[Arc<Pulse>] {
        &self.pulses
    }

    /// Waits until the server is told to end, drains, and joins all workers. Where a worker fails or stalls, it ends at
    /// once: the others could not serve the connections of that one.
    ///
    /// # Errors
    /// A worker failed; the others were stopped in good order.
    pub fn wait(mut self) -> Result<Ended, StartError> {
        let mut stats = Stats::new();
        let mut failure = None;
        let mut cause = None;
        let mut running = self.threads.len();
        let mut deadline = None;
        while running > 0 {
            let event = match deadline {
                // `self.sender` lives, so the channel cannot close.
                None => self
                    .events
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    let left = Instant::saturating_duration_since(&deadline, Instant::now());
                    self.events.recv_timeout(left)
                }
            };
            match event {
                Ok(Event::Stop(why)) if cause.is_none() => {
                    self.is_draining.store(true, Relaxed);
                    cause = Some(why);
                    if let Some(manager) = &self.manager {
                        // It has told this server to stop, or hears of the end all the same.
                        let _ = manager.say(Word::Stopping);
                    }
                    self.publisher.post(Command::Stop);
                    deadline = Some(Instant::now() + self.drain_timeout + END_BOUND);
                }
                Ok(Event::Stop(_)) => self.publisher.post(Command::End),
                Ok(Event::Ended { worker, result }) => {
                    running -= 1;
                    match result {
                        Ok(counts) => stats.merge(&counts),
                        Err(source) => {
                            failure.get_or_insert(StartError::Worker { worker, source });
                        }
                    }
                    if failure.is_some() || cause.is_none() {
                        cause.get_or_insert("a worker ended");
                        self.publisher.post(Command::End);
                        deadline.get_or_insert(Instant::now() + END_BOUND);
                    }
                }
                Ok(Event::Stalled { worker, state }) => {
                    failure.get_or_insert(StartError::Stalled { worker, state });
                    self.publisher.post(Command::End);
                    // Nobody waits for that one.
                    running -= 1;
                    deadline = Some(Instant::now() + LAST_WORDS);
                }
                Ok(Event::Ready) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let stuck = StartError::Stuck(self.drain_timeout + END_BOUND);
                    return Err(failure.unwrap_or(stuck));
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        for thread in self.threads.drain(..) {
            // How it ended is known already.
            let _ = thread.join();
        }
        stats.held_max = self.admission.held_max();
        let cause = cause.unwrap_or("the workers fell silent");
        Ok(Ended { stats, cause })
    }

    /// Before the gate was open.
    fn stop(&self) {
        self.publisher.post(Command::End);
        let _ = self.gate.set(false);
    }
}
