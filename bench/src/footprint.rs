//! What connections take of the kernel's memory: the growth between two readings, for each connection.
//!
//! Reads the host; the arithmetic is pure. Every figure is of both ends, of the whole host.
//!
//! Slab caches are counted by their objects in use (`active_objs`). The kernel counts all of a slab that a CPU is
//! filling as in use: some dozen objects a cache, whatever the number of connections.

use std::collections::BTreeMap;
use std::time::Duration;

use kernel_tuning::host::{Footprint, HostError, SlabCache};
use serde::{Deserialize, Serialize};

use crate::sample::beside_a_procfs_inode_bytes;

/// Why the figures by cache are missing.
pub const CACHES_UNREADABLE: &str =
    "memory by slab cache could not be read (/proc/slabinfo): run as root to have it";

/// How long [`quietest`] takes.
pub const QUIETEST_TAKES: Duration = Duration::from_secs(1);

/// The least of several readings over [`QUIETEST_TAKES`].
///
/// # Errors
/// When the host cannot be read.
pub fn quietest() -> Result<Footprint, HostError> {
    const READINGS: u32 = 5;
    let mut least = Footprint::read()?;
    for _ in 0..READINGS {
        std::thread::sleep(QUIETEST_TAKES / READINGS);
        least = least.least(Footprint::read()?);
    }
    Ok(least)
}

/// What came with some connections, in bytes a connection, both ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// Objects in use of each slab cache that grew or shrank by a byte a connection or more, without those of files on
    /// disk; `None` where it cannot be read.
    pub caches: Option<BTreeMap<String, f64>>,
    /// Objects in use of all caches, without `procfs` and those of files on disk.
    pub slab_in_use: Option<f64>,
    /// Objects that something left which listed the open files of a server: not the connections' own.
    pub procfs: Option<f64>,
    /// Pages of all slab caches, without the same: objects in use, free ones beside them, and large kmallocs.
    pub slab_pages: f64,
    /// Page tables of processes.
    pub page_tables: f64,
    /// The per-CPU allocator.
    pub percpu: Option<f64>,
    /// vmalloc areas: large tables of files and of rings.
    pub vmalloc: f64,
    /// Pages of queued TCP data.
    pub queued: f64,
    /// TCP sockets of a connection: two, if nothing else on the host opened or closed any.
    pub sockets: f64,
    /// What the memory that is available fell by: all of it, the processes' memory too. A check on the sum.
    pub available: f64,
}

impl Growth {
    /// From `base` to `now`, which has `connections` more; `None` without any.
    pub fn between(base: &Footprint, now: &Footprint, connections: u64) -> Option<Self> {
        let each = |now: u64, base: u64| (now as f64 - base as f64) / connections as f64;
        if connections == 0 {
            return None;
        }
        let by_cache = base
            .caches
            .as_ref()
            .zip(now.caches.as_ref())
            .map(|(base, now)| {
                let own = now.iter().filter(|(name, _)| !is_of_disk_files(name));
                let grown = own.map(|(name, cache)| {
                    let before = base.get(name).map_or(0, in_use);
                    (name.clone(), each(in_use(cache), before))
                });
                grown.collect::<BTreeMap<String, f64>>()
            });
        let procfs = by_cache
            .as_ref()
            .zip(now.caches.as_ref())
            .and_then(|(grown, caches)| {
                let inodes = caches.get("proc_inode_cache")?;
                let whole = inodes.objsize_bytes + beside_a_procfs_inode_bytes(caches);
                let share = whole as f64 / inodes.objsize_bytes.max(1) as f64;
                Some(grown.get("proc_inode_cache")?.max(0.0) * share)
            });
        let disk_pages = |footprint: &Footprint| -> u64 {
            let caches = footprint.caches.iter().flatten();
            let of_disk = caches.filter(|(name, _)| is_of_disk_files(name));
            of_disk.map(|(_, cache)| cache.bytes).sum()
        };
        let monitor = procfs.unwrap_or(0.0);
        let others = monitor + each(disk_pages(now), disk_pages(base));
        Some(Self {
            slab_in_use: by_cache
                .as_ref()
                .map(|grown| grown.values().sum::<f64>() - monitor),
            caches: by_cache.map(|mut grown| {
                grown.retain(|_, bytes| bytes.abs() >= 1.0);
                grown
            }),
            procfs,
            slab_pages: each(now.slab_pages_bytes, base.slab_pages_bytes) - others,
            page_tables: each(now.page_tables_bytes, base.page_tables_bytes),
            percpu: now
                .percpu_bytes
                .zip(base.percpu_bytes)
                .map(|(now, base)| each(now, base)),
            vmalloc: each(now.vmalloc_bytes, base.vmalloc_bytes),
            queued: each(now.queued_bytes, base.queued_bytes),
            sockets: each(now.sockets, base.sockets),
            available: each(base.available_bytes, now.available_bytes),
        })
    }

