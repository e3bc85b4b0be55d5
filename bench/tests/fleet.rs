//! A fleet: several clients, each a part of one run, and one report of them that is their sum. Over loopback; and by the
//! real pdsh over network namespaces, where it is installed.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bench::merge::result::{Apart, PartRow, Report};
use client::mergeable::Mergeable;
use client::times::Times;
use common::{BOUND, Server, bench, finish, has_engine, run, skip, spawn, text, throng};
use serde::Deserialize;
use serde_json::Value;

const PARTS: u64 = 3;

/// Other tests of this machine may take its cores.
const LONG: Duration = Duration::from_secs(180);

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn part_of(path: &Path) -> Mergeable {
    Mergeable::deserialize(&json(path)["part"]).unwrap()
}

fn report_of(path: &Path) -> Report {
    serde_json::from_value(json(path)).unwrap()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The clients of a fleet, which begin in a moment, and where each writes.
fn clients(server: &Server, directory: &Path, flags: &[&str]) -> Vec<(PathBuf, Child)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let start = (now + Duration::from_millis(1500))
        .as_secs_f64()
        .to_string();
    let target = server.address.to_string();
    let client = |number| {
        let path = directory.join(format!("part-{number}.json"));
        // The last one as a job of Kubernetes names it.
        let part = match number {
            PARTS => format!("job/{PARTS}"),
            _ => format!("{number}/{PARTS}"),
        };
        let own = [
            target.as_str(),
            "--part",
            &part,
            "--start-at",
            &start,
            "--json",
            name(&path),
        ];
        let mut command = throng("client", &[&own[..], flags].concat());
        command.env("JOB_COMPLETION_INDEX", (number - 1).to_string());
        (path, spawn(command))
    };
    (1..=PARTS).map(client).collect()
}

/// `report` says what `parts` do, added up.
fn assert_is_the_sum(report: &Report, parts: &[Mergeable]) {
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    let mut times: BTreeMap<String, Times> = BTreeMap::new();
    for part in parts {
        for (name, count) in &part.counters {
            *counters.entry(name.clone()).or_default() += count;
        }
        for (kind, part) in part.phases.iter().flat_map(|phase| &phase.times) {
            match times.get_mut(kind) {
                Some(sum) => sum.add(part).unwrap(),
                None => _ = times.insert(kind.clone(), part.clone()),
            }
        }
    }
    assert_eq!(report.counters, counters);
    assert_eq!(report.parts.len(), parts.len());
    assert_eq!(report.latency.len(), times.len());
    for latency in &report.latency {
        let sum = &times[&latency.kind];
        assert_eq!(latency.latency_us, sum.percentiles(), "{}", latency.kind);
        let by_phase = report.latency_by_phase.iter();
        let of_it = by_phase.filter(|one| one.kind == latency.kind);
        assert_eq!(of_it.map(|one| one.times.count()).sum::<u64>(), sum.count());
    }
}

