//! The admin side of real servers: what it says, whom it shows and closes, what it refuses, and who serves it when.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{LONG, Server, eventually, for_each_engine, get, program, request, skip};
use nix::sys::signal::Signal;
use serde_json::Value;

const ANY: [&str; 2] = ["--admin", "127.0.0.1:0"];

fn json(at: &str, path: &str) -> Value {
    let (status, body) = get(at, path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn close(at: &str, id: &str) -> u16 {
    let path = format!("/connections/{id}/close");
    request(at, "POST", &path, "X-Throng: test\r\n").0
}

fn ctl(at: &str, args: &str) -> Output {
    let mut command = Command::new(program());
    command.args(["ctl", "--admin", at]);
    command.args(args.split_whitespace()).output().unwrap()
}

fn ids(listing: &Value) -> Vec<String> {
    let all = listing["connections"].as_array().unwrap();
    all.iter()
        .map(|c| c["id"].as_str().unwrap().to_owned())
        .collect()
}

/// The samples of an exposition, held against the rules of OpenMetrics 1.0 that a scraper relies on: each family is described
/// once, before its samples, which are together; a counter's end in `_total`; no sample is there twice; buckets add up; and
/// the end is marked.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let body = text.strip_suffix("# EOF\n").expect("an end");
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut family, mut all) = ("", BTreeMap::new());
    let mut buckets: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# ") {
            let (what, rest) = described.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            match what {
                "HELP" => assert!(!value.is_empty() && !kinds.contains_key(name), "{line}"),
                "TYPE" => assert_eq!(kinds.insert(name, value), None, "{line}"),
                "UNIT" => assert!(name.ends_with(value), "{line}"),
                _ => panic!("{line}"),
            }
            family = name;
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').expect("labels that end");
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (key, quoted) = label.split_once('=').unwrap();
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            assert!(key.chars().all(is_word), "{line}");
            assert!(
                quoted.len() > 2 && quoted.starts_with('"') && quoted.ends_with('"'),
                "{line}"
            );
        }
        let suffix = name
            .strip_prefix(family)
            .unwrap_or_else(|| panic!("{line} in {family}"));
        let fits = match kinds[family] {
            "counter" => suffix == "_total" && value >= 0.0,
            "gauge" => suffix.is_empty(),
            "info" => suffix == "_info" && value == 1.0,
            "histogram" => ["_sum", "_count", "_bucket"].contains(&suffix),
            _ => false,
        };
        assert!(fits, "{line}, a {}", kinds[family]);
        if suffix == "_bucket" {
            let mut others: Vec<_> = labels.split(',').collect();
            let le = others
                .iter()
                .position(|label| label.starts_with("le="))
                .unwrap();
            let le = others
                .remove(le)
                .trim_start_matches("le=")
                .trim_matches('"')
                .to_owned();
            let bound: f64 = le.parse().unwrap();
            let last = buckets
                .entry(others.join(","))
                .or_insert((f64::NEG_INFINITY, 0.0));
            assert!(bound > last.0 && value >= last.1, "{line}");
            *last = (bound, value);
        } else if suffix == "_count" {
            all.insert(format!("count of {labels}"), value);
        }
        assert_eq!(all.insert(series.to_owned(), value), None, "{line} twice");
    }
    for (labels, (bound, value)) in buckets {
        assert!(bound.is_infinite(), "{labels}");
        assert_eq!(all[&format!("count of {labels}")], value);
    }
    all
}

