//! The engine over real sockets and rings whose queues are as small as can be: everybody speaks at once, the
//! completion queues overflow, submissions are made early all the time, and nothing is lost.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use wire::{Out, Session};

use super::driver::run_on;
use crate::admission::{Admission, Bounds};
use crate::stats::CloseReason;
use crate::timeouts::Timeouts;
use crate::worker::{Command, Event, Publisher, Worker};

const CONNECTIONS: usize = 2_000;
const TABLE_SLOTS: u32 = 900;
const BOUND: Duration = Duration::from_secs(20);

/// Echoes; and holds the whole worker up when it is told to, so that what all others say is there when it goes on.
struct Sleeper;

const SLEEP: &[u8] = b"sleep";

impl Session for Sleeper {
    fn on_open(&mut self, _out: &mut Out<'_>) {}
    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        if input == SLEEP {
            std::thread::sleep(Duration::from_millis(300));
        }
        let fits = input.len().min(out.room());
        out.put(&input[..fits]);
        fits
    }
    fn on_tick(&mut self, _out: &mut Out<'_>) {}
    fn on_message(&mut self, _message: &[u8], _out: &mut Out<'_>) {}
    fn on_eof(&mut self, _rest: &[u8], _out: &mut Out<'_>) {}
}

fn said_by(number: usize, round: u64) -> Vec<u8> {
    let id = (number as u64) << 8 | round;
    id.to_le_bytes().repeat(1 + number % 20)
}

#[test]
fn what_overflows_is_counted_and_not_lost() {
    if let Err(why) = ring::probe() {
        return eprintln!("SKIPPED: {why}");
    }
    kernel_tuning::process::raise_nofile().unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let listener = crate::listener::listen(address, 1, 256, false, Default::default())
        .unwrap()
        .remove(0);
    let address = listener.local_addr().unwrap();
    let publisher = Publisher::new(1).unwrap();
    let (sender, events) = channel();
    let worker = Worker {
        number: 0,
        listener: Some(Arc::new(listener)),
        backlog: 256,
        session: || Sleeper,
        heartbeat: None,
        heartbeat_waits: false,
        limits: Default::default(),
        timeouts: Timeouts::default(),
        drain_timeout: BOUND,
        farewell: None,
        descriptors: ring::Descriptors::Direct,
        table_slots: TABLE_SLOTS,
        is_inspected: false,
        ring_sizes: crate::config::RingSizes::default(),
        admission: Arc::new(Admission::new(Bounds::default())),
        refusal: Arc::new([]),
        publisher: publisher.clone(),
        events: sender,
        pulse: Arc::default(),
        gate: Arc::new(true.into()),
    };
    let config = ring::Config {
        sq_entries: 8,
        cq_entries: Some(8),
        table_slots: TABLE_SLOTS,
        ..ring::Config::default()
    };
    let serving = std::thread::spawn(move || run_on(config, worker));
    assert!(matches!(events.recv_timeout(BOUND), Ok(Event::Ready)));

    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream
    };
    let mut sleeper = connect();
    let mut streams: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
    for round in 0..3 {
        sleeper.write_all(SLEEP).unwrap();
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&said_by(number, round)).unwrap();
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            let said = said_by(number, round);
            let mut back = vec![0; said.len()];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, said, "connection {number}");
        }
        sleeper.read_exact(&mut [0; SLEEP.len()]).unwrap();
    }
    for stream in streams.iter().chain([&sleeper]) {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for stream in streams.iter_mut().chain([&mut sleeper]) {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "bytes nobody said");
    }
    publisher.post(Command::Stop);
    let stats = serving.join().unwrap().unwrap();

    let rings = stats.ring.unwrap();
    assert!(
        rings.rings >= 3 && rings.overflows > 0 && rings.full_flushes > 0,
        "{rings:?}"
    );
    assert_eq!(
        (rings.unknown_completions, stats.dropped_table_full),
        (0, 0)
    );
    assert_eq!(stats.accepted, CONNECTIONS as u64 + 1);
    let closed: Vec<_> = stats.closed.into_iter().collect();
    assert_eq!(closed, [(CloseReason::PeerClosed, CONNECTIONS as u64 + 1)]);
}
