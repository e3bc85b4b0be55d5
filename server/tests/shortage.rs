//! What a real server process does when the kernel has too little for it: those held talk on, the others wait or are
//! refused and counted, no CPU time is burnt meanwhile, and accepting goes on by itself when the shortage is over.
//!
//! Short are: file descriptors, by RLIMIT_NOFILE; memory, by files that the server alone sees in place of the kernel's,
//! bound over them in a mount namespace of its own. ENFILE, ENOMEM and ENOBUFS at an accept cannot be made for one process
//! alone: the simulation makes them (for io_uring), and the other engines treat them in one arm with EMFILE.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{LONG, Server, eventually, for_each_engine, program, skip};
use kernel_tuning::host::Sockstat;
use kernel_tuning::process::Usage;

const GREETING: usize = wire::line::GREETING.len();
const NOFILE: usize = 64;
const COMERS: usize = 100;

/// A server that may have [`NOFILE`] descriptors.
fn with_few_descriptors(engine: &str, flags: &str) -> Server {
    let program = program();
    let mut command = Command::new("sh");
    command.args(["-c", &format!(
        "ulimit -n {NOFILE}; exec {} --engine {engine} {flags} --listen 127.0.0.1:0 --heartbeat 0 --drain-timeout 300ms",
        program.display()
    )]);
    Server::spawn(command)
}

fn descriptors(server: &Server) -> usize {
    let listed = fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap();
    listed.count()
}

fn cpu(server: &Server) -> Duration {
    Duration::from_nanos(Usage::of(server.child.id()).unwrap().cpu_ns)
}

fn is_greeted(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let greeted = stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0);
    stream.set_nonblocking(false).unwrap();
    greeted
}

fn greet(stream: &mut TcpStream) {
    stream.read_exact(&mut [0; GREETING]).unwrap();
}

fn assert_talks(stream: &mut TcpStream) {
    stream.write_all(b"here\n").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"here\n");
}

#[test]
fn without_file_descriptors_those_held_talk_and_the_others_come_later() {
    for_each_engine(|engine| {
        let flags = match engine {
            "uring" => "--descriptors fd --cores 0",
            _ => "--cores 0",
        };
        let server = with_few_descriptors(engine, flags);
        let streams: Vec<_> = (0..COMERS).map(|_| server.dial()).collect();
        eventually("all descriptors are in use", || {
            descriptors(&server) >= NOFILE
        });
        // What is in use is greeted in the same turn.
        std::thread::sleep(Duration::from_millis(100));
        let (mut held, mut waiting): (Vec<_>, Vec<_>) = streams.into_iter().partition(is_greeted);
        assert!(
            (20..NOFILE).contains(&held.len()),
            "{engine}: {}",
            held.len()
        );
        held.iter_mut().for_each(greet);
        let (began, before) = (Instant::now(), cpu(&server));
        while began.elapsed() < Duration::from_millis(1200) {
            held.iter_mut().for_each(assert_talks);
            std::thread::sleep(Duration::from_millis(100));
        }
        let used = cpu(&server) - before;
        assert!(used < began.elapsed() / 3, "{engine}: {used:?} of CPU time");
        assert!(!waiting.iter().any(is_greeted), "{engine}");

        while !waiting.is_empty() {
            // As many as go come in, whoever they are.
            let going = held.len();
            held.clear();
            let coming = going.min(waiting.len());
            eventually("as many come in", || {
                waiting.iter().filter(|stream| is_greeted(stream)).count() >= coming
            });
            (held, waiting) = waiting.into_iter().partition(is_greeted);
            held.iter_mut().for_each(greet);
            held.iter_mut().for_each(assert_talks);
        }
        drop(held);
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{engine}: {said}");
        let all = format!("{COMERS} accepted");
        assert!(said.contains(&all), "{engine}: {said}");
        assert!(said.contains("times put off"), "{engine}: {said}");
    });
}

/// Of RLIMIT_NOFILE a direct descriptor takes nothing but a place in a table, of which there can be many.
#[test]
fn direct_descriptors_are_not_bounded_by_the_limit_of_files() {
    if let Err(why) = ring::probe() {
        return skip("direct_descriptors_are_not_bounded", &why.to_string());
    }
    let server = with_few_descriptors("uring", "--descriptors direct --cores 0");
    let mut held: Vec<_> = (0..400).map(|_| server.connect()).collect();
    held.iter_mut().for_each(assert_talks);
    assert!(descriptors(&server) < NOFILE);
    drop(held);
    let (_, said) = server.stop();
    assert!(said.contains("400 accepted"), "{said}");
    assert!(
        !said.contains("LOST") && !said.contains("put off"),
        "{said}"
    );
}

/// Rings of an ordinary user are charged to RLIMIT_MEMLOCK, by most kernels.
#[test]
fn without_locked_memory_epoll_serves_and_the_limit_is_named() {
    if kernel_tuning::process::memlock_bytes().is_none() {
        return skip("without_locked_memory", "this user is not bound by it");
    }
    let program = program();
    let mut command = Command::new("sh");
    command.args(["-c", &format!(
        "ulimit -l 64; exec {} --engine auto --listen 127.0.0.1:0 --heartbeat 0 --drain-timeout 300ms",
        program.display()
    )]);
    let server = Server::spawn(command);
    assert_talks(&mut server.connect());
    let (status, said) = server.stop();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.contains("does not release"), "{said}");
    let is_epoll = said.contains("epoll instead of io_uring");
    assert_eq!(is_epoll, said.contains("RLIMIT_MEMLOCK"), "{said}");
}

