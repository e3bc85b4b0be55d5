//! Who is refused, told and counted when more come than may or can, and that those held are served on.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{LONG, Server, eventually, for_each_engine};

const REFUSAL: [&str; 2] = ["--refusal", "not now"];

fn told(stream: &mut TcpStream) -> String {
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// How many of `count` new connections get in; the others must be told.
fn come(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut streams: Vec<_> = (0..count).map(|_| server.dial()).collect();
    streams.retain_mut(|stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        match first[0] {
            b'W' => true,
            _ => {
                assert_eq!(told(stream), "ot now\n");
                false
            }
        }
    });
    streams
}

fn assert_served(stream: &mut TcpStream) {
    stream
        .read_exact(&mut [0; wire::line::GREETING.len() - 1])
        .unwrap();
    stream.write_all(b"here\n").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"here\n");
}

#[test]
fn a_source_has_so_many_places_and_gets_them_back() {
    for_each_engine(|engine| {
        let flags = [&REFUSAL[..], &["--max-per-source", "5", "--heartbeat", "0"]].concat();
        let server = Server::start(engine, &flags);
        let mut held = come(&server, 12);
        assert_eq!(held.len(), 5, "{engine}");
        // Another source has places of its own.
        let other =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let source: std::net::SocketAddr = "127.0.0.2:0".parse().unwrap();
        other.bind(&source.into()).unwrap();
        let address: std::net::SocketAddr = server.address.parse().unwrap();
        other.connect(&address.into()).unwrap();
        let mut other = TcpStream::from(other);
        other.set_read_timeout(Some(LONG)).unwrap();
        other.read_exact(&mut [0]).unwrap();
        assert_served(&mut other);
        held.iter_mut().for_each(assert_served);
        held.truncate(2);
        eventually("places are free again", || come(&server, 1).len() == 1);
        drop((held, other));
        let (_, said) = server.stop();
        assert!(said.contains("over --max-per-source"), "{said}");
    });
}

#[test]
fn so_many_come_in_a_second_and_more_later() {
    for_each_engine(|engine| {
        let flags = [&REFUSAL[..], &["--accept-rate", "20", "--heartbeat", "0"]].concat();
        let server = Server::start(engine, &flags);
        let mut held = come(&server, 60);
        assert!((20..60).contains(&held.len()), "{engine}: {}", held.len());
        held.iter_mut().for_each(assert_served);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(come(&server, 20).len(), 20, "{engine}");
        drop(held);
        let (_, said) = server.stop();
        assert!(said.contains("over --accept-rate"), "{said}");
    });
}

#[test]
fn nobody_comes_in_while_memory_is_short_and_who_is_held_stays() {
    for_each_engine(|engine| {
        // More than any machine has.
        let flags = [&REFUSAL[..], &["--memory-reserve", "4000000000"]].concat();
        let server = Server::start(engine, &flags);
        eventually("it is seen", || come(&server, 1).is_empty());
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0));
        assert!(said.contains("for memory was short"), "{said}");
    });
}

/// Where a connection takes a file descriptor, the others wait in the backlog, and come in when one is free.
#[test]
fn without_file_descriptors_the_others_wait() {
    for_each_engine(|engine| {
        let mut command = std::process::Command::new("sh");
        let program = env!("CARGO_BIN_EXE_throng-server");
        let descriptors = if engine == "uring" {
            "--descriptors fd"
        } else {
            ""
        };
        command.args(["-c", &format!(
            "ulimit -n 64; exec {program} --engine {engine} {descriptors} --cores 0 --listen 127.0.0.1:0 --heartbeat 0 --drain-timeout 1s"
        )]);
        let server = Server::spawn(command);
        let mut streams: Vec<_> = (0..80).map(|_| server.dial()).collect();
        // All 80 are served, one after the other, as places become free.
        for stream in &mut streams {
            stream.write_all(b"quit\n").unwrap();
        }
        for mut stream in streams {
            assert!(told(&mut stream).starts_with("Welcome"), "{engine}");
        }
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{engine}: {said}");
        assert!(said.contains("80 accepted"), "{engine}: {said}");
        assert!(said.contains("times put off"), "{engine}: {said}");
    });
}

/// A table that is full is no end: one more is made, and nobody is lost.
#[test]
fn a_full_table_leads_to_another() {
    if let Err(why) = ring::probe() {
        return eprintln!("SKIPPED a_full_table: {why}");
    }
    let flags = [
        "--descriptors",
        "direct",
        "--table-slots",
        "64",
        "--cores",
        "0",
    ];
    let server = Server::start("uring", &[&flags[..], &["--drain-timeout", "1s"]].concat());
    let mut streams: Vec<_> = (0..300).map(|_| server.dial()).collect();
    for stream in &mut streams {
        stream.write_all(b"quit\n").unwrap();
    }
    for mut stream in streams {
        assert!(told(&mut stream).starts_with("Welcome"));
    }
    let (_, said) = server.stop();
    assert!(said.contains("300 accepted"), "{said}");
    assert!(!said.contains("LOST"), "{said}");
}
