//! What settings are worth: in a network namespace made for each test, something suffers, `throng-tune apply` is run, and it
//! suffers no more. Small numbers stand for large ones: what happens to the 101st connection of 100 ports happens to the
//! 28,233rd of 28,232.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Host, in_namespace, skip};
use kernel_tuning::host::{NetCounters, Sockstat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// As long as a connect over loopback never takes, and shorter than the second after which TCP tries again.
const SOON: Duration = Duration::from_millis(700);

/// More than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// netinet/in.h: the packet brings its own header.
const IPPROTO_RAW: i32 = 255;

/// A namespace of this test's own, with its loopback up.
fn inside(test: &str) -> Option<Host> {
    if !in_namespace(test, "") {
        return None;
    }
    if !ip("link set lo up") {
        skip(test, "ip (iproute2) is not installed");
        return None;
    }
    Some(Host::with_real_namespace())
}

fn ip(words: &str) -> bool {
    let status = Command::new("ip").args(words.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

/// Of the namespace that [`inside`] gave, and of no other.
fn set(host: &Host, name: &str, value: &str) {
    assert!(
        fs::symlink_metadata(host.sysctl(name))
            .unwrap()
            .is_symlink()
    );
    fs::write(host.sysctl(name), value).unwrap();
}

/// What the counters of this namespace grew by during `work`.
fn counted(work: impl FnOnce()) -> NetCounters {
    let before = NetCounters::read().unwrap();
    work();
    NetCounters::read().unwrap().since(&before)
}

fn listener(port: u16) -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap()
}

/// Connections to `listener`, each accepted, until one fails or there are `most` of them.
fn fill(listener: &TcpListener, most: usize) -> (Vec<(TcpStream, TcpStream)>, Option<ErrorKind>) {
    let to = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while held.len() < most {
        let connected = TcpStream::connect(to);
        match connected.and_then(|client| Ok((client, listener.accept()?.0))) {
            Ok(both) => held.push(both),
            Err(error) => return (held, Some(error.kind())),
        }
    }
    (held, None)
}

#[test]
fn the_port_range_bounds_connections_from_one_address() {
    let Some(host) = inside("the_port_range_bounds_connections_from_one_address") else {
        return;
    };
    set(&host, "net.ipv4.ip_local_port_range", "40000 40099");
    let listener = listener(7000);
    let (held, error) = fill(&listener, 200);
    assert_eq!(
        (held.len(), error),
        (100, Some(ErrorKind::AddrNotAvailable))
    );
    host.tune("apply --role client")
        .expect(0, &["ip_local_port_range: 40000 40099 -> 1024 65535"]);
    let (more, error) = fill(&listener, 200);
    assert_eq!((more.len(), error), (200, None));
}

/// The limit is of this process, which runs this test alone.
#[test]
fn a_descriptor_for_each_connection_takes_a_limit_of_open_files() {
    let Some(host) = inside("a_descriptor_for_each_connection_takes_a_limit_of_open_files") else {
        return;
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let listener = listener(7000);
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
    let (held, _) = fill(&listener, 60);
    assert!(
        held.len() < 50,
        "{} connections, two descriptors each",
        held.len()
    );
    drop(held);

    let unit = host
        .tune("export systemd --connections 60 --role both")
        .expect(0, &[])
        .out;
    let limit = unit
        .lines()
        .find_map(|line| line.strip_prefix("LimitNOFILE="));
    let limit = limit.unwrap().parse().unwrap();
    if limit > hard {
        return skip(
            "a_descriptor_for_each_connection_takes_a_limit_of_open_files",
            "the hard limit is too low",
        );
    }
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    assert_eq!(fill(&listener, 60).0.len(), 60);
}

#[test]
fn a_reserved_port_is_there_when_the_server_comes_back() {
    let Some(host) = inside("a_reserved_port_is_there_when_the_server_comes_back") else {
        return;
    };
    set(&host, "net.ipv4.ip_local_port_range", "7000 7099");
    let other = listener(9000);
    let (held, _) = fill(&other, 100);
    assert_eq!(held.len(), 100);
    let taken = TcpListener::bind(("127.0.0.1", 7000)).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    // The end that closes first keeps its port in TIME_WAIT: not this one.
    for (client, server) in held {
        drop(server);
        drop(client);
    }

    host.tune("apply --role server")
        .expect(0, &["ip_local_reserved_ports: (empty) -> 7000"]);
    let other = listener(9001);
    let (held, _) = fill(&other, 100);
    assert_eq!(held.len(), 99);
    listener(7000);
}

/// How many of `count` connects to a listener that has not begun to accept come through within `time`.
fn storm(count: usize, time: Duration) -> usize {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(4096).unwrap();
    let to = listener.local_addr().unwrap();
    let clients: Vec<Socket> = (0..count)
        .map(|_| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            client.set_nonblocking(true).unwrap();
            // Under way, whatever it says.
            let _ = client.connect(&to);
            client
        })
        .collect();
    let deadline = Instant::now() + time;
    loop {
        let through = clients.iter().filter(|client| client.peer_addr().is_ok());
        let through = through.count();
        if through == count || Instant::now() > deadline {
            return through;
        }
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn somaxconn_bounds_an_accept_storm() {
    let Some(host) = inside("somaxconn_bounds_an_accept_storm") else {
        return;
    };
    // The default before Linux 5.4.
    set(&host, "net.core.somaxconn", "128");
    let mut through = 0;
    let counters = counted(|| through = storm(500, SOON));
    assert!(through < 200, "{through} of 500");
    assert!(counters.get("ListenOverflows").unwrap() > 0, "{counters:?}");

    host.tune("apply --role server")
        .expect(0, &["somaxconn: 128 -> 6250"]);
    let counters = counted(|| through = storm(500, LONG));
    assert_eq!(through, 500);
    assert_eq!(counters.get("ListenOverflows"), Some(0));
}

/// Where the server of half-open connections listens: answers to another host never come from a loopback address.
const TO: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);

/// Handshakes that nobody ends: a SYN from each of `count` addresses that do not answer.
fn half_open(to: SocketAddr, count: u16) {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))).unwrap();
    raw.set_header_included_v4(true).unwrap();
    for index in 0..count {
        let [high, low] = index.to_be_bytes();
        let packet = syn(Ipv4Addr::new(10, 9, high, low), to.port());
        raw.send_to(&packet, &to.into()).unwrap();
    }
}

