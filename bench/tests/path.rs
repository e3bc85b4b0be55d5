//! The founding question by one command: over loopback and over veth, each phase probed, both ends counted, and nothing
//! left behind, whoever runs it and however it ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{bench, children_of, eventually, has_engine, is_running, run, skip, spawn, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Other tests of this machine may hold the lock for a while.
const BOUND: Duration = Duration::from_secs(300);

const QUICK: [&str; 20] = [
    "--connections",
    "300",
    "--steps",
    "100,10000",
    "--step-hold",
    "1s",
    "--idle",
    "1s",
    "--baseline",
    "1s",
    "--hold",
    "1s",
    "--heartbeat",
    "500ms",
    "--active-for",
    "1s",
    "--storm",
    "2",
    "--recovery",
    "1s",
];

/// `throng-bench canary`, by way of `before`.
fn canary(before: &[&str], flags: &[&str]) -> Command {
    let words = before.iter().map(OsString::from);
    let mut words = words.chain([bench().into(), "canary".into()]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What `throng-bench canary` needs before it to make namespaces here; where it cannot, says so.
fn privilege(test: &str) -> Option<&'static [&'static str]> {
    let can = |words: &[&str]| {
        let tried = Command::new("unshare")
            .args(words)
            .arg("true")
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    };
    if Command::new("ip").arg("-V").output().is_err() {
        skip(test, "ip (iproute2) is not installed");
        return None;
    }
    if can(&["-n"]) {
        return Some(&[]);
    }
    if can(&["-rn"]) {
        return Some(&["unshare", "-r"]);
    }
    skip(
        test,
        "no network namespace can be made here (as root, or by unshare -r)",
    );
    None
}

struct Asked {
    output: Output,
    said: String,
    report: Value,
}

fn ask(before: &[&str], flags: &[&str]) -> Asked {
    ask_alone(before, &[&QUICK, flags].concat())
}

/// With no flags but these.
fn ask_alone(before: &[&str], flags: &[&str]) -> Asked {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("canary.json");
    let flags = [flags, &["--report", report.to_str().unwrap()]].concat();
    let output = run(canary(before, &flags), BOUND);
    let report = fs::read(report).unwrap_or_default();
    Asked {
        said: text(&output),
        report: serde_json::from_slice(&report).unwrap_or_default(),
        output,
    }
}

/// All phases were gone through and probed, and the broadcasts heard.
fn is_whole(asked: &Asked, kind: &str) {
    let Asked {
        output,
        said,
        report,
    } = asked;
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(report["failures"], serde_json::json!([]), "{said}");
    assert_eq!(report["plan"]["paths"], serde_json::json!([kind]));
    assert!(report["command_line"].is_array() && report["environment"].is_object());
    let held = &report["held"][0];
    assert_eq!(held["client"]["established"], 300);
    assert_eq!(held["client"]["lost_while_held"], 0);
    assert_eq!(held["client"]["path"]["kind"], kind);
    assert_eq!(held["broadcasts"], 2);
    assert_eq!(held["servers"][0]["messages_published"], 600);
    assert!(held["client"]["storm"]["heard"].as_u64() >= Some(600));
    heartbeats_begin_after_the_idle_part(held);
    sampled(held);
    let canaries = &held["client"]["canaries"];
    let stages: Vec<&str> = canaries["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    let all = [
        "baseline", "ramp", "step-1", "idle", "hold", "active", "storm", "close", "recovery",
    ];
    assert_eq!(stages, all);
    for probe in canaries["probes"].as_array().unwrap() {
        for stage in probe["stages"].as_array().unwrap() {
            let is_long = !["ramp", "close"].contains(&stage["stage"].as_str().unwrap());
            assert!(!is_long || stage["answered"].as_u64() > Some(10), "{stage}");
        }
    }
    for words in [
        "at 100 held, a step:",
        "at 300 held, without heartbeats:",
        "at 300 held:",
        "in the storm on 300:",
        "during the mass close of 300:",
        "in recovery:",
        "Does a ping, does a new connect, change",
        "300 of 300 established",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
}

/// None before they begin, and none is missing after that.
fn heartbeats_begin_after_the_idle_part(held: &Value) {
    let heard = |phase: &str| {
        let mut samples = held["series"]["samples"].as_array().unwrap().iter();
        let last = samples.rfind(|sample| sample["phase"] == phase);
        last.unwrap()["heartbeats"].as_u64().unwrap()
    };
    assert_eq!((heard("step-1"), heard("idle")), (0, 0));
    assert!(heard("active") >= 300);
    assert_eq!(held["client"]["heartbeats"]["missing"], 0);
}

/// Memory and connections were read in every phase.
fn sampled(held: &Value) {
    let samples = held["series"]["samples"].as_array().unwrap();
    assert!(
        samples.len() > 20 && samples.len() <= 400,
        "{}",
        samples.len()
    );
    let times: Vec<u64> = samples
        .iter()
        .map(|sample| sample["t_ms"].as_u64().unwrap())
        .collect();
    assert!(times.is_sorted());
    for (phase, connections) in [
        ("baseline", 0),
        ("step-1", 100),
        ("idle", 300),
        ("quiet", 300),
        ("active", 300),
        ("storm", 300),
        ("recovery", 0),
    ] {
        let last = samples.iter().rfind(|sample| sample["phase"] == phase);
        let last = last.unwrap_or_else(|| panic!("no {phase}"));
        assert_eq!(last["connections"], connections, "{last}");
        assert!(
            last["slab_bytes"].as_u64() > Some(0) && last["server_rss_bytes"].as_u64() > Some(0)
        );
        assert_eq!(
            last["client_rss_bytes"].is_u64(),
            phase != "baseline",
            "{last}"
        );
        let sockets = last["sockets"].as_u64().unwrap();
        assert!(sockets >= 2 * connections, "{last}");
    }
    assert_eq!(held["series"]["unread"], 0);
}

fn phases(counters: &Value) -> Vec<&str> {
    let phases = counters["phases"].as_array().unwrap().iter();
    phases
        .map(|phase| phase["phase"].as_str().unwrap())
        .collect()
}

#[test]
fn over_loopback_it_says_that_this_is_no_network() {
    if !has_engine("uring", "over_loopback_it_says_that_this_is_no_network") {
        return;
    }
    let asked = ask(&[], &["--path", "loopback"]);
    is_whole(&asked, "loopback");
    let said = &asked.said;
    assert!(
        said.contains("loopback: not a network measurement"),
        "{said}"
    );
    assert!(said.contains("both ends") && !said.contains("server's end"));
    assert!(asked.report["held"][0]["server_counters"].is_null());
}

#[test]
fn over_veth_each_end_has_its_own_counters_and_nothing_is_left() {
    let test = "over_veth_each_end_has_its_own_counters_and_nothing_is_left";
    let (true, Some(before)) = (has_engine("uring", test), privilege(test)) else {
        return;
    };
    let asked = ask(before, &["--path", "veth"]);
    is_whole(&asked, "veth");
    let held = &asked.report["held"][0];
    let kinds: Vec<&str> = held["client"]["canaries"]["probes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|probe| probe["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["ping", "ping", "connect", "udp"]);
    let neighbour = &held["client"]["canaries"]["probes"][1];
    assert_eq!(neighbour["path"]["device"], "throng-near");
    let (client, server) = (&held["client"]["host_counters"], &held["server_counters"]);
    let later = [
        "ramp", "step-1", "ramp", "idle", "quiet", "active", "storm", "close", "done", "recovery",
    ];
    assert_eq!(phases(client), later);
    assert_eq!(phases(server), [&["baseline"], &later[..]].concat());
    assert_eq!(
        (&client["interfaces"][0], &server["interfaces"][0]),
        (&"throng-client".into(), &"throng-server".into())
    );
    // Each has a frame from every connection, and knows only its own device.
    let ramp = |counters: &Value, device: &str| {
        let phases = counters["phases"].as_array().unwrap().iter();
        let up = ["ramp", "step-1", "idle", "quiet"];
        let ramp = phases.filter(|phase| up.contains(&phase["phase"].as_str().unwrap()));
        let received = ramp.map(|phase| phase["interfaces"][device]["rx_packets"].as_u64());
        received.flatten().sum::<u64>()
    };
    assert!(ramp(client, "throng-client") >= 300, "{client}");
    assert!(ramp(server, "throng-server") >= 300, "{server}");
    assert_eq!(client["unread"], serde_json::json!([]));
    assert_eq!(server["unread"], serde_json::json!([]));
    nothing_here();
}

/// The pair is never here: not while it is there, and not afterwards.
fn nothing_here() {
    let devices = fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!devices.contains("throng-"), "{devices}");
}

fn namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

#[test]
fn killed_in_the_middle_it_leaves_no_process_no_namespace_and_no_device() {
    let test = "killed_in_the_middle_it_leaves_no_process_no_namespace_and_no_device";
    let (true, Some(before)) = (has_engine("uring", test), privilege(test)) else {
        return;
    };
    let report = tempfile::NamedTempFile::new().unwrap();
    let report = report.path().to_str().unwrap();
    let flags = ["--path", "veth", "--hold", "5m", "--report", report];
    let flags = [&["--connections", "300"], &flags[..]].concat();
    let mut bench = spawn(canary(before, &flags));
    let pid = bench.id();
    let mut ends = Vec::new();
    eventually("server and client run", BOUND, || {
        ends = children_of(pid);
        ends.len() == 2
    });
    let spaces: Vec<PathBuf> = ends.iter().filter_map(|pid| namespace(*pid)).collect();
    assert_eq!(spaces.len(), 2);
    assert!(spaces[0] != spaces[1] && !spaces.contains(&namespace(std::process::id()).unwrap()));
    nothing_here();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    bench.wait().unwrap();
    eventually("both ends have gone", Duration::from_secs(30), || {
        !ends.iter().any(|pid| is_running(*pid))
    });
    // A namespace has no name, so it lives as long as somebody is in it.
    let anybody = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        pid.and_then(namespace)
            .is_some_and(|space| spaces.contains(&space))
    });
    assert!(!anybody);
    nothing_here();
}

