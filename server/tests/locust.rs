//! A real Locust with `deploy/locust/locustfile.py`: it counts what the server counts, and names what goes wrong by its
//! cause.
//!
//! With THRONG_LOCUST=1 Locust is installed for the test, in a venv that is gone with it; otherwise the one of PATH is
//! taken, and where there is none nothing is tested, which is said.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{LONG, Server, for_each_engine, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use wire::line::{GREETING, HEARTBEAT};

const LOCUSTFILE: &str = include_str!("../../deploy/locust/locustfile.py");
const REQUIREMENTS: &str = include_str!("../../deploy/locust/requirements.txt");
const INSTALL: Duration = Duration::from_secs(300);

/// One test, so that Locust is installed once and gone with it.
#[test]
fn a_real_locust_is_right_about_what_it_sees() {
    let Some(locust) = Locust::get() else {
        return skip(
            "a_real_locust_is_right_about_what_it_sees",
            "no locust on PATH; THRONG_LOCUST=1 installs one for the test",
        );
    };
    its_counts_are_those_of_the_server(&locust);
    a_server_that_dies_is_seen_by_its_causes(&locust);
    a_server_that_is_told_to_stop_is_left_in_good_order(&locust);
    a_server_that_breaks_its_promises_is_found_out(&locust);
    bad_options_are_refused_before_anything_starts(&locust);
}

fn its_counts_are_those_of_the_server(locust: &Locust) {
    for_each_engine(|engine| {
        let json = tempfile::NamedTempFile::new().unwrap();
        let path = json.path().to_str().unwrap();
        let server = Server::start(engine, &["--heartbeat", "500ms", "--json", path]);
        let run = locust.start(
            &server.address,
            "--users 50 --spawn-rate 50 --source 127.1.0.0/28 --message-bytes 100 \
             --message-interval 0.1 --heartbeat 0.5 --heartbeat-grace 30 --answer-timeout 30",
        );
        run.until("echo", |requests, _| requests >= 200);
        run.until("heartbeat", |requests, _| requests >= 100);
        let seen = run.stop();
        let (_, said) = server.stop();
        let summary: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(seen.failures, BTreeMap::new(), "{engine}: {}", seen.said);
        assert_eq!(seen.exit_code, Some(0), "{engine}: {}", seen.said);

        let requests = |name: &str| seen.requests.get(name).copied().unwrap_or_default();
        assert_eq!(requests("connect"), 50, "{engine}: {seen:?}");
        assert_eq!(requests("greeting"), 50);
        assert_eq!(requests("quit"), 50);
        assert_eq!(summary["accepted"], 50, "{said}");
        assert_eq!(summary["closed"], serde_json::json!({"finished": 50}));
        assert_eq!(summary["heartbeats_sent"], requests("heartbeat"), "{said}");
        let quits = "quit\n".len() as u64 * 50;
        assert_eq!(summary["bytes_in"], requests("echo") * 100 + quits);
        assert_eq!(summary["bytes_out"], seen.bytes, "{said}");
    });
}

fn a_server_that_dies_is_seen_by_its_causes(locust: &Locust) {
    for_each_engine(|engine| {
        let mut server = Server::start(engine, &["--heartbeat", "500ms"]);
        let run = locust.start(
            &server.address,
            "--users 50 --spawn-rate 50 --message-interval 0.1 --heartbeat 0.5 --heartbeat-grace 30",
        );
        run.until("echo", |requests, _| requests >= 200);
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        run.until("connect", |_, failures| failures >= 50);
        let seen = run.stop();
        assert_eq!(seen.exit_code, Some(1), "{engine}: {}", seen.said);
        assert!(seen.requests["echo"] > 0, "{engine}: {seen:?}");
        let lost: u64 = ["greeting", "echo", "hold"]
            .iter()
            .flat_map(|name| {
                ["closed by the server", "ConnectionResetError"].map(|why| (name, why))
            })
            .map(|(name, cause)| seen.failed(name, cause))
            .sum();
        assert_eq!(lost, 50, "{engine}: {seen:?}");
        assert!(
            seen.failed("connect", "ConnectionRefusedError") >= 50,
            "{engine}: {seen:?}"
        );
    });
}

