//! The rules for what the network did: refusals, resets, and connects that nobody answered.
//!
//! Pure, like its parent. A dropped packet has no errno: it is a counter that grew, here where it was dropped here.

use nix::errno::Errno;

use super::rules::{counted, destination, grown, tcp_memory};
use super::{Context, Diagnosis, Evidence, Limit};
use crate::host::TableUse;

pub(super) fn refused(context: &Context) -> Diagnosis {
    let name = destination(context);
    if context.established == 0 {
        let diagnosis = Diagnosis::new(
            Limit::NobodyListens,
            format!("{name} refused the first connection"),
            "start a server there",
        );
        return diagnosis.command(format!("throng-server --listen {name}"));
    }
    let text = format!(
        "{name} refused after {} connections: its server closed or died",
        context.established
    );
    Diagnosis::new(
        Limit::OtherSide,
        text,
        "read the server's own output, and whether it still listens",
    )
    .command("ss -ltn")
}

pub(super) fn reset(context: &Context, evidence: &Evidence) -> Diagnosis {
    if let Some(diagnosis) = tcp_memory(evidence) {
        return diagnosis;
    }
    if let Some(diagnosis) = accept_queue(evidence) {
        return diagnosis;
    }
    let text = format!(
        "{} reset a connection after {} were established",
        destination(context),
        context.established
    );
    Diagnosis::new(
        Limit::OtherSide,
        text,
        "read the server's own output; it may have died, or refuse by a rule of its own, and see there what was reset",
    )
    .command("nstat -az TcpEstabResets TcpExtTCPAbortOnMemory TcpExtListenOverflows")
}

pub(super) fn closed_after_accept(context: &Context) -> Diagnosis {
    let name = destination(context);
    if let (0, Some(address)) = (context.established, context.address) {
        let text = format!("{name} closed every connection as soon as it had accepted it");
        let advice = "it may serve certain addresses only, speak another protocol, or fail: read its own output, and see \
                      what becomes of a single connection";
        let (ip, port) = (address.ip(), address.port());
        return Diagnosis::new(Limit::OtherSide, text, advice)
            .command(format!("nc -v {ip} {port}"));
    }
    let text = format!(
        "{name} closed connections as soon as it had accepted them, with {} others established",
        context.established
    );
    let advice = "raise the server's --max-connections or its open-file limit; see which it has";
    Diagnosis::new(Limit::OtherSide, text, advice).command(OPEN_FILES_OF_SERVER)
}

pub(super) fn never_served(context: &Context) -> Diagnosis {
    let text = format!(
        "{} served {} connections and left others in its accept queue",
        destination(context),
        context.established
    );
    let advice = "it is too slow (hold longer), stands still, or has no open file left; see how many it may have";
    Diagnosis::new(Limit::OtherSide, text, advice).command(OPEN_FILES_OF_SERVER)
}

const OPEN_FILES_OF_SERVER: &str = "grep 'open files' /proc/$(pidof -s throng-server)/limits";

pub(super) fn unanswered(context: &Context, evidence: &Evidence) -> Diagnosis {
    // A full table ends a ramp for good, a full queue now and then is part of any.
    let known = full_table(context, evidence).or_else(|| accept_queue(evidence));
    if let Some(diagnosis) = known {
        return diagnosis;
    }
    let name = destination(context);
    let half_open = grown(evidence, "TCPReqQFullDrop");
    if half_open > 0 {
        let text = format!("{half_open} SYNs were dropped on this host (TCPReqQFullDrop)");
        // Counted only where cookies are off: with them a full queue drops no SYN.
        let cookies = "sysctl -w net.ipv4.tcp_syncookies=1";
        let diagnosis = |advice| Diagnosis::new(Limit::SynQueue, text, advice);
        return match short_queue(evidence) {
            None => diagnosis("connect more slowly (--rate), or answer with cookies (as root)")
                .command(cookies),
            Some(somaxconn) => diagnosis(
                "connect more slowly (--rate), or answer with cookies and restart the server with a longer queue (as root)",
            )
            .command(format!("{cookies} net.core.somaxconn={SERVER_BACKLOG}"))
            .now(format!("net.core.somaxconn = {somaxconn}")),
        };
    }
    let dropped = grown(evidence, "SoftnetDropped");
    // It counts the packets of all namespaces; and a queue that is full at times lets some connects through.
    if dropped > 0 && context.established > 0 {
        let text = format!("{dropped} packets of any process were dropped on this host (softnet)");
        let diagnosis = Diagnosis::new(
            Limit::PacketBacklog,
            text,
            "connect more slowly (--rate), or raise it (as root)",
        );
        return match evidence.netdev_max_backlog {
            Some(packets) => diagnosis
                .now(format!("net.core.netdev_max_backlog = {packets}"))
                .command(format!(
                    "sysctl -w net.core.netdev_max_backlog={}",
                    packets.saturating_mul(4)
                )),
            None => diagnosis.command("sysctl net.core.netdev_max_backlog"),
        };
    }
    if let Some(diagnosis) = reverse_path(evidence) {
        return diagnosis;
    }
    let resent = match grown(evidence, "TCPSynRetrans") {
        0 => String::new(),
        count => format!(", {count} SYNs were sent again"),
    };
    let text = format!(
        "{name} did not answer, {} established{resent}, and no full queue or table of this host explains it",
        context.established
    );
    let advice = "look for a firewall on the way, and on the other host for drops";
    Diagnosis::new(Limit::NoAnswer, text, advice)
        .command("nstat -az TcpExtListenDrops TcpExtListenOverflows")
}

