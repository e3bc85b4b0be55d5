//! Where connections come from: what `--source` says, as spans of addresses, and the plan made of them.
//!
//! Pure: who calls looks interfaces up. Invariant: a source stands for the addresses its text names and no others.

mod plan;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};
use serde::{Serialize, Serializer};

pub use plan::{Assignment, HostPorts, Plan, PlanError, Reach};

/// One `--source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An address or a CIDR.
    Net(IpNet),
    /// All addresses from the first to the last, which are of one family.
    Range(IpAddr, IpAddr),
    /// An interface, and the addresses of it that are used.
    Interface(String, Vec<IpAddr>),
}

impl FromStr for Source {
    type Err = String;

    /// An address, a CIDR, `FIRST-LAST`, or else the name of an interface, whose addresses [`Source::on`] finds.
    fn from_str(text: &str) -> Result<Source, String> {
        let source = if let Ok(address) = text.parse::<IpAddr>() {
            Source::Net(address.into())
        } else if let Some((first, last)) = parse_range(text)? {
            Source::Range(first, last)
        } else if text.contains('/') {
            let net = text
                .parse::<IpNet>()
                .map_err(|_| "a CIDR has the form 127.1.0.0/16 or fd00::/64".to_owned())?;
            Source::Net(net.trunc())
        } else if is_interface_name(text) {
            Source::Interface(text.to_owned(), Vec::new())
        } else {
            return Err(
                "it is an address, a CIDR, a range such as 10.0.0.5-10.0.0.90, or an interface"
                    .into(),
            );
        };
        let (first, last) = source.edges();
        match [first, last].into_iter().flatten().any(cannot_be_a_source) {
            true => Err("connections cannot come from there".into()),
            false => Ok(source),
        }
    }
}

impl Source {
    /// The source with the addresses that it has on this host, where it is an interface; any other as it is.
    ///
    /// `interfaces` are all addresses there are; those of a family that `is_wanted` denies are left out, and so are
    /// link-local ones, which cannot be connected from without naming a zone.
    ///
    /// # Errors
    /// There is no such interface, or it has no such address; the text says what to do.
    pub fn on(
        self,
        interfaces: &[(String, IpAddr)],
        is_wanted: impl Fn(IpAddr) -> bool,
    ) -> Result<Source, String> {
        let Source::Interface(name, _) = self else {
            return Ok(self);
        };
        let of_it = || interfaces.iter().filter(|(other, _)| *other == name);
        let addresses: Vec<IpAddr> = of_it()
            .map(|(_, address)| *address)
            .filter(|address| is_wanted(*address) && !is_link_local(*address))
            .collect();
        if !addresses.is_empty() {
            return Ok(Source::Interface(name, addresses));
        }
        if of_it().next().is_some() {
            return Err(format!(
                "--source {name}: that interface has no address of a target's family; add one (as root): ip addr add \
                 ADDRESS/PREFIX dev {name}"
            ));
        }
        let mut names: Vec<&str> = interfaces.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        Err(format!(
            "--source {name}: it is neither an address, a CIDR or a range, nor an interface with an address; those are: {}",
            names.join(", ")
        ))
    }

