//! What each failure is said to be, on recorded evidence.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::host::{CgroupMemory, Files, Memory, NetCounters, Sockstat, TableUse};
use crate::process::Nofile;

fn context(step: Step, established: u64) -> Context {
    Context {
        established,
        address: Some("127.0.0.1:7000".parse().unwrap()),
        ..Context::new(step)
    }
}

/// What a stock host says.
fn evidence() -> Evidence {
    Evidence {
        memory: Some(Memory {
            total_bytes: 24 << 30,
            free_bytes: 1 << 30,
            available_bytes: 1 << 30,
            slab_bytes: 8 << 30,
            slab_reclaimable_bytes: 1 << 30,
            slab_unreclaimable_bytes: 7 << 30,
            page_tables_bytes: 1 << 20,
        }),
        sockstat: Some(Sockstat {
            inuse: 1,
            orphan: 0,
            time_wait: 0,
            alloc: 1,
            mem_pages: 170,
        }),
        tcp_mem_pages: Some([287_901, 383_868, 575_802]),
        files: Some(Files {
            allocated: 2_466_000,
            max: 2_466_186,
        }),
        nofile: Some(Nofile {
            soft: 20_000,
            hard: 20_000,
        }),
        nr_open: Some(1 << 20),
        memlock_bytes: Some(8 << 20),
        port_range: Some(32_768..=60_999),
        somaxconn: Some(4096),
        netdev_max_backlog: Some(1000),
        io_uring_disabled: Some(0),
        kernel: Some("6.18.44".to_owned()),
        ..Evidence::default()
    }
}

fn counted_evidence(name: &str, value: u64) -> Evidence {
    let counters = NetCounters::from_iter([(name.to_owned(), value)]);
    Evidence {
        counters,
        ..evidence()
    }
}

fn of(errno: Errno, context: &Context, evidence: &Evidence) -> (Limit, String) {
    let diagnosis = diagnose(Cause::Errno(errno as i32), context, evidence);
    let text = diagnosis.to_string();
    assert!(text.lines().count() <= 2, "{text}");
    (diagnosis.limit, text)
}

#[test]
fn exhausted_ports_are_counted_and_the_way_out_is_printed() {
    let (_, text) = of(
        Errno::EADDRNOTAVAIL,
        &context(Step::Connect, 28_232),
        &evidence(),
    );
    assert_eq!(
        text,
        "stopped by ephemeral ports: 28232 ports x 1 source address allow 28232 connections to one destination; \
         add sources (--source 127.1.0.0/16) or widen: sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"\
         \n  now: net.ipv4.ip_local_port_range = 32768 60999"
    );
}

#[test]
fn reserved_ports_are_not_counted_and_a_full_range_is_not_widened() {
    let two = Context {
        sources: 2,
        destinations: 3,
        ..context(Step::Connect, 0)
    };
    let host = Evidence {
        port_range: Some(1024..=65_535),
        reserved_ports: vec![7000..=7001, 80..=80],
        ..evidence()
    };
    let (_, text) = of(Errno::EADDRNOTAVAIL, &two, &host);
    assert!(
        text.contains("64510 ports x 2 source addresses x 3 destinations allow 387060 connections"),
        "{text}"
    );
    assert!(!text.contains("sysctl"), "{text}");
    assert!(
        text.contains(
            "ip_local_port_range = 1024 65535; net.ipv4.ip_local_reserved_ports reserves 3"
        ),
        "{text}"
    );
}

#[test]
fn explicit_ports_do_not_depend_on_the_kernels_range() {
    let explicit = Context {
        source_ports: Some(10_000),
        ..context(Step::Bind, 9_000)
    };
    let mut host = evidence();
    host.sockstat.as_mut().unwrap().time_wait = 1_000;
    let (limit, text) = of(Errno::EADDRINUSE, &explicit, &host);
    assert_eq!(limit, Limit::EphemeralPorts);
    assert!(
        text.contains("10000 ports x 1 source address")
            && text.contains("9000 are established")
            && text.contains("1000 sockets in TIME_WAIT"),
        "{text}"
    );
    assert!(!text.contains("ip_local_port_range"), "{text}");
}

