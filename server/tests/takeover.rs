//! One server after the other on the same listening sockets: nobody is refused, reset or forgotten on the way.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{LONG, Server, eventually};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use server::takeover::Predecessor;
use socket2::{Domain, Socket, Type};

const HELD: usize = 500;

/// One core as often as workers are wanted.
fn cores(count: usize) -> String {
    let core = kernel_tuning::process::affinity().unwrap()[0];
    vec![core.to_string(); count].join(",")
}

fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throng-server"));
    command.args(flags);
    command
}

/// What becomes of a server that is not to start.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty(), "it started");
    (output.status.code(), said)
}

/// Held by the test that runs rings: an ordinary user's RLIMIT_MEMLOCK is for all of them together.
static RINGS: Mutex<()> = Mutex::new(());

/// None where there is no io_uring.
fn uring(test: &str) -> Option<MutexGuard<'static, ()>> {
    match ring::probe() {
        Ok(()) => Some(RINGS.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(why) => {
            eprintln!("SKIPPED {test}: {why}");
            None
        }
    }
}

/// Runs `test` for the engines that hand over.
fn for_both(name: &str, mut test: impl FnMut(&str)) {
    if let Some(_rings) = uring(name) {
        test("uring");
    }
    test("epoll");
}

fn ask(control: &Path, said: &str) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(said.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Connects, says a line, reads it, closes, as fast as it can.
struct Storm {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Storm {
    fn begin(address: &str) -> Storm {
        let stop = Arc::new(AtomicBool::new(false));
        let address: SocketAddr = address.parse().unwrap();
        let threads = (0..2).map(|thread| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut visits = 0;
                while !stop.load(Relaxed) {
                    visit(address, &format!("visit {visits} of {thread}\n"));
                    visits += 1;
                    // Not all ports of this machine.
                    std::thread::sleep(Duration::from_micros(300));
                }
                visits
            })
        });
        let threads = threads.collect();
        Storm { stop, threads }
    }

    /// How often it came in. Every time, or this panics.
    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().map(|t| t.join().unwrap()).sum()
    }
}

fn visit(address: SocketAddr, text: &str) {
    let stream = TcpStream::connect(address).expect("refused");
    stream.set_read_timeout(Some(LONG)).unwrap();
    (&stream)
        .write_all(text.as_bytes())
        .expect("reset at the write");
    let mut lines = BufReader::new(&stream);
    let mut heard = String::new();
    while !heard.ends_with(text) {
        assert!(
            lines.read_line(&mut heard).expect("reset") > 0,
            "an echo is lost: {heard}"
        );
    }
}

/// Each is told, heartbeats and all, and closed in good order.
fn assert_let_go(held: Vec<TcpStream>) {
    for mut stream in held {
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("reset");
        assert!(said.contains("bye\n"), "{said}");
    }
}

fn accepted(json: &Path) -> u64 {
    let summary = std::fs::read(json).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert!(
        summary["refused"].as_object().is_none_or(|r| r.is_empty()),
        "{summary}"
    );
    summary["accepted"].as_u64().unwrap()
}

/// Servers with these engines and workers, one after the other, in a storm, each with 500 connections to let go.
fn take_over_in_a_storm(servers: [(&str, usize); 4], flags: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let control = control.to_str().unwrap();
    let json = |number| directory.path().join(format!("{number}.json"));
    let start = |number: usize, more: &[&str]| {
        let (engine, workers) = servers[number];
        let (json, cores) = (json(number), cores(workers));
        // Room for multishot accepts, on rings of which an ordinary user can have as many as there are for a moment.
        let slots = kernel_tuning::process::Nofile::read()
            .unwrap()
            .hard
            .min(9000)
            .to_string();
        let mut all = vec!["--engine", engine, "--cores", &cores, "--control", control];
        all.extend(["--heartbeat", "500ms", "--drain-timeout", "2s"]);
        all.extend(["--json", json.to_str().unwrap()]);
        if engine == "uring" {
            all.extend(["--table-slots", &slots]);
        }
        all.extend(flags);
        all.extend(more);
        Server::spawn(command(&all))
    };
    let hold = |server: &Server| -> Vec<_> { (0..HELD).map(|_| server.connect()).collect() };
    let mut server = start(0, &["--listen", "127.0.0.1:0"]);
    let storm = Storm::begin(&server.address);
    let mut going = Vec::new();
    for number in 1..servers.len() {
        let held = hold(&server);
        std::thread::sleep(Duration::from_millis(600));
        let new = start(number, &["--takeover", control]);
        assert_eq!(new.address, server.address);
        let old = std::mem::replace(&mut server, new);
        going.push(std::thread::spawn(move || {
            assert_let_go(held);
            let (status, said) = old.end();
            assert_eq!(status.code(), Some(0), "{said}");
            assert!(said.contains("(taken over)"), "{said}");
        }));
        // Of the new one: the old one listens no more.
        let said = ask(Path::new(control), "broadcast hello\n");
        assert!(said.starts_with("published"), "{said}");
    }
    let held = hold(&server);
    going.into_iter().for_each(|old| old.join().unwrap());
    let visits = storm.end();
    assert!(
        Path::new(control).exists(),
        "the control socket is the last one's"
    );
    let (status, said) = server.stop();
    assert_let_go(held);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!Path::new(control).exists());
    let all: u64 = (0..servers.len())
        .map(|number| accepted(&json(number)))
        .sum();
    assert_eq!(all, visits + (servers.len() * HELD) as u64);
    assert!(visits > 1000, "no storm: {visits}");
    eprintln!("{visits} visits over {servers:?}");
}

