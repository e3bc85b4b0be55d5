//! Peers that vanish without a word: their places are free again in time, by a probe or by what they do not acknowledge,
//! and nobody else is hurt. In a network namespace of its own, where the road to them ends nowhere from one moment on.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../client/tests/common/mod.rs"]
mod namespace;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{BOUND, GREETING, Server, engine_flags, eventually, read};
use namespace::command;

const VANISHING: usize = 200;
const PEER: &str = "10.99.0.1";

/// Connections from an address that only lives until [`vanish`].
fn dial(server: &Server) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let source: SocketAddr = format!("{PEER}:0").parse().unwrap();
    socket.bind(&source.into()).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(read(&mut stream, GREETING.len()), GREETING);
    stream
}

/// Established connections of `server`, as the kernel lists them: a peer may have the same port at his end.
fn held(server: &Server) -> usize {
    let local = format!(" 0100007F:{:04X} ", server.address.port());
    let listed = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let of_server = listed.lines().filter_map(|line| line.split_once(&local));
    of_server
        .filter(|(before, rest)| before.ends_with(':') && rest.split(' ').nth(1) == Some("01"))
        .count()
}

/// From now on what is sent to the peers goes out to a neighbour who is not there, and nothing comes back.
fn vanish() {
    command(&format!("ip address del {PEER}/32 dev lo"));
    command("ip route add 10.99.0.0/16 via 10.98.0.2 dev near");
}

#[test]
fn those_who_vanish_are_found_out() {
    if !namespace::is_in_namespace("those_who_vanish_are_found_out") {
        return;
    }
    command(&format!("ip address add {PEER}/32 dev lo"));
    command("ip link add near type veth peer name far");
    command("ip address add 10.98.0.1/30 dev near");
    command("ip link set near up");
    command("ip link set far up");
    command("ip neighbour add 10.98.0.2 lladdr 02:00:00:00:00:99 dev near nud permanent");

    // Found out by a probe where nothing is said, and by what is said and not acknowledged.
    let ways: [&[&str]; 2] = [
        &["--heartbeat", "0", "--keepalive", "1s"],
        &["--heartbeat", "300ms"],
    ];
    let servers: Vec<(String, Server)> = ["uring", "uring-fd", "epoll", "tokio-uring"]
        .into_iter()
        .flat_map(|engine| ways.map(|way| (engine, way)))
        .map(|(engine, way)| {
            let flags = [engine_flags(engine), way, &["--user-timeout", "1500ms"]];
            let name = format!("{engine} {}", way.join(" "));
            (name, Server::start(&flags.concat()))
        })
        .collect();
    let connect = |(_, server): &(String, Server)| {
        let vanishing: Vec<_> = (0..VANISHING).map(|_| dial(server)).collect();
        let mut staying = server.connect();
        assert_eq!(read(&mut staying, GREETING.len()), GREETING);
        (vanishing, staying)
    };
    let mut connections: Vec<_> = servers.iter().map(connect).collect();
    vanish();
    let began = Instant::now();
    for (name, server) in &servers {
        eventually(name, Duration::from_secs(20), || held(server) == 1);
    }
    eprintln!("found out within {:?}", began.elapsed());
    for ((name, server), (vanished, mut staying)) in servers.into_iter().zip(connections.drain(..))
    {
        staying.write_all(b"quit\n").unwrap();
        common::read_all(&mut staying);
        let (status, said) = server.stop(Duration::from_secs(10));
        assert!(status.success(), "{name}: {said}");
        let lost = format!("{VANISHING} reset by the peer or the network");
        assert!(said.contains(&lost), "{name}: {said}");
        assert!(said.contains("1 after quit"), "{name}: {said}");
        drop(vanished);
    }
}
