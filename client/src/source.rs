//! Which source address and port each connection has, and where it goes.
//!
//! Pure. A connection is a tuple of source address, source port and target; ports are explicit, since the
//! kernel's own choice gets slow past half of a range and stops short of it.
//! Invariant: different assignments are different tuples.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Ports per source address that the plan aims at. Fewer distinct ports, shared by all addresses, keep the
/// kernel's bind buckets few; more addresses keep each of them short.
pub const PREFERRED_PORTS_PER_ADDRESS: u64 = 6_000;

/// Where the plan starts to take ports. Services listen below, so those ports come last.
const FIRST_PORT: u16 = 10_000;
/// The lowest port an ordinary user may bind (net.ipv4.ip_unprivileged_port_start by default).
const LOWEST_PORT: u16 = 1_024;

/// One connection to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// What to bind before connecting.
    pub source: SocketAddr,
    /// Index of the target.
    pub target: u32,
}

/// Every connection of a run, by number.
#[derive(Clone, Debug)]
pub struct Plan {
    blocks: Vec<Block>,
    ports: Vec<u16>,
    targets: u64,
    /// Source addresses in use: the first ones of the blocks.
    addresses: u64,
}

/// Why the sources cannot carry the connections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Some source and some target are of different families.
    #[error("source {source_net} cannot reach {target}: one is IPv4, the other IPv6")]
    Family {
        /// The source.
        source_net: IpNet,
        /// The target.
        target: SocketAddr,
    },
    /// Two sources share addresses, so that two connections would be one.
    #[error("sources {0} and {1} overlap: name each address once")]
    Overlap(IpNet, IpNet),
    /// The same target twice.
    #[error("target {0} is named twice")]
    RepeatedTarget(SocketAddr),
    /// More connections than tuples.
    #[error(
        "{wanted} connections do not fit: {addresses} source address(es) x {ports} ports x {targets} target(s) carry \
         {capacity}. The limit is source ports: give more addresses with --source{example}, or start a server on a further \
         port and name it as a further target"
    )]
    TooMany {
        /// Connections asked for.
        wanted: u64,
        /// Source addresses there are.
        addresses: u64,
        /// Usable ports of each.
        ports: u64,
        /// Targets.
        targets: u64,
        /// The product.
        capacity: u64,
        /// What could be given, where that is known.
        example: &'static str,
    },
}

impl Plan {
    /// A plan for `connections` from `sources` to `targets`. Ports in `reserved` and the targets' own are
    /// not used.
    ///
    /// # Errors
    /// Why these sources cannot carry them.
    pub fn new(
        sources: &[IpNet],
        targets: &[SocketAddr],
        reserved: &[RangeInclusive<u16>],
        connections: u64,
    ) -> Result<Plan, PlanError> {
        for (index, source) in sources.iter().enumerate() {
            let foreign = |t: &&SocketAddr| t.is_ipv4() != source.addr().is_ipv4();
            if let Some(target) = targets.iter().find(foreign) {
                return Err(PlanError::Family {
                    source_net: *source,
                    target: *target,
                });
            }
            let overlaps =
                |other: &&IpNet| other.contains(&source.addr()) || source.contains(&other.addr());
            if let Some(other) = sources[..index].iter().find(overlaps) {
                return Err(PlanError::Overlap(*other, *source));
            }
        }
        for (index, target) in targets.iter().enumerate() {
            if targets[..index].contains(target) {
                return Err(PlanError::RepeatedTarget(*target));
            }
        }
        let usable = |port: &u16| {
            !reserved.iter().any(|range| range.contains(port))
                && !targets.iter().any(|t| t.port() == *port)
        };
        let mut plan = Plan {
            blocks: sources.iter().map(Block::of).collect(),
            ports: (FIRST_PORT..=u16::MAX)
                .chain(LOWEST_PORT..FIRST_PORT)
                .filter(usable)
                .collect(),
            targets: targets.len() as u64,
            addresses: 0,
        };
        let addresses = plan
            .blocks
            .iter()
            .fold(0u64, |sum, b| sum.saturating_add(b.count));
        let ports = plan.ports.len() as u64;
        let capacity = addresses.saturating_mul(ports * plan.targets);
        if connections > capacity {
            return Err(PlanError::TooMany {
                wanted: connections,
                addresses,
                ports,
                targets: plan.targets,
                capacity,
                example: match targets {
                    [target, ..] if target.is_ipv4() && target.ip().is_loopback() => {
                        " (such as 127.1.0.0/16)"
                    }
                    _ => "",
                },
            });
        }
        let ports_per_address = ports.clamp(1, PREFERRED_PORTS_PER_ADDRESS);
        let preferred = connections.div_ceil(plan.targets * ports_per_address);
        plan.addresses = preferred.clamp(1, addresses);
        Ok(plan)
    }

