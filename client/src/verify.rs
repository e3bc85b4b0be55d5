//! What a connection must hear: greeting, then heartbeats and the echoes of its messages, to the byte.
//!
//! Pure and streaming: bytes may come in any pieces. Heartbeats come between messages, never within one.
//! Invariant: once something was wrong, the verifier stays at that and reads nothing more.

use wire::line::{FAREWELL, GREETING, HEARTBEAT};

use crate::config::Protocol;

/// The letters of a line: no line end, no first letter of a heartbeat, and none that could make a `quit`.
const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNPRSTUVWXYZ01234567";

/// The bytes of one message, each depending on the connection, the message and its own position.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    seed: u64,
    len: u32,
    protocol: Protocol,
}

impl Payload {
    /// Message `number` of `connection`, `len` bytes long (at least 1; of a line the last is its end).
    pub fn new(protocol: Protocol, connection: u64, number: u32, len: u32) -> Payload {
        Payload {
            seed: mix(mix(connection) ^ u64::from(number)),
            len,
            protocol,
        }
    }

    /// Writes the bytes from position `from` on, as many as `out` has. They end at the message's length.
    pub fn write(&self, from: u32, out: &mut [u8]) {
        let mut word = self.word(from);
        for (at, byte) in (from..).zip(out.iter_mut()) {
            if at % 8 == 0 {
                word = self.word(at);
            }
            let raw = (word >> (at % 8 * 8)) as u8;
            *byte = match self.protocol {
                Protocol::Echo => raw,
                Protocol::Line if at + 1 == self.len => b'\n',
                Protocol::Line => LETTERS[usize::from(raw % 32)],
            };
        }
    }

    fn word(&self, at: u32) -> u64 {
        mix(self.seed ^ u64::from(at / 8))
    }
}

/// Where in its stream a connection is. 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verifier {
    at: u32,
    unit: Unit,
    /// The server has said that it ends.
    dismissed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Greeting,
    Between,
    Heartbeat,
    Farewell,
    Message,
    Wrong,
}

/// What some bytes completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The greeting is complete.
    pub greeting: bool,
    /// Heartbeats completed.
    pub heartbeats: u32,
    /// The expected message is complete.
    pub message: bool,
    /// A byte that should not be; the verifier is done with this connection.
    pub wrong: Option<Wrong>,
}

/// Where a wrong byte was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// In the greeting.
    Greeting,
    /// In a heartbeat, or where nothing was expected.
    Unexpected,
    /// In the echo of a message.
    Message,
}

impl Verifier {
    /// The start of a connection.
    pub fn new(protocol: Protocol) -> Verifier {
        let unit = match protocol {
            Protocol::Line => Unit::Greeting,
            Protocol::Echo => Unit::Between,
        };
        Verifier {
            at: 0,
            unit,
            dismissed: false,
        }
    }

    /// True once messages may be sent: the greeting, where there is one, was right.
    pub fn is_greeted(&self) -> bool {
        !matches!(self.unit, Unit::Greeting | Unit::Wrong)
    }

    /// True once the server has said that it ends: the connection is to be closed, and whoever closes it, that is no loss
    /// without warning.
    pub fn is_dismissed(&self) -> bool {
        self.dismissed
    }

    /// Hears `input`. `expected` is the message whose echo is due, if one is.
    pub fn hear(&mut self, mut input: &[u8], mut expected: Option<Payload>) -> Heard {
        let mut heard = Heard::default();
        let mut scratch = [0; 256];
        while let Some(first) = input.first() {
            if self.unit == Unit::Between {
                let beats = expected.is_none_or(|p| p.protocol == Protocol::Line);
                self.at = 0;
                self.unit = match expected {
                    _ if beats && *first == HEARTBEAT[0] => Unit::Heartbeat,
                    _ if beats && *first == FAREWELL[0] => Unit::Farewell,
                    Some(_) => Unit::Message,
                    None => return self.wrong(heard, Wrong::Unexpected),
                };
            }
            let at = self.at as usize;
            let (right, is_last): (&[u8], bool) = match (self.unit, expected) {
                (Unit::Greeting, _) => piece(GREETING, at, input.len()),
                (Unit::Heartbeat, _) => piece(HEARTBEAT, at, input.len()),
                (Unit::Farewell, _) => piece(FAREWELL, at, input.len()),
                (Unit::Message, Some(payload)) => {
                    let rest = payload.len as usize - at;
                    let len = rest.min(input.len()).min(scratch.len());
                    payload.write(self.at, &mut scratch[..len]);
                    (&scratch[..len], len == rest)
                }
                (Unit::Message | Unit::Between | Unit::Wrong, _) => {
                    return self.wrong(heard, Wrong::Unexpected);
                }
            };
            if input[..right.len()] != *right {
                let wrong = match self.unit {
                    Unit::Greeting => Wrong::Greeting,
                    Unit::Message => Wrong::Message,
                    _ => Wrong::Unexpected,
                };
                return self.wrong(heard, wrong);
            }
            input = &input[right.len()..];
            self.at += right.len() as u32;
            if is_last {
                match self.unit {
                    Unit::Greeting => heard.greeting = true,
                    Unit::Heartbeat => heard.heartbeats += 1,
                    Unit::Farewell => self.dismissed = true,
                    _ => {
                        heard.message = true;
                        expected = None;
                    }
                }
                self.unit = Unit::Between;
            }
        }
        heard
    }