fn accept_queue(evidence: &Evidence) -> Option<Diagnosis> {
    let overflows = grown(evidence, "ListenOverflows");
    (overflows > 0).then(|| {
        let text = format!("{overflows} handshakes were dropped on this host (ListenOverflows)");
        let diagnosis = |advice| Diagnosis::new(Limit::AcceptQueue, text, advice);
        match short_queue(evidence) {
            None => diagnosis(
                "the server accepts too slowly: connect more slowly (--rate), or give it more cores; where it accepts no more at all, its own output says why",
            ),
            Some(somaxconn) => diagnosis(
                "connect more slowly (--rate), give the server more cores, see its own output where it accepts no more at all, or raise it (as root) and restart the server",
            )
            .command(format!("sysctl -w net.core.somaxconn={SERVER_BACKLOG}"))
            .now(format!("net.core.somaxconn = {somaxconn}")),
        }
    })
}

/// Conntrack or the neighbours, where a packet was dropped for want of an entry. The kernel says so to no socket: the
/// connect goes on as if its SYN were lost.
fn full_table(context: &Context, evidence: &Evidence) -> Option<Diagnosis> {
    let shown = |table: Option<TableUse>, name: &str| {
        table.map(|table| format!("{} entries, {name} = {}", table.entries, table.max))
    };
    let doubled = |table: Option<TableUse>, least| table.map_or(least, |t| t.max.saturating_mul(2));
    let dropped = grown(evidence, "ConntrackDrop");
    let is_full = evidence.conntrack.is_some_and(|table| table.is_full());
    if dropped > 0 || is_full {
        let text = match dropped {
            0 => "connections of this host are tracked, and the table is full".to_owned(),
            _ => format!(
                "{} for want of an entry on this host (nf_conntrack)",
                counted(dropped, "packet was dropped", "packets were dropped")
            ),
        };
        let advice = "leave these connections untracked (nft: notrack), or raise it (as root)";
        let name = "net.netfilter.nf_conntrack_max";
        let max = doubled(evidence.conntrack, DEFAULT_CONNTRACK_MAX * 2);
        return Some(
            Diagnosis::new(Limit::Conntrack, text, advice)
                .now(shown(evidence.conntrack, name))
                .command(format!(
                    "sysctl -w {name}={max} net.netfilter.nf_conntrack_buckets={max}"
                )),
        );
    }
    let full = grown(evidence, "NeighbourTableFulls");
    (full > 0).then(|| {
        let is_ipv6 = context.address.is_some_and(|address| address.is_ipv6());
        let (family, table) = match is_ipv6 {
            true => ("ipv6", evidence.neighbours_ipv6),
            false => ("ipv4", evidence.neighbours),
        };
        let text = format!(
            "a neighbour could not be added {} on this host (table_fulls)",
            counted(full, "time", "times")
        );
        let name = format!("net.{family}.neigh.default.gc_thresh");
        let max = doubled(table, 2 * DEFAULT_GC_THRESH3);
        let advice = "put a router between, so that fewer hosts are on-link, or raise it (as root)";
        Diagnosis::new(Limit::NeighbourTable, text, advice)
            .now(shown(table, &format!("{name}3")))
            .command(format!("sysctl -w {name}2={} {name}3={max}", max / 2))
    })
}

/// `nf_conntrack_max` and `gc_thresh3` of a stock kernel.
const DEFAULT_CONNTRACK_MAX: u64 = 262_144;
const DEFAULT_GC_THRESH3: u64 = 1024;

fn reverse_path(evidence: &Evidence) -> Option<Diagnosis> {
    let dropped = grown(evidence, "IPReversePathFilter");
    (dropped > 0).then(|| {
        let text = format!(
            "{} on this host (IPReversePathFilter)",
            counted(dropped, "packet was dropped", "packets were dropped")
        );
        let advice = "give it a route back to the sources by the same interface, or filter loosely (as root)";
        Diagnosis::new(Limit::ReversePathFilter, text, advice)
            .command("sysctl -w net.ipv4.conf.all.rp_filter=2")
    })
}

pub(super) fn unreachable(errno: Errno, context: &Context, evidence: &Evidence) -> Diagnosis {
    if let Some(diagnosis) = full_table(context, evidence) {
        return diagnosis;
    }
    let why = match errno {
        Errno::ENETUNREACH => "there is no route to it",
        _ => "no host answers for it on the link, or one on the way refuses",
    };
    let text = format!(
        "{} is unreachable ({errno:?}), {} established: {why}",
        destination(context),
        context.established
    );
    let advice = "see which way packets to it go";
    let diagnosis = Diagnosis::new(Limit::Unreachable, text, advice);
    match context.address {
        Some(address) => diagnosis.command(format!("ip route get {}", address.ip())),
        None => diagnosis.command("ip route"),
    }
}

pub(super) fn forbidden(errno: Errno, context: &Context) -> Diagnosis {
    let text = format!(
        "this host does not let it connect to {} ({errno:?}), {} established",
        destination(context),
        context.established
    );
    let advice = "see its firewall; a control group (BPF) or a security module can forbid it too";
    Diagnosis::new(Limit::Forbidden, text, advice).command("nft list ruleset")
}

/// What throng-server asks of listen(2): a larger `net.core.somaxconn` makes its queues no longer.
const SERVER_BACKLOG: u64 = 4096;

/// `net.core.somaxconn`, where it is what bounds the server's queues.
fn short_queue(evidence: &Evidence) -> Option<u64> {
    evidence
        .somaxconn
        .filter(|somaxconn| *somaxconn < SERVER_BACKLOG)
}
