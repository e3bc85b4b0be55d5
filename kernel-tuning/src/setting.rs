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

#[cfg(test)]
mod tests;

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