#[test]
fn what_the_server_does_is_scraped() {
    for_each_engine(|engine| {
        let flags = [
            "--cores",
            "0",
            "--heartbeat",
            "100ms",
            "--max-connections",
            "20",
        ];
        let server = Server::start(engine, &[&ANY[..], &flags].concat());
        let at = server.admin.as_str();
        let (_, before) = get(at, "/metrics");
        let before = samples(&before);
        let mut streams: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for _ in 0..3 {
            let mut refused = server.dial();
            let _ = refused.read(&mut [0; 10]);
        }
        for stream in &mut streams[..5] {
            stream.write_all(b"quit\n").unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
        let scrape = || samples(&get(at, "/metrics").1);
        eventually("the counts are there", || {
            let now = scrape();
            now["throng_connections{worker=\"0\"}"] == 15.0
                && now["throng_closed_total{worker=\"0\",reason=\"finished\"}"] == 5.0
                && now["throng_heartbeat_lateness_seconds_count{worker=\"0\"}"] > 20.0
        });
        let now = scrape();
        for (series, value) in [
            ("throng_ready", 1.0),
            ("throng_worker_up{worker=\"0\"}", 1.0),
            ("throng_accepted_total{worker=\"0\"}", 20.0),
            (
                "throng_refused_total{worker=\"0\",reason=\"max_connections\"}",
                3.0,
            ),
            ("throng_table_connections{worker=\"0\",table=\"0\"}", 15.0),
        ] {
            assert_eq!(now[series], value, "{engine}: {series}");
        }
        assert!(now["throng_received_bytes_total{worker=\"0\"}"] >= 25.0);
        assert_eq!(
            now.keys().any(|s| s.starts_with("throng_ring_enters")),
            engine == "uring"
        );
        for (series, value) in before
            .iter()
            .filter(|(series, _)| series.contains("_total"))
        {
            assert!(now[series] >= *value, "{series} went backwards");
        }
        let status = json(at, "/status");
        assert_eq!(
            (&status["phase"], &status["held"]),
            (&"serving".into(), &15.into())
        );
        assert_eq!(status["total"]["closed"]["finished"], 5);
        assert_eq!(status["workers"][0]["tables"][0]["held"], 15);
        assert_eq!(server.stop().0.code(), Some(0));
    });
}

#[test]
fn connections_are_listed_found_and_closed() {
    for_each_engine(|engine| {
        let flags = [
            "--cores",
            "0,0",
            "--heartbeat",
            "0",
            "--idle-timeout",
            "60s",
        ];
        let server = Server::start(engine, &[&ANY[..], &flags].concat());
        let at = server.admin.as_str();
        let mut streams: Vec<_> = (0..30).map(|_| server.connect()).collect();
        eventually("all are held", || json(at, "/status")["held"] == 30);
        let all = json(at, "/connections");
        let names = ids(&all);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 30, "{all}");
        assert!(all["next"].is_null() && all["silent_workers"].as_array().unwrap().is_empty());

        // Who says something is less idle than the others; half a line waits as input.
        std::thread::sleep(Duration::from_millis(3500));
        streams[7].write_all(b"half").unwrap();
        let waits = |one: &&Value| one["input_bytes"] == 4;
        eventually("it waits", || {
            let all = json(at, "/connections");
            all["connections"]
                .as_array()
                .unwrap()
                .iter()
                .filter(waits)
                .count()
                == 1
        });
        let idle = json(at, "/connections?idle=1s");
        assert_eq!(ids(&idle).len(), 29, "{engine}: {idle}");
        assert!(ids(&json(at, "/connections?idle=1h")).is_empty());
        assert_eq!(ids(&json(at, "/connections?state=open")).len(), 30);
        assert!(ids(&json(at, "/connections?state=sending")).is_empty());

        let first = all["connections"][0].clone();
        let from = json(at, "/connections?source=127.0.0.0/8");
        let found = if knows_peers(engine) { 30 } else { 0 };
        assert_eq!(ids(&from).len(), found);
        assert_eq!(from["unknown"], 30 - found);
        assert!(ids(&json(at, "/connections?source=10.0.0.0/8")).is_empty());

        let id = first["id"].as_str().unwrap();
        assert_eq!(json(at, &format!("/connections/{id}"))["id"], first["id"]);
        assert_eq!(
            request(at, "POST", &format!("/connections/{id}/close"), "").0,
            403
        );
        assert_eq!(close(at, id), 200);
        eventually("it is closed", || json(at, "/status")["held"] == 29);
        assert_eq!(
            (close(at, id), get(at, &format!("/connections/{id}")).0),
            (404, 404)
        );
        // Exactly one of them hears the end, and whoever comes in its place has another name.
        let ended = |stream: &mut TcpStream| {
            stream
                .set_read_timeout(Some(Duration::from_millis(20)))
                .unwrap();
            matches!(stream.read(&mut [0; 9]), Ok(0)) || stream.take_error().unwrap().is_some()
        };
        eventually("the peer hears it", || streams.iter_mut().any(ended));
        let again: Vec<_> = (0..10).map(|_| server.connect()).collect();
        assert!(
            !ids(&json(at, "/connections")).contains(&first["id"].as_str().unwrap().to_owned())
        );
        let reasons = || json(at, "/status")["total"]["closed"].clone();
        eventually("it is counted", || {
            reasons() == serde_json::json!({"operator": 1})
        });
        drop((streams, again));
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(said.contains("closed       1 by the operator"), "{said}");
    });
}

