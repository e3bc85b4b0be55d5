//! The shapes of a load over real processes: connections brought up and down as asked, closed in order, made again after a
//! loss, and churned at a rate.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Output;
use std::time::Duration;

use common::{BOUND, Server, eventually, finish, has_engine, run, spawn, text, throng};
use nix::sys::signal::Signal;
use serde_json::Value;

/// `throng-bench client` with `args`, a JSON summary on stdout and samples to a file.
struct Client {
    command: std::process::Command,
    samples: tempfile::NamedTempFile,
}

struct Ran {
    output: Output,
    summary: Value,
    samples: Vec<Value>,
}

impl Client {
    fn new(server: &Server, args: &str) -> Client {
        let samples = tempfile::NamedTempFile::new().unwrap();
        let target = server.address.to_string();
        let path = samples.path().display();
        let args = format!("{target} {args} --sample-interval 20ms --samples {path} --json -");
        let command = throng("client", &args.split_whitespace().collect::<Vec<_>>());
        Client { command, samples }
    }

    fn run(self) -> Ran {
        Ran::new(run(self.command, BOUND), &self.samples)
    }
}

impl Ran {
    fn new(output: Output, samples: &tempfile::NamedTempFile) -> Ran {
        let summary =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        Ran {
            output,
            summary,
            samples: read_samples(samples),
        }
    }

    /// Time in milliseconds, asked for and established, at each sample of `phase`.
    fn course(&self, phase: &str) -> Vec<[u64; 3]> {
        let of_phase = self
            .samples
            .iter()
            .filter(|sample| sample["phase"] == phase);
        of_phase
            .map(|sample| ["t_ms", "asked", "established"].map(|name| count(sample, name)))
            .collect()
    }
}

fn read_samples(file: &tempfile::NamedTempFile) -> Vec<Value> {
    let text = std::fs::read_to_string(file.path()).unwrap();
    text.lines().flat_map(serde_json::from_str).collect()
}

fn count(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} of {value}"))
}

/// How many connections the server says were closed in a way.
fn closed(said: &str, how: &str) -> u64 {
    let lines = said
        .lines()
        .filter(|line| line.trim_start().starts_with("closed"));
    let of_kind = lines.filter(|line| line.contains(how));
    of_kind
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum()
}

/// Many of them cross a close.
const HEARTBEAT: &[&str] = &["--heartbeat", "50ms"];

