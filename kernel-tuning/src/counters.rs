//! The kernel's network counters that tell what a run did to the host.
//!
//! A counter is found by its name; one that this kernel lacks is absent, never zero. The kernel counts since boot and
//! per network namespace, so only differences mean something: read before, read after, [`NetCounters::since`]. The
//! namespace is that of the calling thread.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::{HostError, format_error, read};
pub use known::{Counter, Kind, counter, counters, meaning};

mod known;

/// The calling thread's network namespace, which `/proc/net`, the process's, need not be (proc_pid_net(5)).
pub(crate) const PROC_NET: &str = "/proc/thread-self/net";

/// Counters that count each of another's events too: said only of what goes beyond.
const INCLUDES: &[(&str, &str)] = &[
    ("ListenDrops", "ListenOverflows"),
    ("RetransSegs", "TCPSynRetrans"),
    ("TCPTimeouts", "TCPSynRetrans"),
];

/// Named network counters, or the growth of each between two readings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetCounters(BTreeMap<String, u64>);

impl NetCounters {
    /// Reads `netstat`, `snmp` and `softnet_stat` of `/proc/thread-self/net`, and of its `stat` what there is of
    /// connection tracking and neighbours.
    ///
    /// # Errors
    /// When one of the first three cannot be read or has another form.
    pub fn read() -> Result<Self, HostError> {
        let file = |name: &str| read(Path::new(PROC_NET).join(name));
        let (netstat, snmp) = (file("netstat")?, file("snmp")?);
        let mut counters = Self::parse(&netstat, &snmp, &file("softnet_stat")?)?;
        for (name, files, column) in TABLE_COUNTERS {
            let texts = files
                .iter()
                .filter_map(|name| file(&format!("stat/{name}")).ok());
            let sums = texts.filter_map(|text| column_sum(&text, column));
            if let Some(sum) = sums.reduce(|one, other| one + other) {
                counters.0.insert((*name).to_owned(), sum);
            }
        }
        Ok(counters)
    }

    /// What each counter grew by since `earlier`; a counter that either reading lacks is absent.
    pub fn since(&self, earlier: &Self) -> Self {
        let both = self
            .iter()
            .filter_map(|(name, now)| Some((name, now, earlier.get(name)?)));
        Self(
            both.map(|(name, now, before)| (name.to_owned(), now.saturating_sub(before)))
                .collect(),
        )
    }

    /// Those that grew since `earlier`, by how much.
    pub fn grown(&self, earlier: &Self) -> Self {
        let since = self.since(earlier);
        Self(since.0.into_iter().filter(|(_, by)| *by > 0).collect())
    }

    /// Those that are not zero and mean trouble, by their names: `count`, what it means. A counter that counts no more
    /// than another does by a narrower name is left out, and so is traffic.
    pub fn troubles(&self) -> impl Iterator<Item = (&str, u64, &'static str)> {
        self.iter().filter_map(|(name, count)| {
            let is_said_already = |(wide, narrow): &(&str, &str)| {
                *wide == name && self.get(narrow).is_some_and(|narrow| narrow >= count)
            };
            let is_said = count > 0 && !INCLUDES.iter().any(is_said_already);
            let known = counter(name).filter(|known| is_said && known.kind == Kind::Trouble)?;
            Some((name, count, known.means))
        })
    }

    /// One counter, if this kernel has it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// All counters by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    fn parse(netstat: &str, snmp: &str, softnet: &str) -> Result<Self, HostError> {
        let mut found = paired_lines(netstat, "TcpExt:");
        found.extend(paired_lines(snmp, "Tcp:"));
        found.extend(paired_lines(snmp, "Ip:"));
        let (dropped, time_squeeze) = softnet_totals(softnet)?;
        found.extend([
            ("SoftnetDropped", dropped),
            ("SoftnetTimeSqueeze", time_squeeze),
        ]);
        let known = counters().iter().filter(|known| known.kind != Kind::Gauge);
        let named =
            known.filter_map(|known| Some((known.name.to_owned(), *found.get(known.name)?)));
        let mut named: BTreeMap<String, u64> = named.collect();
        // Other protocols have counters of the same names.
        let icmp = paired_lines(snmp, "Icmp:").into_iter();
        let icmp = icmp.map(|(name, value)| (format!("Icmp{name}"), value));
        named.extend(icmp.filter(|(name, _)| counter(name).is_some()));
        Ok(Self(named))
    }
}

impl FromIterator<(String, u64)> for NetCounters {
    /// Counters that were recorded elsewhere.
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(counters: I) -> Self {
        Self(counters.into_iter().collect())
    }
}

/// Of `/proc/net/stat`: our name, the files, and their column. There is a row for each CPU, all hexadecimal; the
/// neighbours are those of the whole host, and another network namespace than its own does not see them.
const TABLE_COUNTERS: &[(&str, &[&str], &str)] = &[
    ("ConntrackDrop", &["nf_conntrack"], "drop"),
    ("ConntrackEarlyDrop", &["nf_conntrack"], "early_drop"),
    ("ConntrackInsertFailed", &["nf_conntrack"], "insert_failed"),
    (
        "NeighbourTableFulls",
        &["arp_cache", "ndisc_cache"],
        "table_fulls",
    ),
    (
        "NeighbourUnresolvedDiscards",
        &["arp_cache", "ndisc_cache"],
        "unresolved_discards",
    ),
];

/// `Prefix: names…` followed by `Prefix: values…`.
fn paired_lines<'a>(text: &'a str, prefix: &str) -> BTreeMap<&'a str, u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    // Some values are signed (MaxConn is -1); none of ours is.
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect()
}

