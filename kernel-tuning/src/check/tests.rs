//! The doctor on trees of files that a test invents, and on this host.

use std::fs;
use std::time::{Duration, Instant};

use super::*;
use crate::plan::{Obstacle, Todo, plan};

/// A host as it comes: what is written here, and nothing else.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A quiet host of 16 GiB and four CPUs.
    fn usual() -> Self {
        let host = Self::new();
        host.file(
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemFree: 15000000 kB\nMemAvailable: 15000000 kB\nBuffers: 0 kB\nCached: 0 kB\n\
             SwapCached: 0 kB\nActive: 0 kB\nInactive: 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\n\
             Slab: 2000 kB\nSReclaimable: 1000 kB\nSUnreclaim: 1000 kB\nPageTables: 100 kB\nCommitted_AS: 0 kB\n\
             Mapped: 0 kB\n\
             VmallocTotal: 0 kB\nVmallocUsed: 0 kB\nVmallocChunk: 0 kB\n",
        );
        host.file(
            "proc/self/net/sockstat",
            "TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 7\n",
        );
        host.file(
            "proc/self/limits",
            "Limit Soft Hard Units\nMax open files            1024   20000   files\nMax locked memory  unlimited unlimited bytes\n",
        );
        host.file("proc/self/status", "CapEff:\t0000000000000000\n");
        host.file("sys/devices/system/cpu/online", "0-3\n");
        host.file(
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "tsc\n",
        );
        host.file(
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        );
        for (name, value) in [
            ("fs.file-nr", "1000\t0\t1600000"),
            ("fs.file-max", "1600000"),
            ("net.ipv4.tcp_mem", "190000\t250000\t380000"),
            ("net.ipv4.tcp_ehash_entries", "131072"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.ip_local_reserved_ports", ""),
            ("net.core.somaxconn", "4096"),
        ] {
            host.sysctl(name, value);
        }
        host
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn sysctl(&self, name: &str, value: &str) {
        self.file(
            &format!("proc/sys/{}", name.replace('.', "/")),
            &format!("{value}\n"),
        );
    }

    fn tree(&self) -> Tree {
        Tree::at(self.0.path())
    }

    fn check_with(&self, trials: &Trials, demand: &Demand) -> Vec<Finding> {
        let tree = self.tree();
        check(&Readings::read(&tree), trials, &plan(&tree, demand), demand)
    }

    fn check(&self, role: Role, connections: u64) -> Vec<Finding> {
        self.check_with(&able(), &demand(role, connections))
    }
}

fn demand(role: Role, connections: u64) -> Demand {
    Demand {
        connections,
        role,
        ram_bytes: 16 << 30,
        page_bytes: 4096,
        listen_ports: vec![7000..=7000],
    }
}

/// A kernel that can all that is tried.
fn able() -> Trials {
    Trials {
        ring: Ok(()),
        is_charged: Ok(true),
        table: Ok(20_000),
        releases: Ok(true),
        any_loopback: Ok(()),
        addresses: vec!["10.0.0.5".parse().unwrap()],
        networks: Vec::new(),
    }
}

#[track_caller]
fn verdict(findings: &[Finding], name: &str) -> Verdict {
    of(findings, name).verdict
}

#[track_caller]
fn of<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.name == name)
        .unwrap_or_else(|| panic!("no finding {name}"))
}

#[test]
fn an_unknown_kernel_is_not_judged() {
    let host = Host::new();
    let trials = Trials {
        ring: Err(ring::Unavailable::NotBuilt),
        is_charged: Err("no ring".into()),
        table: Err("no ring".into()),
        releases: Err("no ring".into()),
        any_loopback: Ok(()),
        addresses: Vec::new(),
        networks: Vec::new(),
    };
    for role in [Role::Server, Role::Client, Role::Both] {
        let findings = host.check_with(&trials, &demand(role, 100_000));
        let known = [
            "ring",
            "control group's memory",
            "connection tracking",
            "loopback sources",
        ];
        for finding in findings
            .iter()
            .filter(|finding| !known.contains(&finding.name.as_str()))
        {
            assert_eq!(finding.verdict, Verdict::Unknown, "{finding:?}");
            assert!(!finding.now.is_empty());
        }
        assert_eq!(verdict(&findings, "ring"), Verdict::Fail);
    }
}

