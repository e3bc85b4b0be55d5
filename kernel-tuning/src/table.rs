//! The kernel's tables that have a hard maximum: tracked connections and neighbours.
//!
//! Reads `/proc/sys` and `/proc/net/stat`. Their drops are counters of [`crate::host::NetCounters`].

use serde::{Deserialize, Serialize};

use crate::host::{read, sysctl_u64};

/// How full a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUse {
    /// Entries now.
    pub entries: u64,
    /// The most there can be.
    pub max: u64,
}

impl TableUse {
    /// Connections tracked in this network namespace against `net.netfilter.nf_conntrack_max`; `None` where the kernel
    /// tracks none.
    pub(crate) fn of_conntrack() -> Option<Self> {
        Some(Self {
            entries: sysctl_u64("net.netfilter.nf_conntrack_count").ok()?,
            max: sysctl_u64("net.netfilter.nf_conntrack_max").ok()?,
        })
    }

    /// Neighbours of all network namespaces against `net.FAMILY.neigh.default.gc_thresh3`, which only the host's own
    /// namespace tells. `cache` is a file of `/proc/net/stat`.
    pub(crate) fn of_neighbours(cache: &str, family: &str) -> Option<Self> {
        let text = read(format!("/proc/net/stat/{cache}")).ok()?;
        Some(Self {
            entries: first_entries(&text)?,
            max: sysctl_u64(&format!("net.{family}.neigh.default.gc_thresh3")).ok()?,
        })
    }

    /// Whether there is hardly room left.
    pub(crate) fn is_full(&self) -> bool {
        self.entries >= self.max / 100 * 95
    }
}

/// The `entries` column, hexadecimal and the same in the row of each CPU.
fn first_entries(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let column = lines
        .next()?
        .split_whitespace()
        .position(|name| name == "entries")?;
    u64::from_str_radix(lines.next()?.split_whitespace().nth(column)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_hexadecimal_and_not_a_sum() {
        let text = "entries  allocs table_fulls\n000003f0  00000002 0\n000003f0  00000002 0\n";
        assert_eq!(first_entries(text), Some(1008));
        assert_eq!(first_entries("allocs\n1\n"), None);
        assert_eq!(first_entries("entries\n"), None);
    }

    #[test]
    fn a_table_is_full_before_its_last_entry() {
        let of = |entries| TableUse { entries, max: 1024 };
        assert!(of(1020).is_full() && !of(900).is_full());
    }
}