/// The sum of one column of a file of `/proc/net/stat`, whose first line has the names; `None` where it has no such one.
fn column_sum(text: &str, column: &str) -> Option<u64> {
    let mut lines = text.lines();
    let index = lines
        .next()?
        .split_whitespace()
        .position(|name| name == column)?;
    lines
        .map(|row| u64::from_str_radix(row.split_whitespace().nth(index)?, 16).ok())
        .sum()
}

/// The sums of the dropped and time_squeeze columns; one row a CPU, all columns hexadecimal.
fn softnet_totals(text: &str) -> Result<(u64, u64), HostError> {
    let mut totals = (0, 0);
    for row in text.lines() {
        let mut columns = row
            .split_whitespace()
            .skip(1)
            .map(|word| u64::from_str_radix(word, 16));
        let (Some(Ok(dropped)), Some(Ok(time_squeeze))) = (columns.next(), columns.next()) else {
            return Err(format_error(
                "/proc/net/softnet_stat",
                format!("row {row:?}"),
            ));
        };
        totals = (totals.0 + dropped, totals.1 + time_squeeze);
    }
    Ok(totals)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NETSTAT: &str = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPSynRetrans Unknown\n\
                           TcpExt: 0 564 570 445 9\n\
                           IpExt: InNoRoutes\nIpExt: 3\n";
    const SNMP: &str = "Tcp: RtoAlgorithm MaxConn AttemptFails EstabResets CurrEstab RetransSegs\n\
                        Tcp: 1 -1 2 52 7 12\nUdp: InDatagrams\nUdp: 121\n";
    const SOFTNET: &str =
        "00000012 00000351 00000001 00000000\n00000937 00000010 0000000a 00000000\n";

    #[test]
    fn counters_are_found_by_name_and_missing_ones_are_absent() {
        let counters = NetCounters::parse(NETSTAT, SNMP, SOFTNET).unwrap();
        assert_eq!(counters.get("ListenOverflows"), Some(564));
        assert_eq!(counters.get("SyncookiesSent"), Some(0));
        assert_eq!(counters.get("RetransSegs"), Some(12));
        assert_eq!(counters.get("SoftnetDropped"), Some(0x351 + 0x10));
        assert_eq!(counters.get("SoftnetTimeSqueeze"), Some(11));
        assert_eq!(counters.get("TCPBacklogDrop"), None);
        assert_eq!(counters.get("Unknown"), None);
        assert_eq!(counters.iter().count(), 9);
    }

    #[test]
    fn a_difference_has_only_what_both_readings_have() {
        let before =
            NetCounters::parse("TcpExt: ListenDrops TCPTimeouts\nTcpExt: 10 7\n", "", "").unwrap();
        let after = NetCounters::parse(
            "TcpExt: ListenDrops ListenOverflows\nTcpExt: 15 1\n",
            "",
            "",
        )
        .unwrap();
        let grown = after.since(&before);
        assert_eq!(grown.get("ListenDrops"), Some(5));
        assert_eq!(grown.get("ListenOverflows"), None);
        assert_eq!(grown.get("TCPTimeouts"), None);
    }

    #[test]
    fn a_column_of_a_table_is_summed_over_the_cpus() {
        let text = "entries  insert_failed drop early_drop\n00000005 00000000 0000000a 00000001\n\
                    00000005 00000000 00000010 00000000\n";
        assert_eq!(column_sum(text, "drop"), Some(26));
        assert_eq!(column_sum(text, "early_drop"), Some(1));
        assert_eq!(column_sum(text, "table_fulls"), None);
        assert_eq!(column_sum("drop\nx\n", "drop"), None);
    }

    #[test]
    fn what_grew_and_means_trouble_is_told_once() {
        let counters = |all: &[(&str, u64)]| -> NetCounters {
            let owned = |(name, value): &(&str, u64)| ((*name).to_owned(), *value);
            all.iter().map(owned).collect()
        };
        let before = counters(&[("ListenDrops", 7), ("TCPSynRetrans", 5), ("rx_packets", 1)]);
        let after = counters(&[("ListenDrops", 7), ("TCPSynRetrans", 9), ("rx_packets", 9)]);
        let grown = after.grown(&before);
        assert_eq!(grown, counters(&[("TCPSynRetrans", 4), ("rx_packets", 8)]));
        let names = |counters: &NetCounters| -> Vec<(String, u64)> {
            let told = counters.troubles();
            told.map(|(name, count, _)| (name.to_owned(), count))
                .collect()
        };
        assert_eq!(names(&grown), [("TCPSynRetrans".to_owned(), 4)]);
        let drops = [
            ("ListenDrops", 3),
            ("ListenOverflows", 3),
            ("RetransSegs", 0),
        ];
        assert_eq!(
            names(&counters(&drops)),
            [("ListenOverflows".to_owned(), 3)]
        );
    }

    #[test]
    fn a_softnet_row_of_another_form_is_refused() {
        assert!(softnet_totals("00000012 xyz 00000001").is_err());
        assert!(softnet_totals("00000012").is_err());
    }

    #[test]
    fn every_counter_has_a_meaning_and_this_kernel_has_every_counter_that_matters() {
        let counters = NetCounters::read().unwrap();
        assert!(counters.iter().all(|(name, _)| meaning(name).is_some()));
        assert!(counters.get("ListenDrops").is_some() && counters.get("RetransSegs").is_some());
        assert_eq!(meaning("NoSuchCounter"), None);
    }
}
