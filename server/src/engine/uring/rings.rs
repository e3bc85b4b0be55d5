//! What the driver asks of the rings it drives: the seam between it and the kernel.
//!
//! Two things are behind it: the kernel's rings ([`Group`]), and in tests the simulation's. What each
//! promises is written at [`Group`]'s methods of the same names.

use std::io;
use std::time::Duration;

use ring::{BufferId, Completion, Group, Operation, RecvBuffers, SendArena, Stats, Unavailable};

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

    fn stats(&self) -> Stats {
        self.stats()
    }
}
