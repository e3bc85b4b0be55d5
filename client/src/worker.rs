//! One pinned thread: connects its share, holds it, sends, verifies.
//!
//! Owns: a group of rings and the connections in their tables. Connection `c` lives in slot `c % slots` of table
//! `c / slots`, so no descriptor and no lookup is spent on it. Its life: bound socket, installed → `Connect` →
//! parked on a multishot `Poll` ⇄ `Recv` on readiness → lost (cancel, join, close), closed and made again where it churns or
//! lost ones are, closed in the ramp down, or when the group is dropped.
//! Invariants: at most one receive and one waiting send of a connection are in flight; what is counted is published
//! once a turn.

mod churn;
mod connect;
mod fall;
mod hold;
mod messages;
mod reconnect;

use std::collections::VecDeque;
use std::hash::RandomState;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::anyhow;
use kernel_tuning::host::NetCounters;
use kernel_tuning::limit::{self, Cause, Evidence, Step};
use nix::errno::Errno;
use ring::{Completion, Group, Op, Operation, Token, Unavailable, Uses};

use crate::churn::Churners;
use crate::config::Config;
use crate::conn::{Conn, Flags, Phase};
use crate::counters::{self, Counts, Mailbox, Order, Shared};
use crate::dial::Dialler;
use crate::latency::{Handover, Kind, Recorder};
use crate::origins::Origins;
use crate::pace::Pace;
use crate::shape;
use crate::source::Plan;
use crate::summary::Report;
use messages::OpenLoop;
use reconnect::Lost;

/// The most connects and first messages started in one turn: small, so that none waits long for the others of its
/// batch to be submitted.
const BATCH: u32 = 64;
/// The longest wait of a turn, should a wake-up ever be lost.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// The connections read from in one turn; memory is touched only as they are used.
const RECV_BUFFERS: u16 = 512;
const RECV_BUFFER_BYTES: usize = 16 * 1024;

/// What a worker is told before it starts.
pub(crate) struct Job<'a> {
    pub(crate) number: usize,
    pub(crate) config: &'a Config,
    pub(crate) plan: &'a Plan,
    pub(crate) shared: &'a Shared,
    /// Where it hands over what it measured.
    pub(crate) measured: Sender<Handover>,
    /// Slots of a table: what RLIMIT_NOFILE allows.
    pub(crate) table_slots: u32,
}

/// Runs a worker on this thread until the main thread says `Done`.
///
/// # Errors
/// The thread cannot be pinned, or the ring cannot be made, or broke.
pub(crate) fn run(job: &Job<'_>) -> anyhow::Result<Report> {
    kernel_tuning::process::pin_current_thread(job.config.cores[job.number])?;
    Worker::new(job)?.run()
}

struct Worker<'a> {
    config: &'a Config,
    shared: &'a Shared,
    mailbox: &'a Mailbox,
    group: Group,
    slots: u32,
    /// Which worker this is, of how many.
    number: (u64, u64),
    /// Connects started in one turn: their sockets are descriptors until they are installed.
    batch: u32,
    conns: Vec<Conn>,
    /// Added to an index, it makes a number that no other worker's connection has.
    first_number: u64,
    dialler: Dialler<'a>,
    pace: Pace,
    connecting: u32,
    /// Indices of connects in flight; those that ended are removed every `TIMEOUT_GRAIN`.
    in_flight: Vec<u32>,
    /// Indices whose port was taken.
    retries: Vec<u32>,
    /// Indices that are to send their first message, or to begin their first cycle.
    starters: Vec<u32>,
    churners: Churners,
    origins: Origins,
    /// Indices to connect again whose close is queued, and of those that churn the ones whose close is done.
    closing: Vec<u32>,
    closed: VecDeque<u32>,
    recorder: Recorder,
    /// Ports taken since a cycle last had one.
    collisions_in_a_row: u32,
    lost: Lost,
    random: RandomState,
    /// Connections the ramp down has come past, and those whose operations are ending.
    fallen: u32,
    ending: u32,
    order: Order,
    active: u64,
    /// Messages per second, where they are sent by a schedule.
    message_rate: Option<f64>,
    open_loop: Option<OpenLoop>,
    /// The same of churn cycles.
    open_churn: Option<OpenLoop>,
    now: Duration,
    next_timeouts: Duration,
    next_look: Duration,
    counts: Counts,
    report: Report,
    /// Failures and losses whose causes are told.
    told: u64,
    /// The server's heartbeat has begun.
    awaits_heartbeats: bool,
}

