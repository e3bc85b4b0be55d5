//! What is remembered of one connection while it is made, held and closed.
//!
//! Pure memory, a few bytes for each of millions. Invariant: a slot is given back only when nothing is in flight on it
//! ([`Conn::is_quiet`]), and its generation then grows.

use crate::verify::Verifier;

/// Where in its life a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No socket yet, or none until it is made again, or the one it had met a port in use.
    Waiting,
    /// Its connect is in flight.
    Connecting,
    /// Established.
    Held,
    /// To be closed in order: it has been said that nothing more is sent, and the server is to end too.
    Ending,
    /// Lost, or to be closed; operations on it are ending.
    Closing,
    /// Never established, or closed for good.
    Gone,
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conn {
    pub(crate) phase: Phase,
    pub(crate) flags: Flags,
    /// Counts the sockets its slot has had.
    pub(crate) generation: u16,
    /// Attempts to make it again since it was last of use; 0: it was never lost.
    pub(crate) attempts: u8,
    pub(crate) verifier: Verifier,
    /// Milliseconds of the run at its last heartbeat, or when it was established; while it is lost, when that was.
    pub(crate) last_heartbeat_ms: u32,
    /// Microseconds of the run, wrapping, at the start of its connect or of the message under way.
    pub(crate) since_us: u32,
    /// Number of the message under way, or of the next one.
    pub(crate) message: u32,
    /// Its place among those that send, or churn, by a schedule.
    pub(crate) member: u32,
}

const _: () = assert!(size_of::<Conn>() <= 32);

/// What is in flight on a connection, and what is due of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

impl Flags {
    /// A multishot poll is armed.
    pub(crate) const POLL: Flags = Flags(1);
    /// A receive is in flight.
    pub(crate) const RECV: Flags = Flags(1 << 1);
    /// The poll spoke while the receive was in flight: one more is due.
    pub(crate) const RECV_AGAIN: Flags = Flags(1 << 2);
    /// A waiting send is in flight.
    pub(crate) const SEND_WAIT: Flags = Flags(1 << 3);
    /// Messages are exchanged on it, or it churns by a schedule.
    pub(crate) const ACTIVE: Flags = Flags(1 << 4);
    /// A message is under way.
    pub(crate) const AWAITS: Flags = Flags(1 << 5);
    /// Its connect was cancelled for taking too long.
    pub(crate) const TIMED_OUT: Flags = Flags(1 << 6);
    /// It has had a heartbeat.
    pub(crate) const BEATEN: Flags = Flags(1 << 7);
    /// The server has finished sending, or the connection is gone: receive until a receive says so. The end may
    /// come with the last bytes, and is then announced only once.
    pub(crate) const HUNG_UP: Flags = Flags(1 << 8);
    /// A byte has come.
    pub(crate) const HEARD: Flags = Flags(1 << 9);
    /// It is closed and made again while others are held.
    pub(crate) const CHURNS: Flags = Flags(1 << 10);
    /// From the close, or the connect, that begins a churn cycle to its echo.
    pub(crate) const CYCLING: Flags = Flags(1 << 11);
    /// Once closed, it is to be made again.
    pub(crate) const RECONNECTS: Flags = Flags(1 << 12);
    /// It is in the list of those watched for their timeout.
    pub(crate) const WATCHED: Flags = Flags(1 << 13);
    /// It was lost, and is to be made again until it is established.
    pub(crate) const LOST: Flags = Flags(1 << 14);
    /// The end of sending is in flight.
    pub(crate) const SHUTDOWN: Flags = Flags(1 << 15);

    /// What outlives a socket.
    const LASTING: u16 =
        Self::WATCHED.0 | Self::ACTIVE.0 | Self::CHURNS.0 | Self::CYCLING.0 | Self::LOST.0;

    const IN_FLIGHT: u16 = Self::POLL.0 | Self::RECV.0 | Self::SEND_WAIT.0 | Self::SHUTDOWN.0;

    pub(crate) fn has(self, flag: Flags) -> bool {
        self.0 & flag.0 != 0
    }

    pub(crate) fn set(&mut self, flag: Flags) {
        self.0 |= flag.0;
    }

    /// Clears `flag`, and says whether it was set.
    pub(crate) fn take(&mut self, flag: Flags) -> bool {
        let had = self.has(flag);
        self.0 &= !flag.0;
        had
    }
}

impl Conn {
    pub(crate) fn new(verifier: Verifier) -> Conn {
        Conn {
            phase: Phase::Waiting,
            flags: Flags::default(),
            generation: 0,
            attempts: 0,
            verifier,
            last_heartbeat_ms: 0,
            since_us: 0,
            message: 0,
            member: 0,
        }
    }

    /// Forgets all of its last socket, but for what outlives one.
    pub(crate) fn renew(&mut self, verifier: Verifier) {
        *self = Conn {
            flags: Flags(self.flags.0 & Flags::LASTING),
            generation: self.generation,
            attempts: self.attempts,
            last_heartbeat_ms: self.last_heartbeat_ms,
            message: self.message,
            member: self.member,
            ..Conn::new(verifier)
        };
    }

    /// A message may be sent on it: it is greeted, and the message before was sent and answered.
    pub(crate) fn is_free(&self) -> bool {
        let is_busy = self.flags.has(Flags::AWAITS) || self.flags.has(Flags::SEND_WAIT);
        self.phase == Phase::Held && self.verifier.is_greeted() && !is_busy
    }

    /// What comes in on it is read.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.phase, Phase::Held | Phase::Ending)
    }

    /// Nothing is in flight on it: its slot may be closed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.flags.0 & Flags::IN_FLIGHT == 0
    }
}
