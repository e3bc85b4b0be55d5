//! What `deploy/` asks of a server is what a server says: each metric and label of the alert rules and the dashboard is in a
//! real scrape, and where Prometheus is installed (Debian's `prometheus`), each query has an answer there.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Server, eventually, get, skip};
use serde_json::Value;

const MANUAL: &str = include_str!("../../docs/admin.md");
const CONFIG: &str = include_str!("../../deploy/prometheus/prometheus.yml");
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
        said = get(&server.admin, "/metrics").1;
        !said.contains("lateness_seconds_count{worker=\"0\"} 0")
    });
    let series: BTreeSet<&str> = said
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for metric in &series {
        let named = format!("`{metric}");
        assert!(MANUAL.contains(&named), "the manual does not name {metric}");
    }
    for (name, text) in [
        ("alerts.yml", ALERTS),
        ("throng.json", DASHBOARD),
        ("admin.md", MANUAL),
    ] {
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
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
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

/// A Prometheus with the files of `deploy/prometheus`, that scrapes a server at `target` each second. It ends with its test.
struct Prometheus {
    child: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// None where it is not installed.
    fn start(target: &str) -> Option<Prometheus> {
        let directory = tempfile::tempdir().unwrap();
        let config = CONFIG
            .replace("127.0.0.1:7070", target)
            .replace("_interval: 5s", "_interval: 1s");
        assert!(config.contains(target) && config.contains("_interval: 1s"));
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        std::fs::write(directory.path().join("alerts.yml"), ALERTS).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        let data = directory.path().join("data");
        command.arg(format!("--storage.tsdb.path={}", data.display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let prometheus = Prometheus {
            child: command.spawn().ok()?,
            address,
            _directory: directory,
        };
        eventually("Prometheus is ready", || {
            std::net::TcpStream::connect(&prometheus.address).is_ok()
                && get(&prometheus.address, "/-/ready").0 == 200
        });
        Some(prometheus)
    }

    fn api(&self, path: &str) -> Value {
        let (status, body) = get(&self.address, &format!("/api/v1/{path}"));
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"].take()
    }

    /// The values of all series that `query` comes to.
    fn query(&self, query: &str) -> Vec<f64> {
        let query = serde_urlencoded::to_string([("query", query)]).unwrap();
        let data = self.api(&format!("query?{query}"));
        let series = data["result"].as_array().unwrap().iter();
        let value = |one: &Value| one["value"][1].as_str().unwrap().parse().unwrap();
        series.map(value).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is compared in an alert's expression, without what it is compared with.
fn operands(alert: &str) -> impl Iterator<Item = &str> {
    let sides = alert
        .split(" or ")
        .flat_map(|side| side.split(" and on (instance) "));
    sides.map(|side| {
        let compared = side.rsplit_once(" == ").or(side.rsplit_once(" > "));
        compared
            .unwrap_or_else(|| panic!("{side} compares nothing"))
            .0
    })
}

#[test]
fn prometheus_answers_every_query() {
    if let Err(why) = ring::probe() {
        return skip("prometheus_answers_every_query", &why.to_string());
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
    let Some(prometheus) = Prometheus::start(&server.admin) else {
        return skip(
            "prometheus_answers_every_query",
            "prometheus is not installed",
        );
    };
    eventually("it scrapes", || {
        let target = prometheus.api("targets")["activeTargets"][0].clone();
        assert_eq!(target["lastError"].as_str().unwrap_or(""), "", "{target}");
        target["health"] == "up"
    });
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let rules = prometheus.api("rules")["groups"][0]["rules"].clone();
    let rules = rules.as_array().unwrap();
    assert_eq!(rules.len(), ALERTS.matches("alert:").count());
    let of_alerts = rules
        .iter()
        .flat_map(|rule| operands(rule["query"].as_str().unwrap()));
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let of_panels = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let of_panels = of_panels.map(|target| target["expr"].as_str().unwrap());
    let queries: Vec<String> = of_alerts
        .chain(of_panels)
        .map(|query| {
            query
                .replace("$instance", ".+")
                .replace("$__rate_interval", "1m")
        })
        .collect();
    assert!(queries.len() > 20, "{queries:#?}");
    let _held = server.connect();
    for query in queries {
        eventually(&query, || {
            drop(server.connect());
            let values = prometheus.query(&query);
            !values.is_empty() && values.iter().all(|value| value.is_finite())
        });
    }
    let unhealthy = |rule: &&Value| !["ok", "unknown"].contains(&rule["health"].as_str().unwrap());
    let rules = prometheus.api("rules")["groups"][0]["rules"].clone();
    let unhealthy: Vec<_> = rules.as_array().unwrap().iter().filter(unhealthy).collect();
    assert!(unhealthy.is_empty(), "{unhealthy:#?}");

    drop(server);
    eventually("its end is noticed", || {
        prometheus.query("ALERTS{alertname=\"ThrongDown\"}") == [1.0]
    });
}
