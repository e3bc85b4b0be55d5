//! How many more connections each limit of the host allows, before any is made.
//!
//! Pure, like its parent. An estimate, for planning: a limit that the host does not tell, or that nothing counts
//! against now, is left out.

use serde::{Deserialize, Serialize};

use super::{Evidence, Limit, connections_that_fit};

/// Kernel memory of one end of an idle connection, slab waste included: measured as 4.6 to 4.9 KB on Linux 6.18.
pub(crate) const SOCKET_BYTES: u64 = 5_000;

/// What one limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headroom {
    /// The limit.
    pub limit: Limit,
    /// Further connections until it is reached.
    pub connections: u64,
}

/// What the host allows to connections that have `ends_here` of their two ends on it (1 or 2).
///
/// The limits of the other side, and the open-file limit of this process, which does not count direct descriptors, are
/// not among them.
pub fn headrooms(evidence: &Evidence, ends_here: u64) -> Vec<Headroom> {
    let files = evidence
        .files
        .map(|files| files.max.saturating_sub(files.allocated) / ends_here);
    let memory = evidence
        .memory
        .map(|memory| connections_that_fit(memory.available_bytes, SOCKET_BYTES * ends_here));
    // The other end may be of another group.
    let group = evidence.cgroup.map(|group| {
        let left_bytes = group.limit_bytes.saturating_sub(group.used_bytes);
        connections_that_fit(left_bytes, SOCKET_BYTES)
    });
    // Without rules that track, the table stays empty, however many connections there are.
    let tracked = evidence
        .conntrack
        .filter(|table| table.entries > 0)
        .map(|table| table.max.saturating_sub(table.entries));
    [
        (Limit::HostOpenFiles, files),
        (Limit::Memory, memory),
        (Limit::CgroupMemory, group),
        (Limit::Conntrack, tracked),
    ]
    .into_iter()
    .filter_map(|(limit, connections)| {
        Some(Headroom {
            limit,
            connections: connections?,
        })
    })
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::host::{CgroupMemory, Files, Memory, TableUse};

    #[test]
    fn each_limit_that_the_host_tells_has_its_room() {
        let evidence = Evidence {
            files: Some(Files {
                allocated: 466_186,
                max: 2_466_186,
            }),
            memory: Some(Memory {
                total_bytes: 20_000_000_000,
                free_bytes: 0,
                available_bytes: 10_000_000_000,
                slab_bytes: 0,
                slab_reclaimable_bytes: 0,
                slab_unreclaimable_bytes: 0,
                page_tables_bytes: 0,
            }),
            cgroup: Some(CgroupMemory {
                limit_bytes: 2_000_000_000,
                used_bytes: 1_000_000_000,
            }),
            conntrack: Some(TableUse {
                entries: 144,
                max: 262_144,
            }),
            ..Evidence::default()
        };
        let of = |evidence: &Evidence, ends_here| -> Vec<(Limit, u64)> {
            headrooms(evidence, ends_here)
                .into_iter()
                .map(|headroom| (headroom.limit, headroom.connections))
                .collect()
        };
        let both = [
            (Limit::HostOpenFiles, 1_000_000),
            (Limit::Memory, 850_000),
            (Limit::CgroupMemory, 170_000),
            (Limit::Conntrack, 262_000),
        ];
        assert_eq!(of(&evidence, 2), both);
        assert_eq!(of(&evidence, 1)[0].1, 2_000_000);
        let untracked = Evidence {
            conntrack: Some(TableUse {
                entries: 0,
                max: 262_144,
            }),
            ..Evidence::default()
        };
        assert_eq!(of(&untracked, 1), []);
    }
}