/// A SYN to [`TO`]. Of the IP header the kernel fills in length, id and checksum (raw(7)).
fn syn(from: Ipv4Addr, port: u16) -> Vec<u8> {
    let to = TO.octets();
    let mut tcp = Vec::new();
    tcp.extend(40_000_u16.to_be_bytes());
    tcp.extend(port.to_be_bytes());
    // Sequence and acknowledgement, a header of five words, SYN, the window, the checksum, nothing urgent.
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let length = [0, 6, 0, 20];
    let sum = [&from.octets()[..], &to, &length, &tcp].concat();
    let sum: u32 = sum
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    let head = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    [&head[..], &from.octets(), &to, &tcp].concat()
}

#[test]
fn without_cookies_half_open_connections_keep_others_out() {
    let test = "without_cookies_half_open_connections_keep_others_out";
    let Some(host) = inside(test) else { return };
    // Where the answers to them are lost: a neighbour that is not there, and is not asked for.
    if !ip("link add throng-hole type veth peer name throng-end") {
        return skip(test, "this kernel has no veth");
    }
    for words in [
        "link set throng-end up",
        "link set throng-hole up",
        "addr add 10.8.0.2/24 dev throng-hole",
        "neigh add 10.8.0.1 lladdr 02:00:00:00:00:01 dev throng-hole",
        "route add 10.9.0.0/16 via 10.8.0.1",
    ] {
        assert!(ip(words), "ip {words}");
    }
    set(&host, "net.ipv4.tcp_syncookies", "0");
    set(&host, "net.ipv4.tcp_max_syn_backlog", "128");
    let server = TcpListener::bind((TO, 7000)).unwrap();
    let to = server.local_addr().unwrap();
    let counters = counted(|| {
        half_open(to, 400);
        TcpStream::connect_timeout(&to, SOON).unwrap_err();
    });
    // The last quarter of the queue is for peers that are known.
    assert!(counters.get("ListenDrops").unwrap() > 300, "{counters:?}");

    host.tune("apply --role server")
        .expect(0, &["tcp_syncookies: 0 -> 1"]);
    let counters = counted(|| {
        half_open(to, 10_000);
        TcpStream::connect_timeout(&to, LONG).unwrap();
    });
    assert_eq!(counters.get("ListenDrops"), Some(0));
    assert!(counters.get("SyncookiesSent").unwrap() > 0, "{counters:?}");
}

