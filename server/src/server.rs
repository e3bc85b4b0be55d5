//! A running server: its workers' threads, from start to joined end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;
use wire::Session;

use crate::config::Config;
use crate::engine::epoll::EpollEngine;
use crate::engine::tokio_uring::TokioUring;
use crate::engine::uring::Uring;
use crate::engine::{EngineError, EngineKind};
use crate::listener::{ListenError, listen};
use crate::stats::Stats;
use crate::worker::{self, Admission, Command, Event, Publisher, Worker};

/// Why a server did not start or ended early.
#[derive(Debug, Error)]
pub enum StartError {
    /// No listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
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

/// A server whose workers all accept. Ends when it is told to ([`Server::stopper`]), or when a worker fails.
pub struct Server {
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
    publisher: Publisher,
    admission: Arc<Admission>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    drain_timeout: Duration,
}

/// How long a worker may take to set up.
const START_BOUND: Duration = Duration::from_secs(20);
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
    let listeners = listen(
        config.listen,
        config.cores.len(),
        config.backlog,
        config.reuse_port,
    )?;
    let address = listeners
        .first()
        .map_or(Ok(config.listen), |l| l.local_addr())
        .map_err(StartError::Spawn)?;
    let publisher = Publisher::new(config.cores.len()).map_err(StartError::Spawn)?;
    let session = sessions(&publisher);
    let (sender, events) = channel();
    let mut server = Server {
        address,
        threads: Vec::new(),
        publisher,
        admission: Arc::new(Admission::new(config.max_connections.unwrap_or(u64::MAX))),
        events,
        sender,
        drain_timeout: config.drain_timeout,
    };
    let refusal = &config.refusal[..config.refusal.len().min(Config::MAX_REFUSAL_BYTES)];
    for (number, (listener, core)) in listeners.into_iter().zip(&config.cores).enumerate() {
        let worker = Worker {
            number,
            listener,
            backlog: config.backlog,
            session: session.clone(),
            heartbeat: config.heartbeat,
            heartbeat_waits: config.heartbeat_waits,
            limits: config.limits,
            timeouts: config.timeouts,
            drain_timeout: config.drain_timeout,
            descriptors: config.descriptors,
            table_slots: config.table_slots,
            admission: Arc::clone(&server.admission),
            refusal: refusal.into(),
            publisher: server.publisher.clone(),
            events: server.sender.clone(),
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
            Ok(Event::Stop(_)) | Err(_) => {
                server.stop();
                return Err(StartError::Stuck(START_BOUND));
            }
        }
    }
    Ok(server)
}

impl Server {
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

    /// Waits until the server is told to end or a worker fails, drains, and joins all workers.
    ///
    /// # Errors
    /// A worker failed; the others were stopped in good order.
    pub fn wait(mut self) -> Result<Ended, StartError> {
        let mut stats = Stats::new();
        let mut failure = None;
        let mut running = self.threads.len();
        // `self.sender` lives, so the channel cannot close.
        let cause = match self.events.recv() {
            Ok(Event::Stop(cause)) => cause,
            Ok(Event::Ended { worker, result }) => {
                running -= 1;
                match result {
                    Ok(counts) => stats.merge(&counts),
                    Err(source) => failure = Some(StartError::Worker { worker, source }),
                }
                "a worker ended"
            }
            Ok(Event::Ready) | Err(_) => "the workers fell silent",
        };
        self.stop();
        let bound = self.drain_timeout + END_BOUND;
        let deadline = Instant::now() + bound;
        while running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Ended { worker, result }) => {
                    running -= 1;
                    match result {
                        Ok(counts) => stats.merge(&counts),
                        Err(source) => {
                            failure.get_or_insert(StartError::Worker { worker, source });
                        }
                    }
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(StartError::Stuck(bound));
                }
            }
        }
        for thread in self.threads.drain(..) {
            // How it ended is known already, a panic included.
            let _ = thread.join();
        }
        stats.held_max = self.admission.held_max();
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Ended { stats, cause }),
        }
    }

    fn stop(&self) {
        self.publisher.post(Command::Stop);
    }
}