#[test]
fn files_of_another_form_are_not_judged_either() {
    let host = Host::usual();
    for name in [
        "fs.file-nr",
        "net.ipv4.tcp_mem",
        "net.core.somaxconn",
        "net.ipv4.tcp_ehash_entries",
    ] {
        host.sysctl(name, "a surprise");
    }
    host.file("proc/meminfo", "a surprise\n");
    host.file("sys/kernel/mm/transparent_hugepage/enabled", "");
    let findings = host.check(Role::Server, 100_000);
    for name in [
        "memory",
        "open files of the host",
        "queued TCP data",
        "net.core.somaxconn",
        "hash of connections",
        "huge pages",
    ] {
        assert_eq!(verdict(&findings, name), Verdict::Unknown, "{name}");
    }
}

#[test]
fn memory_that_does_not_reach_fails_and_names_how_many_fit() {
    let host = Host::usual();
    assert_eq!(
        verdict(&host.check(Role::Both, 100_000), "memory"),
        Verdict::Pass
    );
    assert_eq!(
        verdict(&host.check(Role::Both, 1_000_000), "memory"),
        Verdict::Warn
    );
    let findings = host.check(Role::Both, 2_000_000);
    let memory = of(&findings, "memory");
    assert_eq!(memory.verdict, Verdict::Fail);
    assert!(
        memory.fix.as_ref().unwrap().now.contains("1,536,000"),
        "{memory:?}"
    );
}

#[test]
fn a_group_with_less_room_than_the_sockets_need_fails() {
    let host = Host::usual();
    host.file("proc/self/cgroup", "0::/job\n");
    host.file("sys/fs/cgroup/job/memory.max", "1000000000\n");
    host.file("sys/fs/cgroup/job/memory.current", "800000000\n");
    assert_eq!(
        verdict(&host.check(Role::Server, 100_000), "control group's memory"),
        Verdict::Fail
    );
    assert_eq!(
        verdict(&host.check(Role::Server, 10_000), "control group's memory"),
        Verdict::Pass
    );
}

#[test]
fn open_files_of_the_host_bind_an_ordinary_user_only() {
    let host = Host::usual();
    host.sysctl("fs.file-nr", "50000 0 200000");
    let findings = host.check(Role::Both, 100_000);
    assert_eq!(verdict(&findings, "open files of the host"), Verdict::Fail);
    let fix = of(&findings, "open files of the host").fix.clone().unwrap();
    assert_eq!(fix.now, "sysctl -w fs.file-max='370000'");
    host.file("proc/self/status", "CapEff:\t000001ffffffffff\n");
    assert_eq!(
        verdict(&host.check(Role::Both, 100_000), "open files of the host"),
        Verdict::Warn
    );
    assert_eq!(
        verdict(&host.check(Role::Server, 100_000), "open files of the host"),
        Verdict::Pass
    );
}

#[test]
fn a_limit_of_open_files_matters_where_descriptors_are_needed() {
    let host = Host::usual();
    let demand = demand(Role::Server, 100_000);
    let of_trials = |trials: &Trials| {
        let findings = host.check_with(trials, &demand);
        [
            "open files of a process",
            "closing a descriptor",
            "direct descriptors",
        ]
        .map(|name| verdict(&findings, name))
    };
    use Verdict::{Fail, Pass, Unknown, Warn};
    assert_eq!(of_trials(&able()), [Warn, Pass, Pass]);
    let old = Trials {
        releases: Ok(false),
        ..able()
    };
    assert_eq!(of_trials(&old), [Fail, Fail, Pass]);
    let none = Trials {
        ring: Err(ring::Unavailable::NotBuilt),
        table: Err("x".into()),
        releases: Err("x".into()),
        ..able()
    };
    assert_eq!(of_trials(&none), [Fail, Unknown, Unknown]);
    let tables = &host.check_with(&able(), &demand)[1].now;
    assert_eq!(tables, "5 tables of 20,000 slots hold them");
}

