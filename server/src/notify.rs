//! What a service manager hears of this server (sd_notify(3)): that it is ready, that it ends, and that it lives.
//!
//! Owns: a socket, connected before anything else, since later none may be opened (`--user`, `--sandbox`); libraries of that
//! protocol open one for each word. Invariant: nobody waits for the manager. A word that it has no room for is lost; that of
//! life is said again soon, and the others are said while nothing else is.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use thiserror::Error;

/// Why the manager cannot be told anything.
#[derive(Debug, Error)]
pub enum ManagerError {
    /// Its socket.
    #[error(
        "NOTIFY_SOCKET is {address}, which cannot be reached ({source}); without a service manager, start with env -u \
         NOTIFY_SOCKET"
    )]
    Socket {
        /// Where it should be.
        address: String,
        /// Why it is not.
        #[source]
        source: io::Error,
    },
    /// No number.
    #[error("WATCHDOG_USEC is {0:?}, and no number of microseconds")]
    Interval(OsString),
    /// Nobody watches the workers.
    #[error(
        "the service manager waits for words of life (WatchdogSec), which come from the watchdog of the workers: give a \
         --stall-timeout above 0"
    )]
    Unwatched,
    /// They would come too seldom.
    #[error(
        "the service manager ends what is silent for {every:?} (WatchdogSec), and words of life come every {word:?}: raise \
         WatchdogSec, or lower --stall-timeout"
    )]
    TooSoon {
        /// What it waits for.
        every: Duration,
        /// From one to the next.
        word: Duration,
    },
}

/// What it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Connections are accepted.
    Ready,
    /// The end has begun.
    Stopping,
    /// All workers turn.
    Alive,
}

impl Word {
    fn text(self) -> &'static [u8] {
        match self {
            Word::Ready => b"READY=1",
            Word::Stopping => b"STOPPING=1",
            Word::Alive => b"WATCHDOG=1",
        }
    }
}

/// The service manager that started this process.
pub struct Manager {
    socket: UnixDatagram,
    /// After so much silence it ends the process.
    watchdog: Option<Duration>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager")
            .field("watchdog", &self.watchdog)
            .finish_non_exhaustive()
    }
}

impl Manager {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`); none without.
    ///
    /// # Errors
    /// It is named, and cannot be reached.
    pub fn of_environment() -> Result<Option<Manager>, ManagerError> {
        Manager::of(|name| std::env::var_os(name), std::process::id())
    }

    fn of(
        variable: impl Fn(&str) -> Option<OsString>,
        pid: u32,
    ) -> Result<Option<Manager>, ManagerError> {
        let Some(address) = variable("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Ok(None);
        };
        let socket = connect(address.as_bytes()).map_err(|source| ManagerError::Socket {
            address: address.to_string_lossy().into_owned(),
            source,
        })?;
        let number = |text: &OsString| text.to_str()?.parse::<u64>().ok();
        // Set for another process: this one was started by that.
        let is_ours = variable("WATCHDOG_PID").is_none_or(|of| number(&of) == Some(pid.into()));
        let interval = variable("WATCHDOG_USEC").filter(|_| is_ours);
        let interval = interval.map(|text| number(&text).ok_or(ManagerError::Interval(text)));
        let watchdog = interval
            .transpose()?
            .filter(|us| *us > 0)
            .map(Duration::from_micros);
        Ok(Some(Manager { socket, watchdog }))
    }

    /// Refuses a watchdog of the manager's that the server's own cannot feed: that one looks at the workers every so often
    /// (none: never), and says so each time.
    ///
    /// # Errors
    /// How they do not fit.
    pub fn check(&self, word: Option<Duration>) -> Result<(), ManagerError> {
        match (self.watchdog, word) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(ManagerError::Unwatched),
            // As sd_watchdog_enabled(3) asks: at half of it.
            (Some(every), Some(word)) if word > every / 2 => {
                Err(ManagerError::TooSoon { every, word })
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }

    /// Whether it waits for [`Word::Alive`].
    pub fn has_watchdog(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Tells it.
    ///
    /// # Errors
    /// It has no room for the word, or is gone.
    pub fn say(&self, word: Word) -> io::Result<()> {
        self.socket.send(word.text()).map(drop)
    }
}

fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    let address = match address {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(address))?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a path nor an abstract name",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn manager(variables: &[(&str, &str)]) -> Result<Option<Manager>, ManagerError> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Manager::of(find, 42)
    }

    #[test]
    fn words_reach_the_manager_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("throng-test-notify-{}", std::process::id());
        let there = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        for (address, socket) in [
            (
                path.to_str().unwrap().to_owned(),
                UnixDatagram::bind(&path).unwrap(),
            ),
            (format!("@{name}"), UnixDatagram::bind_addr(&there).unwrap()),
        ] {
            let manager = manager(&[("NOTIFY_SOCKET", &address)]).unwrap().unwrap();
            assert!(!manager.has_watchdog());
            let mut heard = [0; 64];
            for (word, said) in [
                (Word::Ready, "READY=1"),
                (Word::Alive, "WATCHDOG=1"),
                (Word::Stopping, "STOPPING=1"),
            ] {
                manager.say(word).unwrap();
                let count = socket.recv(&mut heard).unwrap();
                assert_eq!(&heard[..count], said.as_bytes());
            }
        }
    }

    #[test]
    fn a_watchdog_is_fed_in_time_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let path = path.to_str().unwrap();
        let of = |usec: &str, pid: &str| {
            let all = [
                ("NOTIFY_SOCKET", path),
                ("WATCHDOG_USEC", usec),
                ("WATCHDOG_PID", pid),
            ];
            manager(&all).map(Option::unwrap)
        };
        let ours = of("3000000", "42").unwrap();
        assert!(ours.has_watchdog() && ours.check(Some(Duration::from_millis(500))).is_ok());
        assert!(matches!(ours.check(None), Err(ManagerError::Unwatched)));
        assert!(ours.check(Some(Duration::from_secs(2))).is_err());
        let of_another = of("3000000", "43").unwrap();
        assert!(!of_another.has_watchdog() && of_another.check(None).is_ok());
        assert!(of("soon", "42").is_err());
    }

    #[test]
    fn without_a_manager_there_is_none_and_one_that_is_gone_is_told() {
        assert!(manager(&[]).unwrap().is_none());
        for address in ["/nonexistent/notify", "vsock:2:1", "@throng-nobody-listens"] {
            let error = manager(&[("NOTIFY_SOCKET", address)])
                .unwrap_err()
                .to_string();
            assert!(error.contains(address), "{error}");
        }
    }
}