#[test]
fn without_privilege_veth_is_refused_with_the_way_out_and_the_default_is_loopback() {
    let test = "without_privilege_veth_is_refused_with_the_way_out_and_the_default_is_loopback";
    if !has_engine("uring", test) {
        return;
    }
    let before: &[&str] = match nix::unistd::geteuid().is_root() {
        false => &[],
        true => &[
            "setpriv",
            "--bounding-set=-sys_admin",
            "--inh-caps=-sys_admin",
        ],
    };
    if before.len() > 1 && Command::new("setpriv").arg("--version").output().is_err() {
        skip(test, "setpriv is not installed");
        return;
    }
    let Asked { output, said, .. } = ask(before, &["--path", "veth"]);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for words in ["--path veth", "root", "unshare -r", "--path loopback"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    let asked = ask(before, &[]);
    is_whole(&asked, "loopback");
    assert!(asked.said.contains("not veth: this user may not"));
    assert!(asked.report["plan"]["why_not_veth"].is_string());
    let asked = ask(before, &["--path", "loopback,veth"]);
    is_whole(&asked, "loopback");
    assert!(asked.said.contains("not veth: this user may not"));
}

#[test]
fn without_ip_it_says_what_to_install() {
    let test = "without_ip_it_says_what_to_install";
    let Some([]) = privilege(test) else { return };
    let mut command = canary(&[], &["--path", "veth"]);
    command.env("PATH", "/nonexistent");
    let output = run(command, BOUND);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("iproute2"), "{said}");
}