#[test]
fn tables_take_descriptors_and_a_worker_has_so_many() {
    let host = Host::usual();
    let limits = |nofile: u64| {
        let rows = format!("Limit\nMax open files 300 {nofile} files\n");
        host.file("proc/self/limits", &rows);
    };
    let tables = |slots, connections| {
        let trials = Trials {
            table: Ok(slots),
            ..able()
        };
        let findings = host.check_with(&trials, &demand(Role::Server, connections));
        of(&findings, "direct descriptors").clone()
    };
    // One worker held 43,800 with it, in 146 tables.
    limits(300);
    host.file("sys/devices/system/cpu/online", "0\n");
    let finding = tables(300, 1_000_000);
    assert_eq!(finding.verdict, Verdict::Fail);
    assert_eq!(finding.now, "at most 140 tables of 300 slots: 42,000");
    assert!(finding.fix.unwrap().keep.contains("LimitNOFILE=1101024"));
    assert_eq!(tables(300, 42_000).verdict, Verdict::Pass);
    limits(2_000);
    assert_eq!(
        tables(2_000, 1_000_000).now,
        "at most 256 tables of 2,000 slots: 512,000"
    );
    host.file("sys/devices/system/cpu/online", "0-1\n");
    assert_eq!(tables(2_000, 900_000).verdict, Verdict::Pass);
}

#[test]
fn locked_memory_is_for_the_rings_of_all_workers() {
    let host = Host::usual();
    host.file("sys/devices/system/cpu/online", "0\n");
    let limit = |bytes: u64| {
        let rows = format!(
            "Limit\nMax open files 1024 20000 files\nMax locked memory {bytes} {bytes} bytes\n"
        );
        host.file("proc/self/limits", &rows);
    };
    let of_server =
        |connections| of(&host.check(Role::Server, connections), "locked memory").clone();
    // As seen: 14 tables of 20,000 slots with 8 MiB, and no fifteenth.
    limit(8 << 20);
    assert_eq!(of_server(280_000).verdict, Verdict::Pass);
    assert_eq!(of_server(280_001).verdict, Verdict::Fail);
    let finding = of_server(5_000_000);
    assert_eq!(finding.wanted, "at least 141.6 MiB for 1 workers");
    let fix = finding.fix.unwrap();
    assert!(fix.now.contains("--memlock=296960000"), "{fix:?}");
    // As seen: two workers do not start with 1 MiB.
    limit(1 << 20);
    assert_eq!(of_server(1).verdict, Verdict::Pass);
    host.file("sys/devices/system/cpu/online", "0-1\n");
    assert_eq!(of_server(1).verdict, Verdict::Fail);
    let not_charged = Trials {
        is_charged: Ok(false),
        ..able()
    };
    let findings = host.check_with(&not_charged, &demand(Role::Both, 5_000_000));
    assert_eq!(verdict(&findings, "locked memory"), Verdict::Pass);
}

#[test]
fn a_ring_without_memory_is_not_one_that_is_switched_off() {
    let trials = Trials {
        ring: Err(ring::Unavailable::NoMemory),
        ..able()
    };
    let findings = Host::usual().check_with(&trials, &demand(Role::Server, 1000));
    let ring = of(&findings, "ring");
    let fix = ring.fix.as_ref().unwrap();
    assert!(ring.now.contains("RLIMIT_MEMLOCK") && fix.keep.contains("LimitMEMLOCK="));
    assert!(!fix.now.contains("io_uring_disabled"), "{fix:?}");
}

#[test]
fn tracking_counts_only_where_something_is_tracked() {
    let host = Host::usual();
    host.sysctl("net.netfilter.nf_conntrack_max", "65536");
    let now = || {
        let findings = host.check(Role::Server, 100_000);
        ["connection tracking", "net.netfilter.nf_conntrack_max"]
            .map(|name| verdict(&findings, name))
    };
    host.sysctl("net.netfilter.nf_conntrack_count", "0");
    assert_eq!(now(), [Verdict::Pass, Verdict::Pass]);
    host.sysctl("net.netfilter.nf_conntrack_count", "12");
    assert_eq!(now(), [Verdict::Fail, Verdict::Warn]);
    host.sysctl("net.netfilter.nf_conntrack_max", "1000000");
    assert_eq!(now(), [Verdict::Pass, Verdict::Pass]);
}

