//! What the driver asks of the rings it drives: the seam between it and the kernel.
//!
//! Two things are behind it: the kernel's rings ([`Group`]), and in tests the simulation's. What each
//! promises is written at [`Group`]'s methods of the same names.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use ring::{BufferId, Completion, Group, Operation, RecvBuffers, SendArena, Stats, Unavailable};

use crate::admission::peer_of;

/// The rings of one thread.
pub(super) trait Rings {
    fn add_ring(&mut self) -> Result<usize, Unavailable>;
    fn push(&mut self, ring: usize, operation: Operation) -> io::Result<()>;
    fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()>;
    fn unread(&mut self, ring: usize) -> Option<usize>;
    fn drain(&mut self, into: &mut Vec<Completion>);
    fn settle(&mut self) -> io::Result<bool>;
    fn memory(&mut self) -> (&RecvBuffers, &mut SendArena);
    fn recycle(&mut self, buffer: BufferId);
    fn installs(&self) -> bool;
    /// The peer of a connection, by the ordinary descriptor that was made of it, which is closed.
    fn take_peer(&mut self, installed: RawFd) -> Option<SocketAddr>;
    fn stats(&self) -> Stats;
}

impl Rings for Group {
    fn add_ring(&mut self) -> Result<usize, Unavailable> {
        self.add_ring()
    }

    fn push(&mut self, ring: usize, operation: Operation) -> io::Result<()> {
        self.push(ring, operation)
    }

    fn submit_and_wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.submit_and_wait(timeout)
    }

    fn unread(&mut self, ring: usize) -> Option<usize> {
        self.unread(ring)
    }

    fn drain(&mut self, into: &mut Vec<Completion>) {
        self.drain(into);
    }

    fn settle(&mut self) -> io::Result<bool> {
        self.settle()
    }

    fn memory(&mut self) -> (&RecvBuffers, &mut SendArena) {
        self.memory()
    }

    fn recycle(&mut self, buffer: BufferId) {
        self.recycle(buffer);
    }

    fn installs(&self) -> bool {
        self.installs()
    }

    fn take_peer(&mut self, installed: RawFd) -> Option<SocketAddr> {
        let peer = peer_of(installed);
        // Of a socket that is in its slot still, or has been closed there: nothing is left that could fail.
        let _ = nix::unistd::close(installed);
        peer
    }

    fn stats(&self) -> Stats {
        self.stats()
    }
}
