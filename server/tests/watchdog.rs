//! A worker that dies, by a panic or by doing nothing any more, takes the server with it, loudly. In a build with the
//! feature `burn` only, which makes it breakable.
#![cfg(feature = "burn")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(30);
const ENGINES: [&str; 3] = ["uring", "epoll", "tokio-uring"];

/// Killed when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(engine: &str) -> Server {
        let core = kernel_tuning::process::affinity().unwrap()[0];
        let mut child = Command::new(env!("CARGO_BIN_EXE_throng-server"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--faults",
                "--stall-timeout",
                "2s",
            ])
            // Two workers, of which one lives on.
            .args(["--engine", engine, "--cores", &format!("{core},{core}")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.as_mut().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("ready on ").unwrap();
        let address = address.split(' ').next().unwrap().to_owned();
        Server { child, address }
    }

    fn connect(&self) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
            .read_exact(&mut [0; wire::line::GREETING.len()])
            .unwrap();
        stream
    }

    /// The exit status, and what it said of itself.
    fn end(mut self) -> (std::process::ExitStatus, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < LONG, "it lives on");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn for_each_engine(test: impl Fn(&str)) {
    for engine in ENGINES {
        match ring::probe() {
            Err(why) if engine != "epoll" => eprintln!("SKIPPED {engine}: {why}"),
            _ => test(engine),
        }
    }
}

#[test]
fn a_panic_of_one_worker_ends_the_server() {
    for_each_engine(|engine| {
        let server = Server::start(engine);
        let _others: Vec<_> = (0..10).map(|_| server.connect()).collect();
        server.connect().write_all(b"panic\n").unwrap();
        let address = server.address.clone();
        let (status, said) = server.end();
        // Of an abort there is no code.
        assert_ne!(status.code(), Some(0), "{said}");
        assert!(said.contains("as asked for"), "{said}");
        assert!(
            said.contains("panicked after") && said.contains("connections"),
            "{said}"
        );
        // The kernel takes a ring's sockets down after the process has gone.
        let began = Instant::now();
        while TcpStream::connect(&address).is_ok() {
            assert!(began.elapsed() < LONG, "somebody accepts");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn a_stall_of_one_worker_ends_the_server() {
    for_each_engine(|engine| {
        let server = Server::start(engine);
        let _others: Vec<_> = (0..10).map(|_| server.connect()).collect();
        server.connect().write_all(b"stall\n").unwrap();
        let (status, said) = server.end();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(
            said.contains("has not turned for the stall timeout"),
            "{said}"
        );
        // Parked: in futex(2).
        assert!(said.contains("asleep"), "{said}");
    });
}

#[test]
fn neither_idleness_nor_a_stopped_process_is_a_stall() {
    for_each_engine(|engine| {
        let server = Server::start(engine);
        let mut stream = server.connect();
        let pid = Pid::from_raw(server.child.id() as i32);
        std::thread::sleep(Duration::from_millis(2500));
        kill(pid, Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_millis(3000));
        kill(pid, Signal::SIGCONT).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        stream.write_all(b"alive\n").unwrap();
        stream.read_exact(&mut [0; 6]).unwrap();
        drop(stream);
        kill(pid, Signal::SIGTERM).unwrap();
        let (status, said) = server.end();
        assert_eq!(status.code(), Some(0), "{said}");
    });
}
