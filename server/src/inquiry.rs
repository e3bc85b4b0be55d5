//! What other threads may ask of a running worker: what it has counted, whom it holds, and to close somebody.
//!
//! A worker's counters and connections are its own. Who asks leaves a command in its mailbox, with a channel for the
//! answer, and the worker answers in its turn: nothing is shared, and a worker that is not asked pays nothing.
//!
//! Invariant: an answer takes a bounded part of a turn. A look passes at most [`SLOTS_PER_TURN`] slots, and fewer where the
//! kernel is asked, about at most [`ASKED_PER_TURN`] connections; whoever wants more asks again, from where it ended.

use std::net::SocketAddr;

use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;
use wire::Session;

use crate::conn::Conn;
use crate::stats::Stats;

/// Where an answer goes. It is dropped where nobody waits any more.
pub type Reply<T> = UnboundedSender<T>;

/// Slots passed in one look, as many as a sweep passes in a turn.
pub const SLOTS_PER_TURN: u32 = 8192;
/// Connections that the kernel is asked about in one look.
pub(crate) const ASKED_PER_TURN: u32 = 512;

/// What a worker has counted so far, and holds now.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which worker.
    pub worker: usize,
    /// Its counts since its start.
    pub stats: Stats,
    /// Connections.
    pub held: u32,
    /// Input and output that wait in it.
    pub waiting_bytes: u64,
    /// Its tables; one, of descriptors, for engines without.
    pub tables: Vec<TableUse>,
}

/// How far a table is used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TableUse {
    /// Slots it has.
    pub slots: u32,
    /// Those that are not free: with a connection, or with the last operations of one.
    pub used: u32,
    /// Connections.
    pub held: u32,
    /// All slots that were ever used are below this one.
    pub high_water: u32,
}

/// A slot of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Which table; 0 for engines without.
    pub table: u32,
    /// The slot; the file descriptor where there are such.
    pub slot: u32,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing waits to be sent
    Open,
    /// Output waits for the peer to read
    Sending,
    /// Closes once its output is sent
    Finishing,
    /// Its last operations come to their end
    Closing,
}

/// A connection as it was seen.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Which of those that were there one after the other.
    #[serde(skip)]
    pub generation: u64,
    /// What it does.
    pub state: State,
    /// Where it comes from. None where that cannot be asked for: direct descriptors before Linux 6.8, or
    /// without a free file descriptor.
    pub peer: Option<SocketAddr>,
    /// For how long nothing was received, to a 64th of the idle timeout. None without one: nobody remembers.
    pub idle_ms: Option<u64>,
    /// Received, and not yet taken by its session.
    pub input_bytes: usize,
    /// Said, and not yet sent.
    pub output_bytes: usize,
    /// For how long the peer has taken nothing of that.
    pub stalled_ms: Option<u32>,
}

impl View {
    /// Of an open connection; `conn` knows neither its peer nor when it was heard.
    pub(crate) fn of<S: Session>(
        place: Place,
        generation: u64,
        conn: &Conn<S>,
        is_finishing: bool,
        now_ms: u32,
    ) -> View {
        let (input_bytes, output_bytes) = conn.waiting_bytes();
        View {
            place,
            generation,
            state: State::of(is_finishing, output_bytes > 0),
            peer: None,
            idle_ms: None,
            input_bytes,
            output_bytes,
            stalled_ms: conn.stalled_ms(now_ms),
        }
    }

    /// Of a connection that is closed, as far as its last operations.
    pub(crate) fn closing(place: Place, generation: u64) -> View {
        View {
            place,
            generation,
            state: State::Closing,
            peer: None,
            idle_ms: None,
            input_bytes: 0,
            output_bytes: 0,
            stalled_ms: None,
        }
    }
}

impl State {
    /// Of a connection that is not closed yet.
    pub(crate) fn of(is_finishing: bool, has_output: bool) -> State {
        match (is_finishing, has_output) {
            (true, _) => State::Finishing,
            (false, true) => State::Sending,
            (false, false) => State::Open,
        }
    }
}

/// Who is looked for; everybody without a condition.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// What they do.
    pub state: Option<State>,
    /// Where they come from. Who cannot be asked is not found, but counted.
    pub source: Option<IpNet>,
    /// Silent for at least so long. Who is not known to be is not found, but counted.
    pub idle_ms: Option<u64>,
}

