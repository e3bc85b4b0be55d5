//! One pinned thread per core: what it is given, how it is reached, how it ends.
//!
//! Owns: the mailbox through which other threads reach a worker. Knows no engine's insides.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use ring::Descriptors;
use thiserror::Error;
use wire::{Out, Session};

use crate::admission::Admission;
use crate::config::RingSizes;
use crate::conn::Limits;
use crate::engine::{Engine, EngineError};
use crate::inquiry::{Close, Look, Reply, Report};
use crate::stats::Stats;
use crate::timeouts::Timeouts;
use crate::watchdog::{Pulse, State};

/// What a worker is given. `F` makes the session of a new connection.
pub struct Worker<F> {
    /// Which worker, from 0.
    pub number: usize,
    /// Its listening socket. Taken, and closed when the worker is told to stop, so that another process can have the port.
    /// Other workers, and before the gate opens another process, may accept from it too; whether its calls wait is the
    /// socket's for all of them.
    pub listener: Option<Arc<TcpListener>>,
    /// Pending connections the listener keeps.
    pub backlog: u32,
    /// Makes a session.
    pub session: F,
    /// Time between two heartbeats of a connection; none without.
    pub heartbeat: Option<Duration>,
    /// None is said before [`Command::Beat`].
    pub heartbeat_waits: bool,
    /// Bounds on waiting bytes.
    pub limits: Limits,
    /// Bounds on a peer's silence.
    pub timeouts: Timeouts,
    /// How long letting connections go may take after the stop.
    pub drain_timeout: Duration,
    /// What they are told then.
    pub farewell: Option<Arc<Message>>,
    /// What an io_uring connection costs.
    pub descriptors: Descriptors,
    /// Slots of each table of an engine that has tables.
    pub table_slots: u32,
    /// Somebody may look at its connections.
    pub is_inspected: bool,
    /// Sizes of the rings of an engine that has rings.
    pub ring_sizes: RingSizes,
    /// Who may come in.
    pub admission: Arc<Admission>,
    /// What those are told who may not; nothing where it is empty.
    pub refusal: Arc<[u8]>,
    /// How others reach all workers, and this one.
    pub publisher: Publisher,
    /// Where `ready` is said.
    pub events: Sender<Event>,
    /// Where each turn is shown.
    pub pulse: Arc<Pulse>,
    /// What it accepts behind.
    pub gate: Arc<Gate>,
}

/// Set once: to true when all workers may accept, to false when none will.
pub type Gate = OnceLock<bool>;

impl<F> Worker<F> {
    /// Where this worker finds its commands.
    pub fn mailbox(&self) -> &Mailbox {
        self.publisher.mailbox(self.number)
    }

    /// Time between two heartbeats of a connection, where they begin with the worker.
    pub fn heartbeat_at_start(&self) -> Option<Duration> {
        self.heartbeat.filter(|_| !self.heartbeat_waits)
    }

    /// Everything is set up: waits until connections may come. False where the server has given up.
    pub fn ready(&self) -> bool {
        // The receiver is gone only when the server has given up already.
        let _ = self.events.send(Event::Ready);
        *self.gate.wait()
    }
}

/// What the main thread hears.
#[derive(Debug)]
pub enum Event {
    /// A worker can accept.
    Ready,
    /// A worker has ended.
    Ended {
        /// Which.
        worker: usize,
        /// Its counts, or why it ended early.
        result: Result<Box<Stats>, EngineError>,
    },
    /// A worker does nothing any more.
    Stalled {
        /// Which.
        worker: usize,
        /// What it was doing.
        state: State,
    },
    /// The server is asked to end. Asked again, it ends at once.
    Stop(&'static str),
}

/// Starts a worker's thread, pinned to `core`, running engine `E`.
///
/// # Errors
/// The thread could not be started.
pub fn spawn<E: Engine, S: Session + 'static, F: Fn() -> S + Send + 'static>(
    core: usize,
    worker: Worker<F>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("worker-{}", worker.number))
        .spawn(move || {
            let mut ending = Ending {
                worker: worker.number,
                events: worker.events.clone(),
                result: Some(Err(EngineError::System {
                    what: "the worker's thread",
                    source: io::Error::other("panicked"),
                })),
            };
            let _alive = worker.pulse.begin();
            let pinned = kernel_tuning::process::pin_current_thread(core).map_err(|error| {
                EngineError::System {
                    what: "pinning a worker to its core",
                    source: io::Error::other(error),
                }
            });
            ending.result = Some(pinned.and_then(|()| E::run(worker)).map(Box::new));
        })
}

