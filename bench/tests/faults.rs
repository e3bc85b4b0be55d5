//! The command `faults`, small: each fault once or twice, and nothing lost outside it.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{run, text, throng};
use serde_json::Value;

/// The faults that any user can bring about.
const FOR_ALL: &str = "client-kill,resets,slow-readers,storm,tiny-cq,few-buffers,files,stopped,log-disk-full,server-kill,drain,takeover";
/// Those that need root, a program that may not be there or, to fill tables, more connections; `accept-queue` is here since it
/// counts the host's overflows.
const FOR_SOME: &str = "table-full,half-open,accept-queue,memory-group,clock-step";

#[test]
fn nothing_is_lost_outside_a_fault_and_the_server_goes_on() {
    let report = faults(FOR_ALL);
    let faulted = report["faulted"].as_array().unwrap();
    assert_eq!(faulted.len(), FOR_ALL.split(',').count(), "{report:#}");
    let counted = |name: &str, pointer: &str| {
        let of = |one: &&Value| one["fault"] == name;
        let one = faulted.iter().find(of).unwrap();
        let servers = one["servers"].as_array().unwrap().iter();
        let counts = servers.filter_map(|server| server.pointer(pointer)?.as_u64());
        counts.sum::<u64>()
    };
    // They were what they are called.
    assert!(counted("tiny-cq", "/ring/overflows") > 0);
    assert!(counted("few-buffers", "/ring/starved_recvs") > 0);
    assert!(counted("files", "/accept_retries") > 0);
    let given_up = ["slow_reader", "write_timeout", "reset"];
    let given_up = given_up.map(|reason| counted("slow-readers", &format!("/closed/{reason}")));
    assert!(given_up.iter().sum::<u64>() >= 100, "{given_up:?}");
}

#[test]
fn what_needs_more_rights_is_done_or_told() {
    let report = faults(FOR_SOME);
    let (done, skipped) = (&report["faulted"], &report["skipped"]);
    for one in skipped.as_array().unwrap() {
        common::skip(
            &format!("fault {}", one["fault"]),
            one["why"].as_str().unwrap(),
        );
    }
    let count = |list: &Value| list.as_array().unwrap().len();
    assert_eq!(count(done) + count(skipped), FOR_SOME.split(',').count());
    let mut done = done.as_array().unwrap().iter();
    let queue = done.find(|one| one["fault"] == "accept-queue").unwrap();
    assert!(queue["cycles"][0]["listen_overflows"].as_u64().unwrap() > 0);
}

#[test]
fn a_soak_goes_through_faults_in_an_order_of_its_seed() {
    let order = || {
        let report = report(&["--soak", "4s", "--seed", "3"]);
        let cycles = report["faulted"][0]["cycles"].as_array().unwrap().clone();
        let faults = cycles.iter().map(|cycle| cycle["fault"].clone());
        faults.take(2).collect::<Vec<_>>()
    };
    assert_eq!(order(), order());
}

fn faults(only: &str) -> Value {
    report(&["--only", only, "--cycles", "1"])
}

fn report(flags: &[&str]) -> Value {
    let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
    let path = file.path().to_str().unwrap();
    let flags = [
        &[
            "--connections",
            "1000",
            "--active",
            "50",
            "--message-rate",
            "400",
        ][..],
        &["--report", path],
        flags,
    ];
    let done = run(throng("faults", &flags.concat()), Duration::from_secs(240));
    assert!(done.status.success(), "{}", text(&done));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
