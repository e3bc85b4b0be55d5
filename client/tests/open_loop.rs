//! Messages by a schedule: a server that stands still shows in the latency of every message that was to be sent
//! meanwhile, and none of them is left out.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

const STALL: Duration = Duration::from_millis(300);
const ACTIVE: u64 = 50;

#[test]
fn a_stall_counts_for_every_message_that_fell_into_it() {
    if !has_io_uring("a_stall_counts_for_every_message_that_fell_into_it") {
        return;
    }
    let samples = tempfile::NamedTempFile::new().unwrap();
    let summary = run(&format!(
        "{} --connections 100 --active {ACTIVE} --message-rate 2000 --protocol echo --hold 3s --sample-interval 20ms \
         --samples {}",
        stalling_echo_server(),
        samples.path().display()
    ));
    let messages = &summary["messages"];
    let open = &messages["open_loop"];
    assert_eq!(summary["ended"], "complete", "{summary}");
    assert_eq!(messages["unanswered"], 0, "{messages}");
    assert_eq!(open["is_short"], false, "{open}");
    assert!(messages["seconds"].as_f64().unwrap() >= 3.0, "{messages}");
    assert!(messages["began_seconds"].as_f64().unwrap() > 0.0);

    // 2,000/s for 3 s; a machine that is busy elsewhere may begin later, or hold longer than it was told.
    let count = |name: &str| open[name].as_u64().unwrap();
    assert!((5_000..10_000).contains(&count("due")), "{open}");
    assert_eq!(open["sent"], messages["completed"], "{open}");
    assert_eq!(count("sent") + count("owed"), count("due"));
    // Each connection may owe one whose echo is just under way; all that the stall held back were sent.
    assert!(count("owed") <= ACTIVE, "{open}");
    let owed_most = std::fs::read_to_string(samples.path())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|sample| sample["owed"].as_u64().unwrap())
        .max();
    assert!(owed_most.unwrap() >= 300, "{owed_most:?}");

    // 100 messages were to be sent in the first 50 ms of the stall, 1.7 % of all; at most one a connection, 0.8 %,
    // was sent before it or in it, and waited from then on.
    let us = |p: &Value, name: &str| p[name].as_u64().unwrap();
    assert!(us(&messages["latency_us"], "p99") >= 250_000, "{messages}");
    assert!(
        us(&open["latency_from_send_us"], "p99") < 250_000,
        "{messages}"
    );
    assert!(
        us(&open["latency_from_send_us"], "max") >= 250_000,
        "{messages}"
    );
    let by_phase = summary["latency_by_phase"].as_array().unwrap();
    let active = by_phase.iter().find(|phase| phase["phase"] == "active");
    let active = &active.unwrap()["latency_us"];
    assert!(us(&active["echo"], "p99") >= 250_000, "{active}");
    assert!(us(&active["echo-raw"], "p99") < 250_000, "{active}");
    // The client itself was not late.
    assert!(
        us(&open["client_lateness_us"], "p99") < 250_000,
        "{messages}"
    );
}

#[test]
fn a_rate_that_is_not_kept_is_said() {
    if !has_io_uring("a_rate_that_is_not_kept_is_said") {
        return;
    }
    // Accepts by its backlog, and answers nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let summary = run(&format!(
        "{target} --connections 5 --active 5 --message-rate 100 --protocol echo --hold 1s"
    ));
    let open = &summary["messages"]["open_loop"];
    assert_eq!(open["is_short"], true, "{open}");
    assert_eq!(open["asked_per_second"], 100.0);
    assert_eq!(open["sent"], 5, "{open}");
    assert!(open["owed"].as_u64().unwrap() >= 50, "{open}");
    assert_eq!(summary["messages"]["unanswered"], 5, "{summary}");
}

#[test]
fn all_is_quiet_for_as_long_as_was_asked_and_then_messages_begin() {
    if !has_io_uring("all_is_quiet_for_as_long_as_was_asked_and_then_messages_begin") {
        return;
    }
    let samples = tempfile::NamedTempFile::new().unwrap();
    let summary = run(&format!(
        "{} --connections 20 --active 5 --message-rate 200 --protocol echo --quiet-for 1s --hold 1s \
         --sample-interval 20ms --samples {}",
        stalling_echo_server(),
        samples.path().display()
    ));
    let samples = std::fs::read_to_string(samples.path()).unwrap();
    let samples: Vec<Value> = samples
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |phase: &'static str| {
        samples
            .iter()
            .filter(move |sample| sample["phase"] == phase)
    };
    assert!(of("quiet").all(|sample| sample["messages"] == 0 && sample["established"] == 20));
    let began_ms = |phase| of(phase).next().unwrap()["t_ms"].as_u64().unwrap();
    assert!(began_ms("active") - began_ms("quiet") >= 1_000);
    let messages = &summary["messages"];
    assert!(messages["completed"].as_u64().unwrap() >= 150, "{messages}");
    assert!(
        messages["began_seconds"].as_f64().unwrap() >= 1.0,
        "{messages}"
    );
}

fn has_io_uring(test: &str) -> bool {
    let Err(why) = ring::probe() else { return true };
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    false
}

/// The summary of a client with `args`.
fn run(args: &str) -> Value {
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!("throng-client {args} --json {}", json.path().display());
    client::cli::main(args.split_whitespace().map(OsString::from));
    serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap()
}

/// Echoes; a second after its first byte it does nothing for [`STALL`], once.
fn stalling_echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut streams: Vec<TcpStream> = Vec::new();
        let (mut first_byte, mut has_stalled) = (None, false);
        loop {
            wait_for_any(&listener, &streams);
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).unwrap();
                stream.set_nodelay(true).unwrap();
                streams.push(stream);
            }
            streams.retain_mut(|stream| {
                let mut bytes = [0; 4096];
                match stream.read(&mut bytes) {
                    Ok(0) => false,
                    Ok(count) => {
                        first_byte.get_or_insert_with(Instant::now);
                        stream.write_all(&bytes[..count]).is_ok()
                    }
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                }
            });
            if !has_stalled
                && first_byte.is_some_and(|first| first.elapsed() > Duration::from_secs(1))
            {
                has_stalled = true;
                std::thread::sleep(STALL);
            }
        }
    });
    address
}

fn wait_for_any(listener: &TcpListener, streams: &[TcpStream]) {
    let fds = streams
        .iter()
        .map(AsFd::as_fd)
        .chain(std::iter::once(listener.as_fd()));
    let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // The end of the client's rings interrupts calls.
    let _ = poll(&mut fds, PollTimeout::from(100u8));
}
