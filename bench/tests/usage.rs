//! Bad input is refused before anything starts, with exit status 2 and the reason; io_uring refused falls
//! back to epoll, with the reason.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::process::Command;

use common::{BOUND, Server, run, text, throng};

fn refused(subcommand: &str, flags: &[&str], words: &[&str]) {
    let output = run(throng(subcommand, flags), BOUND);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{flags:?}: no `{word}` in: {said}");
    }
}

#[test]
fn bad_usage_of_the_server_is_refused() {
    refused("server", &["--listen", "here"], &["--listen"]);
    refused("server", &["--engine", "kqueue"], &["uring", "epoll"]);
    refused("server", &["--cores", "4096"], &["4096", "affinity"]);
    refused(
        "server",
        &["--protocol", "echo", "--heartbeat", "5s"],
        &["--protocol line"],
    );
    refused(
        "server",
        &["--json", "/proc/nowhere.json"],
        &["cannot be written"],
    );
    refused(
        "server",
        &["--control", "/nonexistent/control"],
        &["no control socket", "/nonexistent/control"],
    );
    refused("server", &["--no-such-flag"], &["--no-such-flag"]);
}

#[test]
fn bad_usage_of_the_client_is_refused() {
    refused("client", &["nowhere"], &["nowhere"]);
    refused(
        "client",
        &["127.0.0.1:7000", "--connections", "many"],
        &["--connections"],
    );
    refused(
        "client",
        &["127.0.0.1:7000", "--source", "127.1.0.0/99"],
        &["--source"],
    );
    refused("client", &["127.0.0.1:7000", "--cores", "4096"], &["4096"]);
    // An address this machine does not have.
    refused(
        "client",
        &[
            "127.0.0.1:7000",
            "--source",
            "192.0.2.77",
            "--connections",
            "10",
        ],
        &["192.0.2.77", "ip "],
    );
    // More than the sources can carry.
    refused(
        "client",
        &[
            "127.0.0.1:7000",
            "--source",
            "127.1.0.1",
            "--connections",
            "100000",
        ],
        &["--source"],
    );
}

#[test]
fn bad_usage_of_the_bench_is_refused() {
    refused("compare", &["--engines", "kqueue"], &["uring"]);
    refused("compare", &["--heartbeat", "100us"], &["--heartbeat"]);
    refused(
        "compare",
        &["--message-bytes", "65537"],
        &["--message-bytes", "65536"],
    );
    refused(
        "compare",
        &["--report", "/proc/nowhere/report.json"],
        &["report"],
    );
}

#[test]
fn bad_usage_of_the_measurements_in_rounds_is_refused() {
    refused(
        "floor",
        &["--engines", "uring,uring"],
        &["--engines", "twice"],
    );
    refused("floor", &["--active", "0"], &["--active 0"]);
    refused(
        "floor",
        &["--active", "9999999"],
        &["--active", "ulimit -Hn"],
    );
    refused("floor", &["--message-bytes", "16385"], &["--message-bytes"]);
    refused("floor", &["--rounds", "0"], &["--rounds"]);
    refused("floor", &["--exchange", "1ms"], &["--exchange"]);
    refused("floor", &["--table-slots", "3"], &["--table-slots"]);
    refused("floor", &["--report", "/proc/nowhere/r.json"], &["report"]);
    refused("tail", &["--load", "0"], &["--load 0"]);
    refused("tail", &["--idle", "5,5"], &["--idle", "twice"]);
    refused("tail", &["--engines", "kqueue"], &["tokio-uring"]);
    refused("tail", &["--active", "0"], &["--active 0"]);
    refused("churn", &["--churn", "0"], &["--churn 0"]);
    refused("churn", &["--exchange", "2h"], &["--exchange"]);
    refused("churn", &["--until-width", "0"], &["--until-width"]);
    refused("floor", &["--at-most", "1m"], &["--until-width"]);
    let too_short = ["--until-width", "5", "--at-most", "5ms"];
    refused("floor", &too_short, &["--at-most"]);
    refused("selfcheck", &["--rounds", "5"], &["--rounds 5"]);
    refused("selfcheck", &["--runs", "0"], &["--runs 0"]);
    refused("selfcheck", &["--engine", "kqueue"], &["tokio-uring"]);
}

