//! Operations as values: what may be asked of a ring.

use std::os::fd::RawFd;

use crate::buffers::Span;
use crate::token::{Op, Token};

/// One thing to ask of a ring. `slot` is a direct descriptor of that ring's table; `generation` comes back in
/// the completion.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation {
    /// Accept connections into free slots until cancelled.
    AcceptMulti {
        /// The listening socket.
        listener: RawFd,
    },
    /// Accept one connection into a free slot.
    AcceptOne {
        /// The listening socket.
        listener: RawFd,
    },
    /// Cancel the accepts of `kind` ([`Op::AcceptMulti`] or [`Op::AcceptOne`]; all of that kind).
    CancelAccept {
        /// Which accepts.
        kind: Op,
    },
    /// Connect the socket in `slot` to one of [`Config::targets`](crate::Config::targets).
    Connect {
        /// The socket, bound.
        slot: u32,
        /// Its generation.
        generation: u16,
        /// Index of the target.
        target: u32,
    },
    /// Say, until cancelled, when the connection is readable or gone: all an idle connection costs.
    Poll {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
    },
    /// Receive what is there, without waiting.
    Recv {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
    },
    /// Send a span of the arena without waiting. Completes only when cut short, with the bytes sent
    /// or -EAGAIN or another error; the span is readable until [`Group::settle`](crate::Group::settle).
    Send {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
        /// The bytes.
        span: Span,
    },
    /// Send of `bytes[from..]` what fits, waiting until something does. Always completes, with the bytes sent, and
    /// gives `bytes` back. At most one for a connection at a time.
    SendWait {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
        /// The bytes; the ring owns them until the completion.
        bytes: Vec<u8>,
        /// Where to start.
        from: usize,
    },
    /// Cancel the operation named by `token`. Completes only where there was nothing to cancel.
    Cancel {
        /// What to cancel: a `Poll`, a `SendWait` or a `Connect`.
        token: Token,
    },
    /// Throw away the input that is there, without waiting: what is unread when a socket is closed makes its end a
    /// reset. Needs no memory. Completes only when there was none.
    Discard {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
    },
    /// Say that nothing more will be sent (shutdown(2), SHUT_WR): the other side reads to an end, and what it sends is
    /// received until it has ended too. Always completes, by a worker thread of the kernel.
    Shutdown {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
    },
    /// Make an ordinary file descriptor, closed on exec, of the direct one in `slot`, to ask the kernel what it tells of no
    /// direct one; where [`Group::installs`](crate::Group::installs). Always completes, when it is submitted, with the
    /// descriptor, or -EMFILE and the like. The descriptor is the user's to close, and keeps the connection open until then.
    FdInstall {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
    },
    /// Close the socket in `slot`, which is free from the moment this is submitted. Nothing else may
    /// be in flight on it. Completes only when it failed.
    Close {
        /// The connection.
        slot: u32,
        /// Its generation.
        generation: u16,
    },
    /// Say, until cancelled, when an ordinary descriptor is readable.
    Watch {
        /// The descriptor.
        fd: RawFd,
        /// Comes back as the token's slot.
        slot: u32,
    },
}
