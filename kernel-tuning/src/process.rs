//! One process: its open-file limit, the CPUs of a thread, what it uses, and its place in the queue of the OOM killer;
//! and the kernel's own threads for softirq work.
//!
//! Reads any process; changes only the calling one.

use std::time::Duration;
use std::{fs, io};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::time::ClockId;
use nix::unistd::Pid;
use procfs::ProcError;
use procfs::process::Process;
use serde::{Deserialize, Serialize};

/// Why something about a process could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process has ended, or never was.
    #[error(
        "process {pid} has ended: see its own output for the reason, and the kernel log (dmesg) for the OOM killer"
    )]
    Gone {
        /// Its id.
        pid: u32,
    },
    /// A file of the process could not be read or parsed.
    #[error("cannot read the memory of process {pid}: {source}")]
    Read {
        /// Its id.
        pid: u32,
        /// What `/proc` answered.
        source: ProcError,
    },
    /// The kernel refused a call.
    #[error("cannot {what}: {errno}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the kernel answered.
        errno: Errno,
    },
    /// A thread was to run on a CPU that it may not use.
    #[error(
        "cannot run on CPU {cpu}: this process may use CPUs {allowed:?} only (see taskset -p, or the container's cpuset)"
    )]
    NoSuchCpu {
        /// The CPU asked for.
        cpu: usize,
        /// The CPUs of the thread's mask.
        allowed: Vec<usize>,
    },
}

/// The limit on open file descriptors of a process, RLIMIT_NOFILE (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nofile {
    /// What is enforced now.
    pub soft: u64,
    /// What an unprivileged process may raise it to.
    pub hard: u64,
}

impl Nofile {
    /// The limit of this process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read() -> Result<Self, ProcessError> {
        let limit = getrlimit(Resource::RLIMIT_NOFILE);
        let (soft, hard) =
            limit.map_err(|errno| refused("read the open-file limit (RLIMIT_NOFILE)", errno))?;
        Ok(Self { soft, hard })
    }
}

/// Raises this process's soft open-file limit to the hard one, and says what it is now.
///
/// # Errors
/// When the kernel refuses, which it does when the hard limit lies above `fs.nr_open`.
pub fn raise_nofile() -> Result<Nofile, ProcessError> {
    let Nofile { soft, hard } = Nofile::read()?;
    if soft < hard {
        let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        raised.map_err(|errno| {
            refused(
                format!("raise the open-file limit from {soft} to {hard}"),
                errno,
            )
        })?;
    }
    Ok(Nofile { soft: hard, hard })
}

/// The CPUs the calling thread may run on, in order.
///
/// # Errors
/// When the kernel refuses, which it does on hosts of more than 1,024 CPUs.
pub fn affinity() -> Result<Vec<usize>, ProcessError> {
    let mask = sched_getaffinity(Pid::from_raw(0))
        .map_err(|errno| refused("read this thread's CPUs", errno))?;
    Ok((0..CpuSet::count())
        .filter(|cpu| mask.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// Lets the calling thread run on `cpu` only.
///
/// # Errors
/// When `cpu` is not among the thread's CPUs, or the kernel refuses.
pub fn pin_current_thread(cpu: usize) -> Result<(), ProcessError> {
    let allowed = affinity()?;
    if !allowed.contains(&cpu) {
        return Err(ProcessError::NoSuchCpu { cpu, allowed });
    }
    let mut mask = CpuSet::new();
    let pinned = mask
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &mask));
    pinned.map_err(|errno| refused(format!("pin this thread to CPU {cpu}"), errno))
}

/// How long the calling thread has waited to run while others had its CPU: the second figure of
/// `/proc/thread-self/schedstat` (the kernel's `sched-stats.rst`). None where the kernel does not tell.
pub fn run_delay() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let ns = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(ns))
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Resident memory of the process, `VmRSS`; memory the kernel holds for it, such as sockets, is not in it.
    pub rss_bytes: u64,
    /// CPU time, user and system, of all its threads since it started, those that ended included.
    pub cpu_ns: u64,
}

impl Usage {
    /// Reads what process `pid` uses; any user may ask about any process.
    ///
    /// The CPU time is that of the process's CPU clock (clock_getcpuclockid(3)), which the scheduler keeps in
    /// nanoseconds. The user and system time of `/proc/PID/stat` count in steps of 10 ms, too coarse for a server that
    /// works for a few milliseconds a second, and the sum of `/proc/PID/task/*/schedstat` loses the time of every
    /// thread that ends. A thread that is running now may lack its latest tick of at most 10 ms in any of the three.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] when the process has ended, also when its parent has not yet waited for it.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let gone = || ProcessError::Gone { pid };
        let raw = i32::try_from(pid).map_err(|_| gone())?;
        let cpu_ns = cpu_ns(raw).map_err(|errno| match errno {
            Errno::ESRCH | Errno::EINVAL => gone(),
            errno => refused(format!("read the CPU time of process {pid}"), errno),
        })?;
        let status = Process::new(raw).and_then(|process| process.status());
        let status = status.map_err(|source| or_gone(pid, source))?;
        // A process that ended and waits for its parent has no memory, and no such line.
        let rss_kib = status.vmrss.ok_or_else(gone)?;
        Ok(Self {
            rss_bytes: rss_kib * 1024,
            cpu_ns,
        })
    }
}

