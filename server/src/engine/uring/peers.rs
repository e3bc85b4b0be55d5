//! Where connections come from: the looks that wait for it.
//!
//! A direct descriptor cannot be asked for its peer. But from Linux 6.8 on an ordinary one can be made of it
//! (IORING_OP_FIXED_FD_INSTALL), which the driver asks and closes in the turn in which it comes. That is done when it is
//! submitted, in order, so the answer is about the connection that was there when it was asked for.
//!
//! Owns: the looks. Invariant: one look is asked for at a time, which bounds the descriptors of a worker
//! ([`INSTALLED_AT_ONCE`]); each is answered once, when the last of its descriptors has come, or none could be had.

use std::collections::VecDeque;
use std::net::SocketAddr;

use ring::{Operation, Token};

use crate::inquiry::{Glance, Look, Place};

/// Ordinary descriptors of a worker that are open for its looks at a time, at most.
pub(super) const INSTALLED_AT_ONCE: u32 = 64;

#[derive(Default)]
pub(super) struct Peers {
    /// The look that is being asked for, and how many of its descriptors are to come.
    asking: Option<(Glance, usize)>,
    next: VecDeque<Look>,
}

impl Peers {
    /// One look more, after those before it.
    pub(super) fn push(&mut self, look: Look) {
        self.next.push_back(look);
    }

    /// The look whose turn it is, if any.
    pub(super) fn next(&mut self) -> Option<Look> {
        match self.asking {
            None => self.next.pop_front(),
            Some(_) => None,
        }
    }

    /// True while descriptors are to come.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    /// Asks for the peers of `glance`; without any it is answered. Gives what each table is to do.
    pub(super) fn ask(&mut self, mut glance: Glance) -> Vec<(usize, Operation)> {
        let installs = glance.views().map(|view| {
            let install = Operation::FdInstall {
                slot: view.place.slot,
                // As the machine gave it.
                generation: view.generation as u16,
            };
            (view.place.table as usize, install)
        });
        let installs: Vec<_> = installs.collect();
        match installs.len() {
            0 => glance.answer(),
            count => self.asking = Some((glance, count)),
        }
        installs
    }

    /// A descriptor of the connection `token` of `table` has come, and told its peer, or could not be had. Gives the look
    /// when that was the last one.
    pub(super) fn told(
        &mut self,
        table: usize,
        token: Token,
        peer: Option<SocketAddr>,
    ) -> Option<Glance> {
        let (glance, left) = self.asking.as_mut()?;
        let place = Place {
            table: table as u32,
            slot: token.slot,
        };
        // In the order of their places, and seldom many.
        if let Some(view) = glance.views().find(|view| view.place == place) {
            view.peer = peer;
        }
        *left -= 1;
        match left {
            0 => self.asking.take().map(|(glance, _)| glance),
            _ => None,
        }
    }
}