#[test]
fn engines_and_paths_follow_one_another_and_each_says_whose_it_is() {
    let test = "engines_and_paths_follow_one_another_and_each_says_whose_it_is";
    let (true, Some(before)) = (has_engine("uring", test), privilege(test)) else {
        return;
    };
    let flags = "--connections 300 --path loopback,veth --engines epoll,tokio-uring --baseline 500ms --recovery 0s \
                 --steps 0 --idle 500ms --hold 1s --heartbeat 500ms --active 0 --storm 0";
    let asked = ask_alone(before, &flags.split_whitespace().collect::<Vec<_>>());
    let said = &asked.said;
    assert_eq!(asked.output.status.code(), Some(0), "{said}");
    let held = asked.report["held"].as_array().unwrap();
    let cases: Vec<[&str; 2]> = held
        .iter()
        .map(|held| ["path", "engine"].map(|what| held[what].as_str().unwrap()))
        .collect();
    let all = [
        ["loopback", "epoll"],
        ["loopback", "tokio-uring"],
        ["veth", "epoll"],
        ["veth", "tokio-uring"],
    ];
    assert_eq!(cases, all);
    for (held, [path, engine]) in held.iter().zip(all) {
        assert_eq!(held["client"]["established"], 300);
        assert_eq!(held["client"]["path"]["kind"], path);
        assert_eq!(held["servers"][0]["engine"], engine);
        assert!(held["servers"][0]["heartbeats_sent"].as_u64() >= Some(300));
        let samples = held["series"]["samples"].as_array().unwrap().iter();
        let mut idle = samples.filter(|sample| sample["phase"] == "idle");
        assert!(
            idle.all(|sample| sample["heartbeats"] == 0),
            "{}",
            held["series"]
        );
        assert!(
            said.contains(&format!("{engine} over {path}, at 300 held")),
            "{said}"
        );
    }
    nothing_here();
}

#[test]
fn interrupted_it_keeps_what_it_has_and_says_that_it_is_partial() {
    let test = "interrupted_it_keeps_what_it_has_and_says_that_it_is_partial";
    if !has_engine("uring", test) {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let flags = [
        "--path",
        "loopback",
        "--idle",
        "5m",
        "--report",
        file.path().to_str().unwrap(),
    ];
    let running = spawn(canary(
        &[],
        &[&QUICK[..6], &["--baseline", "1s"], &flags].concat(),
    ));
    let pid = running.id();
    let mut ends = Vec::new();
    eventually("server and client run", BOUND, || {
        ends = children_of(pid);
        ends.len() == 2
    });
    // The baseline is over, and the step: it is idle.
    std::thread::sleep(Duration::from_secs(5));
    kill(Pid::from_raw(pid as i32), Signal::SIGINT).unwrap();
    let output = common::finish(running, Duration::from_secs(60));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted") && said.contains("Partial"),
        "{said}"
    );
    assert!(!ends.iter().any(|pid| is_running(*pid)));
    let report: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(report["partial"], true);
    let held = &report["held"][0];
    let found = &held["client"]["canaries"]["stages"];
    assert!(found.to_string().contains("idle"), "{said}");
    let samples = held["series"]["samples"].as_array().unwrap();
    assert_eq!(samples.last().unwrap()["phase"], "idle");
    assert_eq!(held["client"]["heartbeats"]["missing"], 0);
    // In a pipe each phase has a line when it begins.
    assert!(said.contains("over loopback: baseline, 1.0 s"), "{said}");
    assert!(said.contains("over loopback: idle, 300.0 s"), "{said}");
}
