//! The counters of this host as they move: two readings, and what happened between them.
//!
//! Reads `/proc` and `/sys` of the calling thread's network namespace. Invariant: what is told grew between two readings;
//! what could not be read is absent.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::host::{
    Files, Kind, Memory, NetCounters, Sockstat, counter, interface_addresses, interface_statistics,
    tcp_mem_pages,
};

/// One reading.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    counters: NetCounters,
    interfaces: BTreeMap<String, NetCounters>,
    figures: Figures,
}

/// What does not only grow.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// TCP sockets.
    pub sockets: Option<Sockstat>,
    /// Pages of queued data from which on there is pressure, the second number of `net.ipv4.tcp_mem`.
    pub pressure_pages: Option<u64>,
    /// Open files of the host.
    pub files: Option<Files>,
    /// Memory of the host that new work can get.
    pub available_bytes: Option<u64>,
}

/// What happened between two readings.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Time between them.
    pub seconds: f64,
    /// The figures of the later.
    #[serde(flatten)]
    pub figures: Figures,
    /// Connections begun by this host.
    pub opened: Option<u64>,
    /// Connections that this host was asked for and answered.
    pub accepted: Option<u64>,
    /// Each counter that grew, trouble first.
    pub moved: Vec<Moved>,
}

/// A counter that grew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Its name.
    pub name: String,
    /// The interface that counted it, where one did.
    pub interface: Option<String>,
    /// By how much it grew.
    pub by: u64,
    /// Whether that is trouble.
    pub is_trouble: bool,
    /// What it means, where that is known.
    pub means: Option<&'static str>,
    /// What to do about it, where that is known.
    pub remedy: Option<&'static str>,
}

impl Sample {
    /// Reads everything.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub fn read() -> Result<Self, crate::host::HostError> {
        let mut names: Vec<String> = interface_addresses()
            .unwrap_or_default()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        names.sort();
        names.dedup();
        let statistics = |name: String| Some((name.clone(), interface_statistics(&name).ok()?));
        Ok(Self {
            counters: NetCounters::read()?,
            interfaces: names.into_iter().filter_map(statistics).collect(),
            figures: Figures {
                sockets: Sockstat::read().ok(),
                pressure_pages: tcp_mem_pages().ok().map(|[_, pressure, _]| pressure),
                files: Files::read().ok(),
                available_bytes: Memory::read().ok().map(|memory| memory.available_bytes),
            },
        })
    }

    /// What happened since `earlier`, `seconds` ago.
    pub fn since(&self, earlier: &Self, seconds: f64) -> Step {
        let counters = self.counters.since(&earlier.counters);
        let of_host = moved(&counters, None);
        let of_interfaces = self.interfaces.iter().flat_map(|(name, now)| {
            let before = earlier.interfaces.get(name);
            before
                .map(|before| moved(&now.since(before), Some(name)))
                .unwrap_or_default()
        });
        let mut moved: Vec<Moved> = of_host.into_iter().chain(of_interfaces).collect();
        moved.sort_by_key(|moved| !moved.is_trouble);
        Step {
            seconds,
            figures: self.figures.clone(),
            opened: counters.get("ActiveOpens"),
            accepted: counters.get("PassiveOpens"),
            moved,
        }
    }
}

/// Those that grew; of trouble that two counters tell, the narrower.
fn moved(grown: &NetCounters, interface: Option<&str>) -> Vec<Moved> {
    let troubles: Vec<&str> = grown.troubles().map(|(name, ..)| name).collect();
    let is_told = |name: &str| {
        let is_trouble = counter(name).is_some_and(|known| known.kind == Kind::Trouble);
        !is_trouble || troubles.contains(&name)
    };
    let grown = grown.iter().filter(|(name, by)| *by > 0 && is_told(name));
    grown
        .map(|(name, by)| {
            let known = counter(name);
            Moved {
                name: name.to_owned(),
                interface: interface.map(str::to_owned),
                by,
                is_trouble: troubles.contains(&name),
                means: known.map(|known| known.means),
                remedy: known.and_then(|known| known.remedy),
            }
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn counters(all: &[(&str, u64)]) -> NetCounters {
        all.iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect()
    }

    #[test]
    fn what_grew_is_told_once_trouble_first_and_with_its_words() {
        let sample = |network: &[(&str, u64)], eth0: &[(&str, u64)]| Sample {
            counters: counters(network),
            interfaces: [("eth0".to_owned(), counters(eth0))].into(),
            ..Sample::default()
        };
        let before = sample(
            &[
                ("ActiveOpens", 5),
                ("ListenDrops", 1),
                ("ListenOverflows", 1),
                ("RetransSegs", 3),
            ],
            &[("rx_packets", 10), ("rx_missed_errors", 0)],
        );
        let after = sample(
            &[
                ("ActiveOpens", 9),
                ("ListenDrops", 3),
                ("ListenOverflows", 3),
                ("RetransSegs", 3),
            ],
            &[("rx_packets", 20), ("rx_missed_errors", 4)],
        );
        let step = after.since(&before, 1.0);
        let told: Vec<(&str, Option<&str>, u64, bool)> = step
            .moved
            .iter()
            .map(|moved| {
                (
                    moved.name.as_str(),
                    moved.interface.as_deref(),
                    moved.by,
                    moved.is_trouble,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("ListenOverflows", None, 2, true),
                ("rx_missed_errors", Some("eth0"), 4, true),
                ("ActiveOpens", None, 4, false),
                ("rx_packets", Some("eth0"), 10, false),
            ]
        );
        assert_eq!(step.opened, Some(4));
        assert!(step.moved[0].means.unwrap().contains("accept queue"));
        assert!(before.since(&before, 1.0).moved.is_empty());
    }

    #[test]
    fn a_connection_over_loopback_is_seen_by_anybody() {
        let before = Sample::read().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let step = Sample::read().unwrap().since(&before, 0.1);
        assert!(step.opened.unwrap() >= 1, "{step:?}");
        assert!(step.moved.iter().any(|moved| moved.name == "rx_packets" && moved.interface.as_deref() == Some("lo")));
        assert!(step.figures.sockets.is_some() && step.figures.files.is_some());
    }
}
