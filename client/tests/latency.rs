//! What took how long: the interval log holds the whole run, also one that was interrupted; a connect that waits in the
//! client is told from one that waits for the server; how busy the client was is said.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

const BEAT: Duration = Duration::from_millis(100);

#[test]
fn the_intervals_of_a_log_add_up_to_the_run() {
    if !common::has_io_uring("the_intervals_of_a_log_add_up_to_the_run") {
        return;
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let before = SystemTime::now();
    let summary = common::run(&format!(
        "{} --connections 30 --rate 100 --active 10 --message-rate 500 --churn 5 --heartbeat 100ms --quiet-for 300ms \
         --hold 2s --sample-interval 100ms --hlog {}",
        line_server(),
        log.path().display()
    ));
    let log = Log::read(log.path());
    assert_eq!(summary["ended"], "complete", "{summary}");
    let since = log.start.unwrap();
    let earliest = before.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!(since + Duration::from_millis(1) >= earliest);
    assert!(since < earliest + Duration::from_secs(60));

    let open = &summary["messages"]["open_loop"];
    let churn = &summary["churn"];
    for (tag, whole) in [
        ("connect", &summary["connect_latency_us"]),
        ("connect-late", &summary["connect_lateness_us"]),
        ("echo", &summary["messages"]["latency_us"]),
        ("echo-raw", &open["latency_from_send_us"]),
        ("send-late", &open["client_lateness_us"]),
        ("heartbeat", &summary["heartbeats"]["lateness_us"]),
        ("cycle", &churn["cycle_us"]),
        ("cycle-connect", &churn["connect_us"]),
    ] {
        let sum = &log.sums[tag];
        assert!(!sum.is_empty(), "{tag}");
        assert_eq!(whole["count"], sum.len(), "{tag}");
        assert_eq!(whole["max"], sum.max() / 1000, "{tag}");
        assert_eq!(whole["p99"], sum.value_at_quantile(0.99) / 1000, "{tag}");
        let by_phase = summary["latency_by_phase"].as_array().unwrap();
        let in_phases = by_phase
            .iter()
            .filter_map(|phase| phase["latency_us"][tag]["count"].as_u64());
        assert_eq!(in_phases.sum::<u64>(), sum.len(), "{tag}");
    }
    assert_eq!(log.sums["connect"].len(), 30);
    assert_eq!(summary["messages"]["completed"], log.sums["echo"].len());
    assert_eq!(open["due"], log.sums["send-late"].len());
    assert_eq!(churn["cycles"], log.sums["cycle"].len());

    // What a phase is for is in it, and nowhere before.
    let phase = |name| {
        let phases = summary["latency_by_phase"].as_array().unwrap();
        let found = phases.iter().find(|phase| phase["phase"] == name);
        &found.unwrap()["latency_us"]
    };
    assert_eq!(phase("ramp")["connect"]["count"], 30);
    assert!(phase("quiet")["echo"].is_null() && phase("active")["connect"].is_null());
    assert!(phase("quiet")["heartbeat"]["count"].as_u64().unwrap() >= 30);
    assert!(phase("active")["echo"]["count"].as_u64().unwrap() >= 500);

    // Two seconds of echoes in intervals of 100 ms, or somewhat longer ones, each after the other.
    let echoes = &log.intervals["echo"];
    assert!(echoes.len() >= 5, "{echoes:?}");
    for pair in echoes.windows(2) {
        let ((from, lasted), (next, _)) = (pair[0], pair[1]);
        assert!(from + lasted <= next + Duration::from_millis(2), "{pair:?}");
    }
}

#[test]
fn a_log_is_whole_however_the_run_ends() {
    if !common::has_io_uring("a_log_is_whole_however_the_run_ends") {
        return;
    }
    let json = tempfile::NamedTempFile::new().unwrap();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut client = Command::new(env!("CARGO_BIN_EXE_throng-client"))
            .arg(line_server().to_string())
            .args("--connections 20 --active 10 --hold 60s --sample-interval 50ms".split(' '))
            .arg("--hlog")
            .arg(log.path())
            .arg("--json")
            .arg(json.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while Log::read(log.path()).intervals("echo") < 3 {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(20));
        }
        kill(Pid::from_raw(client.id() as i32), signal).unwrap();
        end(&mut client);
        let log = Log::read(log.path());
        assert!(log.intervals("echo") >= 3);
        if signal == Signal::SIGINT {
            let summary: Value =
                serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
            assert_eq!(summary["ended"], "interrupted");
            assert_eq!(log.sums["connect"].len(), 20);
            assert_eq!(summary["messages"]["completed"], log.sums["echo"].len());
        }
    }
}

