//! What the view shows.
//!
//! Pure: takes the times. Owns the last values of each figure. Invariant: it is bounded, however long a run lasts; what
//! happened since the last look is shown in this one, and in no other.

use std::collections::VecDeque;
use std::time::Duration;

use crate::canary::News;
use crate::config::Config;
use crate::counters::{Causes, Counts};
use crate::display::Length;
use crate::rates::Rates;

/// Between two looks: one column of a sparkline.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Values kept of a figure: more columns than a terminal has.
const KEPT: usize = 512;

/// What a run says of itself at a look.
pub(crate) struct Scene {
    /// What it does.
    pub(crate) stage: &'static str,
    pub(crate) length: Length,
    /// Its connections are there, or were.
    pub(crate) is_closed: bool,
    pub(crate) counts: Counts,
    pub(crate) causes: Causes,
    /// The longest latency since the last look.
    pub(crate) slowest: Duration,
    /// Each probe by name, since the last look.
    pub(crate) canaries: Vec<(String, News)>,
    /// What moved on this host in this phase and means trouble, where that was read.
    pub(crate) trouble: Option<Vec<String>>,
}

/// The last values of a figure, the newest at the back.
#[derive(Debug, Default)]
pub(super) struct Series(VecDeque<u64>);

impl Series {
    fn push(&mut self, value: u64) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The newest, 0 where there is none yet.
    pub(super) fn newest(&self) -> u64 {
        self.0.back().copied().unwrap_or(0)
    }

    /// Those of the last `count` looks, the newest first.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = u64> {
        self.0.iter().rev().take(count).copied()
    }
}

/// One kind of probe to one target.
#[derive(Debug, Default)]
pub(super) struct Probe {
    pub(super) name: String,
    /// Of its latest answer.
    pub(super) rtt: Option<Duration>,
    /// Nanoseconds, of the slowest answer in each look.
    pub(super) slowest_ns: Series,
    pub(super) lost: u64,
}

/// All that is shown.
pub(super) struct Model {
    pub(super) targets: String,
    pub(super) wanted: u64,
    /// What the configuration asks for, and so is shown though it is nought.
    pub(super) has_heartbeats: bool,
    pub(super) has_messages: bool,
    pub(super) has_cycles: bool,
    pub(super) stage: &'static str,
    /// How long it has lasted, and is to.
    pub(super) lasted: Duration,
    pub(super) length: Length,
    pub(super) is_closed: bool,
    pub(super) counts: Counts,
    pub(super) causes: Causes,
    /// Per second.
    pub(super) connects: Series,
    pub(super) messages: Series,
    pub(super) cycles: Series,
    pub(super) heartbeats: Series,
    /// Microseconds.
    pub(super) latency_mean_us: Series,
    pub(super) latency_max_us: Series,
    pub(super) probes: Vec<Probe>,
    /// The most that the prober was late by, in each look.
    pub(super) lateness_ns: Series,
    pub(super) not_sent: u64,
    pub(super) trouble: Vec<String>,
    pub(super) log: Option<String>,
    rates: Rates,
    began: Duration,
}

impl Model {
    pub(super) fn new(config: &Config) -> Model {
        let targets: Vec<String> = config.targets.iter().map(ToString::to_string).collect();
        Model {
            targets: targets.join(", "),
            wanted: config.connections,
            has_heartbeats: !config.heartbeat.is_zero(),
            has_messages: config.active > 0,
            has_cycles: config.churn > 0,
            stage: "",
            lasted: Duration::ZERO,
            length: Length::Unknown,
            is_closed: false,
            counts: Counts::default(),
            causes: Causes::default(),
            connects: Series::default(),
            messages: Series::default(),
            cycles: Series::default(),
            heartbeats: Series::default(),
            latency_mean_us: Series::default(),
            latency_max_us: Series::default(),
            probes: Vec::new(),
            lateness_ns: Series::default(),
            not_sent: 0,
            trouble: Vec::new(),
            log: None,
            rates: Rates::new(Duration::ZERO),
            began: Duration::ZERO,
        }
    }

    /// Takes in what there is to say at `now`.
    pub(super) fn look(&mut self, now: Duration, scene: Scene) {
        if self.stage != scene.stage {
            (self.stage, self.began) = (scene.stage, now);
            self.trouble.clear();
        }
        self.lasted = now.saturating_sub(self.began);
        self.length = scene.length;
        self.is_closed = scene.is_closed;
        let rates = self.rates.look(now, &scene.counts);
        for (series, rate) in [
            (&mut self.connects, rates.connects),
            (&mut self.messages, rates.messages),
            (&mut self.cycles, rates.cycles),
            (&mut self.heartbeats, rates.heartbeats),
        ] {
            series.push(rate.round() as u64);
        }
        let timed = scene.counts.timed.saturating_sub(self.counts.timed);
        let timed_us = scene.counts.timed_us.saturating_sub(self.counts.timed_us);
        self.latency_mean_us
            .push(timed_us.checked_div(timed).unwrap_or(0));
        self.latency_max_us.push(scene.slowest.as_micros() as u64);
        self.counts = scene.counts;
        self.causes = scene.causes;
        if let Some(trouble) = scene.trouble {
            self.trouble = trouble;
        }
        self.hear(scene.canaries);
    }

