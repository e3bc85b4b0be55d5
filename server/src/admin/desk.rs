//! Asks the workers, within bounds: what they have counted, whom they hold, and to close somebody.
//!
//! Owns: the last report of each worker. Invariants: a worker is asked for a report at most four times a second, and not
//! again before it has answered; one walk over the connections goes on at a time, a look per turn of a worker; no answer
//! is waited for longer than [`ANSWER`], and no walk for longer than one takes. The first two hold as long as nothing here is
//! dropped before its end: [`answer`](super::answer) sees to that.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{timeout, timeout_at};

use crate::admission::Admission;
use crate::inquiry::{Close, Filter, Look, Page, Place, Report, SLOTS_PER_TURN, View};
use crate::watchdog::Pulse;
use crate::worker::{Command, Gate, Publisher};

/// How long a worker may take to answer: an idle one is woken, a busy one turns many times in it.
pub(super) const ANSWER: Duration = Duration::from_secs(1);
/// How old a report may be.
const FRESH: Duration = Duration::from_millis(250);
/// How long a walk may take, but for its last look; it is gone on with from where it ended.
const WALK: Duration = Duration::from_secs(2);

/// The server that is asked about.
#[derive(Debug)]
pub struct Served {
    /// Its engine, as the command line has it.
    pub engine: &'static str,
    /// What is said on its connections.
    pub protocol: crate::config::Protocol,
    /// Where it listens.
    pub listen: String,
    /// The cores of its workers.
    pub cores: Vec<usize>,
    /// When it began.
    pub started: Instant,
    /// The same, as the clock of the host had it then.
    pub started_at: SystemTime,
    /// Reaches its workers.
    pub publisher: Publisher,
    /// Counts its connections.
    pub admission: Arc<Admission>,
    /// Whether it accepts.
    pub gate: Arc<Gate>,
    /// Whether it has been told to end.
    pub is_draining: Arc<AtomicBool>,
    /// What the workers show of themselves.
    pub pulses: Vec<Arc<Pulse>>,
}

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// It does not accept yet.
    Starting,
    Serving,
    /// It accepts no more.
    Draining,
}

impl Served {
    pub(super) fn phase(&self) -> Phase {
        match (self.is_draining.load(Relaxed), self.gate.get()) {
            (true, _) => Phase::Draining,
            (false, Some(true)) => Phase::Serving,
            (false, _) => Phase::Starting,
        }
    }

    /// Whether the worker is there, and has not ended: one that has answers no more.
    fn has(&self, worker: usize) -> bool {
        let ended = |pulse: &Arc<Pulse>| !pulse.is_alive();
        worker < self.cores.len() && !self.pulses.get(worker).is_some_and(ended)
    }
}

/// What is known of a worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// The last that it said, and when it was asked for that: it is no older.
    pub(super) report: Option<(Arc<Report>, Instant)>,
    /// When it was asked what it has not answered yet.
    pub(super) asked: Option<Instant>,
}

impl Account {
    /// It was asked and has not answered yet.
    pub(super) fn is_silent(&self) -> bool {
        self.asked.is_some()
    }
}

#[derive(Debug)]
struct Books {
    reply: UnboundedSender<Report>,
    answers: UnboundedReceiver<Report>,
    /// When that was last.
    asked: Option<Instant>,
    /// By the workers' numbers.
    accounts: Vec<Account>,
}

/// Where questions are asked.
#[derive(Debug)]
pub(super) struct Desk {
    served: OnceLock<Served>,
    books: Mutex<Books>,
    /// Held during a walk.
    walk: Mutex<()>,
}

/// Which connection of which worker, in words such as `0-1-4711-3`: worker, table, slot, generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// The worker's number.
    pub worker: usize,
    /// Where.
    pub place: Place,
    /// Which of those that were there.
    pub generation: u64,
}

/// A connection with its name.
#[derive(Debug, Serialize)]
pub(super) struct Named {
    pub(super) id: Id,
    worker: usize,
    #[serde(flatten)]
    view: View,
}

