//! What io_uring allows here, and what the limits of open files and of locked memory mean for it.
//!
//! Pure.

use ring::Unavailable;

use super::trials::LARGEST_TABLE;
use super::{About, Finding, Fix, Readings, Theme, Trials, Verdict, grouped, size};
use crate::setting::{Demand, Role};

/// Tables that a worker of the server makes at most.
const TABLES_OF_WORKER: u64 = 256;
/// Descriptors of a table: its ring, and what announces its completions.
const FILES_OF_TABLE: u64 = 2;
/// Descriptors beside the tables, of the process and of a worker, generously.
const FILES_OF_PROCESS: u64 = 16;
const FILES_OF_WORKER: u64 = 4;

pub(super) fn findings(readings: &Readings, trials: &Trials, demand: &Demand) -> Vec<Finding> {
    vec![
        ring(trials, readings, demand),
        table(trials, readings, demand),
        releases(trials, readings, demand),
        open_files(trials, readings, demand),
        locked_memory(trials, readings, demand),
    ]
}

fn ring(trials: &Trials, readings: &Readings, demand: &Demand) -> Finding {
    let about = About::new(
        Theme::IoUring,
        "ring",
        "can be created",
        "without a ring the server falls back to epoll, and the client cannot run",
    );
    match &trials.ring {
        Ok(()) => about.pass("was created"),
        Err(why @ Unavailable::NoMemory) => {
            about.fail(why.to_string(), more_locked(least_locked(readings, demand)))
        }
        Err(why) => about.fail(
            why.to_string(),
            Fix::new(
                "sysctl -w kernel.io_uring_disabled=0; in a container, allow io_uring_setup, io_uring_enter and io_uring_register",
                "kernel.io_uring_disabled = 0 in /etc/sysctl.d/90-throng.conf; throng-tune export has a seccomp profile",
            ),
        ),
    }
}

fn table(trials: &Trials, readings: &Readings, demand: &Demand) -> Finding {
    let connections = demand.connections;
    let about = About::new(
        Theme::IoUring,
        "direct descriptors",
        format!("tables for {}", grouped(connections)),
        "a connection in a table takes no file descriptor; a table has as many slots as the process may open files, and \
         takes two of them, and a worker of the server makes at most 256",
    );
    match &trials.table {
        Ok(slots) => {
            let tables = connections.div_ceil((*slots).max(1));
            let each = grouped(*slots);
            let most = most_tables(readings, demand);
            if tables > most {
                let held = grouped(most.saturating_mul(*slots));
                let now = format!("at most {} tables of {each} slots: {held}", grouped(most));
                return about.fail(now, more_files(connections));
            }
            about.pass(match tables {
                1 => format!("one table of {each} slots holds them"),
                _ => format!("{} tables of {each} slots hold them", grouped(tables)),
            })
        }
        Err(why) if trials.ring.is_err() => about.unknown(why.clone()),
        Err(why) => about.fail(why.clone(), more_files(connections)),
    }
}

/// One for each CPU, as server and client have them unless told otherwise.
fn workers(readings: &Readings) -> u64 {
    readings.cpus.unwrap_or(1).max(1)
}

/// Tables that a process can have, by its open files and its workers.
fn most_tables(readings: &Readings, demand: &Demand) -> u64 {
    let workers = workers(readings);
    let beside = FILES_OF_PROCESS + FILES_OF_WORKER * workers;
    let hard = readings.nofile_hard.unwrap_or(u64::MAX);
    let by_files = (hard.saturating_sub(beside) / FILES_OF_TABLE).max(workers);
    match demand.role {
        Role::Client => by_files,
        Role::Server | Role::Both => by_files.min(workers.saturating_mul(TABLES_OF_WORKER)),
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

/// What the rings of all workers take of RLIMIT_MEMLOCK at least; both ends here are two processes of one user.
fn least_locked(readings: &Readings, demand: &Demand) -> u64 {
    let workers = workers(readings);
    let of_worker = demand.connections.div_ceil(workers).max(1);
    let most = readings.nofile_hard.unwrap_or(LARGEST_TABLE);
    let most = most.clamp(1, LARGEST_TABLE);
    let locked = |slots: u64| {
        let ring = ring::Config {
            table_slots: slots as u32,
            ..ring::Config::default()
        };
        let tables = workers.saturating_mul(of_worker.div_ceil(slots));
        tables.saturating_mul(ring.queue_bytes(demand.page_bytes))
    };
    // A client knows how many it will have, and makes no larger table.
    let (server, client) = (locked(most), locked(most.min(of_worker)));
    match demand.role {
        Role::Server => server,
        Role::Client => client,
        Role::Both => server.saturating_add(client),
    }
}

fn locked_memory(trials: &Trials, readings: &Readings, demand: &Demand) -> Finding {
    let least = least_locked(readings, demand);
    let about = About::new(
        Theme::IoUring,
        "locked memory",
        format!("at least {} for {} workers", size(least), workers(readings)),
        "the queues of all rings of a user without CAP_IPC_LOCK are charged to it (RLIMIT_MEMLOCK), by Linux before 5.12 \
         and since 6.14, and each table has a ring; one that does not fit is refused with ENOMEM. A takeover needs twice as \
         much",
    );
    match (&trials.is_charged, readings.memlock_bytes) {
        (Ok(false), _) => {
            about.pass("rings are not charged to it: by this kernel, or with CAP_IPC_LOCK")
        }
        (Err(why), _) => about.unknown(why.clone()),
        (Ok(true), None) => about.unknown("/proc/self/limits does not tell"),
        (Ok(true), Some(u64::MAX)) => about.pass("no limit"),
        (Ok(true), Some(bytes)) if bytes >= least => about.pass(size(bytes)),
        (Ok(true), Some(bytes)) => about.fail(size(bytes), more_locked(least)),
    }
}

/// Twice the least, so that a takeover has room.
fn more_locked(least_bytes: u64) -> Fix {
    let bytes = least_bytes.saturating_mul(2);
    let kib = bytes / 1024;
    Fix::new(
        format!("prlimit --memlock={bytes} --pid PID (as root); ulimit -l shows it in KiB"),
        format!(
            "LimitMEMLOCK={bytes} in the unit of systemd, or * hard and soft memlock {kib} in /etc/security/limits.d"
        ),
    )
}