    /// Assignment `number`. Those of the connections come first, evenly over targets and addresses; the rest are
    /// spares for ports that turn out to be taken. None past the last.
    pub fn assignment(&self, number: u64) -> Option<Assignment> {
        let tuple = number / self.targets;
        let port = *self
            .ports
            .get(usize::try_from(tuple / self.addresses).ok()?)?;
        Some(Assignment {
            source: SocketAddr::new(self.address(tuple % self.addresses), port),
            target: (number % self.targets) as u32,
        })
    }

    /// How many source addresses are in use.
    pub fn addresses(&self) -> u64 {
        self.addresses
    }

    /// The lowest port that may be used.
    pub fn lowest_port(&self) -> u16 {
        self.ports.iter().copied().min().unwrap_or(LOWEST_PORT)
    }

    /// The source addresses in use, in order.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        (0..self.addresses).map(|number| self.address(number))
    }

    fn address(&self, mut number: u64) -> IpAddr {
        for block in &self.blocks {
            if number < block.count {
                return block.address(number);
            }
            number -= block.count;
        }
        unreachable!("an address past the plan's last")
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.address(0);
        match self.addresses {
            1 => write!(f, "1 source address ({first})"),
            n => write!(
                f,
                "{n} source addresses ({first} to {})",
                self.address(n - 1)
            ),
        }
    }
}

/// The usable addresses of one CIDR.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u128,
    count: u64,
    is_ipv4: bool,
}

impl Block {
    fn of(net: &IpNet) -> Block {
        let (first, last, edges) = match net.trunc() {
            IpNet::V4(v4) => {
                let edges = if v4.prefix_len() < 31 { (1, 1) } else { (0, 0) };
                (
                    u128::from(v4.network().to_bits()),
                    u128::from(v4.broadcast().to_bits()),
                    edges,
                )
            }
            // The first address of an IPv6 subnet is its routers' anycast address; there is no broadcast.
            IpNet::V6(v6) => {
                let edges = if v6.prefix_len() < 127 {
                    (1, 0)
                } else {
                    (0, 0)
                };
                (v6.network().to_bits(), v6.broadcast().to_bits(), edges)
            }
        };
        let (first, last) = (first + edges.0, last - edges.1);
        Block {
            first,
            count: u64::try_from((last - first).saturating_add(1)).unwrap_or(u64::MAX),
            is_ipv4: matches!(net, IpNet::V4(_)),
        }
    }

