//! What the server promises once it is told to stop: nobody is closed for that before three quarters of the drain's time,
//! then evenly, and nobody with something unsent before its end.

use std::time::Duration;

/// The stop as the world told it. The worker's own begins up to a turn later, so that every bound here is the widest.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    told_at_ns: u64,
    timeout_ns: u64,
    /// Told to end at once.
    hurried_at_ns: Option<u64>,
    /// Connections that had no other reason to end than the drain.
    pub let_go: u64,
}

impl Stop {
    pub fn new(told_at_ns: u64, timeout: Duration) -> Stop {
        Stop {
            told_at_ns,
            timeout_ns: timeout.as_nanos() as u64,
            hurried_at_ns: None,
            let_go: 0,
        }
    }

    pub fn hurry(&mut self, now_ns: u64) {
        self.hurried_at_ns.get_or_insert(now_ns);
    }

    pub fn is_hurried(&self) -> bool {
        self.hurried_at_ns.is_some()
    }

    /// The first moment at which everything may be cut off.
    pub fn ends_at_ns(&self) -> u64 {
        let ends_at_ns = self.told_at_ns + self.timeout_ns;
        self.hurried_at_ns
            .map_or(ends_at_ns, |hurried| hurried.min(ends_at_ns))
    }

    /// From when on connections are let go.
    pub fn lets_go_from_ns(&self) -> u64 {
        self.told_at_ns + self.timeout_ns / 4 * 3
    }

    /// When all have been let go.
    pub fn has_let_go_ns(&self) -> u64 {
        self.lets_go_from_ns() + self.timeout_ns / 5
    }

    /// A connection may be closed at `now_ns` for no other reason.
    pub fn excuses(&self, now_ns: u64, said_all: bool) -> bool {
        now_ns >= self.ends_at_ns() || (now_ns >= self.lets_go_from_ns() && said_all)
    }

    /// How many of `slots` may have been let go by `now_ns`.
    pub fn most_let_go(&self, now_ns: u64, slots: u64) -> u64 {
        if now_ns >= self.ends_at_ns() {
            return u64::MAX;
        }
        let elapsed_ns = u128::from(now_ns.saturating_sub(self.lets_go_from_ns()));
        let due = u128::from(slots) * elapsed_ns / u128::from((self.timeout_ns / 5).max(1));
        due as u64
    }
}
