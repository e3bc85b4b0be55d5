//! Everybody comes back at once: a server that was killed with all its connections has them again within seconds; and a
//! backlog that is too short for those who come costs repeats, and nobody his connection. In a network namespace of its own,
//! whose counters of refused connections are nobody else's.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../client/tests/common/mod.rs"]
mod namespace;

use std::process::Child;
use std::time::{Duration, Instant};

use common::{BOUND, Server, engine_flags, eventually, finish, spawn, text, throng};
use kernel_tuning::host::NetCounters;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const CLIENTS: usize = 4_000;

#[test]
fn all_are_back_within_seconds_by_uring() {
    if namespace::is_in_namespace("all_are_back_within_seconds_by_uring") {
        comes_back("uring");
    }
}

#[test]
fn all_are_back_within_seconds_by_epoll() {
    if namespace::is_in_namespace("all_are_back_within_seconds_by_epoll") {
        comes_back("epoll");
    }
}

/// The backlog has room for 64, and for seconds nobody takes them out.
#[test]
fn those_who_find_the_backlog_full_come_in_later() {
    if namespace::is_in_namespace("those_who_find_the_backlog_full_come_in_later") {
        namespace::sysctl("net.core.somaxconn", "64");
        for engine in ["uring", "epoll"] {
            waits_outside(engine);
        }
    }
}

fn comes_back(engine: &str) {
    let flags = [engine_flags(engine), &["--heartbeat", "1s"]].concat();
    let server = Server::start(&flags);
    let address = server.address.to_string();
    let client = Client::start(&address, CLIENTS);
    // Some come to the killed server's backlog first, which the kernel takes down a little later, and are lost again.
    let held = |lost| client.held() == CLIENTS as u64 && client.lost() >= lost;
    eventually("all are held", BOUND, || held(0));

    let before = NetCounters::read().unwrap();
    // Killed: all its connections end in one moment.
    drop(server);
    let began = Instant::now();
    let server = Server::start(&[&flags[..], &["--listen", &address]].concat());
    eventually("all are back", Duration::from_secs(40), || {
        held(CLIENTS as u64)
    });
    let took = began.elapsed();
    let after = NetCounters::read().unwrap();
    let grown = after.since(&before);
    let refused = grown.get("ListenOverflows").unwrap();
    eprintln!("{engine}: {CLIENTS} are back within {took:?}; ListenOverflows grew by {refused}");
    let summary = client.stop();
    let again = &summary["reconnects"];
    assert_eq!(again["succeeded"], summary["lost_while_held"], "{summary}");
    assert_eq!(again["still_lost"], 0, "{again}");
    assert_eq!(summary["established"], CLIENTS);
    let (status, said) = server.stop(Duration::from_secs(20));
    assert!(status.success(), "{said}");
    assert!(!said.contains("LOST"), "{said}");
}

fn waits_outside(engine: &str) {
    const COMERS: usize = 1_000;
    let flags = [engine_flags(engine), &["--heartbeat", "1s"]].concat();
    let server = Server::start(&flags);
    server.signal(Signal::SIGSTOP);
    let before = NetCounters::read().unwrap();
    let client = Client::start(&server.address.to_string(), COMERS);
    let overflows = || {
        let grown = NetCounters::read().unwrap().since(&before);
        grown.get("ListenOverflows").unwrap()
    };
    eventually("the backlog overflows", BOUND, || overflows() > 64);
    server.signal(Signal::SIGCONT);
    let began = Instant::now();
    eventually("all are in", BOUND, || client.held() == COMERS as u64);
    let took = began.elapsed();
    eprintln!(
        "{engine}: {COMERS} are in within {took:?}; ListenOverflows grew by {}",
        overflows()
    );
    let summary = client.stop();
    assert_eq!(summary["established"], COMERS, "{summary}");
    assert_eq!(summary["lost_while_held"], 0, "{summary}");
    let (status, said) = server.stop(Duration::from_secs(20));
    assert!(status.success(), "{said}");
    assert!(!said.contains("LOST"), "{said}");
}

/// A client that holds its connections until it is stopped, and makes those again that it loses.
struct Client {
    child: Child,
    samples: tempfile::NamedTempFile,
}

impl Client {
    fn start(address: &str, connections: usize) -> Client {
        let samples = tempfile::NamedTempFile::new().unwrap();
        let args = format!(
            "--heartbeat 1s --reconnect 50ms..1s --hold 10m --json - --sample-interval 20ms --samples {} --connections \
             {connections} {address}",
            samples.path().display()
        );
        let args: Vec<&str> = args.split_whitespace().collect();
        let child = spawn(throng("client", &args));
        Client { child, samples }
    }

    fn last(&self, name: &str) -> Option<u64> {
        let samples = std::fs::read_to_string(self.samples.path()).unwrap();
        let samples = samples.lines().flat_map(serde_json::from_str::<Value>);
        samples.last()?[name].as_u64()
    }

    fn held(&self) -> u64 {
        self.last("established").unwrap_or(0)
    }

    fn lost(&self) -> u64 {
        self.last("lost").unwrap_or(0)
    }

    /// The summary.
    fn stop(self) -> Value {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        let output = finish(self.child, BOUND);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    }
}
