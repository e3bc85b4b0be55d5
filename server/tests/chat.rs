//! The library face: the chat example, on both engines, several workers.
#![allow(clippy::unwrap_used)]

#[path = "../examples/chat.rs"]
mod chat;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use server::worker::Event;
use server::{Config, EngineKind};

#[test]
fn every_line_goes_to_everybody_in_the_order_it_was_said() {
    let core = kernel_tuning::process::affinity().unwrap()[0];
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        if engine == EngineKind::Uring && ring::probe().is_err() {
            let skipped = b"SKIPPED every_line_goes_to_everybody: no io_uring\n";
            std::io::stderr().write_all(skipped).unwrap();
            continue;
        }
        let config = Config {
            drain_timeout: Duration::from_millis(300),
            ..Config::new("127.0.0.1:0".parse().unwrap(), engine, vec![core, core])
        };
        let server = server::start(&config, |room| {
            let room = room.clone();
            move || chat::Guest::new(room.clone())
        })
        .unwrap();
        let mut guests: Vec<_> = (0..20)
            .map(|_| {
                let stream = TcpStream::connect(server.address()).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(20)))
                    .unwrap();
                BufReader::new(stream)
            })
            .collect();
        let mut line = String::new();
        for guest in &mut guests {
            line.clear();
            guest.read_line(&mut line).unwrap();
            assert!(line.starts_with("Welcome"));
        }
        for n in 0..50 {
            guests[0]
                .get_mut()
                .write_all(format!("line {n}\n").as_bytes())
                .unwrap();
        }
        for guest in &mut guests {
            for n in 0..50 {
                line.clear();
                guest.read_line(&mut line).unwrap();
                assert_eq!(line, format!("line {n}\n"), "{engine:?}");
            }
        }
        server
            .stopper()
            .send(Event::Stop("the test is over"))
            .unwrap();
        let ended = server.wait().unwrap();
        assert_eq!(ended.stats.messages_published, 20 * 50);
    }
}
