//! When a mass close is over (pure): a ring's sockets are closed by the kernel, after the ring has gone.
//!
//! Told by the number of TCP sockets of the host (network namespace), and others may open and close some meanwhile: it
//! is over when the number is back where it was, or has ceased to fall.

use std::time::Duration;

/// A number that has not fallen for this long will not fall for the mass close any more.
const QUIET: Duration = Duration::from_millis(500);

/// Watches the number of sockets.
#[derive(Debug)]
pub(super) struct Teardown {
    /// None: this host does not say.
    before: Option<u64>,
    /// What does not matter.
    grain: u64,
    lowest: u64,
    /// When the number last fell by more than that.
    fell: Option<Duration>,
}

impl Teardown {
    /// Of `held` connections, when there were `before` sockets without them.
    pub(super) fn new(before: Option<u64>, held: u64) -> Teardown {
        Teardown {
            before,
            grain: held / 100,
            lowest: u64::MAX,
            fell: None,
        }
    }

    /// Whether it is over at `now`, with so many `sockets`.
    pub(super) fn is_over(&mut self, sockets: Option<u64>, now: Duration) -> bool {
        let (Some(before), Some(sockets)) = (self.before, sockets) else {
            return true;
        };
        if self.fell.is_none() || sockets + self.grain < self.lowest {
            self.lowest = sockets;
            self.fell = Some(now);
        }
        let is_quiet = self.fell.is_some_and(|fell| now - fell >= QUIET);
        sockets <= before + self.grain || is_quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first of these numbers, one each 100 ms, at which it is over.
    fn over(before: Option<u64>, numbers: &[u64]) -> Option<usize> {
        let mut teardown = Teardown::new(before, 1000);
        (0_u32..).zip(numbers).position(|(n, sockets)| {
            teardown.is_over(Some(*sockets), Duration::from_millis(100) * n)
        })
    }

    #[test]
    fn it_is_over_when_the_number_is_back_or_falls_no_more() {
        assert_eq!(over(Some(50), &[2050, 1500, 400, 55, 50]), Some(3));
        // Another program has opened 300 since.
        assert_eq!(
            over(Some(50), &[2350, 1500, 400, 350, 350, 349, 351, 350, 350]),
            Some(8)
        );
        // A pause is not the end, if it is short.
        assert_eq!(over(Some(50), &[2050, 2050, 2050, 1000, 900, 50]), Some(5));
        assert_eq!(over(None, &[2050]), Some(0));
    }
}