/// Whether this kernel says where a connection comes from. A direct descriptor tells from Linux 6.8 on.
fn knows_peers(engine: &str) -> bool {
    let group = |uses| {
        ring::Group::new(ring::Config {
            uses,
            ..Default::default()
        })
    };
    engine != "uring"
        || !ring::direct_descriptors_release().unwrap()
        || group(ring::Uses::Inspect).unwrap().installs()
}

/// From this address.
fn dial_from(source: [u8; 4], to: &str) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = (source, 0).into();
    socket.bind(&any.into()).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

fn peers(listing: &Value) -> BTreeSet<String> {
    let all = listing["connections"].as_array().unwrap();
    let peer = |one: &Value| one["peer"].as_str().unwrap().to_owned();
    all.iter().map(peer).collect()
}

#[test]
fn connections_are_known_by_where_they_come_from() {
    for_each_engine(|engine| {
        if !knows_peers(engine) {
            return skip("peers", "before Linux 6.8 direct descriptors have none");
        }
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let admin = directory.path().join("admin");
        let mut flags = vec!["--sandbox", "--cores", "0,0", "--admin"];
        flags.push(admin.to_str().unwrap());
        if nix::unistd::geteuid().is_root() {
            flags.extend(["--user", "54321:12345"]);
        }
        let server = Server::start(engine, &flags);
        let at = server.admin.as_str();
        let connect = |source: [u8; 4], count: usize| -> Vec<TcpStream> {
            (0..count)
                .map(|_| dial_from(source, &server.address))
                .collect()
        };
        let near = connect([127, 0, 0, 2], 300);
        let far = connect([127, 0, 0, 3], 5);
        let of = |streams: &[TcpStream]| -> BTreeSet<String> {
            let own = |stream: &TcpStream| stream.local_addr().unwrap().to_string();
            streams.iter().map(own).collect()
        };
        eventually("all are held", || json(at, "/status")["held"] == 305);
        let fds = format!("/proc/{}/fd", server.child.id());
        // Without that of whoever asks, which is closed a moment later.
        let open_fds = || {
            let count = || {
                std::thread::sleep(Duration::from_millis(20));
                // Those of another user cannot be counted.
                std::fs::read_dir(&fds).map_or(0, Iterator::count)
            };
            (0..10).map(|_| count()).min()
        };
        let before = open_fds();

        let all = json(at, "/connections?limit=1000");
        assert_eq!(peers(&all), &of(&near) | &of(&far), "{engine}");
        let found = json(at, "/connections?source=127.0.0.3/32");
        assert_eq!((peers(&found), &found["unknown"]), (of(&far), &0.into()));
        assert_eq!(found["next"], Value::Null);
        let found = json(at, "/connections?source=127.0.0.2&limit=1000");
        assert_eq!(peers(&found), of(&near));
        // A page of some, and the rest.
        let some = json(at, "/connections?source=127.0.0.3/32&limit=2");
        let rest = some["next"].as_str().unwrap();
        let rest = json(at, &format!("/connections?source=127.0.0.3&cursor={rest}"));
        assert_eq!((ids(&some).len(), ids(&rest).len()), (2, 3));
        assert_eq!(&peers(&some) | &peers(&rest), of(&far));
        for one in some["connections"].as_array().unwrap() {
            let id = one["id"].as_str().unwrap();
            assert_eq!(json(at, &format!("/connections/{id}"))["peer"], one["peer"]);
        }
        eventually("its descriptors are as before", || open_fds() == before);

        // A connection that was asked about ends when its peer is told so.
        let id = &ids(&some)[0];
        assert_eq!(close(at, id), 200);
        let ended = |mut stream: &TcpStream| {
            stream.set_nonblocking(true).unwrap();
            let mut said = [0; 4096];
            loop {
                match stream.read(&mut said) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
                }
            }
        };
        eventually("it hears it", || far.iter().any(ended));
        let left = json(at, "/connections?source=127.0.0.3/32");
        assert_eq!(ids(&left).len(), 4);
        drop((near, far));
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{engine}: {said}");
    });
}

