//! Notices a worker that does nothing any more, so that a server never lives on half dead.
//!
//! Owns: a [`Pulse`] for each worker, which that worker alone writes, once a turn, and a thread that reads them. A
//! worker turns at least twice a second, also when nothing comes, so one whose pulse rests for the stall timeout is in a
//! loop, in a call that does not return, or gone.
//!
//! Invariant: only time that the watchdog itself was running through counts, so that a stopped process (SIGSTOP), a
//! suspended machine or a debugger is no stall.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::unistd::gettid;

use crate::notify::{Manager, Word};
use crate::worker::{Event, Gate};

/// What a worker shows of itself. A cache line of its own, so that workers do not slow each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Pulse {
    /// Turns in the upper half, wrapping; connections in the lower.
    beat: AtomicU64,
    /// The thread; 0 before it runs and after it has ended.
    thread: AtomicI32,
}

impl Pulse {
    /// The calling thread is the worker's, until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Alive {
        self.thread.store(gettid().as_raw(), Relaxed);
        Alive(Arc::clone(self))
    }

    /// One turn more, with so many connections held. One store: nobody else writes.
    pub fn beat(&self, turn: u32, held: u32) {
        self.beat
            .store(u64::from(turn) << 32 | u64::from(held), Relaxed);
    }

    fn look(&self) -> Option<(i32, u64)> {
        let thread = self.thread.load(Relaxed);
        (thread != 0).then(|| (thread, self.beat.load(Relaxed)))
    }

    /// Whether the worker's thread runs.
    pub fn is_alive(&self) -> bool {
        self.look().is_some()
    }

    /// The state of the worker, for a log. None where it does not run.
    pub fn state(&self) -> Option<State> {
        let (thread, beat) = self.look()?;
        Some(State {
            turns: (beat >> 32) as u32,
            held: beat as u32,
            doing: doing(thread),
        })
    }
}

/// Of a worker's thread that runs.
pub(crate) struct Alive(Arc<Pulse>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.thread.store(0, Relaxed);
    }
}

/// What a worker was doing when it was looked at.
#[derive(Clone, Debug)]
pub struct State {
    /// Turns of its loop so far, wrapping.
    pub turns: u32,
    /// Connections it held at its last turn.
    pub held: u32,
    /// Where its thread is, as the kernel says.
    pub doing: String,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} turns, with {} connections, {}",
            self.turns, self.held, self.doing
        )
    }
}

/// The state and the system call of a thread (proc_pid_stat(5), proc_pid_syscall(5)), as far as they can be read.
fn doing(thread: i32) -> String {
    let read = |file| std::fs::read_to_string(format!("/proc/self/task/{thread}/{file}"));
    let stat = read("stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or("");
    let state = match fields.chars().next() {
        Some('R') => "running",
        Some('S') => "asleep",
        Some('D') => "in an uninterruptible wait",
        Some('T' | 't') => "stopped",
        _ => return "in an unknown state".into(),
    };
    match read("syscall").ok().as_deref().map(str::trim) {
        Some("running") => format!("{state}, outside the kernel"),
        Some(call) => {
            let number = call.split(' ').next().unwrap_or("?");
            format!("{state}, in system call {number}")
        }
        None => state.into(),
    }
}

/// From one look at the workers to the next, where they may rest for `timeout`.
pub(crate) fn look_interval(timeout: Duration) -> Duration {
    const LOOKS: u32 = 20;
    timeout / LOOKS
}

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Watches `pulses` once `gate` is open; says [`Event::Stalled`] of the first that rests for `timeout`, and no more.
    /// Tells `manager` at each look that all live, while none has rested for half of that.
    pub(crate) fn start(
        pulses: Vec<Arc<Pulse>>,
        timeout: Duration,
        events: Sender<Event>,
        gate: Arc<Gate>,
        manager: Option<Arc<Manager>>,
    ) -> io::Result<Watchdog> {
        let (alive, ended) = channel();
        std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                let manager = manager.filter(|manager| manager.has_watchdog());
                let all_live = || {
                    if let Some(manager) = &manager {
                        // Said again at the next look.
                        let _ = manager.say(Word::Alive);
                    }
                };
                if *gate.wait()
                    && let Some(worker) = watch(&pulses, timeout, &ended, all_live)
                    && let Some(state) = pulses[worker].state()
                {
                    // Gone only where nobody waits for the server any more.
                    let _ = events.send(Event::Stalled { worker, state });
                }
            })?;
        Ok(Watchdog { _alive: alive })
    }
}

/// The first worker whose pulse rests for `timeout`. None when the watch is over before.
fn watch(
    pulses: &[Arc<Pulse>],
    timeout: Duration,
    ended: &Receiver<()>,
    mut all_live: impl FnMut(),
) -> Option<usize> {
    let every = look_interval(timeout);
    let mut last: Vec<_> = pulses.iter().map(|_| (None, Duration::ZERO)).collect();
    loop {
        let began = Instant::now();
        if ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
        // A look that comes late comes after a pause of the whole process, in which no worker could turn either.
        let passed = began.elapsed().min(every * 2);
        for (worker, (pulse, (beat, rested))) in pulses.iter().zip(&mut last).enumerate() {
            let now = pulse.look();
            if now.is_none() || now != *beat {
                (*beat, *rested) = (now, Duration::ZERO);
                continue;
            }
            *rested += passed;
            if *rested >= timeout {
                return Some(worker);
            }
        }
        if last.iter().all(|(_, rested)| *rested < timeout / 2) {
            all_live();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_rests_is_named_and_one_that_has_ended_is_not() {
        let pulses: Vec<Arc<Pulse>> = (0..3).map(|_| Arc::default()).collect();
        let ended = pulses[0].begin();
        let resting = pulses[1].begin();
        let beating = pulses[2].begin();
        drop(ended);
        let (stop, stopped) = channel::<()>();
        let living = Arc::clone(&pulses[2]);
        let heart = std::thread::spawn(move || {
            let mut turn = 0;
            while stopped.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                turn += 1;
                living.beat(turn, 7);
            }
        });
        let (events, heard) = channel();
        let timeout = Duration::from_secs(2);
        let gate = Arc::new(true.into());
        let dog = Watchdog::start(pulses.clone(), timeout, events, gate, None).unwrap();
        match heard.recv_timeout(Duration::from_secs(30)).unwrap() {
            Event::Stalled { worker, state } => assert_eq!((worker, state.held), (1, 0)),
            other => panic!("{other:?}"),
        }
        drop((stop, dog, resting, beating));
        heart.join().unwrap();
    }

    #[test]
    fn a_thread_is_described() {
        let text = doing(gettid().as_raw());
        assert!(text.starts_with("running"), "{text}");
    }
}
