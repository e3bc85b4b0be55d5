//! What is read from the host around a run, and the wait until the host is back where it was.
//!
//! Reads only. The CPU time and resident memory of a process come from [`kernel_tuning::process`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kernel_tuning::host::{
    CgroupMemory, HostError, MachineBusy, Memory, NetCounters, SlabCache, Sockstat, slab_by_cache,
};
use serde::{Deserialize, Serialize};

use crate::stop::{Stop, TICK};

/// The host at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// Memory, slab included.
    pub memory: Memory,
    /// TCP sockets.
    pub sockstat: Sockstat,
    /// Network counters since boot.
    pub counters: NetCounters,
    /// CPU time since boot.
    pub machine: MachineBusy,
    /// Slab memory of procfs's inodes and their dentries; unknown to all but root.
    pub procfs_slab_bytes: Option<u64>,
}

impl HostSample {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a file of `/proc` cannot be read.
    pub fn read() -> Result<Self, HostError> {
        Ok(Self {
            memory: Memory::read()?,
            sockstat: Sockstat::read()?,
            counters: NetCounters::read()?,
            machine: MachineBusy::read()?,
            procfs_slab_bytes: procfs_slab_bytes(),
        })
    }
}

/// A monitor that lists `/proc/PID/fd` of a server leaves an inode and a dentry in the slab for every **open file**, so
/// for every connection of an engine with ordinary descriptors, and for none with direct ones. That is the monitor's
/// cost, not the engine's.
fn procfs_slab_bytes() -> Option<u64> {
    let caches = slab_by_cache().ok()?;
    let inodes = caches.get("proc_inode_cache")?;
    Some(inodes.bytes + inodes.active_objs * beside_a_procfs_inode_bytes(&caches))
}

/// What of other caches comes with a procfs inode.
pub fn beside_a_procfs_inode_bytes(caches: &BTreeMap<String, SlabCache>) -> u64 {
    let size_of = |name| caches.get(name).map_or(0, |cache| cache.objsize_bytes);
    size_of("dentry") + size_of("lsm_inode_cache")
}

/// What new work can get, from the host and from this process's control group.
pub fn available_bytes(host: &Memory) -> u64 {
    let group =
        CgroupMemory::read().map(|group| group.limit_bytes.saturating_sub(group.used_bytes));
    group.map_or(host.available_bytes, |group| {
        group.min(host.available_bytes)
    })
}

/// The share of all memory that a run leaves available; below it the run ends in good order.
const AVAILABLE_SHARE: u64 = 10;

/// Memory a run may take, of the host's: it ends with a margin above the share at which the run would be ended.
pub fn usable_bytes(memory: &Memory) -> u64 {
    const MARGIN_SHARE: u64 = 2;
    let kept = memory.total_bytes / 100 * (AVAILABLE_SHARE + MARGIN_SHARE);
    memory.available_bytes.saturating_sub(kept)
}

/// Why the run has to give its memory back, if it has to.
pub fn memory_is_short() -> Option<String> {
    short_of(&Memory::read().ok()?)
}

/// The same of a host with this `memory`.
pub fn short_of(memory: &Memory) -> Option<String> {
    is_short(memory).then(|| {
        format!(
            "less than {AVAILABLE_SHARE} % of the memory is available ({} MiB), so the run gave its own back; use \
             fewer --connections, or end what else uses memory",
            memory.available_bytes >> 20
        )
    })
}

fn is_short(memory: &Memory) -> bool {
    memory.available_bytes < memory.total_bytes / 100 * AVAILABLE_SHARE
}

/// Waits until the sockets are back near `base` and the slab shrinks no more, at most for `patience`. Says whether they
/// are.
///
/// The kernel frees sockets, and the slab pages they were in, some time after the processes have gone; a run that
/// starts earlier would get for nothing what the last one left. Slab above its base is no sign of that: other work of
/// the host fills it too.
pub fn settle(base: &HostSample, patience: Duration, stop: &Stop) -> bool {
    const SLAB_BYTES: u64 = 1 << 20;
    let mut slab_before = u64::MAX;
    wait_until(patience, 20 * TICK, stop, || {
        let now = HostSample::read().ok();
        let slab = now.as_ref().map_or(u64::MAX, |now| now.memory.slab_bytes);
        let shrinks_no_more = slab.saturating_add(SLAB_BYTES) >= slab_before
            || slab <= base.memory.slab_bytes + SLAB_BYTES;
        slab_before = slab;
        shrinks_no_more && now.is_some_and(|now| are_gone(&now.sockstat, &base.sockstat))
    })
}

/// As [`settle`], of the sockets alone and looking more often: for measurements that follow one another closely.
pub fn sockets_settle(base: &Sockstat, patience: Duration, stop: &Stop) -> bool {
    wait_until(patience, TICK, stop, || {
        Sockstat::read().is_ok_and(|now| are_gone(&now, base))
    })
}

fn wait_until(
    patience: Duration,
    every: Duration,
    stop: &Stop,
    mut is_so: impl FnMut() -> bool,
) -> bool {
    let until = Instant::now() + patience;
    loop {
        let so = is_so();
        if so || Instant::now() >= until || stop.cause().is_some() {
            return so;
        }
        std::thread::sleep(every);
    }
}

/// Whether the sockets of a run are, but for those that anything else on the host opens meanwhile.
fn are_gone(now: &Sockstat, base: &Sockstat) -> bool {
    const OTHERS: u64 = 200;
    now.alloc <= base.alloc + OTHERS
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_host_settles_at_once_and_a_disturbed_one_is_not_waited_for_without_bound() {
        let mut base = HostSample::read().unwrap();
        base.sockstat.alloc += 1 << 20;
        base.memory.slab_bytes += 1 << 33;
        let stop = Stop::after(Duration::from_secs(60));
        assert!(settle(&base, Duration::ZERO, &stop));
        base.memory.slab_bytes = 0;
        assert!(!settle(&base, Duration::ZERO, &stop));
    }

    #[test]
    fn echo_measurements_wait_for_sockets_and_not_without_bound() {
        let stop = Stop::after(Duration::from_secs(60));
        let mut base = Sockstat::read().unwrap();
        base.alloc += 1 << 20;
        assert!(sockets_settle(&base, Duration::from_secs(60), &stop));
        let held: Vec<_> = (0..201)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        base.alloc = 0;
        assert!(!sockets_settle(&base, Duration::from_millis(50), &stop));
        drop(held);
    }

    #[test]
    fn a_plan_that_uses_all_it_may_is_not_ended_for_lack_of_memory() {
        let memory = |available_bytes| Memory {
            total_bytes: 100_000,
            available_bytes,
            ..Memory::read().unwrap()
        };
        for available_bytes in [100_000, 50_000, 13_000] {
            let left = available_bytes - usable_bytes(&memory(available_bytes));
            assert!(!is_short(&memory(left)), "{available_bytes}");
        }
        assert_eq!(usable_bytes(&memory(9_000)), 0);
        assert!(is_short(&memory(9_000)));
    }
}
