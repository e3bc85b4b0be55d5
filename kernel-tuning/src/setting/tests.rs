#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::profile::{reference, setting, settings};

fn adjusted(name: &str, demand: &Demand, now: &str) -> String {
    wanted(&setting(name).unwrap(), demand)
        .adjusted(now)
        .unwrap()
}

/// As the kernel computes it.
fn defaults(setting: &Setting, demand: &Demand) -> String {
    let each = setting.default.iter().map(|formula| formula.value(demand));
    each.map(|number| number.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

fn ranges(setting: &Setting, demand: &Demand) -> Vec<RangeInclusive<u64>> {
    match wanted(setting, demand) {
        Wanted::Numbers(ranges) => ranges,
        Wanted::Ports(_) => Vec::new(),
    }
}

#[test]
fn what_people_copied_is_put_right() {
    let demand = Demand {
        role: Role::Both,
        ..reference()
    };
    for (name, copied, right) in [
        // 32 GiB of queued data, twice the memory of the host: down to 40 %.
        (
            "net.ipv4.tcp_mem",
            "786432 4194304 8388608",
            "838860 1258291 1677721",
        ),
        // Lower than any kernel's default: up.
        ("fs.file-max", "100000", "2300000"),
        ("fs.nr_open", "100000", "1101024"),
        ("net.ipv4.tcp_max_tw_buckets", "10240", "1000000"),
        ("net.ipv4.tcp_max_orphans", "10240", "838860"),
        ("net.ipv4.tcp_syncookies", "0", "1"),
        ("net.core.netdev_max_backlog", "41960", "10000"),
        (
            "net.ipv4.tcp_rmem",
            "4096 4096 4206592",
            "4096 16384 343597",
        ),
        // More than is wanted, and no harm.
        ("fs.file-max", "20000000", "20000000"),
    ] {
        assert_eq!(adjusted(name, &demand, copied), right, "{name}");
    }
}

#[test]
fn ports_are_added_to_those_that_are_reserved() {
    let name = "net.ipv4.ip_local_reserved_ports";
    let demand = Demand {
        listen_ports: vec![7000..=7000, 9000..=9010],
        ..reference()
    };
    assert_eq!(adjusted(name, &demand, ""), "7000,9000-9010");
    let other = adjusted(name, &demand, "80,6999,9005-9020\n");
    assert_eq!(other, "80,6999-7000,9000-9020");
    let wanted = wanted(&setting(name).unwrap(), &demand);
    assert_eq!(wanted.is_met("1-65535"), Ok(true));
    assert_eq!(wanted.is_met("7000"), Ok(false));
    assert!(
        wanted
            .is_met("7000,x")
            .unwrap_err()
            .to_string()
            .contains("list of ports")
    );
}

#[test]
fn a_value_of_another_form_is_refused() {
    let wanted = wanted(&setting("net.ipv4.tcp_mem").unwrap(), &reference());
    for text in ["", "1 2", "1 2 3 4", "1 2 x", "-1 2 3"] {
        let error = wanted.adjusted(text).unwrap_err().to_string();
        assert!(error.contains("3 number(s)"), "{error}");
    }
}

fn demands() -> impl Strategy<Value = Demand> {
    let roles = prop_oneof![Just(Role::Server), Just(Role::Client), Just(Role::Both)];
    // From half a GiB to 4 TiB.
    (
        1_u64..1_000_000_000,
        roles,
        (1_u64 << 29)..(1 << 42),
        12..=16_u32,
    )
        .prop_map(|(connections, role, ram_bytes, page_bits)| Demand {
            connections,
            role,
            ram_bytes,
            page_bytes: 1 << page_bits,
            listen_ports: vec![7000..=7000],
        })
}

proptest! {
    #[test]
    fn more_connections_never_want_less(demand in demands(), more in 1_u64..1_000_000_000) {
        let larger = Demand { connections: demand.connections + more, ..demand.clone() };
        for setting in settings(Role::Both) {
            for (small, large) in ranges(&setting, &demand).iter().zip(ranges(&setting, &larger)) {
                prop_assert!(small.start() <= large.start(), "{}", setting.name);
            }
        }
    }

    #[test]
    fn what_is_wanted_takes_a_safe_share_of_the_memory(demand in demands()) {
        for setting in settings(Role::Both) {
            let Some(bytes) = setting.bytes else { continue };
            let bytes = if setting.unit == "pages" { demand.page_bytes } else { bytes };
            for range in ranges(&setting, &demand) {
                let share = range.start().saturating_mul(bytes) as f64 / demand.ram_bytes as f64;
                prop_assert!(share <= 0.4, "{}: {share} of the memory", setting.name);
            }
        }
    }

    #[test]
    fn what_may_only_grow_is_never_below_the_kernels_default(demand in demands()) {
        for setting in settings(Role::Both) {
            let Ok(after) = wanted(&setting, &demand).adjusted(&defaults(&setting, &demand)) else {
                prop_assert!(setting.default.is_empty());
                continue;
            };
            let ranges = ranges(&setting, &demand);
            for ((formula, after), range) in setting.default.iter().zip(after.split(' ')).zip(ranges) {
                let (before, after) = (formula.value(&demand), after.parse::<u64>().unwrap());
                prop_assert!(*range.end() < before || after >= before, "{}", setting.name);
            }
        }
    }

    #[test]
    fn an_adjusted_value_is_as_wanted_and_stays(
        demand in demands(),
        now in proptest::collection::vec(0_u64..u64::from(u32::MAX), 1..=3),
    ) {
        for setting in settings(Role::Both) {
            let mut now = now.clone();
            now.resize(setting.default.len(), 5);
            now.sort_unstable();
            let text: Vec<String> = now.iter().map(u64::to_string).collect();
            let wanted = wanted(&setting, &demand);
            let Ok(after) = wanted.adjusted(&text.join(" ")) else { continue };
            prop_assert_eq!(wanted.is_met(&after), Ok(true), "{}", &setting.name);
            prop_assert_eq!(wanted.adjusted(&after), Ok(after.clone()));
            // Low, pressure and high, or first and last: in order as before.
            if let Rule::Numbers(_) = setting.rule {
                let numbers = numbers(&after, now.len()).unwrap();
                prop_assert!(numbers.is_sorted(), "{}: {after}", setting.name);
            }
        }
    }

    #[test]
    fn a_list_of_ports_reads_back_as_the_same(set in proptest::collection::btree_set(1_u16.., 0..40)) {
        prop_assert_eq!(ports(&port_list(&set)), Ok(set));
    }
}