    fn hear(&mut self, canaries: Vec<(String, News)>) {
        let lateness = canaries.iter().map(|(_, news)| news.lateness).max();
        self.lateness_ns
            .push(lateness.unwrap_or_default().as_nanos() as u64);
        for (name, news) in canaries {
            self.not_sent += news.not_sent;
            let known = self.probes.iter().position(|probe| probe.name == name);
            let index = known.unwrap_or_else(|| {
                self.probes.push(Probe {
                    name,
                    ..Probe::default()
                });
                self.probes.len() - 1
            });
            let probe = &mut self.probes[index];
            probe.rtt = news.rtt.or(probe.rtt);
            probe.lost += news.lost;
            let slowest = news.slowest.unwrap_or_default();
            probe.slowest_ns.push(slowest.as_nanos() as u64);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn model(flags: &str) -> Model {
        let args = format!("throng-client 127.0.0.1:7000 {flags}");
        let (config, _) = Config::parse(args.split_whitespace().map(Into::into)).unwrap();
        Model::new(&config)
    }

    pub(in super::super) fn scene(counts: Counts) -> Scene {
        Scene {
            stage: "active",
            length: Length::Time(Duration::from_secs(10)),
            is_closed: false,
            counts,
            causes: Causes::default(),
            slowest: Duration::ZERO,
            canaries: Vec::new(),
            trouble: None,
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    proptest! {
        /// A series keeps the last values, in order, and no more than it may.
        #[test]
        fn a_series_is_the_last_values(values in prop::collection::vec(any::<u64>(), 0..2 * KEPT), count in 0..2 * KEPT) {
            let mut series = Series::default();
            for value in &values {
                series.push(*value);
            }
            let expected: Vec<u64> = values.iter().rev().take(count.min(KEPT)).copied().collect();
            prop_assert_eq!(series.last(count).collect::<Vec<_>>(), expected);
            prop_assert_eq!(series.newest(), values.last().copied().unwrap_or(0));
        }
    }

    #[test]
    fn rates_and_latency_are_those_since_the_last_look() {
        let mut model = model("--active 10");
        let mut counts = Counts {
            established: 1000,
            messages: 500,
            timed: 1000,
            timed_us: 50_000,
            ..Counts::default()
        };
        model.look(ms(500), scene(counts));
        assert_eq!(
            (model.connects.newest(), model.messages.newest()),
            (2000, 1000)
        );
        assert_eq!(model.latency_mean_us.newest(), 50);
        counts.messages += 50;
        counts.timed += 10;
        counts.timed_us += 2_000;
        model.look(
            ms(750),
            Scene {
                slowest: ms(3),
                ..scene(counts)
            },
        );
        assert_eq!((model.connects.newest(), model.messages.newest()), (0, 200));
        assert_eq!(model.latency_mean_us.newest(), 200);
        assert_eq!(model.latency_max_us.newest(), 3_000);
        // Nothing was timed: no latency, and not that of before.
        model.look(ms(1_000), scene(counts));
        assert_eq!(model.latency_mean_us.newest(), 0);
    }

    #[test]
    fn a_stage_is_as_old_as_its_first_look() {
        let mut model = model("");
        let stage = |stage| Scene {
            stage,
            ..scene(Counts::default())
        };
        model.look(ms(250), stage("ramp"));
        model.look(ms(1_000), stage("ramp"));
        assert_eq!(model.lasted, ms(750));
        model.look(ms(1_250), stage("hold"));
        assert_eq!(model.lasted, ms(0));
    }

    #[test]
    fn losses_of_a_probe_add_up_and_its_latest_answer_stays() {
        let mut model = model("");
        let news = |rtt: Option<Duration>, lost| News {
            rtt,
            slowest: rtt,
            lost,
            not_sent: 1,
            lateness: ms(2),
        };
        for (rtt, lost) in [(Some(ms(4)), 0), (None, 3), (None, 2)] {
            let canaries = vec![("ping 127.0.0.1".to_owned(), news(rtt, lost))];
            model.look(
                ms(250),
                Scene {
                    canaries,
                    ..scene(Counts::default())
                },
            );
        }
        let [probe] = model.probes.as_slice() else {
            panic!("{:?}", model.probes);
        };
        assert_eq!((probe.rtt, probe.lost), (Some(ms(4)), 5));
        assert_eq!(
            probe.slowest_ns.last(3).collect::<Vec<_>>(),
            [0, 0, 4_000_000]
        );
        assert_eq!((model.not_sent, model.lateness_ns.newest()), (3, 2_000_000));
    }
}
