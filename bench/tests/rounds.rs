//! The measurements in rounds, over real processes: short, small, and nothing left behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{has_engine, run, text, throng};
use serde_json::Value;

/// Runs `throng-bench SUBCOMMAND`; gives its text and its report.
fn measured(subcommand: &str, flags: &[&str]) -> (String, Value) {
    let (said, report, code) = ended(subcommand, flags);
    assert_eq!(code, Some(0), "{said}");
    (said, report)
}

/// The same, with the exit code, which may be that of a verdict.
fn ended(subcommand: &str, flags: &[&str]) -> (String, Value, Option<i32>) {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    let flags = [flags, &["--report", report.to_str().unwrap()]].concat();
    // Other tests of this machine may hold the lock for a while.
    let output = run(throng(subcommand, &flags), Duration::from_secs(300));
    let said = text(&output);
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["failures"].as_array().unwrap().len(), 0);
    assert_no_child_is_left();
    (said, report, output.status.code())
}

fn assert_no_child_is_left() {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let file = |name| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let status = String::from_utf8_lossy(&file("status")).into_owned();
        let is_orphan = status.contains("PPid:\t1\n") && !status.contains("State:\tZ");
        let line = String::from_utf8_lossy(&file("cmdline")).replace('\0', " ");
        assert!(
            !is_orphan || !line.contains("--until-stdin-closes"),
            "{line}"
        );
    }
}

fn figures(report: &Value) -> &Vec<Value> {
    report["measured"].as_array().unwrap()
}

#[test]
fn the_floor_is_measured_beside_the_engines_and_they_are_multiples_of_it() {
    if !has_engine(
        "uring",
        "the_floor_is_measured_beside_the_engines_and_they_are_multiples_of_it",
    ) {
        return;
    }
    let flags = ["--active", "8,64", "--idle", "50", "--rounds", "2"];
    let more = ["--exchange", "800ms", "--table-slots", "64"];
    let (said, report) = measured("floor", &[&flags[..], &more[..]].concat());
    // Two counts, two rounds, and a block for each engine with its floor.
    assert_eq!(figures(&report).len(), 16);
    for one in figures(&report) {
        assert!(one["count"].as_u64().unwrap() > 0, "{one}");
        assert_eq!(one["idle"], 50);
    }
    let summary = report["summary"].as_array().unwrap();
    for row in summary {
        let is_floor = row["engine"].is_null();
        assert_eq!(row["of_floor"].is_null(), is_floor, "{row}");
        if !is_floor {
            assert_eq!(row["of_floor"]["count"], 2);
            assert!(row["of_floor"]["median"].as_f64().unwrap() > 0.0);
        }
    }
    let uring = &report["servers"][0];
    assert!(uring["ring"]["rings"].as_u64().unwrap() >= 2, "{uring}");
    assert!(uring["held_max"].as_u64().unwrap() >= 114, "{uring}");
    assert!(
        said.contains("× floor") && said.contains("uring, 64 active: "),
        "{said}"
    );
}

#[test]
fn the_tail_is_measured_at_one_rate_for_all_engines_beside_idle_connections() {
    if !has_engine(
        "uring",
        "the_tail_is_measured_at_one_rate_for_all_engines_beside_idle_connections",
    ) {
        return;
    }
    let flags = ["--engines", "uring,epoll,tokio-uring", "--active", "20"];
    let more = ["--idle", "0,50", "--load", "10", "--rounds", "1"];
    let (said, report) = measured(
        "tail",
        &[&flags[..], &more[..], &["--exchange", "700ms"]].concat(),
    );
    assert_eq!(report["closed_loop"].as_array().unwrap().len(), 9);
    assert_ne!(report["saturation"]["engine"], "tokio-uring");
    let summary = report["summary"].as_array().unwrap();
    assert_eq!(summary.len(), 6);
    let asked = &summary[0]["asked_per_second"];
    for row in summary {
        assert_eq!(&row["asked_per_second"], asked);
        let [p50, p99, p999] = ["p50_us", "p99_us", "p999_us"].map(|name| {
            let median = row[name]["median"].as_f64();
            median.unwrap()
        });
        assert!(0.0 < p50 && p50 <= p99 && p99 <= p999, "{row}");
        assert!(row["client_lateness_p99_us"]["median"].as_f64().is_some());
    }
    assert!(
        said.contains("client late p99") && said.contains("50 idle, 10 % load"),
        "{said}"
    );
}