#[test]
fn a_client_needs_as_many_ports_as_connections_but_not_over_loopback() {
    let host = Host::usual();
    host.sysctl("net.ipv4.ip_local_reserved_ports", "7000,9000-9010");
    let name = "ports × addresses";
    let findings = host.check(Role::Client, 100_000);
    assert_eq!(verdict(&findings, name), Verdict::Warn);
    assert!(
        of(&findings, name)
            .now
            .starts_with("64,500 ports × 1 addresses"),
        "{findings:?}"
    );
    assert_eq!(
        verdict(&host.check(Role::Client, 64_500), name),
        Verdict::Pass
    );
    assert_eq!(
        verdict(&host.check(Role::Both, 1_000_000), name),
        Verdict::Pass
    );
    let trials = Trials {
        networks: vec!["10.9.0.0/16".parse().unwrap()],
        ..able()
    };
    assert_eq!(
        verdict(
            &host.check_with(&trials, &demand(Role::Client, 100_000)),
            name
        ),
        Verdict::Pass
    );
    assert!(
        host.check(Role::Server, 100_000)
            .iter()
            .all(|finding| finding.name != name)
    );
}

#[test]
fn a_hash_that_a_namespace_shares_counts_as_its_own() {
    let host = Host::usual();
    host.sysctl("net.ipv4.tcp_ehash_entries", "-131072");
    assert_eq!(
        verdict(&host.check(Role::Server, 500_000), "hash of connections"),
        Verdict::Pass
    );
    let findings = host.check(Role::Server, 1_000_000);
    assert_eq!(verdict(&findings, "hash of connections"), Verdict::Warn);
    let fix = of(&findings, "hash of connections").fix.clone().unwrap();
    assert!(fix.keep.contains("thash_entries=262144"), "{fix:?}");
}

#[test]
fn packets_of_a_nic_are_to_reach_every_cpu() {
    let host = Host::usual();
    host.file(
        "proc/self/net/dev",
        "Inter-| Receive\n face |bytes\n    lo: 1 2\n  eth0: 3 4\n",
    );
    let queue = |rps: &str| host.file("sys/class/net/eth0/queues/rx-0/rps_cpus", rps);
    host.file("sys/class/net/eth0/device/vendor", "1");
    host.file("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n");
    // Of another namespace's /sys.
    host.file("sys/class/net/eth9/device/vendor", "1");
    queue("0\n");
    let findings = host.check(Role::Server, 1000);
    assert!(
        findings
            .iter()
            .all(|finding| !finding.name.contains("eth9"))
    );
    assert_eq!(verdict(&findings, "packets of eth0"), Verdict::Warn);
    let fix = of(&findings, "packets of eth0").fix.clone().unwrap();
    assert!(fix.now.contains("echo f >"), "{fix:?}");
    queue("0000000f\n");
    assert_eq!(
        verdict(&host.check(Role::Server, 1000), "packets of eth0"),
        Verdict::Pass
    );
    queue("0\n");
    for (index, irq) in ["30", "31", "32", "33"].into_iter().enumerate() {
        host.file(
            &format!("sys/class/net/eth0/queues/rx-{index}/rps_cpus"),
            "0\n",
        );
        host.file(
            &format!("sys/class/net/eth0/device/msi_irqs/{irq}"),
            "msix\n",
        );
        host.file(&format!("proc/irq/{irq}/effective_affinity_list"), "0\n");
    }
    assert_eq!(
        verdict(&host.check(Role::Server, 1000), "packets of eth0"),
        Verdict::Warn
    );
    for (cpu, irq) in ["30", "31", "32", "33"].into_iter().enumerate() {
        host.file(
            &format!("proc/irq/{irq}/effective_affinity_list"),
            &format!("{cpu}\n"),
        );
    }
    assert_eq!(
        verdict(&host.check(Role::Server, 1000), "packets of eth0"),
        Verdict::Pass
    );
    assert!(
        host.check(Role::Both, 1000)
            .iter()
            .all(|finding| !finding.name.contains("eth0"))
    );
}

