//! A setting of the kernel: what it should be for a demand, and what that makes of the value it has.
//!
//! Pure. Invariant: what is wanted is a range for each number, so a value that is good already, a host owner's larger
//! one included, stays as it is; one that is out of range goes to the nearest end.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::formula::Formula;

/// Which end of the connections a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It accepts them
    Server,
    /// It opens them
    Client,
    /// Both ends are on this host
    Both,
}

/// What a host is to be tuned for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Connections held at one time.
    pub connections: u64,
    /// Which of their ends are here.
    pub role: Role,
    /// Memory of the host.
    pub ram_bytes: u64,
    /// Size of a page.
    pub page_bytes: u64,
    /// Ports that a server listens on, or is to.
    pub listen_ports: Vec<RangeInclusive<u16>>,
}

impl Demand {
    /// Sockets on this host: two for each connection with both ends here.
    pub fn sockets(&self) -> u64 {
        match self.role {
            Role::Server | Role::Client => self.connections,
            Role::Both => self.connections.saturating_mul(2),
        }
    }

    /// Memory of the host in pages.
    pub fn ram_pages(&self) -> u64 {
        self.ram_bytes / self.page_bytes.max(1)
    }
}

/// How far a setting reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The whole host; another network namespace than the host's does not have it, or may not write it.
    Host,
    /// Each network namespace has its own.
    Namespace,
}

/// What a profile says of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As sysctl(8) names it: `net.ipv4.tcp_mem`.
    pub name: String,
    /// Whose setting it is: [`Role::Both`] where either end needs it.
    pub role: Role,
    /// This host may lack it, by its kernel's version or modules.
    pub is_optional: bool,
    /// What it should be.
    pub rule: Rule,
    /// What the kernel has without being told, as far as that can be computed; a formula for each number.
    pub default: Vec<Formula>,
    /// What its numbers count, such as `pages`.
    pub unit: String,
    /// Kernel memory that one unit takes when it is used.
    pub bytes: Option<u64>,
    /// What happens without it.
    pub reason: String,
    /// Where it is documented.
    pub source: String,
    /// How far it reaches.
    pub scope: Scope,
    /// Its value in the profile, right for [`crate::profile::reference`].
    pub reference: String,
}

/// What a setting should be, before it is known for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// A field for each of its numbers.
    Numbers(Vec<Field>),
    /// A list of ports, which is to have the ports that a server listens on.
    ListenPorts,
}

/// One number of a setting: its bounds, of which it may have none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Field {
    /// Not less than this, as far as `at_most` allows it.
    pub at_least: Option<Formula>,
    /// Not more than this.
    pub at_most: Option<Formula>,
}

/// What a setting should be for a [`Demand`]. Its `Display` is for a person: `at least 4096`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A range for each number.
    Numbers(Vec<RangeInclusive<u64>>),
    /// Ports that a list of ports must have.
    Ports(Vec<RangeInclusive<u16>>),
}

/// What `setting` should be for `demand`.
pub fn wanted(setting: &Setting, demand: &Demand) -> Wanted {
    match &setting.rule {
        Rule::Numbers(fields) => {
            Wanted::Numbers(fields.iter().map(|field| field.range(demand)).collect())
        }
        Rule::ListenPorts => Wanted::Ports(demand.listen_ports.clone()),
    }
}

impl Field {
    fn range(&self, demand: &Demand) -> RangeInclusive<u64> {
        let value = |formula: &Option<Formula>| formula.as_ref().map(|it| it.value(demand));
        let high = value(&self.at_most).unwrap_or(u64::MAX);
        value(&self.at_least).unwrap_or(0).min(high)..=high
    }
}

/// A value that does not look like one of its setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ValueError {
    text: String,
    expected: String,
}

impl Wanted {
    /// The value to write where the kernel has `now`; the same, as far as the numbers go, where that will do.
    ///
    /// # Errors
    /// When `now` is not of this form.
    pub fn adjusted(&self, now: &str) -> Result<String, ValueError> {
        match self {
            Self::Numbers(ranges) => {
                let numbers = numbers(now, ranges.len())?;
                let pairs = numbers.into_iter().zip(ranges);
                let inside: Vec<String> = pairs
                    .map(|(number, range)| number.clamp(*range.start(), *range.end()).to_string())
                    .collect();
                Ok(inside.join(" "))
            }
            Self::Ports(wanted) => {
                let mut ports = ports(now)?;
                ports.extend(wanted.iter().cloned().flatten());
                Ok(port_list(&ports))
            }
        }
    }

