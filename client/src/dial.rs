//! Sockets bound to their source, ready to connect.
//!
//! Touches socket(2), setsockopt(2), bind(2). Invariant: every assignment a worker takes ends as a socket or
//! as a failure; a port in use costs a spare assignment and is counted.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kernel_tuning::limit::Step;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::counters::Shared;
use crate::source::{Assignment, Plan};

/// A bound socket, and what it was made by.
pub(crate) struct Dialled {
    pub(crate) socket: OwnedFd,
    pub(crate) assignment: Assignment,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
    /// The address whose bind failed.
    pub(crate) source: Option<IpAddr>,
}

impl Failure {
    /// A connect failed.
    pub(crate) fn connect(errno: i32) -> Failure {
        Failure {
            step: Step::Connect,
            errno,
            source: None,
        }
    }
}

/// One worker's share of the plan: every `stride`-th assignment.
pub(crate) struct Dialler<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    next: u64,
    stride: u64,
    end: u64,
    /// Ports that were taken, at bind or at connect.
    pub(crate) collisions: u64,
}

impl<'a> Dialler<'a> {
    /// The share of worker `number` of `workers` in `connections`.
    pub(crate) fn new(
        plan: &'a Plan,
        shared: &'a Shared,
        number: u64,
        workers: u64,
        connections: u64,
    ) -> Self {
        Dialler {
            plan,
            shared,
            next: number,
            stride: workers,
            end: connections,
            collisions: 0,
        }
    }

    /// Assignments not yet taken.
    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.next).div_ceil(self.stride)
    }

    /// A socket for the next assignment, or why none could be had for it. None: all were taken.
    pub(crate) fn next(&mut self) -> Option<Result<Dialled, Failure>> {
        if self.next >= self.end {
            return None;
        }
        let assignment = self.plan.assignment(self.next)?;
        self.next += self.stride;
        Some(self.dial(assignment))
    }

    /// A socket from the spares, in place of one whose port was taken when it connected.
    pub(crate) fn replace(&mut self) -> Result<Dialled, Failure> {
        self.collisions += 1;
        match self.spare() {
            Some(assignment) => self.dial(assignment),
            None => Err(Failure::connect(libc::EADDRNOTAVAIL)),
        }
    }

    fn dial(&mut self, mut assignment: Assignment) -> Result<Dialled, Failure> {
        loop {
            match dial(assignment) {
                Err(failure) if failure.errno == libc::EADDRINUSE => {
                    self.collisions += 1;
                    assignment = self.spare().ok_or(failure)?;
                }
                result => return result,
            }
        }
    }

    fn spare(&self) -> Option<Assignment> {
        self.plan
            .assignment(self.shared.next_spare.fetch_add(1, Relaxed))
    }
}

/// Whether `address` is one this host can connect from. It takes no port, of which the kernel may have none to give.
///
/// # Errors
/// That of bind(2), EADDRNOTAVAIL where it is not.
pub(crate) fn check_source(address: IpAddr) -> Result<(), Failure> {
    let source = SocketAddr::new(address, 0);
    let socket = unbound(source).map_err(failed(Step::Socket, None))?;
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
        .map_err(|errno| failed(Step::Socket, None)(errno.into()))?;
    bind(socket, source).map(drop)
}

/// A socket for `assignment` and no other.
///
/// # Errors
/// That of socket(2) or bind(2).
pub(crate) fn dial(assignment: Assignment) -> Result<Dialled, Failure> {
    let socket = unbound(assignment.source).map_err(failed(Step::Socket, None))?;
    let socket = bind(socket, assignment.source)?;
    Ok(Dialled { socket, assignment })
}

fn bind(socket: Socket, source: SocketAddr) -> Result<OwnedFd, Failure> {
    socket
        .bind(&source.into())
        .map_err(failed(Step::Bind, Some(source.ip())))?;
    Ok(OwnedFd::from(socket))
}

fn failed(step: Step, source: Option<IpAddr>) -> impl Fn(io::Error) -> Failure {
    move |error| Failure {
        step,
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        source,
    }
}

fn unbound(source: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(source),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // From the first use of the port on, or a second run meets EADDRINUSE.
    socket.set_reuse_address(true)?;
    // Closing resets: no TIME_WAIT, and no million FINs queued at once.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}
