//! One rule for each family of failures: from the facts of the moment to a diagnosis with its numbers and commands.
//!
//! Pure, like its parent. A rule blames a limit only on evidence: a counter that grew during the run, a figure at its
//! maximum, or an errno that has one meaning at that step.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{Context, Diagnosis, Evidence, Limit, Step};
use crate::process::Nofile;

pub(super) fn ephemeral_ports(context: &Context, evidence: &Evidence) -> Diagnosis {
    let mut sources = counted(context.sources, "source address", "source addresses");
    if context.destinations > 1 {
        sources = format!("{sources} x {} destinations", context.destinations);
    }
    let pairs = context.sources.saturating_mul(context.destinations);
    let allowed = |ports: u64| {
        let all = ports.saturating_mul(pairs);
        let towards = if context.destinations > 1 {
            "in all"
        } else {
            "to one destination"
        };
        format!("{ports} ports x {sources} allow {all} connections {towards}")
    };
    let add = match context.address {
        Some(address) if !address.ip().is_loopback() => {
            "add sources (--source; the other side needs a route back to them)"
        }
        _ => "add sources (--source 127.1.0.0/16)",
    };
    let lingering = evidence
        .sockstat
        .map(|tcp| tcp.time_wait)
        .filter(|sockets| *sockets > 0)
        .map(|sockets| format!("{sockets} sockets in TIME_WAIT hold a port for a minute each"));
    let reserved = || reserved_ports(evidence);
    let shown = |facts: Vec<Option<String>>| {
        let facts: Vec<String> = facts.into_iter().flatten().collect();
        (!facts.is_empty()).then(|| facts.join("; "))
    };
    let limit = Limit::EphemeralPorts;

    if let Some(ports) = context.source_ports {
        let rest = match context.established < ports.saturating_mul(pairs) {
            true => format!(
                ", {} are established and another socket holds the next",
                context.established
            ),
            false => String::new(),
        };
        return Diagnosis::new(limit, allowed(ports) + &rest, add)
            .now(shown(vec![reserved(), lingering]));
    }
    let Some(range) = &evidence.port_range else {
        return Diagnosis::new(limit, format!("no port is left for {sources}"), add).now(lingering);
    };
    let is_reserved = |port: &u16| {
        evidence
            .reserved_ports
            .iter()
            .any(|range| range.contains(port))
    };
    let ports = range.clone().filter(|port| !is_reserved(port)).count();
    let value = format!(
        "net.ipv4.ip_local_port_range = {} {}",
        range.start(),
        range.end()
    );
    let diagnosis = |advice: String| {
        Diagnosis::new(limit, allowed(ports as u64), advice).now(shown(vec![
            Some(value),
            reserved(),
            lingering,
        ]))
    };
    match *range.start() <= 1024 && *range.end() == u16::MAX {
        true => diagnosis(add.to_owned()),
        false => diagnosis(format!("{add} or widen"))
            .command("sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\""),
    }
}

fn reserved_ports(evidence: &Evidence) -> Option<String> {
    let ranges = &evidence.reserved_ports;
    let ports: usize = ranges.iter().map(ExactSizeIterator::len).sum();
    (ports > 0).then(|| format!("net.ipv4.ip_local_reserved_ports reserves {ports}"))
}

pub(super) fn source_address(context: &Context) -> Diagnosis {
    let source = context
        .source
        .or(context.address.map(|address| address.ip()));
    let name = source.map_or_else(|| "the address".to_owned(), |ip| ip.to_string());
    let text = format!("{name} is not configured here");
    let diagnosis =
        |advice, command| Diagnosis::new(Limit::SourceAddress, text, advice).command(command);
    let Some(source) = source else {
        return diagnosis("see which are", "ip -brief addr".to_owned());
    };
    let (ip, bits) = match source {
        IpAddr::V4(_) => ("ip", 32),
        IpAddr::V6(_) => ("ip -6", 128),
    };
    let all = "make all of them local (as root)";
    match context.source_networks.as_slice() {
        [] => {
            let interface = context.source_interface.as_deref().unwrap_or("lo");
            let command = format!("ip addr add {source}/{bits} dev {interface}");
            diagnosis("add it (as root)", command)
        }
        [network] => diagnosis(all, format!("{ip} route add local {network} dev lo")),
        networks => {
            let networks = networks.join(" ");
            let command =
                format!("for net in {networks}; do {ip} route add local $net dev lo; done");
            diagnosis(all, command)
        }
    }
}

