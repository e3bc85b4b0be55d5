//! Many connections from few addresses: ports that others hold are replaced, both families work at once, and neither the
//! kernel's port range nor its scan for a free port matters.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{has_io_uring, is_in_namespace, run, silent_server, sysctl};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

#[test]
fn ports_that_others_hold_are_replaced() {
    if !has_io_uring("ports_that_others_hold_are_replaced") {
        return;
    }
    let target = silent_server("127.0.0.1:0");
    let source = |port| SocketAddr::from(([127, 3, 1, 1], port));
    // Taken at bind; and, since they share the address, at connect.
    let listening: Vec<TcpListener> = (10_000..10_050)
        .map(|port| TcpListener::bind(source(port)).unwrap())
        .collect();
    let connected: Vec<TcpStream> = (10_050..10_080)
        .map(|port| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&source(port).into()).unwrap();
            socket.connect(&target.into()).unwrap();
            socket.into()
        })
        .collect();
    let summary = run(&format!(
        "{target} --source 127.3.1.1 --connections 500 --protocol echo --hold 0s"
    ));
    assert_eq!(summary["ports_in_use"], 80, "{summary}");
    assert_all_held(&summary, 500);
    drop((listening, connected));
}

#[test]
fn one_address_carries_thousands_whatever_the_kernels_port_range() {
    let test = "one_address_carries_thousands_whatever_the_kernels_port_range";
    if !is_in_namespace(test) {
        return;
    }
    sysctl("net.ipv4.ip_local_port_range", "40000 40009");
    let target = silent_server("127.0.0.1:0");
    let start = Instant::now();
    let summary = run(&format!(
        "{target} --source 127.0.0.1 --connections 9000 --protocol echo --hold 0s"
    ));
    assert_all_held(&summary, 9000);
    assert_eq!(summary["plan"]["sources"][0]["addresses_in_use"], 1);
    assert!(start.elapsed() < Duration::from_secs(30), "{summary}");
}

#[test]
fn an_interface_serves_targets_of_both_families() {
    if !is_in_namespace("an_interface_serves_targets_of_both_families") {
        return;
    }
    if TcpListener::bind("[::1]:0").is_err() {
        common::skip("an_interface_serves_targets_of_both_families", "no IPv6");
        return;
    }
    let targets = ["127.0.0.1:0", "[::1]:0"].map(silent_server);
    let summary = run(&format!(
        "{} {} --source lo --connections 200 --protocol echo --hold 0s",
        targets[0], targets[1]
    ));
    assert_all_held(&summary, 200);
    let sources = &summary["plan"]["sources"];
    assert_eq!(sources[0]["is_ipv4"], true, "{sources}");
    assert_eq!(sources[1]["addresses"], 1, "{sources}");
}

fn assert_all_held(summary: &Value, connections: u64) {
    assert_eq!(summary["established"], connections, "{summary}");
    assert_eq!(summary["failed"], serde_json::json!({}), "{summary}");
    assert_eq!(summary["lost_while_held"], 0, "{summary}");
    assert_eq!(summary["ended"], "complete", "{summary}");
}
