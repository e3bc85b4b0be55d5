//! Fresh TCP connections: from connect(2) to the first byte of the other side, whose arrival the kernel stamps.
//!
//! Each is bound to a source address and a port of the kernel's choice, with SO_REUSEADDR: without
//! a bind, connect(2) takes no port that any held connection has bound, from whatever address, and there would soon be
//! none. Each is closed with a reset, so that none is left in TIME_WAIT. Invariant: an attempt is open exactly as long as
//! its probe is under way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::ledger::Ledger;
use super::socket;

/// Other ports that are tried when a connection of the same addresses and ports exists.
const PORTS_TRIED: u32 = 8;
/// What is said where the server speaks only when spoken to.
const QUESTION: &[u8] = b"throng canary\n";

#[derive(Debug)]
pub(super) struct Connects {
    target: SocketAddr,
    source: IpAddr,
    /// The server greets; else it is asked, which takes the prober's own wake-up in between.
    is_greeted: bool,
    open: BTreeMap<u64, Attempt>,
}

#[derive(Debug)]
struct Attempt {
    socket: Socket,
    is_to_ask: bool,
}

/// A socket that is ready to connect.
#[derive(Debug)]
pub(super) struct Prepared(nix::Result<Socket>);

impl Connects {
    pub(super) fn new(target: SocketAddr, source: IpAddr, is_greeted: bool) -> Connects {
        Connects {
            target,
            source,
            is_greeted,
            open: BTreeMap::new(),
        }
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.is_greeted
    }

    pub(super) fn prepare(&self) -> Prepared {
        Prepared(self.bound().map_err(socket::errno))
    }

    fn bound(&self) -> std::io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(self.target),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket::stamp(&socket)?;
        socket.bind(&SocketAddr::new(self.source, 0).into())?;
        Ok(socket)
    }

    /// Starts probe `seq`; `clock` is read right before each attempt, and the last reading counts.
    pub(super) fn send(
        &mut self,
        seq: u64,
        prepared: Prepared,
        mut clock: impl FnMut(),
    ) -> nix::Result<()> {
        let mut socket = prepared.0;
        for _ in 0..PORTS_TRIED {
            let bound = socket?;
            clock();
            match bound.connect(&self.target.into()).map_err(socket::errno) {
                Ok(()) | Err(Errno::EINPROGRESS) => {
                    let attempt = Attempt {
                        socket: bound,
                        is_to_ask: !self.is_greeted,
                    };
                    self.open.insert(seq, attempt);
                    return Ok(());
                }
                Err(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE) => {
                    socket = self.bound().map_err(socket::errno);
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EADDRNOTAVAIL)
    }

    /// Looks at each attempt, and closes those that are answered or have failed.
    pub(super) fn receive(&mut self, ledger: &mut Ledger, now: impl Fn() -> Duration) {
        self.open.retain(|seq, attempt| {
            match attempt.first_byte() {
                Ok(Some(stamp)) => ledger.answered(*seq, stamp, now()),
                Ok(None) => return true,
                Err(why) => ledger.failed(*seq, &why),
            }
            false
        });
    }

    /// Closes the attempt of a probe that was given up.
    pub(super) fn give_up(&mut self, seq: u64) {
        self.open.remove(&seq);
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.open.values().map(|attempt| {
            let wanted = match attempt.is_to_ask {
                true => PollFlags::POLLOUT,
                false => PollFlags::POLLIN,
            };
            (attempt.socket.as_fd(), wanted)
        })
    }
}

impl Attempt {
    /// The first byte, once it is there, with its stamp; else why there will be none.
    fn first_byte(&mut self) -> Result<Option<Option<Duration>>, String> {
        if self.is_to_ask {
            // While it connects, this is EAGAIN.
            match self.socket.send(QUESTION).map_err(socket::errno) {
                Ok(_) => self.is_to_ask = false,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(format!("{errno:?}")),
            }
        }
        match socket::receive(&self.socket, &mut [0; 256]) {
            Ok((0, _)) => Err("closed before the first byte".into()),
            Ok((_, stamp)) => Ok(Some(stamp)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(format!("{errno:?}")),
        }
    }
}