pub(super) fn address_in_use(context: &Context) -> Diagnosis {
    let (name, command) = context.address.map_or_else(
        || ("the address".to_owned(), "ss -ltnp".to_owned()),
        |address| {
            (
                address.to_string(),
                format!("ss -ltnp 'sport = :{}'", address.port()),
            )
        },
    );
    let advice =
        "choose another port, share it (--reuse-port in every server on it), or see who holds it";
    Diagnosis::new(
        Limit::AddressInUse,
        format!("something listens on {name} already"),
        advice,
    )
    .command(command)
}

pub(super) fn open_files(context: &Context, evidence: &Evidence) -> Diagnosis {
    let (text, instead) = match context.step {
        Step::IoUring => (
            "no descriptor is left for a ring, or its table would be larger than the limit"
                .to_owned(),
            "ask for fewer connections",
        ),
        _ => (
            format!(
                "no descriptor is left, with {} established",
                context.established
            ),
            "use io_uring, whose direct descriptors need none, or more processes",
        ),
    };
    let diagnosis = |advice: String| Diagnosis::new(Limit::OpenFiles, text, advice);
    match evidence.nofile {
        None => diagnosis("raise it".to_owned()).command("ulimit -n \"$(ulimit -Hn)\""),
        Some(nofile) if nofile.soft < nofile.hard => diagnosis("raise it".to_owned())
            .command(format!("ulimit -n {}", nofile.hard))
            .now(shown(nofile)),
        Some(nofile) => {
            let ceiling = evidence.nr_open.unwrap_or(DEFAULT_NR_OPEN).max(nofile.hard);
            let advice =
                format!("{instead}, or raise the hard limit (as root; LimitNOFILE= in systemd)");
            diagnosis(advice)
                .command(format!("ulimit -n {ceiling}"))
                .now(shown(nofile))
        }
    }
}

fn shown(nofile: Nofile) -> String {
    format!("nofile soft {}, hard {}", nofile.soft, nofile.hard)
}

/// `fs.nr_open` of a stock kernel.
const DEFAULT_NR_OPEN: u64 = 1 << 20;

pub(super) fn host_open_files(evidence: &Evidence) -> Diagnosis {
    let text = "the host has no open file to spare";
    let diagnosis = Diagnosis::new(Limit::HostOpenFiles, text, "raise it (as root)");
    match evidence.files {
        Some(files) => diagnosis
            .now(format!(
                "fs.file-max = {}, {} open",
                files.max, files.allocated
            ))
            .command(format!(
                "sysctl -w fs.file-max={}",
                files.max.saturating_mul(2)
            )),
        None => diagnosis.command("sysctl fs.file-nr fs.file-max"),
    }
}

pub(super) fn memory(errno: Errno, context: &Context, evidence: &Evidence) -> Diagnosis {
    if let Some(group) = evidence
        .cgroup
        .filter(|group| group.used_bytes >= group.limit_bytes / 100 * 95)
    {
        let text = format!(
            "{} of {} used ({errno:?})",
            mebibytes(group.used_bytes),
            mebibytes(group.limit_bytes)
        );
        let advice = "hold fewer connections, or raise the limit (MemoryMax= in systemd, --memory in a container)";
        return Diagnosis::new(Limit::CgroupMemory, text, advice);
    }
    if let (Step::IoUring, Some(limit)) = (context.step, evidence.memlock_bytes) {
        let text = "the kernel refused memory for a ring (ENOMEM), and charges all rings of a user to RLIMIT_MEMLOCK (before \
                    Linux 5.12 and since 6.14)";
        let advice = "raise it (as root; LimitMEMLOCK= in systemd; ulimit -l shows it)";
        return Diagnosis::new(Limit::LockedMemory, text, advice)
            .command("prlimit --memlock=unlimited --pid $$")
            .now(format!("memlock {} KiB", limit / 1024));
    }
    if let Some(diagnosis) = tcp_memory(evidence) {
        return diagnosis;
    }
    let text = evidence.memory.map_or_else(
        || format!("the kernel refused memory ({errno:?})"),
        |memory| {
            let (available, total) = (
                mebibytes(memory.available_bytes),
                mebibytes(memory.total_bytes),
            );
            format!("the kernel refused memory ({errno:?}) with {available} of {total} available")
        },
    );
    let advice = "hold fewer connections, or see what uses it";
    Diagnosis::new(Limit::Memory, text, advice)
        .command("grep -E 'MemAvailable|Slab|AnonPages' /proc/meminfo")
}

