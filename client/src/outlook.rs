//! How many connections a run can have: what its sources carry, what the host allows, and which of these is the least.
//!
//! Pure, but for [`Outlook::of_host`], which asks the host. Invariant: an estimate refuses nothing.

use std::fmt;

use indicatif::HumanCount;
use kernel_tuning::host::{LOOPBACK, NetCounters, route};
use kernel_tuning::limit::{Evidence, Headroom, Limit, headrooms};
use kernel_tuning::process;
use serde::Serialize;

use crate::config::Config;
use crate::source::{Plan, Reach};

/// What there is room for.
#[derive(Clone, Debug, Serialize)]
pub struct Outlook {
    /// Connections asked for.
    pub wanted: u64,
    /// The sources of each family, and what they carry.
    pub sources: Vec<Reach>,
    /// The sum of that.
    pub connections: u64,
    /// What each limit of this host allows, about.
    pub host: Vec<Headroom>,
    /// The least of them all.
    pub tightest: Headroom,
}

impl Outlook {
    /// What this host, as it is now, allows to `plan`.
    pub fn of_host(config: &Config, plan: &Plan) -> Outlook {
        let is_here = config
            .targets
            .iter()
            .filter_map(|target| route(target.ip())?.interface)
            .any(|interface| interface == LOOPBACK);
        let mut evidence = Evidence::read(&NetCounters::default());
        if process::is_bound_by_file_max().is_ok_and(|is_bound| !is_bound) {
            evidence.files = None;
        }
        Outlook::new(plan, config.connections, &evidence, 1 + u64::from(is_here))
    }

    /// What a host of which `evidence` is known allows to `plan`, where it has `ends_here` of the two ends of each of
    /// the `wanted` connections.
    pub fn new(plan: &Plan, wanted: u64, evidence: &Evidence, ends_here: u64) -> Outlook {
        let connections = plan.capacity();
        let host = headrooms(evidence, ends_here);
        let ports = Headroom {
            limit: Limit::EphemeralPorts,
            connections,
        };
        let least = |a: Headroom, b: &Headroom| if b.connections < a.connections { *b } else { a };
        Outlook {
            wanted,
            sources: plan.reach(),
            connections,
            tightest: host.iter().fold(ports, least),
            host,
        }
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reach) in self.sources.iter().enumerate() {
            let and = if index > 0 { " and " } else { "" };
            write!(f, "{and}{reach}")?;
        }
        let (there_are, in_use) = self
            .sources
            .iter()
            .fold((0u64, 0u64), |(all, used), reach| {
                let all = all.saturating_add(reach.addresses);
                (all, used + reach.addresses_in_use)
            });
        write!(f, " carry {} connections", HumanCount(self.connections))?;
        if in_use < there_are {
            let are = if in_use == 1 {
                "address is"
            } else {
                "addresses are"
            };
            let (in_use, wanted) = (HumanCount(in_use), HumanCount(self.wanted));
            write!(f, "; {in_use} {are} used for {wanted}")?;
        }
        write!(
            f,
            "; tightest limit: {}, {}",
            self.tightest.limit,
            HumanCount(self.tightest.connections),
        )?;
        match self.tightest.connections < self.wanted {
            true => write!(
                f,
                ": fewer than asked for, see throng-tune check --connections {}",
                self.wanted
            ),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::source::HostPorts;
    use kernel_tuning::host::Files;
    use std::net::SocketAddr;

    fn outlook(sources: &[&str], targets: &[&str], wanted: u64, files: u64) -> Outlook {
        let sources: Vec<_> = sources.iter().map(|text| text.parse().unwrap()).collect();
        let targets: Vec<SocketAddr> = targets.iter().map(|text| text.parse().unwrap()).collect();
        let plan = Plan::new(&sources, &targets, &HostPorts::default(), wanted).unwrap();
        let evidence = Evidence {
            files: Some(Files {
                allocated: 0,
                max: files,
            }),
            ..Evidence::default()
        };
        Outlook::new(&plan, wanted, &evidence, 2)
    }

    #[test]
    fn the_tightest_limit_is_the_ports_or_the_hosts() {
        let one = outlook(&["127.0.0.1"], &["127.0.0.1:7000"], 60_000, 1_000_000);
        assert_eq!(one.tightest.limit, Limit::EphemeralPorts);
        assert_eq!(
            one.to_string(),
            "1 source address x 64511 ports x 1 target carry 64,511 connections; tightest limit: ephemeral ports, 64,511"
        );
        let many = outlook(&["127.1.0.0/16"], &["127.0.0.1:7000"], 100_000, 100_000);
        assert_eq!(many.tightest.limit, Limit::HostOpenFiles);
        assert_eq!(many.tightest.connections, 50_000);
        let text = many.to_string();
        assert!(
            text.contains("(fs.file-max), 50,000: fewer than asked for, see throng-tune check")
                && text.contains("; 17 addresses are used for 100,000;"),
            "{text}"
        );
    }

    #[test]
    fn each_family_is_told_apart() {
        let both = outlook(
            &["127.0.0.1-9", "::1"],
            &["127.0.0.1:7000", "[::1]:7000"],
            1,
            1 << 40,
        );
        assert!(
            both.to_string().starts_with(
                "9 source addresses x 64511 ports x 1 target and 1 source address x 64511 ports x 1 target carry 645,110"
            ),
            "{both}"
        );
    }
}
