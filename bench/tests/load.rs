//! The loads of the client against the real server: messages by a schedule, and connections made again and again.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{BOUND, Server, finish, has_engine, run, spawn, text, throng};
use serde_json::Value;

/// `throng-bench client` with `args` and a JSON summary on stdout.
fn client(server: &Server, args: &str) -> std::process::Command {
    let target = server.address.to_string();
    let args = format!("{target} {args} --json -");
    throng("client", &args.split_whitespace().collect::<Vec<_>>())
}

fn summary(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

#[test]
fn messages_keep_their_schedule_beside_heartbeats() {
    if !has_engine("uring", "messages_keep_their_schedule_beside_heartbeats") {
        return;
    }
    let server = Server::start(&["--heartbeat", "500ms"]);
    let args = "--connections 200 --active 50 --message-rate 2000 --heartbeat 500ms --hold 2s";
    let output = run(client(&server, args), BOUND);
    let summary = summary(&output);
    assert!(output.status.success(), "{}", text(&output));
    let messages = &summary["messages"];
    let open = &messages["open_loop"];
    let due = open["due"].as_u64().unwrap();
    // A machine that is busy elsewhere may hold longer than it was told, but never sends ahead of its time.
    let bound = 2_000.0 * messages["seconds"].as_f64().unwrap() + 500.0;
    assert!(due >= 3_500 && (due as f64) < bound, "{messages}");
    assert_eq!(open["sent"], messages["completed"]);
    assert_eq!(messages["active"], 50);
    let count = |histogram: &Value| histogram["count"].as_u64().unwrap();
    assert_eq!(
        count(&messages["latency_us"]),
        count(&open["latency_from_send_us"])
    );
    assert!(summary["heartbeats"]["received"].as_u64().unwrap() >= 200);
}

#[test]
fn connections_churn_and_the_server_sees_each() {
    if !has_engine("uring", "connections_churn_and_the_server_sees_each") {
        return;
    }
    for flags in [&[][..], &["--protocol", "echo"], &["--engine", "epoll"]] {
        let server = Server::start(flags);
        let protocol = if flags.contains(&"echo") {
            "echo"
        } else {
            "line"
        };
        let args = format!(
            "--connections 100 --churn 30 --active 20 --protocol {protocol} --message-bytes 500 --hold 1s"
        );
        let output = run(client(&server, &args), BOUND);
        let summary = summary(&output);
        assert!(output.status.success(), "{}", text(&output));
        let churn = &summary["churn"];
        let cycles = churn["cycles"].as_u64().unwrap();
        assert!(cycles >= 100, "{churn}");
        assert_eq!(churn["connections"], 30);
        assert_eq!(churn["failed"], serde_json::json!({}));
        assert_eq!(churn["cycle_us"]["count"], cycles);
        assert_eq!(churn["connect_us"]["count"], cycles);
        assert_eq!(summary["lost_while_held"], 0);
        assert_eq!(summary["messages"]["active"], 20);
        let (_, said) = server.stop(Duration::from_secs(10));
        assert!(
            said.contains(&format!("{} accepted", 100 + cycles)),
            "{said}"
        );
    }
}

#[test]
fn churn_that_fails_is_counted_and_ends_the_run_as_flawed() {
    if !has_engine(
        "uring",
        "churn_that_fails_is_counted_and_ends_the_run_as_flawed",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let child = spawn(client(&server, "--connections 40 --churn 40 --hold 30s"));
    std::thread::sleep(Duration::from_secs(1));
    drop(server);
    let output = finish(child, Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let summary = summary(&output);
    assert_eq!(summary["lost_while_held"], 40, "{summary}");
    assert!(
        summary["churn"]["cycles"].as_u64().unwrap() > 0,
        "{summary}"
    );
}