#[test]
fn three_clients_are_one_fleet_and_their_report_is_their_sum() {
    if !has_engine(
        "uring",
        "three_clients_are_one_fleet_and_their_report_is_their_sum",
    ) {
        return;
    }
    let server = Server::start(&["--heartbeat", "300ms"]);
    let directory = tempfile::tempdir().unwrap();
    let flags = [
        "--connections",
        "100",
        "--active",
        "10",
        "--message-rate",
        "200",
        "--churn",
        "5",
        "--churn-rate",
        "20",
        "--heartbeat",
        "300ms",
        "--hold",
        "2s",
    ];
    let mut parts = Vec::new();
    let mut files = Vec::new();
    for (path, child) in clients(&server, directory.path(), &flags) {
        let output = finish(child, BOUND);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        assert!(
            text(&output).contains("by this host's clock"),
            "{}",
            text(&output)
        );
        parts.push(part_of(&path));
        files.push(path);
    }
    let held: Vec<u64> = parts
        .iter()
        .map(|part| part.counters["established"])
        .collect();
    assert_eq!(held, [34, 33, 33]);

    let to = directory.path().join("fleet.json");
    let merge = |files: &[&str], flags: &[&str], code: i32| {
        let words = [files, flags, &["--report", name(&to)]].concat();
        let output = run(throng("merge", &words), BOUND);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            text(&output)
        );
        text(&output)
    };
    let [one, two, three] = [0, 1, 2].map(|at| name(&files[at]));
    let said = merge(&[three, one, two], &[], 0);
    assert!(
        said.contains("100 of 100 at once") && said.contains("together"),
        "{said}"
    );
    let report = report_of(&to);
    assert_is_the_sum(&report, &parts);
    assert_eq!((report.clocks, report.missing.len()), (Apart::OneClock, 0));
    assert!(report.counter("messages") > 0 && report.counter("cycles") > 0);
    // None began before its time, and all of them together.
    assert!(
        report
            .parts
            .iter()
            .all(|part| part.first_connect_us.unwrap() >= 0)
    );
    let hold = report.hold.unwrap();
    assert!(hold.common_us > 0 && hold.messages_per_second.unwrap() > 0.0);

    let said = merge(&[one, three], &[], 2);
    assert!(
        said.contains("missing: 2") && said.contains("--partial"),
        "{said}"
    );
    let said = merge(&[one, two, three, two], &[], 2);
    assert!(said.contains("is part 2, as"), "{said}");
    let torn = directory.path().join("torn.json");
    std::fs::write(&torn, "{\"target\": ").unwrap();
    let said = merge(&[one, name(&torn), three], &["--partial"], 1);
    assert!(
        said.contains("torn.json") && said.contains("part 2: is missing"),
        "{said}"
    );
    assert_is_the_sum(&report_of(&to), &[parts[0].clone(), parts[2].clone()]);
    let mut old = json(&files[1]);
    old["part"]["schema"] = 0.into();
    std::fs::write(&torn, old.to_string()).unwrap();
    let said = merge(&[one, name(&torn), three], &["--partial"], 2);
    assert!(said.contains("torn.json is of schema 0"), "{said}");

    // As if from another host, whose clock is five seconds ahead.
    const AHEAD_US: u64 = 5_000_000;
    let (mut other, clocks) = (json(&files[1]), directory.path().join("clocks"));
    other["part"]["host"]["boot_id"] = "another".into();
    for moment in ["began_unix_us", "ended_unix_us"] {
        let moment = &mut other["part"]["clock"][moment];
        *moment = (moment.as_u64().unwrap() + AHEAD_US).into();
    }
    std::fs::write(&torn, other.to_string()).unwrap();
    let said = merge(&[one, name(&torn), three], &[], 0);
    assert!(
        said.contains("clocks of 2 hosts were not compared"),
        "{said}"
    );
    std::fs::write(&clocks, format!("1 0 40\n2 {AHEAD_US} 90\n3 0 40\n")).unwrap();
    let said = merge(&[one, name(&torn), three], &["--clocks", name(&clocks)], 0);
    assert!(
        said.contains("those of 2 hosts were 5.00 s apart, measured before the run to ±90 µs"),
        "{said}"
    );
    let rows = report_of(&to).parts;
    let starts = |rows: &[PartRow]| {
        rows.iter()
            .map(|row| row.first_connect_us)
            .collect::<Vec<_>>()
    };
    assert_eq!(starts(&rows), starts(&report.parts));

    // Of another run.
    let kept = directory.path().join("kept.json");
    std::fs::rename(&files[0], &kept).unwrap();
    for (_, child) in clients(
        &server,
        directory.path(),
        &["--connections", "90", "--hold", "0s"],
    ) {
        let output = finish(child, BOUND);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    }
    let said = merge(&[name(&kept), two, three], &[], 2);
    assert!(
        said.contains("of another run") && said.contains("connections is 90, not 100"),
        "{said}"
    );
}

#[test]
fn a_start_that_is_over_is_refused_before_anything_starts() {
    let output = run(
        throng(
            "client",
            &["127.0.0.1:9", "--start-at", "2020-01-01T00:00:00Z"],
        ),
        BOUND,
    );
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let output = run(throng("merge", &["/nonexistent/part-1.json"]), BOUND);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("/nonexistent/part-1.json"),
        "{}",
        text(&output)
    );
}

/// By the script that people use. 60,000 connections: THRONG_FLEET_CONNECTIONS=60000.
#[test]
fn pdsh_runs_a_fleet_over_namespaces() {
    const TEST: &str = "pdsh_runs_a_fleet_over_namespaces";
    if !has_engine("uring", TEST) {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip(TEST, "namespaces with names are made as root");
    }
    for (program, flag) in [("pdsh", "-V"), ("ip", "-V"), ("unshare", "-V")] {
        let probe = Command::new(program).arg(flag).output();
        if !probe.is_ok_and(|output| output.status.success()) {
            return skip(TEST, &format!("{program} is not here"));
        }
    }
    let made = Command::new("unshare")
        .args(["--net", "--mount", "ip", "link", "set", "lo", "up"])
        .output()
        .unwrap();
    if !made.status.success() {
        return skip(TEST, String::from_utf8_lossy(&made.stderr).trim());
    }
    let connections = std::env::var("THRONG_FLEET_CONNECTIONS").unwrap_or_else(|_| "3000".into());
    let directory = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/fleet/namespaces.sh");
    let mut command = Command::new("bash");
    command
        .arg(script)
        .args([&connections, name(directory.path())])
        .args(["--active", "30", "--hold", "3s"])
        .env("THRONG_BENCH", bench())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = run(command, LONG);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = report_of(&directory.path().join("fleet.json"));
    let file = |number| directory.path().join(format!("part-{number}.json"));
    let parts: Vec<Mergeable> = (1..=PARTS).map(|number| part_of(&file(number))).collect();
    assert_is_the_sum(&report, &parts);
    assert_eq!(
        report.counter("established_at_once").to_string(),
        connections
    );
    assert_eq!(report.counter("lost"), 0);
    let clocks = std::fs::read_to_string(directory.path().join("clocks")).unwrap();
    assert_eq!(clocks.lines().count(), 3, "{clocks}");
}