    /// Whether `now` will do as it is.
    ///
    /// # Errors
    /// When `now` is not of this form.
    pub fn is_met(&self, now: &str) -> Result<bool, ValueError> {
        Ok(match self {
            Self::Numbers(ranges) => numbers(now, ranges.len())?
                .iter()
                .zip(ranges)
                .all(|(number, range)| range.contains(number)),
            Self::Ports(wanted) => {
                let has = ports(now)?;
                wanted
                    .iter()
                    .cloned()
                    .flatten()
                    .all(|port| has.contains(&port))
            }
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = match self {
            Self::Numbers(ranges) => ranges.iter().map(in_words).collect(),
            Self::Ports(ports) if ports.is_empty() => vec!["any".into()],
            Self::Ports(wanted) => {
                let ports = wanted.iter().cloned().flatten().collect();
                vec![format!("with {}", port_list(&ports))]
            }
        };
        out.write_str(&each.join("; "))
    }
}

fn in_words(range: &RangeInclusive<u64>) -> String {
    match (*range.start(), *range.end()) {
        (0, u64::MAX) => "any".into(),
        (low, high) if low == high => format!("{low}"),
        (low, u64::MAX) => format!("at least {low}"),
        (0, high) => format!("at most {high}"),
        (low, high) => format!("{low} to {high}"),
    }
}

fn numbers(text: &str, count: usize) -> Result<Vec<u64>, ValueError> {
    let words = text.split_whitespace().map(str::parse);
    match words.collect::<Result<Vec<u64>, _>>() {
        Ok(numbers) if numbers.len() == count => Ok(numbers),
        _ => Err(ValueError {
            text: text.trim().to_owned(),
            expected: format!("{count} number(s)"),
        }),
    }
}

/// `8080,9000-9010`, as the kernel writes lists of ports.
fn ports(text: &str) -> Result<BTreeSet<u16>, ValueError> {
    let item = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    let items = text.trim().split(',').filter(|item| !item.is_empty());
    let ranges: Option<Vec<_>> = items.map(item).collect();
    let ranges = ranges.ok_or_else(|| ValueError {
        text: text.trim().to_owned(),
        expected: "a list of ports such as 7000,9000-9010".into(),
    })?;
    Ok(ranges.into_iter().flatten().collect())
}

fn port_list(ports: &BTreeSet<u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => runs.push((*port, *port)),
        }
    }
    let runs = runs.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::{reference, setting, settings};

    fn adjusted(name: &str, demand: &Demand, now: &str) -> String {
        wanted(&setting(name).unwrap(), demand)
            .adjusted(now)
            .unwrap()
    }

