//! The control socket: commands to a running server, a line each, over a unix socket.
//!
//! `broadcast TEXT` gives TEXT and a line end to every session at once; `broadcast over TIME TEXT` evenly over that
//! time. The answer is a line: `published to N connections`, or `error: …`. `held` is answered by how many connections are
//! held, a number. `takeover` begins a conversation of its own
//! ([`takeover`](crate::takeover)).
//!
//! Owns: the socket file, which only its owner may use, and removes it at the end, unless a successor has it then. Runs on
//! a thread of its own and touches connections through the [`Publisher`] alone.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use nix::unistd::chown;

use crate::admission::Admission;
use crate::privileges::Identity;
use crate::takeover::{Handover, REQUEST};
use crate::worker::Publisher;

/// The most that is read of one client: no command is longer, and few clients say more than a few.
const MAX_COMMAND_BYTES: u64 = 1 << 20;
/// How long a client may take for a command; others wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket of a running server; removed when dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    /// The file is this server's: not before the predecessor has retired, and no more once a successor has the socket.
    is_own: Arc<AtomicBool>,
}

impl Control {
    /// Opens the socket at `path`. A file that a dead server left there is replaced.
    ///
    /// # Errors
    /// The path cannot be used, or another server answers there.
    pub fn bind(path: &Path) -> io::Result<(Control, UnixListener)> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another server answers there",
            ));
        }
        match std::fs::symlink_metadata(path) {
            Ok(left) if std::os::unix::fs::FileTypeExt::is_socket(&left.file_type()) => {
                std::fs::remove_file(path)?;
            }
            _ => {}
        }
        // Before anybody can connect, and not after it: the file is made with these permissions.
        let mask = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(mask);
        let listener = listener?;
        let control = Control::inherited(path);
        control.claim();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok((control, listener))
    }

    /// The file at `path`, of a socket that is being taken over.
    pub fn inherited(path: &Path) -> Control {
        Control {
            path: path.to_owned(),
            is_own: Arc::default(),
        }
    }

    /// From now on the file is this server's.
    pub fn claim(&self) {
        self.is_own.store(true, Relaxed);
    }

    /// A successor has the socket: the file is not this server's any more.
    pub fn disown(&self) {
        self.is_own.store(false, Relaxed);
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `owner` the one who may use it.
    ///
    /// # Errors
    /// That of chown(2).
    pub fn give_to(&self, owner: Identity) -> io::Result<()> {
        Ok(chown(&self.path, Some(owner.uid), Some(owner.gid))?)
    }

    /// Obeys commands from `listener` on a thread of its own, until the process ends or a successor has the socket.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn serve(
        &self,
        listener: UnixListener,
        publisher: Publisher,
        admission: Arc<Admission>,
        handover: Arc<Handover>,
    ) -> io::Result<()> {
        let is_own = Arc::clone(&self.is_own);
        let desk = Desk {
            listener,
            publisher,
            admission,
            handover,
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in desk.listener.incoming().flatten() {
                    // One that goes away in the middle is its own loss.
                    if desk.answer(stream).unwrap_or(false) {
                        is_own.store(false, Relaxed);
                        return;
                    }
                }
            })?;
        Ok(())
    }
}

impl Control {
    /// Removes the file, where it is this server's.
    pub fn remove(&self) {
        if self.is_own.swap(false, Relaxed) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Where commands are obeyed.
struct Desk {
    listener: UnixListener,
    publisher: Publisher,
    admission: Arc<Admission>,
    handover: Arc<Handover>,
}

impl Desk {
    /// True where a successor has the listener from now on.
    fn answer(&self, stream: UnixStream) -> io::Result<bool> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(io::Read::take(&stream, MAX_COMMAND_BYTES));
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            if line == REQUEST {
                let taken = self
                    .handover
                    .hand_over(&stream, &mut lines, &self.listener)?;
                return Ok(taken == Some(true));
            }
            let said = match parse(&line).and_then(|order| self.obey(order)) {
                Ok(said) => format!("{said}\n"),
                Err(error) => format!("error: {error}\n"),
            };
            (&stream).write_all(said.as_bytes())?;
            line.clear();
        }
        Ok(false)
    }

    fn obey(&self, order: Order) -> Result<String, String> {
        match order {
            Order::Broadcast { text, over } => {
                let published = self.publisher.publish(text, over);
                published.map_err(|error| error.to_string())?;
                Ok(format!(
                    "published to {} connections",
                    self.admission.held()
                ))
            }
            Order::Held => Ok(self.admission.held().to_string()),
        }
    }
}

/// A parsed command.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Broadcast { text: Vec<u8>, over: Duration },
    Held,
}

fn parse(line: &[u8]) -> Result<Order, String> {
    let usage = "give `broadcast TEXT`, `broadcast over TIME TEXT`, `held` or `takeover`";
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line == b"held" {
        return Ok(Order::Held);
    }
    let rest = line.strip_prefix(b"broadcast ").ok_or(usage)?;
    let (over, text) = match rest.strip_prefix(b"over ") {
        None => (Duration::ZERO, rest),
        Some(rest) => {
            let end = rest.iter().position(|b| *b == b' ').ok_or(usage)?;
            let time = String::from_utf8_lossy(&rest[..end]);
            let over = humantime::parse_duration(&time).map_err(|e| format!("{time}: {e}"))?;
            (over, &rest[end + 1..])
        }
    };
    Ok(Order::Broadcast {
        text: [text, b"\n"].concat(),
        over,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_written() {
        let broadcast = |text: &[u8], over| {
            Ok(Order::Broadcast {
                text: text.to_vec(),
                over,
            })
        };
        assert_eq!(parse(b"held\n"), Ok(Order::Held));
        assert_eq!(
            parse(b"broadcast hello all\n"),
            broadcast(b"hello all\n", Duration::ZERO)
        );
        assert_eq!(
            parse(b"broadcast over 5s now"),
            broadcast(b"now\n", Duration::from_secs(5))
        );
        for wrong in [
            &b"shout hello"[..],
            b"broadcast over soon x",
            b"broadcast over 5s",
        ] {
            assert!(parse(wrong).is_err());
        }
    }
}
