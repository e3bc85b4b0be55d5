//! What the host says of itself: memory, sockets, slab caches, open files, sysctls and CPU time.
//!
//! Reads `/proc` and `/sys`, and never writes. Figures are in bytes and nanoseconds unless a name says otherwise.
//! Everything is found by name, so a kernel that adds, drops or reorders fields is read correctly or refused with the
//! path of the file, and a figure that is missing is never shown as zero.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use procfs::{Current, CurrentSI};
use serde::{Deserialize, Serialize};

pub use crate::cgroup::CgroupMemory;
pub use crate::counters::{Counter, Kind, NetCounters, counter, counters, meaning};
pub use crate::environment::{Environment, environment};
pub use crate::footprint::Footprint;
pub use crate::interface::{LOOPBACK, Route, interface_addresses, interface_statistics, route};
pub use crate::table::TableUse;

/// Why something could not be read from the host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The file is missing on this kernel, or this user may not read it.
    #[error("cannot read {path}: {cause}{hint}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
        /// What to do about it, or nothing.
        hint: &'static str,
    },
    /// The file was read and does not look as documented.
    #[error("{path} does not have the expected form: {what}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is missing or cannot be parsed.
        what: String,
    },
    /// The `procfs` library could not read or parse a file; its text names the file.
    #[error("cannot read the state of this host: {0}")]
    Procfs(#[from] procfs::ProcError),
}

/// Memory of the whole host, from `/proc/meminfo` (proc_meminfo(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All memory the kernel manages.
    pub total_bytes: u64,
    /// Memory in no use at all.
    pub free_bytes: u64,
    /// What new work can get without swapping, by the kernel's estimate (since 3.14).
    pub available_bytes: u64,
    /// All slab caches: sockets, files, inodes and the like. Queued packet data is not all in it.
    pub slab_bytes: u64,
    /// The part of the slab that is given back under pressure, such as inode and dentry caches.
    pub slab_reclaimable_bytes: u64,
    /// The part of the slab that lives as long as its owners, such as sockets.
    pub slab_unreclaimable_bytes: u64,
    /// Page tables of all processes.
    pub page_tables_bytes: u64,
}

impl Memory {
    /// Reads `/proc/meminfo`.
    ///
    /// # Errors
    /// When it cannot be read, or the kernel is too old to have `MemAvailable`.
    pub fn read() -> Result<Self, HostError> {
        Self::from_meminfo(&procfs::Meminfo::current()?)
    }

    pub(crate) fn from_meminfo(meminfo: &procfs::Meminfo) -> Result<Self, HostError> {
        let field = |value: Option<u64>, name: &str| {
            value.ok_or_else(|| format_error("/proc/meminfo", format!("no {name}")))
        };
        Ok(Self {
            total_bytes: meminfo.mem_total,
            free_bytes: meminfo.mem_free,
            available_bytes: field(meminfo.mem_available, "MemAvailable")?,
            slab_bytes: meminfo.slab,
            slab_reclaimable_bytes: field(meminfo.s_reclaimable, "SReclaimable")?,
            slab_unreclaimable_bytes: field(meminfo.s_unreclaim, "SUnreclaim")?,
            page_tables_bytes: field(meminfo.page_tables, "PageTables")?,
        })
    }
}

/// The TCP line of `/proc/net/sockstat`.
///
/// `inuse` counts this network namespace; `alloc` and `mem_pages` count the whole host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockstat {
    /// Sockets in any state but TIME_WAIT, of IPv4.
    pub inuse: u64,
    /// Sockets that no file refers to any more and that are still closing.
    pub orphan: u64,
    /// Sockets in TIME_WAIT.
    pub time_wait: u64,
    /// Sockets allocated, in any state.
    pub alloc: u64,
    /// Pages of queued data, the figure that `tcp_mem` limits.
    pub mem_pages: u64,
}

