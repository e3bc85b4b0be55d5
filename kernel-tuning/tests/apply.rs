//! `throng-tune diff | apply | revert | status` on a tree made for the test: what changes, what comes back, and what is
//! said when it cannot.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Ended, Host, in_namespace, skip};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use serde_json::Value;

const TW: &str = "net.ipv4.tcp_max_tw_buckets";

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:#?}"))
}

#[test]
fn apply_does_what_diff_showed_and_revert_takes_it_back() {
    let host = Host::new();
    let before = host.values();
    let shown = json(
        &host
            .tune("diff --connections 1000000 --json")
            .expect(10, &[]),
    );
    host.tune("apply --connections 1000000 --dry-run")
        .expect(0, &["nothing was changed"]);
    assert_eq!(host.values(), before);
    assert!(!host.state().exists());

    host.tune("apply --connections 1000000")
        .expect(0, &["changed", "throng-tune revert"]);
    let mut changes = 0;
    for (step, (name, value)) in shown.as_array().unwrap().iter().zip(host.values()) {
        assert_eq!(step["name"], name);
        let expected = match step["todo"].as_str() {
            Some("change") => &step["to"],
            _ => &step["now"],
        };
        assert_eq!(*expected, value, "{name}");
        changes += u32::from(step["todo"] == "change");
    }
    assert!(changes > 15, "{changes}");
    host.tune("diff --connections 1000000")
        .expect(0, &["25 of 25"]);
    host.tune("status")
        .expect(0, &["tcp_max_tw_buckets: 65536 -> 1000000, now 1000000"]);

    host.tune("revert")
        .expect(0, &["tcp_max_tw_buckets: 1000000 -> 65536"]);
    assert_eq!(host.values(), before);
    assert!(!host.state().exists());
    host.tune("revert").expect(0, &["nothing is changed"]);
    host.tune("status").expect(0, &["nothing is changed"]);
}

#[test]
fn after_several_the_first_originals_come_back() {
    let host = Host::new();
    let before = host.values();
    host.tune("apply --connections 200000 --role server")
        .expect(0, &[]);
    assert_eq!(host.value(TW), "200000");
    host.tune("apply --connections 1000000 --role both")
        .expect(0, &[]);
    assert_eq!(host.value(TW), "1000000");
    host.tune("apply --connections 1000")
        .expect(0, &["25 of 25"]);
    host.tune("revert").expect(0, &[]);
    assert_eq!(host.values(), before);
}

#[test]
fn what_somebody_else_changed_since_is_theirs() {
    let host = Host::new();
    host.tune("apply --connections 1000000").expect(0, &[]);
    fs::write(host.sysctl(TW), "77\n").unwrap();
    host.tune("status")
        .expect(10, &["now 77, which somebody else gave it"]);
    host.tune("revert")
        .expect(10, &["left at 77", &format!("sudo sysctl -w {TW}='65536'")]);
    assert_eq!(host.value(TW), "77");
    assert_eq!(host.value("net.ipv4.tcp_tw_reuse"), "2");
    host.tune("apply --connections 1000000").expect(0, &[]);
    host.tune("revert").expect(0, &[]);
    assert_eq!(host.value(TW), "77");
}

