//! `throng-tune` on the kernel's own settings, those of a network namespace made for the test; settings of the host are
//! files of the test's, so that nothing of it is changed.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{Ended, Host, in_namespace, skip};
use kernel_tuning::profile;
use kernel_tuning::setting::{Role, Scope};

#[test]
fn the_kernel_takes_every_value_and_has_the_old_ones_after_revert() {
    if !in_namespace(
        "the_kernel_takes_every_value_and_has_the_old_ones_after_revert",
        "",
    ) {
        return;
    }
    let host = Host::with_real_namespace();
    let before = host.values();
    host.tune("apply --connections 1000000 --port 7000 --port 9000-9010")
        .expect(0, &["changed"]);
    assert_eq!(host.value("net.ipv4.ip_local_port_range"), "1024 65535");
    assert_eq!(
        host.value("net.ipv4.ip_local_reserved_ports"),
        "7000,9000-9010"
    );
    host.tune("diff --connections 1000000 --port 7000 --port 9000-9010")
        .expect(0, &["25 of 25"]);
    host.tune("apply --connections 2000000 --port 80")
        .expect(0, &["ip_local_reserved_ports"]);
    assert_eq!(
        host.value("net.ipv4.ip_local_reserved_ports"),
        "80,7000,9000-9010"
    );
    host.tune("status").expect(0, &[]);
    host.tune("revert").expect(
        0,
        &["ip_local_reserved_ports: 80,7000,9000-9010 -> (empty)"],
    );
    assert_eq!(host.values(), before);
}

#[test]
fn a_value_the_kernel_refuses_changes_nothing() {
    if !in_namespace("a_value_the_kernel_refuses_changes_nothing", "") {
        return;
    }
    let host = Host::with_real_namespace();
    // The port range must not reach below it (EINVAL).
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "2000").unwrap();
    let before = host.values();
    let words = [
        "cannot write \"1024 65535\" to net.ipv4.ip_local_port_range",
        "as it was before",
    ];
    host.tune("apply --connections 1000000").expect(1, &words);
    assert_eq!(host.values(), before);
}

#[test]
fn sysctl_takes_the_profiles() {
    let test = "sysctl_takes_the_profiles";
    if !in_namespace(test, "") {
        return;
    }
    // Those of the namespace, each with its comments; the others would be the host's.
    let texts = [
        include_str!("../profiles/common.conf"),
        include_str!("../profiles/server.conf"),
        include_str!("../profiles/client.conf"),
    ];
    let ours: Vec<_> = profile::settings(Role::Both)
        .into_iter()
        .filter(|setting| setting.scope == Scope::Namespace)
        .collect();
    let is_ours = |line: &&str| {
        ours.iter().any(|setting| {
            let name = line
                .split(['=', ' '])
                .next()
                .unwrap()
                .trim_start_matches('-');
            name == setting.name
        })
    };
    let lines = texts.iter().flat_map(|text| text.lines());
    let lines: Vec<_> = lines
        .filter(|line| line.starts_with('#') || is_ours(line))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, lines.join("\n") + "\n").unwrap();
    let Ok(output) = Command::new("sysctl").arg("-p").arg(file.path()).output() else {
        return skip(test, "no sysctl(8) (procps)");
    };
    let ended = Ended::of(output).expect(0, &[]);
    assert_eq!(ended.err, "");
    for setting in ours {
        let path = format!("/proc/sys/{}", setting.name.replace('.', "/"));
        let text = fs::read_to_string(path).unwrap();
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words.join(" "), setting.reference, "{}", setting.name);
    }
}
