//! The one seam between engines: a worker's whole loop.
//!
//! Nothing is abstracted below this. Readiness and completion are different, and each engine is written as
//! its kernel interface wants it; what they share is [`Session`](wire::Session) and, where it fits,
//! [`conn`](crate::conn).

pub mod epoll;
pub mod tokio_uring;
pub mod uring;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use serde::Serialize;
use thiserror::Error;
use wire::Session;

use crate::stats::Stats;
use crate::worker::Worker;

/// The longest a loop sleeps with nothing due.
const IDLE: Duration = Duration::from_millis(500);
/// Heartbeats (of a table, where there are tables) and published messages said in one turn; then what has come has
/// its turn again.
const HEARTBEATS_PER_TURN: usize = 256;
const PUBLISHED_PER_TURN: usize = 1024;

/// Tells a connection that is not wanted, and will be closed next, `line`, where that is not empty. Best effort: what
/// does not fit the socket is not said.
fn turn_away(fd: RawFd, line: &[u8]) {
    if line.is_empty() {
        return;
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = send(fd, line, flags);
    // The end before the reset that input makes of a close: of what is unread, or is still to come.
    let _ = shutdown(fd, Shutdown::Write);
    let _ = recv(fd, &mut [0; 4096], MsgFlags::MSG_DONTWAIT);
}

/// What carries a worker's connections.
///
/// The contract of [`Engine::run`]:
/// - It runs on the worker's own thread, already pinned, and returns when the worker is told to stop.
/// - It sets up all it needs to accept, then calls `worker.ready()`, once, and ends where that says so. Before, it neither
///   accepts nor changes the listener, which may still be another process's.
/// - It accepts from `worker.listener`, admits each connection through `worker.admission`, gives it a session of
///   `worker.session`, and calls that session as [`Session`] says.
/// - It tells those it does not admit `worker.refusal`, without waiting, and closes them.
/// - It reads `worker.mailbox()` whenever the mailbox's descriptor is readable.
/// - It sweeps its connections as [`timeouts`](crate::timeouts) says, and closes those that break the rules.
/// - It gives a published message to every session once, in the order of publishing, within the message's time.
/// - Told to stop, it closes its listener, publishes `worker.farewell`, serves on, and closes as
///   [`drain`](crate::drain) says; it returns when nobody is left, or its time is over. Told to end, it does so at once. It
///   waits for nothing without a bound.
/// - It beats `worker.pulse` each turn, and turns at least every half second.
/// - It counts everything it does, drops or refuses in the `Stats` it returns; an error is returned only where
///   it cannot go on at all.
pub trait Engine {
    /// Serves until told to stop.
    fn run<S: Session + 'static, F: Fn() -> S + 'static>(
        worker: Worker<F>,
    ) -> Result<Stats, EngineError>;
}

/// The engines by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// io_uring: no file descriptor per connection, batches of operations
    Uring,
    /// epoll: readiness and non-blocking system calls, one file descriptor per connection
    Epoll,
    /// the tokio-uring crate, for comparison: a task, a buffer and a file descriptor per connection
    TokioUring,
}

impl EngineKind {
    /// The name as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Uring => "uring",
            EngineKind::Epoll => "epoll",
            EngineKind::TokioUring => "tokio-uring",
        }
    }
}

/// Why an engine could not start or go on.
#[derive(Debug, Error)]
pub enum EngineError {
    /// io_uring is not to be had.
    #[error("io_uring cannot be used: {0}")]
    Unavailable(#[from] ring::Unavailable),
    /// A system call failed that the engine cannot do without.
    #[error("{what} failed: {source}")]
    System {
        /// The call.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl EngineError {
    pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> EngineError {
        move |source| EngineError::System { what, source }
    }
}