impl Sockstat {
    /// Reads `/proc/net/sockstat`.
    ///
    /// # Errors
    /// When it cannot be read or has no TCP line.
    pub fn read() -> Result<Self, HostError> {
        Self::parse(&read("/proc/net/sockstat")?)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, HostError> {
        let path = "/proc/net/sockstat";
        let line = text.lines().find_map(|line| line.strip_prefix("TCP:"));
        let words: Vec<&str> = line
            .ok_or_else(|| format_error(path, "no TCP line"))?
            .split_whitespace()
            .collect();
        let field = |name: &str| {
            let pair = words.chunks_exact(2).find(|pair| pair[0] == name);
            pair.and_then(|pair| pair[1].parse().ok())
                .ok_or_else(|| format_error(path, format!("no TCP {name}")))
        };
        Ok(Self {
            inuse: field("inuse")?,
            orphan: field("orphan")?,
            time_wait: field("tw")?,
            alloc: field("alloc")?,
            mem_pages: field("mem")?,
        })
    }
}

/// One slab cache of `/proc/slabinfo` (slabinfo(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlabCache {
    /// Objects in use.
    pub active_objs: u64,
    /// Objects there is room for.
    pub num_objs: u64,
    /// Size of an object's slot.
    pub objsize_bytes: u64,
    /// Memory the cache holds, free slots and the waste at the end of each slab included.
    pub bytes: u64,
}

/// Every slab cache by name. Caches of like objects may be merged under one of their names.
///
/// # Errors
/// When `/proc/slabinfo` cannot be read; only root may.
pub fn slab_by_cache() -> Result<BTreeMap<String, SlabCache>, HostError> {
    parse_slabinfo(&read("/proc/slabinfo")?, procfs::page_size())
}

fn parse_slabinfo(text: &str, page_bytes: u64) -> Result<BTreeMap<String, SlabCache>, HostError> {
    let rows = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("slabinfo"));
    rows.map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        let number = |index: usize| {
            let value = words.get(index).and_then(|word| word.parse::<u64>().ok());
            value.ok_or_else(|| {
                format_error("/proc/slabinfo", format!("column {} of {row:?}", index + 1))
            })
        };
        // name active_objs num_objs objsize objperslab pagesperslab : tunables … : slabdata active_slabs num_slabs …
        let slabdata = words
            .iter()
            .position(|word| *word == "slabdata")
            .unwrap_or(words.len());
        let cache = SlabCache {
            active_objs: number(1)?,
            num_objs: number(2)?,
            objsize_bytes: number(3)?,
            bytes: number(5)? * number(slabdata + 2)? * page_bytes,
        };
        Ok((words[0].to_owned(), cache))
    })
    .collect()
}

/// Open files of the whole host against its maximum, from `fs.file-nr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Files the kernel has allocated; direct descriptors of io_uring count.
    pub allocated: u64,
    /// The limit, `fs.file-max`.
    pub max: u64,
}

impl Files {
    /// Reads `/proc/sys/fs/file-nr`.
    ///
    /// # Errors
    /// When it cannot be read or parsed.
    pub fn read() -> Result<Self, HostError> {
        let [allocated, _unused, max] = sysctl_numbers("fs.file-nr")?;
        Ok(Self { allocated, max })
    }
}

/// CPU time of the whole host since boot, from `/proc/stat`, in steps of a tick (10 ms on most kernels).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineBusy {
    /// User, nice, system and interrupt time of all CPUs.
    pub busy_ns: u64,
    /// Time the hypervisor gave to others while a CPU here was ready to run: a result with much of it is doubtful.
    pub steal_ns: u64,
    /// Idle time of all CPUs, waiting for I/O included.
    pub idle_ns: u64,
}

impl MachineBusy {
    /// Reads `/proc/stat`.
    ///
    /// # Errors
    /// When it cannot be read or parsed.
    pub fn read() -> Result<Self, HostError> {
        Ok(Self::from_total(&procfs::KernelStats::current()?.total))
    }

    /// What was spent between `earlier` and this reading.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            busy_ns: self.busy_ns.saturating_sub(earlier.busy_ns),
            steal_ns: self.steal_ns.saturating_sub(earlier.steal_ns),
            // The kernel lets iowait, and so this sum, step backwards (proc_stat(5)).
            idle_ns: self.idle_ns.saturating_sub(earlier.idle_ns),
        }
    }

    fn from_total(cpu: &procfs::CpuTime) -> Self {
        // Guest time is already part of user and nice.
        let busy = [
            Some(cpu.user_duration()),
            Some(cpu.nice_duration()),
            Some(cpu.system_duration()),
        ]
        .into_iter()
        .chain([cpu.irq_duration(), cpu.softirq_duration()]);
        let idle = [Some(cpu.idle_duration()), cpu.iowait_duration()];
        Self {
            busy_ns: busy.flatten().map(nanoseconds).sum(),
            steal_ns: cpu.steal_duration().map_or(0, nanoseconds),
            idle_ns: idle.into_iter().flatten().map(nanoseconds).sum(),
        }
    }
}

