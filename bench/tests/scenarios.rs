//! `throng-bench run`: scenarios by name and from a file, with flags that take the place of theirs.
#![allow(clippy::unwrap_used)]

mod common;

use common::{BOUND, run, text, throng};
use serde_json::Value;

fn refused(flags: &[&str], words: &[&str]) {
    let output = run(throng("run", flags), BOUND);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{flags:?}: no `{word}` in: {said}");
    }
}

#[test]
fn a_scenario_of_ones_own_runs_and_what_is_typed_wins() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (mine, report) = (path("mine.toml"), path("mine.json"));
    let scenario = "about = \"Few come and go\"\ncommand = \"churn\"\n\
                    [flags]\nengines = [\"epoll\"]\nchurn = 8\nrounds = 1\nexchange = \"500ms\"\n";
    std::fs::write(&mine, scenario).unwrap();
    let output = run(
        throng("run", &[&mine, "--rounds", "2", "--report", &report]),
        BOUND,
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(said["command"], "churn");
    assert_eq!(
        (&said["plan"]["churn"], &said["plan"]["rounds"]),
        (&8.into(), &2.into())
    );
    assert_eq!(said["command_line"][1], "run");
    let page = std::fs::read_to_string(path("mine.html")).unwrap();
    assert!(page.contains("<svg"), "no chart");
}

#[test]
fn scenarios_are_listed_and_what_is_none_is_refused() {
    let output = run(throng("run", &[]), BOUND);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    for name in ["hold", "echo", "tail", "churn", "heartbeat", "floor"] {
        assert!(
            text(&output).contains(&format!("  {name} ")),
            "{}",
            text(&output)
        );
    }
    let help = run(throng("run", &["tail", "--help"]), BOUND);
    assert!(text(&help).contains("--load"), "{}", text(&help));
    refused(&["dance"], &["no scenario dance", "echo"]);
    refused(&["tail", "--lod", "5"], &["scenario tail", "--lod"]);
    refused(&["/nonexistent/mine.toml"], &["/nonexistent/mine.toml"]);
    let directory = tempfile::tempdir().unwrap();
    let typo = directory.path().join("typo.toml");
    let path = typo.to_str().unwrap();
    std::fs::write(
        &typo,
        "about = \"\"\ncommand = \"churn\"\n[flags]\nchrun = 8\n",
    )
    .unwrap();
    refused(&[path], &["typo.toml", "--chrun"]);
    std::fs::write(&typo, "about = \"\"\ncommand = \"bare\"\n").unwrap();
    refused(&[path], &["\"bare\"", "churn"]);
}