#[test]
fn without_a_free_descriptor_a_peer_is_unknown_and_nobody_is_harmed() {
    if !knows_peers("uring") || !ring::direct_descriptors_release().unwrap() {
        return skip("no descriptors", "no direct descriptor is asked here");
    }
    let server = Server::start("uring", &[&ANY[..], &["--cores", "0"]].concat());
    let at = server.admin.as_str();
    let mut streams: Vec<_> = (0..40).map(|_| server.connect()).collect();
    eventually("all are held", || json(at, "/status")["held"] == 40);
    // Room for who asks, and some of those asked about.
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.child.id()));
    let limit = fds.unwrap().count() as u64 + 10;
    let set = Command::new("prlimit")
        .args(["--pid", &server.child.id().to_string()])
        .arg(format!("--nofile={limit}:{limit}"))
        .status();
    if !set.is_ok_and(|status| status.success()) {
        return skip("no descriptors", "prlimit is missing");
    }
    let found = json(at, "/connections?source=127.0.0.1");
    let unknown = found["unknown"].as_u64().unwrap();
    assert!(
        unknown > 0 && ids(&found).len() as u64 + unknown == 40,
        "{found}"
    );
    assert_eq!(ids(&json(at, "/connections")).len(), 40);
    for stream in &mut streams {
        stream.write_all(b"quit\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    eventually("all have gone", || json(at, "/status")["held"] == 0);
    assert_eq!(server.stop().0.code(), Some(0));
}

#[test]
fn a_peer_that_does_not_read_is_found_and_closed() {
    for_each_engine(|engine| {
        let flags = ["--protocol", "echo", "--send-buffer", "4"];
        let server = Server::start(engine, &[&ANY[..], &flags].concat());
        let at = server.admin.as_str();
        let stream = server.dial();
        stream.set_nonblocking(true).unwrap();
        eventually("it is found", || {
            while matches!((&stream).write(&[b'x'; 65_536]), Ok(1..)) {}
            !ids(&json(at, "/connections?state=sending")).is_empty()
        });
        let found = json(at, "/connections?state=sending");
        assert!(
            found["connections"][0]["output_bytes"].as_u64() > Some(0),
            "{found}"
        );
        assert_eq!(close(at, &ids(&found)[0]), 200, "{engine}");
        eventually("it is closed", || json(at, "/status")["held"] == 0);
        let waiting = || json(at, "/status")["workers"][0]["waiting_bytes"].clone();
        eventually("nothing waits", || waiting() == 0);
    });
}

#[test]
fn ten_thousand_are_paged_within_bounds() {
    const HELD: usize = 10_000;
    kernel_tuning::process::raise_nofile().unwrap();
    let limit = kernel_tuning::process::Nofile::read().unwrap().soft;
    if limit < 2 * HELD as u64 {
        return skip("ten_thousand", &format!("RLIMIT_NOFILE is {limit}"));
    }
    for_each_engine(|engine| {
        if engine == "tokio-uring" {
            return;
        }
        let flags = ["--cores", "0", "--heartbeat", "1s"];
        let server = Server::start(engine, &[&ANY[..], &flags].concat());
        let at = server.admin.as_str();
        let streams: Vec<_> = (0..HELD).map(|_| server.connect()).collect();
        eventually("all are held", || json(at, "/status")["held"] == HELD);
        let (mut names, mut cursor, mut pages) = (BTreeSet::new(), String::new(), 0);
        loop {
            let page = json(at, &format!("/connections?limit=1000{cursor}"));
            let found = ids(&page);
            assert!(found.len() <= 1000);
            pages += 1;
            names.extend(found);
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
            assert!(pages < 100, "it does not end");
        }
        assert_eq!(names.len(), HELD, "{engine}");
        // Nobody there: all are passed for one answer.
        let began = Instant::now();
        let none = json(at, "/connections?source=192.0.2.0/24");
        assert!(ids(&none).is_empty() && began.elapsed() < LONG);
        assert!(none["slots"].as_u64().unwrap() >= HELD as u64, "{none}");
        let last = ctl(at, &format!("connections --limit {} --json", HELD + 5));
        let last: Value = serde_json::from_slice(&last.stdout).unwrap();
        assert_eq!(ids(&last).len(), HELD);
        assert!(samples(&get(at, "/metrics").1)["throng_ready"] == 1.0);
        drop(streams);
    });
}

#[test]
fn bad_input_is_refused_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), "").unwrap();
    let living = Server::start("epoll", &["--admin", &path("living")]);
    for (admin, named) in [
        (taken, "in use"),
        (path("missing/admin"), "make the directory first"),
        (path("file"), "choose another path"),
        ("/sys/admin".into(), "choose what this user may open"),
        (path("living"), "another server answers there"),
        ("localhost:7070".into(), "ADDRESS:PORT"),
        ("192.0.2.1:7070".into(), "no such address"),
    ] {
        let mut command = Command::new(program());
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--engine",
            "epoll",
            "--admin",
            &admin,
        ]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{admin}: {said}");
        assert!(
            output.stdout.is_empty() && said.contains("--admin"),
            "{admin}: {said}"
        );
        assert!(said.contains(named), "{admin}: {said}");
    }
    let mut command = Command::new(program());
    command.args(["--listen", "127.0.0.1:0", "--log", "json"]);
    let output = command.env("RUST_LOG", "server=loud").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), said.lines().count()),
        (Some(2), 1),
        "{said}"
    );
    assert!(
        said.contains("server=loud") && said.contains("server=debug"),
        "{said}"
    );
    assert!(Path::new(&path("file")).exists());
    let file = std::fs::metadata(path("living")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(get(&living.admin, "/readyz"), (200, "ready\n".into()));
    assert_eq!(living.stop().0.code(), Some(0));
    assert!(!Path::new(&path("living")).exists());
}

