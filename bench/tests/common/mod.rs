//! What the tests over real processes share: servers and clients that never outlive a test, and waits with a bound.
#![allow(dead_code, unused_macros, clippy::unwrap_used)]

pub mod recorded;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every test ends well within this, or something hangs.
pub const BOUND: Duration = Duration::from_secs(60);

pub const GREETING: &[u8] = b"Welcome to the echo server! Type quit to exit.\r\n";

/// Each case as a test for each way to carry connections.
macro_rules! for_each_engine {
    ($($case:ident),* $(,)?) => {
        mod uring { $( #[test] fn $case() { if super::has_engine("uring", stringify!($case)) { super::$case("uring") } } )* }
        mod uring_with_ordinary_descriptors { $( #[test] fn $case() { if super::has_engine("uring", stringify!($case)) { super::$case("uring-fd") } } )* }
        mod epoll { $( #[test] fn $case() { super::$case("epoll") } )* }
        mod tokio_uring { $( #[test] fn $case() { if super::has_engine("uring", stringify!($case)) { super::$case("tokio-uring") } } )* }
    };
}

/// The flags of a way to carry connections; the engine's name is the second.
pub fn engine_flags(way: &str) -> &'static [&'static str] {
    match way {
        "uring" => &["--engine", "uring", "--descriptors", "direct"],
        "uring-fd" => &["--engine", "uring", "--descriptors", "fd"],
        "epoll" => &["--engine", "epoll"],
        "tokio-uring" => &["--engine", "tokio-uring"],
        other => panic!("no such way: {other}"),
    }
}

/// `throng-bench SUBCOMMAND ...`, the same `main` that the thin binaries call.
pub fn throng(subcommand: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(bench());
    command
        .arg(subcommand)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The binary, where the tests were built, or beside a copy of them.
pub fn bench() -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let beside = beside
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("throng-bench");
    match beside.exists() {
        true => beside,
        false => env!("CARGO_BIN_EXE_throng-bench").into(),
    }
}

/// Says, past the capture of test output, that something could not be tested here. The test script counts these lines.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// False, said loudly, where this machine has no io_uring.
pub fn has_engine(engine: &str, test: &str) -> bool {
    match (engine, ring::probe()) {
        ("uring", Err(why)) => {
            skip(test, &why.to_string());
            false
        }
        _ => true,
    }
}

/// A server process, killed when dropped.
pub struct Server {
    pub child: Child,
    pub address: SocketAddr,
    pub ready_line: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Server {
    /// A server on a port of the kernel's choice, unless `flags` say otherwise.
    pub fn start(flags: &[&str]) -> Server {
        let mut command = throng("server", flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        // Most tests stop a server whose clients are still there.
        if !flags.contains(&"--drain-timeout") {
            command.args(["--drain-timeout", "300ms"]);
        }
        Server::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Server {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready_line = String::new();
        stdout.read_line(&mut ready_line).unwrap();
        let address = ready_line
            .strip_prefix("ready on ")
            .and_then(|rest| rest.split(' ').next())
            .and_then(|address| address.parse().ok());
        let Some(address) = address else {
            let _ = child.kill();
            let mut stderr = String::new();
            child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
            panic!("the server is not ready: {ready_line:?} {stderr}");
        };
        Server {
            child,
            address,
            ready_line,
            stdout,
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// SIGTERM, then the exit status within `bound` and what was printed.
    pub fn stop(self, bound: Duration) -> (std::process::ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        self.stop_told(bound)
    }

    /// The same of a server that has been told to stop.
    pub fn stop_told(mut self, bound: Duration) -> (std::process::ExitStatus, String) {
        let status = wait(&mut self.child, bound).expect("the server does not end");
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).unwrap();
        (status, said)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit status, if the child ends within `bound`.
pub fn wait(child: &mut Child, bound: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command to its end; killed, and a failure, when it takes longer than `bound`.
pub fn run(command: Command, bound: Duration) -> Output {
    finish(spawn(command), bound)
}

pub fn spawn(mut command: Command) -> Child {
    command.spawn().unwrap()
}

pub fn finish(child: Child, bound: Duration) -> Output {
    let pid = Pid::from_raw(child.id() as i32);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let timed_out = ended.recv_timeout(bound).is_err();
        if timed_out {
            let _ = kill(pid, Signal::SIGKILL);
        }
        timed_out
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    let timed_out = watchdog.join().unwrap();
    assert!(
        !timed_out,
        "still running after {bound:?}: {}",
        text(&output)
    );
    output
}

/// Everything a process said.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads exactly `count` bytes.
pub fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads until the peer closes; a reset ends it too.
pub fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 64 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(count) => bytes.extend(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return bytes,
            // The end of the ring that looked for io_uring, in this process, interrupts calls.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Established connections whose local port is `port`, as the kernel lists them.
pub fn established(port: u16) -> usize {
    std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .skip(1)
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or("");
            let state = fields.nth(1).unwrap_or("");
            state == "01" && local.ends_with(&format!(":{port:04X}"))
        })
        .count()
}

/// The processes that `pid` started.
pub fn children_of(pid: u32) -> Vec<u32> {
    let mut children = Vec::new();
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return children;
    };
    for task in tasks.flatten() {
        let Ok(list) = std::fs::read_to_string(task.path().join("children")) else {
            skip("children_of", "no /proc/PID/task/TID/children");
            continue;
        };
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    children
}

/// Whether that process runs.
pub fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
