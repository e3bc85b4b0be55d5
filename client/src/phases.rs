//! What the counters of this host did in each phase of a run.
//!
//! Touches `/proc` and `/sys`, by `kernel_tuning::host`. Invariant: what grows between the first reading and the last
//! belongs to exactly one phase. The counters are those of the network namespace, and of the whole host where the kernel
//! has but one (softnet, neighbours): the traffic of others counts too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use indicatif::HumanCount;
use kernel_tuning::host::{NetCounters, interface_statistics, route};
use serde::Serialize;

use crate::counters::Phase;

/// How this client ends its connections, and how it is told of those it loses, by their cause.
const EXPECTED: &str = "EstabResets";

/// The counters of all phases.
#[derive(Clone, Debug, Serialize)]
pub struct HostCounters {
    /// The interfaces that packets to the targets go over.
    pub interfaces: Vec<String>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
    /// In order.
    pub phases: Vec<PhaseCounters>,
}

/// What grew in one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseCounters {
    /// Its name, as in samples.
    pub phase: &'static str,
    /// When it began, from the start of the run on.
    pub began_seconds: f64,
    /// How long it lasted.
    pub seconds: f64,
    /// The kernel's network counters that grew, by how much.
    pub network: NetCounters,
    /// Those statistics of each interface that grew, by how much.
    pub interfaces: BTreeMap<String, NetCounters>,
    /// Those of them that mean trouble, in words.
    pub trouble: Vec<String>,
}

impl HostCounters {
    /// The phases in which something moved that means trouble.
    pub fn troubled(&self) -> impl Iterator<Item = &PhaseCounters> {
        self.phases.iter().filter(|phase| !phase.trouble.is_empty())
    }
}

/// Reads the counters at each change of phase.
pub(crate) struct Watch {
    unread: BTreeSet<String>,
    last: Reading,
    phase: Phase,
    since: Duration,
    ended: Vec<PhaseCounters>,
}

impl Watch {
    /// The first reading, before the ramp to `targets`.
    pub(crate) fn new(targets: &[SocketAddr]) -> Watch {
        let (mut unread, mut interfaces) = (BTreeSet::new(), BTreeMap::new());
        for target in targets {
            match route(target.ip()).and_then(|route| route.interface) {
                Some(name) => _ = interfaces.insert(name, NetCounters::default()),
                None => {
                    let ip = target.ip();
                    unread.insert(format!("no interface is known to lead to {ip}"));
                }
            }
        }
        let known = Reading {
            network: NetCounters::default(),
            interfaces,
        };
        Watch {
            last: known.again(&mut unread),
            unread,
            phase: Phase::Ramp,
            since: Duration::ZERO,
            ended: Vec::new(),
        }
    }

    /// `phase` begins at `now`.
    pub(crate) fn enter(&mut self, phase: Phase, now: Duration) {
        if phase == self.phase {
            return;
        }
        let reading = self.last.again(&mut self.unread);
        let time = (self.since, now);
        self.ended
            .push(PhaseCounters::new(self.phase, time, &self.last, &reading));
        (self.last, self.phase, self.since) = (reading, phase, now);
    }

    /// What has moved in the phase so far and means trouble, in words.
    pub(crate) fn trouble_so_far(&self) -> Vec<String> {
        // What cannot be read is told when the phase ends.
        let reading = self.last.again(&mut BTreeSet::new());
        let time = (self.since, self.since);
        PhaseCounters::new(self.phase, time, &self.last, &reading).trouble
    }

    /// The last phase ends at `now`.
    pub(crate) fn finish(mut self, now: Duration) -> HostCounters {
        let reading = self.last.again(&mut self.unread);
        let time = (self.since, now);
        self.ended
            .push(PhaseCounters::new(self.phase, time, &self.last, &reading));
        HostCounters {
            interfaces: reading.interfaces.into_keys().collect(),
            unread: self.unread.into_iter().collect(),
            phases: self.ended,
        }
    }
}

struct Reading {
    network: NetCounters,
    interfaces: BTreeMap<String, NetCounters>,
}

impl Reading {
    /// The same counters now; empty ones where they cannot be read, and why.
    fn again(&self, unread: &mut BTreeSet<String>) -> Reading {
        let mut read = |counters: Result<NetCounters, _>| {
            counters.unwrap_or_else(|error: kernel_tuning::host::HostError| {
                unread.insert(error.to_string());
                NetCounters::default()
            })
        };
        Reading {
            network: read(NetCounters::read()),
            interfaces: self
                .interfaces
                .keys()
                .map(|name| (name.clone(), read(interface_statistics(name))))
                .collect(),
        }
    }
}