#[test]
fn a_wrong_question_is_answered_with_the_right_one() {
    let server = Server::start("epoll", &ANY);
    let at = server.admin.as_str();
    for (method, path, status, named) in [
        ("GET", "/nothing", 404, "/metrics"),
        ("POST", "/status", 405, "use GET"),
        ("GET", "/connections/0-0-1-1/close", 405, "use POST"),
        ("DELETE", "/connections/0-0-1-1", 405, "use GET"),
        ("GET", "/connections?colour=red", 400, "colour"),
        ("GET", "/connections?limit=5000", 400, "1000"),
        ("GET", "/connections/17", 400, "0-0-17-2"),
        ("GET", "/connections/9-9-9-9", 404, "not there"),
        ("GET", "/connections//connections/0-0-1-1", 400, "0-0-17-2"),
        ("POST", "/connections/0-0-1-1/close/close", 400, "0-0-17-2"),
        ("GET", "/connections?cursor=9-0-0", 400, "no worker 9"),
        (
            "GET",
            "/connections?cursor=0-4294967295-4294967295",
            200,
            "null",
        ),
    ] {
        let (code, body) = request(at, method, path, "");
        assert_eq!(code, status, "{method} {path}: {body}");
        assert!(body.contains(named), "{method} {path}: {body}");
    }
    for (request, status, header) in [
        ("DELETE /status", 405, "\r\nallow: GET, HEAD\r\n"),
        ("GET /connections/0-0-1-1/close", 405, "\r\nallow: POST\r\n"),
    ] {
        let head = exchange(
            at,
            &format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        );
        let is_so = head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains(header);
        assert!(is_so, "{request}: {head}");
    }
    assert_eq!(server.stop().0.code(), Some(0));
}

