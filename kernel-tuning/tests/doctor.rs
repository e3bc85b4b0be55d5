//! `throng-tune check | explain | watch | addresses` as a user runs them: what is said, to whom, and how it ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ended, in_namespace, program, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn tune(line: &str) -> Ended {
    let mut command = Command::new(program());
    command.args(line.split(' ')).stdin(Stdio::null());
    Ended::of(command.output().unwrap())
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:#?}"))
}

#[test]
fn check_has_a_verdict_in_text_json_and_exit_code_within_a_second() {
    let begun = Instant::now();
    let ended = tune("check --connections 1000 --json");
    // One second is promised; a busy machine gets more.
    assert!(begun.elapsed() < Duration::from_secs(5));
    let report = json(&ended);
    let code = match report["verdict"].as_str().unwrap() {
        "fail" => 11,
        "warn" => 10,
        _ => 0,
    };
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    let findings = report["findings"].as_array().unwrap();
    let counts = ["passed", "warned", "failed", "unknown"].map(|key| report[key].as_u64().unwrap());
    assert_eq!(counts.iter().sum::<u64>(), findings.len() as u64);

    let text = tune("check --connections 1000").out;
    for finding in findings {
        assert!(
            text.contains(finding["name"].as_str().unwrap()),
            "{finding} in {text}"
        );
    }
    assert!(!text.contains('\x1b'), "colours in a pipe: {text}");
}

#[test]
fn what_cannot_be_held_fails_and_the_command_is_named() {
    let ended = tune("check --connections 1000000000 --role server").expect(11, &["FAIL memory"]);
    assert!(
        ended
            .out
            .contains("throng-tune apply --connections 1000000000 --role server")
    );
    tune("check --connections 0").expect(2, &[]);
}

#[test]
fn explain_knows_settings_and_counters_and_what_is_near_a_slip() {
    tune("explain tcp_mem").expect(0, &["net.ipv4.tcp_mem", "wanted", "ip-sysctl"]);
    tune("explain TcpExtListenOverflows").expect(0, &["accept queue", "do give the server"]);
    tune("explain fs.epoll.max_user_watches")
        .expect(0, &["watches of a user", "of the whole host, one value"]);
    tune("explain somaxcon").expect(2, &["net.core.somaxconn"]);
    let all = json(&tune("explain --json"));
    assert!(all.as_array().unwrap().len() > 80);
    tune("explain").expect(0, &["SoftnetDropped", "net.core.somaxconn"]);
}

#[test]
fn watch_writes_a_plain_line_an_interval_and_json_on_demand() {
    let ended = tune("watch --interval 20ms --count 3");
    assert!(matches!(ended.code, Some(0 | 10)), "{ended:#?}");
    let rows = ended
        .out
        .lines()
        .filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(rows.count(), 3, "{ended:#?}");
    assert!(ended.out.lines().last().unwrap().starts_with("in ") && !ended.out.contains('\x1b'));
    let ended = tune("watch --interval 20ms --count 2 --json");
    let lines: Vec<Value> = ended
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[1]["moved"].is_array() && lines[1]["sockets"]["inuse"].is_u64());
    tune("watch --interval 0s").expect(2, &[]);
}

fn watching(line: &str) -> Child {
    let mut command = Command::new(program());
    command
        .args(line.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn ends(child: &mut Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it went on");
}

#[test]
fn watch_ends_in_order_on_ctrl_c_and_when_nobody_reads() {
    let mut child = watching("watch --interval 200ms");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The heading and a first row: it is under way.
    assert!(lines.next().unwrap().unwrap().contains("sockets"));
    lines.next().unwrap().unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert!(lines.last().unwrap().unwrap().starts_with("in "));
    assert!(matches!(ends(&mut child), Some(0 | 10)));

    let mut child = watching("watch --interval 10ms");
    drop(child.stdout.take());
    assert!(matches!(ends(&mut child), Some(0 | 10)));
}

#[test]
fn addresses_refuses_what_it_cannot_do_before_it_begins() {
    tune("addresses add 127.9.0.0/16").expect(2, &["nothing needs to be added"]);
    tune("addresses add 10.99.0.0/16 --interface no-such").expect(2, &["no interface no-such"]);
    tune("addresses add").expect(2, &[]);
    tune("addresses list").expect(0, &[]);
}

#[test]
fn addresses_come_and_go_in_a_namespace() {
    let name = "addresses_come_and_go_in_a_namespace";
    if !in_namespace(name, "") {
        return;
    }
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    if !up.is_ok_and(|status| status.success()) {
        return skip(name, "the program ip is not there (iproute2)");
    }
    let line = "addresses add 10.9.0.0/16";
    tune(&format!("{line} --dry-run")).expect(0, &["would add: route local 10.9.0.0/16 dev lo"]);
    tune("addresses list").expect(0, &["nothing"]);
    tune(line).expect(0, &["added: route local 10.9.0.0/16 dev lo"]);
    tune(line).expect(0, &["added: nothing", "1 there already"]);
    tune("addresses add 10.5.0.1-10.5.0.3 --interface lo")
        .expect(0, &["added: address 10.5.0.3/32 dev lo"]);
    assert_eq!(
        json(&tune("addresses list --json"))
            .as_array()
            .unwrap()
            .len(),
        4
    );
    tune("addresses remove --interface lo --dry-run")
        .expect(0, &["would remove: address 10.5.0.1/32 dev lo"]);
    tune("addresses remove").expect(
        0,
        &[
            "removed: route local 10.9.0.0/16 dev lo",
            "removed: address 10.5.0.2/32 dev lo",
        ],
    );
    tune("addresses remove").expect(0, &["removed: nothing"]);
    // What a namespace has not is told as such.
    tune("check --connections 1000").expect(10, &["whose settings not here: net.ipv4.tcp_mem"]);
}
