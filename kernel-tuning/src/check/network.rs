//! Addresses, ports, and the kernel's tables of connections.
//!
//! Pure; what needs no trial is cheap enough for a program that starts.

use ipnet::IpNet;

use super::{About, Finding, Fix, Readings, Theme, Trials, grouped};
use crate::setting::{Demand, Role};

/// Where ports that an ordinary user may bind begin.
const FIRST_PORT: u64 = 1024;

/// Sockets of a bucket from which on a lookup walks for long.
const MOST_PER_BUCKET: u64 = 4;

pub(super) fn findings(readings: &Readings, demand: &Demand) -> Vec<Finding> {
    vec![
        established_hash(readings, demand),
        tracking(readings, demand),
        reverse_path(readings),
    ]
}

/// Those of a client.
pub(super) fn findings_of_trials(
    readings: &Readings,
    trials: &Trials,
    demand: &Demand,
) -> Vec<Finding> {
    match demand.role {
        Role::Server => Vec::new(),
        Role::Client | Role::Both => vec![any_loopback(trials), ports(readings, trials, demand)],
    }
}

fn established_hash(readings: &Readings, demand: &Demand) -> Finding {
    let sockets = demand.sockets();
    let about = About::new(
        Theme::Network,
        "hash of connections",
        format!("at most {MOST_PER_BUCKET} sockets a bucket"),
        "each packet looks its socket up; the kernel chose the buckets by memory when it started, 524,288 at most",
    );
    // A namespace without buckets of its own shows those it shares as a negative number (ip-sysctl.rst).
    let buckets = match readings.number("net.ipv4.tcp_ehash_entries") {
        Ok(buckets) => buckets.unsigned_abs().max(1),
        Err(why) => return about.unknown(why),
    };
    let each = sockets as f64 / buckets as f64;
    let now = format!(
        "{each:.1} with {} sockets in {} buckets",
        grouped(sockets),
        grouped(buckets)
    );
    match sockets > buckets.saturating_mul(MOST_PER_BUCKET) {
        true => {
            let entries = sockets.div_ceil(MOST_PER_BUCKET).next_power_of_two();
            about.warn(
                now,
                Fix::new(
                    format!("in a network namespace made after sysctl -w net.ipv4.tcp_child_ehash_entries={entries}"),
                    format!("thash_entries={entries} on the kernel's command line"),
                ),
            )
        }
        false => about.pass(now),
    }
}

fn tracking(readings: &Readings, demand: &Demand) -> Finding {
    let about = About::new(
        Theme::Network,
        "connection tracking",
        format!("off, or room for {}", grouped(demand.connections)),
        "a firewall or NAT that tracks connections drops new ones, pings included, when its table is full",
    );
    let (count, max) = match (
        readings.number("net.netfilter.nf_conntrack_count"),
        readings.number("net.netfilter.nf_conntrack_max"),
    ) {
        (Ok(count), Ok(max)) => (count.max(0) as u64, max.max(0) as u64),
        _ => return about.pass("not loaded, or not of this network namespace"),
    };
    if count == 0 {
        return about.pass("off: nothing is tracked");
    }
    let now = format!("{} tracked of {}", grouped(count), grouped(max));
    match max.saturating_sub(count) < demand.connections {
        true => {
            let enough = count
                .saturating_add(demand.connections)
                .saturating_add(demand.connections / 5);
            about.fail(
                format!("{now}: too few"),
                Fix::new(
                    format!("do not track the server's port (nft: notrack), or sysctl -w net.netfilter.nf_conntrack_max={enough}"),
                    format!("the rule in /etc/nftables.conf, or net.netfilter.nf_conntrack_max = {enough} in /etc/sysctl.d/90-throng.conf"),
                ),
            )
        }
        false => about.pass(now),
    }
}

fn reverse_path(readings: &Readings) -> Finding {
    let name = "net.ipv4.conf.all.rp_filter";
    let about = About::new(
        Theme::Network,
        "reverse path filter",
        "off (0) or loose (2)",
        "a strict one drops packets of sources that are reached by another interface than they come by, as many source \
         addresses easily are",
    );
    match readings.number(name) {
        Err(why) => about.unknown(why),
        Ok(1) => about.warn("strict (1)", Fix::sysctl(name, 2)),
        Ok(mode) => about.pass(format!("{mode}")),
    }
}

fn any_loopback(trials: &Trials) -> Finding {
    let about = About::new(
        Theme::Network,
        "loopback sources",
        "any address of 127.0.0.0/8 can be bound",
        "each source address has ports of its own",
    );
    match &trials.any_loopback {
        Ok(()) => about.pass("bound one that no interface has"),
        Err(why) => about.fail(
            why.clone(),
            Fix::new(
                "ip link set lo up; ip route add local 127.0.0.0/8 dev lo",
                "the network set-up of this host or container",
            ),
        ),
    }
}

fn ports(readings: &Readings, trials: &Trials, demand: &Demand) -> Finding {
    let about = About::new(
        Theme::Network,
        "ports × addresses",
        format!("{} to one destination", grouped(demand.connections)),
        "source addresses × ports bound the connections to one address and port; a further port of the server counts again",
    );
    let ports = match readings.sysctl("net.ipv4.ip_local_reserved_ports") {
        Ok(list) => (FIRST_PORT..65_536)
            .filter(|port| !is_listed(list, *port))
            .count() as u64,
        Err(why) => return about.unknown(why),
    };
    if demand.role == Role::Both {
        let most = ports.saturating_mul((1 << 24) - 2);
        return about.pass(format!(
            "{} ports × 127.0.0.0/8, {} in all",
            grouped(ports),
            grouped(most)
        ));
    }
    let hosts =
        |network: &IpNet| 1_u64 << (network.max_prefix_len() - network.prefix_len()).min(32);
    let addresses = trials.addresses.len() as u64 + trials.networks.iter().map(hosts).sum::<u64>();
    let most = ports.saturating_mul(addresses);
    let now = format!(
        "{} ports × {} addresses, {} in all",
        grouped(ports),
        grouped(addresses),
        grouped(most)
    );
    match most < demand.connections {
        true => about.warn(
            format!("{now}, and any number over loopback"),
            Fix::new(
                "throng-tune addresses add 10.9.0.0/16 (the server's host needs a route back), or further ports of the server",
                "the same command in the unit that starts the client (ExecStartPre=)",
            ),
        ),
        false => about.pass(now),
    }
}

/// Whether a list such as `7000,9000-9010` has `port`.
fn is_listed(list: &str, port: u64) -> bool {
    list.split(',').any(|item| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let range = first
            .trim()
            .parse::<u64>()
            .ok()
            .zip(last.trim().parse::<u64>().ok());
        range.is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}
