//! What lies between here and a target: whether a figure says anything of a network.
//!
//! Touches a UDP socket that sends nothing, the list of interfaces, and what the kernel says of a device.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use serde::Serialize;

use super::link;

/// How packets reach a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Path {
    /// The target is this host: packets cross no device.
    Loopback,
    /// A virtual pair: between namespaces of one host, or to a bridge.
    Veth {
        /// This end.
        device: String,
    },
    /// Anything else, by its name.
    Device {
        /// The interface.
        device: String,
        /// What software makes it (`bridge`, `vlan`, `tun`, …); none of hardware's.
        software: Option<String>,
    },
    /// There is no route, or no interface has the source address.
    Unknown,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Loopback => write!(f, "loopback: not a network measurement"),
            Path::Veth { device } => write!(f, "veth {device}: within this host, over no wire"),
            Path::Device {
                device,
                software: None,
            } => write!(f, "device {device}"),
            Path::Device {
                device,
                software: Some(kind),
            } => write!(f, "device {device} ({kind})"),
            Path::Unknown => write!(
                f,
                "unknown: no route, or no interface has its source address"
            ),
        }
    }
}

impl Path {
    /// The path to `target` and the source address that the kernel would choose for it.
    pub fn to(target: IpAddr) -> (Path, Option<IpAddr>) {
        let Some(source) = source(target) else {
            return (Path::Unknown, None);
        };
        let interfaces: Vec<(String, IpAddr)> = getifaddrs()
            .map(|list| {
                list.filter_map(|i| Some((i.interface_name, ip(i.address.as_ref()?)?)))
                    .collect()
            })
            .unwrap_or_default();
        let device_of = |address: IpAddr| interfaces.iter().find(|(_, ip)| *ip == address);
        // A local route without an address (AnyIP) has the target itself for its source.
        let path = if target.is_loopback() || source == target || device_of(target).is_some() {
            Path::Loopback
        } else {
            match device_of(source) {
                None => Path::Unknown,
                Some((device, _)) => {
                    let device = device.clone();
                    match link::kind(&device) {
                        Some(kind) if kind == "veth" => Path::Veth { device },
                        software => Path::Device { device, software },
                    }
                }
            }
        };
        (path, Some(source))
    }
}

/// A connected UDP socket has asked the routing table, and has sent nothing.
fn source(target: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match target {
        IpAddr::V4(_) => ([0; 4], 0).into(),
        IpAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    // Any port but 0 will do.
    socket.connect((target, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    None.or_else(|| address.as_sockaddr_in().map(|a| a.ip().into()))
        .or_else(|| address.as_sockaddr_in6().map(|a| a.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_no_network() {
        for target in ["127.0.0.1", "127.1.2.3"] {
            let target: IpAddr = target.parse().unwrap_or_else(|_| unreachable!());
            let (path, source) = Path::to(target);
            assert_eq!(path, Path::Loopback);
            assert!(source.is_some_and(|source| source.is_loopback()));
        }
        assert!(Path::Loopback.to_string().contains("not a network"));
    }
}