/// The write to a pipe that nobody reads blocks: in the middle of an apply, which is killed there.
#[test]
fn a_crash_in_between_is_taken_back_or_finished() {
    let host = Host::new();
    let before = host.values();
    let blocked = host.sysctl(TW);
    fs::remove_file(&blocked).unwrap();
    nix::unistd::mkfifo(&blocked, Mode::from_bits_truncate(0o644)).unwrap();
    let mut child = host.command("apply --connections 1000000").spawn().unwrap();
    // It is read twice: before and after the lock is had. Opening waits for the reader.
    let lock = host.root().join("var/lib/throng/tune.json.lock");
    for is_between in [|_: &Path| true, |lock: &Path| lock.exists()] {
        assert!(eventually(|| is_between(&lock)));
        let pipe = File::options().write(true).open(&blocked);
        pipe.unwrap().write_all(b"65536\n").unwrap();
    }
    // The setting before it is changed, and this one is not.
    let came_so_far = eventually(|| {
        let text = fs::read_to_string(host.sysctl("net.ipv4.tcp_max_orphans")).unwrap();
        text.trim() == "838860"
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(came_so_far);
    fs::remove_file(&blocked).unwrap();
    fs::write(&blocked, "65536\n").unwrap();
    let half = host.values();
    assert_ne!(half, before);

    host.tune("status").expect(
        10,
        &[
            "cut off",
            "65536 -> 1000000, now 65536, which it was before",
        ],
    );
    // Once more, to the end, and then back.
    let state = fs::read(host.state()).unwrap();
    host.tune("apply --connections 1000000").expect(0, &[]);
    host.tune("revert").expect(0, &[]);
    assert_eq!(host.values(), before);
    // Or back at once.
    fs::write(host.state(), state).unwrap();
    for (name, value) in &half {
        fs::write(host.sysctl(name), value).unwrap();
    }
    host.tune("revert")
        .expect(0, &["tcp_max_tw_buckets: was 65536 already"]);
    assert_eq!(host.values(), before);
}

/// Whether `is` becomes true within a generous time.
fn eventually(mut is: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn wherever_an_apply_was_cut_off_the_originals_come_back() {
    let host = Host::new();
    let before = host.values();
    host.tune("apply --connections 200000").expect(0, &[]);
    let first = host.values();
    host.tune("apply --connections 1000000").expect(0, &[]);
    let second = host.values();
    // What the second apply left on the disk before it wrote the first setting.
    let state = fs::read_to_string(host.state()).unwrap();
    let state = state.replace("\"is_complete\": true", "\"is_complete\": false");
    for cut in 0..=second.len() {
        for (name, value) in second[..cut].iter().chain(&first[cut..]) {
            fs::write(host.sysctl(name), value).unwrap();
        }
        fs::write(host.state(), &state).unwrap();
        host.tune("revert").expect(0, &[]);
        assert_eq!(host.values(), before, "cut off after {cut}");
        assert!(!host.state().exists());
    }
}

#[test]
fn when_one_cannot_be_written_none_is_changed() {
    let host = Host::new();
    // A number of the process itself, which the kernel bounds by 1000.
    fs::remove_file(host.sysctl(TW)).unwrap();
    symlink("/proc/self/oom_score_adj", host.sysctl(TW)).unwrap();
    let before = host.values();
    let refused = [
        "cannot write \"1000000\" to net.ipv4.tcp_max_tw_buckets",
        "every setting is as it was",
    ];
    host.tune("apply --connections 1000000 --persist")
        .expect(1, &refused);
    assert_eq!(host.values(), before);
    assert!(!host.state().exists() && !host.kept().exists());
    // Of a second one too, the first stays.
    host.tune("apply --connections 900 --role client")
        .expect(0, &[]);
    let (first, state) = (host.values(), fs::read(host.state()).unwrap());
    host.tune("apply --connections 1000000").expect(1, &refused);
    assert_eq!(
        (host.values(), fs::read(host.state()).unwrap()),
        (first, state)
    );
}

#[test]
fn when_the_kernel_makes_another_value_of_it_none_is_changed() {
    let host = Host::new();
    // A number of the process itself: 0 gives it the default again.
    let name = "net.ipv4.tcp_abort_on_overflow";
    fs::remove_file(host.sysctl(name)).unwrap();
    symlink("/proc/self/timerslack_ns", host.sysctl(name)).unwrap();
    let before = host.values();
    host.tune("apply").expect(
        1,
        &[
            "tcp_abort_on_overflow reads \"50000\" after \"0\" was written",
            "as it was",
        ],
    );
    assert_eq!(host.values(), before);
}

#[test]
fn when_taking_back_fails_too_the_state_keeps_it() {
    let host = Host::new();
    // It reads as hexadecimal digits and is written as a decimal or octal number: no value comes back.
    fs::remove_file(host.sysctl(TW)).unwrap();
    symlink("/proc/self/coredump_filter", host.sysctl(TW)).unwrap();
    host.tune("apply --connections 1000000").expect(
        1,
        &["not everything could be taken back", "throng-tune revert"],
    );
    host.tune("status").expect(10, &["cut off"]);
    // What could be taken back was.
    assert_eq!(host.value("net.ipv4.tcp_max_orphans"), "65536");
}

#[test]
fn persist_writes_a_file_for_the_next_start_and_revert_removes_it() {
    let host = Host::new();
    host.tune("apply --connections 1000000 --persist --dry-run")
        .expect(0, &["90-throng.conf would be written"]);
    assert!(!host.kept().exists());
    host.tune("apply --connections 1000000 --persist")
        .expect(0, &["at every start", "90-throng.conf"]);
    let text = fs::read_to_string(host.kept()).unwrap();
    let kept: Vec<_> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert!(
        kept.contains(&"net.ipv4.tcp_max_tw_buckets = 1000000"),
        "{text}"
    );
    assert!(
        kept.contains(&"-net.netfilter.nf_conntrack_max = 1232768"),
        "{text}"
    );
    // What was good is not pinned.
    assert!(!text.contains("tcp_syncookies ="), "{text}");
    assert!(text.contains("# sockets in TIME_WAIT"), "{text}");
    host.tune("status").expect(0, &["at every start"]);
    host.tune("revert").expect(0, &[]);
    assert!(!host.kept().exists());
}

#[test]
fn where_nothing_is_changed_nothing_is_kept() {
    let host = Host::new();
    host.tune("apply --connections 1 --role client")
        .expect(0, &[]);
    host.tune("revert").expect(0, &[]);
    for (name, value) in [
        ("net.ipv4.ip_local_port_range", "1024 65535"),
        ("net.ipv4.tcp_tw_reuse", "1"),
    ] {
        fs::write(host.sysctl(name), value).unwrap();
    }
    host.tune("apply --connections 1 --role client --persist")
        .expect(0, &["nothing was changed"]);
    assert!(!host.kept().exists() && !host.state().exists());
}

#[test]
fn programs_are_told_what_people_are() {
    let host = Host::new();
    let told = json(
        &host
            .tune("apply --connections 1000000 --json")
            .expect(0, &[]),
    );
    let changes = told["state"]["changes"].as_array().unwrap();
    let steps = told["steps"].as_array().unwrap();
    let changed = steps.iter().filter(|step| step["todo"] == "change").count();
    assert_eq!(changes.len(), changed);
    let told = json(&host.tune("status --json").expect(0, &[]));
    assert_eq!(told["settings"].as_array().unwrap().len(), changed);
    assert_eq!(told["settings"][0]["is"], "as_applied");
    let told = json(&host.tune("revert --json").expect(0, &[]));
    assert_eq!(told.as_array().unwrap().len(), changed);
    assert_eq!(
        json(&host.tune("revert --json").expect(0, &[])),
        Value::Array(Vec::new())
    );
    assert_eq!(
        json(&host.tune("status --json").expect(0, &[])),
        Value::Null
    );
}

#[test]
fn another_ones_file_is_neither_replaced_nor_removed() {
    let host = Host::new();
    let before = host.values();
    fs::create_dir_all(host.kept().parent().unwrap()).unwrap();
    fs::write(host.kept(), "vm.swappiness = 1\n").unwrap();
    host.tune("apply --persist")
        .expect(1, &["was not written by throng-tune", "as it was before"]);
    assert_eq!(host.values(), before);
    host.tune("apply").expect(0, &[]);
    host.tune("revert").expect(0, &[]);
    assert_eq!(
        fs::read_to_string(host.kept()).unwrap(),
        "vm.swappiness = 1\n"
    );
}

#[test]
fn two_at_once_are_refused() {
    let host = Host::new();
    let before = host.values();
    fs::create_dir_all(host.state().parent().unwrap()).unwrap();
    let lock = File::create(host.root().join("var/lib/throng/tune.json.lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    host.tune("apply")
        .expect(1, &["another throng-tune is changing settings"]);
    assert_eq!(host.values(), before);
    // Who only looks may.
    host.tune("diff").expect(10, &[]);
    host.tune("status").expect(0, &[]);
}

#[test]
fn a_kernel_that_lacks_settings_is_told_of_and_tuned_as_far_as_it_goes() {
    let host = Host::new();
    for name in [
        "net.ipv4.tcp_mem",
        "net.netfilter.nf_conntrack_max",
        "net.netfilter.nf_conntrack_buckets",
    ] {
        fs::remove_file(host.sysctl(name)).unwrap();
    }
    fs::write(host.sysctl("net.ipv4.tcp_rmem"), "some new form\n").unwrap();
    fs::write(host.sysctl("fs.nr_open"), b"\xff\xfe").unwrap();
    let words = [
        "could not be told",
        "tcp_mem: not here",
        "\"some new form\" is not 3 number(s)",
        "module is not loaded",
    ];
    host.tune("diff --connections 1000000").expect(10, &words);
    host.tune("apply --connections 1000000").expect(10, &words);
    assert_eq!(host.value(TW), "1000000");
    assert_eq!(host.value("net.ipv4.tcp_rmem"), "some new form");
    // A module that is gone takes its settings along.
    fs::remove_file(host.sysctl(TW)).unwrap();
    host.tune("revert").expect(0, &["not here any more"]);

    // Nothing at all.
    fs::remove_dir_all(host.root().join("proc")).unwrap();
    host.tune("diff").expect(0, &["0 of 25", "not here"]);
    host.tune("apply").expect(10, &["not here"]);
}

#[test]
fn a_state_that_is_not_ours_is_refused_before_anything() {
    let host = Host::new();
    let before = host.values();
    fs::create_dir_all(host.state().parent().unwrap()).unwrap();
    fs::write(host.state(), "{}").unwrap();
    for line in ["apply", "revert", "status"] {
        host.tune(line)
            .expect(1, &["is no state of throng-tune", "--state"]);
    }
    assert_eq!(host.values(), before);
}

#[test]
fn the_state_is_where_it_is_told_to_be() {
    let host = Host::new();
    let before = host.values();
    for line in ["apply --state here.json", "revert --state here.json"] {
        let ended = host
            .command(line)
            .current_dir(host.root())
            .output()
            .unwrap();
        Ended::of(ended).expect(0, &["tcp_tw_reuse"]);
        assert_eq!(
            host.root().join("here.json").exists(),
            line.starts_with("apply")
        );
        assert!(!host.state().exists());
    }
    assert_eq!(host.values(), before);
}

#[test]
fn bad_usage_ends_with_2() {
    let host = Host::new();
    for (line, words) in [
        ("apply --connections 0", "0"),
        ("apply --connections 1000000001", "1000000000"),
        ("apply --port 0", "not a port"),
        ("apply --port 9-8", "swap them"),
        ("apply --role peer", "server"),
        ("retune", "unrecognized"),
    ] {
        host.tune(line).expect(2, &[words]);
    }
}

#[test]
fn an_ordinary_user_sees_everything_and_is_told_the_command() {
    const NOBODY: u32 = 65534;
    // Its own tree: a mistake must not change this host.
    let host = Host::new();
    let before = host.values();
    if !nix::unistd::geteuid().is_root() {
        return skip(
            "an_ordinary_user_sees_everything_and_is_told_the_command",
            "it takes root to be another user",
        );
    }
    fs::set_permissions(host.root(), Permissions::from_mode(0o755)).unwrap();
    // Where nobody can reach it.
    let program = host.root().join("throng-tune");
    fs::copy(common::program(), &program).unwrap();
    let as_nobody = |line: &str| {
        let mut command = std::process::Command::new(&program);
        command
            .args(line.split(' '))
            .arg("--root")
            .arg(host.root())
            .uid(NOBODY)
            .gid(NOBODY);
        Ended::of(command.output().unwrap())
    };
    as_nobody("diff --role client")
        .expect(10, &["only root may write it", "sudo throng-tune apply"]);
    as_nobody("apply --role client --dry-run").expect(0, &["nothing was changed"]);
    let command = "sudo throng-tune apply --connections 1000 --role server --port 80";
    as_nobody("apply --connections 1000 --role server --port 80")
        .expect(1, &["only root may write it", command]);
    assert_eq!(host.values(), before);
    assert!(!host.state().exists());
    host.tune("apply --role client").expect(0, &[]);
    let after = host.values();
    as_nobody("status").expect(0, &["settings changed"]);
    as_nobody("revert").expect(1, &["run this as root"]);
    assert_eq!(host.values(), after);
}

/// As those of the host are in another network namespace.
#[test]
fn settings_that_nobody_may_write_are_left_and_the_others_are_changed() {
    let test = "settings_that_nobody_may_write_are_left_and_the_others_are_changed";
    if nix::unistd::geteuid().is_root() {
        return skip(
            test,
            "root may write files of any mode: it is tested as an ordinary user",
        );
    }
    let host = Host::new();
    let read_only = Permissions::from_mode(0o444);
    fs::set_permissions(host.sysctl(TW), read_only.clone()).unwrap();
    let left = [
        "tcp_max_tw_buckets: 65536 -> 1000000 (only the host's own network namespace may write it)",
    ];
    host.tune("diff --connections 1000000").expect(10, &left);
    host.tune("apply --connections 1000000").expect(10, &left);
    assert_eq!(host.value(TW), "65536");
    assert_eq!(host.value("net.ipv4.tcp_tw_reuse"), "1");
    host.tune("revert").expect(0, &[]);
    // None at all.
    let before = host.values();
    for (name, _) in &before {
        fs::set_permissions(host.sysctl(name), read_only.clone()).unwrap();
    }
    host.tune("apply --connections 7 --role client").expect(
        1,
        &["nothing can be changed", "--connections 7 --role client"],
    );
    assert_eq!(host.values(), before);
    assert!(!host.state().exists());
}

#[test]
fn a_read_only_proc_sys_is_named() {
    let test = "a_read_only_proc_sys_is_named";
    if !in_namespace(test, "m") {
        return;
    }
    let host = Host::new();
    let before = host.values();
    let path = host.root().join("proc/sys");
    let mount = |options: &str| {
        let mut command = std::process::Command::new("mount");
        command.args(["-o", options]).arg(&path).arg(&path);
        command.status().is_ok_and(|status| status.success())
    };
    if !mount("bind") || !mount("remount,bind,ro") {
        return skip(test, "no bind mount can be made here");
    }
    host.tune("diff")
        .expect(10, &["mounted read-only, as in a container"]);
    host.tune("apply")
        .expect(1, &["mounted read-only, as in a container"]);
    assert_eq!(host.values(), before);
    let _ = std::process::Command::new("umount").arg(&path).status();
}