    /// Whether `address` is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.spans().iter().any(|span| span.contains(address))
    }

    /// The CIDRs that make all of it local by AnyIP, none for single addresses.
    pub fn networks(&self) -> Vec<String> {
        let subnets: Vec<IpNet> = match self {
            Source::Net(net) => vec![*net],
            Source::Range(IpAddr::V4(first), IpAddr::V4(last)) => {
                IpSubnets::from(Ipv4Subnets::new(*first, *last, 0)).collect()
            }
            Source::Range(IpAddr::V6(first), IpAddr::V6(last)) => {
                IpSubnets::from(Ipv6Subnets::new(*first, *last, 0)).collect()
            }
            Source::Range(..) | Source::Interface(..) => Vec::new(),
        };
        match subnets.as_slice() {
            [only] if only.prefix_len() == only.max_prefix_len() => Vec::new(),
            all => all.iter().map(ToString::to_string).collect(),
        }
    }

    /// The interface it names.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Source::Interface(name, _) => Some(name),
            _ => None,
        }
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        match self {
            Source::Net(net) => vec![Span::of(net)],
            Source::Range(first, last) => vec![Span::between(*first, *last)],
            Source::Interface(_, addresses) => addresses
                .iter()
                .map(|address| Span::between(*address, *address))
                .collect(),
        }
    }

    fn edges(&self) -> (Option<IpAddr>, Option<IpAddr>) {
        match self {
            Source::Net(net) => (Some(net.network()), Some(net.network())),
            Source::Range(first, last) => (Some(*first), Some(*last)),
            Source::Interface(..) => (None, None),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Source::Net(net) => net.fmt(f),
            Source::Range(first, last) => write!(f, "{first}-{last}"),
            Source::Interface(name, _) => f.write_str(name),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Addresses of one family that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    first: u128,
    last: u128,
    is_ipv4: bool,
}

impl Span {
    /// The usable addresses of `net`.
    fn of(net: &IpNet) -> Span {
        let all = Span::between(net.network(), net.broadcast());
        let (before, after) = match net {
            IpNet::V4(v4) if v4.prefix_len() < 31 => (1, 1),
            // The first address of an IPv6 subnet is its routers' anycast address; there is no broadcast.
            IpNet::V6(v6) if v6.prefix_len() < 127 => (1, 0),
            _ => (0, 0),
        };
        Span {
            first: all.first + before,
            last: all.last - after,
            ..all
        }
    }

    /// From `first` to `last`, of one family and in order.
    fn between(first: IpAddr, last: IpAddr) -> Span {
        Span {
            first: bits(first),
            last: bits(last),
            is_ipv4: first.is_ipv4(),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4 && (self.first..=self.last).contains(&bits(address))
    }

    fn count(&self) -> u64 {
        u64::try_from((self.last - self.first).saturating_add(1)).unwrap_or(u64::MAX)
    }

    fn address(&self, number: u64) -> IpAddr {
        let bits = self.first + u128::from(number);
        match self.is_ipv4 {
            true => Ipv4Addr::from_bits(bits as u32).into(),
            false => Ipv6Addr::from_bits(bits).into(),
        }
    }

    /// Those of these numbers, if there are any.
    fn part(&self, numbers: Range<u64>) -> Option<Span> {
        let last = numbers.end.checked_sub(1)?;
        (numbers.start <= last).then(|| Span {
            first: self.first + u128::from(numbers.start),
            last: self.first + u128::from(last),
            ..*self
        })
    }

    /// What is left of it without `other`.
    fn without(self, other: Span) -> impl Iterator<Item = Span> {
        let is_apart =
            self.is_ipv4 != other.is_ipv4 || self.last < other.first || other.last < self.first;
        let before = (is_apart || self.first < other.first).then(|| Span {
            last: match is_apart {
                true => self.last,
                false => other.first - 1,
            },
            ..self
        });
        let after = (!is_apart && other.last < self.last).then(|| Span {
            first: other.last + 1,
            ..self
        });
        before.into_iter().chain(after)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// `FIRST-LAST`, both whole addresses, or the last octet alone for the last one; none where `text` is no range.
fn parse_range(text: &str) -> Result<Option<(IpAddr, IpAddr)>, String> {
    let Some((first, last)) = text.split_once('-') else {
        return Ok(None);
    };
    let Ok(first) = first.trim().parse::<IpAddr>() else {
        return Ok(None);
    };
    let last_octet = |octet: u8| match first {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Some(IpAddr::from([a, b, c, octet]))
        }
        IpAddr::V6(_) => None,
    };
    let whole = last.trim().parse::<IpAddr>().ok();
    let last = whole.or_else(|| last.trim().parse().ok().and_then(last_octet));
    match last {
        Some(last) if last.is_ipv4() == first.is_ipv4() && first <= last => Ok(Some((first, last))),
        _ => Err("a range goes from one address up to another, such as 10.0.0.5-10.0.0.90".into()),
    }
}

/// As the kernel takes them: dev_valid_name() of net/core/dev.c.
fn is_interface_name(text: &str) -> bool {
    (1..16).contains(&text.len())
        && ![".", ".."].contains(&text)
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

fn cannot_be_a_source(address: IpAddr) -> bool {
    address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    fn addresses(text: &str) -> Vec<String> {
        let spans = source(text).spans();
        let addresses = spans
            .iter()
            .flat_map(|span| (0..span.count()).map(|n| span.address(n).to_string()));
        addresses.collect()
    }

    #[test]
    fn edges_of_a_network_are_skipped_only_where_it_has_them() {
        assert_eq!(addresses("127.1.0.0/30"), ["127.1.0.1", "127.1.0.2"]);
        assert_eq!(addresses("127.1.0.0/31"), ["127.1.0.0", "127.1.0.1"]);
        assert_eq!(addresses("127.1.0.7/32"), ["127.1.0.7"]);
        assert_eq!(addresses("127.1.0.5/30"), ["127.1.0.5", "127.1.0.6"]);
        assert_eq!(addresses("::1"), ["::1"]);
        assert_eq!(addresses("fd00::/126"), ["fd00::1", "fd00::2", "fd00::3"]);
        assert_eq!(source("8000::/1").spans()[0].count(), u64::MAX);
    }

    #[test]
    fn a_range_has_all_its_addresses_and_can_be_short() {
        assert_eq!(
            addresses("10.0.0.254-10.0.1.1"),
            ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]
        );
        assert_eq!(addresses("10.0.0.5-7"), addresses("10.0.0.5-10.0.0.7"));
        assert_eq!(addresses("fd00::e-fd00::10").len(), 3);
        assert_eq!(addresses("10.0.0.5-5"), ["10.0.0.5"]);
        for text in [
            "10.0.0.5-10.0.0.4",
            "10.0.0.5-4",
            "10.0.0.5-256",
            "10.0.0.5-fd00::1",
            "fd00::1-9",
            "10.0.0.5-",
            "127.1.0.0/33",
            "0.0.0.0",
            "0.0.0.0-9",
            "255.255.255.250-255",
            "ff02::1",
            "224.0.0.0/4",
            "a name that is far too long",
            "",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_interface_stands_for_its_addresses_of_the_targets_family() {
        let there: Vec<(String, IpAddr)> = [
            ("lo", "127.0.0.1"),
            ("eth0", "10.0.0.5"),
            ("eth0", "10.0.0.6"),
            ("eth0", "fd00::5"),
            ("eth0", "fe80::5"),
            ("br-1a2b", "fe80::1"),
        ]
        .map(|(name, address)| (name.to_owned(), address.parse().unwrap()))
        .to_vec();
        let ipv4 = source("eth0")
            .on(&there, |address| address.is_ipv4())
            .unwrap();
        assert!(ipv4.contains("10.0.0.6".parse().unwrap()));
        assert_eq!(ipv4.spans().len(), 2);
        let both = source("eth0").on(&there, |_| true).unwrap();
        assert_eq!(both.spans().len(), 3);
        let none = source("br-1a2b").on(&there, |_| true).unwrap_err();
        assert!(
            none.contains("ip addr add ADDRESS/PREFIX dev br-1a2b"),
            "{none}"
        );
        let unknown = source("eth7").on(&there, |_| true).unwrap_err();
        assert!(unknown.contains("br-1a2b, eth0, lo"), "{unknown}");
        let range = source("10.0.0.5-7");
        assert_eq!(range.clone().on(&there, |_| true), Ok(range));
    }

    #[test]
    fn the_networks_of_a_source_are_what_makes_it_local() {
        assert_eq!(source("10.9.0.0/16").networks(), ["10.9.0.0/16"]);
        assert_eq!(source("fd00::/64").networks(), ["fd00::/64"]);
        assert_eq!(
            source("10.0.0.5-10.0.0.9").networks(),
            ["10.0.0.5/32", "10.0.0.6/31", "10.0.0.8/31"]
        );
        assert_eq!(source("10.0.0.8-15").networks(), ["10.0.0.8/29"]);
        for single in ["10.0.0.5", "10.0.0.5-5", "eth0"] {
            assert!(source(single).networks().is_empty(), "{single}");
        }
    }

    #[test]
    fn a_source_is_shown_as_it_was_given() {
        for text in [
            "10.0.0.5",
            "127.1.0.0/16",
            "10.0.0.5-10.0.0.90",
            "fd00::1",
            "eth0",
        ] {
            assert_eq!(source(text).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_left_of_a_span_is_what_the_other_has_not(a: u8, b: u8, c: u8, d: u8) {
            let span = |x: u8, y: u8| Span::between(IpAddr::from([10, 0, 0, x.min(y)]), IpAddr::from([10, 0, 0, x.max(y)]));
            let (one, other) = (span(a, b), span(c, d));
            let left: Vec<Span> = one.without(other).collect();
            for octet in 0..=255 {
                let address = IpAddr::from([10, 0, 0, octet]);
                let holders = left.iter().filter(|span| span.contains(address)).count();
                prop_assert_eq!(holders, usize::from(one.contains(address) && !other.contains(address)));
            }
        }
    }
}
