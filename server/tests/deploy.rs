//! What `deploy/` asks of a server is what a server says: each metric and label of the alert rules and the dashboard is in a
//! real scrape.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use common::{LONG, Server, eventually, skip};

fn scrape(at: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/throng.json");

/// The names of Throng's in `text`, with what follows in braces.
fn metrics(text: &str) -> BTreeSet<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = text.match_indices("throng_").map(|(at, _)| at);
    let whole = starts.filter(|at| !text[..*at].ends_with(is_word));
    whole
        .map(|at| {
            let rest = &text[at..];
            &rest[..rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())]
        })
        .collect()
}

#[test]
fn every_query_is_about_something_that_is_said() {
    if let Err(why) = ring::probe() {
        return skip("every_query", &why.to_string());
    }
    let flags = [
        "--admin",
        "127.0.0.1:0",
        "--cores",
        "0",
        "--heartbeat",
        "100ms",
    ];
    let server = Server::start("uring", &flags);
    let _held = server.connect();
    let mut said = String::new();
    eventually("a heartbeat is said", || {
        said = scrape(&server.admin);
        !said.contains("lateness_seconds_count{worker=\"0\"} 0")
    });
    let series: BTreeSet<&str> = said
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (name, text) in [("alerts.yml", ALERTS), ("throng.json", DASHBOARD)] {
        let asked = metrics(text);
        assert!(asked.len() > 5, "{name}: {asked:?}");
        for metric in asked {
            assert!(
                series.contains(metric),
                "{name} asks for {metric}, which nobody says"
            );
        }
    }
    for reason in ["slow_reader", "write_timeout", "worker_memory"] {
        assert!(ALERTS.contains(reason));
        assert!(said.contains(&format!("reason=\"{reason}\"")), "{reason}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 5);
}

#[test]
fn the_rules_are_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new("promtool");
    command.args(["check", "config", "deploy/prometheus/prometheus.yml"]);
    match command.current_dir(root).output() {
        Err(error) => skip("the_rules_are_rules", &format!("promtool: {error}")),
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&said)
            );
        }
    }
}
