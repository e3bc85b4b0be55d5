//! What is seen of a host and of some processes on it at one moment: the agent's samples, and the bench's own of its end.
//!
//! Reads `/proc` and `/sys`, and nothing of any other program. Invariant: a look lists nobody's open files (that would
//! leave an inode and a dentry in the slab for each of them) and is cheap, but for a close one, which is made seldom.

use std::collections::BTreeSet;
use std::fs;

use kernel_tuning::host::{
    Footprint, HostError, MachineBusy, Memory, NetCounters, Sockstat, interface_statistics,
};
use kernel_tuning::process::{Ksoftirqd, ProcessError, Usage};
use procfs::process::Process;
use procfs::{CpuInfo, Current};
use serde::{Deserialize, Serialize};

use crate::clock::{monotonic_ns, unix_now_ns};

/// More processes than these are not looked at ten times a second.
pub const MOST_PROCESSES: usize = 1_000;

/// What was seen at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// CLOCK_MONOTONIC of the host, as the look began.
    pub at_ns: u64,
    /// Nanoseconds since 1970 at the same moment, by the host's clock of day.
    pub unix_ns: u64,
    /// How long it took.
    pub took_ns: u64,
    /// Those processes, and their children, that were there.
    pub processes: Vec<Seen>,
    /// CPU time of `ksoftirqd` on all CPUs; `None` where it cannot be read.
    pub softirq_ns: Option<u64>,
    /// CPU time of the program that looked.
    pub own_cpu_ns: u64,
    /// CPU time of the whole machine since boot.
    pub machine: MachineBusy,
    /// Memory of the host.
    pub memory: Memory,
    /// TCP sockets.
    pub sockstat: Sockstat,
    /// What only a close look has.
    pub closely: Option<Closely>,
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its id.
    pub pid: u32,
    /// CPU time since it started.
    pub cpu_ns: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: Option<u64>,
    /// Open files, direct descriptors not among them; `None` where it cannot be read, and before Linux 6.2.
    pub open_files: Option<u64>,
}

/// What costs the host, or the processes, more than a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Closely {
    /// Resident memory of all processes together, shared pages counted once; only their user and root may read it.
    pub pss_bytes: Option<u64>,
    /// Network counters since boot; kept of the first close look and of the last.
    pub counters: NetCounters,
    /// Statistics of the interface that the other end is reached by.
    pub interface: Option<NetCounters>,
    /// The kernel's memory, the least of this close look and of those before it that count with it; its caches are kept of
    /// the last of these.
    pub footprint: Footprint,
}

/// Before `look`, a close one, follows `before`: has in it the least of what was seen since they count together, where it
/// counts with the close look before it, and takes from that one what only the last of them has to keep.
pub fn keep_least(before: &mut [Look], look: &mut Look, counts_with_it: bool) {
    let mut close = before.iter_mut().filter_map(|look| look.closely.as_mut());
    let (first, last) = (close.next(), close.next_back());
    let has_two = last.is_some();
    let Some((last, now)) = last.or(first).zip(look.closely.as_mut()) else {
        return;
    };
    if has_two {
        last.counters = NetCounters::default();
        last.interface = None;
    }
    if counts_with_it {
        now.footprint = last.footprint.clone().least(now.footprint.clone());
        last.footprint.caches = None;
    }
}

/// Looks at the same processes again and again.
#[derive(Debug)]
pub struct Observer {
    roots: Vec<u32>,
    softirq: Option<Ksoftirqd>,
    interface: Option<String>,
}

impl Observer {
    /// Of processes `roots` and their children on this host, which the other end is reached from by `interface`.
    pub fn new(roots: Vec<u32>, interface: Option<String>) -> Self {
        // All CPUs: a packet from outside is received wherever the interface's interrupts go.
        let cpus = CpuInfo::current().ok().map(|cpus| cpus.num_cores());
        let all = |cpus| Ksoftirqd::of(&(0..cpus).collect::<Vec<_>>());
        Self {
            roots,
            softirq: cpus.and_then(all),
            interface,
        }
    }

    /// What there is to be seen now.
    ///
    /// # Errors
    /// What to tell the user: a file of the host cannot be read, or there are too many processes.
    pub fn look(&self, closely: bool) -> Result<Look, String> {
        let (at_ns, unix_ns) = (monotonic_ns(), unix_now_ns());
        // The CPU time first, for it is what belongs to that moment.
        let pids = with_children(&self.roots)?;
        let processes: Vec<Seen> = pids.into_iter().filter_map(Seen::of).collect();
        let softirq_ns = self.softirq.as_ref().and_then(Ksoftirqd::cpu_ns);
        let read = |error: HostError| error.to_string();
        let mut look = Look {
            at_ns,
            unix_ns,
            took_ns: 0,
            softirq_ns,
            own_cpu_ns: Usage::of(std::process::id())
                .map_err(|error: ProcessError| error.to_string())?
                .cpu_ns,
            machine: MachineBusy::read().map_err(read)?,
            memory: Memory::read().map_err(read)?,
            sockstat: Sockstat::read().map_err(read)?,
            closely: None,
            processes,
        };
        if closely {
            look.closely = Some(self.closely(&look.processes).map_err(read)?);
        }
        look.took_ns = monotonic_ns() - at_ns;
        Ok(look)
    }

