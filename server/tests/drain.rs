//! A server told to stop: who is told, who may stay how long, and when the port is free. The same for every engine.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use server::engine::EngineKind;
use server::stats::CloseReason;
use server::worker::Event;
use server::{Config, Ended, Server};

const LONG: Duration = Duration::from_secs(20);
const GREETING: usize = wire::line::GREETING.len();

macro_rules! for_each_engine {
    ($($case:ident),* $(,)?) => {
        mod uring { $( #[test] fn $case() { super::with_uring(stringify!($case), || super::$case(super::EngineKind::Uring)) } )* }
        mod epoll { $( #[test] fn $case() { super::$case(super::EngineKind::Epoll) } )* }
        mod tokio_uring { $( #[test] fn $case() { super::with_uring(stringify!($case), || super::$case(super::EngineKind::TokioUring)) } )* }
    };
}

for_each_engine!(
    clients_are_told_and_those_that_go_end_it,
    those_that_stay_are_served_and_then_closed_evenly,
    the_port_is_free_while_clients_go,
    asked_twice_it_ends_at_once,
    with_nobody_there_it_ends_at_once,
);

fn with_uring(test: &str, run: impl FnOnce()) {
    match ring::probe() {
        Ok(()) => run(),
        Err(why) => eprintln!("SKIPPED {test}: {why}"),
    }
}

fn serve(engine: EngineKind, drain_timeout: Duration) -> Server {
    let core = kernel_tuning::process::affinity().unwrap()[0];
    let config = Config {
        drain_timeout,
        farewell: wire::line::FAREWELL.to_vec(),
        ..Config::new("127.0.0.1:0".parse().unwrap(), engine, vec![core])
    };
    server::start(&config, |_| wire::Line::default).unwrap()
}

fn greeted(server: &Server, count: usize) -> Vec<TcpStream> {
    let streams = (0..count).map(|_| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.read_exact(&mut [0; GREETING]).unwrap();
        stream
    });
    streams.collect()
}

fn stop(server: &Server) {
    server.stopper().send(Event::Stop("test")).unwrap();
}

fn assert_told(stream: &mut TcpStream) {
    let mut said = [0; 4];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(said, wire::line::FAREWELL);
}

fn closed(ended: &Ended) -> (u64, u64) {
    (ended.stats.drained, ended.stats.drained_closed())
}

fn clients_are_told_and_those_that_go_end_it(engine: EngineKind) {
    let server = serve(engine, LONG);
    let mut streams = greeted(&server, 30);
    let started = Instant::now();
    stop(&server);
    let going = std::thread::spawn(move || {
        for mut stream in streams.drain(..) {
            assert_told(&mut stream);
        }
    });
    let ended = server.wait().unwrap();
    going.join().unwrap();
    assert_eq!(closed(&ended), (30, 0));
    assert_eq!(ended.stats.closed[&CloseReason::PeerClosed], 30);
    assert!(started.elapsed() < LONG * 3 / 4, "it waited for nobody");
}

fn those_that_stay_are_served_and_then_closed_evenly(engine: EngineKind) {
    let timeout = Duration::from_secs(4);
    let server = serve(engine, timeout);
    let streams = greeted(&server, 40);
    let started = Instant::now();
    stop(&server);
    let staying: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                assert_told(&mut stream);
                stream.write_all(b"still here\n").unwrap();
                stream.read_exact(&mut [0; 11]).unwrap();
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
                started.elapsed()
            })
        })
        .collect();
    let ended = server.wait().unwrap();
    let mut closes: Vec<_> = staying.into_iter().map(|s| s.join().unwrap()).collect();
    closes.sort();
    assert_eq!(closed(&ended), (40, 40));
    assert!(closes[0] >= timeout * 3 / 4, "closed after {closes:?}");
    // Forty over 800 ms: a mass close would have all of them in one moment.
    assert!(closes[39] - closes[0] >= timeout / 10, "{closes:?}");
    assert!(started.elapsed() < LONG);
}

fn the_port_is_free_while_clients_go(engine: EngineKind) {
    let old = serve(engine, LONG);
    let address = old.address();
    let mut streams = greeted(&old, 3);
    stop(&old);
    let going = std::thread::spawn(move || old.wait().unwrap());
    streams.iter_mut().for_each(assert_told);
    let core = kernel_tuning::process::affinity().unwrap()[0];
    let config = Config::new(address, engine, vec![core]);
    let new = server::start(&config, |_| wire::Line::default).unwrap();
    greeted(&new, 10);
    streams[0].write_all(b"the old one\n").unwrap();
    streams[0].read_exact(&mut [0; 12]).unwrap();
    drop(streams);
    assert_eq!(closed(&going.join().unwrap()), (3, 0));
    stop(&new);
    assert_eq!(new.wait().unwrap().stats.accepted, 10);
}

fn asked_twice_it_ends_at_once(engine: EngineKind) {
    let server = serve(engine, LONG);
    let mut streams = greeted(&server, 5);
    let started = Instant::now();
    stop(&server);
    stop(&server);
    let ended = server.wait().unwrap();
    assert_eq!(closed(&ended), (5, 5));
    assert!(started.elapsed() < LONG / 4);
    for stream in &mut streams {
        let mut rest = Vec::new();
        // A farewell may have come, or not.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest == wire::line::FAREWELL);
    }
}

fn with_nobody_there_it_ends_at_once(engine: EngineKind) {
    let server = serve(engine, LONG);
    drop(greeted(&server, 5));
    let started = Instant::now();
    stop(&server);
    let ended = server.wait().unwrap();
    assert_eq!(ended.stats.drained_closed(), 0);
    assert!(started.elapsed() < LONG / 4);
}
