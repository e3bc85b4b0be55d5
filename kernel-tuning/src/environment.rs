//! The environment a result was measured in: without it a figure cannot be compared or repeated.
//!
//! Plain data for a report. What this host does not tell is absent, so that reading it never fails a run.

use std::collections::BTreeMap;
use std::path::Path;

use procfs::{CpuInfo, Current};
use serde::{Deserialize, Serialize};

use crate::host::{Memory, sysctl};
use crate::process::Nofile;

/// The machine, kernel and settings that a result depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Kernel release, as `uname -r` says.
    pub kernel: Option<String>,
    /// Model name of the first CPU; some architectures have none.
    pub cpu_model: Option<String>,
    /// CPUs that are online.
    pub cpus: Option<usize>,
    /// Memory of the host.
    pub memory_total_bytes: Option<u64>,
    /// The kernel's current clock source, such as `tsc`: a slow one makes every timestamp dear.
    pub clock_source: Option<String>,
    /// The open-file limit of this process.
    pub nofile: Option<Nofile>,
    /// Whether a hypervisor runs this kernel; `None` where the CPU's flags do not tell.
    #[serde(default)]
    pub is_virtual: Option<bool>,
    /// The frequency governor of the first CPU; a virtual machine mostly has none.
    #[serde(default)]
    pub cpu_governor: Option<String>,
    /// What the kernel does about each weakness of the CPU, as it prints it (`/sys/devices/system/cpu/vulnerabilities`,
    /// since 4.15): each change between user and kernel, and between processes, costs what is done there.
    #[serde(default)]
    pub mitigations: BTreeMap<String, String>,
    /// What `mitigations=` on the kernel's command line says, where it is there.
    #[serde(default)]
    pub mitigations_asked: Option<String>,
    /// Which memory may become huge pages: `always`, `madvise` or `never`. It moves resident memory.
    #[serde(default)]
    pub huge_pages: Option<String>,
    /// Settings that matter for a result, as the kernel prints them; one that cannot be read is absent.
    pub sysctls: BTreeMap<String, String>,
}

/// Reads the environment of this process.
pub fn environment() -> Environment {
    let cpu = CpuInfo::current().ok();
    let setting = |name: &&str| Some(((*name).to_owned(), one_line(&sysctl(name).ok()?)));
    Environment {
        kernel: sysctl("kernel.osrelease").ok(),
        cpu_model: cpu
            .as_ref()
            .and_then(|cpu| cpu.model_name(0).map(str::to_owned)),
        cpus: cpu.as_ref().map(CpuInfo::num_cores),
        memory_total_bytes: Memory::read().ok().map(|memory| memory.total_bytes),
        clock_source: line_of(CLOCK_SOURCE),
        nofile: Nofile::read().ok(),
        is_virtual: cpu.as_ref().and_then(|cpu| {
            let flags = cpu.flags(0).filter(|flags| !flags.is_empty())?;
            Some(flags.contains(&"hypervisor"))
        }),
        cpu_governor: line_of(GOVERNOR),
        mitigations: mitigations(),
        mitigations_asked: line_of("/proc/cmdline").and_then(|line| asked(&line)),
        huge_pages: line_of(HUGE_PAGES).and_then(|line| chosen(&line)),
        sysctls: SYSCTLS.iter().filter_map(setting).collect(),
    }
}

const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
const GOVERNOR: &str = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
const VULNERABILITIES: &str = "/sys/devices/system/cpu/vulnerabilities";
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

const SYSCTLS: &[&str] = &[
    "fs.file-max",
    "fs.nr_open",
    "kernel.io_uring_disabled",
    "net.core.netdev_max_backlog",
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

fn line_of(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

fn mitigations() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(VULNERABILITIES).into_iter().flatten();
    let read = files.flatten().filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        Some((name, line_of(file.path())?))
    });
    read.collect()
}

/// The last of several counts; of the rest of the command line nothing is kept, for it may name what is private.
fn asked(command_line: &str) -> Option<String> {
    let words = command_line.split_whitespace();
    let mut said = words.filter_map(|word| word.strip_prefix("mitigations="));
    said.next_back().map(str::to_owned)
}

/// The one in brackets of `always [madvise] never`.
fn chosen(line: &str) -> Option<String> {
    let (_, rest) = line.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The kernel separates the numbers of one setting with tabs.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_the_command_line_only_the_mitigations_are_kept() {
        let line = "secret=1 mitigations=off quiet mitigations=auto,nosmt nomitigations=x";
        assert_eq!(asked(line).as_deref(), Some("auto,nosmt"));
        assert_eq!(asked("quiet"), None);
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
    }

    #[test]
    fn every_mitigation_is_a_line() {
        for (name, said) in mitigations() {
            assert!(!said.is_empty() && !said.contains('\n'), "{name}: {said}");
        }
    }

    #[test]
    fn anybody_can_read_the_environment() {
        let environment = environment();
        assert!(environment.kernel.unwrap().contains('.'));
        assert!(environment.cpus.unwrap() > 0);
        assert!(environment.nofile.unwrap().soft > 0);
        assert!(environment.sysctls["net.ipv4.ip_local_port_range"].contains(' '));
        assert!(!environment.sysctls["net.ipv4.tcp_rmem"].contains('\t'));
    }
}