/// What a walk came to.
#[derive(Debug, Default, Serialize)]
pub(super) struct Listing {
    pub(super) connections: Vec<Named>,
    /// Where to go on. None at the end.
    next: Option<Cursor>,
    /// Slots passed.
    slots: u64,
    /// Connections of which nobody knows whether they are wanted: the address of a direct descriptor before Linux 6.8, or how idle
    /// somebody is without an idle timeout.
    unknown: u64,
    /// Workers whose connections are missing, as they do not answer.
    silent_workers: Vec<usize>,
}

/// Where a walk goes on, in words such as `0-1-4712`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) worker: usize,
    place: Place,
}

/// A worker that does not answer in time.
#[derive(Debug)]
pub(super) struct Silent(pub(super) usize);

/// Others walk over the connections.
#[derive(Debug)]
pub(super) struct Busy;

impl Desk {
    pub(super) fn new() -> Desk {
        let (reply, answers) = unbounded_channel();
        Desk {
            served: OnceLock::new(),
            books: Mutex::new(Books {
                reply,
                answers,
                asked: None,
                accounts: Vec::new(),
            }),
            walk: Mutex::new(()),
        }
    }

    pub(super) fn attach(&self, served: Served) {
        // Attached only once.
        let _ = self.served.set(served);
    }

    /// None while it is starting.
    pub(super) fn served(&self) -> Option<&Served> {
        self.served.get()
    }

    /// What all workers have counted, by their numbers.
    pub(super) async fn accounts(&self, served: &Served) -> Vec<Account> {
        let mut books = self.books.lock().await;
        let Books {
            reply,
            answers,
            asked,
            accounts,
        } = &mut *books;
        if asked.is_some_and(|asked| asked.elapsed() < FRESH) {
            return accounts.clone();
        }
        accounts.resize_with(served.cores.len(), Account::default);
        // Late answers: they are not what is asked for now.
        while let Ok(report) = answers.try_recv() {
            note(accounts, report);
        }
        for (worker, account) in accounts.iter_mut().enumerate() {
            // Where it is silent, its mailbox has the last question still.
            if !account.is_silent() {
                account.asked = Some(Instant::now());
                let command = Command::Report(reply.clone());
                served.publisher.mailbox(worker).post(command);
            }
        }
        let is_awaited =
            |(worker, account): (usize, &Account)| account.is_silent() && served.has(worker);
        let deadline = tokio::time::Instant::now() + ANSWER;
        while accounts.iter().enumerate().any(is_awaited) {
            // `reply` lives, so that the channel cannot close.
            let Ok(Some(report)) = timeout_at(deadline, answers.recv()).await else {
                break;
            };
            note(accounts, report);
        }
        // From the end of the wait, so that those who ask meanwhile do not wait one after the other.
        *asked = Some(Instant::now());
        accounts.clone()
    }

    /// Connections from `from` on, at most `most`, as far as the time of a walk goes.
    ///
    /// # Errors
    /// Others were before, more than one, and have not come to their end in the time of one.
    pub(super) async fn list(
        &self,
        served: &Served,
        filter: &Filter,
        from: Cursor,
        most: usize,
    ) -> Result<Listing, Busy> {
        let accounts = self.accounts(served).await;
        // As long as another one takes.
        let alone = timeout(WALK + ANSWER, self.walk.lock()).await;
        let _alone = alone.map_err(|_| Busy)?;
        let began = Instant::now();
        let mut listing = Listing::default();
        let mut at = from;
        while at.worker < served.cores.len() {
            let worker = at.worker;
            let left = most - listing.connections.len();
            if left == 0 || began.elapsed() > WALK {
                listing.next = Some(at);
                break;
            }
            let is_silent = accounts.get(worker).is_some_and(Account::is_silent);
            let page = match is_silent {
                true => Err(Silent(worker)),
                false => look(served, at, SLOTS_PER_TURN, left, filter).await,
            };
            let next = match page {
                Ok(page) => {
                    listing.slots += u64::from(page.passed);
                    listing.unknown += u64::from(page.unknown);
                    let named = |view| Named::new(worker, view);
                    listing
                        .connections
                        .extend(page.found.into_iter().map(named));
                    page.next
                }
                Err(Silent(worker)) => {
                    listing.silent_workers.push(worker);
                    None
                }
            };
            at = match next {
                Some(place) => Cursor { worker, place },
                None => Cursor {
                    worker: worker + 1,
                    place: Place::default(),
                },
            };
        }
        Ok(listing)
    }

