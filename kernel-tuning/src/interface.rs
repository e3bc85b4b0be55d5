//! The network interfaces of this namespace: their addresses, the one that leads to a target, and what it counted.
//!
//! Reads `getifaddrs(3)`, the routing table by way of a socket that sends nothing, `/proc/thread-self/net/dev` and
//! `/sys/class/net`. The namespace is that of the calling thread.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::counters::PROC_NET;
use crate::host::{HostError, NetCounters, format_error, read};

/// Loopback, over which a host talks to its own addresses.
pub const LOOPBACK: &str = "lo";

/// The addresses of all interfaces, IPv4 and IPv6, each with the interface's name.
///
/// # Errors
/// That of getifaddrs(3).
pub fn interface_addresses() -> Result<Vec<(String, IpAddr)>, Errno> {
    let entries = getifaddrs()?.filter_map(|entry| {
        let address = ip(entry.address.as_ref()?)?;
        Some((entry.interface_name, address))
    });
    Ok(entries.collect())
}

/// How packets go to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The address that the kernel would send from.
    pub source: IpAddr,
    /// [`LOOPBACK`] where the target is an address of this host; `None` where no interface has the source address.
    pub interface: Option<String>,
}

/// How packets go to `target`; `None` where they cannot.
pub fn route(target: IpAddr) -> Option<Route> {
    let any: IpAddr = match target {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // It asks the routing table, for any port but 0, and sends nothing.
    socket.connect((target, 9)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    let interfaces = interface_addresses().unwrap_or_default();
    let of = |address: IpAddr| interfaces.iter().find(|(_, other)| *other == address);
    // A local route without an address of its own (AnyIP) has the target itself for its source.
    let is_here = target.is_loopback() || source == target || of(target).is_some();
    let interface = match is_here {
        true => Some(LOOPBACK.to_owned()),
        false => of(source).map(|(name, _)| name.clone()),
    };
    Some(Route { source, interface })
}

/// What interface `name` counted since it was made: the files of `/sys/class/net/NAME/statistics` by their names
/// (Documentation/ABI/testing/sysfs-class-net-statistics). Of the queues of a NIC, and of what only its driver knows
/// (`ethtool -S`), sysfs tells nothing. Where the mounted `/sys` is that of another network namespace, they are the fewer
/// of `/proc/thread-self/net/dev`, in which packets that the NIC missed count as dropped.
///
/// # Errors
/// There is no such interface.
pub fn interface_statistics(name: &str) -> Result<NetCounters, HostError> {
    let directory = Path::new("/sys/class/net").join(name).join("statistics");
    let packets = |counters: &NetCounters| counters.get("rx_packets").unwrap_or(0);
    let before = read_statistics(&directory);
    let here = in_proc(&read(Path::new(PROC_NET).join("dev"))?, name)?;
    let after = read_statistics(&directory);
    // A directory of this name in another namespace's /sys is another interface's.
    match (before, after) {
        (Ok(before), Ok(after))
            if (packets(&before)..=packets(&after)).contains(&packets(&here)) =>
        {
            Ok(after)
        }
        _ => Ok(here),
    }
}

fn read_statistics(directory: &Path) -> Result<NetCounters, HostError> {
    let failed = |cause| HostError::Read {
        path: directory.to_owned(),
        cause,
        hint: "",
    };
    let files = fs::read_dir(directory).map_err(failed)?.flatten();
    Ok(files
        .filter_map(|file| {
            let value = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
            Some((file.file_name().into_string().ok()?, value))
        })
        .collect())
}

/// The columns of `dev` that are one statistic, by its name in sysfs (net/core/net-procfs.c).
const COLUMNS: &[(usize, &str)] = &[
    (0, "rx_bytes"),
    (1, "rx_packets"),
    (2, "rx_errors"),
    (3, "rx_dropped"),
    (4, "rx_fifo_errors"),
    (7, "multicast"),
    (8, "tx_bytes"),
    (9, "tx_packets"),
    (10, "tx_errors"),
    (11, "tx_dropped"),
    (12, "tx_fifo_errors"),
    (13, "collisions"),
];

/// The interface's row of `dev`, proc_pid_net(5).
fn in_proc(dev: &str, name: &str) -> Result<NetCounters, HostError> {
    let mut rows = dev.lines().filter_map(|line| line.split_once(':'));
    let values: Option<Vec<u64>> = rows
        .find(|(interface, _)| interface.trim() == name)
        .and_then(|(_, row)| {
            row.split_whitespace()
                .map(|word| word.parse().ok())
                .collect()
        });
    let values = values.filter(|values| values.len() >= 14);
    let values = values.ok_or_else(|| {
        format_error(
            Path::new(PROC_NET).join("dev"),
            format!("no row of {name}: there is no such interface, see `ip link`"),
        )
    })?;
    let named = |(column, name): &(usize, &str)| ((*name).to_owned(), values[*column]);
    Ok(COLUMNS.iter().map(named).collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PROC_NET_DEV: &str = "Inter-|   Receive                            |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
        lo: 22760 216 0 0 0 0 0 0 22760 216 0 0 0 0 0 0\n\
        eth0:121 7 0 3 0 0 0 0 5 1 0 2 0 0 0 0\n";

    #[test]
    fn figures_are_those_of_the_interface() {
        let of = |name| in_proc(PROC_NET_DEV, name);
        assert_eq!(of("lo").unwrap().get("rx_packets"), Some(216));
        let eth0 = of("eth0").unwrap();
        let figures = ["rx_packets", "rx_dropped", "tx_packets", "tx_dropped"];
        assert_eq!(figures.map(|name| eth0.get(name)), [7, 3, 1, 2].map(Some));
        assert!(of("eth").is_err());
    }

    #[test]
    fn this_host_talks_to_itself_over_loopback() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(
            interface_addresses()
                .unwrap()
                .contains(&(LOOPBACK.to_owned(), loopback))
        );
        for target in [loopback, IpAddr::from([127, 9, 8, 7])] {
            let route = route(target).unwrap();
            assert_eq!(route.interface.as_deref(), Some(LOOPBACK));
            assert!(route.source.is_loopback());
        }
        let before = interface_statistics(LOOPBACK).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let grown = interface_statistics(LOOPBACK).unwrap().since(&before);
        assert!(grown.get("rx_packets") >= Some(1), "{grown:?}");
        let error = interface_statistics("no-such").unwrap_err().to_string();
        assert!(error.contains("no row of no-such"), "{error}");
    }
}