/// Says how a worker ended, also when it panicked.
struct Ending {
    worker: usize,
    events: Sender<Event>,
    result: Option<Result<Box<Stats>, EngineError>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(result) = self.result.take() {
            let _ = self.events.send(Event::Ended {
                worker: self.worker,
                result,
            });
        }
    }
}

/// What a worker is told.
#[derive(Clone, Debug)]
pub enum Command {
    /// Stop accepting, drain, end.
    Stop,
    /// Stop accepting, or draining, and end now.
    End,
    /// Begin with the heartbeats that wait for it.
    Beat,
    /// Give this to every session.
    Publish(Arc<Message>),
    /// Say what was counted so far.
    Report(Reply<Report>),
    /// Look for connections.
    Look(Look),
    /// Close a connection.
    Close(Close),
}

/// Something for every session of every worker.
#[derive(Debug)]
pub struct Message {
    /// What [`Session::on_message`] is given.
    pub bytes: Vec<u8>,
    /// The time over which sessions get it, evenly; zero for at once.
    pub over: Duration,
}

/// A message that no session could pass on.
#[derive(Debug, Error)]
#[error("a message of {0} bytes is too long: at most {most} fit", most = Out::MIN_ROOM)]
pub struct TooLong(pub usize);

/// Sends messages to every session of every worker, from any thread: that is what a broadcast is.
///
/// A session that publishes holds a clone. Each connection that is established when a worker reads the message gets
/// it once; one publisher's messages come in their order.
#[derive(Clone, Debug)]
pub struct Publisher {
    mailboxes: Arc<[Mailbox]>,
}

impl Publisher {
    pub(crate) fn new(workers: usize) -> io::Result<Publisher> {
        let mailboxes = (0..workers)
            .map(|_| Mailbox::new())
            .collect::<io::Result<_>>()?;
        Ok(Publisher { mailboxes })
    }

    /// Gives `bytes` to every session, evenly over the time `over`, or at once.
    ///
    /// # Errors
    /// More than [`Out::MIN_ROOM`] bytes: a session could not pass them on.
    pub fn publish(&self, bytes: impl Into<Vec<u8>>, over: Duration) -> Result<(), TooLong> {
        let bytes = bytes.into();
        if bytes.len() > Out::MIN_ROOM {
            return Err(TooLong(bytes.len()));
        }
        self.post(Command::Publish(Arc::new(Message { bytes, over })));
        Ok(())
    }

    pub(crate) fn post(&self, command: Command) {
        for mailbox in &*self.mailboxes {
            mailbox.post(command.clone());
        }
    }

    pub(crate) fn mailbox(&self, worker: usize) -> &Mailbox {
        &self.mailboxes[worker]
    }
}

/// Reaches a worker that may be asleep in the kernel.
#[derive(Debug)]
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    wake: EventFd,
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// # Errors
    /// No eventfd to be had.
    pub fn new() -> io::Result<Mailbox> {
        Ok(Mailbox {
            commands: Mutex::new(Vec::new()),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Leaves a command and wakes the worker.
    pub fn post(&self, command: Command) {
        self.commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(command);
        // Fails only when the counter is at its end; then the worker has been woken often enough.
        let _ = self.wake.write(1);
    }

    /// Readable when there are commands.
    pub fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// The descriptor itself, for engines that register it.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes all commands.
    pub fn take(&self) -> Vec<Command> {
        let _ = self.wake.read();
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A worker's clock: monotonic, from the worker's start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts at 0.
    pub fn new() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}
