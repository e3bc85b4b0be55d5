//! The other end of one connection, and the socket between.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::StdRng;

use super::plan::Plan;
use super::truth::Truth;

/// What becomes of a peer that has written everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// Finishes at once.
    Hasty,
    /// Finishes when all has been answered: input that was forgotten shows as a standstill.
    Patient,
    /// Stays until all are asked to go.
    Lingering,
}

/// A peer.
pub struct Peer {
    to_write: VecDeque<u8>,
    manners: Manners,
    reads_nothing: bool,
    /// Written, not yet received by the server.
    pub inbound: VecDeque<u8>,
    /// Sent by the server, not yet read.
    pub outbound: usize,
    pub finished: bool,
    pub reset: bool,
    /// Bytes that ever entered the socket.
    pub entered: u64,
    /// The server's session for it, once there is one.
    pub truth: Option<Rc<RefCell<Truth>>>,
}

/// What a peer did that a poll tells of.
pub struct Did {
    pub wrote: usize,
    pub finished: bool,
    pub reset: bool,
}

impl Peer {
    pub fn new(to_write: Vec<u8>, plan: &Plan, random: &mut StdRng) -> Peer {
        Peer {
            to_write: to_write.into(),
            manners: match random.random_range(0..4) {
                0 => Manners::Hasty,
                1 => Manners::Lingering,
                _ => Manners::Patient,
            },
            reads_nothing: random.random_range(0..100) < plan.deaf,
            inbound: VecDeque::new(),
            outbound: 0,
            finished: false,
            reset: false,
            entered: 0,
            truth: None,
        }
    }

    /// Goes on with its life for one step.
    pub fn act(&mut self, plan: &Plan, random: &mut StdRng) -> Did {
        if !self.reads_nothing {
            self.outbound -= random.random_range(0..=300).min(self.outbound);
        }
        let most = match random.random_range(0..3) {
            0 => 0,
            _ => random.random_range(0..=400).min(self.to_write.len()),
        };
        let wrote = match self.finished || self.reset {
            true => 0,
            false => most,
        };
        self.inbound.extend(self.to_write.drain(..wrote));
        let has_seen_all = |truth: &Rc<RefCell<Truth>>| truth.borrow().has_seen_all();
        let is_seen = self.truth.as_ref().is_none_or(has_seen_all);
        let answered = self.inbound.is_empty() && self.outbound == 0 && is_seen;
        let is_willing = match self.manners {
            Manners::Hasty => true,
            Manners::Patient => answered || self.reads_nothing,
            Manners::Lingering => false,
        };
        let finishes = is_willing
            && self.to_write.is_empty()
            && !self.finished
            && random.random_range(0..4) == 0;
        let resets = !self.reset && random.random_range(0..1000) < plan.resets;
        if finishes {
            self.finish();
        }
        if resets {
            self.reset();
        }
        Did {
            wrote,
            finished: finishes,
            reset: resets,
        }
    }

    /// Writes nothing more.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Is gone without a word.
    pub fn reset(&mut self) {
        self.reset = true;
        if let Some(truth) = &self.truth {
            truth.borrow_mut().broken = true;
        }
    }

    /// From now on it is a good peer: reads, and goes when it has said everything, or when it is asked to.
    pub fn behave(&mut self, plan: &Plan) {
        self.reads_nothing = false;
        self.manners = match plan.stops_early && plan.lingers {
            true => Manners::Lingering,
            false => Manners::Patient,
        };
    }

    /// Room in its socket.
    pub fn room(&self, window: usize) -> usize {
        window.saturating_sub(self.outbound)
    }

    /// `bytes` of the server enter the socket ([`Truth::enters`]).
    pub fn enter(&mut self, bytes: &[u8], is_known: bool) {
        if let Some(truth) = &self.truth {
            truth.borrow_mut().enters(bytes, is_known);
        }
        self.outbound += bytes.len();
        self.entered += bytes.len() as u64;
    }
}