    /// As the kernel computes it.
    fn defaults(setting: &Setting, demand: &Demand) -> String {
        let each = setting.default.iter().map(|formula| formula.value(demand));
        each.map(|number| number.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn ranges(setting: &Setting, demand: &Demand) -> Vec<RangeInclusive<u64>> {
        match wanted(setting, demand) {
            Wanted::Numbers(ranges) => ranges,
            Wanted::Ports(_) => Vec::new(),
        }
    }

    #[test]
    fn what_people_copied_is_put_right() {
        let demand = Demand {
            role: Role::Both,
            ..reference()
        };
        for (name, copied, right) in [
            // 32 GiB of queued data, twice the memory of the host: down to 40 %.
            (
                "net.ipv4.tcp_mem",
                "786432 4194304 8388608",
                "838860 1258291 1677721",
            ),
            // Lower than any kernel's default: up.
            ("fs.file-max", "100000", "2300000"),
            ("fs.nr_open", "100000", "1101024"),
            ("net.ipv4.tcp_max_tw_buckets", "10240", "1000000"),
            ("net.ipv4.tcp_max_orphans", "10240", "838860"),
            ("net.ipv4.tcp_syncookies", "0", "1"),
            ("net.core.netdev_max_backlog", "41960", "10000"),
            (
                "net.ipv4.tcp_rmem",
                "4096 4096 4206592",
                "4096 16384 343597",
            ),
            // More than is wanted, and no harm.
            ("fs.file-max", "20000000", "20000000"),
        ] {
            assert_eq!(adjusted(name, &demand, copied), right, "{name}");
        }
    }

    #[test]
    fn ports_are_added_to_those_that_are_reserved() {
        let name = "net.ipv4.ip_local_reserved_ports";
        let demand = Demand {
            listen_ports: vec![7000..=7000, 9000..=9010],
            ..reference()
        };
        assert_eq!(adjusted(name, &demand, ""), "7000,9000-9010");
        let other = adjusted(name, &demand, "80,6999,9005-9020\n");
        assert_eq!(other, "80,6999-7000,9000-9020");
        let wanted = wanted(&setting(name).unwrap(), &demand);
        assert_eq!(wanted.is_met("1-65535"), Ok(true));
        assert_eq!(wanted.is_met("7000"), Ok(false));
        assert!(
            wanted
                .is_met("7000,x")
                .unwrap_err()
                .to_string()
                .contains("list of ports")
        );
    }

    #[test]
    fn a_value_of_another_form_is_refused() {
        let wanted = wanted(&setting("net.ipv4.tcp_mem").unwrap(), &reference());
        for text in ["", "1 2", "1 2 3 4", "1 2 x", "-1 2 3"] {
            let error = wanted.adjusted(text).unwrap_err().to_string();
            assert!(error.contains("3 number(s)"), "{error}");
        }
    }

    fn demands() -> impl Strategy<Value = Demand> {
        let roles = prop_oneof![Just(Role::Server), Just(Role::Client), Just(Role::Both)];
        // From half a GiB to 4 TiB.
        (
            1_u64..1_000_000_000,
            roles,
            (1_u64 << 29)..(1 << 42),
            12..=16_u32,
        )
            .prop_map(|(connections, role, ram_bytes, page_bits)| Demand {
                connections,
                role,
                ram_bytes,
                page_bytes: 1 << page_bits,
                listen_ports: vec![7000..=7000],
            })
    }

    proptest! {
        #[test]
        fn more_connections_never_want_less(demand in demands(), more in 1_u64..1_000_000_000) {
            let larger = Demand { connections: demand.connections + more, ..demand.clone() };
            for setting in settings(Role::Both) {
                for (small, large) in ranges(&setting, &demand).iter().zip(ranges(&setting, &larger)) {
                    prop_assert!(small.start() <= large.start(), "{}", setting.name);
                }
            }
        }

        #[test]
        fn what_is_wanted_takes_a_safe_share_of_the_memory(demand in demands()) {
            for setting in settings(Role::Both) {
                let Some(bytes) = setting.bytes else { continue };
                let bytes = if setting.unit == "pages" { demand.page_bytes } else { bytes };
                for range in ranges(&setting, &demand) {
                    let share = range.start().saturating_mul(bytes) as f64 / demand.ram_bytes as f64;
                    prop_assert!(share <= 0.4, "{}: {share} of the memory", setting.name);
                }
            }
        }

        #[test]
        fn what_may_only_grow_is_never_below_the_kernels_default(demand in demands()) {
            for setting in settings(Role::Both) {
                let Ok(after) = wanted(&setting, &demand).adjusted(&defaults(&setting, &demand)) else {
                    prop_assert!(setting.default.is_empty());
                    continue;
                };
                let ranges = ranges(&setting, &demand);
                for ((formula, after), range) in setting.default.iter().zip(after.split(' ')).zip(ranges) {
                    let (before, after) = (formula.value(&demand), after.parse::<u64>().unwrap());
                    prop_assert!(*range.end() < before || after >= before, "{}", setting.name);
                }
            }
        }

        #[test]
        fn an_adjusted_value_is_as_wanted_and_stays(
            demand in demands(),
            now in proptest::collection::vec(0_u64..u64::from(u32::MAX), 1..=3),
        ) {
            for setting in settings(Role::Both) {
                let mut now = now.clone();
                now.resize(setting.default.len(), 5);
                now.sort_unstable();
                let text: Vec<String> = now.iter().map(u64::to_string).collect();
                let wanted = wanted(&setting, &demand);
                let Ok(after) = wanted.adjusted(&text.join(" ")) else { continue };
                prop_assert_eq!(wanted.is_met(&after), Ok(true), "{}", &setting.name);
                prop_assert_eq!(wanted.adjusted(&after), Ok(after.clone()));
                // Low, pressure and high, or first and last: in order as before.
                if let Rule::Numbers(_) = setting.rule {
                    let numbers = numbers(&after, now.len()).unwrap();
                    prop_assert!(numbers.is_sorted(), "{}: {after}", setting.name);
                }
            }
        }

        #[test]
        fn a_list_of_ports_reads_back_as_the_same(set in proptest::collection::btree_set(1_u16.., 0..40)) {
            prop_assert_eq!(ports(&port_list(&set)), Ok(set));
        }
    }
}
