//! What addresses are asked for, as text and as values.
//!
//! Pure. Invariant: what was accepted is within the bounds, and takes nothing away from the host that it needs.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

/// Most addresses that one command puts on an interface: the kernel walks them as a list.
pub const MOST_ADDRESSES: usize = 4_096;

/// Most networks that one command makes local.
const MOST_NETWORKS: usize = 64;

/// The shortest prefix that is made local: more is nobody's test network.
const SHORTEST_PREFIX: u8 = 8;

/// An address, a CIDR or `FIRST-LAST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    text: String,
    networks: Vec<IpNet>,
    /// Whether it is a CIDR, whose edges are no addresses of hosts.
    has_edges: bool,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            "it is an address, a CIDR such as 10.9.0.0/16, or a range such as 10.9.0.5-10.9.0.90";
        let (networks, has_edges) = if let Ok(address) = text.parse::<IpAddr>() {
            (vec![IpNet::from(address)], false)
        } else if let Ok(network) = text.parse::<IpNet>() {
            (vec![network.trunc()], true)
        } else {
            let (first, last) = text.split_once('-').ok_or(form)?;
            let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| form);
            let networks: Vec<IpNet> = match (parse(first)?, parse(last)?) {
                (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                    Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
                }
                (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                    Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
                }
                _ => return Err("a range goes from one address up to another".to_owned()),
            };
            (networks, false)
        };
        match networks.iter().find_map(unfit) {
            Some(why) => Err(why.to_owned()),
            None => Ok(Self {
                text: text.to_owned(),
                networks,
                has_edges,
            }),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Spec {
    /// As networks to be made local as a whole.
    ///
    /// # Errors
    /// They are too many, too large, or IPv6.
    pub fn as_networks(&self) -> Result<Vec<IpNet>, String> {
        if self
            .networks
            .iter()
            .any(|network| matches!(network, IpNet::V6(_)))
        {
            return Err(format!(
                "{self}: a socket cannot bind to an IPv6 address that only a local route covers (EADDRNOTAVAIL unless \
                 net.ipv6.ip_nonlocal_bind = 1): put single addresses on an interface, with --interface"
            ));
        }
        if self.networks.len() > MOST_NETWORKS {
            return Err(format!(
                "{self}: it takes {} routes, and {MOST_NETWORKS} are the most: choose a range with rounder ends, or a CIDR",
                self.networks.len()
            ));
        }
        let too_large = |network: &&IpNet| network.prefix_len() < SHORTEST_PREFIX;
        match self.networks.iter().find(too_large) {
            Some(network) => Err(format!(
                "{self}: {network} is too large: a /{SHORTEST_PREFIX} is the most"
            )),
            None => Ok(self.networks.clone()),
        }
    }

    /// As single addresses, each a /32 or /128; of a CIDR without its edges.
    ///
    /// # Errors
    /// They are more than [`MOST_ADDRESSES`].
    pub fn as_addresses(&self) -> Result<Vec<IpNet>, String> {
        let hosts = self.networks.iter().flat_map(|network| {
            // Like this they are few, before they are counted.
            let all: Box<dyn Iterator<Item = IpAddr>> = match (self.has_edges, network) {
                (true, _) => Box::new(network.hosts()),
                (false, IpNet::V4(v4)) => Box::new(
                    ipnet::Ipv4AddrRange::new(v4.network(), v4.broadcast()).map(IpAddr::V4),
                ),
                (false, IpNet::V6(v6)) => Box::new(
                    ipnet::Ipv6AddrRange::new(v6.network(), v6.broadcast()).map(IpAddr::V6),
                ),
            };
            all
        });
        let addresses: Vec<IpNet> = hosts.take(MOST_ADDRESSES + 1).map(IpNet::from).collect();
        match addresses.len() > MOST_ADDRESSES {
            true => Err(format!(
                "{self}: an interface gets {MOST_ADDRESSES} addresses at most; without --interface a whole network \
                 becomes local at once"
            )),
            false => Ok(addresses),
        }
    }
}

/// Why connections cannot come from there, or need nothing to.
fn unfit(network: &IpNet) -> Option<&'static str> {
    let within = |outer: &str| {
        outer
            .parse()
            .is_ok_and(|outer: IpNet| outer.contains(network))
    };
    if within("127.0.0.0/8") || within("::1/128") {
        Some("loopback is this host's already, all of 127.0.0.0/8: nothing needs to be added")
    } else if ["0.0.0.0/8", "224.0.0.0/3", "ff00::/8", "::/128"]
        .into_iter()
        .any(within)
    {
        Some("connections cannot come from there")
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Spec {
        text.parse().unwrap()
    }

    fn shown(networks: Vec<IpNet>) -> Vec<String> {
        networks.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_network_is_local_as_a_whole_and_on_an_interface_by_its_hosts() {
        assert_eq!(
            shown(spec("10.9.0.0/16").as_networks().unwrap()),
            ["10.9.0.0/16"]
        );
        assert_eq!(
            shown(spec("10.9.0.0/30").as_addresses().unwrap()),
            ["10.9.0.1/32", "10.9.0.2/32"]
        );
        assert_eq!(
            shown(spec("10.9.7.7/16").as_networks().unwrap()),
            ["10.9.0.0/16"]
        );
        assert_eq!(
            shown(spec("fd00::5").as_addresses().unwrap()),
            ["fd00::5/128"]
        );
    }

    #[test]
    fn a_range_has_exactly_its_addresses() {
        let range = spec("10.9.0.5-10.9.0.8");
        assert_eq!(
            shown(range.as_networks().unwrap()),
            ["10.9.0.5/32", "10.9.0.6/31", "10.9.0.8/32"]
        );
        assert_eq!(
            shown(range.as_addresses().unwrap()),
            ["10.9.0.5/32", "10.9.0.6/32", "10.9.0.7/32", "10.9.0.8/32"]
        );
    }

    #[test]
    fn too_much_is_refused_before_anything_is_done() {
        assert!(
            spec("10.0.0.0/7")
                .as_networks()
                .unwrap_err()
                .contains("too large")
        );
        assert!(
            spec("10.0.0.0/8")
                .as_addresses()
                .unwrap_err()
                .contains("4096")
        );
        assert!(spec("fd00::/64").as_addresses().is_err());
        assert!(
            spec("fd00::/64")
                .as_networks()
                .unwrap_err()
                .contains("--interface")
        );
        for text in [
            "",
            "eth0",
            "10.9.0.0/33",
            "10.9.0.9-10.9.0.1",
            "127.1.0.0/16",
            "0.0.0.0",
            "224.0.0.5",
            "ff02::1",
            "::1",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
