//! What the host said when a run stopped: plain values, so that a diagnosis is a pure function of them.
//!
//! A value that could not be read is absent, and the diagnosis does without it.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::host::{self, CgroupMemory, Files, Memory, NetCounters, Sockstat, TableUse};
use crate::process::{self, Nofile};

/// The limits of the host and of this process, and what of them is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Growth of the network counters since the run began.
    pub counters: NetCounters,
    /// Memory of the host.
    pub memory: Option<Memory>,
    /// The memory limit of this process's control group.
    pub cgroup: Option<CgroupMemory>,
    /// TCP sockets and their queued data.
    pub sockstat: Option<Sockstat>,
    /// `net.ipv4.tcp_mem`, in pages.
    pub tcp_mem_pages: Option<[u64; 3]>,
    /// Open files of the host.
    pub files: Option<Files>,
    /// Open-file limit of this process.
    pub nofile: Option<Nofile>,
    /// `fs.nr_open`, the ceiling of any process's open-file limit.
    pub nr_open: Option<u64>,
    /// Soft limit on locked memory (RLIMIT_MEMLOCK); `None` where it does not bind: there is none, or this process has
    /// CAP_IPC_LOCK.
    pub memlock_bytes: Option<u64>,
    /// The ports the kernel chooses from.
    pub port_range: Option<RangeInclusive<u16>>,
    /// Those it leaves out.
    pub reserved_ports: Vec<RangeInclusive<u16>>,
    /// Connections tracked in this network namespace, and `nf_conntrack_max`.
    pub conntrack: Option<TableUse>,
    /// IPv4 neighbours of the host, and `gc_thresh3`.
    pub neighbours: Option<TableUse>,
    /// IPv6 neighbours of the host, and `gc_thresh3`.
    pub neighbours_ipv6: Option<TableUse>,
    /// `net.core.somaxconn`.
    pub somaxconn: Option<u64>,
    /// `net.core.netdev_max_backlog`.
    pub netdev_max_backlog: Option<u64>,
    /// `kernel.io_uring_disabled`; `None` before Linux 6.6.
    pub io_uring_disabled: Option<u32>,
    /// Kernel release.
    pub kernel: Option<String>,
}

impl Evidence {
    /// Reads the host now; `at_start` are the counters from before the run.
    ///
    /// Once every descriptor is in use (EMFILE, ENFILE) no file can be opened, and only the limits of the process are
    /// there. They are what EMFILE needs; to have `fs.file-max` for ENFILE, read once at the start and keep its `files`.
    pub fn read(at_start: &NetCounters) -> Self {
        Self {
            counters: NetCounters::read()
                .map(|now| now.since(at_start))
                .unwrap_or_default(),
            memory: Memory::read().ok(),
            cgroup: CgroupMemory::read(),
            sockstat: Sockstat::read().ok(),
            tcp_mem_pages: host::tcp_mem_pages().ok(),
            files: Files::read().ok(),
            nofile: Nofile::read().ok(),
            nr_open: host::sysctl_u64("fs.nr_open").ok(),
            memlock_bytes: process::memlock_bytes(),
            port_range: host::ip_local_port_range().ok(),
            reserved_ports: host::reserved_ports().unwrap_or_default(),
            conntrack: TableUse::of_conntrack(),
            neighbours: TableUse::of_neighbours("arp_cache", "ipv4"),
            neighbours_ipv6: TableUse::of_neighbours("ndisc_cache", "ipv6"),
            somaxconn: host::sysctl_u64("net.core.somaxconn").ok(),
            netdev_max_backlog: host::sysctl_u64("net.core.netdev_max_backlog").ok(),
            io_uring_disabled: host::io_uring_disabled(),
            kernel: host::sysctl("kernel.osrelease").ok(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn anybody_can_read_the_evidence() {
        let evidence = Evidence::read(&NetCounters::read().unwrap());
        assert!(
            evidence.memory.is_some() && evidence.nofile.is_some() && evidence.port_range.is_some()
        );
        assert!(evidence.counters.get("ListenDrops").is_some());
        assert!(
            Evidence::read(&NetCounters::default())
                .counters
                .iter()
                .next()
                .is_none()
        );
    }
}
