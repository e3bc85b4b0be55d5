//! The doctor: what of this host is in the way of so many connections, and what changes that.
//!
//! A check is a pure function from [`Readings`] (files, which a test can invent), [`Trials`] (what was tried, because the
//! files do not tell) or a plan (what settings should be) to a [`Finding`]; [`check`] is all of them. Nothing here changes the host. Invariant: what a
//! host does not tell is [`Verdict::Unknown`], never a guess and never an error.

mod capacity;
mod io_uring;
mod machine;
mod network;
mod readings;
mod settings;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod trials;

use clap::ValueEnum;
use serde::Serialize;

use crate::plan::Step;
use crate::setting::{Demand, Role};
use crate::tree::Tree;
pub use readings::{Nic, Readings};
pub use trials::Trials;

/// What a check says, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is in the way.
    Pass,
    /// This host does not tell.
    Unknown,
    /// It will do, and not as well as it could.
    Warn,
    /// So many connections will not be held.
    Fail,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Theme {
    /// What io_uring allows here.
    IoUring,
    /// Memory, files and what else a connection takes.
    Capacity,
    /// Addresses, ports and the kernel's tables.
    Network,
    /// CPUs, clock and pages.
    Machine,
    /// The settings of the profile.
    Settings,
}

impl Theme {
    /// For a person.
    pub fn title(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Capacity => "capacity",
            Self::Network => "network",
            Self::Machine => "machine",
            Self::Settings => "settings",
        }
    }
}

/// One row of the doctor's table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked; for a setting its name.
    pub name: String,
    /// What it is about.
    pub theme: Theme,
    /// What the check says.
    pub verdict: Verdict,
    /// What there is; where the verdict is [`Verdict::Unknown`], why that is not known.
    pub now: String,
    /// What there should be.
    pub wanted: String,
    /// What happens otherwise.
    pub why: String,
    /// What to do, where that is known and needed.
    pub fix: Option<Fix>,
}

/// How to put it right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fix {
    /// Now, until the host restarts: a command, or what to do.
    pub now: String,
    /// For good.
    pub keep: String,
}

/// What a check is about, before it is known what it says.
struct About {
    name: String,
    theme: Theme,
    wanted: String,
    why: String,
}

impl About {
    fn new(
        theme: Theme,
        name: impl Into<String>,
        wanted: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        let (name, wanted, why) = (name.into(), wanted.into(), why.into());
        Self {
            name,
            theme,
            wanted,
            why,
        }
    }

    fn pass(self, now: impl Into<String>) -> Finding {
        self.finding(Verdict::Pass, now, None)
    }

    fn unknown(self, why_not: impl Into<String>) -> Finding {
        self.finding(Verdict::Unknown, why_not, None)
    }

    fn warn(self, now: impl Into<String>, fix: Fix) -> Finding {
        self.finding(Verdict::Warn, now, Some(fix))
    }

    fn fail(self, now: impl Into<String>, fix: Fix) -> Finding {
        self.finding(Verdict::Fail, now, Some(fix))
    }

    fn finding(self, verdict: Verdict, now: impl Into<String>, fix: Option<Fix>) -> Finding {
        Finding {
            name: self.name,
            theme: self.theme,
            verdict,
            now: now.into(),
            wanted: self.wanted,
            why: self.why,
            fix,
        }
    }
}

impl Fix {
    fn new(now: impl Into<String>, keep: impl Into<String>) -> Self {
        Self {
            now: now.into(),
            keep: keep.into(),
        }
    }

    fn sysctl(name: &str, value: impl std::fmt::Display) -> Self {
        Self::new(
            format!("sysctl -w {name}='{value}'"),
            format!("{name} = {value} in /etc/sysctl.d/90-throng.conf"),
        )
    }
}

/// Every check, theme by theme.
pub fn check(readings: &Readings, trials: &Trials, plan: &[Step], demand: &Demand) -> Vec<Finding> {
    let mut findings = io_uring::findings(readings, trials, demand);
    findings.extend(capacity::findings(readings, demand));
    findings.extend(network::findings(readings, demand));
    findings.extend(network::findings_of_trials(readings, trials, demand));
    findings.extend(machine::findings(readings, demand));
    findings.extend(settings::findings(plan, readings));
    findings
}

/// One line for a program that starts: what of this host will stop so many connections, as far as that takes no time to
/// find out, and the command that tells more. None where nothing is known to.
pub fn brief(role: Role, connections: u64) -> Option<String> {
    let readings = Readings::read(&Tree::default());
    let demand = Demand {
        connections,
        role,
        ram_bytes: readings.memory?.total_bytes,
        page_bytes: procfs::page_size(),
        listen_ports: Vec::new(),
    };
    let findings = capacity::findings(&readings, &demand)
        .into_iter()
        .chain(network::findings(&readings, &demand));
    let in_the_way: Vec<String> = findings
        .filter(|finding| finding.verdict == Verdict::Fail)
        .map(|finding| {
            format!(
                "{} ({}; wanted: {})",
                finding.name, finding.now, finding.wanted
            )
        })
        .collect();
    (!in_the_way.is_empty()).then(|| {
        format!(
            "this host will not hold {connections} connections: {}; see throng-tune check --connections {connections} \
             --role {}",
            in_the_way.join(", "),
            role_name(role)
        )
    })
}

/// As the command line takes it.
pub(crate) fn role_name(role: Role) -> String {
    let value = role.to_possible_value();
    value.map_or(String::new(), |value| value.get_name().to_owned())
}

/// `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<&str> = groups
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

/// Bytes in the largest unit that leaves at least one whole.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}