impl Filter {
    /// As far as it can be told without the kernel. None where nobody remembers how idle it is.
    fn may_want(&self, view: &View) -> Option<bool> {
        if self.state.is_some_and(|state| state != view.state) {
            return Some(false);
        }
        match self.idle_ms {
            None => Some(true),
            Some(least) => Some(view.idle_ms? >= least),
        }
    }

    /// None where nobody knows its peer.
    fn wants(&self, view: &View) -> Option<bool> {
        match &self.source {
            None => Some(true),
            Some(network) => Some(network.contains(&view.peer?.ip().to_canonical())),
        }
    }
}

/// A look at some of a worker's slots.
#[derive(Clone, Debug)]
pub struct Look {
    /// The first.
    pub from: Place,
    /// At most so many, and at most [`SLOTS_PER_TURN`].
    pub slots: u32,
    /// At most so many connections.
    pub most: usize,
    /// Who is looked for.
    pub filter: Filter,
    /// Where they go.
    pub reply: Reply<Page>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order of their places.
    pub found: Vec<View>,
    /// Slots passed.
    pub passed: u32,
    /// Connections of which nobody knows whether they are wanted.
    pub unknown: u32,
    /// Where to look on. None at the end of the last table.
    pub next: Option<Place>,
}

/// A connection to be closed, now, whatever waits for it.
#[derive(Clone, Debug)]
pub struct Close {
    /// Where.
    pub place: Place,
    /// Which of those that were there: another one stays.
    pub generation: u64,
    /// Whether it was there.
    pub reply: Reply<bool>,
}

/// What an engine lets a [`Look`] see.
pub(crate) trait Shelves {
    /// All used slots of `table` are below this. None where there is no such table.
    fn high_water(&self, table: u32) -> Option<u32>;

    /// Who is there, as far as the worker itself knows.
    fn view(&self, place: Place) -> Option<View>;

    /// Adds what the kernel knows at once: the peer, and the generation where the engine keeps none.
    fn ask_kernel(&self, view: &mut View);

    /// How many connections the kernel may be asked about in one look.
    fn asked_per_turn(&self) -> u32 {
        ASKED_PER_TURN
    }
}

/// A look as far as it can be told without the kernel.
#[derive(Debug)]
pub(crate) struct Glance {
    filter: Filter,
    most: usize,
    reply: Reply<Page>,
    /// Nobody is found yet.
    page: Page,
    /// Who may be wanted, in the order of their places.
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    view: View,
    /// The page's, before it.
    passed: u32,
    unknown: u32,
}

impl Look {
    /// Looks, asks, and answers.
    pub(crate) fn answer(self, shelves: &impl Shelves) {
        let mut glance = self.glance(shelves);
        glance.views().for_each(|view| shelves.ask_kernel(view));
        glance.answer();
    }

    /// Looks for those that may be wanted.
    pub(crate) fn glance(self, shelves: &impl Shelves) -> Glance {
        let (mut page, mut candidates) = (Page::default(), Vec::new());
        let cost = SLOTS_PER_TURN / shelves.asked_per_turn();
        // All of them are wanted where nothing is asked of their addresses.
        let most = match self.filter.source {
            None => self.most,
            Some(_) => usize::MAX,
        };
        let mut at = self.from;
        let mut left = self.slots.min(SLOTS_PER_TURN);
        while let Some(high_water) = shelves.high_water(at.table) {
            if at.slot >= high_water {
                (at.table, at.slot) = (at.table + 1, 0);
                continue;
            }
            if left == 0 || candidates.len() >= most {
                page.next = Some(at);
                break;
            }
            left -= 1;
            let Page {
                passed, unknown, ..
            } = page;
            page.passed += 1;
            if let Some(view) = shelves.view(at) {
                match self.filter.may_want(&view) {
                    Some(true) => {
                        left = left.saturating_sub(cost);
                        candidates.push(Candidate {
                            view,
                            passed,
                            unknown,
                        });
                    }
                    Some(false) => {}
                    None => page.unknown += 1,
                }
            }
            at.slot += 1;
        }
        Glance {
            filter: self.filter,
            most: self.most,
            reply: self.reply,
            page,
            candidates,
        }
    }
}

