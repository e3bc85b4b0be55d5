//! When a run has to end early: Ctrl-C or SIGTERM, or no time left.
//!
//! Invariant: every wait of this crate is bounded, and asks here at least every [`TICK`].

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

/// How long any wait sleeps at most before it looks around.
pub const TICK: Duration = Duration::from_millis(20);

/// Why a run ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// SIGINT or SIGTERM.
    Interrupted,
    /// The run took longer than it ever should.
    OutOfTime,
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Interrupted => "interrupted",
            Self::OutOfTime => "the whole run took far longer than planned, so something is stuck",
        })
    }
}

/// Asked by every wait.
#[derive(Debug, Clone)]
pub struct Stop {
    interrupted: Arc<AtomicBool>,
    until: Instant,
}

impl Stop {
    /// From now on SIGINT and SIGTERM end the run in good order, and so does the end of `time_limit`.
    ///
    /// A second signal ends this process at once; its children then end by themselves when their stdin closes.
    ///
    /// # Errors
    /// When the kernel refuses a signal handler.
    pub fn on_signals(time_limit: Duration) -> io::Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Before the flag is set by the line after it, so that only a second signal meets it set.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))?;
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        Ok(Self {
            interrupted,
            until: Instant::now() + time_limit,
        })
    }

    /// From now on the end of standard input ends the run too, as a signal does.
    pub fn on_stdin_end(&self) {
        let interrupted = Arc::clone(&self.interrupted);
        std::thread::spawn(move || {
            let mut ignored = [0; 64];
            while matches!(io::stdin().read(&mut ignored), Ok(1..)) {}
            interrupted.store(true, Ordering::Relaxed);
        });
    }

    /// Why the run has to end now, if it has to.
    pub fn cause(&self) -> Option<Cause> {
        if self.interrupted.load(Ordering::Relaxed) {
            Some(Cause::Interrupted)
        } else if Instant::now() >= self.until {
            Some(Cause::OutOfTime)
        } else {
            None
        }
    }

    /// Ends early only when the run has to.
    #[cfg(test)]
    pub(crate) fn after(time_limit: Duration) -> Self {
        Self {
            interrupted: Arc::default(),
            until: Instant::now() + time_limit,
        }
    }
}