/// Memory of a process, and of the kernel for its address space. What the kernel holds for it otherwise, such as sockets, is
/// not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Resident memory, `VmRSS`; pages that several processes share are in each one's.
    pub rss_bytes: u64,
    /// The same with the share of each page that falls to this process, `Pss` of `smaps_rollup` (since Linux 4.14); `None`
    /// where it may not be read, as that of another user's process.
    pub pss_bytes: Option<u64>,
    /// Its page tables, `VmPTE`.
    pub page_tables_bytes: u64,
}

impl ProcessMemory {
    /// Reads that of process `pid`. The kernel walks all of its mappings for this: not to be done often.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] when the process has ended.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let gone = || ProcessError::Gone { pid };
        let process = i32::try_from(pid)
            .map_err(|_| gone())
            .and_then(|raw| Process::new(raw).map_err(|source| or_gone(pid, source)))?;
        let status = process.status().map_err(|source| or_gone(pid, source))?;
        let rollup = process.smaps_rollup().ok();
        let pss_bytes = rollup.and_then(|rollup| {
            let maps = rollup.memory_map_rollup.0;
            maps.first()?.extension.map.get("Pss").copied()
        });
        Ok(Self {
            rss_bytes: status.vmrss.ok_or_else(gone)? * 1024,
            pss_bytes,
            page_tables_bytes: status.vmpte.unwrap_or(0) * 1024,
        })
    }

    /// That of two processes together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            rss_bytes: self.rss_bytes + other.rss_bytes,
            pss_bytes: self
                .pss_bytes
                .zip(other.pss_bytes)
                .map(|(one, other)| one + other),
            page_tables_bytes: self.page_tables_bytes + other.page_tables_bytes,
        }
    }
}

/// The kernel threads `ksoftirqd/N` of some CPUs.
///
/// A packet on loopback is received in a softirq on its sender's CPU, and the time goes to whoever runs there. What a
/// softirq does not finish soon is left to this thread, so under load a part of the work of every connection is charged
/// to no process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ksoftirqd {
    pids: Vec<i32>,
}

impl Ksoftirqd {
    /// Finds the threads of `cpus`; `None` unless each can be seen, as in a PID namespace, or where `/proc` hides the
    /// processes of others (hidepid).
    pub fn of(cpus: &[usize]) -> Option<Self> {
        /// The parent of all kernel threads; a process of a user may give itself any name.
        const KTHREADD: i32 = 2;
        let names: Vec<String> = cpus.iter().map(|cpu| format!("ksoftirqd/{cpu}")).collect();
        let threads = procfs::process::all_processes().ok()?.flatten();
        let pids: Vec<i32> = threads
            .filter_map(|process| process.stat().ok())
            .filter(|stat| stat.ppid == KTHREADD && names.contains(&stat.comm))
            .map(|stat| stat.pid)
            .collect();
        (pids.len() == cpus.len()).then_some(Self { pids })
    }

    /// CPU time of all of them since boot, by the same clock as [`Usage::of`]; `None` when it cannot be read.
    pub fn cpu_ns(&self) -> Option<u64> {
        self.pids.iter().map(|pid| cpu_ns(*pid).ok()).sum()
    }
}

/// Asks the OOM killer to take this process before any other: a load test must not cost the host its other work.
///
/// # Errors
/// When `/proc/self/oom_score_adj` cannot be written; the process runs on as well, so this may be ignored.
pub fn prefer_oom_kill() -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", "1000")
}

/// Whether the kernel holds this process to `fs.file-max`; with CAP_SYS_ADMIN it does not (proc_sys_fs(5)).
///
/// # Errors
/// When `/proc/self/status` cannot be read.
pub fn is_bound_by_file_max() -> Result<bool, ProcessError> {
    /// capabilities(7).
    const CAP_SYS_ADMIN: u32 = 21;
    Ok(!has_capability(CAP_SYS_ADMIN)?)
}

