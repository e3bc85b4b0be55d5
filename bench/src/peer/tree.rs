//! The processes below a process: who they are, and what they use together. Reads `/proc` only.
//!
//! They are found by `/proc/PID/task/TID/children` (Linux 3.5, CONFIG_PROC_CHILDREN), which is as cheap as the tree is
//! small, so that following a peer costs about what following an engine does.

use kernel_tuning::process::{ProcessError, Usage};
use procfs::process::Process;

/// The processes that descend from process `root`, without itself.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut unseen = vec![root];
    while let Some(pid) = unseen.pop() {
        let children = children(pid);
        unseen.extend(&children);
        found.extend(children);
    }
    found
}

/// What the descendants of process `root` use. CPU time is also that of those that ended and were waited for, which the
/// kernel tells in steps of 10 ms; of those still there it is exact.
///
/// # Errors
/// [`ProcessError::Gone`] when none is left.
pub fn usage(root: u32) -> Result<Usage, ProcessError> {
    let mut sum = Usage {
        rss_bytes: 0,
        cpu_ns: ended_cpu_ns(root),
    };
    let mut any = false;
    for pid in descendants(root) {
        // One that ended since is in its parent's account from the next look on.
        if let Ok(usage) = Usage::of(pid) {
            any = true;
            sum.rss_bytes += usage.rss_bytes;
            sum.cpu_ns += usage.cpu_ns + ended_cpu_ns(pid);
        }
    }
    any.then_some(sum).ok_or(ProcessError::Gone { pid: root })
}

/// Empty when the process has ended.
fn children(pid: u32) -> Vec<u32> {
    let process = i32::try_from(pid).ok().map(Process::new);
    let Some(Ok(tasks)) = process.and_then(Result::ok).map(|process| process.tasks()) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| task.children().ok())
        .flatten()
        .collect()
}

/// CPU time of the children of `pid` that ended and were waited for, and of theirs.
fn ended_cpu_ns(pid: u32) -> u64 {
    let process = i32::try_from(pid).ok().map(Process::new);
    let stat = process.and_then(Result::ok).map(|process| process.stat());
    let Some(Ok(stat)) = stat else { return 0 };
    let ticks = u64::try_from(stat.cutime + stat.cstime).unwrap_or(0);
    ticks * (1_000_000_000 / procfs::ticks_per_second().max(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_tree_is_followed_to_its_leaves_and_what_ended_in_it_is_counted() {
        let work = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let script =
            format!("sh -c 'echo $$; {work}'; sh -c 'sleep 60 & echo $!; wait' & echo $!; wait");
        let mut shell = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let pids: Vec<u32> = lines
            .take(3)
            .map(|line| line.unwrap().parse().unwrap())
            .collect();
        let found = descendants(shell.id());
        let used = usage(shell.id()).unwrap();
        for pid in &found {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(*pid as i32),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = shell.kill();
        shell.wait().unwrap();
        // The first has ended; the others are a shell and what it waits for.
        assert!(!found.contains(&pids[0]), "{found:?} {pids:?}");
        assert!(
            pids[1..].iter().all(|pid| found.contains(pid)),
            "{found:?} {pids:?}"
        );
        assert!(used.cpu_ns >= 10_000_000 && used.rss_bytes > 0, "{used:?}");
        assert!(usage(shell.id()).is_err());
    }
}
