//! Which source address and port each connection has, and where it goes.
//!
//! Pure. A connection is a tuple of source address, source port and target; ports are explicit, since the
//! kernel's own choice gets slow past half of a range and stops short of it. Targets pair with the sources of their own
//! family, and each family is a lane.
//! Invariant: different assignments are different tuples.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Range, RangeInclusive};

use serde::Serialize;

use super::{Source, Span};
use crate::part::Part;

/// Ports per source address that the plan aims at. Fewer distinct ports, shared by all addresses, keep the
/// kernel's bind buckets few; more addresses keep each of them short.
const PREFERRED_PORTS_PER_ADDRESS: u64 = 6_000;

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

/// What the host has to say about ports.
#[derive(Clone, Debug, Default)]
pub struct HostPorts {
    /// Those that are never taken, `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// Those that are taken last, `net.ipv4.ip_local_port_range`: a port bound explicitly, to whatever address, is one
    /// that no connect without a bind gets any more, on the whole host.
    pub automatic: Option<RangeInclusive<u16>>,
}

/// Every connection of a run, by number.
#[derive(Clone, Debug)]
pub struct Plan {
    lanes: Vec<Lane>,
    /// Of each target, the index of its lane.
    lane_of: Vec<u8>,
    ports: Vec<u16>,
}

/// How far the sources of one family reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Whether these are IPv4 sources and targets; else they are IPv6.
    pub is_ipv4: bool,
    /// Source addresses there are; one that is named twice counts once.
    pub addresses: u64,
    /// The first of them, which are used.
    pub addresses_in_use: u64,
    /// Ports of each that may be used: without reserved ones and those of the targets.
    pub ports: u64,
    /// Targets.
    pub targets: u64,
    /// Connections that all addresses carry: the product.
    pub connections: u64,
}

/// Why the sources cannot carry the connections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No target is of the source's family.
    #[error("source {source_text} cannot reach {target}: one is IPv4, the other IPv6")]
    Family {
        /// The source.
        source_text: String,
        /// A target.
        target: SocketAddr,
    },
    /// No source is of the target's family.
    #[error(
        "no source is of the family of target {0}: name one more with --source, or leave that target out"
    )]
    NoSource(SocketAddr),
    /// The same target twice.
    #[error("target {0} is named twice")]
    RepeatedTarget(SocketAddr),
    /// Some sources would be divided among parts, and others not.
    #[error(
        "--part divides addresses among the parts, and leaves each host those of its interface {interface}: name \
         addresses with --source, or interfaces, not both"
    )]
    MixedSources {
        /// Named beside addresses.
        interface: String,
    },
    /// More connections than tuples.
    #[error(
        "{wanted} connections do not fit: {reach} carry {capacity}. The limit is source ports: give more addresses with \
         --source{example}, or start a server on a further port and name it as a further target"
    )]
    TooMany {
        /// Connections asked for.
        wanted: u64,
        /// What there is of each family.
        reach: String,
        /// What that carries.
        capacity: u64,
        /// What could be given, where that is known.
        example: &'static str,
    },
}

impl Plan {
    /// A plan for `connections` from `sources` to `targets`, on a host with `ports`. The targets' own ports are not
    /// used.
    ///
    /// # Errors
    /// Why these sources cannot carry them.
    pub fn new(
        sources: &[Source],
        targets: &[SocketAddr],
        ports: &HostPorts,
        connections: u64,
    ) -> Result<Plan, PlanError> {
        Plan::of_part(sources, targets, ports, connections, None)
    }

