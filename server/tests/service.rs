//! A server under a service manager: it says when it is ready, that it lives, and that it ends, also where it may open
//! nothing any more.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{LONG, Server, program};
use nix::sys::signal::Signal;

fn command(manager: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .args([
            "--engine",
            "epoll",
            "--listen",
            "127.0.0.1:0",
            "--heartbeat",
            "0",
        ])
        .args(flags)
        .env("NOTIFY_SOCKET", manager);
    command
}

/// The next word that is not `but`.
fn next(manager: &UnixDatagram, but: &str) -> String {
    let began = Instant::now();
    loop {
        let mut heard = [0; 256];
        let count = manager.recv(&mut heard).unwrap();
        let word = String::from_utf8(heard[..count].to_vec()).unwrap();
        if word != but {
            return word;
        }
        assert!(began.elapsed() < LONG, "nothing but {but}");
    }
}

#[test]
fn the_manager_hears_of_start_life_and_end() {
    for flags in [
        &["--stall-timeout", "2s"][..],
        &["--stall-timeout", "2s", "--sandbox"],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(LONG)).unwrap();
        let mut command = command(&path, flags);
        command.env("WATCHDOG_USEC", "5000000");
        let server = Server::spawn(command);
        assert_eq!(next(&manager, "WATCHDOG=1"), "READY=1");
        for _ in 0..3 {
            assert_eq!(next(&manager, ""), "WATCHDOG=1");
        }
        // A stopped process says nothing, and that is how a manager knows.
        server.signal(Signal::SIGSTOP);
        manager
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        while manager.recv(&mut [0; 64]).is_ok() {}
        manager.set_read_timeout(Some(LONG)).unwrap();
        server.signal(Signal::SIGCONT);
        assert_eq!(next(&manager, ""), "WATCHDOG=1");
        let (status, said) = server.stop();
        assert!(status.success(), "{said}");
        assert_eq!(next(&manager, "WATCHDOG=1"), "STOPPING=1");
    }
}

#[test]
fn a_manager_that_cannot_be_served_is_refused_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let refused = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.stdout.is_empty() && !output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(command(&path, &[]));
    assert!(
        said.contains("NOTIFY_SOCKET") && said.contains("env -u"),
        "{said}"
    );
    let _manager = UnixDatagram::bind(&path).unwrap();
    for (stall, words) in [
        ("0", "--stall-timeout above 0"),
        ("1m", "raise WatchdogSec"),
    ] {
        let mut command = command(&path, &["--stall-timeout", stall]);
        command.env("WATCHDOG_USEC", "5000000");
        let said = refused(command);
        assert!(said.contains(words), "{said}");
    }
}
