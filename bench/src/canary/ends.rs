//! What the counters at an end of the path did in each phase.
//!
//! Those of the client's end come from its own summary; those of the server's end, where it has a network namespace of
//! its own, are read here, in there, when the client says that a phase begins. Invariant: what grew between the first
//! reading and the last belongs to exactly one phase.

use std::collections::BTreeMap;
use std::time::Instant;

use kernel_tuning::host::{HostError, NetCounters, interface_statistics};
use serde::{Deserialize, Serialize};

use crate::netns::{Inside, SERVER_DEVICE};
use crate::report::format::count;

/// How the clients end their connections, and how a server is told of it.
const EXPECTED: &str = "EstabResets";

/// The counters of all phases at one end, in the form of the client's summary. Those of softnet and of neighbours are the
/// whole host's, and the same at both ends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EndCounters {
    /// The interfaces that packets go over.
    pub interfaces: Vec<String>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
    /// In order.
    pub phases: Vec<PhaseCounters>,
}

/// What grew in one phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseCounters {
    /// Its name, as in the client's samples.
    pub phase: String,
    /// How long it lasted.
    pub seconds: f64,
    /// The kernel's network counters that grew, by how much.
    pub network: NetCounters,
    /// Those statistics of each interface that grew, by how much.
    pub interfaces: BTreeMap<String, NetCounters>,
    /// Those of them that mean trouble, in words.
    pub trouble: Vec<String>,
}

/// The namespace's counters, and those of the device in it.
type Reading = Result<(NetCounters, NetCounters), HostError>;

/// Reads the counters in the server's namespace at each change of phase.
pub struct Watch<'a> {
    inside: &'a Inside,
    phase: String,
    since: Instant,
    last: Reading,
    counters: EndCounters,
}

impl<'a> Watch<'a> {
    /// The first reading, before the client starts.
    pub fn new(inside: &'a Inside) -> Self {
        Self {
            inside,
            phase: "baseline".to_owned(),
            since: Instant::now(),
            last: read(inside),
            counters: EndCounters {
                interfaces: vec![SERVER_DEVICE.to_owned()],
                ..EndCounters::default()
            },
        }
    }

    /// `phase` has begun.
    pub fn enter(&mut self, phase: &str) {
        let now = (read(self.inside), Instant::now());
        match (&self.last, &now.0) {
            (Ok(before), Ok(after)) => self.counters.phases.push(PhaseCounters::new(
                &self.phase,
                (now.1 - self.since).as_secs_f64(),
                after.0.grown(&before.0),
                after.1.grown(&before.1),
            )),
            (Err(error), _) | (_, Err(error)) => {
                let unread = format!("in {}: {error}", self.phase);
                self.counters.unread.push(unread);
            }
        }
        (self.last, self.since) = now;
        phase.clone_into(&mut self.phase);
    }

    /// The last phase has ended.
    pub fn finish(mut self) -> EndCounters {
        self.enter("");
        self.counters
    }
}

fn read(inside: &Inside) -> Reading {
    let read = || Ok((NetCounters::read()?, interface_statistics(SERVER_DEVICE)?));
    inside.run(read).unwrap_or_else(|cause| {
        let path = "/proc/thread-self/net".into();
        let hint = "";
        Err(HostError::Read { path, cause, hint })
    })
}

impl PhaseCounters {
    fn new(phase: &str, seconds: f64, network: NetCounters, of_device: NetCounters) -> Self {
        let trouble = |counters: &NetCounters, whose: &str| -> Vec<String> {
            let told = counters.troubles().filter(|(name, ..)| *name != EXPECTED);
            told.map(|(name, by, meaning)| format!("{} {meaning} [{name}{whose}]", count(by)))
                .collect()
        };
        let mut all = trouble(&network, "");
        all.extend(trouble(&of_device, &format!(" of {SERVER_DEVICE}")));
        Self {
            phase: phase.to_owned(),
            seconds,
            network,
            interfaces: BTreeMap::from([(SERVER_DEVICE.to_owned(), of_device)]),
            trouble: all,
        }
    }
}