/// The text of a sysctl, such as `net.ipv4.tcp_mem`, without the line end.
///
/// # Errors
/// When this kernel or network namespace does not have it.
pub fn sysctl(name: &str) -> Result<String, HostError> {
    Ok(read(sysctl_path(name))?.trim().to_owned())
}

/// A sysctl that is one number, such as `net.core.somaxconn`.
///
/// # Errors
/// When it cannot be read, or is not one number.
pub fn sysctl_u64(name: &str) -> Result<u64, HostError> {
    let [value] = sysctl_numbers(name)?;
    Ok(value)
}

/// `net.ipv4.tcp_mem` in pages: below the first nothing is regulated, from the second on there is pressure, and the
/// third is the maximum.
///
/// # Errors
/// When it cannot be read: a network namespace other than the host's does not have it.
pub fn tcp_mem_pages() -> Result<[u64; 3], HostError> {
    sysctl_numbers("net.ipv4.tcp_mem")
}

/// The ports the kernel chooses from, `net.ipv4.ip_local_port_range`.
///
/// # Errors
/// When it cannot be read or parsed.
pub fn ip_local_port_range() -> Result<RangeInclusive<u16>, HostError> {
    let name = "net.ipv4.ip_local_port_range";
    let [first, last] = sysctl_numbers(name)?;
    let port = |value: u64| {
        u16::try_from(value).map_err(|_| format_error(sysctl_path(name), format!("port {value}")))
    };
    Ok(port(first)?..=port(last)?)
}

/// The ports the kernel never chooses by itself, `net.ipv4.ip_local_reserved_ports`; an explicit bind may use them.
///
/// # Errors
/// When it cannot be read or parsed.
pub fn reserved_ports() -> Result<Vec<RangeInclusive<u16>>, HostError> {
    parse_port_list(&sysctl("net.ipv4.ip_local_reserved_ports")?)
}

/// `kernel.io_uring_disabled`: 0 allowed, 1 for privileged processes and `kernel.io_uring_group` only, 2 for nobody;
/// `None` before Linux 6.6, which has no such switch.
pub fn io_uring_disabled() -> Option<u32> {
    sysctl_u64("kernel.io_uring_disabled").ok()?.try_into().ok()
}

/// `8080,9000-9010` as ranges; an empty list is none.
fn parse_port_list(text: &str) -> Result<Vec<RangeInclusive<u16>>, HostError> {
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    items
        .map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            first
                .parse()
                .ok()
                .zip(last.parse().ok())
                .map(|(first, last)| first..=last)
                .ok_or_else(|| {
                    format_error(
                        sysctl_path("net.ipv4.ip_local_reserved_ports"),
                        format!("range {item:?}"),
                    )
                })
        })
        .collect()
}

/// A sysctl of exactly `N` numbers.
fn sysctl_numbers<const N: usize>(name: &str) -> Result<[u64; N], HostError> {
    let text = sysctl(name)?;
    let numbers: Option<Vec<u64>> = text
        .split_whitespace()
        .map(|word| word.parse().ok())
        .collect();
    let numbers = numbers.and_then(|numbers| <[u64; N]>::try_from(numbers).ok());
    numbers.ok_or_else(|| format_error(sysctl_path(name), format!("{text:?} is not {N} number(s)")))
}

fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

pub(crate) fn read(path: impl AsRef<Path>) -> Result<String, HostError> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|cause| {
        let refused = cause.kind() == io::ErrorKind::PermissionDenied;
        let hint = if refused {
            "; run this as root to have that figure"
        } else {
            ""
        };
        HostError::Read {
            path: path.to_owned(),
            cause,
            hint,
        }
    })
}

pub(crate) fn format_error(path: impl Into<PathBuf>, what: impl Into<String>) -> HostError {
    HostError::Format {
        path: path.into(),
        what: what.into(),
    }
}

