//! Runs a block of commands: in a directory of its own, on ports of its own, within a bound, and nothing stays behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::common::wait;
use crate::pages::Block;

/// A block of commands ends well within this.
const BOUND: Duration = Duration::from_secs(60);

/// Runs a block in a directory of its own, with the programs on the path.
pub fn play(block: &Block, programs: &Path) -> Result<(), String> {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    std::fs::create_dir(path("here")).unwrap();
    std::fs::write(path("script"), with_free_ports(&block.text)).unwrap();
    let output = File::create(path("output")).unwrap();
    let searched = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new("bash")
        .args(["-euo", "pipefail"])
        .arg(path("script"))
        .current_dir(path("here"))
        .env("PATH", format!("{}:{searched}", programs.display()))
        // The lock that lets one heavy run at a time load the machine would wait for those of others.
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Pid::from_raw(child.id() as i32);
    let status = wait(&mut child, BOUND);
    let left = status.is_some_and(|status| status.success()) && !is_gone_soon(group);
    // Whatever it has left behind ends here.
    let _ = killpg(group, Signal::SIGKILL);
    if status.is_none() {
        child.wait().unwrap();
    }
    let said = std::fs::read(path("output")).unwrap();
    let said = String::from_utf8_lossy(&said);
    match status {
        None => Err(format!("still running after {BOUND:?}: {said}")),
        Some(status) if !status.success() => Err(format!("{status}: {said}")),
        Some(_) if left => Err(format!("leaves processes behind: {said}")),
        Some(_) => Ok(()),
    }
}

/// True once no process of that group runs any more; false where that takes long. Those that nobody has waited for do not
/// run.
fn is_gone_soon(group: Pid) -> bool {
    const PATIENCE: Duration = Duration::from_secs(5);
    let runs = || {
        let all = procfs::process::all_processes().unwrap();
        all.filter_map(|process| process.ok()?.stat().ok())
            .any(|stat| stat.pgrp == group.as_raw() && stat.state != 'Z')
    };
    let deadline = Instant::now() + PATIENCE;
    while runs() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The ports that pages name may be in use here: each is another one.
fn with_free_ports(script: &str) -> String {
    let digits = |rest: &str| {
        rest.split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .to_owned()
    };
    let ports: BTreeSet<String> = script.split("127.0.0.1:").skip(1).map(digits).collect();
    let mut script = script.to_owned();
    for port in ports
        .iter()
        .filter(|port| !["", "0"].contains(&port.as_str()))
    {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let free = free.local_addr().unwrap().port();
        script = script.replace(&format!(":{port}"), &format!(":{free}"));
    }
    script
}

#[test]
fn a_block_that_fails_or_leaves_something_behind_is_found() {
    let said = |text: &str| {
        let (place, info) = (String::new(), "sh ci".to_owned());
        let text = text.to_owned();
        play(&Block { place, info, text }, Path::new("/nonexistent"))
    };
    assert_eq!(said("true | cat"), Ok(()));
    assert!(said("false | cat\ntrue").is_err());
    assert!(said("cat $UNSET").is_err());
    assert!(said("sleep 60 &").unwrap_err().contains("leaves"));
    assert_eq!(said("sleep 0.2 &"), Ok(()));
}
