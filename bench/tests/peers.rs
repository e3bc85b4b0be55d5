//! Servers of others in the rounds, over real processes: each is this very program, or a few words of a shell.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use common::{bench, has_engine, run, spawn, text, throng};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(300);

/// This program's own server as a peer. `mark` is in its command line, so that a test finds what it left behind.
fn echo_server(name: &str, mark: &str) -> String {
    format!(
        "{name}='{}' server --protocol echo --engine epoll --listen {{host}}:{{port}} --json {mark}",
        bench().display()
    )
}

/// The processes in whose command line `mark` is.
fn left(mark: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let words = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).into_owned();
            (words.contains(mark) && pid != std::process::id() as i32).then(|| Pid::from_raw(pid))
        })
        .collect()
}

fn is_within(bound: Duration, condition: impl Fn() -> bool) -> bool {
    let until = Instant::now() + bound;
    while !condition() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

struct Measured {
    output: Output,
    report: Value,
}

fn measured(directory: &tempfile::TempDir, subcommand: &str, flags: &[&str]) -> Measured {
    let report = directory.path().join("report.json");
    let flags = [flags, &["--report", report.to_str().unwrap()]].concat();
    let output = run(throng(subcommand, &flags), LONG);
    let report = std::fs::read(report).unwrap();
    Measured {
        output,
        report: serde_json::from_slice(&report).unwrap(),
    }
}

fn mark(directory: &tempfile::TempDir) -> String {
    let path: PathBuf = directory.path().join("peer.json");
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_peer_is_measured_in_the_same_rounds_as_the_engines() {
    if !has_engine(
        "uring",
        "a_peer_is_measured_in_the_same_rounds_as_the_engines",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mark = mark(&directory);
    let peer = echo_server("own-epoll", &mark);
    let flags = ["--connections", "300", "--hold", "3s", "--active", "20"];
    let more = ["--rounds", "2", "--exchange", "700ms", "--peer", &peer];
    let Measured { output, report } =
        measured(&directory, "compare", &[&flags[..], &more[..]].concat());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(report["plan"]["peers"][0]["name"], "own-epoll");
    let held = report["hold"].as_array().unwrap();
    let its = held.iter().find(|hold| hold["engine"] == "own-epoll");
    assert_eq!(its.unwrap()["established"], 300);
    let of = |engine: &str| {
        let echo = report["echo"].as_array().unwrap().iter();
        echo.filter(|one| one["engine"] == engine).count()
    };
    assert_eq!((of("uring"), of("epoll"), of("own-epoll")), (2, 2, 2));
    let cpu = report["echo_summary"][0]["engines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|figures| figures["engine"] == "own-epoll")
        .and_then(|figures| figures["cpu_us_per_message"]["median"].as_f64());
    assert!(cpu.unwrap() > 0.1, "{cpu:?}");
    assert!(said.contains("own-epoll"), "{said}");
    // A page of it was written beside, and shows it.
    let page = std::fs::read_to_string(directory.path().join("report.html")).unwrap();
    assert!(page.contains("own-epoll"));
    assert_eq!(left(&mark), []);
}

#[test]
fn the_other_measurements_in_rounds_take_peers_too() {
    if !has_engine("uring", "the_other_measurements_in_rounds_take_peers_too") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mark = mark(&directory);
    let peer = echo_server("own", &mark);
    let short = ["--exchange", "600ms", "--rounds", "1", "--peer", &peer];
    let one = ["--engines", "uring"];
    let cases: [(&str, &[&str]); 3] = [
        ("floor", &["--active", "10", "--idle", "30"]),
        ("churn", &["--churn", "8"]),
        ("tail", &["--active", "10", "--idle", "0", "--load", "20"]),
    ];
    for (subcommand, flags) in cases {
        let flags = [flags, &one, &short].concat();
        let Measured { output, report } = measured(&directory, subcommand, &flags);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let of_peer = report["measured"].as_array().unwrap().iter();
        let of_peer = of_peer.filter(|one| one["engine"] == "own").count();
        assert_eq!(of_peer, 1, "{subcommand}: {report}");
    }
    let flags = ["--engines", "epoll", "--connections", "200"];
    let more = ["--rounds", "1", "--peer", &peer];
    let Measured { output, report } =
        measured(&directory, "memory", &[&flags[..], &more[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let of_peer = report["kept"].as_array().unwrap().iter();
    let of_peer = of_peer.filter(|kept| kept["subject"]["engine"] == "own");
    assert_eq!(of_peer.count(), 1, "{report}");
    assert_eq!(left(&mark), []);
}

#[test]
fn a_peer_that_fails_drops_out_with_its_cause_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let mark = mark(&directory);
    let dead = format!("dead=sh -c 'echo no licence for {{port}} >&2; exit 3' {mark}");
    let greets = format!(
        "greets='{}' server --protocol line --engine epoll --listen {{host}}:{{port}} --json {mark}",
        bench().display()
    );
    // Ends by itself in the middle of the first measurement.
    let ends = format!(
        "ends=sh -c \"timeout 3 '{}' server --protocol echo --engine epoll --listen {{host}}:{{port}}; echo gone >&2; exit 7\" {mark}",
        bench().display()
    );
    let flags = ["--engines", "epoll", "--connections", "0", "--active", "10"];
    let peers = ["--peer", &dead, "--peer", &greets, "--peer", &ends];
    let rounds = ["--rounds", "4", "--exchange", "700ms"];
    let Measured { output, report } = measured(
        &directory,
        "compare",
        &[&flags[..], &rounds[..], &peers[..]].concat(),
    );
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let echo = report["echo"].as_array().unwrap();
    let of = |engine: &str| echo.iter().filter(|one| one["engine"] == engine).count();
    assert_eq!((of("epoll"), of("dead"), of("greets")), (4, 0, 0), "{said}");
    assert!(of("ends") < 4, "{said}");
    for cause in [
        "exit code 3",
        "no licence for",
        "does not echo",
        "exit code 7",
    ] {
        assert!(said.contains(cause), "{cause}: {said}");
    }
    let failures = report["failures"].as_array().unwrap();
    assert!((3..=5).contains(&failures.len()), "{said}");
    assert_eq!(left(&mark), []);
}

#[test]
fn what_is_no_peer_is_refused_before_anything_starts() {
    let bad = [
        ("epoll=./echo {port}", "Throng's own"),
        ("a b=./echo {port}", "no name"),
        ("go=./echo", "{port}"),
        ("./echo {port}", "NAME"),
    ];
    for (peer, said) in bad {
        let output = run(throng("compare", &["--peer", peer]), LONG);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(said), "{}", text(&output));
    }
    let twice = ["--peer", "go=./echo {port}", "--peer", "go=./other {port}"];
    let output = run(throng("floor", &twice), LONG);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("go twice"), "{}", text(&output));
}

#[test]
fn a_peer_that_never_listens_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let mark = mark(&directory);
    let started = Instant::now();
    let command = format!("sh -c 'sleep 600; : {{port}}' {mark}");
    let flags = ["--ready-within", "500ms", "--command", &command];
    let output = run(throng("peer-guard", &flags), LONG);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("did not echo"), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(left(&mark), []);
}

#[test]
fn nothing_of_a_peer_is_left_when_the_bench_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mark = mark(&directory);
    let report = directory.path().join("report.json");
    // A peer that forks, one process of which leaves its group and its session.
    let peer = format!(
        "forks=sh -c \"setsid sleep 600{0} & trap : TERM; '{1}' server --protocol echo --engine epoll --listen {{host}}:{{port}} --json {mark}\" {mark}",
        std::process::id(),
        bench().display()
    );
    let flags = ["--engines", "epoll", "--connections", "0", "--active", "10"];
    let more = ["--rounds", "1000", "--peer", &peer, "--report"];
    let flags = [&flags[..], &more[..], &[report.to_str().unwrap()]].concat();
    let mut bench = spawn(throng("compare", &flags));
    let sleeper = format!("sleep\0600{}", std::process::id());
    // The bench, the guard, the shell and the server.
    let is_up = is_within(LONG, || {
        left(&mark).len() >= 4 && !left(&sleeper).is_empty()
    });
    kill(Pid::from_raw(bench.id() as i32), Signal::SIGKILL).unwrap();
    bench.wait().unwrap();
    let is_gone = is_within(Duration::from_secs(40), || {
        left(&mark).is_empty() && left(&sleeper).is_empty()
    });
    let still = (left(&mark), left(&sleeper));
    for pid in still.0.iter().chain(&still.1) {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    assert!(is_up && is_gone, "{still:?}");
}
