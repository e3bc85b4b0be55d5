//! What the tests over real server processes share: a server that never outlives its test, and waits with a bound.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const LONG: Duration = Duration::from_secs(30);

/// The program, where the tests were built, or beside a copy of them.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.parent().and_then(Path::parent).unwrap();
    let beside = beside.join("throng-server");
    match beside.exists() {
        true => beside,
        false => env!("CARGO_BIN_EXE_throng-server").into(),
    }
}

/// Says, past the capture of test output, that something could not be tested here. The test script counts these lines.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Killed when dropped.
pub struct Server {
    pub child: Child,
    pub address: String,
    /// Where its admin side answers; empty without.
    pub admin: String,
}

impl Server {
    /// On a port of the kernel's choice.
    pub fn start(engine: &str, flags: &[&str]) -> Server {
        let mut command = Command::new(program());
        command.args(["--engine", engine, "--listen", "127.0.0.1:0"]);
        command.args(flags);
        Server::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        // Not a byte more than the line.
        let mut stdout = BufReader::with_capacity(1, child.stdout.as_mut().unwrap());
        stdout.read_line(&mut line).unwrap();
        let Some(rest) = line.strip_prefix("ready on ") else {
            let mut said = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            panic!("it does not start: {line} {said}");
        };
        let address = rest.split(' ').next().unwrap().to_owned();
        let admin = rest.split_once(", admin ").map_or("", |(_, at)| at);
        let admin = admin.split([',', ')']).next().unwrap().to_owned();
        Server {
            child,
            address,
            admin,
        }
    }

    /// A connection that was greeted.
    pub fn connect(&self) -> TcpStream {
        let mut stream = self.dial();
        stream
            .read_exact(&mut [0; wire::line::GREETING.len()])
            .unwrap();
        stream
    }

    pub fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// SIGTERM, then as [`Server::end`].
    pub fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// The exit status, and all that was said.
    pub fn end(mut self) -> (ExitStatus, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < LONG, "it lives on");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        let (mut stdout, mut stderr) = (self.child.stdout.take(), self.child.stderr.take());
        stdout.as_mut().unwrap().read_to_string(&mut said).unwrap();
        stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `test` for each engine that this machine has.
pub fn for_each_engine(test: impl Fn(&str)) {
    for engine in ["uring", "epoll", "tokio-uring"] {
        match ring::probe() {
            Err(why) if engine != "epoll" => skip(engine, &why.to_string()),
            _ => test(engine),
        }
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What an HTTP server at `at`, an address or the path of a socket, answers: status and body.
pub fn request(at: &str, method: &str, path: &str, headers: &str) -> (u16, String) {
    // Of 1.0, so that no answer comes in chunks.
    let said = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n{headers}\r\n");
    let answer = if at.contains('/') {
        let stream = UnixStream::connect(at).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        exchange(stream, &said)
    } else {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        exchange(stream, &said)
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

pub fn get(at: &str, path: &str) -> (u16, String) {
    request(at, "GET", path, "")
}

fn exchange(mut stream: impl Read + Write, said: &str) -> String {
    let mut answer = String::new();
    stream.write_all(said.as_bytes()).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