#[test]
fn nobody_is_refused_from_epoll_to_epoll() {
    take_over_in_a_storm(
        [("epoll", 2), ("epoll", 3), ("epoll", 2), ("epoll", 2)],
        &[],
    );
}

#[test]
fn nobody_is_refused_from_uring_to_uring() {
    if let Some(_rings) = uring("nobody_is_refused_from_uring_to_uring") {
        take_over_in_a_storm(
            [("uring", 2), ("uring", 3), ("uring", 2), ("uring", 2)],
            &[],
        );
    }
}

#[test]
fn nobody_is_refused_between_engines() {
    if let Some(_rings) = uring("nobody_is_refused_between_engines") {
        let servers = [("uring", 1), ("epoll", 2), ("uring", 3), ("epoll", 1)];
        take_over_in_a_storm(servers, &[]);
    }
}

#[test]
fn nobody_is_refused_out_of_a_sandbox_into_another() {
    if let Some(_rings) = uring("nobody_is_refused_out_of_a_sandbox_into_another") {
        let servers = [("epoll", 2), ("uring", 2), ("epoll", 3), ("uring", 2)];
        take_over_in_a_storm(servers, &["--sandbox"]);
    }
}

/// The connections that wait when nobody accepts are there when somebody does.
#[test]
fn what_waits_in_the_queue_is_served_by_the_successor() {
    for_both("what_waits_in_the_queue", |engine| {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control");
        let old = Server::start(
            engine,
            &["--cores", &cores(2), "--control", control.to_str().unwrap()],
        );
        let (mut predecessor, sockets) = Predecessor::ask(&control).unwrap();
        assert_eq!(sockets.len(), 2);
        drop(predecessor.take_control());
        predecessor.retire().unwrap();
        // Nobody accepts now; then nobody is left but this process.
        let waiting: Vec<_> = (0..100).map(|_| old.dial()).collect();
        let (status, said) = old.end();
        assert_eq!(status.code(), Some(0), "{said}");
        let taken = sockets.iter().map(|socket| {
            socket.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| socket.accept().ok()).count()
        });
        assert_eq!(taken.sum::<usize>(), 100, "{said}");
        drop(waiting);
    });
}

