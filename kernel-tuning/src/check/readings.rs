//! What the doctor reads: files of `/proc` and `/sys` of a tree, as plain values.
//!
//! Reads only. Invariant: a file that is missing, or not as expected, is an absent value.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use procfs::FromRead;

use crate::host::{CgroupMemory, Memory, Sockstat};
use crate::tree::{Now, Tree};

/// What checks ask for beside the settings of the profile.
const SYSCTLS: [&str; 8] = [
    "fs.file-nr",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_ehash_entries",
    "net.ipv4.tcp_mem",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "kernel.osrelease",
];

/// Everything that was read.
#[derive(Debug, Clone, Default)]
pub struct Readings {
    /// Settings and figures of `/proc/sys` by name, or why they cannot be read.
    pub sysctls: BTreeMap<&'static str, Result<String, String>>,
    /// Memory of the host.
    pub memory: Option<Memory>,
    /// The memory limit of this process's control group, where it has one.
    pub cgroup: Option<CgroupMemory>,
    /// TCP sockets.
    pub sockstat: Option<Sockstat>,
    /// Hard limit of open files (RLIMIT_NOFILE) of this process; the largest number for none.
    pub nofile_hard: Option<u64>,
    /// Soft limit of locked memory (RLIMIT_MEMLOCK) of this process, in bytes; the largest number for none.
    pub memlock_bytes: Option<u64>,
    /// Effective capabilities of this process (capabilities(7)), a bit each.
    pub capabilities: Option<u64>,
    /// CPUs that are online.
    pub cpus: Option<u64>,
    /// Interfaces that have a device below them: not loopback, bridges, veth.
    pub nics: Vec<Nic>,
    /// The clock source in use.
    pub clock_source: Option<String>,
    /// Those there are.
    pub clock_sources: Option<String>,
    /// The choices for transparent huge pages, the one in use in brackets.
    pub huge_pages: Option<String>,
}

/// A network interface, and how its packets reach CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Receive queues.
    pub rx_queues: u64,
    /// Those of them with receive packet steering (`rps_cpus` not zero).
    pub rx_queues_with_rps: u64,
    /// CPUs that its interrupts go to; none where that is not told.
    pub irq_cpus: Option<u64>,
}

impl Readings {
    /// Reads everything in `tree`.
    pub fn read(tree: &Tree) -> Self {
        let text = |path: &str| fs::read_to_string(tree.path(path)).ok();
        let line = |path: &str| text(path).map(|text| text.trim().to_owned());
        let limits = text("proc/self/limits").unwrap_or_default();
        let status = text("proc/self/status").unwrap_or_default();
        let clock = "sys/devices/system/clocksource/clocksource0";
        Self {
            sysctls: SYSCTLS.map(|name| (name, sysctl(tree, name))).into(),
            memory: text("proc/meminfo")
                .and_then(|text| procfs::Meminfo::from_read(text.as_bytes()).ok())
                .and_then(|meminfo| Memory::from_meminfo(&meminfo).ok()),
            cgroup: CgroupMemory::read_below(&tree.path("/")),
            sockstat: text("proc/self/net/sockstat").and_then(|text| Sockstat::parse(&text).ok()),
            nofile_hard: limit(&limits, "Max open files", 1),
            memlock_bytes: limit(&limits, "Max locked memory", 0),
            capabilities: status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))
                .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()),
            cpus: line("sys/devices/system/cpu/online").and_then(|list| count_of_list(&list)),
            nics: nics(tree),
            clock_source: line(&format!("{clock}/current_clocksource")),
            clock_sources: line(&format!("{clock}/available_clocksource")),
            huge_pages: line("sys/kernel/mm/transparent_hugepage/enabled"),
        }
    }

    /// Release of the kernel.
    pub fn kernel(&self) -> Option<&str> {
        self.sysctl("kernel.osrelease").ok()
    }

    /// The text of a setting, or why there is none.
    pub(super) fn sysctl(&self, name: &str) -> Result<&str, String> {
        let found = self.sysctls.get(name);
        match found.map(|found| found.as_deref()) {
            Some(Ok(text)) => Ok(text),
            Some(Err(why)) => Err(why.to_owned()),
            None => Err(format!("{name} was not read")),
        }
    }

    /// A setting of one number.
    pub(super) fn number(&self, name: &str) -> Result<i64, String> {
        let text = self.sysctl(name)?;
        text.parse()
            .map_err(|_| format!("{name} is {text:?}, which is not a number"))
    }

    /// Whether this process has a capability, by its number in capabilities(7).
    pub(super) fn has_capability(&self, number: u32) -> bool {
        self.capabilities.is_some_and(|all| all >> number & 1 == 1)
    }
}

fn sysctl(tree: &Tree, name: &str) -> Result<String, String> {
    match tree.sysctl(name) {
        Now::Value(text) => Ok(text),
        Now::Missing => Err(
            "not here: an older kernel, a module that is not loaded, or a namespace that does not own it".to_owned(),
        ),
        Now::Unreadable(error) => Err(error.to_string()),
    }
}

/// `Max open files   20000   20000   files`: its soft (0) or hard (1) limit.
fn limit(limits: &str, name: &str, which: usize) -> Option<u64> {
    let row = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match row.split_whitespace().nth(which)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// How many `0-3,8` are.
fn count_of_list(list: &str) -> Option<u64> {
    let items = list.trim().split(',').map(|item| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    items.sum()
}

fn nics(tree: &Tree) -> Vec<Nic> {
    // A /sys that was mounted in another network namespace has that one's interfaces.
    let here = fs::read_to_string(tree.path("proc/self/net/dev")).unwrap_or_default();
    let names = here
        .lines()
        .filter_map(|row| Some(row.split_once(':')?.0.trim()));
    names
        .map(|name| (name, tree.path("sys/class/net").join(name)))
        .filter(|(_, path)| path.join("device").exists())
        .map(|(name, path)| nic(tree, &path, name.to_owned()))
        .collect()
}

fn nic(tree: &Tree, path: &Path, name: String) -> Nic {
    let names = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let mut queues = names(&path.join("queues"));
    queues.retain(|queue| queue.starts_with("rx-"));
    let is_steered = |queue: &&String| {
        let mask = fs::read_to_string(path.join("queues").join(queue).join("rps_cpus"));
        mask.is_ok_and(|mask| mask.chars().any(|c| !matches!(c, '0' | ',' | '\n')))
    };
    // The second is that of virtio, whose device is below the one with the interrupts.
    let mut irqs = names(&path.join("device/msi_irqs"));
    irqs.extend(names(&path.join("device/../msi_irqs")));
    let mut cpus: Vec<String> = irqs
        .iter()
        .filter_map(|irq| {
            let list = tree
                .path("proc/irq")
                .join(irq)
                .join("effective_affinity_list");
            Some(fs::read_to_string(list).ok()?.trim().to_owned())
        })
        .collect();
    cpus.sort();
    cpus.dedup();
    Nic {
        name,
        rx_queues: queues.len() as u64,
        rx_queues_with_rps: queues.iter().filter(is_steered).count() as u64,
        irq_cpus: (!cpus.is_empty()).then_some(cpus.len() as u64),
    }
}
