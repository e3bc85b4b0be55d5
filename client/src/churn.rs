//! Which connections of a worker churn, and from where each of them connects again and again.
//!
//! Pure. Connection `c` of `connections` churns where its rank steps up, which spreads those that do evenly, at no byte
//! for those that do not. Invariant: exactly `count` of the connections churn.

use crate::source::Assignment;

/// The churning connections of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Churners {
    count: u64,
    connections: u64,
    /// By rank. A connection keeps its assignment, unless the port turns out to be taken while it is first made.
    assignments: Vec<Assignment>,
}

impl Churners {
    /// `count` of `connections`, at most all.
    pub(crate) fn new(count: u64, connections: u64) -> Churners {
        Churners {
            count,
            connections,
            assignments: Vec::new(),
        }
    }

    /// Whether connection `c` churns.
    pub(crate) fn has(&self, c: u32) -> bool {
        self.rank(u64::from(c) + 1) > self.rank(c.into())
    }

    /// Connection `c` is made by `assignment`. New connections come in order.
    pub(crate) fn remember(&mut self, c: u32, assignment: Assignment) {
        if !self.has(c) {
            return;
        }
        let rank = self.rank(c.into()) as usize;
        match self.assignments.get_mut(rank) {
            Some(earlier) => *earlier = assignment,
            None => self.assignments.push(assignment),
        }
    }

    /// What churning connection `c` was made by.
    pub(crate) fn assignment(&self, c: u32) -> Assignment {
        self.assignments[self.rank(c.into()) as usize]
    }

    /// How many churn among the first `c`.
    fn rank(&self, c: u64) -> u64 {
        c * self.count / self.connections.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn assignment(port: u32) -> Assignment {
        Assignment {
            source: SocketAddr::from(([127, 1, 0, 1], port as u16)),
            target: 0,
        }
    }

    proptest! {
        #[test]
        fn so_many_as_asked_evenly_each_with_its_own_assignment(connections in 1u64..5000, share in 0.0..=1.0f64) {
            let count = (connections as f64 * share) as u64;
            let mut churners = Churners::new(count, connections);
            let mut chosen = Vec::new();
            for c in 0..connections as u32 {
                churners.remember(c, assignment(c));
                if churners.has(c) {
                    chosen.push(c);
                }
                let even = u64::from(c + 1) * count / connections;
                prop_assert_eq!(chosen.len() as u64, even);
            }
            prop_assert_eq!(chosen.len() as u64, count);
            for c in &chosen {
                prop_assert_eq!(churners.assignment(*c), assignment(*c));
            }
            // A port that was taken.
            if let Some(first) = chosen.first() {
                churners.remember(*first, assignment(60_000));
                prop_assert_eq!(churners.assignment(*first), assignment(60_000));
            }
            for c in chosen.iter().skip(1) {
                prop_assert_eq!(churners.assignment(*c), assignment(*c));
            }
        }
    }
}
