//! Servers of others: any program that listens on a port and sends every byte back, measured as an engine is.
//!
//! Here is what a peer is, as plain data; [`guard`] starts and ends one, [`tree`] says what it uses.
//!
//! Invariant: a [`PeerName`] fits into a table and is no engine's name, and a [`Peer`]'s command names its port.

pub mod guard;
pub mod tree;

use std::fmt;
use std::str::FromStr;

use arrayvec::ArrayString;
use serde::{Deserialize, Serialize};

use crate::scenario::Engine;

/// The most characters a peer's name has.
pub const MOST_NAME_CHARS: usize = 24;

/// What a peer is called: letters, digits, `-` and `_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(ArrayString<MOST_NAME_CHARS>);

impl PeerName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(format!(
                "{name:?} is no name for a peer: letters, digits, - and _ make one"
            ));
        }
        if Engine::built_in(name).is_some() {
            return Err(format!(
                "{name:?} is an engine of Throng's own: give the peer another name"
            ));
        }
        ArrayString::from(name).map(Self).map_err(|_| {
            format!("{name:?} is too long for a peer's name: at most {MOST_NAME_CHARS} characters")
        })
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// A program to be measured beside the engines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// What it is called.
    #[serde(with = "as_text")]
    pub name: PeerName,
    /// How it is started: words as a shell would split them, in which `{port}` and `{host}` stand for where it is to
    /// listen.
    pub command: String,
}

impl FromStr for Peer {
    type Err = String;

    /// `name=command`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .ok_or("a peer is named as NAME='COMMAND with {port}'")?;
        let peer = Self {
            name: name.trim().parse()?,
            command: command.trim().to_owned(),
        };
        // Said now, before anything starts.
        words(&peer.command, "127.0.0.1", 1)?;
        Ok(peer)
    }
}

/// The program and its arguments that `command` stands for.
///
/// # Errors
/// What is wrong with it.
pub fn words(command: &str, host: &str, port: u16) -> Result<Vec<String>, String> {
    if !command.contains("{port}") {
        return Err(format!(
            "{command:?} does not say {{port}}: where is it to listen?"
        ));
    }
    let words = shell_words::split(command)
        .map_err(|cause| format!("{command:?} cannot be split into words: {cause}"))?;
    let port = port.to_string();
    Ok(words
        .into_iter()
        .map(|word| word.replace("{port}", &port).replace("{host}", host))
        .collect())
}

/// A [`PeerName`] as serde has it.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::PeerName;

    pub fn serialize<S: Serializer>(name: &PeerName, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(name)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PeerName, D::Error> {
        let name = String::deserialize(from)?;
        name.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_and_a_command() {
        let peer: Peer = "go-echo=./echo --listen {host}:{port} 'a b'"
            .parse()
            .unwrap();
        assert_eq!(peer.name.as_str(), "go-echo");
        assert_eq!(
            words(&peer.command, "127.0.0.1", 4711).unwrap(),
            ["./echo", "--listen", "127.0.0.1:4711", "a b"]
        );
        let text = serde_json::to_string(&peer).unwrap();
        assert!(text.contains(r#""name":"go-echo""#), "{text}");
        assert_eq!(serde_json::from_str::<Peer>(&text).unwrap(), peer);
    }

    #[test]
    fn what_is_no_peer_is_refused_in_words() {
        let bad = [
            ("./echo {port}", "NAME="),
            ("=./echo {port}", "no name"),
            ("a b=./echo {port}", "no name"),
            ("grün=./echo {port}", "no name"),
            ("epoll=./echo {port}", "Throng's own"),
            ("tokio-uring=./echo {port}", "Throng's own"),
            ("a-name-that-is-much-too-long=./echo {port}", "too long"),
            ("go=./echo", "{port}"),
            ("go=", "{port}"),
            ("go=./echo '{port}", "split"),
        ];
        for (text, said) in bad {
            let error = text.parse::<Peer>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
