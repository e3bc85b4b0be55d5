//! The prober: one thread that sends what is due, reads what has come, and gives up what has waited too long.
//!
//! Owns: the sockets and the books of all probes. Not pinned: it takes a core that a worker leaves. Invariants: before
//! anything is given up, all that has come was read; a turn waits no longer than to the next probe or `LONGEST_WAIT`.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::connect::Connects;
use super::datagram::Datagrams;
use super::ledger::{Ledger, Sent};
use super::news::News;
use super::timeline::{Schedule, Timeline};

/// How long the end of the run may stay unnoticed.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// Timers of a thread may be put off by this much (PR_SET_TIMERSLACK; 50,000 by default).
const TIMER_SLACK_NS: u64 = 1;

/// What the prober and the main thread share.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    timeline: Mutex<Timeline>,
    /// Of each probe, since somebody looked.
    news: Mutex<Vec<News>>,
}

impl Clock {
    pub(super) fn new() -> Arc<Clock> {
        Arc::new(Clock {
            start: Instant::now(),
            timeline: Mutex::new(Timeline::new()),
            news: Mutex::default(),
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        // A timeline is whole at any time, whoever panicked.
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has become of each probe since this was last asked.
    pub(super) fn take_news(&self) -> Vec<News> {
        // News are whole at any time, whoever panicked.
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *news)
    }

    /// Where somebody looks at this moment it is told in the next turn: a prober waits for nobody.
    fn tell(&self, probes: &mut [Probe]) {
        let Ok(mut news) = self.news.try_lock() else {
            return;
        };
        news.resize(probes.len(), News::default());
        for (news, probe) in news.iter_mut().zip(probes) {
            news.absorb(probe.ledger.take_news());
        }
    }

    fn sent(&self) -> Sent {
        Sent {
            since_start: self.now(),
            // A clock before the epoch gives stamps that no answer matches: those are timed by the wake-up.
            since_epoch: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        }
    }
}

/// The probes of one kind to one target.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) means: Means,
    pub(super) schedule: Schedule,
    pub(super) ledger: Ledger,
    pub(super) next_seq: u64,
}

/// How a probe is made.
#[derive(Debug)]
pub(super) enum Means {
    Datagrams(Datagrams),
    Connects(Connects),
}

/// Probes until the timeline is over and every probe has ended. Gives the probes back with their books.
pub(super) fn run(clock: &Clock, mut probes: Vec<Probe>) -> Vec<Probe> {
    // Where it fails, probes are a little later, and their lateness says so.
    let _ = nix::sys::prctl::set_timerslack(TIMER_SLACK_NS);
    loop {
        for probe in &mut probes {
            probe.receive(clock);
        }
        for probe in &mut probes {
            probe.send_due(clock);
        }
        clock.tell(&mut probes);
        let is_over = clock.timeline().is_over();
        if is_over && probes.iter().all(|probe| probe.ledger.is_empty()) {
            return probes;
        }
        wait(clock, &probes, is_over);
    }
}

fn wait(clock: &Clock, probes: &[Probe], is_over: bool) {
    let due = probes.iter().map(|probe| probe.schedule.next());
    let next = due.min().filter(|_| !is_over).unwrap_or(Duration::MAX);
    let timeout = next.saturating_sub(clock.now()).min(LONGEST_WAIT);
    let mut fds: Vec<PollFd<'_>> = probes
        .iter()
        .flat_map(Probe::fds)
        .map(|(fd, wanted)| PollFd::new(fd, wanted))
        .collect();
    // Interrupted or refused: the next turn looks at all sockets anyway. Refused for lack of memory, it must not spin.
    if ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None)
        .is_err_and(|errno| errno != Errno::EINTR)
    {
        std::thread::sleep(timeout.max(Duration::from_millis(1)));
    }
}

impl Probe {
    fn send_due(&mut self, clock: &Clock) {
        let Some(due) = self.schedule.take(clock.now()) else {
            return;
        };
        let stage = {
            let timeline = clock.timeline();
            for missed in due.missed {
                if let Some(stage) = timeline.stage(missed) {
                    self.ledger.missed(stage);
                }
            }
            timeline.stage(due.intended)
        };
        // After the end, nothing is due any more.
        let Some(stage) = stage else { return };
        let seq = self.next_seq;
        self.next_seq += 1;
        let mut sent = clock.sent();
        let result = match &mut self.means {
            Means::Datagrams(datagrams) => {
                let packet = datagrams.prepare(seq);
                sent = clock.sent();
                datagrams.send(&packet)
            }
            Means::Connects(connects) => {
                let prepared = connects.prepare(due.intended);
                let begun = connects.send(seq, prepared, || sent = clock.sent());
                if let Some(has_port) = begun.unbound_has_port {
                    self.ledger.unbound(stage, has_port);
                }
                begun.result
            }
        };
        match result {
            // Nothing was asked of the network: this host had no port or no file for the probe.
            Err(
                errno @ (Errno::EADDRNOTAVAIL | Errno::EADDRINUSE | Errno::EMFILE | Errno::ENFILE),
            ) => {
                self.ledger.missed(stage);
                self.ledger.noted(&format!("{errno:?}"));
            }
            result => {
                self.ledger.sent(seq, stage, due.intended, sent);
                if let Err(errno) = result {
                    self.ledger.failed(seq, &format!("{errno:?}"));
                }
            }
        }
    }

    fn receive(&mut self, clock: &Clock) {
        // Read before the sockets are: what comes later is not given up for it.
        let now = clock.now();
        match &mut self.means {
            Means::Datagrams(datagrams) => datagrams.receive(&mut self.ledger, || clock.now()),
            Means::Connects(connects) => connects.receive(&mut self.ledger, || clock.now()),
        }
        for seq in self.ledger.expire(now) {
            if let Means::Connects(connects) = &mut self.means {
                connects.give_up(seq);
            }
        }
    }

    fn fds(&self) -> Box<dyn Iterator<Item = (BorrowedFd<'_>, PollFlags)> + '_> {
        match &self.means {
            Means::Datagrams(datagrams) => {
                Box::new(std::iter::once((datagrams.fd(), PollFlags::POLLIN)))
            }
            Means::Connects(connects) => Box::new(connects.fds()),
        }
    }
}
