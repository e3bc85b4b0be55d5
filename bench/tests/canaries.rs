//! Canaries over real processes: they answer through every stage, what is lost is told as loss, and what cannot be
//! measured says so. Rules and settings of the network are touched only in namespaces made here.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Server, eventually, finish, has_engine, run, skip, spawn, text, throng};
use serde_json::Value;

/// Set in the copy of a test that runs in a network namespace of its own.
const INSIDE: &str = "THRONG_TEST_IN_NAMESPACE";

fn has_ring(test: &str) -> bool {
    has_engine("uring", test)
}

struct Run {
    output: Output,
    summary: Value,
}

impl Run {
    /// The figures of the probe `kind` in `stage`.
    fn figures(&self, kind: &str, stage: &str) -> &Value {
        self.probe(kind)["stages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|figures| figures["stage"] == stage)
            .unwrap_or_else(|| panic!("no {stage} of {kind} in {}", self.summary["canaries"]))
    }

    fn probe(&self, kind: &str) -> &Value {
        self.summary["canaries"]["probes"]
            .as_array()
            .unwrap_or_else(|| panic!("{}", text(&self.output)))
            .iter()
            .find(|probe| probe["kind"] == kind)
            .unwrap_or_else(|| panic!("no {kind}: {}", text(&self.output)))
    }

    fn count(&self, kind: &str, stage: &str, what: &str) -> u64 {
        self.figures(kind, stage)[what].as_u64().unwrap()
    }
}

const QUICK: [&str; 8] = [
    "--connections",
    "300",
    "--canary-interval",
    "10ms",
    "--baseline",
    "1s",
    "--recovery",
    "1s",
];

fn client(server: &Server, flags: &[&str], meanwhile: impl FnOnce()) -> Run {
    let json = tempfile::NamedTempFile::new().unwrap();
    let target = server.address.to_string();
    let mut all = vec![target.as_str(), "--json", json.path().to_str().unwrap()];
    all.extend(QUICK);
    all.extend(flags);
    let running = spawn(throng("client", &all));
    meanwhile();
    let output = finish(running, Duration::from_secs(60));
    let summary = serde_json::from_slice(&fs::read(json.path()).unwrap()).unwrap_or_default();
    Run { output, summary }
}

/// Until the connections are held: the baseline is over then.
fn held(server: &Server) {
    eventually("300 are held", Duration::from_secs(30), || {
        common::established(server.address.port()) >= 300
    });
}

/// The port of the responder, from the ready line.
fn canary_port(server: &Server) -> String {
    let (_, rest) = server.ready_line.split_once("canary ").unwrap();
    let (_, port) = rest.trim().trim_end_matches(')').rsplit_once(':').unwrap();
    port.into()
}

#[test]
fn every_stage_is_probed_and_answered() {
    if !has_ring("every_stage_is_probed_and_answered") {
        return;
    }
    let served = tempfile::NamedTempFile::new().unwrap();
    let server = Server::start(&[
        "--canary-port",
        "0",
        "--json",
        served.path().to_str().unwrap(),
    ]);
    let port = canary_port(&server);
    let flags = ["--hold", "1s", "--canary", "--canary-port", &port];
    let run = client(&server, &flags, || {});
    assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
    for kind in ["connect", "udp"] {
        for stage in ["baseline", "hold", "recovery"] {
            let [sent, answered, lost] =
                ["sent", "answered", "lost"].map(|what| run.count(kind, stage, what));
            assert!(answered > 10, "{kind} {stage}: {}", text(&run.output));
            assert_eq!(sent, answered + lost);
            assert!(run.figures(kind, stage)["rtt_ns"]["p99"].as_u64() > Some(0));
        }
        // However short they were, they are told.
        run.figures(kind, "ramp");
        run.figures(kind, "close");
        assert_eq!(run.probe(kind)["path"]["kind"], "loopback");
    }
    assert_eq!(run.summary["path"]["kind"], "loopback");
    let said = text(&run.output);
    for words in [
        "loopback: not a network measurement",
        "at 300 held:",
        "during the mass close of 300:",
        "in recovery:",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    // The responder's connections are its own: the server has counted the held ones only.
    let (status, _) = server.stop(Duration::from_secs(20));
    assert!(status.success());
    let served: Value = serde_json::from_slice(&fs::read(served.path()).unwrap()).unwrap();
    assert_eq!(served["accepted"], 300);
    assert_eq!(
        served["canary"]["connections"],
        run.summary["canaries"]["connects"]
    );
}

#[test]
fn a_server_of_ones_own_is_probed_at_its_own_port() {
    if !has_ring("a_server_of_ones_own_is_probed_at_its_own_port") {
        return;
    }
    for (protocol, asks) in [("line", false), ("echo", true)] {
        let server = Server::start(&["--protocol", protocol]);
        let flags = ["--hold", "1s", "--protocol", protocol, "--canary=connect"];
        let run = client(&server, &flags, || {});
        assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
        assert!(
            run.count("connect", "hold", "answered") > 10,
            "{}",
            text(&run.output)
        );
        assert_eq!(run.probe("connect")["includes_own_wakeup"], asks);
    }
}

#[test]
fn where_nobody_answers_all_is_lost_and_the_run_ends() {
    if !has_ring("where_nobody_answers_all_is_lost_and_the_run_ends") {
        return;
    }
    let server = Server::start(&[]);
    // A port that nobody has: its socket is closed again.
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let flags = [
        "--hold",
        "1s",
        "--canary=udp",
        "--canary-port",
        &port.to_string(),
    ];
    let run = client(&server, &flags, || {});
    assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
    for stage in ["baseline", "hold"] {
        let sent = run.count("udp", stage, "sent");
        assert!(sent > 10);
        assert_eq!(run.count("udp", stage, "lost"), sent);
    }
    assert_eq!(run.figures("udp", "hold")["verdict"], "no_baseline");
}

#[test]
fn lost_pings_are_told_as_loss() {
    if !has_ring("lost_pings_are_told_as_loss") || !in_namespace("lost_pings_are_told_as_loss") {
        return;
    }
    if !can_run("nft") {
        skip("lost_pings_are_told_as_loss", "nft is not installed");
        return;
    }
    let server = Server::start(&[]);
    let flags = ["--hold", "4s", "--canary=ping"];
    let run = client(&server, &flags, || {
        held(&server);
        for rule in [
            "add table inet throng",
            "add chain inet throng in { type filter hook input priority 0; }",
            "add rule inet throng in icmp type echo-request numgen random mod 100 < 30 drop",
        ] {
            assert!(
                Command::new("nft").arg(rule).status().unwrap().success(),
                "{rule}"
            );
        }
    });
    assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
    assert_eq!(
        run.count("ping", "baseline", "lost"),
        0,
        "{}",
        text(&run.output)
    );
    let [sent, lost] = ["sent", "lost"].map(|what| run.count("ping", "hold", what));
    assert!(lost * 10 > sent && lost * 2 < sent, "{lost} of {sent}");
    told_as_worse(&run);
}

#[test]
fn a_host_that_stops_answering_pings_is_told_as_loss() {
    let test = "a_host_that_stops_answering_pings_is_told_as_loss";
    if !has_ring(test) || !in_namespace(test) {
        return;
    }
    let server = Server::start(&[]);
    let flags = ["--hold", "3s", "--canary=ping"];
    let run = client(&server, &flags, || {
        held(&server);
        // Of this namespace alone.
        fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1").unwrap();
    });
    assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
    assert!(
        run.count("ping", "baseline", "answered") > 10,
        "{}",
        text(&run.output)
    );
    assert!(
        run.count("ping", "hold", "lost") > 10,
        "{}",
        text(&run.output)
    );
    told_as_worse(&run);
}

/// Held connections that need every port leave none to a program that connects without a bind: that is told, and is
/// neither a loss nor the prober's own trouble.
#[test]
fn ports_that_the_held_connections_take_from_others_are_told() {
    let test = "ports_that_the_held_connections_take_from_others_are_told";
    if !has_ring(test) || !in_namespace(test) {
        return;
    }
    let server = Server::start(&["--canary-port", "0"]);
    let port = canary_port(&server);
    // Of this namespace alone. Those the kernel chooses from are bound last, so there are no others than the 300 needed.
    let of_namespace = |name: &str, value: &str| {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
    };
    of_namespace("ip_local_port_range", "10050 10099");
    let others = "1024-9999,10300-65535";
    of_namespace("ip_local_reserved_ports", others);
    let flags = [
        "--hold",
        "2s",
        "--source",
        "127.1.0.1",
        "--canary=connect",
        "--canary-port",
        &port,
    ];
    let run = client(&server, &flags, || {});
    assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
    assert_eq!(run.count("connect", "baseline", "unbound_without_port"), 0);
    assert!(
        run.count("connect", "hold", "unbound_without_port") > 0,
        "{}",
        text(&run.output)
    );
    assert!(
        run.count("connect", "hold", "answered") > 10,
        "{}",
        text(&run.output)
    );
    assert!(
        text(&run.output).contains("NO PORT"),
        "{}",
        text(&run.output)
    );
}

#[test]
fn a_neighbour_over_veth_is_named_so_and_its_silence_is_loss() {
    let test = "a_neighbour_over_veth_is_named_so_and_its_silence_is_loss";
    if !has_ring(test) || !in_namespace(test) {
        return;
    }
    for command in [
        "link add near type veth peer name far",
        "addr add 10.77.0.1/24 dev near",
        "link set near up",
        "link set far up",
    ] {
        let done = Command::new("ip")
            .args(command.split(' '))
            .status()
            .unwrap();
        assert!(done.success(), "ip {command}");
    }
    let server = Server::start(&[]);
    // Nobody has this address.
    let flags = [
        "--hold",
        "1s",
        "--canary=ping",
        "--canary-neighbour",
        "10.77.0.2",
    ];
    let run = client(&server, &flags, || {});
    assert_eq!(run.output.status.code(), Some(0), "{}", text(&run.output));
    let neighbour = &run.summary["canaries"]["probes"][1];
    assert_eq!(neighbour["target"], "10.77.0.2:0");
    assert_eq!(
        neighbour["path"],
        serde_json::json!({"kind": "veth", "device": "near"})
    );
    assert_eq!(neighbour["stages"][0]["answered"], 0);
    assert_eq!(
        neighbour["stages"][0]["sent"],
        neighbour["stages"][0]["lost"]
    );
    assert!(
        run.count("ping", "baseline", "answered") > 10,
        "{}",
        text(&run.output)
    );
}

/// Loss does not depend on how late a probe was sent, but a verdict needs a prober that ran.
fn told_as_worse(run: &Run) {
    let figures = run.figures("ping", "hold");
    match figures["verdict"].as_str().unwrap() {
        "worse" => {
            assert_eq!(figures["is_loss_worse"], true);
            assert!(text(&run.output).contains("WORSE"), "{}", text(&run.output));
        }
        "prober_starved" | "baseline_starved" => {
            skip(
                "the verdict on lost pings",
                "this machine was too busy for a verdict",
            );
        }
        other => panic!("{other}: {}", text(&run.output)),
    }
}

#[test]
fn without_the_right_to_ping_it_says_how_to_get_it() {
    let test = "without_the_right_to_ping_it_says_how_to_get_it";
    if !has_ring(test) || !in_namespace(test) {
        return;
    }
    if !can_run("setpriv") {
        skip(test, "setpriv is not installed");
        return;
    }
    let server = Server::start(&[]);
    let target = server.address.to_string();
    let json = tempfile::NamedTempFile::new().unwrap();
    // A new namespace lets nobody ping but with CAP_NET_RAW, which this takes away.
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"])
        .arg(common::bench())
        .args(["client", &target, "--json", json.path().to_str().unwrap()])
        .args(QUICK)
        .args(["--hold", "1s", "--canary"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = run(command, Duration::from_secs(60));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for words in [
        "ping 127.0.0.1: could not measure",
        "net.ipv4.ping_group_range",
        "setcap",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    let summary: Value = serde_json::from_slice(&fs::read(json.path()).unwrap()).unwrap();
    assert_eq!(summary["canaries"]["not_measured"][0]["kind"], "ping");
    // What may be measured was.
    assert_eq!(summary["canaries"]["probes"][0]["kind"], "connect");
}

/// True in a network namespace made for `test`, with its loopback up. Elsewhere it runs the test again in one, checks that
/// it passes, and gives false; where none can be made, it says so.
fn in_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success(), "ip link set lo up");
        return true;
    }
    if !can_run("ip") {
        skip(test, "ip (iproute2) is not installed");
        return false;
    }
    // As root, the kernel's own; else in a user namespace, where one may be made.
    let can_make = |flags: &&str| {
        let made = Command::new("unshare")
            .args([flags, "true"])
            .stderr(Stdio::null())
            .status();
        made.is_ok_and(|status| status.success())
    };
    let Some(flags) = ["-n", "-rn"].iter().find(|flags| can_make(flags)) else {
        skip(
            test,
            "no network namespace can be made here (unshare -n as root, or -rn)",
        );
        return false;
    };
    let mut again = Command::new("unshare");
    again
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = run(again, Duration::from_secs(120));
    let said = text(&output);
    // What was skipped there was skipped here.
    for line in said.lines().filter(|line| line.starts_with("SKIPPED ")) {
        skip_too(line);
    }
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    false
}

fn skip_too(line: &str) {
    let (test, why) = line
        .trim_start_matches("SKIPPED ")
        .split_once(": ")
        .unwrap_or((line, ""));
    skip(test, why);
}

fn can_run(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}