#[test]
fn bad_usage_of_hold_and_memory_is_refused() {
    refused("hold", &["--engine", "kqueue"], &["--engine"]);
    refused("hold", &["--up-to", "5"], &["--up-to", "--connections"]);
    refused("hold", &["--keep-free", "2GB"], &["--keep-free", "2GiB"]);
    refused("hold", &["--then-active", "0"], &["--then-active"]);
    refused(
        "memory",
        &["--report", "/proc/nowhere/report.json"],
        &["report"],
    );
}

#[test]
fn bad_usage_of_canary_is_refused() {
    refused("canary", &["--connections", "0"], &["--connections"]);
    refused("canary", &["--path", "wire"], &["--path", "veth"]);
    refused("canary", &["--hold", "1ms"], &["--hold"]);
    refused(
        "canary",
        &["--report", "/proc/nowhere/report.json"],
        &["report"],
    );
}

#[test]
fn help_shows_examples() {
    for (subcommand, example) in [
        ("server", "throng-server --protocol echo"),
        ("client", "throng-client 127.0.0.1:7000"),
        ("compare", "throng-bench compare"),
        ("floor", "throng-bench floor"),
        ("tail", "throng-bench tail"),
        ("churn", "throng-bench churn"),
        ("hold", "throng-bench hold"),
        ("memory", "throng-bench memory"),
        ("canary", "throng-bench canary --connections"),
    ] {
        let output = run(throng(subcommand, &["--help"]), BOUND);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output).contains(example), "{}", text(&output));
    }
}

#[test]
fn a_refused_io_uring_falls_back_to_epoll_and_says_why() {
    let (fallback, refusal) = without_io_uring(|| {
        let mut fallback = Server::start(&["--engine", "auto"]);
        assert!(
            fallback.ready_line.contains("engine epoll"),
            "{}",
            fallback.ready_line
        );
        fallback.signal(nix::sys::signal::Signal::SIGTERM);
        let mut said = String::new();
        fallback
            .child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let refusal = run(
            throng("server", &["--engine", "uring", "--listen", "127.0.0.1:0"]),
            BOUND,
        );
        (said, refusal)
    });
    assert!(fallback.contains("epoll instead of io_uring"), "{fallback}");
    assert!(fallback.contains("seccomp"), "{fallback}");
    assert_eq!(refusal.status.code(), Some(2));
    assert!(text(&refusal).contains("seccomp"), "{}", text(&refusal));
}

#[test]
fn a_client_without_io_uring_says_so() {
    let output = without_io_uring(|| run(throng("client", &["127.0.0.1:9"]), BOUND));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    // And the way out.
    assert!(
        said.contains("seccomp") && said.contains("allow io_uring_setup"),
        "{said}"
    );
}

/// Runs `act` on a thread on which io_uring is refused with EPERM, as container runtimes do it. Its child
/// processes inherit that; the rest of the machine does not.
fn without_io_uring<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
    let thread = std::thread::spawn(|| {
        const IO_URING_SETUP: i64 = 425;
        let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let filter = SeccompFilter::new(
            [(IO_URING_SETUP, vec![])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(nix::libc::EPERM as u32),
            arch,
        )
        .unwrap();
        let program: seccompiler::BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        act()
    });
    thread.join().unwrap()
}

#[test]
fn thin_binaries_and_subcommands_are_the_same_program() {
    let version = |mut command: Command| text(&run_stdout(command.arg("--version")));
    assert!(version(throng("server", &[])).contains("throng-server"));
    assert!(version(throng("client", &[])).contains("throng-client"));
}

fn run_stdout(command: &mut Command) -> std::process::Output {
    command.output().unwrap()
}
