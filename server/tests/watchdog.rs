//! A worker that dies, by a panic or by doing nothing any more, takes the server with it, loudly. In a build with the
//! feature `burn` only, which makes it breakable.
#![cfg(feature = "burn")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{LONG, Server, for_each_engine};
use nix::sys::signal::Signal;

/// Two workers, of which one lives on.
fn start(engine: &str) -> Server {
    let core = kernel_tuning::process::affinity().unwrap()[0];
    let cores = format!("{core},{core}");
    Server::start(
        engine,
        &[
            "--faults",
            "--heartbeat",
            "0",
            "--stall-timeout",
            "2s",
            "--cores",
            &cores,
        ],
    )
}

#[test]
fn a_panic_of_one_worker_ends_the_server() {
    for_each_engine(|engine| {
        let server = start(engine);
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
        let server = start(engine);
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
        let server = start(engine);
        let mut stream = server.connect();
        std::thread::sleep(Duration::from_millis(2500));
        server.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(3000));
        server.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(500));
        stream.write_all(b"alive\n").unwrap();
        stream.read_exact(&mut [0; 6]).unwrap();
        drop(stream);
        server.signal(Signal::SIGTERM);
        let (status, said) = server.end();
        assert_eq!(status.code(), Some(0), "{said}");
    });
}
