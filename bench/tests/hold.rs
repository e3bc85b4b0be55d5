//! Connections held, step by step, and what they take of the kernel's memory: over real processes, one run at a time.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Server, eventually, has_engine, run, spawn, text, throng};
use kernel_tuning::host::{Memory, slab_by_cache};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Another run on this machine may hold the lock for three minutes.
const PATIENCE: Duration = Duration::from_secs(300);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `throng-bench COMMAND FLAGS` with a report; gives the exit code, what it said, and the report.
fn bench(command: &str, flags: &[&str]) -> (Option<i32>, String, Value) {
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut flags = flags.to_vec();
    flags.extend(["--report", report.path().to_str().unwrap()]);
    let output = run(throng(command, &flags), PATIENCE);
    let json = std::fs::read(report.path()).unwrap();
    let json = serde_json::from_slice(&json).unwrap_or(Value::Null);
    (output.status.code(), text(&output), json)
}

#[test]
fn steps_come_on_top_and_all_are_held() {
    if !has_engine("uring", "steps_come_on_top_and_all_are_held") {
        return;
    }
    let _alone = alone();
    let flags = "--connections 500 --hold 2s --heartbeat 500ms --step 250 --up-to 1000";
    let (code, said, report) = bench("hold", &flags.split(' ').collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{said}");
    let steps = report["steps"].as_array().unwrap();
    let figure = |name: &str| -> Vec<u64> {
        let figures = steps.iter().map(|step| step[name].as_u64().unwrap());
        figures.collect()
    };
    assert_eq!(figure("established"), [500, 750, 1_000], "{said}");
    assert_eq!(figure("lost"), [0, 0, 0]);
    for step in steps {
        // Two sockets at least; what else came depends on what else runs here.
        assert!(
            step["growth"]["slab_pages"].as_f64().unwrap() > 2_000.0,
            "{step}"
        );
        assert!(step["server_rss_bytes"].as_u64().unwrap() > 0);
        assert!(step["worst"]["available_lowest_bytes"].as_u64().unwrap() > 1 << 30);
        assert!(step["worst"]["files_most"].as_u64().unwrap() > 0);
    }
    assert_eq!(report["stopped_by"], Value::Null);
    assert_eq!(report["servers"][0]["held_max"], 1_000);
    assert!(report["servers"][0]["heartbeats_sent"].as_u64().unwrap() > 1_000);
    assert_eq!(report["clients"].as_array().unwrap().len(), 3);
    assert!(report["close"]["sockets_gone_ms"].is_u64(), "{said}");
    for word in [
        "1,000 established",
        "heartbeats late, inside the server",
        "fs.file-max",
    ] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    match slab_by_cache() {
        Ok(_) => assert!(said.contains("sock_inode_cache"), "{said}"),
        Err(_) => assert!(said.contains("run as root"), "{said}"),
    }
}

#[test]
fn engines_with_open_files_hold_too() {
    if !has_engine("uring", "engines_with_open_files_hold_too") {
        return;
    }
    let _alone = alone();
    for engine in ["epoll", "tokio-uring"] {
        let flags = [
            "--connections",
            "200",
            "--hold",
            "2s",
            "--heartbeat",
            "1s",
            "--engine",
            engine,
        ];
        let (code, said, report) = bench("hold", &flags);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(report["servers"][0]["engine"], engine);
        assert_eq!(report["servers"][0]["held_max"], 200);
    }
}

#[test]
fn messages_follow_the_hold() {
    if !has_engine("uring", "messages_follow_the_hold") {
        return;
    }
    let _alone = alone();
    let flags = "--connections 300 --hold 2s --heartbeat 1s --then-active 50 --message-rate 500 --active-for 2s";
    let (code, said, report) = bench("hold", &flags.split(' ').collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{said}");
    let messages = &report["clients"][0]["messages"];
    assert_eq!(messages["active"], 50);
    assert!(messages["completed"].as_u64().unwrap() >= 500, "{messages}");
    assert_eq!(messages["unanswered"], 0);
    assert!(messages["seconds"].as_f64().unwrap() < 60.0, "{messages}");
    assert!(said.contains("echo, from when it was due"), "{said}");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_starts() {
    let _alone = alone();
    let flags = ["--connections", "50000000"];
    let (code, said, report) = bench("hold", &flags);
    assert_eq!((code, report), (Some(1), Value::Null), "{said}");
    for word in [
        "50,000,000 connections do not fit",
        "available",
        "would fit",
    ] {
        assert!(said.contains(word), "no {word} in {said}");
    }
}

/// Memory that this test takes is memory that the run has no more.
#[test]
fn a_search_that_meets_the_end_of_memory_stops_in_good_order_and_has_its_result() {
    let name = "a_search_that_meets_the_end_of_memory_stops_in_good_order_and_has_its_result";
    let flags = "--connections 300 --hold 2s --heartbeat 1s --step 100 --up-to 20000";
    let Some((code, said, report)) = with_memory_taken(name, flags) else {
        return;
    };
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["stopped_by"]["limit"], "memory", "{said}");
    let held = report["steps"][0]["established"].as_u64();
    assert_eq!(held, Some(300), "{said}");
    assert!(said.contains("Stopped by memory"), "{said}");
    closed_in_good_order(&report);
}

#[test]
fn a_hold_that_meets_the_end_of_memory_stops_in_good_order_and_has_failed() {
    let name = "a_hold_that_meets_the_end_of_memory_stops_in_good_order_and_has_failed";
    let flags = "--connections 300 --hold 5m --heartbeat 1s";
    let Some((code, said, report)) = with_memory_taken(name, flags) else {
        return;
    };
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(report["stopped_by"]["limit"], "memory", "{said}");
    assert!(
        said.contains("holding 300 connections: stopped by memory"),
        "{said}"
    );
    closed_in_good_order(&report);
}

fn closed_in_good_order(report: &Value) {
    let close = &report["close"];
    assert!(close["connections"].as_u64().unwrap() >= 300, "{close}");
    assert!(close["sockets_gone_ms"].is_u64(), "{close}");
    let clients = report["clients"].as_array().unwrap();
    assert!(
        clients
            .iter()
            .all(|client| client["ended"] == "interrupted")
    );
    assert!(clients.iter().all(|client| client["lost_while_held"] == 0));
    assert_eq!(report["servers"][0]["dropped_table_full"], 0);
}

/// A process that is killed when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a hold that keeps nearly all memory free; once it has connections, takes more and more of what is left.
fn with_memory_taken(test: &str, flags: &str) -> Option<(Option<i32>, String, Value)> {
    const PIECE_BYTES: usize = 128 << 20;
    const MARGIN_BYTES: u64 = 2 << 30;
    if !has_engine("uring", test) {
        return None;
    }
    let _alone = alone();
    let available = Memory::read().unwrap().available_bytes;
    if available < 3 * MARGIN_BYTES {
        common::skip(test, "less than 6 GiB of memory are available");
        return None;
    }
    let keep_free = (available - MARGIN_BYTES).to_string();
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut flags: Vec<&str> = flags.split(' ').collect();
    flags.extend([
        "--keep-free",
        &keep_free,
        "--report",
        report.path().to_str().unwrap(),
    ]);
    let mut running = Running(spawn(throng("hold", &flags)));
    let stdout = BufReader::new(running.0.stdout.take().unwrap());
    let (lines, said) = channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let until = Instant::now() + PATIENCE;
    let mut all = String::new();
    let mut taken: Vec<Vec<u8>> = Vec::new();
    let (mut began, is_search) = (None, flags.contains(&"--up-to"));
    while let Some(more) = match said.recv_timeout(Duration::from_millis(100)) {
        Ok(line) => Some(Some(line)),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Some(None),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
    } {
        assert!(Instant::now() < until, "it does not end: {all}");
        if let Some(line) = more {
            // A hold says nothing until it is over; some seconds after its plan it has begun.
            let has_begun =
                line.contains("established") || line.contains("fs.file-max") && !is_search;
            if has_begun && began.is_none() {
                let wait = if is_search { 0 } else { 4 };
                began = Some(Instant::now() + Duration::from_secs(wait));
            }
            all += &(line + "\n");
        }
        let enough = taken.len() * PIECE_BYTES > 2 * MARGIN_BYTES as usize;
        if began.is_some_and(|began| Instant::now() > began) && !enough && !all.contains("closed") {
            taken.push(vec![1; PIECE_BYTES]);
        }
    }
    drop(taken);
    let status = common::wait(&mut running.0, Duration::from_secs(20)).unwrap();
    let mut stderr = running.0.stderr.take().unwrap();
    stderr.read_to_string(&mut all).unwrap();
    let json = std::fs::read(report.path()).unwrap();
    Some((
        status.code(),
        all,
        serde_json::from_slice(&json).unwrap_or(Value::Null),
    ))
}

#[test]
fn an_interrupted_hold_closes_what_it_opened() {
    if !has_engine("uring", "an_interrupted_hold_closes_what_it_opened") {
        return;
    }
    let _alone = alone();
    let report = tempfile::NamedTempFile::new().unwrap();
    let path = report.path().to_str().unwrap();
    let flags = ["--connections", "300", "--hold", "5m", "--report", path];
    let running = spawn(throng("hold", &flags));
    let bench = running.id();
    let mut children = Vec::new();
    eventually("server and client run", PATIENCE, || {
        children = common::children_of(bench);
        children.len() >= 2
    });
    kill(Pid::from_raw(bench as i32), Signal::SIGINT).unwrap();
    let output = common::finish(running, Duration::from_secs(60));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("interrupted"), "{}", text(&output));
    assert!(children.iter().all(|pid| !common::is_running(*pid)));
    let json: Value = serde_json::from_slice(&std::fs::read(report.path()).unwrap()).unwrap();
    assert!(json["close"].is_object());
    assert_eq!(json["partial"], true);
}

#[test]
fn memory_is_measured_beside_a_bare_socket() {
    if !has_engine("uring", "memory_is_measured_beside_a_bare_socket") {
        return;
    }
    let _alone = alone();
    let flags = ["--connections", "400", "--rounds", "1"];
    let (code, said, report) = bench("memory", &flags);
    assert_eq!(code, Some(0), "{said}");
    let kept = report["kept"].as_array().unwrap();
    assert_eq!(kept.len(), 5);
    for kept in kept {
        assert!(
            kept["growth"]["slab_pages"].as_f64().unwrap() > 2_000.0,
            "{kept}"
        );
        assert_eq!(
            kept["growth"]["caches"].is_object(),
            slab_by_cache().is_ok()
        );
        for what in [
            "server_pss",
            "server_page_tables",
            "client_pss",
            "client_page_tables",
        ] {
            assert!(kept[what].is_number(), "no {what} in {kept}");
        }
    }
    let sides = report["sides"].as_array().unwrap();
    assert_eq!(sides.len(), 5);
    // A socket, its inode and its file, whatever else this machine does.
    let bare = &sides[0]["kernel"]["median"];
    assert!(bare.as_f64().unwrap() > 1_000.0, "{bare}");
    for word in [
        "bare",
        "uring",
        "epoll",
        "tokio-uring",
        "above the bare socket",
        "one bare side",
        "uring server",
        "One side: slab is of the whole host",
    ] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    if slab_by_cache().is_err() {
        assert!(said.contains("run as root"), "{said}");
    }
}

#[test]
fn a_bare_server_keeps_what_it_accepts_and_says_nothing() {
    let summary = tempfile::NamedTempFile::new().unwrap();
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--json",
        summary.path().to_str().unwrap(),
    ];
    let server = Server::spawn(throng("bare", &flags));
    let streams: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for mut stream in &streams {
        std::io::Write::write_all(&mut stream, b"hello\r\n").unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    for stream in &streams {
        stream.set_nonblocking(true).unwrap();
        let said = (&*stream).read(&mut [0; 10]);
        assert_eq!(said.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    assert_eq!(common::established(server.address.port()), 100);
    let (status, said) = server.stop(Duration::from_secs(10));
    assert!(status.success(), "{said}");
    let summary: Value = serde_json::from_slice(&std::fs::read(summary.path()).unwrap()).unwrap();
    assert_eq!(summary["accepted"], 100);
}
