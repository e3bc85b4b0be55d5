//! The memory limit of this process's control group, version 1 or 2.
//!
//! Reads `/proc/self/cgroup` and `/sys/fs/cgroup`. Where neither tells a limit there is none, as far as can be known.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The memory limit that a control group puts on this process, and what the group uses of it.
///
/// Of this process's group and its parents, it is the one with the least room left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupMemory {
    /// `memory.max`, or `memory.limit_in_bytes` of v1.
    pub limit_bytes: u64,
    /// What the group uses now, socket memory and slab included. Its page cache is left out: the kernel charges it, and
    /// takes it back before it refuses memory.
    pub used_bytes: u64,
}

impl CgroupMemory {
    /// Reads the limit from cgroup v2 (`memory.max`) or v1 (`memory.limit_in_bytes`); `None` where there is no limit.
    pub fn read() -> Option<Self> {
        Self::read_below(Path::new("/"))
    }

    /// The same of a tree of files, of which `root` is `/`.
    pub(crate) fn read_below(root: &Path) -> Option<Self> {
        let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        groups
            .lines()
            .filter_map(memory_group)
            .map(|group| MemoryGroup {
                root: root.join(group.root),
                ..group
            })
            .flat_map(Self::along)
            .min_by_key(Self::room_bytes)
    }

    fn room_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }

    /// The limits from `group` up to the root of its hierarchy.
    fn along(group: MemoryGroup) -> impl Iterator<Item = Self> {
        let MemoryGroup {
            root,
            path,
            limit,
            usage,
            cache,
        } = group;
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let steps: Vec<PathBuf> = path.ancestors().map(|step| root.join(step)).collect();
        steps.into_iter().filter_map(move |step| {
            let limit_bytes = number(step.join(limit))?;
            // v1 says "no limit" with the largest page-aligned number.
            (limit_bytes < 1 << 60).then_some(())?;
            let charged_bytes = number(step.join(usage))?;
            let stat = fs::read_to_string(step.join("memory.stat")).unwrap_or_default();
            Some(Self {
                limit_bytes,
                used_bytes: charged_bytes.saturating_sub(sum_of(&stat, cache)),
            })
        })
    }
}

/// The sum of the `names` in a `memory.stat`, whose lines are a name and a number.
fn sum_of(stat: &str, names: [&str; 2]) -> u64 {
    stat.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| names.contains(name))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

struct MemoryGroup {
    /// Below `/`.
    root: PathBuf,
    path: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// The entries of `memory.stat` that are page cache, of the group and those below it.
    cache: [&'static str; 2],
}

/// One line of `/proc/self/cgroup` (`hierarchy:controllers:path`), when that hierarchy governs memory.
fn memory_group(line: &str) -> Option<MemoryGroup> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let path = PathBuf::from(path.trim_start_matches('/'));
    if controllers.is_empty() {
        Some(MemoryGroup {
            root: "sys/fs/cgroup".into(),
            path,
            limit: "memory.max",
            usage: "memory.current",
            cache: ["inactive_file", "active_file"],
        })
    } else if controllers.split(',').any(|name| name == "memory") {
        Some(MemoryGroup {
            root: "sys/fs/cgroup/memory".into(),
            path,
            limit: "memory.limit_in_bytes",
            usage: "memory.usage_in_bytes",
            cache: ["total_inactive_file", "total_active_file"],
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
                "sys/fs/cgroup/memory/app/one".into(),
                "memory.limit_in_bytes"
            )
        );
        let v2 = memory_group("0::/user.slice").unwrap();
        assert_eq!(
            (v2.root.join(v2.path), v2.limit),
            ("sys/fs/cgroup/user.slice".into(), "memory.max")
        );
    }

    #[test]
    fn cache_is_room_and_the_group_with_the_least_room_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
        fs::create_dir(dir.path().join("job")).unwrap();
        write("memory.max", "2000\n");
        write("memory.current", "1900\n");
        write("memory.stat", "anon 1800\nactive_file 60\nfile 100\n");
        write("job/memory.max", "1000\n");
        write("job/memory.current", "990\n");
        write(
            "job/memory.stat",
            "anon 90\ninactive_file 500\nactive_file 400\n",
        );
        let group = MemoryGroup {
            root: dir.path().to_owned(),
            ..memory_group("0::/job").unwrap()
        };
        let along: Vec<_> = CgroupMemory::along(group).collect();
        let (job, parent) = (along[0], along[1]);
        assert_eq!((job.limit_bytes, job.used_bytes), (1000, 90));
        assert_eq!((parent.limit_bytes, parent.used_bytes), (2000, 1840));
        assert_eq!(
            along.iter().min_by_key(|group| group.room_bytes()),
            Some(&parent)
        );
    }
}
