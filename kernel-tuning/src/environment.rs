//! The environment a result was measured in: without it a figure cannot be compared or repeated.
//!
//! Plain data for a report. What this host does not tell is absent, so that reading it never fails a run.

use std::collections::BTreeMap;

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
        clock_source: std::fs::read_to_string(CLOCK_SOURCE)
            .ok()
            .map(|name| name.trim().to_owned()),
        nofile: Nofile::read().ok(),
        sysctls: SYSCTLS.iter().filter_map(setting).collect(),
    }
}

const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

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

/// The kernel separates the numbers of one setting with tabs.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