/// When queued TCP data is at its maximum now, or connections were reset for it during the run.
pub(super) fn tcp_memory(evidence: &Evidence) -> Option<Diagnosis> {
    let aborted = grown(evidence, "TCPAbortOnMemory");
    let pages = evidence
        .sockstat
        .zip(evidence.tcp_mem_pages)
        .map(|(tcp, limits)| (tcp.mem_pages, limits));
    let full = pages.is_some_and(|(used, limits)| used >= limits[2] / 100 * 95);
    (aborted > 0 || full).then_some(())?;
    let text = match aborted {
        0 => "the host's queued TCP data is at its maximum".to_owned(),
        count => format!(
            "{} for it (TCPAbortOnMemory)",
            counted(count, "connection was reset", "connections were reset")
        ),
    };
    let advice = "send less at once, close more slowly, or raise it (as root)";
    let diagnosis = Diagnosis::new(Limit::TcpMemory, text, advice);
    Some(match pages {
        Some((used, [low, pressure, max])) => {
            let doubled = [low, pressure, max]
                .map(|pages| (pages * 2).to_string())
                .join(" ");
            diagnosis
                .now(format!(
                    "{used} pages queued, net.ipv4.tcp_mem = {low} {pressure} {max}"
                ))
                .command(format!("sysctl -w net.ipv4.tcp_mem=\"{doubled}\""))
        }
        None => diagnosis.command("sysctl net.ipv4.tcp_mem"),
    })
}

pub(super) fn io_uring(errno: Errno, evidence: &Evidence) -> Diagnosis {
    let kernel = evidence.kernel.as_deref().unwrap_or("unknown");
    let switch_on = "allow it (as root), or use --engine epoll";
    let command = "sysctl -w kernel.io_uring_disabled=0";
    match (errno, evidence.io_uring_disabled) {
        (Errno::EPERM, Some(2)) => Diagnosis::new(
            Limit::IoUringDisabled,
            "io_uring is switched off on this host",
            switch_on,
        )
        .now("kernel.io_uring_disabled = 2".to_owned())
        .command(command),
        (Errno::EPERM, Some(1)) => {
            let text =
                "io_uring is for privileged processes and the group kernel.io_uring_group only";
            Diagnosis::new(Limit::IoUringDisabled, text, switch_on)
                .now("kernel.io_uring_disabled = 1".to_owned())
                .command(command)
        }
        // The sysctl shows that the kernel has io_uring, so somebody else said that it does not.
        (Errno::EPERM | Errno::EACCES, _) | (Errno::ENOSYS, Some(_)) => {
            let text = format!("the kernel allows io_uring, and the call was refused ({errno:?})");
            let advice = "use --engine epoll, or lift the filter (seccomp of a container or service, or a security module)";
            Diagnosis::new(Limit::IoUringFiltered, text, advice)
                .command("docker run --security-opt seccomp=unconfined …")
        }
        (Errno::ENOSYS, None) => {
            let text = format!(
                "io_uring is not there in kernel {kernel}, or a filter (seccomp) hides it ({errno:?})"
            );
            Diagnosis::new(
                Limit::IoUringMissing,
                text,
                "use --engine epoll, or a newer kernel",
            )
        }
        _ => {
            let text = format!("kernel {kernel} refused a feature of io_uring ({errno:?})");
            Diagnosis::new(
                Limit::IoUringMissing,
                text,
                "use --engine epoll, or a newer kernel",
            )
        }
    }
}

pub(super) fn unknown(errno: Errno, context: &Context) -> Diagnosis {
    let text = format!(
        "{errno} at step {:?}, {} established",
        context.step, context.established
    );
    Diagnosis::new(Limit::Unknown, text, "see the kernel log").command("dmesg | tail")
}

pub(super) fn grown(evidence: &Evidence, counter: &str) -> u64 {
    evidence.counters.get(counter).unwrap_or(0)
}

pub(super) fn destination(context: &Context) -> String {
    context.address.map_or_else(
        || "the other side".to_owned(),
        |address| address.to_string(),
    )
}

pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
