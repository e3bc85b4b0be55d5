//! `throng-bench report`: what a run wrote is shown again, and what is no report is refused with the way out.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{BOUND, run, text, throng};

const RECORDED: &str = include_str!("../testdata/report.json");

fn refused(flags: &[&str], words: &[&str]) {
    let output = run(throng("report", flags), BOUND);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{flags:?}: no `{word}` in: {said}");
    }
}

#[test]
fn a_report_becomes_a_page_and_markdown() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let [report, page, other] = [file("report.json"), file("report.html"), file("other.html")];
    let name = |path: &Path| path.to_str().unwrap().to_owned();
    std::fs::write(&report, RECORDED).unwrap();

    let began = Instant::now();
    let output = run(throng("report", &[&name(&report)]), BOUND);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains(&name(&page)), "{}", text(&output));
    assert!(began.elapsed() < Duration::from_secs(20));
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg role=\"img\"") && html.len() < 1_000_000);

    let flags = [&name(&report), "--html", &name(&other), "--markdown", "-"];
    let output = run(throng("report", &flags), BOUND);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    // On stdout is Markdown and nothing else.
    assert!(
        output.stdout.starts_with(b"## Throng: "),
        "{}",
        text(&output)
    );
    assert_eq!(std::fs::read_to_string(&other).unwrap(), html);
}

#[test]
fn what_is_no_report_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    refused(&[], &["FILE.json"]);
    refused(
        &["/nonexistent/r.json"],
        &["/nonexistent/r.json", "--report"],
    );
    refused(
        &[directory.path().to_str().unwrap()],
        &["directory", "--report"],
    );
    refused(&[&file("page.json", "<html>")], &["not JSON", "page.json"]);
    refused(&[&file("empty.json", "")], &["empty"]);
    refused(
        &[&file("other.json", "{\"measured\": []}")],
        &["no format_version"],
    );
    let newer = RECORDED.replacen("\"format_version\": 3", "\"format_version\": 4", 1);
    refused(
        &[&file("newer.json", &newer)],
        &["format 4", "newer Throng"],
    );
    let report = file("report.json", RECORDED);
    refused(&[&report, "--html", &report], &["--html"]);
    refused(&[&file("report.html", RECORDED)], &["report.html", ".json"]);
    assert_eq!(std::fs::read_to_string(&report).unwrap(), RECORDED);
}

#[test]
fn a_page_that_cannot_be_written_is_a_failure_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report.json");
    std::fs::write(&report, RECORDED).unwrap();
    let flags = [
        report.to_str().unwrap(),
        "--html",
        "/proc/nowhere/page.html",
    ];
    let output = run(throng("report", &flags), BOUND);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("/proc/nowhere/page.html"),
        "{}",
        text(&output)
    );
}