#[test]
fn settings_are_judged_by_their_direction() {
    let host = Host::usual();
    host.sysctl("net.core.somaxconn", "1024");
    host.sysctl("net.ipv4.tcp_syncookies", "0");
    let findings = host.check(Role::Server, 10_000);
    assert_eq!(verdict(&findings, "net.core.somaxconn"), Verdict::Warn);
    assert_eq!(
        of(&findings, "net.core.somaxconn").fix.clone().unwrap().now,
        "sysctl -w net.core.somaxconn='4096'"
    );
    assert_eq!(verdict(&findings, "net.ipv4.tcp_syncookies"), Verdict::Warn);
    host.sysctl("net.core.somaxconn", "65535");
    assert_eq!(
        verdict(&host.check(Role::Server, 10_000), "net.core.somaxconn"),
        Verdict::Pass
    );
}

#[test]
fn a_setting_of_another_namespace_says_whose_it_is() {
    let host = Host::usual();
    host.sysctl("net.core.somaxconn", "128");
    let demand = demand(Role::Server, 10_000);
    let mut steps = plan(&host.tree(), &demand);
    for step in steps
        .iter_mut()
        .filter(|step| step.name == "net.core.somaxconn")
    {
        step.todo = Todo::Forbidden {
            now: "128".into(),
            to: "4096".into(),
            why: Obstacle::OtherNamespace,
        };
    }
    let findings = check(&Readings::read(&host.tree()), &able(), &steps, &demand);
    let fix = of(&findings, "net.core.somaxconn").fix.clone().unwrap();
    assert!(fix.now.starts_with("on the host itself"), "{fix:?}");
    let whose = of(&findings, "whose settings");
    assert!(
        whose.now.contains("read-only: net.core.somaxconn"),
        "{whose:?}"
    );
    assert!(whose.now.contains("not here: "), "{whose:?}");
}

#[test]
fn a_slow_clock_and_pages_that_are_always_huge_are_told() {
    let host = Host::usual();
    let names = ["clock source", "huge pages"];
    let now = || {
        let findings = host.check(Role::Server, 1000);
        names.map(|name| verdict(&findings, name))
    };
    assert_eq!(now(), [Verdict::Pass; 2]);
    host.file(
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "hpet\n",
    );
    host.file(
        "sys/kernel/mm/transparent_hugepage/enabled",
        "[always] madvise never\n",
    );
    assert_eq!(now(), [Verdict::Warn; 2]);
}

#[test]
fn whatever_is_not_well_says_what_to_do() {
    let host = Host::usual();
    host.sysctl("fs.file-nr", "1 0 2");
    for finding in host.check(Role::Client, 5_000_000) {
        let is_ill = matches!(finding.verdict, Verdict::Warn | Verdict::Fail);
        assert_eq!(is_ill, finding.fix.is_some(), "{finding:?}");
        let rows = [&finding.now, &finding.wanted, &finding.why];
        assert!(rows.iter().all(|row| !row.is_empty()), "{finding:?}");
    }
}

#[test]
fn this_host_is_examined_within_a_second_by_anybody() {
    let begun = Instant::now();
    let findings = {
        let tree = Tree::default();
        let demand = demand(Role::Both, 1000);
        check(
            &Readings::read(&tree),
            &Trials::run(),
            &plan(&tree, &demand),
            &demand,
        )
    };
    let taken = begun.elapsed();
    // The doctor promises one second; a busy machine gets more.
    assert!(taken < Duration::from_secs(5), "{taken:?}");
    assert_eq!(verdict(&findings, "memory"), Verdict::Pass);
    assert_eq!(verdict(&findings, "loopback sources"), Verdict::Pass);
}

#[test]
fn a_program_that_starts_is_told_in_one_line_and_only_of_what_stops_it() {
    assert_eq!(brief(Role::Server, 1), None);
    let line = brief(Role::Both, 1_000_000_000).unwrap();
    assert!(
        line.contains("memory") && line.contains("--connections 1000000000 --role both"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
    assert!(brief(Role::Both, u64::MAX).is_some());
}

#[test]
fn figures_are_for_people() {
    assert_eq!(
        [0, 999, 1000, 1_234_567].map(grouped),
        ["0", "999", "1,000", "1,234,567"]
    );
    assert_eq!(
        [512, 8 << 20, 3 << 29].map(size),
        ["512 B", "8.0 MiB", "1.5 GiB"]
    );
}
