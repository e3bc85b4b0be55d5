//! What asks a run to end before its time.
//!
//! Touches signals, stdin, and the keys of the view. Invariant: a wait has a bound, and ends when a run is to end.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::tui::Screen;

/// How often the main thread looks at what it waits for.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// What asks a run to end: SIGINT, SIGTERM, the end of stdin, or a key while there is a view.
pub(crate) struct Interrupts {
    signals: SignalFd,
    stdin_closed: Arc<AtomicBool>,
    screen: Arc<Screen>,
}

impl Interrupts {
    /// To be called before any thread starts, so that all of them inherit the mask.
    pub(crate) fn new(until_stdin_closes: bool, screen: Arc<Screen>) -> anyhow::Result<Interrupts> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGINT);
        mask.add(Signal::SIGTERM);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let stdin_closed = Arc::new(AtomicBool::new(false));
        if until_stdin_closes {
            let closed = Arc::clone(&stdin_closed);
            thread::Builder::new().name("stdin".into()).spawn(move || {
                let mut scratch = [0; 4096];
                while !matches!(io::stdin().read(&mut scratch), Ok(0) | Err(_)) {}
                closed.store(true, Relaxed);
            })?;
        }
        Ok(Interrupts {
            signals,
            stdin_closed,
            screen,
        })
    }

    /// Waits for `time`, or less. True when the run is to end.
    pub(crate) fn wait(&self, time: Duration) -> anyhow::Result<bool> {
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll for signals"),
        }
        Ok(self.signals.read_signal()?.is_some()
            || self.stdin_closed.load(Relaxed)
            || self.screen.is_end_asked())
    }

    /// Waits for `time`, or until `is_done`. True when the run is to end.
    pub(crate) fn linger(
        &self,
        time: Duration,
        mut is_done: impl FnMut() -> bool,
    ) -> anyhow::Result<bool> {
        let start = Instant::now();
        while !is_done() {
            let left = time.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            if self.wait(TICK.min(left))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
