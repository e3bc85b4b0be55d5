//! What is done to a server, one fault each: its name, what it means and how much of the connections it takes.
//!
//! Pure. How each is brought about is in [`ends`](super::ends), [`shortage`](super::shortage) and
//! [`network`](super::network).

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::scenario::Engine;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A client process is killed (SIGKILL), with a tenth of the connections
    ClientKill,
    /// A tenth of the connections is reset at once
    Resets,
    /// A tenth of the clients sends and does not read
    SlowReaders,
    /// A tenth of the peers vanishes without a word: nothing of them comes through any more
    HalfOpen,
    /// Nine tenths of the clients are dropped at once, and all connect again at once
    Storm,
    /// A tenth of the clients connects at once while the server is stopped, and its listen backlog is 16
    AcceptQueue,
    /// A tenth connects, talks and is reset, with 64 entries in the completion queue
    TinyCq,
    /// A tenth talks at once, with two receive buffers
    FewBuffers,
    /// More clients than the server's tables have slots, until others leave
    TableFull,
    /// More clients than the server may open files, until others leave (epoll)
    Files,
    /// The server's memory control group is almost at its limit
    MemoryGroup,
    /// The server is stopped for 3 s (SIGSTOP), and goes on (SIGCONT)
    Stopped,
    /// The wall clock of the server steps an hour ahead, or back
    ClockStep,
    /// The disk of the server's log is full, while a tenth of the connections is reset
    LogDiskFull,
    /// The server is killed (SIGKILL) and started again; all clients come back
    ServerKill,
    /// The server is told to end (SIGTERM), tells its clients, and another is started in its place
    Drain,
    /// Another server takes the listening sockets over, and the first one drains
    Takeover,
}

/// What becomes of those that nobody meant, and of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The server goes on, and so does everybody else.
    Some,
    /// All lose their connection and come back.
    All,
}

impl Fault {
    /// The name that `--only` takes.
    pub fn name(self) -> String {
        // None is skipped.
        self.to_possible_value()
            .map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// What it means, in a sentence.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        let help = value.and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// Whom it hits.
    pub fn kind(self) -> Kind {
        match self {
            Self::ServerKill | Self::Drain | Self::Takeover => Kind::All,
            _ => Kind::Some,
        }
    }

    /// Of `connections`, how many it hits.
    pub fn victims(self, connections: u64) -> u64 {
        match self {
            Self::Stopped | Self::ClockStep => 0,
            Self::Storm => connections / 10 * 9,
            // Those that fit and those that do not must be many more than the rounding of tables.
            Self::TableFull | Self::Files => connections / 2,
            _ if self.kind() == Kind::All => connections,
            _ => connections / 10,
        }
    }

    /// The engine it can be done to, of a run with `engine`; `None` where it makes no sense.
    pub fn engine(self, engine: Engine) -> Option<Engine> {
        let needs_rings = matches!(self, Self::TinyCq | Self::FewBuffers | Self::TableFull);
        match self {
            Self::Files => Some(Engine::Epoll),
            _ if needs_rings && engine != Engine::Uring => None,
            _ => Some(engine),
        }
    }

    /// Whether those who come have to speak first. Of a full accept queue the kernel drops the last part of a handshake, and of
    /// one with a SYN cookie it keeps nothing: what the client says next finishes it, and who only listens waits for ever.
    pub fn fills_accept_queue(self) -> bool {
        matches!(
            self,
            Self::Storm | Self::AcceptQueue | Self::TableFull | Self::Files
        )
    }

    /// Whether a server with the usual flags can go through it again and again, in any order with others.
    pub fn is_for_any_server(self) -> bool {
        matches!(
            self,
            Self::ClientKill | Self::Resets | Self::SlowReaders | Self::Storm | Self::Stopped
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_and_says_what_it_is() {
        for fault in Fault::value_variants() {
            assert!(
                !fault.name().is_empty() && fault.about().len() > 20,
                "{fault:?}"
            );
            assert!(fault.victims(1_000) <= 1_000);
        }
        assert_eq!(Fault::ClientKill.to_string(), "client-kill");
    }
}
