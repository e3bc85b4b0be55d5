//! A server that takes no more connections: the churn that cannot go on is counted by its cause, and is a loss.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpListener;

#[test]
fn a_reconnect_that_is_refused_is_counted_and_named() {
    if let Err(why) = ring::probe() {
        let line = format!("SKIPPED a_reconnect_that_is_refused_is_counted_and_named: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let mut ports = Vec::new();
        let mut listener = Some(listener);
        for number in 1..=10 {
            let mut stream = listener.as_ref().unwrap().accept().unwrap().0;
            ports.push(stream.peer_addr().unwrap());
            // Before the last is answered, so before it can be closed and made again.
            listener.take_if(|_| number == 10);
            let mut bytes = [0; 64];
            // The first connection is reset without a message, to begin.
            while stream.read_exact(&mut bytes).is_ok() {
                stream.write_all(&bytes).unwrap();
            }
        }
        ports
    });
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "throng-client {target} --connections 1 --churn 1 --protocol echo --hold 10s --json {}",
        json.path().display()
    );
    client::cli::main(args.split_whitespace().map(OsString::from));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let ports = server.join().unwrap();
    assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
    let churn = &summary["churn"];
    assert_eq!(churn["connections"], 1, "{summary}");
    assert_eq!(churn["cycles"], 9, "{summary}");
    assert_eq!(
        churn["failed"],
        serde_json::json!({"ECONNREFUSED": 1}),
        "{summary}"
    );
    assert_eq!(churn["unfinished"], 0, "{summary}");
    assert_eq!(
        summary["lost_by_cause"],
        serde_json::json!({"not reconnected": 1}),
        "{summary}"
    );
    assert_eq!(summary["ended"], "server gone", "{summary}");
    assert!(summary["diagnosis"].as_str().is_some(), "{summary}");
}

#[test]
fn cycles_that_a_server_holds_up_are_owed() {
    if let Err(why) = ring::probe() {
        let line = format!("SKIPPED cycles_that_a_server_holds_up_are_owed: {why}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    // Accepts by its backlog, and answers nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "throng-client {target} --connections 5 --churn 5 --churn-rate 100 --protocol echo --hold 1s --json {}",
        json.path().display()
    );
    client::cli::main(args.split_whitespace().map(OsString::from));
    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    let churn = &summary["churn"];
    let open = &churn["open_loop"];
    assert_eq!(churn["cycles"], 0, "{summary}");
    assert_eq!(churn["unfinished"], 5, "{summary}");
    assert_eq!(open["sent"], 5, "{open}");
    assert_eq!(open["is_short"], true, "{open}");
    let count = |name: &str| open[name].as_u64().unwrap();
    assert!(count("due") >= 100, "{open}");
    assert_eq!(count("owed"), count("due") - 5, "{open}");
    assert_eq!(open["client_lateness_us"]["count"], count("due"), "{open}");
}