/// `count` connections that this end closes first.
fn come_and_go(listener: &TcpListener, count: usize) -> Result<(), ErrorKind> {
    let (held, error) = fill(listener, count);
    for (mut client, mut server) in held {
        client.shutdown(Shutdown::Write).unwrap();
        server.read_to_end(&mut Vec::new()).unwrap();
        drop(server);
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    error.map_or(Ok(()), Err)
}

#[test]
fn time_wait_is_cut_short_where_its_table_is_small() {
    let Some(host) = inside("time_wait_is_cut_short_where_its_table_is_small") else {
        return;
    };
    set(&host, "net.ipv4.tcp_max_tw_buckets", "10");
    let listener = listener(7000);
    let counters = counted(|| come_and_go(&listener, 100).unwrap());
    assert!(
        counters.get("TCPTimeWaitOverflow").unwrap() >= 80,
        "{counters:?}"
    );
    assert!(Sockstat::read().unwrap().time_wait <= 20);

    host.tune("apply")
        .expect(0, &["tcp_max_tw_buckets: 10 -> 100000"]);
    let counters = counted(|| come_and_go(&listener, 100).unwrap());
    assert_eq!(counters.get("TCPTimeWaitOverflow"), Some(0));
    assert!(Sockstat::read().unwrap().time_wait >= 100);
}

#[test]
fn ports_in_time_wait_are_used_again() {
    let Some(host) = inside("ports_in_time_wait_are_used_again") else {
        return;
    };
    set(&host, "net.ipv4.ip_local_port_range", "40000 40099");
    set(&host, "net.ipv4.tcp_tw_reuse", "0");
    let listener = listener(7000);
    come_and_go(&listener, 100).unwrap();
    // From when a port may be used again, `tcp_tw_reuse_delay`.
    sleep(Duration::from_millis(1500));
    assert_eq!(come_and_go(&listener, 1), Err(ErrorKind::AddrNotAvailable));

    host.tune("apply --role client")
        .expect(0, &["tcp_tw_reuse: 0 -> 1"]);
    // The same ports alone.
    set(&host, "net.ipv4.ip_local_port_range", "40000 40099");
    come_and_go(&listener, 100).unwrap();
}

/// What a peer that reads nothing can make the kernel keep for it.
fn queued_for_one_that_does_not_read() -> usize {
    let listener = listener(0);
    let _reads_nothing = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let chunk = vec![0; 64 << 10];
    let (mut sum, mut idle_since) = (0, Instant::now());
    while idle_since.elapsed() < Duration::from_millis(300) {
        match server.write(&chunk) {
            Ok(count) => (sum, idle_since) = (sum + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        if sum > 64 << 20 {
            break;
        }
    }
    sum
}

#[test]
fn one_slow_reader_takes_little_where_connections_are_many() {
    let Some(host) = inside("one_slow_reader_takes_little_where_connections_are_many") else {
        return;
    };
    set(&host, "net.ipv4.tcp_rmem", "4096 131072 33554432");
    set(&host, "net.ipv4.tcp_wmem", "4096 16384 16777216");
    let before = queued_for_one_that_does_not_read();
    // Of 16 GiB: 262,144 bytes for each direction.
    host.tune("apply --role server --connections 10000000")
        .expect(0, &["tcp_wmem", "-> 4096 16384 262144"]);
    let after = queued_for_one_that_does_not_read();
    assert!(
        after <= 1 << 20 && before >= 2 * after,
        "{before} bytes before, {after} after"
    );
}

/// A server's end of a connection that asked for keepalive, and the peer's.
fn kept_alive(port: u16) -> (TcpStream, TcpStream) {
    let listener = listener(port);
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let server = Socket::from(server);
    server.set_keepalive(true).unwrap();
    (server.into(), client)
}

/// Seconds until the kernel probes the connection from `port`: the timer in /proc/net/tcp (proc_net_tcp.rst), whose
/// ticks are hundredths.
fn probed_in_s(port: u16) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let fields = text
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut timers = fields
        .filter(|f| f[1].ends_with(&local) && f[3] == "01")
        .map(|f| f[5].to_owned());
    let timer = timers.next().unwrap();
    let (kind, when) = timer.split_once(':').unwrap();
    assert_eq!(kind, "02", "{timer} is no keepalive timer");
    u64::from_str_radix(when, 16).unwrap() / 100
}

#[test]
fn a_vanished_peer_is_missed_sooner() {
    let Some(host) = inside("a_vanished_peer_is_missed_sooner") else {
        return;
    };
    let _slow = kept_alive(7001);
    assert!(probed_in_s(7001) > 7000);
    host.tune("apply --role server")
        .expect(0, &["tcp_keepalive_time: 7200 -> 900"]);
    let (slow, _peer) = kept_alive(7002);
    assert!((800..=900).contains(&probed_in_s(7002)));

    // The same in seconds: 900 s, and then 5 times 30 s, would be long for a test.
    for (name, value) in [("time", "1"), ("intvl", "1"), ("probes", "1")] {
        set(&host, &format!("net.ipv4.tcp_keepalive_{name}"), value);
    }
    let (mut fast, _gone) = kept_alive(7003);
    assert!(ip("link set lo down"));
    fast.set_read_timeout(Some(LONG)).unwrap();
    let missed = fast.read(&mut [0]).unwrap_err();
    assert_ne!(
        missed.kind(),
        ErrorKind::WouldBlock,
        "it was not missed in 20 s"
    );
    // The one that waits for 900 s still believes in its peer.
    slow.set_nonblocking(true).unwrap();
    assert_eq!(
        (&slow).read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}