    /// Objects in use of the cache of that name; `None` where it did not grow or cannot be read.
    pub fn of_cache(&self, name: &str) -> Option<f64> {
        self.caches.as_ref()?.get(name).copied()
    }

    /// All of the kernel's memory that is accounted for by its use.
    pub fn kernel(&self) -> f64 {
        self.slab_pages + self.page_tables + self.percpu.unwrap_or(0.0) + self.vmalloc + self.queued
    }
}

/// Caches of the page cache and of file systems: whatever reads and writes files on this host fills them.
fn is_of_disk_files(cache: &str) -> bool {
    const NAMES: [&str; 4] = [
        "buffer_head",
        "extent_status",
        "radix_tree_node",
        "shmem_inode_cache",
    ];
    const PREFIXES: [&str; 8] = [
        "bio-", "biovec", "blkdev_", "btrfs_", "dax_", "ext4_", "jbd2_", "xfs_",
    ];
    NAMES.contains(&cache) || PREFIXES.iter().any(|prefix| cache.starts_with(prefix))
}

fn in_use(cache: &SlabCache) -> u64 {
    cache.active_objs * cache.objsize_bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn footprint(sockets: u64, procfs_inodes: u64) -> Footprint {
        let cache = |active_objs, objsize_bytes| SlabCache {
            active_objs,
            num_objs: active_objs,
            objsize_bytes,
            bytes: active_objs * objsize_bytes,
        };
        let caches = [
            ("TCP", cache(sockets, 2_368)),
            ("proc_inode_cache", cache(procfs_inodes, 700)),
            ("dentry", cache(sockets + procfs_inodes, 192)),
            ("lsm_inode_cache", cache(sockets + procfs_inodes, 32)),
            ("unrelated", cache(40, 8)),
            ("buffer_head", cache(if sockets > 0 { 900 } else { 0 }, 104)),
        ];
        let slab: u64 = caches.iter().map(|(_, cache)| cache.bytes).sum();
        Footprint {
            available_bytes: (1 << 30) - slab,
            slab_pages_bytes: slab,
            page_tables_bytes: 4_096,
            percpu_bytes: None,
            vmalloc_bytes: 8 * sockets,
            queued_bytes: 0,
            sockets,
            caches: Some(caches.map(|(name, cache)| (name.to_owned(), cache)).into()),
        }
    }

    #[test]
    fn growth_is_for_a_connection_and_by_cache() {
        let growth = Growth::between(&footprint(50, 9), &footprint(250, 9), 100).unwrap();
        let caches = growth.caches.as_ref().unwrap();
        assert_eq!(caches["TCP"], 2.0 * 2_368.0);
        assert!(!caches.contains_key("unrelated") && !caches.contains_key("proc_inode_cache"));
        assert_eq!(growth.slab_in_use.unwrap(), 2.0 * (2_368.0 + 192.0 + 32.0));
        assert_eq!(growth.slab_pages, growth.slab_in_use.unwrap());
        assert_eq!(growth.kernel(), growth.slab_pages + 16.0);
        assert_eq!(growth.available, growth.slab_pages);
    }

    #[test]
    fn what_a_monitor_left_is_listed_but_not_the_connections_own() {
        let quiet = Growth::between(&footprint(0, 0), &footprint(100, 0), 100).unwrap();
        let watched = Growth::between(&footprint(0, 0), &footprint(100, 50), 100).unwrap();
        assert_eq!(watched.slab_in_use, quiet.slab_in_use);
        assert_eq!(watched.slab_pages, quiet.slab_pages);
        assert_eq!(watched.procfs.unwrap(), 0.5 * (700.0 + 192.0 + 32.0));
        assert_eq!(watched.caches.unwrap()["proc_inode_cache"], 350.0);
    }

    #[test]
    fn without_slabinfo_the_rest_is_there() {
        let mut now = footprint(100, 0);
        now.caches = None;
        let growth = Growth::between(&footprint(0, 0), &now, 100).unwrap();
        assert!(growth.caches.is_none() && growth.slab_in_use.is_none());
        assert!(growth.slab_pages > 2_000.0);
        assert_eq!(Growth::between(&now, &now, 0), None);
    }
}
