//! A server that ends while a client holds connections: announced, left, counted on both sides.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod common;

use std::time::{Duration, Instant};

use common::{BOUND, Server, engine_flags, eventually, finish, has_engine, spawn, text, throng};
use nix::sys::signal::Signal;

for_each_engine!(a_client_that_is_told_leaves_and_counts_it_as_announced);

fn a_client_that_is_told_leaves_and_counts_it_as_announced(engine: &str) {
    if !has_engine("uring", "a_client_that_is_told_leaves") {
        return;
    }
    let flags = [
        engine_flags(engine),
        &["--drain-timeout", "20s", "--heartbeat", "500ms"],
    ];
    let server = Server::start(&flags.concat());
    let address = server.address.to_string();
    let mut args: Vec<&str> = "--connections 300 --active 50 --message-rate 500 --hold 30s"
        .split(' ')
        .collect();
    args.extend(["--heartbeat", "500ms", "--json", "-", &address]);
    let client = spawn(throng("client", &args));
    let port = server.address.port();
    eventually("300 are held", Duration::from_secs(30), || {
        common::established(port) >= 300
    });
    std::thread::sleep(Duration::from_millis(700));
    server.signal(Signal::SIGTERM);
    let began = Instant::now();
    let (status, said) = server.stop_told(Duration::from_secs(40));
    assert!(status.success(), "{said}");
    assert!(began.elapsed() < Duration::from_secs(15), "{said}");
    let drained = "300 held at the stop: 300 went by themselves, 0 were closed";
    assert!(said.contains(drained), "{said}");
    let output = finish(client, BOUND);
    let summary: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    assert_eq!(summary["announced"], 300, "{summary}");
    assert_eq!(summary["lost_by_cause"]["announced by the server"], 300);
    assert_eq!(summary["messages"]["mismatched"], 0, "{summary}");
}