#[test]
fn a_connect_that_queues_in_the_client_is_told_from_one_that_waits_for_the_server() {
    if !common::has_io_uring(
        "a_connect_that_queues_in_the_client_is_told_from_one_that_waits_for_the_server",
    ) {
        return;
    }
    let summary = common::run(&format!(
        "{} --connections 100 --rate 200 --concurrency 4 --cores {} --protocol echo --hold 0s",
        server_full_at_first(),
        first_core()
    ));
    assert_eq!(summary["established"], 100, "{summary}");
    let us = |field: &str, name: &str| summary[field][name].as_u64().unwrap();
    // The few in flight waited a second for their SYN to be sent again; all others queued for it in the client.
    assert!(us("connect_latency_us", "max") >= 900_000, "{summary}");
    assert!(us("connect_latency_us", "p50") < 500_000, "{summary}");
    assert!(us("connect_lateness_us", "p50") >= 500_000, "{summary}");
    assert_eq!(us("connect_lateness_us", "count"), 100);

    let unpaced = common::run(&format!(
        "{} --connections 10 --protocol echo --hold 0s",
        common::silent_server("127.0.0.1:0")
    ));
    assert_eq!(unpaced["connect_latency_us"]["count"], 10);
    assert!(unpaced["connect_lateness_us"].is_null(), "{unpaced}");
}

#[test]
fn how_busy_each_worker_was_is_said_and_an_idle_one_is_no_bottleneck() {
    if !common::has_io_uring("how_busy_each_worker_was_is_said_and_an_idle_one_is_no_bottleneck") {
        return;
    }
    let waiting = common::run(&format!(
        "{} --connections 10 --heartbeat 100ms --hold 1s",
        line_server()
    ));
    let load = &waiting["load"];
    let cores = waiting["config"]["cores"].as_array().unwrap();
    let workers = load["workers"].as_array().unwrap();
    assert_eq!(workers.len(), cores.len());
    for (worker, core) in workers.iter().zip(cores) {
        assert_eq!(&worker["cpu"], core);
        assert!(worker["busy_share"].as_f64().unwrap() < 0.5, "{load}");
        assert_eq!(worker["busy_share"], worker["busy_share_by_phase"]["hold"]);
    }
    assert!(load["bottleneck"].is_null(), "{load}");

    let working = common::run(&format!(
        "{} --connections 10 --active 10 --heartbeat 100ms --hold 1s",
        line_server()
    ));
    let load = &working["load"];
    let share = |worker: &Value, name: &str| worker[name].as_f64().unwrap();
    let workers = load["workers"].as_array().unwrap();
    assert!(
        workers
            .iter()
            .any(|worker| share(worker, "busy_share") > 0.0)
    );
    let is_full = |worker| share(worker, "busy_share") + share(worker, "waited_share") >= 0.9;
    assert_eq!(
        load["bottleneck"].is_string(),
        workers.iter().any(is_full),
        "{load}"
    );
}

/// A log, read with the reader of the library.
struct Log {
    start: Option<Duration>,
    sums: BTreeMap<String, Histogram<u64>>,
    /// By tag: when each began, and how long it was.
    intervals: BTreeMap<String, Vec<(Duration, Duration)>>,
}

impl Log {
    fn read(path: &Path) -> Log {
        let bytes = std::fs::read(path).unwrap();
        let mut log = Log {
            start: None,
            sums: BTreeMap::new(),
            intervals: BTreeMap::new(),
        };
        let mut deserializer = Deserializer::new();
        for entry in IntervalLogIterator::new(&bytes) {
            let interval = match entry.unwrap() {
                LogEntry::StartTime(start) | LogEntry::BaseTime(start) => {
                    assert!(log.start.is_none_or(|other| other == start));
                    log.start = Some(start);
                    continue;
                }
                LogEntry::Interval(interval) => interval,
            };
            let bytes = STANDARD.decode(interval.encoded_histogram()).unwrap();
            let histogram: Histogram<u64> = deserializer.deserialize(&mut &bytes[..]).unwrap();
            let tag = interval.tag().unwrap().as_str().to_owned();
            log.sums
                .entry(tag.clone())
                .or_insert_with(|| Histogram::new_from(&histogram))
                .add(&histogram)
                .unwrap();
            log.intervals
                .entry(tag)
                .or_default()
                .push((interval.start_timestamp(), interval.duration()));
        }
        log
    }

    fn intervals(&self, tag: &str) -> usize {
        self.intervals.get(tag).map_or(0, Vec::len)
    }
}

fn first_core() -> usize {
    kernel_tuning::process::affinity().unwrap()[0]
}

fn end(client: &mut Child) {
    let begun = Instant::now();
    while client.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Greets, echoes, and sends a heartbeat every [`BEAT`].
fn line_server() -> SocketAddr {
    common::stub(|mut stream, _| _ = serve_lines(&mut stream))
}

fn serve_lines(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(wire::line::GREETING)?;
    let mut next = Instant::now() + BEAT;
    let (mut bytes, mut is_between) = ([0; 4096], true);
    loop {
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() && is_between {
            stream.write_all(wire::line::HEARTBEAT)?;
            next += BEAT;
            continue;
        }
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                stream.write_all(&bytes[..count])?;
                is_between = bytes[count - 1] == b'\n';
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Has room for few connections, and accepts none in its first half second.
fn server_full_at_first() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    socket.listen(1).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        let mut held = Vec::new();
        while let Ok((stream, _)) = socket.accept() {
            held.push(stream);
        }
    });
    address
}
