//! The contract between an engine and what is said on a connection.
//!
//! Owns: the [`Session`] trait and [`Out`], the bounded place a session writes to.
//! Invariant: a session never owns input or output. What it did not consume and what could not be sent
//! yet is kept by the engine, within the engine's bounds.

/// One connection's half of a protocol.
///
/// An engine calls these in this order: `on_open` once; then `on_bytes`, `on_tick` and `on_message` in any
/// order; then `on_eof` at most once, when the peer has finished sending. After a session asked to
/// close ([`Out::close`]) it is not called again.
///
/// What is written to `out` is sent in the order of the calls. `out` has at least [`Out::MIN_ROOM`] bytes
/// of room in `on_open`, `on_bytes` and `on_eof`; elsewhere it may have none, when the peer does not read.
pub trait Session {
    /// The connection is established: greet.
    fn on_open(&mut self, out: &mut Out<'_>);

    /// `input` is everything received and not yet consumed, oldest byte first. Returns how many bytes of it
    /// are done with (at most `input.len()`).
    ///
    /// The rest is given again, at the same place, together with what has arrived since. A session that lacks
    /// room in `out` consumes less and is called again once there is room; it needs no state for that.
    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize;

    /// The heartbeat is due. Called at the interval the server was started with, at a phase of the
    /// connection's own.
    fn on_tick(&mut self, out: &mut Out<'_>);

    /// Something was published to every connection.
    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>);

    /// The peer has finished sending; `rest` was never consumed. What is written here is still sent, then the
    /// connection is closed.
    fn on_eof(&mut self, rest: &[u8], out: &mut Out<'_>);
}

/// Why a session asked for its connection to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The conversation is over.
    Done,
    /// The peer sent a unit (a line) longer than the protocol allows.
    TooLong,
}

/// Where a session writes: a fixed piece of the engine's memory, never grown.
#[derive(Debug)]
pub struct Out<'a> {
    room: &'a mut [u8],
    len: usize,
    close: Option<Close>,
    overflowed: bool,
}

impl<'a> Out<'a> {
    /// The least room an engine offers in `on_open`, `on_bytes` and `on_eof`: one longest line with its line end.
    pub const MIN_ROOM: usize = crate::line::MAX_LINE_BYTES;

    /// An empty `Out` over `room`.
    pub fn new(room: &'a mut [u8]) -> Self {
        Out {
            room,
            len: 0,
            close: None,
            overflowed: false,
        }
    }

    /// Bytes that can still be written.
    pub fn room(&self) -> usize {
        self.room.len() - self.len
    }

    /// Writes all of `bytes`, or nothing where there is too little room: then it returns false, and the engine
    /// learns of it ([`Out::overflowed`]).
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.room() {
            self.overflowed = true;
            return false;
        }
        self.room[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    /// Asks for the connection to be closed once all that was written has been sent.
    pub fn close(&mut self, why: Close) {
        self.close.get_or_insert(why);
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        self.len
    }

    /// Whether, and why, the session asked to close.
    pub fn closing(&self) -> Option<Close> {
        self.close
    }

    /// True when a `put` found too little room: something the session wanted to say was not said.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }
}
