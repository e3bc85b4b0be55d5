//! What io_uring allows here, and what the limit of open files means for it.
//!
//! Pure.

use super::{About, Finding, Fix, Readings, Theme, Trials, Verdict, grouped};
use crate::setting::{Demand, Role};

/// CAP_IPC_LOCK of capabilities(7).
const CAP_IPC_LOCK: u32 = 14;

/// Buffers that the kernel may count as locked: those of one worker's rings.
const LOCKED_BYTES: u64 = 1 << 20;

pub(super) fn findings(readings: &Readings, trials: &Trials, demand: &Demand) -> Vec<Finding> {
    vec![
        ring(trials),
        table(trials, demand),
        releases(trials, readings, demand),
        open_files(trials, readings, demand),
        locked_memory(readings),
    ]
}

fn ring(trials: &Trials) -> Finding {
    let about = About::new(
        Theme::IoUring,
        "ring",
        "can be created",
        "without a ring the server falls back to epoll, and the client cannot run",
    );
    match &trials.ring {
        Ok(()) => about.pass("was created"),
        Err(why) => about.fail(
            why.clone(),
            Fix::new(
                "sysctl -w kernel.io_uring_disabled=0; in a container, allow io_uring_setup, io_uring_enter and io_uring_register",
                "kernel.io_uring_disabled = 0 in /etc/sysctl.d/90-throng.conf; throng-tune export has a seccomp profile",
            ),
        ),
    }
}

fn table(trials: &Trials, demand: &Demand) -> Finding {
    let connections = demand.connections;
    let about = About::new(
        Theme::IoUring,
        "direct descriptors",
        format!("tables for {}", grouped(connections)),
        "a connection in a table takes no file descriptor; a table has as many slots as the process may open files",
    );
    match &trials.table {
        Ok(slots) => {
            let tables = connections.div_ceil((*slots).max(1));
            let each = grouped(*slots);
            about.pass(match tables {
                1 => format!("one table of {each} slots holds them"),
                _ => format!("{} tables of {each} slots hold them", grouped(tables)),
            })
        }
        Err(why) if trials.ring.is_err() => about.unknown(why.clone()),
        Err(why) => about.fail(why.clone(), more_files(connections)),
    }
}

fn releases(trials: &Trials, readings: &Readings, demand: &Demand) -> Finding {
    let about = About::new(
        Theme::IoUring,
        "closing a descriptor",
        "closes its socket",
        "before Linux 6.13 a parked request keeps the sockets closed after it alive; a file descriptor is used for each \
         connection then",
    );
    let is_enough = readings
        .nofile_hard
        .is_none_or(|hard| hard > demand.connections);
    match &trials.releases {
        Ok(true) => about.pass("does"),
        Ok(false) => {
            let fix = more_files(demand.connections);
            let now = "does not, on this kernel";
            match is_enough {
                true => about.warn(now, fix),
                false => about.fail(now, fix),
            }
        }
        Err(why) => about.unknown(why.clone()),
    }
}

fn open_files(trials: &Trials, readings: &Readings, demand: &Demand) -> Finding {
    // Both ends are two processes.
    let wanted = demand.connections.saturating_add(1024);
    let about = About::new(
        Theme::IoUring,
        "open files of a process",
        format!("at least {}", grouped(wanted)),
        "an engine without direct descriptors, such as epoll, takes a file descriptor for each connection; with them it is \
         the size of a table",
    );
    let Some(hard) = readings.nofile_hard else {
        return about.unknown("/proc/self/limits does not tell");
    };
    let now = format!("hard limit {}", grouped(hard));
    if hard >= wanted {
        return about.pass(now);
    }
    let is_needed = trials.table.is_err() || trials.releases != Ok(true);
    let verdict = match is_needed {
        true => Verdict::Fail,
        false => Verdict::Warn,
    };
    let now = match (is_needed, demand.role) {
        (true, _) => now,
        (false, Role::Client) => format!("{now}; the client does without"),
        (false, _) => format!(
            "{now}; io_uring does without, epoll takes {} processes",
            grouped(wanted.div_ceil(hard.max(1)))
        ),
    };
    about.finding(verdict, now, Some(more_files(demand.connections)))
}

fn more_files(connections: u64) -> Fix {
    let files = connections + connections / 10 + 1024;
    Fix::new(
        format!(
            "ulimit -n {files} (as root), or prlimit --nofile={files} --pid PID; fs.nr_open must allow it"
        ),
        format!(
            "LimitNOFILE={files} in the unit of systemd, or * and root hard nofile {files} in /etc/security/limits.d"
        ),
    )
}

fn locked_memory(readings: &Readings) -> Finding {
    let about = About::new(
        Theme::IoUring,
        "locked memory",
        format!("at least {}", super::size(LOCKED_BYTES)),
        "registered buffers count against it (RLIMIT_MEMLOCK) for users without CAP_IPC_LOCK; a ring is refused with \
         ENOMEM",
    );
    if readings.has_capability(CAP_IPC_LOCK) {
        return about.pass("this user is not bound by it (CAP_IPC_LOCK)");
    }
    match readings.memlock_bytes {
        None => about.unknown("/proc/self/limits does not tell"),
        Some(u64::MAX) => about.pass("no limit"),
        Some(bytes) if bytes >= LOCKED_BYTES => about.pass(super::size(bytes)),
        Some(bytes) => about.warn(
            super::size(bytes),
            Fix::new(
                "prlimit --memlock=8388608 --pid PID (as root)",
                "LimitMEMLOCK=8M in the unit of systemd, or * hard memlock 8192 in /etc/security/limits.d",
            ),
        ),
    }
}