#[test]
fn a_source_that_is_not_local_gets_the_command_that_makes_it_so() {
    let source = Some("10.9.0.1".parse().unwrap());
    let one = Context {
        source,
        ..context(Step::Bind, 0)
    };
    let (limit, text) = of(Errno::EADDRNOTAVAIL, &one, &evidence());
    assert_eq!(limit, Limit::SourceAddress);
    assert!(
        text.contains("10.9.0.1 is not configured")
            && text.ends_with("ip addr add 10.9.0.1/32 dev lo"),
        "{text}"
    );
    let command = |source: &str, networks: &[&str], interface: Option<&str>| {
        let context = Context {
            source: Some(source.parse().unwrap()),
            source_networks: networks.iter().map(|net| (*net).to_owned()).collect(),
            source_interface: interface.map(str::to_owned),
            ..context(Step::Bind, 0)
        };
        diagnose(
            Cause::Errno(Errno::EADDRNOTAVAIL as i32),
            &context,
            &evidence(),
        )
        .raise_command
        .unwrap()
    };
    assert_eq!(
        command("10.9.0.1", &["10.9.0.0/16"], None),
        "ip route add local 10.9.0.0/16 dev lo"
    );
    assert_eq!(
        command("fd00::5", &["fd00::/64"], None),
        "ip -6 route add local fd00::/64 dev lo"
    );
    assert_eq!(
        command("10.0.0.5", &["10.0.0.5/32", "10.0.0.6/31"], None),
        "for net in 10.0.0.5/32 10.0.0.6/31; do ip route add local $net dev lo; done"
    );
    assert_eq!(
        command("fd00::5", &[], Some("eth0")),
        "ip addr add fd00::5/128 dev eth0"
    );
}

#[test]
fn open_files_show_the_limit_and_how_far_it_can_go() {
    let (limit, text) = of(Errno::EMFILE, &context(Step::Socket, 19_990), &evidence());
    assert_eq!(limit, Limit::OpenFiles);
    assert!(
        text.contains("soft 20000, hard 20000") && text.contains("ulimit -n 1048576"),
        "{text}"
    );
    let low = Evidence {
        nofile: Some(Nofile {
            soft: 1024,
            hard: 20_000,
        }),
        ..evidence()
    };
    assert!(
        of(Errno::EMFILE, &context(Step::Accept, 1_000), &low)
            .1
            .contains("ulimit -n 20000")
    );
    let (limit, text) = of(Errno::ENFILE, &context(Step::Accept, 0), &evidence());
    assert_eq!(limit, Limit::HostOpenFiles);
    assert!(text.contains("sysctl -w fs.file-max=4932372"), "{text}");
}

#[test]
fn memory_is_the_groups_tcps_or_the_hosts() {
    let step = context(Step::Connect, 5);
    assert_eq!(of(Errno::ENOMEM, &step, &evidence()).0, Limit::Memory);
    let cgroup = Some(CgroupMemory {
        limit_bytes: 1 << 30,
        used_bytes: (1 << 30) - 4096,
    });
    assert_eq!(
        of(
            Errno::ENOMEM,
            &step,
            &Evidence {
                cgroup,
                ..evidence()
            }
        )
        .0,
        Limit::CgroupMemory
    );
    let mut full = evidence();
    full.sockstat.as_mut().unwrap().mem_pages = 673_962;
    let (limit, text) = of(Errno::ENOBUFS, &step, &full);
    assert_eq!(limit, Limit::TcpMemory);
    assert!(
        text.contains("sysctl -w net.ipv4.tcp_mem=\"575802 767736 1151604\""),
        "{text}"
    );
    assert_eq!(
        of(
            Errno::ECONNRESET,
            &step,
            &counted_evidence("TCPAbortOnMemory", 3)
        )
        .0,
        Limit::TcpMemory
    );
    assert_eq!(
        of(Errno::ENOMEM, &context(Step::IoUring, 0), &evidence()).0,
        Limit::LockedMemory
    );
    let unbound = Evidence {
        memlock_bytes: None,
        ..evidence()
    };
    assert_eq!(
        of(Errno::ENOMEM, &context(Step::IoUring, 0), &unbound).0,
        Limit::Memory
    );
}

