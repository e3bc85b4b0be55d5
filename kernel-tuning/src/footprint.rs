//! Where the kernel's memory is, at one moment: slab caches by name, and what is outside of them.
//!
//! Reads `/proc` only. Everything here is of the whole host, so a figure means something as the difference of two
//! readings on a quiet one.

use std::collections::BTreeMap;

use procfs::Current;
use serde::{Deserialize, Serialize};

use crate::host::{HostError, Memory, SlabCache, Sockstat, format_error, read, slab_by_cache};

/// Kernel memory by its use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// What new work can get: `MemAvailable`, and what it leaves out, the free pages that each CPU keeps for itself (up to
    /// a tenth of a gigabyte after a close of 20,000 connections). What the other figures do not show is missing here
    /// too: the pages of a ring's queues, and the memory of processes.
    pub available_bytes: u64,
    /// Pages of all slab caches, free slots and large kmallocs included (`Slab`).
    pub slab_pages_bytes: u64,
    /// Page tables of all processes (`PageTables`).
    pub page_tables_bytes: u64,
    /// The per-CPU allocator (`Percpu`, since Linux 4.20).
    pub percpu_bytes: Option<u64>,
    /// vmalloc areas (`VmallocUsed`, counted since Linux 5.3): the large tables of files and of rings.
    pub vmalloc_bytes: u64,
    /// Pages of queued TCP data (`mem` of `/proc/net/sockstat`).
    pub queued_bytes: u64,
    /// TCP sockets, `alloc` of the same file.
    pub sockets: u64,
    /// Each slab cache by the name the kernel gives it, which for merged caches is that of the first. Only root may
    /// read them.
    pub caches: Option<BTreeMap<String, SlabCache>>,
}

impl Footprint {
    /// Reads it.
    ///
    /// # Errors
    /// When a file that anybody may read cannot be read.
    pub fn read() -> Result<Self, HostError> {
        let meminfo = procfs::Meminfo::current()?;
        let (memory, sockstat) = (Memory::read()?, Sockstat::read()?);
        Ok(Self {
            available_bytes: memory.available_bytes + kept_by_cpus_bytes()?,
            slab_pages_bytes: memory.slab_bytes,
            page_tables_bytes: memory.page_tables_bytes,
            percpu_bytes: meminfo.per_cpu,
            vmalloc_bytes: meminfo.vmalloc_used,
            queued_bytes: sockstat.mem_pages * procfs::page_size(),
            sockets: sockstat.alloc,
            caches: slab_by_cache().ok(),
        })
    }

    /// Of each figure the reading in which least was used: what others do on the host comes and goes, and what is held
    /// stays.
    pub fn least(self, other: Self) -> Self {
        let caches = self.caches.zip(other.caches).map(|(mut least, other)| {
            least.retain(|name, _| other.contains_key(name));
            for (name, cache) in &mut least {
                let seen = other[name];
                if seen.active_objs < cache.active_objs {
                    *cache = seen;
                }
            }
            least
        });
        Self {
            available_bytes: self.available_bytes.max(other.available_bytes),
            slab_pages_bytes: self.slab_pages_bytes.min(other.slab_pages_bytes),
            page_tables_bytes: self.page_tables_bytes.min(other.page_tables_bytes),
            percpu_bytes: self
                .percpu_bytes
                .zip(other.percpu_bytes)
                .map(|(one, other)| one.min(other)),
            vmalloc_bytes: self.vmalloc_bytes.min(other.vmalloc_bytes),
            queued_bytes: self.queued_bytes.min(other.queued_bytes),
            sockets: self.sockets.min(other.sockets),
            caches,
        }
    }
}

/// Free pages in the lists of the CPUs, from `/proc/zoneinfo` (proc_zoneinfo(5)).
fn kept_by_cpus_bytes() -> Result<u64, HostError> {
    let path = "/proc/zoneinfo";
    parse_kept_pages(&read(path)?)
        .map(|pages| pages * procfs::page_size())
        .ok_or_else(|| format_error(path, "a page count of a CPU that is no number"))
}

/// The sum of all `count:` lines; each zone has one of them for each CPU.
fn parse_kept_pages(zoneinfo: &str) -> Option<u64> {
    let counts = zoneinfo
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"));
    counts.map(|count| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_kept_by_cpus_are_summed_over_zones() {
        let zoneinfo = "Node 0, zone      DMA\n  pages free     2816\n  pagesets\n    cpu: 0\n              count:    1\n\
                        \x20             high:     14\n    cpu: 1\n              count:    20\n\
                        Node 0, zone   Normal\n    cpu: 0\n              count:    300\n";
        assert_eq!(parse_kept_pages(zoneinfo), Some(321));
        assert_eq!(parse_kept_pages("    count: many"), None);
    }

    fn reading(used: u64, objects: [u64; 2]) -> Footprint {
        let cache = |active_objs| SlabCache {
            active_objs,
            num_objs: 100,
            objsize_bytes: 64,
            bytes: 6_400,
        };
        let names = ["TCP", "filp"].map(String::from);
        Footprint {
            available_bytes: 1_000 - used,
            slab_pages_bytes: used,
            page_tables_bytes: used,
            percpu_bytes: Some(used),
            vmalloc_bytes: used,
            queued_bytes: used,
            sockets: used,
            caches: Some(names.into_iter().zip(objects.map(cache)).collect()),
        }
    }

    #[test]
    fn the_least_is_taken_figure_by_figure() {
        let least = reading(10, [7, 3]).least(reading(20, [5, 4]));
        assert_eq!(least, reading(10, [5, 3]));
    }

    #[test]
    fn caches_are_known_only_where_every_reading_has_them() {
        let mut unprivileged = reading(1, [1, 1]);
        unprivileged.caches = None;
        assert_eq!(reading(1, [1, 1]).least(unprivileged).caches, None);
    }

    #[test]
    fn anybody_may_read_all_but_the_caches() {
        let footprint = Footprint::read().unwrap();
        assert!(footprint.available_bytes > 0 && footprint.slab_pages_bytes > 0);
        assert_eq!(footprint.caches.is_some(), slab_by_cache().is_ok());
    }
}
