//! What a server leaves behind: nothing. After connections came and went in every way, and at its own end.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{GREETING, Server, engine_flags, eventually, has_engine, read, read_all, skip};
use kernel_tuning::process;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long the kernel may take to let go of sockets.
const SETTLING: Duration = Duration::from_secs(10);

for_each_engine!(
    what_came_and_went_leaves_nothing_behind,
    thousands_held_end_with_the_server_at_once,
);

fn alone() -> MutexGuard<'static, ()> {
    process::raise_nofile().unwrap();
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a server has of the kernel and of memory.
#[derive(Debug)]
struct Holding {
    sockets: usize,
    files: usize,
    rss_bytes: u64,
}

impl Holding {
    fn of(server: &Server) -> Holding {
        let files = std::fs::read_dir(format!("/proc/{}/fd", server.pid()));
        Holding {
            sockets: sockets(server.address.port()),
            files: files.unwrap().count(),
            rss_bytes: process::Usage::of(server.pid()).unwrap().rss_bytes,
        }
    }

    /// What `server` has once it has no more sockets and files than at its `base`, and counts no connection.
    fn settled(server: &Server, control: &str, base: &Holding) -> Holding {
        eventually("sockets and files are as before", SETTLING, || {
            let now = Holding::of(server);
            now.sockets <= base.sockets && now.files <= base.files
        });
        eventually("the server counts no connection", SETTLING, || {
            count(control) == "published to 0 connections\n"
        });
        Holding::of(server)
    }
}

/// Sockets with this local port, but for those in TIME_WAIT, which only wait for their end.
fn sockets(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let is_ours = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] != "06"
    };
    table.lines().skip(1).filter(is_ours).count()
}

/// What the server says how many connections it has.
fn count(control: &str) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.write_all(b"broadcast how many?\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

fn greeted(server: &Server) -> TcpStream {
    let mut stream = server.connect();
    assert_eq!(read(&mut stream, GREETING.len()), GREETING);
    stream
}

fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Connections that come, say something, hear it, and end: by the client, by the server, by a reset.
fn churn(server: &Server, count: usize) {
    for number in 0..count {
        let mut stream = greeted(server);
        stream.write_all(b"hello\n").unwrap();
        assert_eq!(read(&mut stream, 6), b"hello\n");
        match number % 3 {
            0 => drop(stream),
            1 => {
                stream.write_all(b"quit\n").unwrap();
                assert_eq!(read_all(&mut stream), b"");
            }
            _ => reset(stream),
        }
    }
}

/// Many connections that end at once, half of them by a reset.
fn mass_close(server: &Server, count: usize) {
    let mut held: Vec<_> = (0..count).map(|_| greeted(server)).collect();
    for stream in held.split_off(count / 2) {
        reset(stream);
    }
}

fn what_came_and_went_leaves_nothing_behind(engine: &str) {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    let control = control.to_str().unwrap();
    let flags = [
        engine_flags(engine),
        &["--heartbeat", "0", "--control", control],
    ]
    .concat();
    let slab = Slab::read();
    let server = Server::start(&flags);
    let base = Holding::of(&server);
    let mut rounds = Vec::new();
    for _ in 0..4 {
        churn(&server, 900);
        mass_close(&server, 2000);
        rounds.push(Holding::settled(&server, control, &base));
    }
    // A leak grows in every round, an allocator's heap ever less: 180 bytes of each of the 2,900 connections would show.
    let least_growth = rounds
        .windows(2)
        .map(|pair| pair[1].rss_bytes.saturating_sub(pair[0].rss_bytes))
        .min();
    assert!(
        least_growth <= Some(512 << 10),
        "memory grows: {base:?} {rounds:?}"
    );
    match slab {
        Some(slab) => slab.settles("what_came_and_went_leaves_nothing_behind"),
        None => skip("the slab after churn", "/proc/slabinfo is for root"),
    }
    let (status, said) = server.stop(Duration::from_secs(10));
    assert!(
        status.success() && said.contains("11600 accepted"),
        "{said}"
    );
}

/// The whole machine's TCP sockets: objects in the kernel's memory, and those that are in use.
struct Slab {
    objects: u64,
    in_use: u64,
}

impl Slab {
    /// Each CPU keeps some objects that it has just freed.
    const SLACK: u64 = 2_000;

    /// None where it may not be read.
    fn read() -> Option<Slab> {
        let slab = std::fs::read_to_string("/proc/slabinfo").ok()?;
        let objects = slab.lines().find(|line| line.starts_with("TCP "))?;
        let sockets = std::fs::read_to_string("/proc/net/sockstat").ok()?;
        let in_use = sockets
            .lines()
            .find(|line| line.starts_with("TCP: inuse"))?;
        Some(Slab {
            objects: objects.split_whitespace().nth(1)?.parse().ok()?,
            in_use: in_use.split_whitespace().nth(2)?.parse().ok()?,
        })
    }

    /// Waits until the kernel has no more of them than now, other programs' aside.
    fn settles(self, test: &str) {
        let deadline = Instant::now() + SETTLING;
        loop {
            let now = Slab::read().unwrap();
            if now.objects <= self.objects + Slab::SLACK {
                return;
            }
            if Instant::now() > deadline {
                let by_others = now.in_use > self.in_use + Slab::SLACK / 4;
                assert!(
                    by_others,
                    "{} TCP objects, {} before",
                    now.objects, self.objects
                );
                return skip(
                    test,
                    "other programs hold TCP sockets: the slab says nothing",
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn thousands_held_end_with_the_server_at_once(engine: &str) {
    let _alone = alone();
    // Long enough to tell all of them.
    let flags = ["--heartbeat", "0", "--drain-timeout", "1s"];
    let server = Server::start(&[engine_flags(engine), &flags].concat());
    let mut held: Vec<_> = (0..5_000).map(|_| greeted(&server)).collect();
    let port = server.address.port();
    // It panics after five seconds.
    let (status, said) = server.stop(Duration::from_secs(5));
    assert!(
        status.success() && said.contains("5000 by the end"),
        "{said}"
    );
    for stream in &mut held {
        assert_eq!(read_all(stream), b"bye\n");
    }
    drop(held);
    eventually("no socket is left", SETTLING, || sockets(port) == 0);
}