#[test]
fn a_refusal_at_the_first_connect_differs_from_one_half_way() {
    let (limit, text) = of(Errno::ECONNREFUSED, &context(Step::Connect, 0), &evidence());
    assert_eq!(limit, Limit::NobodyListens);
    assert!(
        text.ends_with("throng-server --listen 127.0.0.1:7000"),
        "{text}"
    );
    let (limit, text) = of(
        Errno::ECONNREFUSED,
        &context(Step::Connect, 5_000),
        &evidence(),
    );
    assert_eq!(limit, Limit::OtherSide);
    assert!(text.contains("after 5000 connections"), "{text}");
    let closed = diagnose(
        Cause::ClosedAfterAccept,
        &context(Step::Hold, 1_000),
        &evidence(),
    );
    assert_eq!(closed.limit, Limit::OtherSide);
    assert!(closed.to_string().contains("--max-connections"));
    let all = diagnose(
        Cause::ClosedAfterAccept,
        &context(Step::Hold, 0),
        &evidence(),
    );
    let text = all.to_string();
    assert!(
        text.contains("closed every connection") && text.ends_with("nc -v 127.0.0.1 7000"),
        "{text}"
    );
    let queued = diagnose(Cause::NeverServed, &context(Step::Hold, 89), &evidence());
    assert_eq!(queued.limit, Limit::OtherSide);
    let text = queued.to_string();
    assert!(
        text.contains("served 89 connections") && text.contains("grep 'open files'"),
        "{text}"
    );
}

#[test]
fn unanswered_connects_are_explained_by_what_the_host_counted() {
    let step = context(Step::Connect, 700);
    let (limit, text) = of(
        Errno::ETIMEDOUT,
        &step,
        &counted_evidence("ListenOverflows", 564),
    );
    assert_eq!(limit, Limit::AcceptQueue);
    assert!(
        text.contains("564 handshakes") && text.contains("too slowly"),
        "{text}"
    );
    assert!(!text.contains("sysctl"), "{text}");
    let short_queue = Evidence {
        somaxconn: Some(128),
        ..counted_evidence("ListenOverflows", 564)
    };
    let (_, text) = of(Errno::ETIMEDOUT, &step, &short_queue);
    assert!(text.contains("sysctl -w net.core.somaxconn=4096"), "{text}");
    let (limit, text) = of(
        Errno::ETIMEDOUT,
        &step,
        &counted_evidence("TCPReqQFullDrop", 1),
    );
    assert_eq!(limit, Limit::SynQueue);
    assert!(
        text.ends_with("sysctl -w net.ipv4.tcp_syncookies=1"),
        "{text}"
    );
    let short_queue = Evidence {
        somaxconn: Some(128),
        ..counted_evidence("TCPReqQFullDrop", 1)
    };
    let (_, text) = of(Errno::ETIMEDOUT, &step, &short_queue);
    assert!(
        text.contains("tcp_syncookies=1 net.core.somaxconn=4096"),
        "{text}"
    );
    assert_eq!(
        diagnose(
            Cause::Stalled,
            &step,
            &counted_evidence("SoftnetDropped", 1)
        )
        .limit,
        Limit::PacketBacklog
    );
    // Not the reason where nothing at all came through.
    let nothing = context(Step::Connect, 0);
    assert_eq!(
        of(
            Errno::ETIMEDOUT,
            &nothing,
            &counted_evidence("SoftnetDropped", 1)
        )
        .0,
        Limit::NoAnswer
    );
    let none = diagnose(
        Cause::Stalled,
        &step,
        &counted_evidence("TCPSynRetrans", 445),
    );
    assert_eq!(none.limit, Limit::NoAnswer);
    assert!(none.to_string().contains("445 SYNs were sent again"));
}

#[test]
fn a_full_table_is_named_with_its_size_and_what_doubles_it() {
    let step = context(Step::Connect, 262_100);
    let full = |name: &str, entries, max| Evidence {
        conntrack: Some(TableUse { entries, max }),
        neighbours: Some(TableUse {
            entries: 1024,
            max: 1024,
        }),
        ..counted_evidence(name, 1_201)
    };
    let (limit, text) = of(
        Errno::ETIMEDOUT,
        &step,
        &full("ConntrackDrop", 262_144, 262_144),
    );
    assert_eq!(limit, Limit::Conntrack);
    assert!(
        text.contains("1201 packets were dropped")
            && text.contains(
                "sysctl -w net.netfilter.nf_conntrack_max=524288 net.netfilter.nf_conntrack_buckets=524288"
            )
            && text.ends_with("now: 262144 entries, net.netfilter.nf_conntrack_max = 262144"),
        "{text}"
    );
    // The drops of a table may be counted in another namespace than the client's; its size is the host's.
    let at_maximum = full("TCPSynRetrans", 262_144, 262_144);
    assert_eq!(of(Errno::ETIMEDOUT, &step, &at_maximum).0, Limit::Conntrack);
    let few = full("NeighbourTableFulls", 7, 262_144);
    for errno in [Errno::ETIMEDOUT, Errno::EHOSTUNREACH] {
        let (limit, text) = of(errno, &step, &few);
        assert_eq!(limit, Limit::NeighbourTable);
        assert!(
            text.contains(
                "net.ipv4.neigh.default.gc_thresh2=1024 net.ipv4.neigh.default.gc_thresh3=2048"
            ) && text.ends_with("now: 1024 entries, net.ipv4.neigh.default.gc_thresh3 = 1024"),
            "{text}"
        );
    }
    let filtered = counted_evidence("IPReversePathFilter", 3);
    let (limit, text) = of(Errno::ETIMEDOUT, &step, &filtered);
    assert_eq!(limit, Limit::ReversePathFilter);
    assert!(text.ends_with("net.ipv4.conf.all.rp_filter=2"), "{text}");
}