fn a_server_that_is_told_to_stop_is_left_in_good_order(locust: &Locust) {
    let server = Server::start("epoll", &["--drain-timeout", "20s"]);
    let run = locust.start(
        &server.address,
        "--users 20 --spawn-rate 20 --message-interval 0.1 --heartbeat 0 --answer-timeout 30",
    );
    run.until("echo", |requests, _| requests >= 100);
    let (status, said) = server.stop();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("20 after quit"), "{said}");
    run.until("connect", |_, failures| failures >= 20);
    let seen = run.stop();
    for name in ["farewell", "quit"] {
        assert_eq!(seen.requests.get(name), Some(&20), "{seen:?}");
    }
    let refused = seen.failed("connect", "ConnectionRefusedError");
    assert!(refused >= 20, "{seen:?}");
    assert_eq!(seen.failures.values().sum::<u64>(), refused, "{seen:?}");
}

fn a_server_that_breaks_its_promises_is_found_out(locust: &Locust) {
    let flags = "--users 5 --spawn-rate 5 --heartbeat 0.5 --heartbeat-grace 0.5 --answer-timeout 2";
    type Serve = fn(TcpStream);
    let cases: [(&str, &str, Serve); 5] = [
        ("greeting", "greeting not as promised", |mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n");
            let _ = stream.read(&mut [0; 100]);
        }),
        ("greeting", "no answer within", |mut stream| {
            let _ = stream.read(&mut [0; 100]);
        }),
        ("echo", "wrong echo", |mut stream| {
            let _ = stream.write_all(GREETING);
            let mut line = [0; 64];
            // A heartbeat before the echo is as it should be.
            while stream.read_exact(&mut line).is_ok() {
                line[10] = b'!';
                let _ = stream.write_all(&[HEARTBEAT, &line].concat());
            }
        }),
        ("heartbeat", "heartbeat overdue", |mut stream| {
            let _ = stream.write_all(GREETING);
            let mut line = [0; 64];
            while stream.read_exact(&mut line).is_ok() {
                let _ = stream.write_all(&line);
            }
        }),
        ("echo", "closed by the server", |mut stream| {
            let _ = stream.write_all(GREETING);
            let _ = stream.read_exact(&mut [0; 64]);
        }),
    ];
    let runs = cases.map(|(name, cause, serve)| {
        let address = stub(serve);
        (name, cause, locust.start(&address, flags))
    });
    for (name, cause, run) in runs {
        run.until(name, |_, failures| failures >= 5);
        let seen = run.stop();
        assert!(seen.failed(name, cause) > 0, "{name}, {cause}: {seen:?}");
        assert_eq!(seen.exit_code, Some(1), "{}", seen.said);
    }
}

fn bad_options_are_refused_before_anything_starts(locust: &Locust) {
    for (target, flags, said) in [
        ("http://localhost", "", "-H HOST:PORT"),
        ("127.0.0.1:7", "--message-bytes 5", "12 to 65536 bytes"),
        ("127.0.0.1:7", "--source 127.0.0.0/8", "addresses"),
        ("127.0.0.1:7", "--heartbeat -1", "0 or more"),
    ] {
        let seen = locust.start(target, flags).end();
        assert_eq!(seen.exit_code, Some(2), "{}", seen.said);
        assert!(seen.said.contains(said), "{}", seen.said);
        assert_eq!(seen.requests, BTreeMap::new());
    }
}

/// The program that is tested with.
struct Locust {
    program: PathBuf,
    _venv: Option<TempDir>,
}

impl Locust {
    /// One that is installed, where that is asked for, or that of PATH.
    fn get() -> Option<Locust> {
        let asked = std::env::var_os("THRONG_LOCUST").is_some_and(|value| value == "1");
        asked.then(Locust::install).or_else(Locust::of_path)
    }

    fn of_path() -> Option<Locust> {
        let path = std::env::var_os("PATH")?;
        let program = std::env::split_paths(&path)
            .map(|directory| directory.join("locust"))
            .find(|program| program.is_file())?;
        Some(Locust {
            program,
            _venv: None,
        })
    }

    /// From Python's registry. Fails loudly, as it was asked for.
    fn install() -> Locust {
        let venv = tempfile::tempdir().unwrap();
        let requirements = venv.path().join("requirements.txt");
        fs::write(&requirements, REQUIREMENTS).unwrap();
        let mut create = Command::new("python3");
        create.args(["-m", "venv"]).arg(venv.path().join("venv"));
        let mut pip = Command::new(venv.path().join("venv/bin/pip"));
        pip.args(["install", "--quiet", "--requirement"])
            .arg(&requirements);
        for mut command in [create, pip] {
            let log = tempfile::NamedTempFile::new().unwrap();
            let mut child = spawn(&mut command, log.path());
            let exit_code = wait(&mut child, INSTALL);
            let said = fs::read_to_string(log.path()).unwrap();
            assert_eq!(exit_code, Some(0), "{command:?}: {said}");
        }
        Locust {
            program: venv.path().join("venv/bin/locust"),
            _venv: Some(venv),
        }
    }

