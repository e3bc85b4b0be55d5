//! The seed's protocol: a greeting, each line echoed, `quit` closes, a heartbeat at every tick, and a farewell before
//! the server ends.
//!
//! Invariant: a line is echoed whole or not yet; a line of more than [`MAX_LINE_BYTES`] is never kept.

use memchr::memchr;

use crate::session::{Close, Out, Session};

/// What a server says first.
pub const GREETING: &[u8] = b"Welcome to the echo server! Type quit to exit.\r\n";
/// What a server says at every heartbeat.
pub const HEARTBEAT: &[u8] = b"ok\n";
/// What a server says to every client before it ends: go, and come again elsewhere.
pub const FAREWELL: &[u8] = b"bye\n";
/// The longest line, its line end included. A longer one closes the connection.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// One connection of the `line` protocol.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// Bytes of the unfinished line already searched for a line end, so that a line that arrives byte by
    /// byte costs linear time.
    searched: u32,
}

impl Session for Line {
    fn on_open(&mut self, out: &mut Out<'_>) {
        out.put(GREETING);
    }

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let from = (self.searched as usize).min(rest.len());
            let Some(end) = memchr(b'\n', &rest[from..]).map(|at| from + at + 1) else {
                if rest.len() >= MAX_LINE_BYTES {
                    out.close(Close::TooLong);
                    return input.len();
                }
                self.searched = rest.len() as u32;
                return consumed;
            };
            let line = &rest[..end];
            if line.len() > MAX_LINE_BYTES {
                out.close(Close::TooLong);
                return input.len();
            }
            if is_quit(line) {
                out.close(Close::Done);
                return input.len();
            }
            if line.len() > out.room() {
                self.searched = (end - 1) as u32;
                return consumed;
            }
            out.put(line);
            consumed += end;
            self.searched = 0;
        }
    }

    fn on_tick(&mut self, out: &mut Out<'_>) {
        out.put(HEARTBEAT);
    }

    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>) {
        out.put(message);
    }

    /// An unfinished last line is a line too, as `readline` has it.
    fn on_eof(&mut self, rest: &[u8], out: &mut Out<'_>) {
        if !is_quit(rest) {
            out.put(rest);
        }
    }
}

/// `quit` in any case, with blanks around it.
fn is_quit(line: &[u8]) -> bool {
    line.trim_ascii().eq_ignore_ascii_case(b"quit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `pieces` as an engine would, with `room` bytes of output at a time.
    fn converse<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
        room: usize,
    ) -> (Vec<u8>, Option<Close>) {
        let mut session = Line::default();
        let mut memory = vec![0; room];
        let (mut kept, mut said) = (Vec::new(), Vec::new());
        for piece in pieces {
            kept.extend_from_slice(piece);
            loop {
                let mut out = Out::new(&mut memory);
                let consumed = session.on_bytes(&kept, &mut out);
                assert!(!out.overflowed());
                let (written, closing) = (out.written(), out.closing());
                said.extend_from_slice(&memory[..written]);
                kept.drain(..consumed);
                if closing.is_some() {
                    return (said, closing);
                }
                if consumed == 0 {
                    break;
                }
            }
        }
        let mut out = Out::new(&mut memory);
        session.on_eof(&kept, &mut out);
        let written = out.written();
        said.extend_from_slice(&memory[..written]);
        (said, None)
    }

    #[test]
    fn greets_and_beats() {
        let mut memory = [0; 128];
        let mut out = Out::new(&mut memory);
        Line::default().on_open(&mut out);
        Line::default().on_tick(&mut out);
        let written = out.written();
        assert_eq!(
            &memory[..written],
            b"Welcome to the echo server! Type quit to exit.\r\nok\n"
        );
    }

    #[test]
    fn the_same_conversation_at_every_split() {
        let text = b"one\r\n\ntwo words\n  QuIt \r\nnever\n";
        for at in 0..=text.len() {
            let (said, close) = converse([&text[..at], &text[at..]], Out::MIN_ROOM);
            assert_eq!(said, b"one\r\n\ntwo words\n", "split at {at}");
            assert_eq!(close, Some(Close::Done));
        }
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_byte_more_closes() {
        let mut line = vec![b'x'; MAX_LINE_BYTES - 1];
        line.push(b'\n');
        assert_eq!(converse([&line[..]], Out::MIN_ROOM), (line.clone(), None));
        line.insert(0, b'x');
        assert_eq!(
            converse([&line[..]], Out::MIN_ROOM),
            (Vec::new(), Some(Close::TooLong))
        );
        let endless = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(
            converse(endless.chunks(100), Out::MIN_ROOM).1,
            Some(Close::TooLong)
        );
    }

    #[test]
    fn an_unfinished_last_line_is_echoed() {
        assert_eq!(converse([&b"a\nbc"[..]], 100).0, b"a\nbc");
        assert_eq!(converse([&b"a\nquit"[..]], 100).0, b"a\n");
    }

    proptest! {
        #[test]
        fn lines_come_back_whole_and_in_order(
            lines in proptest::collection::vec("[a-p ]{0,60}", 0..40),
            piece in 1usize..200,
            room in 64usize..400,
        ) {
            let text: Vec<u8> = lines.iter().flat_map(|l| [l.as_bytes(), b"\n"].concat()).collect();
            let (said, close) = converse(text.chunks(piece), room);
            prop_assert_eq!(close, None);
            prop_assert_eq!(said, text);
        }
    }
}
