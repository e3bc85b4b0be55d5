//! CPUs, clock and huge pages.
//!
//! Pure.

use super::{About, Finding, Fix, Nic, Readings, Theme};
use crate::setting::{Demand, Role};

pub(super) fn findings(readings: &Readings, demand: &Demand) -> Vec<Finding> {
    let mut findings = spread(readings, demand);
    findings.extend([clock(readings), huge_pages(readings)]);
    findings
}

fn spread(readings: &Readings, demand: &Demand) -> Vec<Finding> {
    // Over loopback a packet is received on the CPU that sent it.
    let nics = readings.nics.iter().filter(|_| demand.role != Role::Both);
    nics.map(|nic| spread_of(nic, readings.cpus)).collect()
}

fn spread_of(nic: &Nic, cpus: Option<u64>) -> Finding {
    let name = &nic.name;
    let about = About::new(
        Theme::Machine,
        format!("packets of {name}"),
        "come in on every CPU",
        "one CPU takes in all packets of a receive queue, up to TCP; with fewer queues than CPUs the rest wait for it",
    );
    let Some(cpus) = cpus else {
        return about.unknown("/sys/devices/system/cpu/online does not tell");
    };
    if nic.rx_queues == 0 {
        return about.unknown(format!("/sys/class/net/{name}/queues does not tell"));
    }
    let steered = format!(
        "{} of {} steered (RPS)",
        nic.rx_queues_with_rps, nic.rx_queues
    );
    let now = match nic.irq_cpus {
        Some(on) => format!(
            "receive queues: {} for {cpus} CPUs, interrupts on {on} of them, {steered}",
            nic.rx_queues
        ),
        None => format!(
            "receive queues: {} for {cpus} CPUs, {steered}",
            nic.rx_queues
        ),
    };
    let reached = nic.irq_cpus.unwrap_or(cpus).min(nic.rx_queues);
    let is_spread = reached >= cpus || nic.rx_queues_with_rps == nic.rx_queues;
    match is_spread {
        true => about.pass(now),
        false => {
            let mask = mask_of(cpus);
            about.warn(
                now,
                Fix::new(
                    format!(
                        "ethtool -L {name} combined {cpus}, or for q in /sys/class/net/{name}/queues/rx-*; do echo {mask} > \
                         $q/rps_cpus; done"
                    ),
                    format!("a unit or udev rule for {name} with that command; irqbalance for the interrupts"),
                ),
            )
        }
    }
}

/// All of so many CPUs, as `rps_cpus` takes them: words of 32 bits, the highest first.
fn mask_of(cpus: u64) -> String {
    let rest = match cpus % 32 {
        0 => None,
        bits => Some(format!("{:x}", (1_u64 << bits) - 1)),
    };
    let whole = (0..cpus / 32).map(|_| "ffffffff".to_owned());
    rest.into_iter().chain(whole).collect::<Vec<_>>().join(",")
}

/// Clock sources that take a trap or an access to a device for each reading.
const SLOW_CLOCKS: [&str; 6] = [
    "hpet",
    "acpi_pm",
    "jiffies",
    "refined-jiffies",
    "pit",
    "xen",
];

fn clock(readings: &Readings) -> Finding {
    let about = About::new(
        Theme::Machine,
        "clock source",
        "one that is read without a system call, such as tsc",
        "every time stamp, of latencies and of the kernel's own timers, costs microseconds with another",
    );
    let Some(clock) = &readings.clock_source else {
        return about.unknown("/sys/devices/system/clocksource does not tell");
    };
    match SLOW_CLOCKS.contains(&clock.as_str()) {
        false => about.pass(clock.clone()),
        true => {
            let others = readings.clock_sources.as_deref().unwrap_or("unknown");
            about.warn(
                format!("{clock}; there are: {others}"),
                Fix::new(
                    "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, where the CPUs' counters agree",
                    "clocksource=tsc tsc=reliable on the kernel's command line",
                ),
            )
        }
    }
}

fn huge_pages(readings: &Readings) -> Finding {
    let about = About::new(
        Theme::Machine,
        "huge pages",
        "madvise or never",
        "with always, a process's memory grows by 2 MiB where it touches a byte, and its RSS says little",
    );
    let Some(choices) = &readings.huge_pages else {
        return about.unknown("/sys/kernel/mm/transparent_hugepage/enabled is not there");
    };
    let chosen = choices
        .split(' ')
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        None => about.unknown(format!(
            "/sys/kernel/mm/transparent_hugepage/enabled is {choices:?}"
        )),
        Some("always") => about.warn(
            "always",
            Fix::new(
                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
                "transparent_hugepage=madvise on the kernel's command line",
            ),
        ),
        Some(other) => about.pass(other),
    }
}
