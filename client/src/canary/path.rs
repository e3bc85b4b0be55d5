//! What lies between here and a target: whether a figure says anything of a network.
//!
//! Touches the routes and interfaces, by `kernel_tuning::host`, and what the kernel says of a device.

use std::fmt;
use std::net::IpAddr;

use kernel_tuning::host::{LOOPBACK, route};
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
        let Some(route) = route(target) else {
            return (Path::Unknown, None);
        };
        let path = match route.interface {
            None => Path::Unknown,
            Some(device) if device == LOOPBACK => Path::Loopback,
            Some(device) => match link::kind(&device) {
                Some(kind) if kind == "veth" => Path::Veth { device },
                software => Path::Device { device, software },
            },
        };
        (path, Some(route.source))
    }
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