impl PhaseCounters {
    fn new(phase: Phase, time: (Duration, Duration), from: &Reading, to: &Reading) -> Self {
        let network = to.network.grown(&from.network);
        let mut interfaces = BTreeMap::new();
        for (name, now) in &to.interfaces {
            if let Some(before) = from.interfaces.get(name) {
                interfaces.insert(name.clone(), now.grown(before));
            }
        }
        let mut trouble: Vec<String> = in_words(&network, "").collect();
        for (name, counters) in &interfaces {
            trouble.extend(in_words(counters, &format!(" of {name}")));
        }
        PhaseCounters {
            phase: phase.name(),
            began_seconds: time.0.as_secs_f64(),
            seconds: time.1.saturating_sub(time.0).as_secs_f64(),
            network,
            interfaces,
            trouble,
        }
    }
}

fn in_words(counters: &NetCounters, whose: &str) -> impl Iterator<Item = String> {
    counters
        .troubles()
        .filter(|(name, ..)| *name != EXPECTED)
        .map(move |(name, count, meaning)| {
            format!("{} {meaning} [{name}{whose}]", HumanCount(count))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(network: &[(&str, u64)], lo: &[(&str, u64)]) -> Reading {
        let counters = |all: &[(&str, u64)]| {
            all.iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect()
        };
        Reading {
            network: counters(network),
            interfaces: BTreeMap::from([("eth0".to_owned(), counters(lo))]),
        }
    }

    #[test]
    fn what_moved_in_a_phase_is_said_in_words_and_traffic_is_not() {
        let from = reading(
            &[
                ("TCPSynRetrans", 5),
                ("RetransSegs", 0),
                ("EstabResets", 1),
                ("ListenDrops", 7),
            ],
            &[("rx_packets", 10), ("rx_missed_errors", 0)],
        );
        let to = reading(
            &[
                ("TCPSynRetrans", 450),
                ("EstabResets", 9),
                ("ListenDrops", 7),
            ],
            &[("rx_packets", 99), ("rx_missed_errors", 3)],
        );
        let time = (Duration::from_secs(1), Duration::from_secs(3));
        let phase = PhaseCounters::new(Phase::Hold, time, &from, &to);
        assert_eq!(
            (phase.phase, phase.began_seconds, phase.seconds),
            ("hold", 1.0, 2.0)
        );
        assert_eq!(phase.network.get("TCPSynRetrans"), Some(445));
        assert_eq!(phase.network.get("EstabResets"), Some(8));
        assert_eq!(phase.network.get("ListenDrops"), None);
        assert_eq!(phase.interfaces["eth0"].get("rx_packets"), Some(89));
        let [syns, missed] = phase.trouble.as_slice() else {
            panic!("{:?}", phase.trouble);
        };
        assert!(
            syns.starts_with("445 SYN and SYN-ACK packets sent again")
                && syns.ends_with("[TCPSynRetrans]"),
            "{syns}"
        );
        assert!(
            missed.starts_with("3 packets that the NIC dropped")
                && missed.ends_with("[rx_missed_errors of eth0]"),
            "{missed}"
        );
    }

    #[test]
    fn each_phase_is_told_once_and_an_interface_that_is_not_there_is_said() {
        let mut watch = Watch::new(&[([127, 0, 0, 1], 7000).into()]);
        watch
            .last
            .interfaces
            .insert("no-such0".to_owned(), NetCounters::default());
        watch.enter(Phase::Ramp, Duration::ZERO);
        watch.enter(Phase::Hold, Duration::from_secs(1));
        watch.enter(Phase::Done, Duration::from_secs(2));
        let all = watch.finish(Duration::from_secs(3));
        let names: Vec<&str> = all.phases.iter().map(|phase| phase.phase).collect();
        assert_eq!(names, ["ramp", "hold", "done"]);
        assert_eq!(all.interfaces, ["lo", "no-such0"]);
        assert_eq!(all.unread.len(), 1, "{:?}", all.unread);
        assert!(all.phases.iter().all(|phase| phase.seconds == 1.0));
    }
}
