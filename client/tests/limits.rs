//! Runs that stop short of what was asked, in namespaces whose limits are small: each says which limit it was.
//!
//! What only a whole host has (files, memory, conntrack's and the neighbours' maximum) is tested on recorded evidence.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsString;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use common::{command, has_io_uring, is_in_namespace, run, silent_server, skip, sysctl};
use serde_json::Value;

const GREETING: &[u8] = b"Welcome to the echo server! Type quit to exit.\r\n";

#[test]
fn ports_that_are_left_are_counted_before_and_named_when_they_run_out() {
    let test = "ports_that_are_left_are_counted_before_and_named_when_they_run_out";
    if !is_in_namespace(test) {
        return;
    }
    sysctl("net.ipv4.ip_local_reserved_ports", "1024-65435");
    let target = silent_server("127.0.0.1:700");
    let too_many = format!("throng-client {target} --source 127.0.0.1 --connections 101");
    let code = client::cli::main(too_many.split_whitespace().map(OsString::from));
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(2)));
    let flags = "--connections 100 --protocol echo --hold 0s";
    let all = run(&format!("{target} --source 127.0.0.1 {flags}"));
    assert_eq!(all["established"], 100, "{all}");
    assert_eq!(all["plan"]["tightest"]["limit"], "ephemeral_ports");
    assert_eq!(all["plan"]["tightest"]["connections"], 100);

    let _taken = TcpListener::bind("127.0.0.2:65500").unwrap();
    let short = run(&format!("{target} --source 127.0.0.2 {flags}"));
    assert_eq!(short["established"], 99, "{short}");
    let said = diagnosis(&short);
    assert!(
        said.contains("stopped by ephemeral ports: 100 ports x 1 source address")
            && said.contains("99 are established and another socket holds the next")
            && said.contains("ip_local_reserved_ports reserves 64412"),
        "{said}"
    );
}

#[test]
fn an_accept_queue_that_nobody_empties_is_named() {
    if !is_in_namespace("an_accept_queue_that_nobody_empties_is_named") {
        return;
    }
    sysctl("net.core.somaxconn", "4");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let summary = run(&format!(
        "{target} --connections 60 --protocol echo --connect-timeout 1s --hold 0s"
    ));
    assert!(
        summary["failed"]["ETIMEDOUT"].as_u64().unwrap() > 0,
        "{summary}"
    );
    // Told of the phase in which it was.
    let phases = &summary["host_counters"]["phases"];
    assert_eq!(phases[0]["phase"], "ramp", "{phases}");
    let trouble = phases[0]["trouble"].to_string();
    assert!(
        trouble.contains("because an accept queue was full"),
        "{phases}"
    );
    assert!(!trouble.contains("RetransSegs"), "{phases}");
    assert!(
        phases[0]["interfaces"]["lo"]["rx_packets"]
            .as_u64()
            .unwrap()
            > 0,
        "{phases}"
    );
    let said = diagnosis(&summary);
    assert!(
        said.contains("stopped by a full accept queue")
            && said.contains("ListenOverflows")
            && said.contains("sysctl -w net.core.somaxconn=4096")
            && said.ends_with("now: net.core.somaxconn = 4"),
        "{said}"
    );
}

#[test]
fn a_network_that_swallows_connects_is_told_from_one_that_refuses_them() {
    let test = "a_network_that_swallows_connects_is_told_from_one_that_refuses_them";
    if !is_in_namespace(test) {
        return;
    }
    // The other end of the pair takes packets, and nobody there has an address.
    command("ip link add v0 type veth peer name v1");
    command("ip addr add 10.1.1.1/24 dev v0");
    command("ip link set v0 up");
    command("ip link set v1 up");
    command("ip neigh add 10.1.1.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent");
    let to = |target: &str, more: &str| {
        let flags = "--source v0 --connections 5 --protocol echo --hold 0s";
        run(&format!("{target} {flags} {more}"))
    };
    let summary = to("10.1.1.2:7000", "--connect-timeout 2s");
    let ramp = &summary["host_counters"]["phases"][0];
    assert!(
        ramp["interfaces"]["v0"]["tx_packets"].as_u64().unwrap() >= 5,
        "{ramp}"
    );
    assert!(
        ramp["trouble"]
            .to_string()
            .contains("SYN-ACK packets sent again"),
        "{ramp}"
    );
    let said = diagnosis(&summary);
    assert!(
        said.contains("stopped by connects that nobody answers")
            && said.contains("SYNs were sent again")
            && said.contains("nstat -az"),
        "{said}"
    );
    // This one has no known neighbour, and nobody answers who it is.
    let said = diagnosis(&to("10.1.1.3:7000", "--connect-timeout 20s"));
    assert!(
        said.contains("10.1.1.3:7000 is unreachable (EHOSTUNREACH)")
            && said.ends_with("ip route get 10.1.1.3"),
        "{said}"
    );
    let said = diagnosis(&to("192.0.2.1:7000", ""));
    assert!(said.contains("there is no route to it"), "{said}");
}

