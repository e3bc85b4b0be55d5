//! The live view in a real terminal: it appears, ends a run when asked to, and gives the terminal back however that ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{has_io_uring, silent_server, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BOUND: Duration = Duration::from_secs(30);
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// The client in a terminal of 80 by 24, which script(1) makes.
struct Session {
    script: Child,
    said: Arc<Mutex<Vec<u8>>>,
    pid_file: tempfile::NamedTempFile,
}

impl Session {
    fn start(flags: &str) -> Session {
        let pid_file = tempfile::NamedTempFile::new().unwrap();
        let inside = format!(
            "stty rows 24 cols 80; sh -c 'echo $$ > {}; exec {} {flags}'; code=$?; stty -a; exit $code",
            pid_file.path().display(),
            env!("CARGO_BIN_EXE_throng-client"),
        );
        let mut script = Command::new("script")
            .args(["-q", "-e", "-f", "-c", &inside, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (mut output, all) = (script.stdout.take().unwrap(), Arc::clone(&said));
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut piece) {
                all.lock().unwrap().extend(&piece[..count]);
            }
        });
        Session {
            script,
            said,
            pid_file,
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    /// Waits until all of `words` were drawn.
    fn await_words(&self, words: &[&str]) {
        let deadline = Instant::now() + BOUND;
        while !words.iter().all(|word| self.said().contains(word)) {
            assert!(Instant::now() < deadline, "no {words:?} in {}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn press(&mut self, key: &str) {
        let keys = self.script.stdin.as_mut().unwrap();
        keys.write_all(key.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = fs::read_to_string(self.pid_file.path()).unwrap();
        kill(Pid::from_raw(pid.trim().parse().unwrap()), signal).unwrap();
    }

    /// The exit code, and what was on the terminal after the view, which it has left as it was.
    fn end(mut self) -> (i32, String) {
        let deadline = Instant::now() + BOUND;
        let status = loop {
            if let Some(status) = self.script.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "still running: {}", self.said());
            thread::sleep(Duration::from_millis(20));
        };
        // `stty -a` is the last to speak.
        self.await_words(&["icanon"]);
        let said = self.said();
        assert_eq!(said.matches(ENTER).count(), 1, "{said}");
        let (_, after) = said.split_once(LEAVE).unwrap();
        assert!(!after.contains(LEAVE), "left twice: {said}");
        assert!(after.contains(SHOW_CURSOR), "{after}");
        let modes: Vec<&str> = after.split_whitespace().collect();
        for mode in ["icanon", "isig", "echo", "opost"] {
            assert!(
                modes.iter().any(|word| word.trim_end_matches(';') == mode),
                "{mode}: {after}"
            );
        }
        (status.code().unwrap(), after.to_owned())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The terminal goes with it, and so does who runs there.
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

fn can_run(test: &str) -> bool {
    let is_there = Command::new("script").arg("--version").output().is_ok();
    if !is_there {
        skip(test, "no script(1)");
    }
    is_there && has_io_uring(test)
}

#[test]
fn a_key_or_a_signal_ends_the_run_in_good_order() {
    if !can_run("a_key_or_a_signal_ends_the_run_in_good_order") {
        return;
    }
    let target = silent_server("127.0.0.1:0");
    let flags = format!("{target} --connections 20 --protocol echo --hold 5m --tui");
    let ends: [fn(&mut Session); 3] = [
        |session| session.press("q"),
        |session| session.press("\x03"),
        |session| session.signal(Signal::SIGTERM),
    ];
    for end in ends {
        let mut session = Session::start(&flags);
        session.await_words(&[ENTER, "q: end", "hold", "20 of 20", "connects/s", "latency"]);
        // No other key does anything.
        session.press("x\x1b[A ");
        end(&mut session);
        let (code, after) = session.end();
        // As after SIGINT without a view; the summary comes once the view is gone.
        assert_eq!(code, 1, "{after}");
        assert!(
            after.contains("interrupted") && after.contains("20 of 20"),
            "{after}"
        );
    }
}

#[test]
fn a_run_that_ends_of_itself_shows_its_canaries_and_then_its_summary() {
    if !can_run("a_run_that_ends_of_itself_shows_its_canaries_and_then_its_summary") {
        return;
    }
    let target = silent_server("127.0.0.1:0");
    let canaries = "--canary=connect --baseline 600ms --recovery 600ms";
    let session = Session::start(&format!(
        "{target} --connections 20 --protocol echo --hold 1s --tui {canaries}"
    ));
    let probe = format!("connect {target}");
    session.await_words(&["baseline", "hold", "recovery", "canaries", &probe]);
    let (code, after) = session.end();
    assert_eq!(code, 0, "{after}");
    assert!(after.contains("complete"), "{after}");
}

#[test]
fn a_view_that_would_not_be_seen_or_be_garbled_is_refused() {
    let test = "a_view_that_would_not_be_seen_or_be_garbled_is_refused";
    if !can_run(test) {
        return;
    }
    let target = silent_server("127.0.0.1:0");
    let flags = format!("{target} --connections 20 --protocol echo --hold 0s --tui");
    let output = Command::new(env!("CARGO_BIN_EXE_throng-client"))
        .args(flags.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--tui") && said.contains("terminal"),
        "{said}"
    );

    let mut session = Session::start(&format!("{flags} --samples -"));
    session.await_words(&["--samples -", "icanon"]);
    assert_eq!(session.script.wait().unwrap().code(), Some(2));
    assert!(!session.said().contains(ENTER));
}