    fn address(&self, number: u64) -> IpAddr {
        let bits = self.first + u128::from(number);
        if self.is_ipv4 {
            IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn target() -> Vec<SocketAddr> {
        vec!["127.0.0.1:7000".parse().unwrap()]
    }

    proptest! {
        #[test]
        fn assignments_are_distinct_usable_and_even(
            prefix in 24u8..=32,
            extra in 0u8..3,
            targets in 1usize..4,
            reserved in (9_990u16..10_100, 0u16..200),
            connections in 1u64..40_000,
        ) {
            let mut sources = vec![IpNet::new("127.1.2.0".parse().unwrap(), prefix).unwrap()];
            sources.extend((0..extra).map(|n| IpNet::from(IpAddr::from([127, 9, 9, n]))));
            let targets: Vec<SocketAddr> = (0..targets).map(|n| SocketAddr::from(([127, 0, 0, 1], 10_001 + n as u16))).collect();
            let reserved = reserved.0..=reserved.0 + reserved.1;
            let plan = Plan::new(&sources, &targets, std::slice::from_ref(&reserved), connections).unwrap();
            let mut seen = HashSet::new();
            let mut per_place: HashMap<(IpAddr, u32), u64> = HashMap::new();
            for number in 0..connections + 100 {
                let Some(a) = plan.assignment(number) else { break };
                prop_assert!(seen.insert(a));
                prop_assert!(sources.iter().any(|s| s.contains(&a.source.ip())));
                prop_assert!(a.source.port() >= 1024 && !reserved.contains(&a.source.port()));
                prop_assert!(targets.iter().all(|t| t.port() != a.source.port()));
                if number < connections {
                    *per_place.entry((a.source.ip(), a.target)).or_default() += 1;
                }
            }
            prop_assert!(seen.len() as u64 >= connections);
            let (least, most) = (per_place.values().min().unwrap(), per_place.values().max().unwrap());
            prop_assert!(most - least <= 1 || per_place.len() as u64 == connections);
        }

        /// However few ports are left, by `ip_local_reserved_ports`.
        #[test]
        fn every_planned_connection_has_an_assignment(
            prefix in 28u8..=32,
            targets in 1usize..4,
            usable_ports in 1u16..8_000,
            fill in 0.0..=1.0,
        ) {
            let sources = [IpNet::new("127.1.2.0".parse().unwrap(), prefix).unwrap()];
            // Below the lowest port, so that the targets take none of those that are left.
            let targets: Vec<SocketAddr> = (0..targets).map(|n| SocketAddr::from(([127, 0, 0, 1], 700 + n as u16))).collect();
            let reserved = [LOWEST_PORT + usable_ports..=u16::MAX];
            let capacity = Block::of(&sources[0]).count * u64::from(usable_ports) * targets.len() as u64;
            let connections = ((capacity as f64 * fill) as u64).max(1);
            let plan = Plan::new(&sources, &targets, &reserved, connections).unwrap();
            let assigned = (0..connections).filter(|number| plan.assignment(*number).is_some()).count();
            prop_assert_eq!(assigned as u64, connections);
        }
    }

    #[test]
    fn a_hundred_thousand_take_seventeen_addresses_and_six_thousand_ports() {
        let plan = Plan::new(&nets(&["127.1.0.0/16"]), &target(), &[], 100_000).unwrap();
        assert_eq!(plan.addresses(), 17);
        let ports: HashSet<u16> = (0..100_000)
            .map(|n| plan.assignment(n).unwrap().source.port())
            .collect();
        assert!(ports.len() <= 6_000, "{}", ports.len());
        let first: SocketAddr = "127.1.0.1:10000".parse().unwrap();
        assert_eq!(plan.assignment(0).unwrap().source, first);
        assert_eq!(
            plan.sources().last(),
            Some("127.1.0.17".parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn edges_of_a_block_are_skipped_only_where_it_has_them() {
        let addresses = |net: &str| {
            let block = Block::of(&net.parse().unwrap());
            (0..block.count)
                .map(|n| block.address(n).to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(addresses("127.1.0.0/30"), ["127.1.0.1", "127.1.0.2"]);
        assert_eq!(addresses("127.1.0.0/31"), ["127.1.0.0", "127.1.0.1"]);
        assert_eq!(addresses("127.1.0.7/32"), ["127.1.0.7"]);
        assert_eq!(addresses("127.1.0.5/30"), ["127.1.0.5", "127.1.0.6"]);
        assert_eq!(addresses("::1/128"), ["::1"]);
        assert_eq!(addresses("fd00::/126"), ["fd00::1", "fd00::2", "fd00::3"]);
        assert_eq!(Block::of(&"::/0".parse().unwrap()).count, u64::MAX);
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused_with_the_limit() {
        let one = nets(&["127.0.0.1/32"]);
        assert!(Plan::new(&one, &target(), &[], 64_511).is_ok());
        let error = Plan::new(&one, &target(), &[], 64_512)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("64511") && error.contains("--source"),
            "{error}"
        );
        let overlap = Plan::new(&nets(&["127.1.0.0/16", "127.1.3.0/24"]), &target(), &[], 1);
        assert!(matches!(overlap, Err(PlanError::Overlap(..))));
        let family = Plan::new(&nets(&["::1/128"]), &target(), &[], 1);
        assert!(matches!(family, Err(PlanError::Family { .. })));
        let twice = [target(), target()].concat();
        assert!(matches!(
            Plan::new(&one, &twice, &[], 1),
            Err(PlanError::RepeatedTarget(_))
        ));
    }
}