/// 584 years fit.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use procfs::prelude::*;

    use super::*;

    const SOCKSTAT: &str = "sockets: used 10\nTCP: inuse 1 orphan 4 tw 131072 alloc 1926934 mem 170\n\
                            UDP: inuse 0 mem 0\nRAW: inuse 0\n";
    const SLABINFO: &str = "slabinfo - version: 2.1\n\
        # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit>\n\
        TCP  26 26 2368 13 8 : tunables 0 0 0 : slabdata 2 2 0\n\
        tw_sock_TCP  0 16 256 16 1 : tunables 0 0 0 : slabdata 1 1 0\n";

    #[test]
    fn sockstat_is_read_by_name_and_a_missing_field_is_an_error() {
        let expected = Sockstat {
            inuse: 1,
            orphan: 4,
            time_wait: 131_072,
            alloc: 1_926_934,
            mem_pages: 170,
        };
        assert_eq!(Sockstat::parse(SOCKSTAT).unwrap(), expected);
        assert_eq!(
            Sockstat::parse("TCP: mem 170 alloc 1926934 tw 131072 orphan 4 inuse 1").unwrap(),
            expected
        );
        let error = Sockstat::parse("TCP: inuse 1 orphan 4 alloc 3 mem 1")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/proc/net/sockstat") && error.contains("tw"),
            "{error}"
        );
        assert!(Sockstat::parse("sockets: used 10\n").is_err());
    }

    #[test]
    fn a_slab_cache_is_the_size_of_its_pages() {
        let caches = parse_slabinfo(SLABINFO, 4096).unwrap();
        let tcp = SlabCache {
            active_objs: 26,
            num_objs: 26,
            objsize_bytes: 2368,
            bytes: 2 * 8 * 4096,
        };
        assert_eq!(caches["TCP"], tcp);
        assert_eq!(caches["tw_sock_TCP"].bytes, 4096);
        assert!(parse_slabinfo("TCP 26 26", 4096).is_err());
    }

    #[test]
    fn reserved_ports_are_single_ports_and_ranges() {
        assert_eq!(
            parse_port_list("8080,9000-9010").unwrap(),
            vec![8080..=8080, 9000..=9010]
        );
        assert_eq!(parse_port_list("").unwrap(), vec![]);
        assert!(parse_port_list("70000").is_err());
    }

    #[test]
    fn busy_time_counts_interrupts_but_not_steal() {
        let text = "cpu  9270 0 1820 154884 130 0 19 9 0 0\ncpu0 1 0 0 0 0 0 0 0 0 0\nctxt 1\nbtime 1\nprocesses 1\n";
        let stats =
            procfs::KernelStats::from_read(text.as_bytes(), procfs::current_system_info()).unwrap();
        let tick_ns = 1_000_000_000 / procfs::ticks_per_second();
        let busy = MachineBusy::from_total(&stats.total);
        assert_eq!(busy.busy_ns, (9270 + 1820 + 19) * tick_ns);
        assert_eq!(busy.steal_ns, 9 * tick_ns);
        assert_eq!(busy.idle_ns, (154_884 + 130) * tick_ns);
        assert_eq!(
            busy.since(&busy),
            MachineBusy {
                busy_ns: 0,
                steal_ns: 0,
                idle_ns: 0
            }
        );
    }

    #[test]
    fn this_host_can_be_read_by_anybody() {
        let memory = Memory::read().unwrap();
        assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes);
        assert_eq!(
            memory.slab_bytes,
            memory.slab_reclaimable_bytes + memory.slab_unreclaimable_bytes
        );
        Sockstat::read().unwrap();
        assert!(Files::read().unwrap().allocated > 0);
        assert!(MachineBusy::read().unwrap().busy_ns > 0);
        assert!(sysctl_u64("net.core.somaxconn").unwrap() > 0);
        assert!(!ip_local_port_range().unwrap().is_empty());
        reserved_ports().unwrap();
        CgroupMemory::read();
        if let Err(error) = slab_by_cache() {
            assert!(error.to_string().contains("root"), "{error}");
        }
        let error = sysctl_u64("net.core.no_such_thing")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/proc/sys/net/core/no_such_thing"),
            "{error}"
        );
    }
}
