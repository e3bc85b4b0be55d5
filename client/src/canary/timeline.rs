//! Which stage of the run it was at a time, and when which probe is due (pure).
//!
//! Invariant: a slot of a schedule is either sent once or counted as missed, never sent later to catch up; what happened
//! belongs to the stage in which it was intended, however late the prober looked.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::shape::{MOST_LEVELS, step_name};

/// What the run does while a probe is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing: what all others are compared with.
    Baseline,
    /// Connections are established.
    Ramp,
    /// What a step has brought up is held, before the next; the first step is 1.
    Step(u8),
    /// They are held, before the server's heartbeat begins.
    Idle,
    /// They are held; what is to churn is closed and made again.
    Hold,
    /// They exchange messages.
    Active,
    /// The server publishes to all of them.
    Storm,
    /// All are closed, at once or spread.
    Close,
    /// Nothing any more.
    Recovery,
}

impl Stage {
    /// In the order of a run.
    pub fn all() -> impl Iterator<Item = Stage> {
        // After as many levels comes the last one, which is the hold.
        let steps = (1..MOST_LEVELS as u8).map(Stage::Step);
        [Stage::Baseline, Stage::Ramp]
            .into_iter()
            .chain(steps)
            .chain([
                Stage::Idle,
                Stage::Hold,
                Stage::Active,
                Stage::Storm,
                Stage::Close,
                Stage::Recovery,
            ])
    }

    /// The word for it, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Baseline => "baseline",
            Stage::Ramp => "ramp",
            Stage::Step(step) => step_name(step),
            Stage::Idle => "idle",
            Stage::Hold => "hold",
            Stage::Active => "active",
            Stage::Storm => "storm",
            Stage::Close => "close",
            Stage::Recovery => "recovery",
        }
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The stages so far, each with when it began. Times count from the canaries' start.
#[derive(Debug)]
pub(super) struct Timeline {
    stages: Vec<(Duration, Stage)>,
    end: Option<Duration>,
}

impl Timeline {
    /// Begins with the baseline.
    pub(super) fn new() -> Timeline {
        Timeline {
            stages: vec![(Duration::ZERO, Stage::Baseline)],
            end: None,
        }
    }

    pub(super) fn enter(&mut self, stage: Stage, at: Duration) {
        if self.stages.last().is_none_or(|(_, last)| *last != stage) {
            self.stages.push((at, stage));
        }
    }

    /// No probe is due from `at` on.
    pub(super) fn finish(&mut self, at: Duration) {
        self.end.get_or_insert(at);
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// The stage at a time; none after the end.
    pub(super) fn stage(&self, at: Duration) -> Option<Stage> {
        if self.end.is_some_and(|end| at >= end) {
            return None;
        }
        let later = self.stages.partition_point(|(begin, _)| *begin <= at);
        Some(self.stages[later.saturating_sub(1)].1)
    }

    /// How long `stage` lasted, all its turns together; none when it never began.
    pub(super) fn lasted(&self, stage: Stage) -> Option<Duration> {
        let ends = self.stages.iter().skip(1).map(|(begin, _)| *begin);
        let end = self
            .end
            .or(self.stages.last().map(|(begin, _)| *begin))
            .into_iter();
        self.stages
            .iter()
            .zip(ends.chain(end))
            .filter(|((_, s), _)| *s == stage)
            .map(|((begin, _), end)| end.saturating_sub(*begin))
            .reduce(|sum, part| sum + part)
    }
}

/// When the probes of one kind to one target are due: at an even interval.
#[derive(Debug)]
pub(super) struct Schedule {
    next: Duration,
    interval: Duration,
}

/// A probe to be sent now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// When it was to be sent.
    pub(super) intended: Duration,
    /// Slots after it that have passed too: they are not sent.
    pub(super) missed: Vec<Duration>,
}

impl Schedule {
    pub(super) fn new(first: Duration, interval: Duration) -> Schedule {
        Schedule {
            next: first,
            interval,
        }
    }

    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// The earliest slot that is due and was not sent; those that passed as well are given up.
    pub(super) fn take(&mut self, now: Duration) -> Option<Due> {
        if now < self.next {
            return None;
        }
        let intended = self.next;
        let mut missed = Vec::new();
        self.next += self.interval;
        while self.next <= now {
            missed.push(self.next);
            self.next += self.interval;
        }
        Some(Due { intended, missed })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_time_belongs_to_the_stage_it_was_in() {
        let mut timeline = Timeline::new();
        timeline.enter(Stage::Ramp, ms(100));
        timeline.enter(Stage::Hold, ms(250));
        timeline.enter(Stage::Hold, ms(300));
        timeline.enter(Stage::Close, ms(400));
        timeline.finish(ms(500));
        for (at, stage) in [
            (0, Stage::Baseline),
            (99, Stage::Baseline),
            (100, Stage::Ramp),
            (399, Stage::Hold),
            (499, Stage::Close),
        ] {
            assert_eq!(timeline.stage(ms(at)), Some(stage), "{at}");
        }
        assert_eq!(timeline.stage(ms(500)), None);
        assert_eq!(timeline.lasted(Stage::Hold), Some(ms(150)));
        assert_eq!(timeline.lasted(Stage::Close), Some(ms(100)));
        assert_eq!(timeline.lasted(Stage::Active), None);
    }

    #[test]
    fn a_prober_that_slept_sends_once_and_counts_the_rest() {
        let mut schedule = Schedule::new(ms(0), ms(20));
        assert_eq!(schedule.take(ms(5)).unwrap().intended, ms(0));
        assert_eq!(schedule.take(ms(19)), None);
        let due = schedule.take(ms(105)).unwrap();
        assert_eq!(due.intended, ms(20));
        assert_eq!(due.missed, [ms(40), ms(60), ms(80), ms(100)]);
        assert_eq!(schedule.next(), ms(120));
    }

    #[test]
    fn each_stage_has_a_name_of_its_own_in_the_order_of_a_run() {
        let all: Vec<Stage> = Stage::all().collect();
        assert!(all.is_sorted());
        let names: std::collections::BTreeSet<&str> =
            all.iter().map(|stage| stage.name()).collect();
        assert_eq!(names.len(), all.len());
    }

    proptest! {
        /// Whenever the prober looks, each slot up to then is sent or missed, exactly once, and at most one a look.
        #[test]
        fn no_slot_is_lost_or_sent_twice(sleeps in prop::collection::vec(0_u64..200, 1..100), interval in 1_u64..50) {
            let mut schedule = Schedule::new(ms(0), ms(interval));
            let (mut now, mut slots) = (0, Vec::new());
            for sleep in sleeps {
                now += sleep;
                if let Some(due) = schedule.take(ms(now)) {
                    slots.push(due.intended);
                    slots.extend(due.missed);
                }
            }
            let expected: Vec<_> = (0..=now / interval).map(|n| ms(n * interval)).collect();
            prop_assert_eq!(slots, expected);
        }
    }
}
