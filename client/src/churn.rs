//! Which connections of a worker churn.
//!
//! Pure. Connection `c` of `connections` churns where its rank steps up, which spreads those that do evenly, at no byte
//! for any. Invariant: exactly `count` of the connections churn.

/// The churning connections of one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Churners {
    count: u64,
    connections: u64,
}

impl Churners {
    /// `count` of `connections`, at most all.
    pub(crate) fn new(count: u64, connections: u64) -> Churners {
        Churners { count, connections }
    }

    /// Whether connection `c` churns.
    pub(crate) fn has(&self, c: u32) -> bool {
        self.rank(u64::from(c) + 1) > self.rank(c.into())
    }

    /// How many churn among the first `c`.
    pub(crate) fn rank(&self, c: u64) -> u64 {
        c * self.count / self.connections.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn so_many_as_asked_and_evenly(connections in 1u64..5000, share in 0.0..=1.0f64) {
            let count = (connections as f64 * share) as u64;
            let churners = Churners::new(count, connections);
            let mut chosen = 0;
            for c in 0..connections as u32 {
                prop_assert_eq!(chosen, churners.rank(c.into()));
                chosen += u64::from(churners.has(c));
                prop_assert_eq!(chosen, u64::from(c + 1) * count / connections);
            }
            prop_assert_eq!(chosen, count);
        }
    }
}
