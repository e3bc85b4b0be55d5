//! What is read from the host around a run, and the wait until the host is back where it was.
//!
//! Reads only. The CPU time and resident memory of a process come from [`kernel_tuning::process`].

use std::time::{Duration, Instant};

use kernel_tuning::host::{HostError, MachineBusy, Memory, NetCounters, Sockstat, slab_by_cache};
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
    let size_of = |name| caches.get(name).map_or(0, |cache| cache.objsize_bytes);
    Some(inodes.bytes + inodes.active_objs * (size_of("dentry") + size_of("lsm_inode_cache")))
}

/// The share of all memory that a run leaves available; below it the run ends in good order.
const AVAILABLE_SHARE: u64 = 10;

/// Why the run has to give its memory back, if it has to.
pub fn memory_is_short() -> Option<String> {
    let memory = Memory::read().ok()?;
    (memory.available_bytes < memory.total_bytes / 100 * AVAILABLE_SHARE).then(|| {
        format!(
            "less than {AVAILABLE_SHARE} % of the memory is available ({} MiB), so the run gave its own back; use \
             fewer --connections, or end what else uses memory",
            memory.available_bytes >> 20
        )
    })
}

/// Waits until the sockets are back near `base` and the slab shrinks no more, at most for `patience`. Says whether they
/// are.
///
/// The kernel frees sockets, and the slab pages they were in, some time after the processes have gone; a run that
/// starts earlier would get for nothing what the last one left. Slab above its base is no sign of that: other work of
/// the host fills it too.
pub fn settle(base: &HostSample, patience: Duration, stop: &Stop) -> bool {
    const SOCKETS: u64 = 200;
    const SLAB_BYTES: u64 = 1 << 20;
    let until = Instant::now() + patience;
    let mut slab_before = u64::MAX;
    loop {
        let now = HostSample::read().ok();
        let settled = now.as_ref().is_some_and(|now| {
            now.sockstat.alloc <= base.sockstat.alloc + SOCKETS
                && (now.memory.slab_bytes + SLAB_BYTES >= slab_before
                    || now.memory.slab_bytes <= base.memory.slab_bytes + SLAB_BYTES)
        });
        if settled || Instant::now() >= until || stop.cause().is_some() {
            return settled;
        }
        slab_before = now.map_or(u64::MAX, |now| now.memory.slab_bytes);
        std::thread::sleep(20 * TICK);
    }
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
}
