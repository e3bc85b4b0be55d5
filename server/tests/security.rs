//! What a server may still do once it runs: as another user, in a sandbox, with a control socket of its own.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Server, eventually, for_each_engine, program, skip};
use nix::sys::signal::Signal;

fn status_of(server: &Server, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    words.join(" ")
}

/// All that a server does after its start: heartbeats, echoes, closes, broadcasts, growth by a table, its end.
fn do_everything(server: &Server, control: &std::path::Path) {
    let mut streams: Vec<_> = (0..200).map(|_| server.connect()).collect();
    let mut commands = UnixStream::connect(control).unwrap();
    commands.write_all(b"broadcast hello\n").unwrap();
    commands.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    commands.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("published to 200"), "{answer}");
    server.signal(Signal::SIGUSR1);
    // Long enough for the memory guard and a heartbeat.
    std::thread::sleep(Duration::from_millis(1200));
    for stream in &mut streams {
        stream.write_all(&[b'x'; 30_000]).unwrap();
        stream.write_all(b"\nquit\n").unwrap();
    }
    for stream in &mut streams {
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(
            said.contains("hello\n") && said.contains("broadcast\n"),
            "{said}"
        );
        assert!(said.contains("ok\n") && said.contains("xxx\n"));
    }
}

#[test]
fn a_sandboxed_server_does_all_it_does() {
    for_each_engine(|engine| {
        let directory = tempfile::tempdir().unwrap();
        let [control, json] = ["control", "json"].map(|name| directory.path().join(name));
        let mut flags = vec!["--sandbox", "--heartbeat", "500ms", "--canary-port", "0"];
        flags.extend(["--control", control.to_str().unwrap()]);
        flags.extend(["--json", json.to_str().unwrap()]);
        if engine == "uring" {
            flags.extend(["--table-slots", "64", "--cores", "0"]);
        }
        let server = Server::start(engine, &flags);
        eventually("it is confined", || status_of(&server, "Seccomp:") == "2");
        do_everything(&server, &control);
        let _staying = server.connect();
        server.signal(Signal::SIGTERM);
        server.signal(Signal::SIGINT);
        let (status, said) = server.end();
        assert_eq!(status.code(), Some(0), "{engine}: {status} {said}");
        assert!(!control.exists());
        let summary: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(summary["accepted"], 201, "{said}");
        if let Some(rings) = summary["ring"].as_object() {
            assert_eq!(rings["rings"], rings["restricted_rings"]);
            assert!(rings["rings"].as_u64() > Some(1), "{said}");
        }
    });
}

#[cfg(feature = "burn")]
#[test]
fn what_a_sandboxed_server_never_does_ends_it() {
    for_each_engine(|engine| {
        // A heartbeat that nobody reads makes of a close a reset, and that may overtake what was said before it.
        let flags = ["--faults", "--heartbeat", "0"];
        let free = Server::start(engine, &flags);
        free.connect().write_all(b"escape\n").unwrap();
        let confined = Server::start(engine, &[&flags[..], &["--sandbox"]].concat());
        eventually("it is confined", || status_of(&confined, "Seccomp:") == "2");
        confined.connect().write_all(b"escape\n").unwrap();
        let (status, _) = confined.end();
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(signal, Some(Signal::SIGSYS as i32), "{engine}: {status}");
        // It only makes a program start where it may.
        drop(free.connect());
        assert_eq!(free.stop().0.code(), Some(0));
    });
}

#[test]
fn no_server_can_gain_privileges() {
    for_each_engine(|engine| {
        let server = Server::start(engine, &[]);
        assert_eq!(status_of(&server, "NoNewPrivs:"), "1");
        assert_eq!(server.stop().0.code(), Some(0));
    });
}

#[test]
fn another_user_serves_and_owns_what_it_must() {
    if !nix::unistd::geteuid().is_root() {
        return skip("another_user", "only root may become another user");
    }
    for_each_engine(|engine| {
        let directory = tempfile::tempdir().unwrap();
        let [control, json] = ["control", "json"].map(|name| directory.path().join(name));
        let mut flags = vec!["--user", "54321:12345", "--heartbeat", "500ms"];
        flags.extend(["--control", control.to_str().unwrap()]);
        flags.extend(["--json", json.to_str().unwrap()]);
        let server = Server::start(engine, &flags);
        for (field, expected) in [
            ("Uid:", "54321 54321 54321 54321"),
            ("Gid:", "12345 12345 12345 12345"),
            ("Groups:", "12345"),
            ("CapPrm:", "0000000000000000"),
            ("CapEff:", "0000000000000000"),
        ] {
            assert_eq!(status_of(&server, field), expected, "{field}");
            // Of every thread.
            let tasks = std::fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
            for task in tasks.flatten() {
                let status = std::fs::read_to_string(task.path().join("status")).unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix(field));
                let words: Vec<&str> = line.unwrap().split_whitespace().collect();
                // The kernel's own workers of a ring have no name of this program's.
                assert_eq!(words.join(" "), expected, "{status}");
            }
        }
        let file = std::fs::metadata(&control).unwrap();
        assert_eq!((file.uid(), file.gid()), (54_321, 12_345));
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        do_everything(&server, &control);
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(std::fs::metadata(json).unwrap().len() > 100);
    });
}

#[test]
fn who_may_not_become_another_user_is_told_before_anything_starts() {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(program());
    command.args(["--user", "54321:12345", "--listen", "127.0.0.1:0"]);
    if nix::unistd::geteuid().is_root() {
        let nobody = std::fs::metadata(program()).unwrap().permissions().mode() & 0o001;
        if nobody == 0 {
            return skip("who_may_not_become_another_user", "nobody can start it");
        }
        command.uid(65_534).gid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return skip("who_may_not_become_another_user", &error.to_string()),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--user") && said.contains("only root"),
        "{said}"
    );
    assert!(output.stdout.is_empty(), "it was ready");
}
