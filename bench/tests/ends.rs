//! How a comparison ends when something goes wrong in the middle: what was measured is kept, and the cause is said.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{children_of, eventually, finish, has_engine, run, spawn, text, throng};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(120);

fn read(report: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap()
}

/// A child of `bench` whose command line has all of `words`.
fn child_with(bench: u32, words: &[&str]) -> Option<u32> {
    children_of(bench).into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut said = line.split('\0');
        words.iter().all(|word| said.any(|one| one == *word))
    })
}

fn measured(report: &Value, engine: &str) -> usize {
    let echoes = report["echo"].as_array().unwrap().iter();
    echoes.filter(|echo| echo["engine"] == engine).count()
}

/// Its engine has no more figures; the other goes on to the end.
#[test]
fn a_server_that_dies_between_rounds_costs_its_own_figures_alone() {
    if !has_engine(
        "uring",
        "a_server_that_dies_between_rounds_costs_its_own_figures_alone",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let flags = [
        "--connections",
        "0",
        "--rounds",
        "5",
        "--active",
        "20",
        "--exchange",
        "500ms",
    ];
    let flags = [&flags[..], &["--report", report.to_str().unwrap()]].concat();
    let bench = spawn(throng("compare", &flags));
    let mut victim = None;
    eventually(
        "both servers and a client run",
        Duration::from_secs(60),
        || {
            victim = child_with(bench.id(), &["server", "--engine", "epoll"]);
            victim.is_some() && child_with(bench.id(), &["client"]).is_some()
        },
    );
    kill(Pid::from_raw(victim.unwrap() as i32), Signal::SIGKILL).unwrap();
    let output = finish(bench, BOUND);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("SIGKILL"), "{}", text(&output));
    let report = read(&report);
    assert_eq!(measured(&report, "uring"), 5, "{}", text(&output));
    assert!(measured(&report, "epoll") < 5);
    assert!(!report["failures"].as_array().unwrap().is_empty());
}

#[test]
fn an_interrupted_comparison_keeps_its_rounds_and_is_marked_partial() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let flags = [
        "--connections",
        "0",
        "--rounds",
        "500",
        "--active",
        "20",
        "--exchange",
        "500ms",
    ];
    let engines = ["--engines", "epoll", "--report", report.to_str().unwrap()];
    let mut command = throng("compare", &[&flags[..], &engines].concat());
    // Of its own group, as a terminal's job is: the test is not to be interrupted.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let bench = spawn(command);
    let pid = Pid::from_raw(bench.id() as i32);
    eventually("a client runs", Duration::from_secs(60), || {
        child_with(bench.id(), &["client"]).is_some()
    });
    std::thread::sleep(Duration::from_secs(3));
    kill(pid, Signal::SIGINT).unwrap();
    let output = finish(bench, BOUND);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("Partial"), "{}", text(&output));
    let read = read(&report);
    assert_eq!(read["partial"], true);
    assert!(measured(&read, "epoll") > 0, "{}", text(&output));
    let page = std::fs::read_to_string(report.with_extension("html")).unwrap();
    assert!(page.contains("ended early"), "the page does not say so");
}

/// What was measured stands on the terminal at least.
#[test]
fn a_full_disk_is_told_and_the_figures_are_shown() {
    let flags = [
        "--connections",
        "0",
        "--rounds",
        "1",
        "--active",
        "20",
        "--exchange",
        "500ms",
    ];
    let flags = [&flags[..], &["--engines", "epoll", "--report", "/dev/full"]].concat();
    let output = run(throng("compare", &flags), BOUND);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/dev/full") && said.contains("df ."),
        "{said}"
    );
    assert!(said.contains("messages a second"), "{said}");
}
