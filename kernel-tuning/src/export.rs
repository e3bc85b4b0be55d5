//! Files for those who configure hosts by files: sysctl.d, limits.d, a systemd drop-in, each value with its reason.
//!
//! Pure. Invariant: a value is computed for the demand and from the kernel's defaults, never from this host's settings, so
//! the same demand gives the same file anywhere.

use std::fmt::Write as _;

use crate::annotate::{comment, sysctl_d};
use crate::limit::SOCKET_BYTES;
use crate::profile;
use crate::setting::{Demand, Role, Setting, wanted};

/// Threads of a server and of its rings: one for each core and a few more.
const TASKS: u64 = 4096;

/// A file for `/etc/sysctl.d`.
pub fn sysctl(demand: &Demand) -> String {
    let settings = profile::settings(demand.role).into_iter();
    let values: Vec<_> = settings
        .map(|setting| (value(&setting, demand), setting.name))
        .collect();
    let head = format!(
        "For {}. It sets these values exactly, larger ones that a host has to lower ones too: `throng-tune apply` \
         changes only what is out of range. Load it now: sysctl -p FILE",
        purpose(demand)
    );
    let values = values
        .iter()
        .map(|(value, name)| (name.as_str(), value.as_str()));
    format!("{}\n{}", comment(&head), sysctl_d(values))
}

/// What the setting should be where the kernel has its default.
fn value(setting: &Setting, demand: &Demand) -> String {
    let numbers = setting
        .default
        .iter()
        .map(|formula| formula.value(demand).to_string());
    let default = numbers.collect::<Vec<_>>().join(" ");
    // A test computes each of them.
    wanted(setting, demand)
        .adjusted(&default)
        .unwrap_or(default)
}

/// A file for `/etc/security/limits.d`.
pub fn limits(demand: &Demand) -> String {
    let nofile = nofile(demand);
    let head = format!(
        "For {}: open files of a process of those who log in (limits.conf(5)). It says nothing of services: they have \
         LimitNOFILE. Load the sysctl.d file first: a value above fs.nr_open lets nobody log in.",
        purpose(demand)
    );
    let mut text = comment(&head);
    for (who, why) in [("*", ""), ("root", "The star leaves root out.\n")] {
        text += &comment(why);
        for kind in ["soft", "hard"] {
            let _ = writeln!(text, "{who} {kind} nofile {nofile}");
        }
    }
    text
}

/// A drop-in for the unit of a service: `/etc/systemd/system/NAME.service.d/throng.conf`.
pub fn systemd(demand: &Demand) -> String {
    let memory_mib = memory_bytes(demand) >> 20;
    let sockets = demand.sockets();
    let mut text = comment(&format!(
        "For {}. Put it into /etc/systemd/system/NAME.service.d/throng.conf, then: systemctl daemon-reload && systemctl \
         restart NAME",
        purpose(demand)
    ));
    text += "\n[Service]\n";
    for (why, line) in [
        (
            "A descriptor for each connection; io_uring's tables of direct descriptors are bounded by it too. Not above \
             fs.nr_open, or the service does not start."
                .to_owned(),
            format!("LimitNOFILE={}", nofile(demand)),
        ),
        (
            "Threads, not connections; io_uring's own threads count (systemd.resource-control(5)).".to_owned(),
            format!("TasksMax={TASKS}"),
        ),
        (
            format!(
                "The control group pays for the memory of its sockets in the kernel: {SOCKET_BYTES} bytes for each \
                 of {sockets}, a page of queued data on each in a broadcast or a mass close, and 1 GiB for the program. \
                 Not above 90 % of the memory, so that the host lives when the service does not."
            ),
            format!("MemoryMax={memory_mib}M"),
        ),
    ] {
        let _ = writeln!(text, "{}{line}\n", comment(&why));
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn purpose(demand: &Demand) -> String {
    let ends = match demand.role {
        Role::Server => "a server of",
        Role::Client => "a client of",
        Role::Both => "server and client of",
    };
    let gib = demand.ram_bytes as f64 / f64::from(1 << 30);
    format!(
        "{ends} {} connections on a host with {gib:.1} GiB of memory",
        demand.connections
    )
}

/// As `fs.nr_open` allows by the profile.
fn nofile(demand: &Demand) -> u64 {
    demand.connections + demand.connections / 10 + 1024
}

fn memory_bytes(demand: &Demand) -> u64 {
    let each = SOCKET_BYTES + demand.page_bytes;
    let wanted = demand
        .sockets()
        .saturating_mul(each)
        .saturating_add(1 << 30);
    wanted.min(demand.ram_bytes / 10 * 9)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::profile::{reference, setting};
    use crate::setting::Wanted;

    fn value_of<'a>(text: &'a str, start: &str) -> &'a str {
        let mut lines = text.lines();
        lines
            .find_map(|line| line.strip_prefix(start))
            .unwrap()
            .trim()
    }

    #[test]
    fn the_file_of_the_reference_has_the_values_of_the_profile() {
        let text = sysctl(&reference());
        for setting in profile::settings(Role::Server) {
            let dash = if setting.is_optional { "-" } else { "" };
            let start = format!("{dash}{} =", setting.name);
            assert_eq!(
                value_of(&text, &start),
                setting.reference,
                "{}",
                setting.name
            );
            let reason = setting.reason.split(' ').next().unwrap();
            assert!(text.contains(&format!("# {reason}")), "{}", setting.name);
        }
        assert!(!text.contains("tcp_tw_reuse"));
        assert!(text.lines().all(|line| line.len() <= 102), "{text}");
    }

    #[test]
    fn every_value_can_be_computed_from_the_defaults() {
        for setting in profile::settings(Role::Both) {
            for connections in [1, 100_000, 1_000_000_000] {
                let demand = Demand {
                    connections,
                    ..reference()
                };
                let numbers = value(&setting, &demand);
                assert_eq!(
                    wanted(&setting, &demand).is_met(&numbers),
                    Ok(true),
                    "{}",
                    setting.name
                );
            }
        }
    }

    #[test]
    fn no_limit_of_open_files_is_above_what_the_host_allows() {
        for connections in [1, 1_000_000, 1_000_000_000] {
            let demand = Demand {
                connections,
                ..reference()
            };
            let Wanted::Numbers(ranges) = wanted(&setting("fs.nr_open").unwrap(), &demand) else {
                panic!("not a number");
            };
            let nofile: u64 = value_of(&limits(&demand), "root hard nofile")
                .parse()
                .unwrap();
            assert!(nofile > connections && nofile <= *ranges[0].start());
            assert_eq!(
                value_of(&systemd(&demand), "LimitNOFILE="),
                nofile.to_string()
            );
        }
    }

    #[test]
    fn a_service_has_memory_for_its_sockets_and_the_host_some_beside() {
        let mib = |demand: &Demand| -> u64 {
            let text = systemd(demand);
            value_of(&text, "MemoryMax=")
                .trim_end_matches('M')
                .parse()
                .unwrap()
        };
        let million = reference();
        assert!(mib(&million) << 20 > 1_000_000 * (SOCKET_BYTES + 4096));
        let both = Demand {
            role: Role::Both,
            ..reference()
        };
        assert!(mib(&both) > mib(&million));
        assert!(mib(&both) << 20 <= both.ram_bytes / 10 * 9);
    }
}
