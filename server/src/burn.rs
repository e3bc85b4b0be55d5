//! A server that wastes CPU time on purpose, so that a measurement can be tested: does it find the slow-down?
//!
//! Only in a build with the feature `burn`. Owns: what is owed of the CPU time that this process has used.
//! Invariant: over a hundred messages or more, the process uses the stated share more than it would without.

use std::sync::{Arc, Mutex, PoisonError};

use nix::time::{ClockId, clock_gettime};
use wire::{Out, Session};

/// Reading the clocks is then no cost of a message.
const MESSAGES_BETWEEN: u32 = 64;

/// Makes echo sessions which together burn `percent` of the CPU time that the process uses without them.
pub fn echo(percent: u8) -> impl Fn() -> Burning + Clone + Send + 'static {
    let debt = Arc::new(Debt {
        percent,
        paid: Mutex::default(),
    });
    move || Burning(Arc::clone(&debt))
}

/// An echo that burns.
#[derive(Debug)]
pub struct Burning(Arc<Debt>);

impl Session for Burning {
    fn on_open(&mut self, out: &mut Out<'_>) {
        wire::Echo.on_open(out);
    }

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        self.0.pay();
        wire::Echo.on_bytes(input, out)
    }

    fn on_tick(&mut self, out: &mut Out<'_>) {
        wire::Echo.on_tick(out);
    }

    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>) {
        wire::Echo.on_message(message, out);
    }

    fn on_eof(&mut self, rest: &[u8], out: &mut Out<'_>) {
        wire::Echo.on_eof(rest, out);
    }
}

#[derive(Debug)]
struct Debt {
    percent: u8,
    paid: Mutex<Paid>,
}

#[derive(Debug, Default)]
struct Paid {
    messages: u32,
    /// CPU time of the process, what was burnt included, up to which nothing is owed.
    until_ns: u64,
}

impl Debt {
    fn pay(&self) {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.messages += 1;
        if paid.messages < MESSAGES_BETWEEN {
            return;
        }
        let used_ns = cpu_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let owed_ns = used_ns.saturating_sub(paid.until_ns) * u64::from(self.percent) / 100;
        *paid = Paid {
            messages: 0,
            until_ns: used_ns + owed_ns,
        };
        drop(paid);
        let until_ns = cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID) + owed_ns;
        while cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID) < until_ns {
            std::hint::spin_loop();
        }
    }
}

/// 0 where there is no such clock: then nothing is burnt.
fn cpu_ns(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_burns_at_least_its_share() {
        let used_ns = || cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let mut session = echo(100)();
        let mut room = [0; Out::MIN_ROOM];
        let mut own_ns = 0;
        let began_ns = used_ns();
        for _ in 0..100 * MESSAGES_BETWEEN {
            let before_ns = used_ns();
            while used_ns() < before_ns + 5_000 {}
            own_ns += 5_000;
            assert_eq!(session.on_bytes(b"x", &mut Out::new(&mut room)), 1);
        }
        assert!(used_ns() - began_ns >= 2 * own_ns);
    }
}
