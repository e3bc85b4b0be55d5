//! `throng-bench diff`: what became worse between two reports is told, and stops a pipeline that asks for it.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{BOUND, run, text, throng};
use serde_json::Value;

const RECORDED: &str = include_str!("../testdata/report.json");

/// The recorded report, in which uring took so many times the CPU time of the recorded one.
fn slower(directory: &Path, times: f64) -> String {
    let mut report: Value = serde_json::from_str(RECORDED).unwrap();
    for summary in report["echo_summary"].as_array_mut().unwrap() {
        let mut engines = summary["engines"].as_array_mut().unwrap().iter_mut();
        let uring = engines.find(|one| one["engine"] == "uring").unwrap();
        for figure in ["min", "q1", "median", "q3", "max"] {
            let value = &mut uring["cpu_of_epoll"][figure];
            *value = (value.as_f64().unwrap() * times).into();
        }
    }
    let path = directory.join(format!("{times}.json"));
    std::fs::write(&path, report.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn diff(flags: &[&str], code: i32) -> String {
    let output = run(throng("diff", flags), BOUND);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{flags:?}: {said}");
    said
}

#[test]
fn a_regression_stops_a_pipeline_and_noise_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let [same, worse, better] = [1.0, 1.5, 0.5].map(|times| slower(directory.path(), times));
    assert!(diff(&[&same, &same, "--gate"], 0).contains("0 worse"));
    let said = diff(&[&same, &worse, "--gate"], 10);
    assert!(
        said.contains("Worse: CPU a message ÷ epoll's, 500 active, 64 B, uring"),
        "{said}"
    );
    // Shown it is without the gate too.
    assert!(diff(&[&same, &worse], 0).contains("2 worse beyond noise"));
    assert!(diff(&[&same, &better, "--gate"], 0).contains("2 better"));
    let json = diff(&[&same, &worse, "--json", "-"], 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["changes"][0]["judgement"], "worse");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let compare = file("compare.json", RECORDED);
    let hold = file("hold.json", include_str!("../testdata/hold.json"));
    assert!(diff(&[&compare, &hold], 2).contains("compare and the second of hold"));
    assert!(diff(&[&hold, &hold], 2).contains("several rounds"));
    assert!(diff(&[&compare, "/nonexistent.json"], 2).contains("/nonexistent.json"));
    assert!(diff(&[&compare], 2).contains("AFTER.json"));
    let mut few: Value = serde_json::from_str(RECORDED).unwrap();
    few["echo"] = Value::Array(Vec::new());
    few["echo_summary"] = Value::Array(Vec::new());
    let few = file("few.json", &few.to_string());
    assert!(diff(&[&compare, &few, "--gate"], 1).contains("nothing could be judged"));
}
