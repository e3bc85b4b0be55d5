//! A server that refuses some connections by a rule of its own: the others are held to the end, and the refusal is
//! named. And one that never greets, or has no more heartbeats: those that are to be made again do not wait for ever.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};

#[test]
fn an_echo_server_that_turns_some_away_keeps_the_others() {
    if let Err(why) = ring::probe() {
        let line = format!("SKIPPED an_echo_server_that_turns_some_away_keeps_the_others: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // Every later stream is dropped, and so closed, at once.
        let mut held = Vec::new();
        for stream in listener.incoming().flatten() {
            if held.len() < 10 {
                held.push(stream);
            }
        }
    });
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "throng-client {target} --connections 20 --protocol echo --hold 3s --json {}",
        json.path().display()
    );
    client::cli::main(args.split_whitespace().map(OsString::from));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    assert_eq!(summary["ended"], "complete", "{summary}");
    assert_eq!(summary["lost_while_held"], 10, "{summary}");
    let diagnosis = summary["diagnosis"].as_str().unwrap();
    assert!(diagnosis.contains("--max-connections"), "{diagnosis}");
}

#[test]
fn who_is_never_greeted_is_made_again() {
    if let Err(why) = ring::probe() {
        let line = format!("SKIPPED who_is_never_greeted_is_made_again: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    // The kernel finishes the handshakes of those who wait in its queue.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    is_made_again(
        listener.local_addr().unwrap(),
        "no greeting within --connect-timeout",
    );
}

#[test]
fn who_hears_no_heartbeat_any_more_is_made_again() {
    if let Err(why) = ring::probe() {
        let line = format!("SKIPPED who_hears_no_heartbeat_any_more_is_made_again: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(wire::line::GREETING);
            held.push(stream);
        }
    });
    is_made_again(target, "no heartbeat for three intervals");
}

/// Connections to `target`, a server that speaks too little, are given up for that `cause`, and made again.
fn is_made_again(target: SocketAddr, cause: &str) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "throng-client {target} --connections 5 --reconnect 20ms..50ms --connect-timeout 1s --heartbeat 300ms --hold 4s --json {}",
        json.path().display()
    );
    client::cli::main(args.split_whitespace().map(OsString::from));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let given_up = summary["lost_by_cause"][cause].as_u64();
    assert!(given_up >= Some(5), "{summary}");
    let succeeded = summary["reconnects"]["succeeded"].as_u64();
    assert!(succeeded >= Some(5), "{summary}");
}