    fn wrong(&mut self, heard: Heard, wrong: Wrong) -> Heard {
        self.unit = Unit::Wrong;
        Heard {
            wrong: Some(wrong),
            ..heard
        }
    }
}

/// At most `most` bytes of `unit` from `at` on, and whether they end it.
fn piece(unit: &[u8], at: usize, most: usize) -> (&[u8], bool) {
    let end = unit.len().min(at + most);
    (&unit[at..end], end == unit.len())
}

/// SplitMix64's finaliser.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(payload: Payload) -> Vec<u8> {
        let mut out = vec![0; payload.len as usize];
        payload.write(0, &mut out);
        out
    }

    proptest! {
        /// Greeting, messages and heartbeats in any order and any pieces; then one flipped byte is found.
        #[test]
        fn hears_everything_at_every_split(
            line: bool,
            connection: u64,
            len in 1u32..700,
            beats in proptest::collection::vec(0usize..4, 1..8),
            pieces in proptest::collection::vec(1usize..300, 1..20),
            flip: u16,
        ) {
            let protocol = if line { Protocol::Line } else { Protocol::Echo };
            let mut stream = Vec::new();
            let mut ends = Vec::new();
            if line { stream.extend_from_slice(GREETING) }
            for (number, beats) in (0..).zip(&beats) {
                if line { stream.extend(HEARTBEAT.repeat(*beats)) }
                stream.extend(bytes(Payload::new(protocol, connection, number, len)));
                ends.push(stream.len());
            }
            let run = |stream: &[u8]| {
                let mut verifier = Verifier::new(protocol);
                let (mut at, mut number, mut heard_beats, mut greeted) = (0, 0u32, 0, 0);
                for piece in pieces.iter().cycle() {
                    // A closed loop: nothing past the message under way can be there yet.
                    let limit = ends.get(number as usize).copied().unwrap_or(stream.len());
                    let end = limit.min(at + piece);
                    if at == end { break }
                    let expected = Payload::new(protocol, connection, number, len);
                    let heard = verifier.hear(&stream[at..end], Some(expected));
                    if heard.wrong.is_some() { return Err(number) }
                    at = end;
                    number += u32::from(heard.message);
                    greeted += u32::from(heard.greeting);
                    heard_beats += heard.heartbeats as usize;
                }
                Ok((number as usize, heard_beats, greeted))
            };
            let wanted_beats = if line { beats.iter().sum() } else { 0 };
            prop_assert_eq!(run(&stream), Ok((beats.len(), wanted_beats, u32::from(line))));
            let at = usize::from(flip) % stream.len();
            stream[at] ^= 0x80;
            prop_assert!(run(&stream).is_err());
        }

        #[test]
        fn a_payload_is_the_same_from_any_position(line: bool, len in 1u32..200, from in 0u32..200, connection: u64) {
            let protocol = if line { Protocol::Line } else { Protocol::Echo };
            let payload = Payload::new(protocol, connection, 3, len);
            let from = from.min(len);
            let mut tail = vec![0; (len - from) as usize];
            payload.write(from, &mut tail);
            prop_assert_eq!(&bytes(payload)[from as usize..], &tail[..]);
        }

        /// A line is one line, never a heartbeat's beginning, and never asks the server to close.
        #[test]
        fn a_line_is_safe_to_send(len in 1u32..40, connection: u64, number: u32) {
            let line = bytes(Payload::new(Protocol::Line, connection, number, len));
            prop_assert_eq!(line.iter().position(|b| *b == b'\n'), Some(len as usize - 1));
            prop_assert_ne!(line[0], HEARTBEAT[0]);
            prop_assert!(!line.trim_ascii().eq_ignore_ascii_case(b"quit"));
        }
    }

    #[test]
    fn messages_differ_by_connection_and_number() {
        let one = bytes(Payload::new(Protocol::Echo, 1, 1, 64));
        assert_ne!(one, bytes(Payload::new(Protocol::Echo, 2, 1, 64)));
        assert_ne!(one, bytes(Payload::new(Protocol::Echo, 1, 2, 64)));
    }

    #[test]
    fn a_farewell_is_understood_between_messages_at_every_split() {
        let payload = Payload::new(Protocol::Line, 3, 1, 40);
        let text = [GREETING, b"ok\n", &bytes(payload)[..], FAREWELL, b"ok\n"].concat();
        for at in 0..=text.len() {
            let mut verifier = Verifier::new(Protocol::Line);
            let first = verifier.hear(&text[..at], Some(payload));
            let expected = (!first.message).then_some(payload);
            let last = verifier.hear(&text[at..], expected);
            assert_eq!((first.wrong, last.wrong), (None, None), "split at {at}");
            assert!(verifier.is_dismissed() && verifier.is_greeted());
        }
    }

    #[test]
    fn bytes_nobody_asked_for_are_wrong() {
        let mut verifier = Verifier::new(Protocol::Line);
        assert!(verifier.hear(GREETING, None).greeting && verifier.is_greeted());
        assert_eq!(verifier.hear(b"x", None).wrong, Some(Wrong::Unexpected));
        assert!(!verifier.is_greeted());
        assert_eq!(
            Verifier::new(Protocol::Line).hear(b"Welcame", None).wrong,
            Some(Wrong::Greeting)
        );
        assert_eq!(size_of::<Verifier>(), 8);
    }
}