    fn start(&self, target: &str, flags: &str) -> Run {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("locustfile.py"), LOCUSTFILE).unwrap();
        let mut command = Command::new(&self.program);
        command
            .current_dir(&directory)
            .args(["--headless", "--json", "--host", target])
            .args(flags.split_whitespace());
        let child = spawn(&mut command, &directory.path().join("log"));
        Run { child, directory }
    }
}

/// A Locust that runs.
struct Run {
    child: Killed,
    directory: TempDir,
}

impl Run {
    /// Waits until its counts of `name`, requests and failures among them, are `enough`. It tells them every two seconds.
    fn until(&self, name: &str, enough: impl Fn(u64, u64) -> bool) {
        let began = Instant::now();
        loop {
            let said = self.said();
            // line  connect  15  15(100.00%) | …
            let counts = said.lines().rev().find_map(|line| {
                let mut words = line.split_whitespace();
                let is_it = words.next() == Some("line") && words.next() == Some(name);
                let requests = words.next().filter(|_| is_it)?.parse().ok()?;
                let failures = words.next()?.split_once('(')?.0.parse().ok()?;
                Some((requests, failures))
            });
            if counts.is_some_and(|(requests, failures)| enough(requests, failures)) {
                return;
            }
            assert!(began.elapsed() < 2 * LONG, "{name}: {said}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Has it stop its users and end.
    fn stop(self) -> Seen {
        kill(Pid::from_raw(self.child.0.id() as i32), Signal::SIGTERM).unwrap();
        self.end()
    }

    /// Waits until it ends by itself.
    fn end(mut self) -> Seen {
        let exit_code = wait(&mut self.child, 2 * LONG);
        let said = self.said();
        let mut seen = Seen {
            exit_code,
            ..Seen::default()
        };
        // Its files of CSV lack what came in the last second; what it says at its end lacks nothing.
        let lines = || said.lines().skip_while(|line| *line != "[");
        let json: String = lines().take_while(|line| *line != "]").collect();
        let stats: Vec<serde_json::Value> =
            serde_json::from_str(&format!("{json}]")).unwrap_or_default();
        for entry in stats {
            let name = entry["name"].as_str().unwrap().to_owned();
            let requests = entry["num_requests"].as_u64().unwrap();
            let failures = entry["num_failures"].as_u64().unwrap();
            seen.bytes += entry["total_content_length"].as_u64().unwrap();
            seen.requests.insert(name, requests - failures);
        }
        let report = lines().skip_while(|line| !line.starts_with("Error report"));
        for line in report {
            let Some((count, failure)) = line.split_once(' ') else {
                continue;
            };
            if let (Ok(count), Some(failure)) =
                (count.parse(), failure.trim().strip_prefix("line "))
            {
                seen.failures.insert(failure.to_owned(), count);
            }
        }
        seen.said = said;
        seen
    }
}

/// What a Locust has seen.
#[derive(Debug, Default)]
struct Seen {
    exit_code: Option<i32>,
    /// Those that succeeded, by name.
    requests: BTreeMap<String, u64>,
    /// By name and cause, `echo: NotAsPromised(…)`.
    failures: BTreeMap<String, u64>,
    /// Of all answers.
    bytes: u64,
    said: String,
}

impl Seen {
    /// How many of `name` failed with a cause that has `cause` in it.
    fn failed(&self, name: &str, cause: &str) -> u64 {
        let of_name = format!("{name}: ");
        self.failures
            .iter()
            .filter(|(failure, _)| failure.starts_with(&of_name) && failure.contains(cause))
            .map(|(_, count)| count)
            .sum()
    }
}

/// Ended when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`; what it says goes to `log`, so that it never waits for a reader.
fn spawn(command: &mut Command, log: &Path) -> Killed {
    let log = File::create(log).unwrap();
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    Killed(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// The exit code; none after a signal, or where it does not end within `limit`.
fn wait(child: &mut Killed, limit: Duration) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = child.0.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(50));
    }
    None
}

/// Serves each connection that comes by `serve`, on a thread of its own; ends it as `serve` does.
fn stub(serve: fn(TcpStream)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    address
}