/// What is answered to one that has said all, and says so.
fn exchange(at: &str, said: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(said.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn who_has_said_all_hears_the_answer() {
    let server = Server::start("epoll", &ANY);
    for path in ["/healthz", "/status", "/connections", "/metrics"] {
        let said = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = exchange(&server.admin, &said);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    assert_eq!(exchange(&server.admin, ""), "");
    assert_eq!(exchange(&server.admin, "GET /sta"), "");
    assert_eq!(server.stop().0.code(), Some(0));
}

#[test]
fn who_says_nothing_does_not_keep_others_waiting() {
    let server = Server::start("epoll", &ANY);
    let at = server.admin.as_str();
    let mut silent: Vec<_> = (0..16).map(|_| TcpStream::connect(at).unwrap()).collect();
    silent[0].write_all(b"GET /sta").unwrap();
    let began = Instant::now();
    assert_eq!(get(at, "/healthz"), (200, "ok\n".into()));
    // Half a second; far from the ten that one request may take.
    assert!(began.elapsed() < Duration::from_secs(5));
    for mut stream in silent {
        stream.set_read_timeout(Some(LONG)).unwrap();
        assert!(matches!(stream.read(&mut [0; 100]), Ok(_) | Err(_)));
    }
    assert_eq!(server.stop().0.code(), Some(0));
}

#[test]
fn who_goes_away_has_not_asked_more_often() {
    if let Err(why) = ring::probe() {
        return skip("who_goes_away", &why.to_string());
    }
    let flags = ["--cores", "0", "--heartbeat", "0"];
    let server = Server::start("uring", &[&ANY[..], &flags].concat());
    let at = server.admin.as_str();
    let enters = || samples(&get(at, "/metrics").1)["throng_ring_enters_total{worker=\"0\"}"];
    let (before, began) = (enters(), Instant::now());
    for _ in 0..400 {
        let mut stream = TcpStream::connect(at).unwrap();
        let said = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(said).unwrap();
        drop(stream);
        std::thread::sleep(Duration::from_millis(3));
    }
    let most = 20.0 + 4.0 * 4.0 * began.elapsed().as_secs_f64();
    let asked = enters() - before;
    assert!(asked < most, "{asked} enters; {most} at most");
    assert_eq!(server.stop().0.code(), Some(0));
}

#[test]
fn a_page_of_another_site_reads_no_peers() {
    let server = Server::start("epoll", &ANY);
    let _held = server.connect();
    let status = |path: &str, host: &str| {
        let said = format!("GET {path} HTTP/1.1\r\n{host}\r\n\r\n");
        let answer = exchange(&server.admin, &said);
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for path in ["/", "/status", "/connections", "/connections/0-0-1-1"] {
        for other in ["Host: evil.example:7070", "Host:", "Accept: */*"] {
            assert_eq!(status(path, other), "403", "{path}, {other}");
        }
        for own in ["Host: localhost:7070", "Host: [::1]"] {
            assert_ne!(status(path, own), "403", "{path}, {own}");
        }
    }
    // Whoever scrapes may know the host by its name.
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(status(path, "Host: throng-1.example:7070"), "200", "{path}");
    }
    assert_eq!(server.stop().0.code(), Some(0));
}

#[test]
fn it_works_in_the_sandbox_and_as_another_user() {
    for_each_engine(|engine| {
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let admin = directory.path().join("admin");
        let mut flags = vec!["--sandbox", "--admin", admin.to_str().unwrap()];
        let is_root = nix::unistd::geteuid().is_root();
        if is_root {
            flags.extend(["--user", "54321:12345"]);
        }
        let server = Server::start(engine, &flags);
        let at = server.admin.as_str();
        let streams: Vec<_> = (0..5).map(|_| server.connect()).collect();
        if is_root {
            assert_eq!(std::fs::metadata(at).unwrap().uid(), 54_321);
        }
        for path in [
            "/",
            "/healthz",
            "/readyz",
            "/metrics",
            "/status",
            "/connections?source=127.0.0.1",
        ] {
            assert_eq!(get(at, path).0, 200, "{engine} {path}");
        }
        let all = json(at, "/connections");
        assert_eq!(ids(&all).len(), 5);
        assert_eq!(close(at, &ids(&all)[0]), 200);
        assert_eq!(json(at, "/status")["phase"], "serving");
        drop(streams);
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{engine}: {said}");
        assert!(!admin.exists());
    });
}

#[test]
fn whoever_drains_is_not_ready() {
    let server = Server::start("epoll", &[&ANY[..], &["--drain-timeout", "4s"]].concat());
    let at = server.admin.as_str();
    let held = server.connect();
    assert_eq!(get(at, "/readyz"), (200, "ready\n".into()));
    server.signal(Signal::SIGTERM);
    eventually("it drains", || {
        get(at, "/readyz") == (503, "draining\n".into())
    });
    assert_eq!(get(at, "/healthz").0, 200);
    assert_eq!(json(at, "/status")["phase"], "draining");
    assert_eq!(samples(&get(at, "/metrics").1)["throng_ready"], 0.0);
    assert_eq!(ctl(at, "ready").status.code(), Some(1));
    drop(held);
    assert_eq!(server.end().0.code(), Some(0));
}

#[test]
fn a_successor_takes_the_admin_side_over() {
    for is_unix in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let [control, file] = ["control", "admin"].map(|name| directory.path().join(name));
        let control = control.to_str().unwrap();
        let admin = match is_unix {
            true => file.to_str().unwrap().to_owned(),
            // Free a moment ago.
            false => TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .to_string(),
        };
        let flags = [
            "--control",
            control,
            "--admin",
            &admin,
            "--drain-timeout",
            "3s",
        ];
        let old = Server::start("epoll", &flags);
        let pid = || json(&admin, "/status")["pid"].clone();
        assert_eq!(pid(), old.child.id());
        let held = old.connect();
        let mut command = Command::new(program());
        command.args(["--engine", "epoll", "--sandbox", "--takeover", control]);
        let new = Server::spawn({
            command.args(flags);
            command
        });
        assert_eq!(new.admin, admin);
        assert_eq!(
            (pid(), get(&admin, "/readyz").0),
            (new.child.id().into(), 200)
        );
        drop(held);
        assert_eq!(old.end().0.code(), Some(0));
        assert_eq!(pid(), new.child.id(), "the old one's end changes nothing");
        // A successor that has the sockets and does not start changes nothing either.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().port().to_string();
        let mut command = Command::new(program());
        command.args([
            "--engine",
            "epoll",
            "--takeover",
            control,
            "--canary-port",
            &taken,
        ]);
        assert_eq!(command.args(flags).output().unwrap().status.code(), Some(1));
        assert_eq!(
            (pid(), get(&admin, "/readyz").0),
            (new.child.id().into(), 200)
        );
        assert_eq!(new.stop().0.code(), Some(0));
        assert!(!file.exists());
    }
}

#[test]
fn ctl_says_what_there_is() {
    let server = Server::start("epoll", &[&ANY[..], &["--cores", "0"]].concat());
    let at = server.admin.as_str();
    let held: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let said = |args: &str| {
        let output = ctl(at, args);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (code, status) = said("status");
    assert_eq!(code, Some(0), "{status}");
    assert!(
        status.contains("serving") && status.contains("3 held"),
        "{status}"
    );
    assert_eq!(said("ready"), (Some(0), "ready\n".into()));
    assert!(said("metrics").1.ends_with("# EOF\n"));
    let (_, list) = said("connections");
    assert_eq!(list.lines().count(), 4, "{list}");
    assert!(list.contains("127.0.0.1:"), "{list}");
    let id = list
        .lines()
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    assert!(
        said("connections --limit 2")
            .1
            .contains("there are more: --cursor 0-0-")
    );
    assert!(
        said(&format!("inspect {id}"))
            .1
            .contains("\"state\": \"open\"")
    );
    assert_eq!(
        said(&format!("close {id}")),
        (Some(0), format!("closed {id}\n"))
    );
    let (code, gone) = said(&format!("close {id}"));
    assert!(code == Some(1) && gone.contains("not there"), "{gone}");
    let (code, unknown) = said("connections --idle 1h");
    assert!(
        code == Some(0) && unknown.contains("2 more may be meant"),
        "{unknown}"
    );
    assert_eq!(said("close 17").0, Some(2));
    drop(held);
    assert_eq!(server.stop().0.code(), Some(0));
    let output = ctl("127.0.0.1:9", "status");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && said.contains("--admin 127.0.0.1:9"),
        "{said}"
    );
}

#[test]
fn a_flood_of_one_cause_is_some_lines_and_a_count() {
    for (format, wanted) in [("text", "server=debug"), ("json", "server::stats=debug")] {
        let mut command = Command::new(program());
        command.args([
            "--engine",
            "epoll",
            "--listen",
            "127.0.0.1:0",
            "--log",
            format,
        ]);
        command.env("RUST_LOG", wanted);
        let server = Server::spawn(command);
        for _ in 0..500 {
            drop(server.connect());
        }
        let (status, said) = server.stop();
        assert_eq!(status.code(), Some(0), "{said}");
        let lines: Vec<_> = said
            .lines()
            .filter(|l| l.contains("a connection is closed"))
            .collect();
        assert!((1..250).contains(&lines.len()), "{} lines", lines.len());
        let left_out: u64 = said
            .lines()
            .filter(|line| line.contains("than are written") && line.contains("stats.rs"))
            .map(|line| {
                let at = line.find("left_out").unwrap() + "left_out".len();
                let number = line[at..].trim_start_matches(['"', ':', '=', ' ']);
                let end = number
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(number.len());
                number[..end].parse::<u64>().unwrap()
            })
            .sum();
        assert_eq!(lines.len() as u64 + left_out, 500, "{said}");
        if format == "json" {
            let line: Value = serde_json::from_str(lines[0]).unwrap();
            assert_eq!(
                (&line["level"], line["reason"].is_string()),
                (&"DEBUG".into(), true)
            );
        }
    }
}

#[cfg(feature = "burn")]
#[test]
fn a_worker_that_stalls_is_seen() {
    let flags = ["--faults", "--cores", "0,0", "--stall-timeout", "20s"];
    let server = Server::start("epoll", &[&ANY[..], &flags].concat());
    let at = server.admin.as_str();
    assert_eq!(get(at, "/healthz").0, 200);
    let mut streams: Vec<_> = (0..2).map(|_| server.connect()).collect();
    streams[0].write_all(b"stall\n").unwrap();
    eventually("it is seen", || get(at, "/healthz").0 == 503);
    let status = json(at, "/status");
    let silent = status["workers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|w| w["answers"] == false);
    assert_eq!(silent.count(), 1, "{status}");
    let now = samples(&get(at, "/metrics").1);
    let up = now["throng_worker_up{worker=\"0\"}"] + now["throng_worker_up{worker=\"1\"}"];
    assert_eq!(up, 1.0);
    let page = json(at, "/connections");
    assert_eq!(
        page["silent_workers"].as_array().unwrap().len(),
        1,
        "{page}"
    );
}