    fn closely(&self, processes: &[Seen]) -> Result<Closely, HostError> {
        let interface = self.interface.as_deref();
        Ok(Closely {
            pss_bytes: processes.iter().map(|seen| pss_bytes(seen.pid)).sum(),
            counters: NetCounters::read()?,
            interface: interface.and_then(|name| interface_statistics(name).ok()),
            footprint: Footprint::read()?,
        })
    }
}

impl Seen {
    /// `None` when it has ended.
    fn of(pid: u32) -> Option<Self> {
        let usage = Usage::of(pid).ok()?;
        let stat = Process::new(i32::try_from(pid).ok()?).and_then(|process| process.stat());
        // The size of the directory is the number of files (proc_pid_fd(5), since Linux 6.2); before, it is 0.
        let files = fs::metadata(format!("/proc/{pid}/fd")).map(|directory| directory.len());
        Some(Self {
            pid,
            cpu_ns: usage.cpu_ns,
            rss_bytes: usage.rss_bytes,
            threads: stat
                .ok()
                .and_then(|stat| u64::try_from(stat.num_threads).ok()),
            open_files: files.ok().filter(|count| *count > 0),
        })
    }
}

/// `roots` and all that descend from them, each once.
fn with_children(roots: &[u32]) -> Result<BTreeSet<u32>, String> {
    let mut all = BTreeSet::new();
    let mut open: Vec<u32> = roots.to_vec();
    while let Some(pid) = open.pop() {
        if all.insert(pid) {
            open.extend(children(pid));
        }
        if all.len() > MOST_PROCESSES {
            return Err(format!(
                "there are more than {MOST_PROCESSES} processes to look at: name one of them with --pid"
            ));
        }
    }
    Ok(all)
}

/// None of one that has ended, and on kernels without CONFIG_PROC_CHILDREN.
fn children(pid: u32) -> Vec<u32> {
    let process = i32::try_from(pid).ok().map(Process::new);
    let tasks = process.and_then(|process| process.ok()?.tasks().ok());
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| task.children().ok())
        .flatten()
        .collect()
}

/// From `/proc/PID/smaps_rollup` (proc_pid_smaps_rollup(5)).
fn pss_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_seen_with_its_children_until_it_ends() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let observer = Observer::new(vec![shell.id()], None);
        let look = observer.look(true).unwrap();
        assert_eq!(look.processes.len(), 2, "{look:?}");
        let closely = look.closely.unwrap();
        let rss_bytes: u64 = look.processes.iter().map(|seen| seen.rss_bytes).sum();
        assert!(closely.pss_bytes.unwrap() <= rss_bytes);
        let sleep = look.processes.iter().find(|seen| seen.pid != shell.id());
        let sleep = i32::try_from(sleep.unwrap().pid).unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(sleep),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        shell.kill().unwrap();
        shell.wait().unwrap();
        let later = observer.look(false).unwrap();
        assert_eq!(later.processes, []);
        assert!(later.closely.is_none() && later.at_ns > look.at_ns);
    }

    #[test]
    fn of_close_looks_that_count_together_the_last_has_the_least_and_all_that_is_large() {
        let observer = Observer::new(vec![std::process::id()], None);
        let look = |slab_pages_bytes| {
            let mut look = observer.look(true).unwrap();
            let footprint = &mut look.closely.as_mut().unwrap().footprint;
            footprint.slab_pages_bytes = slab_pages_bytes;
            footprint.caches = Some(Default::default());
            look
        };
        let mut looks = Vec::new();
        for (slab, counts_with_it) in [(20, false), (10, true), (30, true), (90, false), (50, true)]
        {
            let mut next = look(slab);
            keep_least(&mut looks, &mut next, counts_with_it);
            looks.push(next);
            looks.push(observer.look(false).unwrap());
        }
        let close: Vec<&Closely> = looks.iter().flat_map(|look| &look.closely).collect();
        let slab: Vec<u64> = close
            .iter()
            .map(|one| one.footprint.slab_pages_bytes)
            .collect();
        assert_eq!(slab, [20, 10, 10, 90, 50]);
        let has_caches = close.iter().map(|one| one.footprint.caches.is_some());
        assert!(has_caches.eq([false, false, true, false, true]));
        let has_counters = close.iter().map(|one| one.counters.iter().next().is_some());
        assert!(has_counters.eq([true, false, false, false, true]));
    }

    #[test]
    fn open_files_are_counted_without_being_listed() {
        let count = || Seen::of(std::process::id()).unwrap().open_files;
        let Some(before) = count() else { return };
        let held: Vec<_> = (0..500)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        // Other tests of this process open and close some.
        assert!(count().unwrap() > before + 400);
        drop(held);
    }
}
