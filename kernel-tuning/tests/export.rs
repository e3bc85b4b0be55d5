//! `throng-tune export`: files on standard output, and what is no base for one.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::Host;
use serde_json::{Value, json};

#[test]
fn each_file_is_for_the_host_that_was_described() {
    let host = Host::new();
    let sysctl = host.tune("export sysctl --connections 1000000 --role server --port 80");
    let sysctl = sysctl
        .expect(
            0,
            &["a server of 1000000 connections on a host with 16.0 GiB"],
        )
        .out;
    assert!(
        sysctl.contains("\nnet.ipv4.ip_local_reserved_ports = 80\n"),
        "{sysctl}"
    );
    assert!(
        sysctl.contains("\n-net.netfilter.nf_conntrack_max = 1232768\n"),
        "{sysctl}"
    );
    let is_read = |line: &str| line.is_empty() || line.starts_with('#') || line.contains(" = ");
    assert!(sysctl.lines().all(is_read), "{sysctl}");

    let limits = host
        .tune("export limits --connections 1000000")
        .expect(0, &[])
        .out;
    for line in ["* soft", "* hard", "root soft", "root hard"] {
        assert!(
            limits.contains(&format!("\n{line} nofile 1101024\n")),
            "{limits}"
        );
    }
    let unit = host
        .tune("export systemd --connections 1000000 --role server")
        .expect(0, &[])
        .out;
    for line in [
        "[Service]",
        "LimitNOFILE=1101024",
        "TasksMax=4096",
        "MemoryMax=9698M",
    ] {
        assert!(unit.contains(&format!("\n{line}\n")), "{unit}");
    }
}

#[test]
fn a_seccomp_profile_needs_the_runtimes_own() {
    let host = Host::new();
    let base = host.root().join("default.json");
    let rules = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]});
    fs::write(&base, rules.to_string()).unwrap();
    let export = |path: &str| host.tune(&format!("export seccomp --base {path}"));
    let made: Value =
        serde_json::from_str(&export(base.to_str().unwrap()).expect(0, &[]).out).unwrap();
    assert_eq!(made["syscalls"][0], rules["syscalls"][0]);
    assert_eq!(
        made["syscalls"][1]["names"],
        json!(["io_uring_enter", "io_uring_register", "io_uring_setup"])
    );
    assert_eq!(made["syscalls"].as_array().unwrap().len(), 2);

    fs::write(&base, "{}").unwrap();
    export(base.to_str().unwrap()).expect(2, &["no list of rules"]);
    export("/nonexistent/default.json").expect(2, &["cannot read", "--help"]);
    host.tune("export seccomp").expect(2, &["--base"]);
}
