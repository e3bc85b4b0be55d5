//! The memory limit of this process's control group, version 1 or 2.
//!
//! Reads `/proc/self/cgroup` and `/sys/fs/cgroup`. Where neither tells a limit there is none, as far as can be known.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The memory limit that a control group puts on this process, and what the group uses of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMemory {
    /// The lowest limit of this process's group and its parents.
    pub limit_bytes: u64,
    /// What the group with that limit uses now; socket memory and slab count.
    pub used_bytes: u64,
}

impl CgroupMemory {
    /// Reads the limit from cgroup v2 (`memory.max`) or v1 (`memory.limit_in_bytes`); `None` where there is no limit.
    pub fn read() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups
            .lines()
            .filter_map(memory_group)
            .flat_map(Self::along)
            .min_by_key(|group| group.limit_bytes)
    }

    /// The limits from `group` up to the root of its hierarchy.
    fn along(group: MemoryGroup) -> impl Iterator<Item = Self> {
        let MemoryGroup {
            root,
            path,
            limit,
            usage,
        } = group;
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let steps: Vec<PathBuf> = path.ancestors().map(|step| root.join(step)).collect();
        steps.into_iter().filter_map(move |step| {
            let limit_bytes = number(step.join(limit))?;
            // v1 says "no limit" with the largest page-aligned number.
            (limit_bytes < 1 << 60).then_some(())?;
            Some(Self {
                limit_bytes,
                used_bytes: number(step.join(usage))?,
            })
        })
    }
}

struct MemoryGroup {
    root: &'static Path,
    path: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

/// One line of `/proc/self/cgroup` (`hierarchy:controllers:path`), when that hierarchy governs memory.
fn memory_group(line: &str) -> Option<MemoryGroup> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let path = PathBuf::from(path.trim_start_matches('/'));
    if controllers.is_empty() {
        let root = Path::new("/sys/fs/cgroup");
        Some(MemoryGroup {
            root,
            path,
            limit: "memory.max",
            usage: "memory.current",
        })
    } else if controllers.split(',').any(|name| name == "memory") {
        let root = Path::new("/sys/fs/cgroup/memory");
        Some(MemoryGroup {
            root,
            path,
            limit: "memory.limit_in_bytes",
            usage: "memory.usage_in_bytes",
        })
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_that_govern_memory_are_asked() {
        assert!(memory_group("6:freezer:/").is_none());
        let v1 = memory_group("4:memory:/app/one").unwrap();
        assert_eq!(
            (v1.root.join(v1.path), v1.limit),
            (
                "/sys/fs/cgroup/memory/app/one".into(),
                "memory.limit_in_bytes"
            )
        );
        let v2 = memory_group("0::/user.slice").unwrap();
        assert_eq!(
            (v2.root.join(v2.path), v2.limit),
            ("/sys/fs/cgroup/user.slice".into(), "memory.max")
        );
    }
}
