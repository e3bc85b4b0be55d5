//! Many connections: one test at a time.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{GREETING, Server, eventually, has_engine, read, run, spawn, text, throng};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lowers this process's hard limit of open files, and so that of all it starts.
fn limit_nofile(most: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limit = hard.min(most);
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).unwrap();
}

#[test]
fn one_server_process_holds_more_connections_than_it_may_open_files() {
    if !has_engine(
        "uring",
        "one_server_process_holds_more_connections_than_it_may_open_files",
    ) {
        return;
    }
    let _alone = alone();
    limit_nofile(20_000);
    let server = Server::start(&["--engine", "uring", "--heartbeat", "2s", "--cores", "0"]);
    let json = tempfile::NamedTempFile::new().unwrap();
    let target = server.address.to_string();
    let flags = [
        &target,
        "--connections",
        "25000",
        "--hold",
        "5s",
        "--heartbeat",
        "2s",
        "--json",
        json.path().to_str().unwrap(),
    ];
    let output = run(throng("client", &flags), Duration::from_secs(90));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    assert_eq!(summary["established"], 25_000);
    assert_eq!(summary["lost_while_held"], 0);
    assert_eq!(summary["greetings_verified"], 25_000);
    assert!(
        summary["heartbeats"]["received"].as_u64().unwrap() >= 50_000,
        "{summary}"
    );
    let (status, said) = server.stop(Duration::from_secs(20));
    assert!(status.success());
    assert!(said.contains("25000 held at most"), "{said}");
    assert!(!said.contains("LOST"), "{said}");
}

/// A server whose tables have `slots` slots.
fn server_with_tables_of(slots: u32) -> Server {
    let mut command = std::process::Command::new("sh");
    let bench = common::bench();
    let bench = bench.display();
    // A limit in the shell, so that it is the server's alone.
    let line = format!(
        "ulimit -n {slots}; exec {bench} server --listen 127.0.0.1:0 --engine uring \
         --descriptors direct --cores 0 --heartbeat 0"
    );
    command
        .args(["-c", &line])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    Server::spawn(command)
}

/// Tables of 200 slots, far below the backlog: accepts are counted one by one, and tables follow on one another.
#[test]
fn small_tables_fill_one_after_the_other_and_lose_nobody() {
    if !has_engine(
        "uring",
        "small_tables_fill_one_after_the_other_and_lose_nobody",
    ) {
        return;
    }
    let _alone = alone();
    let server = server_with_tables_of(200);
    let target = server.address.to_string();
    for _ in 0..3 {
        let output = run(
            throng(
                "client",
                &[&target, "--connections", "3000", "--hold", "1s"],
            ),
            common::BOUND,
        );
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    let (status, said) = server.stop(Duration::from_secs(20));
    assert!(status.success());
    assert!(
        said.contains("9000 accepted") && !said.contains("LOST"),
        "{said}"
    );
}

/// Eight tables, then room in all of them again, in any slot.
#[test]
fn tiny_tables_are_used_again_where_they_have_room() {
    if !has_engine("uring", "tiny_tables_are_used_again_where_they_have_room") {
        return;
    }
    let _alone = alone();
    let server = server_with_tables_of(40);
    let mut held = Vec::new();
    let mut number = 0;
    for _ in 0..4 {
        while held.len() < 300 {
            held.push(server.connect());
        }
        for stream in &mut held[150 * usize::from(number > 0)..] {
            assert_eq!(read(stream, GREETING.len()), GREETING);
        }
        for stream in &mut held {
            number += 1;
            writeln!(stream, "line {number}").unwrap();
        }
        for (stream, at) in held.iter_mut().zip(number - 299..) {
            let line = format!("line {at}\n");
            assert_eq!(read(stream, line.len()), line.as_bytes());
        }
        let mut keep = [true, false].iter().cycle();
        held.retain(|_| *keep.next().unwrap_or(&true));
    }
    let (status, said) = server.stop(Duration::from_secs(10));
    assert!(status.success());
    assert!(
        said.contains("750 accepted") && !said.contains("LOST"),
        "{said}"
    );
}

#[test]
fn after_a_server_was_killed_a_new_one_takes_its_port_within_five_seconds() {
    if !has_engine(
        "uring",
        "after_a_server_was_killed_a_new_one_takes_its_port_within_five_seconds",
    ) {
        return;
    }
    let _alone = alone();
    for engine in ["uring", "epoll"] {
        let mut server = Server::start(&["--engine", engine]);
        let (address, port) = (server.address.to_string(), server.address.port());
        let mut client = spawn(throng(
            "client",
            &[&address, "--connections", "10000", "--hold", "60s"],
        ));
        eventually("10,000 are held", Duration::from_secs(30), || {
            common::established(port) >= 10_000
        });
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let killed = Instant::now();
        let next = Server::start(&["--engine", engine, "--listen", &address]);
        assert_eq!(read(&mut next.connect(), 7), b"Welcome");
        assert!(
            killed.elapsed() < Duration::from_secs(5),
            "{:?}",
            killed.elapsed()
        );
        let status =
            common::wait(&mut client, Duration::from_secs(20)).expect("the client does not end");
        assert_eq!(status.code(), Some(1));
    }
}