    /// The connection, where it is still there.
    pub(super) async fn inspect(&self, served: &Served, id: Id) -> Result<Option<Named>, Silent> {
        if !served.has(id.worker) {
            return Ok(None);
        }
        let at = Cursor {
            worker: id.worker,
            place: id.place,
        };
        let page = look(served, at, 1, 1, &Filter::default()).await?;
        let mut named = page
            .found
            .into_iter()
            .map(|view| Named::new(id.worker, view));
        Ok(named.find(|named| named.id == id))
    }

    /// Closes the connection; false where it has gone already.
    pub(super) async fn close(&self, served: &Served, id: Id) -> Result<bool, Silent> {
        if !served.has(id.worker) {
            return Ok(false);
        }
        let (reply, mut answer) = unbounded_channel();
        let close = Command::Close(Close {
            place: id.place,
            generation: id.generation,
            reply,
        });
        served.publisher.mailbox(id.worker).post(close);
        match timeout(ANSWER, answer.recv()).await.ok().flatten() {
            Some(is_closed) => Ok(is_closed),
            None if served.has(id.worker) => Err(Silent(id.worker)),
            // It has ended meanwhile, and all its connections with it.
            None => Ok(false),
        }
    }
}

fn note(accounts: &mut [Account], report: Report) {
    if let Some(account) = accounts.get_mut(report.worker)
        && let Some(asked) = account.asked.take()
    {
        account.report = Some((Arc::new(report), asked));
    }
}

async fn look(
    served: &Served,
    from: Cursor,
    slots: u32,
    most: usize,
    filter: &Filter,
) -> Result<Page, Silent> {
    let (reply, mut page) = unbounded_channel();
    let look = Command::Look(Look {
        from: from.place,
        slots,
        most,
        filter: filter.clone(),
        reply,
    });
    served.publisher.mailbox(from.worker).post(look);
    let page = timeout(ANSWER, page.recv()).await;
    page.ok().flatten().ok_or(Silent(from.worker))
}