    /// The same for the `connections` of one part of a fleet, from its slice of the sources: of all (address, port) pairs
    /// there are, each belongs to exactly one part. The addresses of interfaces are those of this host alone, and are not
    /// divided.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_part(
        sources: &[Source],
        targets: &[SocketAddr],
        ports: &HostPorts,
        connections: u64,
        part: Option<Part>,
    ) -> Result<Plan, PlanError> {
        for (index, target) in targets.iter().enumerate() {
            if targets[..index].contains(target) {
                return Err(PlanError::RepeatedTarget(*target));
            }
        }
        let is_usable = |port: &u16| {
            !ports.reserved.iter().any(|range| range.contains(port))
                && !targets.iter().any(|target| target.port() == *port)
        };
        let is_automatic = |port: &u16| {
            let automatic = ports.automatic.as_ref();
            automatic.is_some_and(|range| range.contains(port))
        };
        let (automatic, mut others): (Vec<u16>, Vec<u16>) = (FIRST_PORT..=u16::MAX)
            .chain(LOWEST_PORT..FIRST_PORT)
            .filter(is_usable)
            .partition(is_automatic);
        others.extend(automatic);
        let mut plan = Plan {
            lanes: lanes(sources, targets)?,
            lane_of: Vec::new(),
            ports: others,
        };
        let lane_of = |target: &SocketAddr| {
            plan.lanes
                .iter()
                .take_while(|lane| lane.is_ipv4 != target.is_ipv4())
                .count() as u8
        };
        plan.lane_of = targets.iter().map(lane_of).collect();
        if let Some(part) = part {
            plan.cut(part, sources)?;
        }
        if connections > plan.capacity() {
            return Err(plan.too_many(connections, targets));
        }
        plan.choose_addresses(connections);
        Ok(plan)
    }

    /// Assignment `number`. Those of the connections come first, evenly over targets and addresses, as far as each
    /// family reaches; the rest are spares for ports that turn out to be taken. None past the last.
    pub fn assignment(&self, number: u64) -> Option<Assignment> {
        let ports = self.ports.len() as u64;
        let targets = self.lane_of.len() as u64;
        let reach = |lane: &&Lane| lane.in_use.saturating_mul(ports);
        let shortest = self.lanes.iter().map(|lane| reach(&lane)).min()?;
        let even = shortest.saturating_mul(targets);
        let (lane, target, tuple) = if number < even {
            let target = (number % targets) as u32;
            let lane = &self.lanes[usize::from(self.lane_of[target as usize])];
            (lane, target, number / targets)
        } else {
            let lane = self.lanes.iter().max_by_key(reach)?;
            let (rest, targets) = (number - even, lane.targets.len() as u64);
            let target = lane.targets[(rest % targets) as usize];
            (lane, target, shortest + rest / targets)
        };
        let port = usize::try_from(tuple / lane.in_use).ok()?;
        Some(Assignment {
            source: SocketAddr::new(lane.address(tuple % lane.in_use), *self.ports.get(port)?),
            target,
        })
    }

    /// How far each family reaches.
    pub fn reach(&self) -> Vec<Reach> {
        let ports = self.ports.len() as u64;
        self.lanes
            .iter()
            .map(|lane| Reach {
                is_ipv4: lane.is_ipv4,
                addresses: lane.addresses,
                addresses_in_use: lane.in_use,
                ports,
                targets: lane.targets.len() as u64,
                connections: lane.capacity(ports),
            })
            .collect()
    }

    /// The most connections that the sources carry.
    pub fn capacity(&self) -> u64 {
        let ports = self.ports.len() as u64;
        self.lanes
            .iter()
            .fold(0, |sum, lane| sum.saturating_add(lane.capacity(ports)))
    }

    /// How many source addresses are in use.
    pub fn addresses(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.in_use).sum()
    }

    /// How many ports of each source address may be used.
    pub fn ports(&self) -> u64 {
        self.ports.len() as u64
    }

    /// The source addresses in use, in order.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let in_use = |lane: &Lane| lane.in_use;
        self.lanes
            .iter()
            .flat_map(move |lane| (0..in_use(lane)).map(|number| lane.address(number)))
    }

    /// Keeps the slice of `part`: whole addresses, where there is one for each part, so that each host needs its own
    /// alone; else every address, with the ports that leave the part's remainder.
    fn cut(&mut self, part: Part, sources: &[Source]) -> Result<(), PlanError> {
        if let Some(interface) = sources.iter().find_map(Source::interface) {
            let is_own = |source: &Source| source.interface().is_some();
            return match sources.iter().all(is_own) {
                true => Ok(()),
                false => Err(PlanError::MixedSources {
                    interface: interface.to_owned(),
                }),
            };
        }
        if self.lanes.iter().all(|lane| lane.addresses >= part.of) {
            for lane in &mut self.lanes {
                lane.keep(part.range(lane.addresses));
            }
        } else {
            // By number, not by order: whatever else a host reserves, the parts stay apart.
            self.ports
                .retain(|port| u64::from(*port) % part.of == part.number - 1);
        }
        Ok(())
    }

    /// As few addresses of each lane as give every connection a tuple at the preferred number of ports.
    fn choose_addresses(&mut self, connections: u64) {
        let ports = self.ports.len() as u64;
        let (mut wanted, mut targets) = (connections, self.lane_of.len() as u64);
        // The lane that reaches least first: what it cannot carry of an even share, the other does.
        let mut order: Vec<&mut Lane> = self.lanes.iter_mut().collect();
        order.sort_by_key(|lane| lane.addresses);
        for lane in order {
            let share = wanted.div_ceil(targets);
            let preferred = share.div_ceil(ports.clamp(1, PREFERRED_PORTS_PER_ADDRESS));
            lane.in_use = preferred.clamp(1, lane.addresses);
            let of_lane = lane.targets.len() as u64;
            targets -= of_lane;
            wanted -= share
                .min(lane.addresses.saturating_mul(ports))
                .saturating_mul(of_lane)
                .min(wanted);
        }
    }

    fn too_many(&self, wanted: u64, targets: &[SocketAddr]) -> PlanError {
        let reach: Vec<String> = self.reach().iter().map(ToString::to_string).collect();
        PlanError::TooMany {
            wanted,
            reach: reach.join(" and "),
            capacity: self.capacity(),
            example: match targets {
                [target, ..] if target.is_ipv4() && target.ip().is_loopback() => {
                    " (such as 127.1.0.0/16)"
                }
                _ => "",
            },
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reach {
            addresses,
            ports,
            targets,
            ..
        } = self;
        let (es, s) = (plural(*addresses, "es"), plural(*targets, "s"));
        write!(
            f,
            "{addresses} source address{es} x {ports} ports x {targets} target{s}"
        )
    }
}