#[test]
fn levels_are_told_apart_and_heartbeats_are_awaited_only_once_they_have_begun() {
    if !has_engine("uring", "levels_are_told_apart") {
        return;
    }
    let server = Server::start(&["--heartbeat", "1s", "--heartbeat-at-signal"]);
    let args = "--connections 600 --steps 50,200,600 --step-hold 300ms --idle-for 2s --hold 4s --heartbeat 1s";
    let Client { command, samples } = Client::new(&server, args);
    let running = spawn(command);
    eventually("600 are held", BOUND, || {
        common::established(server.address.port()) == 600
    });
    // No phase of it is that long.
    std::thread::sleep(Duration::from_millis(500));
    server.signal(Signal::SIGUSR2);
    let ran = Ran::new(finish(running, BOUND), &samples);
    assert!(ran.output.status.success(), "{}", text(&ran.output));
    let levels: Vec<u64> = ran.summary["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| count(step, "established"))
        .collect();
    assert_eq!(levels, [50, 200, 600]);
    for (phase, level) in [
        ("step-1", 50),
        ("step-2", 200),
        ("idle", 600),
        ("hold", 600),
    ] {
        let course = ran.course(phase);
        assert!(
            course.iter().all(|[.., there]| *there == level),
            "{phase}: {course:?}"
        );
        assert!(!course.is_empty(), "{phase}");
    }
    let heartbeats = &ran.summary["heartbeats"];
    assert!(count(heartbeats, "received") >= 600, "{heartbeats}");
    assert_eq!(count(heartbeats, "missing"), 0);
}

#[test]
fn steps_are_held_one_after_the_other() {
    if !has_engine("uring", "steps_are_held_one_after_the_other") {
        return;
    }
    let server = Server::start(&[]);
    let args = "--connections 600 --steps 3 --step-hold 500ms --hold 100ms";
    let ran = Client::new(&server, args).run();
    assert!(ran.output.status.success(), "{}", text(&ran.output));
    let steps = ran.summary["steps"].as_array().unwrap();
    for (step, connections) in steps.iter().zip([200, 400, 600]) {
        assert_eq!(count(step, "connections"), connections, "{step}");
        assert_eq!(count(step, "established"), connections, "{step}");
    }
    assert_eq!(steps.len(), 3);
    for step in &steps[..2] {
        assert!(step["held_seconds"].as_f64().unwrap() >= 0.5, "{step}");
    }
    let held_seconds: f64 = steps
        .iter()
        .map(|step| step["held_seconds"].as_f64().unwrap())
        .sum();
    let ramp_seconds = ran.summary["ramp_seconds"].as_f64().unwrap();
    let (from, to) = (&steps[0]["began_seconds"], &steps[2]["began_seconds"]);
    let until_last = to.as_f64().unwrap() - from.as_f64().unwrap();
    let up_seconds = steps[2]["up_seconds"].as_f64().unwrap();
    assert!(
        ramp_seconds <= until_last + up_seconds - held_seconds + 0.1,
        "{ramp_seconds}"
    );
    let ramp = ran.course("ramp");
    assert!(
        ramp.iter().all(|[_, asked, there]| there <= asked),
        "{ramp:?}"
    );
    for level in [200, 400] {
        let plateau: Vec<u64> = ramp
            .iter()
            .filter(|[_, asked, there]| *asked == level && *there == level)
            .map(|[at, ..]| *at)
            .collect();
        let held = plateau.last().unwrap() - plateau[0];
        assert!(held >= 400, "{level} held for {held} ms: {ramp:?}");
    }
}

#[test]
fn a_linear_ramp_takes_its_time_and_is_never_ahead_of_it() {
    if !has_engine(
        "uring",
        "a_linear_ramp_takes_its_time_and_is_never_ahead_of_it",
    ) {
        return;
    }
    let server = Server::start(&[]);
    let args = "--connections 500 --ramp 1s --hold 100ms";
    let ran = Client::new(&server, args).run();
    assert!(ran.output.status.success(), "{}", text(&ran.output));
    assert!(
        ran.summary["ramp_seconds"].as_f64().unwrap() >= 0.95,
        "{}",
        ran.summary
    );
    let ramp = ran.course("ramp");
    for [at, asked, there] in &ramp {
        // The run's clock begins a little before the order.
        assert!(there <= asked && *asked <= at / 2 + 1, "{ramp:?}");
    }
    let levels: std::collections::BTreeSet<u64> = ramp.iter().map(|[.., there]| *there).collect();
    assert!(levels.len() >= 5, "{ramp:?}");
}

#[test]
fn a_ramp_down_spreads_its_closes() {
    if !has_engine("uring", "a_ramp_down_spreads_its_closes") {
        return;
    }
    for (close, how) in [("fin", "by the peer"), ("rst", "reset by the peer")] {
        let server = Server::start(HEARTBEAT);
        let args = format!(
            "--connections 500 --heartbeat 50ms --hold 100ms --ramp-down 1s --close {close}"
        );
        let ran = Client::new(&server, &args).run();
        assert!(ran.output.status.success(), "{}", text(&ran.output));
        assert_eq!(ran.summary["greetings_verified"], 500);
        assert_eq!(ran.summary["lost_while_held"], 0);
        let fall = ran.course("ramp-down");
        assert!(
            fall.iter().all(|[_, asked, there]| there >= asked),
            "{fall:?}"
        );
        let took = fall.last().unwrap()[0] - fall[0][0];
        assert!(took >= 950, "{took} ms: {fall:?}");
        let levels: std::collections::BTreeSet<u64> =
            fall.iter().map(|[.., there]| *there).collect();
        assert!(levels.len() >= 5, "{fall:?}");
        assert_eq!(count(ran.samples.last().unwrap(), "established"), 0);
        let (_, said) = server.stop(Duration::from_secs(10));
        assert_eq!(closed(&said, how), 500, "{close}: {said}");
    }
}

#[test]
fn connections_closed_in_order_are_no_resets() {
    if !has_engine("uring", "connections_closed_in_order_are_no_resets") {
        return;
    }
    let server = Server::start(HEARTBEAT);
    let args = "--connections 300 --active 50 --churn 50 --heartbeat 50ms --hold 500ms --close fin";
    let ran = Client::new(&server, args).run();
    assert!(ran.output.status.success(), "{}", text(&ran.output));
    let cycles = count(&ran.summary["churn"], "cycles");
    assert!(cycles >= 50, "{}", ran.summary);
    let (_, said) = server.stop(Duration::from_secs(10));
    assert_eq!(closed(&said, "reset"), 0, "{said}");
    assert_eq!(closed(&said, "by the peer"), 300 + cycles, "{said}");
}

#[test]
fn what_a_restarted_server_lost_comes_back() {
    if !has_engine("uring", "what_a_restarted_server_lost_comes_back") {
        return;
    }
    let server = Server::start(&["--heartbeat", "500ms"]);
    let listen = server.address.to_string();
    let client = Client::new(
        &server,
        "--connections 300 --active 30 --message-rate 100 --heartbeat 500ms --hold 8s --reconnect 50ms..400ms",
    );
    let is_up = |samples: &[Value], reconnected| {
        samples.last().is_some_and(|last| {
            count(last, "established") == 300 && count(last, "reconnected") == reconnected
        })
    };
    let child = spawn(client.command);
    eventually("all are up", BOUND, || {
        is_up(&read_samples(&client.samples), 0)
    });
    drop(server);
    eventually("all are lost", BOUND, || {
        let last = read_samples(&client.samples).pop();
        last.is_some_and(|last| count(&last, "lost") == 300)
    });
    std::thread::sleep(Duration::from_millis(500));
    let server = Server::start(&["--heartbeat", "500ms", "--listen", &listen]);
    eventually("all are back", BOUND, || {
        is_up(&read_samples(&client.samples), 300)
    });
    let ran = Ran::new(finish(child, BOUND), &client.samples);
    // A loss is a loss.
    assert_eq!(ran.output.status.code(), Some(1), "{}", text(&ran.output));
    assert_eq!(ran.summary["lost_while_held"], 300, "{}", ran.summary);
    assert_eq!(ran.summary["ended"], "complete");
    assert_eq!(ran.summary["established"], 300);
    let again = &ran.summary["reconnects"];
    assert_eq!(count(again, "succeeded"), 300, "{again}");
    assert_eq!(count(again, "still_lost"), 0);
    let failed: u64 = again["failed"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(Value::as_u64)
        .sum();
    assert_eq!(count(again, "attempted"), 300 + failed, "{again}");
    // Half a second without a server: every connection has tried before, at most every few milliseconds at first.
    assert!((300..300 * 100).contains(&failed), "{again}");
    let without = &again["without_connection_us"];
    assert_eq!(count(without, "count"), 300);
    // Half of those came back within the longest wait of the server's return, or the waits are not bounded by it.
    assert!(
        (400_000..20_000_000).contains(&count(without, "p50")),
        "{again}"
    );
    // Those that sent by the schedule do so again, and all they owed is sent.
    let messages = &ran.summary["messages"];
    assert!(count(&messages["open_loop"], "owed") <= 30, "{messages}");
    assert_eq!(messages["mismatched"], 0);
    assert!(
        text(&ran.output).contains("300 succeeded"),
        "{}",
        text(&ran.output)
    );
    assert!(server.stop(Duration::from_secs(10)).0.success());
}

#[test]
fn churn_keeps_its_rate() {
    if !has_engine("uring", "churn_keeps_its_rate") {
        return;
    }
    for close in ["rst", "fin"] {
        let server = Server::start(&[]);
        let args =
            format!("--connections 100 --churn 40 --churn-rate 200 --hold 2s --close {close}");
        let ran = Client::new(&server, &args).run();
        assert!(ran.output.status.success(), "{}", text(&ran.output));
        let churn = &ran.summary["churn"];
        let open = &churn["open_loop"];
        // A machine that is busy elsewhere may hold longer than it was told, but no cycle is ahead of its time.
        let bound = 200.0 * churn["seconds"].as_f64().unwrap() + 100.0;
        let due = count(open, "due");
        assert!(due >= 390 && (due as f64) < bound, "{churn}");
        assert_eq!(count(open, "sent") + count(open, "owed"), due);
        assert_eq!(count(churn, "cycles"), count(open, "sent"));
        for percentiles in [&churn["cycle_us"], &open["latency_from_send_us"]] {
            assert_eq!(count(percentiles, "count"), count(churn, "cycles"));
        }
        let (_, said) = server.stop(Duration::from_secs(10));
        let accepted = 100 + count(churn, "cycles");
        assert!(said.contains(&format!("{accepted} accepted")), "{said}");
    }
}