#[test]
fn a_successor_that_does_not_start_changes_nothing() {
    for_both("a_successor_that_does_not_start", |engine| {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control");
        let path = control.to_str().unwrap();
        let flags = ["--cores", &cores(2), "--control", path, "--heartbeat", "0"];
        let old = Server::start(engine, &flags);
        let mut held = old.connect();
        let storm = Storm::begin(&old.address);
        let start = |flags: &[&str]| {
            refused(command(
                &[
                    &["--takeover", path, "--control", path, "--engine", engine],
                    flags,
                ]
                .concat(),
            ))
        };
        let (code, said) = start(&["--json", "/nonexistent/x.json"]);
        assert_eq!(code, Some(2), "{said}");
        let (code, said) = start(&["--cores", &cores(1)]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(&format!("--cores {}", cores(2))), "{said}");
        let (code, said) = start(&["--cores", &cores(2), "--listen", "127.0.0.2:7"]);
        assert_eq!(code, Some(2), "{said}");
        let (code, said) = start(&["--cores", &cores(2), "--engine", "tokio-uring"]);
        assert_eq!(code, Some(2), "{said}");
        // After it has the sockets: the canary's port is not to be had.
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let (code, said) = start(&["--cores", &cores(2), "--canary-port", &port]);
        assert_eq!(code, Some(1), "{said}");
        // And one that goes away without a word.
        drop(Predecessor::ask(&control).unwrap());
        let said = ask(&control, "broadcast still here\n");
        assert!(said.starts_with("published"), "{said}");
        let mut heard = [0; 11];
        held.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here\n");
        assert!(storm.end() > 0);
        drop(held);
        let (status, said) = old.stop();
        assert_eq!(status.code(), Some(0), "{said}");
        let (code, said) = start(&["--cores", &cores(2)]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("no server answers"), "{said}");
    });
}

#[test]
fn tokio_uring_says_that_it_cannot() {
    let Some(_rings) = uring("tokio_uring_says_that_it_cannot") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let path = control.to_str().unwrap();
    let old = Server::start("tokio-uring", &["--control", path]);
    let (code, said) = refused(command(&["--takeover", path]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("tokio-uring"), "{said}");
    assert_eq!(old.stop().0.code(), Some(0));
}

#[test]
fn another_user_takes_nothing_over_and_root_does_into_another() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!(
            "SKIPPED another_user_takes_nothing_over: only root can be somebody else"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let path = control.to_str().unwrap();
    let flags = ["--control", path, "--user", "54321:12345", "--sandbox"];
    let old = Server::start("epoll", &[&flags[..], &["--cores", &cores(2)]].concat());
    let held = old.connect();
    // Even where the file lets anybody in.
    for (open, mode) in [(directory.path(), 0o755), (control.as_path(), 0o666)] {
        std::fs::set_permissions(open, PermissionsExt::from_mode(mode)).unwrap();
    }
    let mut other = command(&["--takeover", path, "--engine", "epoll"]);
    // The program may lie where only root goes.
    let copy = directory.path().join("throng-server");
    std::fs::copy(env!("CARGO_BIN_EXE_throng-server"), &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    other = {
        let mut copied = Command::new(&copy);
        copied
            .args(other.get_args())
            .uid(54_322)
            .gid(12_345)
            .current_dir("/");
        copied
    };
    let (code, said) = refused(other);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("belongs to user 54321"), "{said}");
    let flags = [
        "--takeover",
        path,
        "--engine",
        "epoll",
        "--drain-timeout",
        "1s",
    ];
    let cores = cores(2);
    let new = [
        &flags[..],
        &[
            "--control",
            path,
            "--user",
            "54321:12345",
            "--cores",
            &cores,
        ],
    ]
    .concat();
    let storm = Storm::begin(&old.address);
    let new = Server::spawn(command(&new));
    let mut ours = new.connect();
    // As the user it has become, by which it may be taken over again.
    let mut third = Command::new(&copy);
    third
        .args(flags)
        .args(["--cores", &cores])
        .uid(54_321)
        .gid(12_345)
        .current_dir("/");
    let third = Server::spawn(third);
    let mut heard = String::new();
    ours.read_to_string(&mut heard).unwrap();
    assert!(heard.contains("bye\n"), "{heard}");
    assert!(storm.end() > 0);
    drop(held);
    for server in [old, new] {
        let (status, said) = server.end();
        assert_eq!(status.code(), Some(0), "{said}");
    }
    let (status, said) = third.stop();
    assert_eq!(status.code(), Some(0), "{said}");
}

/// Starts with `sockets` as a service manager would give them. Descriptors from `first` on, of the last thousand that there
/// can be, are taken for them, so that tests that run beside each other do not meet.
fn activated(first: i32, sockets: &[&dyn AsFd], flags: &[&str]) -> (Command, Vec<OwnedFd>) {
    kernel_tuning::process::raise_nofile().unwrap();
    let nofile = kernel_tuning::process::Nofile::read().unwrap().soft;
    let first = nofile.min(1 << 20) as i32 - 1000 + first;
    let mut given = Vec::new();
    for (number, socket) in sockets.iter().enumerate() {
        // Stays open in the program that is started.
        let fd = fcntl_dupfd_cloexec(socket.as_fd(), first).unwrap();
        assert_eq!(fd.as_raw_fd(), first + number as i32);
        fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        given.push(fd);
    }
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_throng-server"),
        ])
        .args(flags)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDS_FIRST_FD", first.to_string());
    (command, given)
}

fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn listening(count: usize) -> Vec<TcpListener> {
    let mut address = "127.0.0.1:0".parse().unwrap();
    let sockets = (0..count).map(|_| {
        let socket = bound(address);
        socket.listen(128).unwrap();
        let listener = TcpListener::from(socket);
        address = listener.local_addr().unwrap();
        listener
    });
    sockets.collect()
}

#[test]
fn sockets_of_a_service_manager_are_served_on_again_and_again() {
    let mut first = 300;
    for_both("sockets_of_a_service_manager", |engine| {
        for count in [1, 2] {
            let sockets = listening(count);
            let address = sockets[0].local_addr().unwrap().to_string();
            let all: Vec<&dyn AsFd> = sockets.iter().map(|s| s as &dyn AsFd).collect();
            let cores = cores(3);
            let flags = [
                "--engine",
                engine,
                "--cores",
                &cores,
                "--drain-timeout",
                "1s",
            ];
            // The service is restarted, in a storm: who comes meanwhile waits.
            let storm = Storm::begin(&address);
            for _ in 0..2 {
                let (command, given) = activated(first, &all, &flags);
                let server = Server::spawn(command);
                drop(given);
                first += 10;
                assert_eq!(server.address, address);
                let held: Vec<_> = (0..60).map(|_| server.connect()).collect();
                std::thread::sleep(Duration::from_millis(200));
                let (status, said) = server.stop();
                assert_eq!(status.code(), Some(0), "{said}");
                assert_let_go(held);
            }
            let (command, given) = activated(first, &all, &flags);
            let last = Server::spawn(command);
            drop(given);
            first += 10;
            assert!(storm.end() > 0);
            assert_eq!(last.stop().0.code(), Some(0));
        }
    });
}

#[test]
fn wrong_sockets_are_refused_and_named() {
    let good = listening(2);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let deaf = bound("127.0.0.1:0".parse().unwrap());
    let elsewhere = TcpListener::bind("127.0.0.2:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    let (one, two) = (cores(1), cores(2));
    let enough = format!("--cores {two}");
    type Case<'a> = (&'a [&'a dyn AsFd], &'a [&'a str], &'a str);
    let cases: [Case; 7] = [
        (&[&udp], &[], "none of TCP"),
        (&[&file], &[], "not a socket"),
        (&[&deaf], &[], "does not listen"),
        (&[&good[0], &elsewhere], &["--cores", &two], "one address"),
        (&[&good[0], &good[1]], &["--cores", &one], &enough),
        (&[&good[0]], &["--listen", "127.0.0.1:1"], "--listen says"),
        (
            &[&good[0]],
            &["--takeover", "/nonexistent"],
            "use one of the two",
        ),
    ];
    for (number, (sockets, flags, why)) in cases.into_iter().enumerate() {
        let flags = [&["--engine", "epoll"], flags].concat();
        let (command, given) = activated(600 + 10 * number as i32, sockets, &flags);
        let (code, said) = refused(command);
        assert_eq!(code, Some(2), "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
        drop(given);
    }
}

#[test]
fn systemds_own_tool_starts_it() {
    let tool = PathBuf::from("/usr/bin/systemd-socket-activate");
    if !tool.exists() {
        return eprintln!("SKIPPED systemds_own_tool_starts_it: no {}", tool.display());
    }
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut command = Command::new(tool);
    command
        .args(["-l", &port.to_string(), env!("CARGO_BIN_EXE_throng-server")])
        .args(["--engine", "epoll", "--cores", &cores(2)]);
    // It waits for the first connection, which is served too.
    let first = std::thread::spawn(move || {
        let mut stream = None;
        eventually("somebody listens", || {
            stream = TcpStream::connect(port).ok();
            stream.is_some()
        });
        let mut greeting = [0; wire::line::GREETING.len()];
        let stream = stream.as_mut().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.read_exact(&mut greeting).unwrap();
    });
    let server = Server::spawn(command);
    first.join().unwrap();
    assert_eq!(server.address, port.to_string());
    drop(server.connect());
    let (status, said) = server.stop();
    assert_eq!(status.code(), Some(0), "{said}");
}