fn plural(count: u64, ending: &str) -> &str {
    if count == 1 { "" } else { ending }
}

/// The sources and targets of one family.
#[derive(Clone, Debug)]
struct Lane {
    is_ipv4: bool,
    /// Apart from each other.
    spans: Vec<Span>,
    /// Addresses of all spans, and how many of them, the first, are in use.
    addresses: u64,
    in_use: u64,
    /// Indices of the targets.
    targets: Vec<u32>,
}

impl Lane {
    fn address(&self, mut number: u64) -> IpAddr {
        for span in &self.spans {
            if number < span.count() {
                return span.address(number);
            }
            number -= span.count();
        }
        unreachable!("an address past the lane's last")
    }

    /// Leaves the addresses of these numbers.
    fn keep(&mut self, numbers: Range<u64>) {
        let mut before = 0;
        let mut kept = Vec::new();
        for span in &self.spans {
            let count = span.count();
            let of_it = numbers.start.saturating_sub(before).min(count)
                ..numbers.end.saturating_sub(before).min(count);
            kept.extend(span.part(of_it));
            before = before.saturating_add(count);
        }
        self.spans = kept;
        self.addresses = numbers.end - numbers.start;
    }

    fn capacity(&self, ports: u64) -> u64 {
        let per_target = self.addresses.saturating_mul(ports);
        per_target.saturating_mul(self.targets.len() as u64)
    }
}