impl<'a> Worker<'a> {
    fn new(job: &Job<'a>) -> anyhow::Result<Worker<'a>> {
        let config = job.config;
        let (number, workers) = (job.number as u64, config.cores.len() as u64);
        let share = |total: u64| shape::share(total, number, workers);
        let dialler = Dialler::new(
            job.plan,
            job.shared,
            config.close,
            (number, workers),
            config.connections,
        );
        let connections = dialler.remaining();
        let active = share(config.active);
        // By active connections, so that the interval is the same on all workers.
        let message_rate = |rate| rate * active as f64 / config.active as f64;
        let slots = u64::from(job.table_slots).min(connections).max(1);
        let mut group = Group::new(ring::Config {
            table_slots: slots as u32,
            recv_buffers: RECV_BUFFERS,
            recv_buffer_bytes: RECV_BUFFER_BYTES,
            targets: config.targets.clone(),
            uses: Uses::Connect,
            ..ring::Config::default()
        })?;
        let tables = connections.div_ceil(slots);
        for table in 1..tables {
            group.add_ring().map_err(|why| {
                let why = explain(&why);
                anyhow!(
                    "{connections} connections take {tables} tables of {slots} slots (RLIMIT_NOFILE), each with a ring; \
                     there is no more after {table}: {why}"
                )
            })?;
        }
        // Of both together, so that no worker has more of them than connections.
        let churners = Churners::new(share(config.active + config.churn) - active, connections);
        let mailbox = &job.shared.workers[job.number];
        group.push(0, watch(mailbox))?;
        Ok(Worker {
            config,
            shared: job.shared,
            mailbox,
            group,
            slots: slots as u32,
            number: (number, workers),
            batch: BATCH.min(job.table_slots / 4).max(1),
            conns: Vec::with_capacity(connections as usize),
            first_number: number << 32,
            dialler,
            pace: Pace::new(
                config.rate / workers as f64,
                share(u64::from(config.concurrency)).max(1) as u32,
            )
            .starting_at(job.shared.start.elapsed()),
            connecting: 0,
            in_flight: Vec::new(),
            retries: Vec::new(),
            starters: Vec::new(),
            churners,
            origins: Origins::new(churners, config.reconnect.is_some()),
            closing: Vec::new(),
            closed: VecDeque::new(),
            recorder: Recorder::new(
                job.number,
                job.measured.clone(),
                job.shared.order().interval(),
            )?,
            collisions_in_a_row: 0,
            lost: Lost::default(),
            random: RandomState::new(),
            fallen: 0,
            ending: 0,
            order: job.shared.order(),
            active,
            message_rate: config.message_rate.map(message_rate),
            open_loop: None,
            open_churn: None,
            now: Duration::ZERO,
            next_timeouts: Duration::ZERO,
            next_look: Duration::ZERO,
            counts: Counts::default(),
            report: Report::default(),
            told: 0,
            awaits_heartbeats: config.idle_for.is_zero(),
        })
    }

    fn run(mut self) -> anyhow::Result<Report> {
        let mut completions = Vec::new();
        loop {
            self.group.submit_and_wait(self.wait())?;
            self.closes_submitted();
            loop {
                self.now = self.shared.start.elapsed();
                self.group.drain(&mut completions);
                for completion in completions.drain(..) {
                    self.completed(completion)?;
                }
                if self.group.settle()? {
                    break;
                }
            }
            self.follow(self.shared.order());
            match self.order.phase {
                counters::Phase::Ramp => self.connect_more()?,
                counters::Phase::Step(_) | counters::Phase::Idle | counters::Phase::Quiet => {}
                counters::Phase::Hold | counters::Phase::Active => {
                    self.send_messages()?;
                    self.begin_due_cycles()?;
                    self.cycle_more()?;
                }
                counters::Phase::Storm => {}
                // Cycles that have begun.
                counters::Phase::Close => self.cycle_more()?,
                counters::Phase::RampDown => self.close_more()?,
                counters::Phase::Done | counters::Phase::Recovery => return Ok(self.finish()),
            }
            self.reconnect_more()?;
            self.leave_silent()?;
            self.cancel_overdue()?;
            if self.has_carried_out() {
                self.counts.carried_out = self.order.number;
            }
            self.publish();
        }
    }

    /// How long nothing needs to be done unless something completes.
    fn wait(&self) -> Duration {
        let is_exchanging = self.is_exchanging();
        let is_cycling = is_exchanging || self.order.phase == counters::Phase::Close;
        let has_starters = is_exchanging && !self.starters.is_empty();
        if has_starters || is_cycling && self.has_more_to_cycle() {
            return Duration::ZERO;
        }
        // Not `self.now`: the turn took a while.
        let now = self.shared.start.elapsed();
        let timeouts = match self.in_flight.is_empty() {
            true => LONGEST_WAIT,
            false => self.next_timeouts.saturating_sub(self.now),
        };
        let schedules = [&self.open_loop, &self.open_churn];
        let sends = schedules
            .into_iter()
            .flatten()
            .filter(|_| is_exchanging)
            .map(|open| open.schedule.wait(now));
        let waits = [
            timeouts,
            self.wait_to_connect(now),
            self.wait_to_reconnect(now),
            self.wait_to_close(now),
        ];
        waits
            .into_iter()
            .chain(sends)
            .fold(LONGEST_WAIT, Duration::min)
    }

    fn follow(&mut self, order: Order) {
        if order.interval == self.order.interval {
            return;
        }
        let was_exchanging = self.is_exchanging();
        let is_new_phase = order.phase != self.order.phase;
        if self.order.phase == counters::Phase::Idle && order.phase.is_held() {
            self.begin_heartbeats();
        }
        self.order = order;
        if was_exchanging && !self.is_exchanging() {
            self.end_messages();
        }
        self.recorder.hand_over(order.interval());
        if is_new_phase && self.is_exchanging() {
            // Messages last: theirs is a schedule that begins now, and their starters come first.
            self.begin_churn();
            self.begin_messages();
        }
    }

    fn completed(&mut self, completion: Completion) -> io::Result<()> {
        let Completion {
            ring,
            token,
            result,
            more,
            ..
        } = completion;
        match token.op {
            Op::Watch => {
                // Nothing to read when an earlier turn has read it: the order tells what there is to know.
                let _ = self.mailbox.wake.read();
                return match more {
                    true => Ok(()),
                    false => self.group.push(0, watch(self.mailbox)),
                };
            }
            Op::Close if result < 0 => {
                tracing::warn!(ring, slot = token.slot, errno = %Errno::from_raw(-result), "a close failed");
                return Ok(());
            }
            _ => {}
        }
        let c = ring as u32 * self.slots + token.slot;
        let is_mine = self
            .conns
            .get(c as usize)
            .is_some_and(|conn| conn.generation == token.generation);
        match token.op {
            Op::Recv => {
                if is_mine {
                    self.received(c, &completion)?;
                }
                if let Some(buffer) = completion.buffer {
                    self.group.recycle(buffer);
                }
                Ok(())
            }
            _ if !is_mine => Ok(()),
            Op::Connect => self.connected(c, result),
            Op::Poll => self.polled(c, result, more),
            Op::Send => self.cut_short(c, completion),
            Op::SendWait => self.sent(c, completion),
            Op::Shutdown => self.shut_down(c, result),
            _ => Ok(()),
        }
    }

    /// Whether messages and cycles may start.
    fn is_exchanging(&self) -> bool {
        self.order.phase.is_exchanging()
    }

    fn has_carried_out(&self) -> bool {
        match self.order.phase {
            counters::Phase::Ramp => self.has_brought_up(),
            counters::Phase::RampDown => self.has_fallen(),
            _ => true,
        }
    }

    /// Of `level` connections of all workers, those of this one.
    fn share(&self, level: u64) -> u64 {
        shape::share(level, self.number.0, self.number.1)
    }

    /// The last look at what is held. Dropping the group closes every connection.
    fn finish(mut self) -> Report {
        for c in 0..self.conns.len() as u32 {
            if self.conns[c as usize].phase == Phase::Held {
                self.last_look(c);
            }
        }
        self.report.unended = self
            .conns
            .iter()
            .filter(|conn| conn.phase == Phase::Ending)
            .count() as u64;
        let count = |flag| {
            self.conns
                .iter()
                .filter(|conn| conn.flags.has(flag))
                .count()
        };
        self.report.cycles_unfinished = count(Flags::CYCLING) as u64;
        self.report.still_lost = count(Flags::LOST) as u64;
        self.report.messages_unanswered = self.counts.outstanding - self.report.cycles_unfinished;
        self.report.collisions = self.dialler.collisions;
        self.report.ring = self.group.stats();
        self.publish();
        self.report
    }

    /// What a held connection lacks when it is closed.
    fn last_look(&mut self, c: u32) {
        let conn = &self.conns[c as usize];
        let silence_ms = (self.now.as_millis() as u32).wrapping_sub(conn.last_heartbeat_ms);
        let patience_ms = 2 * self.config.heartbeat.as_millis() as u32;
        let is_silent = patience_ms > 0 && silence_ms > patience_ms;
        self.report.heartbeats_missing += u64::from(self.awaits_heartbeats && is_silent);
        // A cycle that has not come to its greeting is unfinished.
        let is_cycling = conn.flags.has(Flags::CYCLING);
        self.report.greetings_missing += u64::from(!conn.verifier.is_greeted() && !is_cycling);
    }

    fn publish(&mut self) {
        self.mailbox.publish(self.counts);
        let ended = self.counts.failed + self.counts.lost;
        if ended != self.told && self.mailbox.tell(|| self.report.causes()) {
            self.told = ended;
        }
    }

    // Short hands.

    /// A connect, an echo or a cycle took this long.
    fn timed(&mut self, kind: Kind, latency: Duration) {
        self.recorder.record(kind, latency);
        self.counts.timed += 1;
        self.counts.timed_us += latency.as_micros() as u64;
        self.mailbox.timed(latency);
    }

    fn place(&self, c: u32) -> (usize, u32) {
        ((c / self.slots) as usize, c % self.slots)
    }

    fn poll(&mut self, c: u32) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.set(Flags::POLL);
        let generation = conn.generation;
        let (ring, slot) = self.place(c);
        self.group.push(ring, Operation::Poll { slot, generation })
    }

    fn receive(&mut self, c: u32) -> io::Result<()> {
        let conn = &mut self.conns[c as usize];
        conn.flags.set(Flags::RECV);
        let generation = conn.generation;
        let (ring, slot) = self.place(c);
        self.group.push(ring, Operation::Recv { slot, generation })
    }

    fn cancel(&mut self, c: u32, op: Op) -> io::Result<()> {
        let generation = self.conns[c as usize].generation;
        let (ring, slot) = self.place(c);
        let token = Token::new(op, slot, generation);
        self.group.push(ring, Operation::Cancel { token })
    }
}

/// Which limit it is that denies a ring.
fn explain(why: &Unavailable) -> String {
    let cause = match why {
        Unavailable::Failed(error) => error.into(),
        Unavailable::NoMemory => Cause::Errno(Errno::ENOMEM as i32),
        _ => return why.to_string(),
    };
    let evidence = Evidence::read(&NetCounters::default());
    limit::diagnose(cause, &limit::Context::new(Step::IoUring), &evidence).to_string()
}

/// Wakes the worker when there is a new order.
fn watch(mailbox: &Mailbox) -> Operation {
    Operation::Watch {
        fd: mailbox.wake.as_raw_fd(),
        slot: 0,
    }
}
