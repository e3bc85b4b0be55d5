//! Sockets bound to their source, ready to connect.
//!
//! Touches socket(2), setsockopt(2), bind(2). Invariant: every assignment a worker takes ends as a socket or
//! as an errno; a port in use costs a spare assignment and is counted.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::counters::Shared;
use crate::source::{Assignment, Plan};

/// A bound socket, and the target it is for.
pub(crate) struct Dialled {
    pub(crate) socket: OwnedFd,
    pub(crate) target: u32,
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

    /// A socket for the next assignment, or the errno that none could be had for it. None: all were taken.
    pub(crate) fn next(&mut self) -> Option<Result<Dialled, i32>> {
        if self.next >= self.end {
            return None;
        }
        let assignment = self.plan.assignment(self.next)?;
        self.next += self.stride;
        Some(self.dial(assignment))
    }

    /// A socket from the spares, in place of one whose port was taken when it connected.
    pub(crate) fn replace(&mut self, errno: i32) -> Result<Dialled, i32> {
        self.collisions += 1;
        match self.spare() {
            Some(assignment) => self.dial(assignment),
            None => Err(errno),
        }
    }

    fn dial(&mut self, mut assignment: Assignment) -> Result<Dialled, i32> {
        loop {
            match bound(assignment.source) {
                Ok(socket) => {
                    return Ok(Dialled {
                        socket,
                        target: assignment.target,
                    });
                }
                Err(errno @ libc::EADDRINUSE) => {
                    self.collisions += 1;
                    assignment = self.spare().ok_or(errno)?;
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    fn spare(&self) -> Option<Assignment> {
        self.plan
            .assignment(self.shared.next_spare.fetch_add(1, Relaxed))
    }
}

/// Whether `address` is one this host can connect from.
///
/// # Errors
/// The errno of bind(2), EADDRNOTAVAIL where it is not.
pub(crate) fn check_source(address: IpAddr) -> Result<(), i32> {
    bound(SocketAddr::new(address, 0)).map(drop)
}

fn bound(source: SocketAddr) -> Result<OwnedFd, i32> {
    let make = || {
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
        socket.bind(&source.into())?;
        Ok(OwnedFd::from(socket))
    };
    make().map_err(|error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO))
}