/// The soft limit on locked memory of this process, RLIMIT_MEMLOCK; none where it does not bind: there is none, this process
/// has CAP_IPC_LOCK, or the kernel does not tell.
pub fn memlock_bytes() -> Option<u64> {
    /// capabilities(7).
    const CAP_IPC_LOCK: u32 = 14;
    let (soft, _hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    // Without descriptors /proc is closed, and the limit is told as if it bound.
    let is_bound = !has_capability(CAP_IPC_LOCK).unwrap_or(false);
    (is_bound && soft != RLIM_INFINITY).then_some(soft)
}

fn has_capability(number: u32) -> Result<bool, ProcessError> {
    let status = Process::myself().and_then(|process| process.status());
    let status = status.map_err(|source| ProcessError::Read {
        pid: std::process::id(),
        source,
    })?;
    Ok(status.capeff >> number & 1 == 1)
}

fn or_gone(pid: u32, source: ProcError) -> ProcessError {
    match source {
        ProcError::NotFound(_) => ProcessError::Gone { pid },
        source => ProcessError::Read { pid, source },
    }
}

fn refused(what: impl Into<String>, errno: Errno) -> ProcessError {
    ProcessError::Refused {
        what: what.into(),
        errno,
    }
}

/// By the CPU clock of process `pid`, which is never negative.
fn cpu_ns(pid: i32) -> Result<u64, Errno> {
    let time = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).and_then(ClockId::now)?;
    Ok(u64::try_from(std::time::Duration::from(time).as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;
    use std::sync::{Arc, Barrier};
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_waits_while_another_has_its_cpu() {
        if run_delay().is_none() {
            return;
        }
        let cpu = affinity().unwrap()[0];
        let together = Arc::new(Barrier::new(2));
        let spinners = [(); 2].map(|()| {
            let together = Arc::clone(&together);
            thread::spawn(move || {
                pin_current_thread(cpu).unwrap();
                let before = run_delay().unwrap();
                together.wait();
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(200) {}
                run_delay().unwrap() - before
            })
        });
        let waited: Duration = spinners
            .map(|spinner| spinner.join().unwrap())
            .into_iter()
            .sum();
        assert!(waited >= Duration::from_millis(100), "{waited:?}");
    }

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let raised = raise_nofile().unwrap();
        assert_eq!(raised.soft, raised.hard);
        assert_eq!(Nofile::read().unwrap(), raised);
    }

    #[test]
    fn a_thread_is_pinned_alone_and_only_where_it_may_run() {
        let before = affinity().unwrap();
        let last = *before.last().unwrap();
        let pinned = std::thread::spawn(move || {
            pin_current_thread(last).unwrap();
            affinity().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), vec![last]);
        assert_eq!(affinity().unwrap(), before);
        let error = pin_current_thread(last + 1000).unwrap_err().to_string();
        assert!(
            error.contains(&format!("CPU {}", last + 1000)) && error.contains("only"),
            "{error}"
        );
    }

    #[test]
    fn cpu_time_grows_finer_than_a_tick_and_keeps_the_time_of_ended_threads() {
        let me = std::process::id();
        let before = Usage::of(me).unwrap();
        assert!(before.rss_bytes > 4096 && before.cpu_ns > 0);
        let work = || (0..20_000_000_u64).fold(1, |sum, step| std::hint::black_box(sum ^ step));
        std::thread::spawn(work).join().unwrap();
        let after = Usage::of(me).unwrap();
        assert!(after.cpu_ns - before.cpu_ns > 1_000_000);
        assert_ne!(after.cpu_ns % 10_000_000, 0);
    }

    #[test]
    fn a_process_of_ones_own_tells_its_share_of_what_it_shares() {
        let me = ProcessMemory::of(std::process::id()).unwrap();
        assert!(me.rss_bytes > 4_096 && me.page_tables_bytes >= 4_096);
        // Code of libraries is shared.
        let pss_bytes = me.pss_bytes.unwrap();
        assert!(
            pss_bytes > 0 && pss_bytes <= me.rss_bytes + (4 << 20),
            "{me:?}"
        );
        let two = me.plus(ProcessMemory {
            pss_bytes: None,
            ..me
        });
        assert_eq!((two.rss_bytes, two.pss_bytes), (2 * me.rss_bytes, None));
        assert!(matches!(
            ProcessMemory::of(u32::MAX),
            Err(ProcessError::Gone { .. })
        ));
    }

    #[test]
    fn softirq_threads_are_those_of_the_cpus_asked_for_or_none() {
        let cpus = affinity().unwrap();
        // A container does not see them.
        if let Some(all) = Ksoftirqd::of(&cpus) {
            let each = cpus
                .iter()
                .map(|cpu| Ksoftirqd::of(&[*cpu]).unwrap().cpu_ns().unwrap());
            let before: u64 = each.sum();
            assert!(before > 0 && all.cpu_ns().unwrap() >= before);
        }
        assert_eq!(Ksoftirqd::of(&[1 << 20]), None);
        assert_eq!(Ksoftirqd::of(&[]).unwrap().cpu_ns(), Some(0));
    }

    #[test]
    fn a_process_that_ended_is_gone_before_and_after_its_parent_waits() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(Usage::of(child.id()).is_ok());
        child.kill().unwrap();
        let dead = || matches!(Usage::of(child.id()), Err(ProcessError::Gone { .. }));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !dead() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(dead());
        let pid = child.id();
        child.wait().unwrap();
        assert!(matches!(Usage::of(pid), Err(ProcessError::Gone { .. })));
    }
}
