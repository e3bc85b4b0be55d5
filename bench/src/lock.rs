//! One heavy run at a time on a machine: two at once would measure each other.
//!
//! Owns an empty file in the temporary directory and a flock(2) on it. The kernel releases the lock with the process,
//! however it ends; the file stays.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::screen::Screen;
use crate::stop::{Stop, TICK};

/// Begins a heavy run that should take `time_limit` at most: signals and the clock end it, and no other runs beside it.
///
/// # Errors
/// What to tell the user.
pub fn alone(time_limit: Duration, screen: &Screen) -> Result<(Stop, MachineLock), String> {
    /// As long as a whole comparison of another takes.
    const PATIENCE: Duration = Duration::from_secs(180);
    let stop = Stop::on_signals(time_limit + PATIENCE)
        .map_err(|cause| format!("cannot handle signals: {cause}"))?;
    let lock = MachineLock::take(PATIENCE, &stop, |reason| {
        screen.line(&format!("waiting up to {} s: {reason}", PATIENCE.as_secs()));
    })?;
    Ok((stop, lock))
}

/// Held by the one run that may load this machine; dropping it lets the next one start.
#[derive(Debug)]
pub struct MachineLock {
    _held: Flock<File>,
}

impl MachineLock {
    /// Takes the lock. When another run has it, calls `on_wait` once with the reason and waits up to `patience`.
    ///
    /// # Errors
    /// What to tell the user: the lock file cannot be used, the other run went on for too long, or `stop` said so.
    pub fn take(
        patience: Duration,
        stop: &Stop,
        on_wait: impl FnOnce(&str),
    ) -> Result<Self, String> {
        Self::take_at(&path(), patience, stop, on_wait)
    }

    fn take_at(
        path: &Path,
        patience: Duration,
        stop: &Stop,
        on_wait: impl FnOnce(&str),
    ) -> Result<Self, String> {
        let unusable = |cause: io::Error| {
            format!(
                "cannot use the lock file {}: {cause}; remove it, or set TMPDIR to a directory of yours",
                path.display()
            )
        };
        let mut file = open(path).map_err(unusable)?;
        let until = Instant::now() + patience;
        let mut on_wait = Some(on_wait);
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _held: lock }),
                Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
                Err((_, errno)) => return Err(unusable(errno.into())),
            };
            let holder = format!("another heavy run on this machine holds {}", path.display());
            if let Some(cause) = stop.cause() {
                return Err(format!("{cause}, while {holder}"));
            }
            if Instant::now() >= until {
                let waited = humantime::format_duration(patience);
                return Err(format!(
                    "{holder}, after {waited} still; two at once would measure each other: wait for it, or find it \
                     with: fuser -v {}",
                    path.display()
                ));
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait(&holder);
            }
            std::thread::sleep(TICK);
        }
    }
}

fn path() -> PathBuf {
    std::env::temp_dir().join("throng-heavy-run.lock")
}

/// A file of another user can be opened for reading only, and in a sticky directory only without O_CREAT; flock(2)
/// needs no more.
fn open(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path),
        opened => opened,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_with_a_reason_and_is_refused_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let stop = Stop::after(Duration::from_secs(60));
        let unexpected = |_: &str| panic!("nobody holds it");
        let first = MachineLock::take_at(&path, Duration::ZERO, &stop, unexpected).unwrap();
        let mut said = String::new();
        let patience = Duration::from_millis(100);
        let refused =
            MachineLock::take_at(&path, patience, &stop, |reason| said = reason.to_owned());
        assert!(refused.unwrap_err().contains("measure each other"));
        assert!(said.contains(path.to_str().unwrap()));
        drop(first);
        MachineLock::take_at(&path, Duration::ZERO, &stop, unexpected).unwrap();
    }

    #[test]
    fn an_unusable_file_is_named() {
        let stop = Stop::after(Duration::from_secs(60));
        let missing = Path::new("/nonexistent/lock");
        let error = MachineLock::take_at(missing, Duration::ZERO, &stop, |_| ()).unwrap_err();
        assert!(
            error.contains("/nonexistent/lock") && error.contains("TMPDIR"),
            "{error}"
        );
    }
}
