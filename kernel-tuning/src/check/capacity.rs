//! What every connection takes a share of: memory, the group's memory, open files, queued data.
//!
//! Pure, and cheap enough for a program that starts.

use super::{About, Finding, Fix, Readings, Theme, grouped, size};
use crate::limit::SOCKET_BYTES;
use crate::setting::Demand;

/// CAP_SYS_ADMIN of capabilities(7): the kernel does not hold it to `fs.file-max` (proc_sys_fs(5)).
const CAP_SYS_ADMIN: u32 = 21;

pub(super) fn findings(readings: &Readings, demand: &Demand) -> Vec<Finding> {
    vec![
        memory(readings, demand),
        group_memory(readings, demand),
        open_files(readings, demand),
        queued_data(readings),
    ]
}

fn memory(readings: &Readings, demand: &Demand) -> Finding {
    let sockets = demand.sockets();
    let idle_bytes = sockets.saturating_mul(SOCKET_BYTES);
    let closing_bytes = sockets.saturating_mul(demand.page_bytes);
    let about = About::new(
        Theme::Capacity,
        "memory",
        format!(
            "at least {} for {} sockets",
            size(idle_bytes),
            grouped(sockets)
        ),
        format!(
            "the kernel holds {SOCKET_BYTES} bytes for a socket that does nothing, and a page more for each that has data \
             queued, as all have in a broadcast or a mass close"
        ),
    );
    let Some(memory) = readings.memory else {
        return about.unknown("/proc/meminfo does not tell what is available");
    };
    let now = format!("{} available", size(memory.available_bytes));
    let ends = (sockets / demand.connections.max(1)).max(1);
    let fits = memory.available_bytes / (SOCKET_BYTES * ends);
    if memory.available_bytes < idle_bytes {
        let fewer = format!("end other work, or hold {} connections", grouped(fits));
        return about.fail(
            now,
            Fix::new(fewer, "more memory, or the two ends on different hosts"),
        );
    }
    match memory.available_bytes < idle_bytes.saturating_add(closing_bytes) {
        true => about.warn(
            now,
            Fix::new(
                "spread broadcasts and closes over time",
                "more memory, or a bound of net.ipv4.tcp_mem",
            ),
        ),
        false => about.pass(now),
    }
}

fn group_memory(readings: &Readings, demand: &Demand) -> Finding {
    // The other end may be of another group.
    let needed_bytes = demand.connections.saturating_mul(SOCKET_BYTES);
    let about = About::new(
        Theme::Capacity,
        "control group's memory",
        format!("no limit, or {} left", size(needed_bytes)),
        "sockets and their slab are charged to the group; at its limit the kernel kills a process of it",
    );
    let Some(group) = readings.cgroup else {
        return about.pass("no limit is known");
    };
    let left_bytes = group.limit_bytes.saturating_sub(group.used_bytes);
    let now = format!("{} left of {}", size(left_bytes), size(group.limit_bytes));
    let limit_bytes = group
        .used_bytes
        .saturating_add(needed_bytes)
        .saturating_add(needed_bytes / 4);
    match left_bytes < needed_bytes {
        true => about.fail(
            now,
            Fix::new(
                format!("systemctl set-property --runtime UNIT MemoryMax={limit_bytes}, or docker update --memory"),
                format!("MemoryMax={limit_bytes} in the unit of systemd, or --memory of the container"),
            ),
        ),
        false => about.pass(now),
    }
}

fn open_files(readings: &Readings, demand: &Demand) -> Finding {
    let sockets = demand.sockets();
    let about = About::new(
        Theme::Capacity,
        "open files of the host",
        format!("{} left", grouped(sockets)),
        "every socket is an open file of the host, direct descriptors too; at fs.file-max each open fails with ENFILE, for \
         all users but root",
    );
    let text = match readings.sysctl("fs.file-nr") {
        Ok(text) => text,
        Err(why) => return about.unknown(why),
    };
    let numbers: Vec<u64> = text
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [allocated, _, max] = numbers[..] else {
        return about.unknown(format!("fs.file-nr is {text:?}"));
    };
    let left = max.saturating_sub(allocated);
    let now = format!("{} left of {}", grouped(left), grouped(max));
    if left >= sockets {
        return about.pass(now);
    }
    let enough = allocated
        .saturating_add(sockets)
        .saturating_add(sockets / 10 + 100_000);
    let fix = Fix::sysctl("fs.file-max", enough);
    match readings.has_capability(CAP_SYS_ADMIN) {
        true => about.warn(format!("{now}; this user is not bound by it"), fix),
        false => about.fail(now, fix),
    }
}

fn queued_data(readings: &Readings) -> Finding {
    let about = About::new(
        Theme::Capacity,
        "queued TCP data",
        "below the pressure mark of net.ipv4.tcp_mem",
        "above the mark every connection's buffers are squeezed, at the maximum connections are reset",
    );
    let Some(sockstat) = readings.sockstat else {
        return about.unknown("/proc/net/sockstat does not tell");
    };
    let marks = match readings.sysctl("net.ipv4.tcp_mem") {
        Ok(marks) => marks,
        Err(why) => return about.unknown(why),
    };
    let Some(pressure) = marks
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok())
    else {
        return about.unknown(format!("net.ipv4.tcp_mem is {marks:?}"));
    };
    let pages = sockstat.mem_pages;
    let now = format!("{} of {} pages", grouped(pages), grouped(pressure));
    match pages < pressure {
        true => about.pass(now),
        false => about.warn(
            now,
            Fix::new(
                "find who does not read: ss -tm; or wait until sockets that are closing have ended",
                "bound each connection (tcp_rmem, tcp_wmem), or raise net.ipv4.tcp_mem",
            ),
        ),
    }
}
