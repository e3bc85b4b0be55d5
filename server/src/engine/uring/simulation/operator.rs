//! Somebody at the admin side of a run: asks what was counted and who is there, and closes connections, also such as have
//! gone. What is answered must fit together, and be true.

use std::cell::RefCell;
use std::rc::Rc;

use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::kernel::Kernel;
use super::operations::address_of;
use super::truth::Truth;
use crate::inquiry::{Close, Filter, Look, Page, Place, Report, State};
use crate::worker::Command;

type SharedTruth = Rc<RefCell<Truth>>;

/// What was asked and not answered yet.
#[derive(Default)]
pub struct Operator {
    /// With whom it was about; nobody, where it named one that was there before.
    closes: Vec<(Option<SharedTruth>, UnboundedReceiver<bool>)>,
    looks: Vec<Asked>,
    /// Connections that were said to be closed.
    pub closed: u64,
    /// Connections whose peers were told.
    pub peers: u64,
}

/// Asked in one go: what is shown is of the moment of the report, or of a few turns later.
struct Asked {
    report: UnboundedReceiver<Report>,
    page: UnboundedReceiver<Page>,
    reported: Option<Report>,
}

impl Kernel {
    /// Asks for something, or for nothing.
    pub(super) fn operate(&mut self) {
        self.check_answers();
        if self.lot(self.plan.inquiries) {
            match self.random.random_range(0..2) {
                // Two may look at the same moment.
                0 => (0..self.random.random_range(1..=2)).for_each(|_| self.look_around()),
                _ => self.close_one(),
            }
        }
    }

    fn look_around(&mut self) {
        let ((count, report), (show, page)) = (unbounded_channel(), unbounded_channel());
        self.post(Command::Report(count));
        self.post(Command::Look(Look {
            from: Place::default(),
            slots: u32::MAX,
            most: usize::MAX,
            filter: Filter::default(),
            reply: show,
        }));
        self.world.operator.looks.push(Asked {
            report,
            page,
            reported: None,
        });
    }

    fn close_one(&mut self) {
        let mut held = Vec::new();
        for (table, slot, number) in self.taken() {
            let this = &self.tables[table].slots[slot as usize];
            let truth = self.peers[number].truth.as_ref().filter(|_| this.is_known);
            if let (Some(generation), Some(truth)) = (this.generation, truth) {
                held.push((table as u32, slot, generation, Rc::clone(truth)));
            }
        }
        let Some((table, slot, generation, truth)) = held.choose(&mut self.random).cloned() else {
            return;
        };
        let is_stale = self.random.random_range(0..3) == 0;
        let (generation, about) = match is_stale {
            true => (generation.wrapping_sub(1), None),
            false => {
                truth.borrow_mut().is_dismissed = true;
                (generation, Some(Rc::clone(&truth)))
            }
        };
        self.trace.note(truth.borrow().id, || {
            format!("slot {slot} of table {table} is to be closed in generation {generation}")
        });
        let (reply, answer) = unbounded_channel();
        self.post(Command::Close(Close {
            place: Place { table, slot },
            generation: generation.into(),
            reply,
        }));
        self.world.operator.closes.push((about, answer));
    }

    /// A worker that has read its mailbox has answered all that was in it, also at its end.
    pub(super) fn check_all_answered(&mut self) {
        self.check_answers();
        let is_forgotten = |asked: &Asked| asked.reported.is_some();
        assert!(
            !self.world.operator.looks.iter().any(is_forgotten),
            "somebody was not answered"
        );
    }

    /// What has been answered since.
    pub(super) fn check_answers(&mut self) {
        let operator = &mut self.world.operator;
        operator.closes.retain_mut(|(about, answer)| {
            let Ok(is_closed) = answer.try_recv() else {
                return true;
            };
            operator.closed += u64::from(is_closed);
            match about {
                None => assert!(!is_closed, "one was closed that nobody had named"),
                Some(truth) => assert!(truth.borrow().ended, "one was named, and goes on"),
            }
            false
        });
        let (made, alive) = (self.shared.made.get(), self.shared.alive.get());
        let installs = self.plan.installs;
        operator.looks.retain_mut(|asked| {
            if let Ok(report) = asked.report.try_recv() {
                asked.reported = Some(report);
            }
            let (Some(report), Ok(page)) = (&asked.reported, asked.page.try_recv()) else {
                return true;
            };
            let stats = &report.stats;
            let ended: u64 = stats.closed.values().sum();
            assert_eq!(
                stats.accepted,
                ended + u64::from(report.held),
                "accepted, and ended or held"
            );
            // Some have come since, or gone.
            let came = (made - stats.accepted) as usize;
            let went = (made - alive - ended) as usize;
            let held = report.held as usize;
            let open = page.found.iter().filter(|v| v.state != State::Closing);
            let open = open.count();
            assert!(
                open <= held + came && held <= open + went,
                "{open} found, and {held} held: {came} came, {went} went"
            );
            for view in &page.found {
                let place = (view.place.table, view.place.slot);
                let is_right = |peer| installs && peer == address_of(place, view.generation);
                assert!(view.peer.is_none_or(is_right), "another's peer: {view:?}");
            }
            operator.peers += page.found.iter().filter(|v| v.peer.is_some()).count() as u64;
            assert_eq!(page.next, None, "so few take more than a turn");
            for (table, its) in report.tables.iter().enumerate() {
                let found = page.found.iter().filter(|v| v.place.table == table as u32);
                let found = found.count();
                assert!(
                    its.held as usize <= found + went && found <= its.used as usize + came,
                    "{found} found in table {table}: {its:?}"
                );
            }
            false
        });
    }
}
