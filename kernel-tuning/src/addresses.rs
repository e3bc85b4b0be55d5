//! More source addresses for this host: on an interface, or a whole network at once (AnyIP).
//!
//! Touches the addresses and the local routes of the network namespace of the calling thread, by rtnetlink(7). Invariant:
//! what is added carries [`MARK`], and nothing without it is ever changed or removed; so there is no state to lose, and
//! nothing survives a restart of the host.

mod netlink;
mod spec;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::net::if_::{if_nameindex, if_nametoindex};
use serde::Serialize;

use crate::host::LOOPBACK;
use netlink::Netlink;
pub use spec::{MOST_ADDRESSES, Spec};

/// Who added it: the protocol number of a route (rtnetlink(7), `rtm_protocol`) and of an address (`IFA_PROTO`, Linux
/// 5.18), shown by `ip route show table local proto 116`. No routing daemon in iproute2's `rt_protos` has it.
pub const MARK: u8 = 116;

/// The kernel's routing table of its own addresses.
const TABLE_LOCAL: u8 = 255;

/// Something that [`add`] gives to the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Owned {
    /// All addresses of a network, by a local route on loopback.
    AnyIp {
        /// The network.
        network: IpNet,
    },
    /// One address of an interface.
    Address {
        /// The address, as a /32 or /128.
        network: IpNet,
        /// The interface.
        interface: String,
    },
}

impl std::fmt::Display for Owned {
    /// As `ip` would be told.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AnyIp { network } => write!(f, "route local {network} dev {LOOPBACK}"),
            Self::Address { network, interface } => write!(f, "address {network} dev {interface}"),
        }
    }
}

/// Why addresses could not be added, removed or listed.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// What is asked for is refused before anything is done.
    #[error("{0}")]
    Refused(String),
    /// There is no such interface.
    #[error("there is no interface {name}; there are: {others}")]
    NoInterface {
        /// The name.
        name: String,
        /// Those there are.
        others: String,
    },
    /// The kernel refuses a change.
    #[error("cannot {what}: {cause}{hint}")]
    Kernel {
        /// What was tried.
        what: String,
        /// What the kernel answered.
        cause: io::Error,
        /// The likely cause.
        hint: &'static str,
    },
}

impl Owned {
    /// The interface of an address.
    pub fn interface(&self) -> Option<&str> {
        match self {
            Self::AnyIp { .. } => None,
            Self::Address { interface, .. } => Some(interface),
        }
    }
}

/// What of `specs` is to be added: on `interface`, or as local networks.
///
/// # Errors
/// Where that is too much, takes the host's way to another network, or the interface is not there.
pub fn plan(specs: &[Spec], interface: Option<&str>) -> Result<Vec<Owned>, AddressError> {
    let all = named(specs, interface)?;
    if all.len() > MOST_ADDRESSES {
        return Err(AddressError::Refused(format!(
            "{} addresses are too many: {MOST_ADDRESSES} are the most of one command",
            all.len()
        )));
    }
    all.iter().try_for_each(takes_no_others_way)?;
    Ok(all)
}

/// What `specs` stand for, on `interface` or as local networks.
///
/// # Errors
/// Where that is too much, or the interface is not there.
pub fn named(specs: &[Spec], interface: Option<&str>) -> Result<Vec<Owned>, AddressError> {
    let mut all = Vec::new();
    for spec in specs {
        match interface {
            Some(interface) => {
                index_of(interface)?;
                let addresses = spec.as_addresses().map_err(AddressError::Refused)?;
                all.extend(addresses.into_iter().map(|network| Owned::Address {
                    network,
                    interface: interface.to_owned(),
                }));
            }
            None => {
                let networks = spec.as_networks().map_err(AddressError::Refused)?;
                all.extend(networks.into_iter().map(|network| Owned::AnyIp { network }));
            }
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Adds what is not there yet, and tells what that was. Where one is refused, those added before it are removed again.
///
/// # Errors
/// What the kernel refused; or something of that kind is there and not ours.
pub fn add(wanted: &[Owned]) -> Result<Vec<Owned>, AddressError> {
    let mut kernel = Netlink::open().map_err(|cause| failed("open rtnetlink", cause))?;
    let there = ours(&mut kernel)?;
    let mut added = Vec::new();
    for owned in wanted.iter().filter(|owned| !there.contains(owned)) {
        let message = match owned {
            Owned::AnyIp { network } => RouteNetlinkMessage::NewRoute(route(network)?),
            Owned::Address { network, interface } => {
                RouteNetlinkMessage::NewAddress(address(network, interface)?)
            }
        };
        if let Err(cause) = kernel.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            // The error that matters is the first.
            let _ = remove(&added);
            return Err(failed(&format!("add {owned}"), cause));
        }
        added.push(owned.clone());
    }
    Ok(added)
}

/// Removes those of `unwanted` that are there, and ours; tells which.
///
/// # Errors
/// What the kernel refused.
pub fn remove(unwanted: &[Owned]) -> Result<Vec<Owned>, AddressError> {
    let mut kernel = Netlink::open().map_err(|cause| failed("open rtnetlink", cause))?;
    let there = ours(&mut kernel)?;
    let mut removed = Vec::new();
    for owned in unwanted.iter().filter(|owned| there.contains(owned)) {
        let message = match owned {
            Owned::AnyIp { network } => RouteNetlinkMessage::DelRoute(route(network)?),
            Owned::Address { network, interface } => {
                RouteNetlinkMessage::DelAddress(address(network, interface)?)
            }
        };
        kernel
            .change(message, 0)
            .map_err(|cause| failed(&format!("remove {owned}"), cause))?;
        removed.push(owned.clone());
    }
    Ok(removed)
}

/// All that was added in this network namespace and is there still.
///
/// # Errors
/// The kernel does not tell.
pub fn list() -> Result<Vec<Owned>, AddressError> {
    ours(&mut Netlink::open().map_err(|cause| failed("open rtnetlink", cause))?)
}

fn ours(kernel: &mut Netlink) -> Result<Vec<Owned>, AddressError> {
    let mut dump = |message| {
        kernel
            .dump(message)
            .map_err(|cause| failed("list routes and addresses", cause))
    };
    let routes = dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
    let addresses = dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let names = interfaces();
    let owned = |message: &RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewRoute(route) => {
            let header = &route.header;
            let is_ours = header.protocol == RouteProtocol::Other(MARK)
                && header.kind == RouteType::Local
                && header.table == TABLE_LOCAL;
            let network = destination(route).filter(|_| is_ours)?;
            Some(Owned::AnyIp { network })
        }
        RouteNetlinkMessage::NewAddress(address) => {
            let mark = AddressAttribute::Protocol(AddressProtocol::Other(MARK));
            let ip = address
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                });
            let index = address.header.index;
            let (_, name) = names.iter().find(|(of, _)| *of == index)?;
            address.attributes.contains(&mark).then_some(())?;
            Some(Owned::Address {
                network: IpNet::new(ip?, address.header.prefix_len).ok()?,
                interface: name.clone(),
            })
        }
        _ => None,
    };
    let mut all: Vec<Owned> = routes.iter().chain(&addresses).filter_map(owned).collect();
    all.sort();
    Ok(all)
}

