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

use crate::config::Close;
use crate::counters::Shared;
use crate::source::Plan;

/// A bound socket, and what it was made by.
pub(crate) struct Dialled {
    pub(crate) socket: OwnedFd,
    /// Its assignment in the plan.
    pub(crate) number: u32,
    /// Index of the target.
    pub(crate) target: u32,
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
    close: Close,
    next: u64,
    stride: u64,
    end: u64,
    /// Ports that were taken, at bind or at connect.
    pub(crate) collisions: u64,
}

impl<'a> Dialler<'a> {
    /// The share of worker `number` of `workers` in `connections`, which are to end by `close`.
    pub(crate) fn new(
        plan: &'a Plan,
        shared: &'a Shared,
        close: Close,
        (number, workers): (u64, u64),
        connections: u64,
    ) -> Self {
        Dialler {
            plan,
            shared,
            close,
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
        // There are at most as many as fit.
        let number = self.next as u32;
        self.next += self.stride;
        Some(self.dial(number))
    }

    /// A socket from the spares, in place of one whose port was taken when it connected.
    pub(crate) fn replace(&mut self) -> Result<Dialled, Failure> {
        self.collisions += 1;
        match self.spare() {
            Some(number) => self.dial(number),
            None => Err(Failure::connect(libc::EADDRNOTAVAIL)),
        }
    }

    /// A socket for assignment `number`, or for a spare one where its port is taken.
    pub(crate) fn dial(&mut self, mut number: u32) -> Result<Dialled, Failure> {
        loop {
            match self.bind(number) {
                Err(failure) if failure.errno == libc::EADDRINUSE => {
                    self.collisions += 1;
                    number = self.spare().ok_or(failure)?;
                }
                result => return result,
            }
        }
    }

    /// An assignment that nobody has had.
    pub(crate) fn spare(&self) -> Option<u32> {
        let number = self.shared.next_spare.fetch_add(1, Relaxed);
        self.plan.assignment(number)?;
        u32::try_from(number).ok()
    }

    fn bind(&self, number: u32) -> Result<Dialled, Failure> {
        let assignment = self
            .plan
            .assignment(number.into())
            .ok_or(Failure::connect(libc::EADDRNOTAVAIL))?;
        let socket = unbound(assignment.source, self.close).map_err(failed(Step::Socket, None))?;
        Ok(Dialled {
            socket: bind(socket, assignment.source)?,
            number,
            target: assignment.target,
        })
    }
}

/// Whether `address` is one this host can connect from. It takes no port, of which the kernel may have none to give.
///
/// # Errors
/// That of bind(2), EADDRNOTAVAIL where it is not.
pub(crate) fn check_source(address: IpAddr) -> Result<(), Failure> {
    let source = SocketAddr::new(address, 0);
    let socket = unbound(source, Close::Rst).map_err(failed(Step::Socket, None))?;
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
        .map_err(|errno| failed(Step::Socket, None)(errno.into()))?;
    bind(socket, source).map(drop)
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

fn unbound(source: SocketAddr, close: Close) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(source),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // From the first use of the port on, or a second run meets EADDRINUSE.
    socket.set_reuse_address(true)?;
    if close == Close::Rst {
        // Closing resets: no TIME_WAIT, and no million FINs queued at once.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}
