//! What the agent and the bench of another host say to each other: a line of JSON each way, the bench first.
//!
//! Owns one connection. Invariant: no line is longer than its reader allows, and no wait is without a bound; the agent is
//! asked for readings alone, and there is nothing else that it could be asked for.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kernel_tuning::host::Environment;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};

use crate::remote::look::Look;
use crate::stop::{Cause, Stop, TICK};

/// Version of what is said; both ends must speak the same. Only [`Ask::Hello`] and [`Answer::Refused`] keep their form in
/// all of them.
pub const VERSION: u32 = 1;

/// The longest question, in bytes.
pub const LONGEST_ASK: usize = 4 << 10;
/// The longest answer: that with a close look at a host of many slab caches.
pub const LONGEST_ANSWER: usize = 4 << 20;

/// What the bench asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// The first question of all.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Of Throng.
        throng_version: String,
    },
    /// What is the time?
    Clock,
    /// How is the host, and the server on it?
    Look {
        /// With what is too dear to be read often.
        closely: bool,
    },
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Who answers.
    Hello(Box<Hello>),
    /// To [`Ask::Clock`].
    Clock(Times),
    /// To [`Ask::Look`].
    Look {
        /// When it was asked for, and answered.
        times: Times,
        /// What was seen.
        look: Box<Look>,
    },
    /// No other answer will come.
    Refused {
        /// Why, and what to do about it.
        reason: String,
    },
}

/// The agent's CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// When the question had come.
    pub received_ns: u64,
    /// Before the answer was sent.
    pub sent_ns: u64,
}

/// The agent, its host, and what it watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Of Throng.
    pub throng_version: String,
    /// The host.
    pub environment: Environment,
    /// Which boot of which host (`/proc/sys/kernel/random/boot_id`): the same for all of its namespaces.
    pub boot_id: Option<String>,
    /// The interface that the bench is reached by.
    pub interface: Option<String>,
    /// The processes found, without their children.
    pub processes: Vec<Watched>,
}

/// A process that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Its id, on its host.
    pub pid: u32,
    /// Its name, as `ps` shows.
    pub name: String,
}

/// Why nothing was heard.
#[derive(Debug)]
pub enum Unheard {
    /// The other end has gone.
    Closed,
    /// It says nothing.
    Silent(Duration),
    /// Its line has no end.
    TooLong(usize),
    /// This is no such line.
    Strange(String),
    /// The run has to end.
    Stopped(Cause),
    /// The connection broke.
    Broken(io::Error),
}

impl fmt::Display for Unheard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(out, "it closed the connection"),
            Self::Silent(patience) => {
                write!(out, "it did not answer within {} s", patience.as_secs())
            }
            Self::TooLong(bytes) => write!(out, "it sent a line of more than {bytes} bytes"),
            Self::Strange(line) => write!(out, "it said {line:?}"),
            Self::Stopped(cause) => write!(out, "{cause}"),
            Self::Broken(cause) => write!(out, "the connection broke: {cause}"),
        }
    }
}

/// A connection, read line by line.
#[derive(Debug)]
pub struct Lines {
    stream: TcpStream,
    longest: usize,
    read: Vec<u8>,
}

impl Lines {
    /// Over `stream`, with lines of at most `longest` bytes to be heard.
    ///
    /// # Errors
    /// When the kernel refuses an option.
    pub fn new(stream: TcpStream, longest: usize) -> io::Result<Self> {
        /// A line fits into the socket's buffers, unless nobody reads.
        const WRITES_WITHIN: Duration = Duration::from_secs(5);
        /// With the kernel's nine probes, a host that has gone is found out in less than a minute.
        const PROBES_AFTER: Duration = Duration::from_secs(10);
        let probes = TcpKeepalive::new()
            .with_time(PROBES_AFTER)
            .with_interval(PROBES_AFTER / 2);
        SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(WRITES_WITHIN))?;
        Ok(Self {
            stream,
            longest,
            read: Vec::new(),
        })
    }

    /// Says `message`.
    ///
    /// # Errors
    /// Why it cannot be said.
    pub fn say(&mut self, message: &impl Serialize) -> Result<(), Unheard> {
        let line = serde_json::to_vec(message).map_err(io::Error::from);
        let said = line.and_then(|mut line| {
            line.push(b'\n');
            self.stream.write_all(&line)
        });
        said.map_err(Unheard::Broken)
    }

    /// Waits for a line, at most for `patience`, and no longer than `stop` allows; without its end.
    ///
    /// # Errors
    /// Why there is none.
    pub fn hear(&mut self, patience: Duration, stop: &Stop) -> Result<Vec<u8>, Unheard> {
        let until = Instant::now() + patience;
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.read, rest);
                line.pop();
                return Ok(line);
            }
            if self.read.len() > self.longest {
                return Err(Unheard::TooLong(self.longest));
            }
            if let Some(cause) = stop.cause() {
                return Err(Unheard::Stopped(cause));
            }
            if Instant::now() >= until {
                return Err(Unheard::Silent(patience));
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Unheard::Closed),
                Ok(count) => self.read.extend(&piece[..count]),
                // EAGAIN is what a read timeout gives.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(Unheard::Closed);
                }
                Err(error) => return Err(Unheard::Broken(error)),
            }
        }
    }
}

/// What `line` says.
///
/// # Errors
/// When it is of another kind: how it begins.
pub fn understood<T: DeserializeOwned>(line: &[u8]) -> Result<T, Unheard> {
    const SHOWN_CHARS: usize = 80;
    serde_json::from_slice(line).map_err(|_| {
        let text = String::from_utf8_lossy(line);
        Unheard::Strange(text.chars().take(SHOWN_CHARS).collect())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn joined(longest: usize) -> (Lines, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        (Lines::new(stream, longest).unwrap(), peer)
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn lines_are_heard_one_by_one_however_they_come() {
        let (mut lines, mut peer) = joined(LONGEST_ASK);
        let stop = Stop::after(LONG);
        peer.write_all(b"{\"ask\":\"clock\"}\n{\"ask\":").unwrap();
        let line = lines.hear(LONG, &stop).unwrap();
        assert_eq!(understood::<Ask>(&line).unwrap(), Ask::Clock);
        peer.write_all(b"\"look\",\"closely\":true}\nrest").unwrap();
        let line = lines.hear(LONG, &stop).unwrap();
        let closely = Ask::Look { closely: true };
        assert_eq!(understood::<Ask>(&line).unwrap(), closely);
        drop(peer);
        assert!(matches!(lines.hear(LONG, &stop), Err(Unheard::Closed)));
    }

    #[test]
    fn no_line_and_no_wait_is_without_a_bound() {
        let (mut lines, mut peer) = joined(100);
        let stop = Stop::after(LONG);
        let silent = lines.hear(Duration::from_millis(30), &stop);
        assert!(matches!(silent, Err(Unheard::Silent(_))));
        let over = lines.hear(LONG, &Stop::after(Duration::ZERO));
        assert!(matches!(over, Err(Unheard::Stopped(Cause::OutOfTime))));
        peer.write_all(&[b'x'; 101]).unwrap();
        let endless = lines.hear(LONG, &stop);
        assert!(matches!(endless, Err(Unheard::TooLong(100))));
    }

    #[test]
    fn what_is_no_answer_is_told_as_it_was_said() {
        let greeting = b"Welcome to the echo server! Type quit to exit.\r";
        let said = understood::<Answer>(greeting).unwrap_err().to_string();
        assert!(said.contains("Welcome to the echo server"), "{said}");
    }
}
