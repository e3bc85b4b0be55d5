//! What the engine does to peers that do not behave, over real sockets.
//!
//! Owns: a server a test, and its peers. Invariant: where there is no io_uring a test says that it was skipped.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use wire::{Out, Session};

use crate::stats::CloseReason;
use crate::worker::Event;
use crate::{Config, EngineKind, Server};

const LONG: Duration = Duration::from_secs(20);

/// None, said loudly, where this machine has no io_uring.
fn serve<S: Session + 'static>(
    change: impl FnOnce(&mut Config),
    session: impl Fn() -> S + Clone + Send + 'static,
) -> Option<Server> {
    if let Err(why) = ring::probe() {
        eprintln!("SKIPPED: {why}");
        return None;
    }
    let core = kernel_tuning::process::affinity().unwrap()[0];
    let address = "127.0.0.1:0".parse().unwrap();
    let mut config = Config::new(address, EngineKind::TokioUring, vec![core]);
    config.drain_timeout = Duration::from_millis(500);
    change(&mut config);
    Some(crate::start(&config, |_| session).unwrap())
}

fn connect(server: &Server) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Writes until the server reads no more.
fn be_deaf(stream: &mut std::net::TcpStream) {
    let patience = Some(Duration::from_millis(300));
    stream.set_write_timeout(patience).unwrap();
    while stream.write(&[1; 1 << 16]).is_ok() {}
}

fn until(done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "it does not come to pass");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn closed(server: Server) -> Vec<(CloseReason, u64)> {
    server.stopper().send(Event::Stop("test")).unwrap();
    let stats = server.wait().unwrap().stats;
    stats.closed.into_iter().collect()
}

/// Consumes nothing.
#[derive(Clone)]
struct Stubborn;

impl Session for Stubborn {
    fn on_open(&mut self, _out: &mut Out<'_>) {}
    fn on_bytes(&mut self, _input: &[u8], _out: &mut Out<'_>) -> usize {
        0
    }
    fn on_tick(&mut self, _out: &mut Out<'_>) {}
    fn on_message(&mut self, _message: &[u8], _out: &mut Out<'_>) {}
    fn on_eof(&mut self, _rest: &[u8], _out: &mut Out<'_>) {}
}

#[test]
fn a_peer_that_takes_nothing_is_closed_in_time() {
    let Some(server) = serve(
        |c| c.timeouts.write = Some(Duration::from_millis(500)),
        || wire::Echo,
    ) else {
        return;
    };
    let mut deaf = connect(&server);
    be_deaf(&mut deaf);
    until(|| server.held() == 0);
    assert_eq!(closed(server), [(CloseReason::WriteTimeout, 1)]);
}

#[test]
fn a_peer_that_takes_nothing_does_not_keep_the_server() {
    let short = Duration::from_millis(300);
    let Some(server) = serve(|c| c.drain_timeout = short, || wire::Echo) else {
        return;
    };
    let mut deaf = connect(&server);
    be_deaf(&mut deaf);
    let started = Instant::now();
    assert_eq!(closed(server), [(CloseReason::Shutdown, 1)]);
    assert!(started.elapsed() >= short && started.elapsed() < LONG);
}

#[test]
fn unsaid_bytes_and_unread_messages_are_bounded() {
    let bounded = |c: &mut Config| {
        c.limits.input_bytes_per_conn = 10_000;
        c.limits.output_bytes_per_conn = 100_000;
        c.limits.bytes_per_worker = 150_000;
    };
    let Some(server) = serve(bounded, || Stubborn) else {
        return;
    };
    let mut talker = connect(&server);
    let _ = talker.write_all(&[0; 20_000]);
    let _ = talker.read(&mut [0]);
    let many: Vec<_> = (0..20).map(|_| connect(&server)).collect();
    for mut stream in &many {
        stream.write_all(&[0; 9_000]).unwrap();
    }
    until(|| server.held() == 16);
    let expected = [
        (CloseReason::TooLong, 1),
        (CloseReason::WorkerMemory, 4),
        (CloseReason::Shutdown, 16),
    ];
    assert_eq!(closed(server), expected);

    let Some(server) = serve(bounded, || wire::Echo) else {
        return;
    };
    let mut deaf = connect(&server);
    be_deaf(&mut deaf);
    for _ in 0..10 {
        server
            .publisher()
            .publish([7; 50_000], Duration::ZERO)
            .unwrap();
    }
    until(|| server.held() == 0);
    assert_eq!(closed(server), [(CloseReason::SlowReader, 1)]);
}
