//! When the other side misbehaves, or dies: everything ends by itself, within a stated time, with what it measured.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Server, eventually, finish, has_engine, read, run, spawn, text, throng};
use nix::sys::signal::Signal;

/// Runs a client against `target`, and gives its output and its summary.
fn client(target: SocketAddr, flags: &[&str]) -> (Output, serde_json::Value) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let target = target.to_string();
    let mut all = vec![target.as_str(), "--json", json.path().to_str().unwrap()];
    all.extend(flags);
    let output = run(throng("client", &all), Duration::from_secs(40));
    let summary = std::fs::read(json.path()).unwrap();
    let summary = serde_json::from_slice(&summary).unwrap_or_default();
    (output, summary)
}

fn has_ring(test: &str) -> bool {
    has_engine("uring", test)
}

/// A server of the test's own: what it does with a connection is up to `serve`, on a thread of its own.
fn stub(serve: impl Fn(TcpStream, usize) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream, number));
        }
    });
    address
}

#[test]
fn a_healthy_run_is_complete() {
    if !has_ring("a_healthy_run_is_complete") {
        return;
    }
    let server = Server::start(&["--heartbeat", "500ms"]);
    let (output, summary) = client(
        server.address,
        &[
            "--connections",
            "500",
            "--hold",
            "2s",
            "--heartbeat",
            "500ms",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(summary["established"], 500);
    assert_eq!(summary["greetings_verified"], 500);
    assert_eq!(summary["lost_while_held"], 0);
    assert!(
        summary["heartbeats"]["received"].as_u64().unwrap() >= 1000,
        "{summary}"
    );
    assert_eq!(summary["ended"], "complete");
    assert!(summary["diagnosis"].is_null());
}

#[test]
fn messages_are_exchanged_and_verified() {
    if !has_ring("messages_are_exchanged_and_verified") {
        return;
    }
    for engine in ["uring", "epoll"] {
        for (protocol, bytes) in [("echo", "64"), ("line", "300"), ("echo", "65536")] {
            let server = Server::start(&["--engine", engine, "--protocol", protocol]);
            let flags = [
                "--connections",
                "40",
                "--active",
                "20",
                "--protocol",
                protocol,
                "--message-bytes",
                bytes,
                "--hold",
                "1s",
            ];
            let (output, summary) = client(server.address, &flags);
            assert_eq!(
                output.status.code(),
                Some(0),
                "{engine} {protocol} {bytes}: {}",
                text(&output)
            );
            assert!(summary["messages"]["completed"].as_u64().unwrap() > 20);
            assert_eq!(summary["messages"]["mismatched"], 0);
        }
    }
}

#[test]
fn nobody_listens() {
    if !has_ring("nobody_listens") {
        return;
    }
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let started = Instant::now();
    let (output, _) = client(closed, &["--connections", "1000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("listen"), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_server_that_never_answers_is_held_and_reported() {
    if !has_ring("a_server_that_never_answers_is_held_and_reported") {
        return;
    }
    let mute = stub(|mut stream, _| {
        let mut ignored = [0; 100];
        while matches!(stream.read(&mut ignored), Ok(1..)) {}
    });
    let flags = [
        "--connections",
        "50",
        "--hold",
        "1s",
        "--connect-timeout",
        "2s",
    ];
    let (output, summary) = client(mute, &flags);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(summary["established"], 50);
    assert_eq!(summary["greetings_missing"], 50);
}

#[test]
fn a_server_that_refuses_half_way_is_diagnosed() {
    if !has_ring("a_server_that_refuses_half_way_is_diagnosed") {
        return;
    }
    let server = Server::start(&["--max-connections", "100"]);
    let flags = ["--connections", "200", "--hold", "1s"];
    let (output, summary) = client(server.address, &flags);
    assert_eq!(output.status.code(), Some(1));
    assert!(summary["diagnosis"].is_string(), "{summary}");
    assert!(
        text(&output).contains("max-connections"),
        "{}",
        text(&output)
    );
}

#[test]
fn wrong_bytes_are_noticed() {
    if !has_ring("wrong_bytes_are_noticed") {
        return;
    }
    let liar = stub(|mut stream, number| {
        let mut bytes = [0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            bytes[count / 2] ^= u8::from(number == 3);
            let _ = stream.write_all(&bytes[..count]);
        }
    });
    let flags = [
        "--connections",
        "8",
        "--active",
        "8",
        "--protocol",
        "echo",
        "--hold",
        "1s",
    ];
    let (output, summary) = client(liar, &flags);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        summary["messages"]["mismatched"].as_u64().unwrap() >= 1,
        "{summary}"
    );
}

#[test]
fn a_server_that_dies_ends_the_client() {
    if !has_ring("a_server_that_dies_ends_the_client") {
        return;
    }
    let mut server = Server::start(&[]);
    let target = server.address.to_string();
    let port = server.address.port();
    let running = spawn(throng(
        "client",
        &[&target, "--connections", "500", "--hold", "60s"],
    ));
    eventually("500 are held", Duration::from_secs(10), || {
        common::established(port) >= 500
    });
    server.child.kill().unwrap();
    let died = Instant::now();
    let output = finish(running, Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(died.elapsed() < Duration::from_secs(15));
    assert!(text(&output).contains("lost"), "{}", text(&output));
}

#[test]
fn a_killed_client_leaves_the_server_empty_and_accepting() {
    if !has_ring("a_killed_client_leaves_the_server_empty_and_accepting") {
        return;
    }
    for engine in ["uring", "epoll"] {
        let server = Server::start(&["--engine", engine]);
        let (target, port) = (server.address.to_string(), server.address.port());
        let mut running = spawn(throng(
            "client",
            &[&target, "--connections", "900", "--hold", "60s"],
        ));
        eventually("900 are held", Duration::from_secs(10), || {
            common::established(port) >= 900
        });
        running.kill().unwrap();
        running.wait().unwrap();
        eventually("none is left", Duration::from_secs(10), || {
            common::established(port) == 0
        });
        let mut stream = server.connect();
        assert_eq!(read(&mut stream, 7), b"Welcome");
        let (status, said) = server.stop(Duration::from_secs(10));
        assert!(status.success(), "{said}");
    }
}

#[test]
fn an_interrupted_client_sums_up() {
    if !has_ring("an_interrupted_client_sums_up") {
        return;
    }
    let server = Server::start(&[]);
    let (target, port) = (server.address.to_string(), server.address.port());
    let running = spawn(throng(
        "client",
        &[&target, "--connections", "100", "--hold", "60s"],
    ));
    eventually("100 are held", Duration::from_secs(10), || {
        common::established(port) >= 100
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(running.id() as i32),
        Signal::SIGINT,
    )
    .unwrap();
    let output = finish(running, Duration::from_secs(10));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("interrupted"), "{}", text(&output));
}

/// The whole comparison, small. It names its report, and leaves no process behind.
#[test]
fn a_small_comparison_reports() {
    if !has_ring("a_small_comparison_reports") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let flags = [
        "--connections",
        "300",
        "--rounds",
        "1",
        "--hold",
        "3s",
        "--report",
        report.to_str().unwrap(),
    ];
    let output = run(throng("compare", &flags), Duration::from_secs(120));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert!(json.is_object());
    let page = report.with_extension("html");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg role=\"img\"") && html.contains("class=\"headline\""));
    for word in [
        "uring",
        "epoll",
        report.to_str().unwrap(),
        page.to_str().unwrap(),
    ] {
        assert!(
            text(&output).contains(word),
            "no {word} in {}",
            text(&output)
        );
    }
}

/// The death of the bench, however sudden, ends its children.
#[test]
fn a_killed_comparison_leaves_nothing_behind() {
    if !has_ring("a_killed_comparison_leaves_nothing_behind") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let marker = report.to_str().unwrap().to_string();
    let flags = [
        "--connections",
        "300",
        "--rounds",
        "0",
        "--hold",
        "30s",
        "--report",
        &marker,
    ];
    let mut running = spawn(throng("compare", &flags));
    let bench = running.id();
    let mut children = Vec::new();
    eventually("server and client run", Duration::from_secs(60), || {
        children = common::children_of(bench);
        children.len() >= 2
    });
    running.kill().unwrap();
    running.wait().unwrap();
    eventually("they have ended too", Duration::from_secs(20), || {
        children.iter().all(|pid| !common::is_running(*pid))
    });
}

/// A stub that stops reading in the middle: the client's sends are cut short, and it still ends in time.
#[test]
fn a_server_that_stalls_in_the_middle_ends_with_the_hold() {
    if !has_ring("a_server_that_stalls_in_the_middle_ends_with_the_hold") {
        return;
    }
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let stalls = stub(move |mut stream, _| {
        let mut bytes = [0; 1000];
        let count = stream.read(&mut bytes).unwrap_or(0);
        let _ = stream.write_all(&bytes[..count]);
        while !seen.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let flags = [
        "--connections",
        "4",
        "--active",
        "4",
        "--protocol",
        "echo",
        "--message-bytes",
        "65536",
        "--hold",
        "2s",
    ];
    let (output, summary) = client(stalls, &flags);
    over.store(true, Ordering::Relaxed);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(summary["messages"]["completed"], 0, "{summary}");
}