impl Named {
    fn new(worker: usize, view: View) -> Named {
        let id = Id {
            worker,
            place: view.place,
            generation: view.generation,
        };
        Named { id, worker, view }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { table, slot } = self.place;
        write!(f, "{}-{table}-{slot}-{}", self.worker, self.generation)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { table, slot } = self.place;
        write!(f, "{}-{table}-{slot}", self.worker)
    }
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Id, String> {
        let parts: Option<[u64; 4]> = numbers(text).and_then(|parts| parts.try_into().ok());
        let Some([worker, table, slot, generation]) = parts else {
            return Err(format!(
                "`{text}` is no connection: give an id from the list, such as 0-0-17-2"
            ));
        };
        let cursor = Cursor::of(worker, table, slot)?;
        Ok(Id {
            worker: cursor.worker,
            place: cursor.place,
            generation,
        })
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Cursor, String> {
        let parts: Option<[u64; 3]> = numbers(text).and_then(|parts| parts.try_into().ok());
        let Some([worker, table, slot]) = parts else {
            return Err(format!(
                "`{text}` is no cursor: give what the last page says is `next`"
            ));
        };
        Cursor::of(worker, table, slot)
    }
}

impl Cursor {
    fn of(worker: u64, table: u64, slot: u64) -> Result<Cursor, String> {
        let small = |number: u64| {
            u32::try_from(number).map_err(|_| format!("{number} is no worker, table or slot"))
        };
        Ok(Cursor {
            worker: small(worker)? as usize,
            place: Place {
                table: small(table)?,
                slot: small(slot)?,
            },
        })
    }
}

fn numbers(text: &str) -> Option<Vec<u64>> {
    text.split('-').map(|part| part.parse().ok()).collect()
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::stats::Stats;
    use proptest::prelude::*;

    /// A server of `workers` that answer only where the test does.
    pub(in super::super) fn served(workers: usize) -> Served {
        Served {
            engine: "epoll",
            protocol: crate::config::Protocol::Echo,
            listen: String::new(),
            cores: vec![0; workers],
            started: Instant::now(),
            started_at: SystemTime::now(),
            publisher: Publisher::new(workers).unwrap(),
            admission: Arc::new(Admission::new(Default::default())),
            gate: Arc::new(true.into()),
            is_draining: Arc::default(),
            pulses: Vec::new(),
        }
    }

    pub(in super::super) fn report(worker: usize, held: u32) -> Report {
        Report {
            worker,
            stats: Stats::new(),
            held,
            waiting_bytes: 0,
            tables: Vec::new(),
        }
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_is_written(worker in 0usize..300, table: u32, slot: u32, generation: u64) {
            let id = Id { worker, place: Place { table, slot }, generation };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            let cursor = Cursor { worker, place: id.place };
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for wrong in [
            "",
            "0-0-1",
            "0-0-1-2-3",
            "a-0-1-2",
            "-1-0-1-2",
            "0-0-99999999999-1",
        ] {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_worker_that_does_not_answer_is_known_as_silent_and_not_asked_again() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(silence());
    }

    async fn silence() {
        let mut served = served(2);
        let desk = Desk::new();
        for _ in 0..2 {
            let accounts = desk.accounts(&served).await;
            assert!(accounts.iter().all(|a| a.is_silent() && a.report.is_none()));
            std::thread::sleep(FRESH);
        }
        let asked = || served.publisher.mailbox(1).take();
        let mut questions = asked();
        let (Some(Command::Report(reply)), 0) = (questions.pop(), questions.len()) else {
            panic!("one question");
        };
        reply.send(report(1, 7)).unwrap();
        let accounts = desk.accounts(&served).await;
        let (report, at) = accounts[1].report.as_ref().unwrap();
        assert_eq!(report.held, 7);
        assert!(at.elapsed() > 2 * ANSWER, "as old as its question");
        assert!(
            accounts[1].is_silent() && asked().len() == 1,
            "a late answer is not for the next question"
        );
        let page = desk
            .list(&served, &Filter::default(), Cursor::default(), 10)
            .await;
        assert_eq!(page.unwrap().silent_workers, [0, 1]);
        assert!(served.publisher.mailbox(1).take().is_empty());

        // During a walk that does not end, others have an answer, and single connections are asked about all the same.
        let alone = desk.walk.lock().await;
        let began = Instant::now();
        let page = desk
            .list(&served, &Filter::default(), Cursor::default(), 10)
            .await;
        assert!(page.is_err() && began.elapsed() < crate::admin::PATIENCE);
        let id: Id = "1-0-0-0".parse().unwrap();
        assert!(desk.inspect(&served, id).await.is_err() && asked().len() == 1);
        drop(alone);

        assert!(desk.close(&served, id).await.is_err() && asked().len() == 1);
        // Those of a worker that has ended, and of one that never was, are gone: nobody closes them later.
        served.pulses = vec![Arc::default(); 2];
        for gone in ["1-0-0-0", "7-0-0-0"].map(|id| id.parse().unwrap()) {
            assert!(!desk.close(&served, gone).await.unwrap());
            assert!(desk.inspect(&served, gone).await.unwrap().is_none());
        }
        assert!(served.publisher.mailbox(1).take().is_empty());
    }
}