/// A lane for each family of targets, with every source in one of them.
fn lanes(sources: &[Source], targets: &[SocketAddr]) -> Result<Vec<Lane>, PlanError> {
    let mut lanes: Vec<Lane> = Vec::new();
    for (index, target) in (0..).zip(targets) {
        match lanes
            .iter_mut()
            .find(|lane| lane.is_ipv4 == target.is_ipv4())
        {
            Some(lane) => lane.targets.push(index),
            None => lanes.push(Lane {
                is_ipv4: target.is_ipv4(),
                spans: Vec::new(),
                addresses: 0,
                in_use: 0,
                targets: vec![index],
            }),
        }
    }
    for source in sources {
        for span in source.spans() {
            let lane = lanes.iter_mut().find(|lane| lane.is_ipv4 == span.is_ipv4);
            let lane = lane.ok_or_else(|| PlanError::Family {
                source_text: source.to_string(),
                target: targets[0],
            })?;
            let mut fresh = vec![span];
            for earlier in &lane.spans {
                fresh = fresh
                    .into_iter()
                    .flat_map(|span| span.without(*earlier))
                    .collect();
            }
            lane.spans.extend(fresh);
        }
    }
    for lane in &mut lanes {
        lane.addresses = lane
            .spans
            .iter()
            .fold(0, |sum, span| sum.saturating_add(span.count()));
        if lane.addresses == 0 {
            return Err(PlanError::NoSource(targets[lane.targets[0] as usize]));
        }
    }
    Ok(lanes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn sources(texts: &[&str]) -> Vec<Source> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn target() -> Vec<SocketAddr> {
        vec!["127.0.0.1:7000".parse().unwrap()]
    }

    /// IPv4 and IPv6 targets, ports counted from `first_port`.
    fn targets(ipv4: u16, ipv6: u16, first_port: u16) -> Vec<SocketAddr> {
        let of = |ip: &str, count: u16| {
            let ip: IpAddr = ip.parse().unwrap();
            (0..count)
                .map(move |n| SocketAddr::new(ip, first_port + n))
                .collect::<Vec<_>>()
        };
        [of("127.0.0.1", ipv4), of("::1", ipv6)].concat()
    }

    fn reserving(reserved: &[RangeInclusive<u16>]) -> HostPorts {
        HostPorts {
            reserved: reserved.to_vec(),
            ..HostPorts::default()
        }
    }

    proptest! {
        #[test]
        fn assignments_are_distinct_usable_and_even(
            prefix in 24u8..=32,
            range in (0u8..250, 0u8..6),
            ipv4 in 1u16..4,
            ipv6 in 0u16..3,
            reserved in (9_990u16..10_100, 0u16..200),
            connections in 1u64..40_000,
        ) {
            let mut texts = vec![
                format!("127.1.2.0/{prefix}"),
                // Of the CIDR, where that is large enough: counts once.
                format!("127.1.2.{}-{}", range.0, range.0 + range.1),
            ];
            texts.extend((ipv6 > 0).then(|| "fd00::1-fd00::9".to_owned()));
            let sources = sources(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let targets = targets(ipv4, ipv6, 10_001);
            let reserved = reserved.0..=reserved.0 + reserved.1;
            let plan = Plan::new(&sources, &targets, &reserving(std::slice::from_ref(&reserved)), connections).unwrap();
            let mut seen = HashSet::new();
            let mut per_target: HashMap<u32, u64> = HashMap::new();
            let mut per_place: HashMap<(IpAddr, u32), u64> = HashMap::new();
            for number in 0..connections + 100 {
                let Some(a) = plan.assignment(number) else { break };
                prop_assert!(seen.insert(a));
                prop_assert!(sources.iter().any(|source| source.contains(a.source.ip())));
                prop_assert_eq!(a.source.is_ipv4(), targets[a.target as usize].is_ipv4());
                prop_assert!(a.source.port() >= 1024 && !reserved.contains(&a.source.port()));
                prop_assert!(targets.iter().all(|t| t.port() != a.source.port()));
                if number < connections {
                    *per_place.entry((a.source.ip(), a.target)).or_default() += 1;
                    *per_target.entry(a.target).or_default() += 1;
                }
            }
            prop_assert!(seen.len() as u64 >= connections);
            let spread = |counts: &[u64]| counts.iter().max().unwrap() - counts.iter().min().unwrap();
            let per_target: Vec<u64> = per_target.into_values().collect();
            prop_assert!(spread(&per_target) <= 1);
            for is_ipv4 in [true, false] {
                let counts: Vec<u64> = per_place.iter().filter(|((ip, _), _)| ip.is_ipv4() == is_ipv4).map(|(_, n)| *n).collect();
                prop_assert!(counts.is_empty() || spread(&counts) <= 1, "{counts:?}");
            }
        }

        /// However few ports are left, by `ip_local_reserved_ports`, and however unequal the families.
        #[test]
        fn as_many_connections_fit_as_the_plan_says(
            prefix in 28u8..=32,
            ipv4 in 1u16..4,
            ipv6 in 0u16..3,
            usable_ports in 1u16..3_000,
            fill in 0.0..=1.0,
        ) {
            let mut sources = vec![format!("127.1.2.0/{prefix}").parse::<Source>().unwrap()];
            sources.extend((ipv6 > 0).then(|| "::1".parse::<Source>().unwrap()));
            let addresses = sources[0].spans()[0].count();
            // Below the lowest port, so that the targets take none of those that are left.
            let targets = targets(ipv4, ipv6, 700);
            let reserved = [LOWEST_PORT + usable_ports..=u16::MAX];
            let capacity = u64::from(usable_ports) * (addresses * u64::from(ipv4) + u64::from(ipv6));
            let connections = ((capacity as f64 * fill) as u64).max(1);
            let plan = Plan::new(&sources, &targets, &reserving(&reserved), connections).unwrap();
            prop_assert_eq!(plan.capacity(), capacity);
            let assigned: HashSet<Assignment> = (0..connections).map_while(|number| plan.assignment(number)).collect();
            prop_assert_eq!(assigned.len() as u64, connections);
            prop_assert!(Plan::new(&sources, &targets, &reserving(&reserved), capacity).is_ok());
            let too_many = Plan::new(&sources, &targets, &reserving(&reserved), capacity + 1);
            let is_refused = matches!(too_many, Err(PlanError::TooMany { .. }));
            prop_assert!(is_refused);
        }
    }

    proptest! {
        /// Whatever a fleet is divided into: no pair of address and port is that of two parts, and together they have those
        /// that one client would have.
        #[test]
        fn each_pair_belongs_to_exactly_one_part(
            prefix in 28u8..=32,
            more in 0u8..4,
            ipv6 in 0u16..3,
            ipv4 in 1u16..3,
            usable_ports in 1u16..60,
            of in 1u64..40,
            fill in 0.0..=1.0,
        ) {
            let mut texts = vec![format!("127.1.2.0/{prefix}"), format!("127.1.3.1-127.1.3.{}", 1 + more)];
            texts.extend((ipv6 > 0).then(|| "fd00::1-fd00::5".to_owned()));
            let sources = sources(&texts.iter().map(String::as_str).collect::<Vec<_>>());
            let targets = targets(ipv4, ipv6, 700);
            let ports = reserving(&[LOWEST_PORT + usable_ports..=u16::MAX]);
            let all = |plan: &Plan| -> Vec<Assignment> {
                (0..).map_while(|number| plan.assignment(number)).collect()
            };
            let pairs = |plan: &Plan| -> HashSet<SocketAddr> {
                let mut pairs = HashSet::new();
                for lane in &plan.lanes {
                    for number in 0..lane.addresses {
                        pairs.extend(plan.ports.iter().map(|port| SocketAddr::new(lane.address(number), *port)));
                    }
                }
                pairs
            };
            let whole = Plan::new(&sources, &targets, &ports, 1).unwrap();
            let connections = (whole.capacity() as f64 * fill) as u64;
            let (mut seen, mut used, mut taken) = (HashSet::new(), HashSet::new(), 0);
            let mut is_refused = false;
            for number in 1..=of {
                let part = Part { number, of };
                let share = part.share(connections);
                let sliced = match Plan::of_part(&sources, &targets, &ports, share, Some(part)) {
                    Ok(plan) => plan,
                    // Whole addresses and whole ports do not always fill up evenly.
                    Err(PlanError::TooMany { wanted, .. }) => {
                        prop_assert_eq!(wanted, share);
                        is_refused = true;
                        continue;
                    }
                    Err(other) => panic!("{other}"),
                };
                for pair in pairs(&sliced) {
                    prop_assert!(seen.insert(pair), "{} is that of two parts", pair);
                }
                for assignment in all(&sliced).into_iter().take(share as usize) {
                    prop_assert!(seen.contains(&assignment.source));
                    prop_assert!(used.insert(assignment));
                    taken += 1;
                }
            }
            if !is_refused {
                prop_assert_eq!(seen, pairs(&whole));
                prop_assert_eq!(taken, connections);
            }
        }
    }

    #[test]
    fn a_part_takes_whole_addresses_where_there_are_enough_and_ports_where_not() {
        let of_part = |texts: &[&str], number, connections| {
            let part = Some(Part { number, of: 3 });
            Plan::of_part(
                &sources(texts),
                &target(),
                &HostPorts::default(),
                connections,
                part,
            )
        };
        let first_and_last = |plan: &Plan| {
            let all: Vec<IpAddr> = plan.sources().collect();
            [all[0], all[all.len() - 1]].map(|address| address.to_string())
        };
        let many =
            |number| first_and_last(&of_part(&["10.0.0.1-10.0.0.10"], number, 190_000).unwrap());
        assert_eq!(many(1), ["10.0.0.1", "10.0.0.4"]);
        assert_eq!(many(2), ["10.0.0.5", "10.0.0.7"]);
        assert_eq!(many(3), ["10.0.0.8", "10.0.0.10"]);
        let few = of_part(&["127.0.0.1"], 2, 21_000).unwrap();
        assert_eq!((few.addresses(), few.ports()), (1, 21_503));
        assert!(few.ports.iter().all(|port| port % 3 == 1));
        let error = of_part(&["127.0.0.1"], 2, 22_000).unwrap_err().to_string();
        assert!(error.contains("1 source address x 21503 ports"), "{error}");
    }

    #[test]
    fn an_interface_is_each_hosts_own_and_is_not_divided() {
        let eth0 = Source::Interface("eth0".into(), vec!["10.0.0.7".parse().unwrap()]);
        let part = Some(Part { number: 2, of: 3 });
        let plan = |sources: &[Source]| {
            Plan::of_part(sources, &target(), &HostPorts::default(), 60_000, part)
        };
        assert_eq!(plan(std::slice::from_ref(&eth0)).unwrap().ports(), 64_511);
        let both = [eth0, "10.1.0.0/16".parse().unwrap()];
        let error = plan(&both).unwrap_err().to_string();
        assert!(
            error.contains("interface eth0") && error.contains("not both"),
            "{error}"
        );
    }

    #[test]
    fn ports_that_the_kernel_chooses_from_are_left_to_others_while_there_are_more() {
        let ports = HostPorts {
            automatic: Some(32_768..=60_999),
            ..HostPorts::default()
        };
        let one = sources(&["127.1.0.1"]);
        let plan = Plan::new(&one, &target(), &ports, 64_511).unwrap();
        let is_automatic = |number| {
            let port = plan.assignment(number).unwrap().source.port();
            (32_768..=60_999).contains(&port)
        };
        let others = 64_511 - 28_232;
        assert!((0..others).all(|number| !is_automatic(number)));
        assert!((others..64_511).all(is_automatic));
    }

    #[test]
    fn a_hundred_thousand_take_seventeen_addresses_and_six_thousand_ports() {
        let plan = Plan::new(
            &sources(&["127.1.0.0/16"]),
            &target(),
            &HostPorts::default(),
            100_000,
        )
        .unwrap();
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
    fn what_is_named_twice_counts_once() {
        let reach = |texts: &[&str]| {
            Plan::new(&sources(texts), &target(), &HostPorts::default(), 1)
                .unwrap()
                .reach()
        };
        let twice = reach(&["127.1.0.0/24", "127.1.0.200-127.1.1.9", "127.1.0.7"]);
        // 254 of the CIDR; of the range, 127.1.0.255 to 127.1.1.9.
        assert_eq!(twice[0].addresses, 254 + 11);
        assert_eq!(twice[0].connections, (254 + 11) * 64_511);
        assert_eq!(reach(&["127.1.0.7", "127.1.0.0/24"])[0].addresses, 254);
    }

    #[test]
    fn each_family_pairs_with_its_own() {
        let both = targets(1, 1, 7000);
        let plan = Plan::new(
            &sources(&["127.0.0.1", "::1"]),
            &both,
            &HostPorts::default(),
            100_000,
        )
        .unwrap();
        assert_eq!((plan.addresses(), plan.capacity()), (2, 2 * 64_511));
        let error = |texts: &[&str], targets: &[SocketAddr]| {
            Plan::new(&sources(texts), targets, &HostPorts::default(), 1)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&["127.0.0.1"], &both).contains("[::1]:7000"));
        assert!(error(&["127.0.0.1", "::1"], &target()).contains("source ::1"));
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused_with_the_limit() {
        let one = sources(&["127.0.0.1/32"]);
        assert!(Plan::new(&one, &target(), &HostPorts::default(), 64_511).is_ok());
        let error = Plan::new(&one, &target(), &HostPorts::default(), 64_512)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1 source address x 64511 ports x 1 target carry 64511")
                && error.contains("--source"),
            "{error}"
        );
        let twice = [target(), target()].concat();
        assert!(matches!(
            Plan::new(&one, &twice, &HostPorts::default(), 1),
            Err(PlanError::RepeatedTarget(_))
        ));
    }
}