#[test]
fn what_cannot_be_reached_differs_from_what_is_forbidden() {
    let step = context(Step::Connect, 0);
    let (limit, text) = of(Errno::ENETUNREACH, &step, &evidence());
    assert_eq!(limit, Limit::Unreachable);
    assert!(
        text.contains("no route") && text.ends_with("ip route get 127.0.0.1"),
        "{text}"
    );
    let (limit, text) = of(Errno::EHOSTUNREACH, &step, &evidence());
    assert_eq!(limit, Limit::Unreachable);
    assert!(text.contains("no host answers"), "{text}");
    let (limit, text) = of(Errno::EPERM, &step, &evidence());
    assert_eq!(limit, Limit::Forbidden);
    assert!(text.ends_with("nft list ruleset"), "{text}");
}

#[test]
fn io_uring_is_switched_off_filtered_or_missing() {
    let step = context(Step::IoUring, 0);
    let with = |disabled| Evidence {
        io_uring_disabled: disabled,
        ..evidence()
    };
    assert_eq!(
        of(Errno::EPERM, &step, &with(Some(2))).0,
        Limit::IoUringDisabled
    );
    assert!(
        of(Errno::EPERM, &step, &with(Some(1)))
            .1
            .contains("io_uring_group")
    );
    assert_eq!(
        of(Errno::EPERM, &step, &with(Some(0))).0,
        Limit::IoUringFiltered
    );
    assert_eq!(
        of(Errno::EPERM, &step, &with(None)).0,
        Limit::IoUringFiltered
    );
    assert_eq!(
        of(Errno::ENOSYS, &step, &with(Some(0))).0,
        Limit::IoUringFiltered
    );
    assert_eq!(
        of(Errno::ENOSYS, &step, &with(None)).0,
        Limit::IoUringMissing
    );
    assert_eq!(
        of(Errno::EINVAL, &step, &with(Some(0))).0,
        Limit::IoUringMissing
    );
}

#[test]
fn every_errno_at_every_step_has_a_diagnosis_even_without_evidence() {
    let steps = [
        Step::IoUring,
        Step::Socket,
        Step::Listen,
        Step::Accept,
        Step::Bind,
        Step::Connect,
        Step::Hold,
    ];
    for (step, errno) in steps
        .into_iter()
        .flat_map(|step| (0..134).map(move |errno| (step, errno)))
    {
        let diagnosis = diagnose(
            Cause::Errno(errno),
            &Context::new(step),
            &Evidence::default(),
        );
        assert!(diagnosis.to_string().lines().count() <= 2);
    }
    let (limit, text) = of(Errno::EAFNOSUPPORT, &context(Step::Connect, 0), &evidence());
    assert_eq!(limit, Limit::Unknown);
    assert!(text.contains("EAFNOSUPPORT"), "{text}");
}

#[test]
fn a_port_in_use_names_its_holder_command() {
    let (limit, text) = of(Errno::EADDRINUSE, &context(Step::Listen, 0), &evidence());
    assert_eq!(limit, Limit::AddressInUse);
    assert!(text.ends_with("ss -ltnp 'sport = :7000'"), "{text}");
}

#[test]
fn fewer_connections_fit_than_memory_would_just_hold() {
    assert_eq!(connections_that_fit(1_000_000_000, 9_000), 94_444);
    assert_eq!(connections_that_fit(0, 9_000), 0);
    assert_eq!(connections_that_fit(1, 0), u64::MAX);
}