/// What the kernel says of memory, as one server sees it.
struct Memory(tempfile::TempDir);

impl Memory {
    const PLENTY: &'static str = "99999999999";

    fn new() -> Memory {
        let memory = Memory(tempfile::tempdir().unwrap());
        // Of version 1 and of version 2; a limit of the root holds for every group.
        for group in ["cgroup", "cgroup/memory"] {
            fs::create_dir(memory.path().join(group)).unwrap();
            for file in ["memory.current", "memory.usage_in_bytes"] {
                memory.write(&format!("{group}/{file}"), "1000000000");
            }
        }
        memory.host(8 << 30);
        memory.cgroup(Memory::PLENTY);
        memory.tcp("9999999 9999999 9999999");
        memory
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file itself stays: it is bound.
    fn write(&self, file: &str, text: &str) {
        fs::write(self.path().join(file), text).unwrap();
    }

    fn host(&self, available_bytes: u64) {
        let real = fs::read_to_string("/proc/meminfo").unwrap();
        let lines = real
            .lines()
            .map(|line| match line.starts_with("MemAvailable:") {
                true => format!("MemAvailable: {} kB\n", available_bytes / 1024),
                false => format!("{line}\n"),
            });
        self.write("meminfo", &lines.collect::<String>());
    }

    fn cgroup(&self, limit_bytes: &str) {
        self.write("cgroup/memory.max", limit_bytes);
        self.write("cgroup/memory/memory.limit_in_bytes", limit_bytes);
    }

    fn tcp(&self, pages: &str) {
        self.write("tcp_mem", pages);
    }

    /// None where no mount namespace can be had, with the reason.
    fn serve(&self) -> Result<Server, String> {
        let here = self.path().display();
        let bind = format!(
            "mount --bind {here}/cgroup /sys/fs/cgroup && mount --bind {here}/meminfo /proc/meminfo && \
             mount --bind {here}/tcp_mem /proc/sys/net/ipv4/tcp_mem"
        );
        let inside = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "sh", "-c", script]);
            command
        };
        let tried = inside(&bind)
            .output()
            .map_err(|error| format!("unshare: {error}"))?;
        if !tried.status.success() {
            return Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned());
        }
        let flags = "--listen 127.0.0.1:0 --heartbeat 0 --refusal full --drain-timeout 300ms";
        let serve = format!("{bind} && exec {} {flags}", program().display());
        Ok(Server::spawn(inside(&serve)))
    }
}

/// Whether a new connection is let in; it is told so if not.
fn gets_in(server: &Server) -> bool {
    let mut first = [0];
    server.dial().read_exact(&mut first).unwrap();
    assert!(b"Wf".contains(&first[0]));
    &first == b"W"
}

#[test]
fn near_each_end_of_memory_nobody_comes_in_until_there_is_more() {
    const NEAR: u64 = 32 << 20;
    let memory = Memory::new();
    let server = match memory.serve() {
        Ok(server) => server,
        Err(why) => return skip("near_each_end_of_memory", &why),
    };
    let mut held: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let _queued: Vec<_> = (0..4).map(|_| queue()).collect();
    let used_pages = || Sockstat::read().unwrap().mem_pages;
    eventually("TCP has memory in use", || used_pages() > 64);
    type End = (&'static str, fn(&Memory), fn(&Memory));
    let ends: [End; 3] = [
        ("of the host", |m| m.host(NEAR), |m| m.host(8 << 30)),
        (
            "of the control group",
            |m| m.cgroup(&(1_000_000_000 + NEAR).to_string()),
            |m| m.cgroup(Memory::PLENTY),
        ),
        (
            "of TCP",
            |m| m.tcp("32 32 32"),
            |m| m.tcp("9999999 9999999 9999999"),
        ),
    ];
    for (end, come, go) in ends {
        assert!(gets_in(&server), "before the end {end}");
        come(&memory);
        eventually(end, || !gets_in(&server));
        let (began, before) = (Instant::now(), cpu(&server));
        held.iter_mut().for_each(assert_talks);
        std::thread::sleep(Duration::from_millis(300));
        assert!(!gets_in(&server), "{end}");
        assert!(cpu(&server) - before < began.elapsed() / 2, "{end}");
        go(&memory);
        eventually("there is memory again", || gets_in(&server));
    }
    held.iter_mut().for_each(assert_talks);
    drop(held);
    let (_, said) = server.stop();
    let refused = said.lines().find(|line| line.contains("refused"));
    assert!(
        refused.is_some_and(|line| line.contains("for memory was short")),
        "{said}"
    );
    assert!(said.contains("memory is short"), "not in the log: {said}");
}

/// A connection whose buffers are full, both ends of which are returned.
fn queue() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (reader, _) = listener.accept().unwrap();
    writer.set_nonblocking(true).unwrap();
    let began = Instant::now();
    while writer.write(&[0; 1 << 16]).is_ok() {
        assert!(began.elapsed() < LONG);
    }
    (writer, reader)
}