impl Glance {
    /// Those that the kernel is to be asked about.
    pub(crate) fn views(&mut self) -> impl Iterator<Item = &mut View> {
        self.candidates
            .iter_mut()
            .map(|candidate| &mut candidate.view)
    }

    /// Forgets those that are there no more.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&View) -> bool) {
        self.candidates
            .retain(|candidate| is_there(&candidate.view));
    }

    /// Answers with those that are wanted, as far as the kernel has told.
    pub(crate) fn answer(self) {
        let (mut page, mut unknown) = (self.page, 0);
        for candidate in self.candidates {
            if page.found.len() >= self.most {
                // From here on once more.
                page.next = Some(candidate.view.place);
                (page.passed, page.unknown) = (candidate.passed, candidate.unknown);
                break;
            }
            match self.filter.wants(&candidate.view) {
                Some(true) => page.found.push(candidate.view),
                Some(false) => {}
                None => unknown += 1,
            }
        }
        page.unknown += unknown;
        // Nobody waits any more.
        let _ = self.reply.send(page);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::sync::mpsc::unbounded_channel;

    /// Who is in which slot of which table.
    struct Held(Vec<Vec<Option<State>>>);

    impl Shelves for Held {
        fn high_water(&self, table: u32) -> Option<u32> {
            self.0.get(table as usize).map(|slots| slots.len() as u32)
        }

        fn view(&self, place: Place) -> Option<View> {
            let state = self.0[place.table as usize][place.slot as usize]?;
            Some(View {
                state,
                ..View::closing(place, 0)
            })
        }

        fn ask_kernel(&self, view: &mut View) {
            let [.., c, d] = view.place.slot.to_be_bytes();
            view.peer = Some(([10, view.place.table as u8, c, d], 7).into());
        }
    }

    fn look(held: &Held, from: Place, most: usize, filter: &Filter) -> Page {
        let (reply, mut pages) = unbounded_channel();
        let look = Look {
            from,
            slots: u32::MAX,
            most,
            filter: filter.clone(),
            reply,
        };
        look.answer(held);
        pages.try_recv().unwrap()
    }

    proptest! {
        /// Page after page, everybody who is wanted is found once, in order, and no page takes more than its part of a turn.
        #[test]
        fn pages_add_up(
            tables in proptest::collection::vec(0usize..3_000, 0..4),
            seed in any::<u64>(),
            most in 1usize..2_000,
            state in proptest::option::of(Just(State::Sending)),
            source in proptest::option::of(Just("10.1.0.0/16".parse::<IpNet>().unwrap())),
        ) {
            let who = |table: usize, slot: usize| match (seed >> ((slot * 7 + table) % 60)) & 3 {
                0 => None,
                1 => Some(State::Sending),
                _ => Some(State::Open),
            };
            let held = Held(tables.iter().enumerate().map(|(t, n)| (0..*n).map(|s| who(t, s)).collect()).collect());
            let filter = Filter { state, source, idle_ms: None };
            let (mut at, mut found) = (Some(Place::default()), Vec::new());
            while let Some(from) = at {
                let page = look(&held, from, most, &filter);
                prop_assert!(page.found.len() <= most && page.passed <= SLOTS_PER_TURN);
                prop_assert!(page.found.len() as u32 <= ASKED_PER_TURN);
                prop_assert!(page.next.is_none() || page.passed > 0);
                found.extend(page.found.iter().map(|view| (view.place.table, view.place.slot)));
                at = page.next;
            }
            let all = held.0.iter().enumerate().flat_map(|(t, slots)| {
                slots.iter().enumerate().filter_map(move |(s, who)| who.map(|who| (who, t as u32, s as u32)))
            });
            let expected: Vec<_> = all
                .filter(|(who, table, _)| state.is_none_or(|s| s == *who) && (source.is_none() || *table == 1))
                .map(|(_, table, slot)| (table, slot))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn who_is_not_known_to_be_idle_is_not_found_by_it() {
        let held = Held(vec![vec![Some(State::Open)]]);
        let filter = Filter {
            idle_ms: Some(0),
            ..Filter::default()
        };
        let page = look(&held, Place::default(), 9, &filter);
        assert!(page.found.is_empty() && page.unknown == 1);
        // A place that never was.
        let nowhere = Place {
            table: u32::MAX,
            slot: 5,
        };
        assert_eq!(look(&held, nowhere, 9, &Filter::default()).next, None);
    }
}