/// Refuses a local network in which the host's gateways lie, or one it has a route to: those could not be reached any
/// more.
fn takes_no_others_way(owned: &Owned) -> Result<(), AddressError> {
    let Owned::AnyIp { network } = owned else {
        return Ok(());
    };
    let routes = Netlink::open()
        .and_then(|mut kernel| kernel.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default())))
        .map_err(|cause| failed("list routes", cause))?;
    let taken = routes.iter().find_map(|message| {
        let RouteNetlinkMessage::NewRoute(route) = message else {
            return None;
        };
        (route.header.kind == RouteType::Unicast).then_some(())?;
        let to = destination(route).filter(|to| network.contains(to));
        let gateway = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Gateway(gateway) => ip(gateway).filter(|ip| network.contains(ip)),
                _ => None,
            });
        to.map(|to| format!("{to}, to which this host has a route"))
            .or(gateway.map(|ip| format!("{ip}, a gateway of this host")))
    });
    match taken {
        Some(what) => Err(AddressError::Refused(format!(
            "{network} would take in {what}: it could not be reached any more; choose a network that nobody uses (see ip \
             route)"
        ))),
        None => Ok(()),
    }
}

/// `ip route add local NETWORK dev lo proto 116`.
fn route(network: &IpNet) -> Result<RouteMessage, AddressError> {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family(network),
        destination_prefix_length: network.prefix_len(),
        table: TABLE_LOCAL,
        protocol: RouteProtocol::Other(MARK),
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![
        RouteAttribute::Destination(network.addr().into()),
        RouteAttribute::Oif(index_of(LOOPBACK)?),
    ];
    Ok(route)
}

/// `ip addr add ADDRESS dev INTERFACE proto 116 nodad`.
fn address(network: &IpNet, interface: &str) -> Result<AddressMessage, AddressError> {
    let mut address = AddressMessage::default();
    address.header.family = family(network);
    address.header.prefix_len = network.prefix_len();
    address.header.index = index_of(interface)?;
    address.attributes = vec![
        AddressAttribute::Local(network.addr()),
        AddressAttribute::Address(network.addr()),
        AddressAttribute::Protocol(AddressProtocol::Other(MARK)),
    ];
    if matches!(network, IpNet::V6(_)) {
        // Usable at once: else each is tentative while the link is asked whether another has it.
        address
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    Ok(address)
}

fn family(network: &IpNet) -> AddressFamily {
    match network {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

/// Where a route leads to; none of the default route, which has no destination.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    IpNet::new(address?, route.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn index_of(interface: &str) -> Result<u32, AddressError> {
    if_nametoindex(interface).map_err(|_| AddressError::NoInterface {
        name: interface.to_owned(),
        others: interfaces()
            .into_iter()
            .map(|(_, name)| name)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn interfaces() -> Vec<(u32, String)> {
    let all = if_nameindex().ok();
    all.iter()
        .flat_map(|all| all.into_iter())
        .map(|interface| {
            (
                interface.index(),
                interface.name().to_string_lossy().into_owned(),
            )
        })
        .collect()
}

fn failed(what: &str, cause: io::Error) -> AddressError {
    let hint = match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => "; it takes root (CAP_NET_ADMIN): run it with sudo",
        Some(Errno::EEXIST) => {
            "; it is there already, and was not added by throng-tune, which leaves it alone: see ip addr and ip route \
             show table local"
        }
        Some(Errno::ENETDOWN) => "; the interface is down: ip link set INTERFACE up",
        _ => "",
    };
    AddressError::Kernel {
        what: what.to_owned(),
        cause,
        hint,
    }
}