#[test]
fn churn_is_counted_in_cycles_and_compared_with_epoll() {
    if !has_engine(
        "uring",
        "churn_is_counted_in_cycles_and_compared_with_epoll",
    ) {
        return;
    }
    let flags = ["--churn", "8", "--rounds", "2", "--exchange", "700ms"];
    let (said, report) = measured("churn", &flags);
    assert_eq!(figures(&report).len(), 4);
    for one in figures(&report) {
        assert!(one["count"].as_u64().unwrap() > 0, "{one}");
    }
    let uring = &report["summary"][0];
    assert_eq!(uring["cpu_of_epoll"]["count"], 2);
    assert!(
        said.contains("uring of epoll's in the same round"),
        "{said}"
    );
}

#[test]
fn the_selfcheck_measures_one_engine_under_two_names_and_says_whether_the_method_holds() {
    // Epoll, so that it is tested where there is no io_uring. Whether the method holds is not this test's question.
    let flags = ["--engine", "epoll", "--active", "8", "--runs", "2"];
    let more = ["--rounds", "6", "--exchange", "500ms"];
    let (said, report, code) = ended("selfcheck", &[&flags[..], &more[..]].concat());
    assert_eq!(figures(&report).len(), 24);
    let of = |name: &str| {
        figures(&report)
            .iter()
            .filter(|one| one["name"] == name)
            .count()
    };
    assert_eq!((of("A"), of("B")), (12, 12));
    for run in report["runs"].as_array().unwrap() {
        assert_eq!(run["cpu"]["count"], 6, "{run}");
        assert!(run["rate"]["interval"]["low"].is_f64(), "{run}");
    }
    // A server of its own for each name in each run.
    assert_eq!(report["servers"].as_array().unwrap().len(), 4);
    let verdict = &report["verdict"];
    assert_eq!(verdict["cpu"]["intervals"], 2);
    let holds = verdict["holds"].as_bool().unwrap();
    assert_eq!(code, Some(if holds { 0 } else { 10 }), "{said}");
    assert_eq!(said.contains("The method holds"), holds, "{said}");
}

#[cfg(feature = "burn")]
#[test]
fn a_slow_down_is_found() {
    let flags = ["--engine", "epoll", "--active", "8", "--runs", "1"];
    let more = ["--rounds", "6", "--exchange", "500ms", "--slow-down", "100"];
    let (said, report, _) = ended("selfcheck", &[&flags[..], &more[..]].concat());
    let ratio = report["runs"][0]["cpu"]["median"].as_f64();
    assert!(ratio.is_some_and(|ratio| ratio > 1.3), "{said}");
    assert!(said.contains("The slow-down is"), "{said}");
}

#[test]
fn rounds_go_on_until_the_interval_is_narrow_or_the_time_is_up() {
    // So narrow that only the time ends it.
    let flags = [
        "--engines",
        "epoll,tokio-uring",
        "--churn",
        "4",
        "--rounds",
        "1",
    ];
    let more = [
        "--exchange",
        "500ms",
        "--until-width",
        "0.1",
        "--at-most",
        "4s",
    ];
    if !has_engine(
        "uring",
        "rounds_go_on_until_the_interval_is_narrow_or_the_time_is_up",
    ) {
        return;
    }
    let (said, report) = measured("churn", &[&flags[..], &more[..]].concat());
    let rounds = figures(&report).len() / 2;
    assert!((2..=8).contains(&rounds), "{said}");
    assert_eq!(report["plan"]["until"]["at_most_ms"], 4_000);
    assert_eq!(report["summary"][1]["cpu_of_epoll"]["count"], rounds);
    assert!(said.contains("until    every ratio's"), "{said}");
}