#[test]
fn connects_that_a_firewall_drops_are_named() {
    let test = "connects_that_a_firewall_drops_are_named";
    if Command::new("nft").arg("--version").output().is_err() {
        return skip(test, "no nft");
    }
    if !is_in_namespace(test) {
        return;
    }
    command("nft add table inet t");
    command("nft add chain inet t input { type filter hook input priority 0 ; }");
    command("nft add rule inet t input tcp flags syn tcp dport 7000 counter drop");
    let target = silent_server("127.0.0.1:7000");
    let flags = "--connections 5 --protocol echo --connect-timeout 2s --hold 0s";
    let said = diagnosis(&run(&format!("{target} {flags}")));
    assert!(
        said.contains("stopped by connects that nobody answers") && said.contains("firewall"),
        "{said}"
    );
}

#[test]
fn a_source_that_vanishes_gets_the_command_that_brings_it_back() {
    if !is_in_namespace("a_source_that_vanishes_gets_the_command_that_brings_it_back") {
        return;
    }
    let client = |flags: &str| {
        // As a process, for what it says.
        let output = Command::new(env!("CARGO_BIN_EXE_throng-client"))
            .args(flags.split_whitespace())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap().trim().to_owned()
    };
    let target = silent_server("127.0.0.1:0");
    let said = client(&format!("{target} --source 10.7.0.5-10.7.0.9"));
    let commands = said.split_once("(as root): ").unwrap().1;
    assert_eq!(
        commands,
        "for net in 10.7.0.5/32 10.7.0.6/31 10.7.0.8/31; do ip route add local $net dev lo; done"
    );
    // The command is right: with it, the same sources carry connections.
    assert!(
        Command::new("sh")
            .args(["-c", commands])
            .status()
            .unwrap()
            .success()
    );
    let summary = run(&format!(
        "{target} --source 10.7.0.5-10.7.0.9 --connections 7000 --protocol echo --hold 0s"
    ));
    assert_eq!(summary["established"], 7000, "{summary}");
    assert_eq!(summary["plan"]["sources"][0]["addresses_in_use"], 2);
    let said = client("[::1]:7000 --source fd07::/64");
    assert!(
        said.ends_with("ip -6 route add local fd07::/64 dev lo"),
        "{said}"
    );
}

#[test]
fn files_that_do_not_suffice_for_the_rings_are_named() {
    if !has_io_uring("files_that_do_not_suffice_for_the_rings_are_named") {
        return;
    }
    // As processes of their own, with a limit of their own.
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 40 && exec \"$0\" 127.0.0.1:7000 --connections 20000",
        ])
        .arg(env!("CARGO_BIN_EXE_throng-client"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("stopped by the open-file limit of this process")
            && said.contains("ulimit -n ")
            && said.contains("now: nofile soft 40, hard 40"),
        "{said}"
    );
}

#[test]
fn a_server_that_serves_only_some_is_named() {
    if !has_io_uring("a_server_that_serves_only_some_is_named") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let streams = listener.incoming().flatten().take(5);
        let served: Vec<_> = streams
            .map(|mut stream| {
                stream.write_all(GREETING).unwrap();
                stream
            })
            .collect();
        // As one that has no open file left: the others stay in the queue.
        thread::sleep(Duration::from_secs(3));
        drop((served, listener));
    });
    let summary = run(&format!(
        "{target} --connections 20 --heartbeat 0s --hold 1s"
    ));
    let said = diagnosis(&summary);
    assert!(
        said.contains("stopped by the other side") && said.contains("served 5 connections"),
        "{said}"
    );
    server.join().unwrap();
}

#[test]
fn a_server_that_resets_is_named() {
    if !has_io_uring("a_server_that_resets_is_named") {
        return;
    }
    let summary = run(&format!(
        "{} --connections 20 --protocol echo --hold 1s",
        resetting_server()
    ));
    let said = diagnosis(&summary);
    assert!(
        said.contains("stopped by the other side") && said.contains("reset a connection"),
        "{said}"
    );
}

fn resetting_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let socket = socket2::Socket::from(stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    address
}

fn diagnosis(summary: &Value) -> String {
    let said = summary["diagnosis"].as_str();
    said.unwrap_or_else(|| panic!("{summary}")).to_owned()
}
