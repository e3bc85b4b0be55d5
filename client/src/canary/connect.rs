//! Fresh TCP connections: from connect(2) to the first byte of the other side, whose arrival the kernel stamps.
//!
//! Each is bound to a source address and a port of the kernel's choice, with SO_REUSEADDR, for a connect(2) without a
//! bind takes no port that any held connection has bound, from whatever address: there may soon be none. That is what
//! other programs on this host meet, so some attempts are made their way first, and counted; few, for the kernel looks
//! through all ports for each. Every connection is closed with a reset, so that none is left in TIME_WAIT. Invariant: an
//! attempt is open exactly as long as its probe is under way.

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
/// How often a connect is tried without a bind.
const UNBOUND_INTERVAL: Duration = Duration::from_millis(250);
/// What is said where the server speaks only when spoken to.
const QUESTION: &[u8] = b"throng canary\n";

#[derive(Debug)]
pub(super) struct Connects {
    target: SocketAddr,
    source: IpAddr,
    /// The server greets; else it is asked, which takes the prober's own wake-up in between.
    is_greeted: bool,
    next_unbound: Duration,
    open: BTreeMap<u64, Attempt>,
}

#[derive(Debug)]
struct Attempt {
    socket: Socket,
    is_to_ask: bool,
}

/// Sockets that are ready to connect.
#[derive(Debug)]
pub(super) struct Prepared {
    /// One that is bound to nothing, to be tried first.
    unbound: Option<Socket>,
    bound: nix::Result<Socket>,
}

/// How a connect began.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) result: nix::Result<()>,
    /// Whether an attempt without a bind found a port; none where none was made.
    pub(super) unbound_has_port: Option<bool>,
}

impl Connects {
    pub(super) fn new(target: SocketAddr, source: IpAddr, is_greeted: bool) -> Connects {
        Connects {
            target,
            source,
            is_greeted,
            next_unbound: Duration::ZERO,
            open: BTreeMap::new(),
        }
    }

    pub(super) fn is_greeted(&self) -> bool {
        self.is_greeted
    }

    pub(super) fn prepare(&mut self, now: Duration) -> Prepared {
        let is_turn = now >= self.next_unbound;
        if is_turn {
            self.next_unbound = now + UNBOUND_INTERVAL;
        }
        Prepared {
            unbound: is_turn.then(|| self.socket().ok()).flatten(),
            bound: self.bound(),
        }
    }

    fn socket(&self) -> std::io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(self.target),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket::stamp(&socket)?;
        Ok(socket)
    }

    fn bound(&self) -> nix::Result<Socket> {
        let bind = || -> std::io::Result<Socket> {
            let socket = self.socket()?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(self.source, 0).into())?;
            Ok(socket)
        };
        bind().map_err(socket::errno)
    }

    /// Starts probe `seq`; `clock` is read right before each attempt, and the last reading counts.
    pub(super) fn send(&mut self, seq: u64, prepared: Prepared, mut clock: impl FnMut()) -> Begun {
        let mut unbound_has_port = None;
        if let Some(socket) = prepared.unbound {
            clock();
            let result = self.connect(seq, socket);
            let has_port = result != Err(Errno::EADDRNOTAVAIL);
            unbound_has_port = Some(has_port);
            if has_port {
                return Begun {
                    result,
                    unbound_has_port,
                };
            }
        }
        let mut bound = prepared.bound;
        let mut result = Err(Errno::EADDRNOTAVAIL);
        for _ in 0..PORTS_TRIED {
            result = bound.and_then(|socket| {
                clock();
                self.connect(seq, socket)
            });
            match result {
                Err(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE) => bound = self.bound(),
                _ => break,
            }
        }
        Begun {
            result,
            unbound_has_port,
        }
    }

    fn connect(&mut self, seq: u64, socket: Socket) -> nix::Result<()> {
        match socket.connect(&self.target.into()).map_err(socket::errno) {
            Ok(()) | Err(Errno::EINPROGRESS) => {
                let is_to_ask = !self.is_greeted;
                self.open.insert(seq, Attempt { socket, is_to_ask });
                Ok(())
            }
            Err(errno) => Err(errno),
        }
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
