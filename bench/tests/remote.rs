//! Two hosts: an agent beside a server, and a run from another host that joins both ends. Over loopback, with another
//! clock, and between network namespaces; and what becomes of it when an end dies, is not there, or is somebody else.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use bench::netns::{CLIENT_SOURCE, Joined, SERVER_ADDRESS, SERVER_DEVICE};
use bench::remote::result::Report;
use bench::report::remote::results;
use bench::screen::Paint;
use common::{Server, bench, eventually, finish, has_engine, run, skip, spawn, text, throng, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Other tests of this machine may hold the lock for a while.
const BOUND: Duration = Duration::from_secs(300);

/// An agent, killed when dropped.
struct Agent {
    child: Child,
    address: SocketAddr,
    stdout: BufReader<ChildStdout>,
    ready_line: String,
}

impl Agent {
    /// Of the server, on a port of the kernel's choice.
    fn beside(server: &Server) -> Agent {
        let port = server.address.port().to_string();
        Agent::start(throng(
            "agent",
            &["--listen", "127.0.0.1:0", "--port", &port],
        ))
    }

    fn start(mut command: Command) -> Agent {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready_line = String::new();
        stdout.read_line(&mut ready_line).unwrap();
        let address = ready_line
            .strip_prefix("ready on ")
            .and_then(|rest| rest.split(' ').next())
            .and_then(|address| address.parse().ok());
        let Some(address) = address else {
            panic!(
                "{ready_line:?} {}",
                text(&child.wait_with_output().unwrap())
            )
        };
        Agent {
            child,
            address,
            stdout,
            ready_line,
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// A connection that has said `line`, and what it hears.
    fn ask(&self, line: &[u8]) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(line).unwrap();
        let mut heard = String::new();
        // A reset says as much as an end.
        let _ = BufReader::new(&stream).read_line(&mut heard);
        (stream, heard)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Asked {
    output: Output,
    said: String,
    report: Value,
}

/// `throng-bench remote` against `target`, with what happens `meanwhile`.
fn ask(agent: SocketAddr, target: SocketAddr, flags: &[&str], meanwhile: impl FnOnce()) -> Asked {
    ask_by(spawn, agent, target, flags, meanwhile)
}

fn ask_by(
    start: impl FnOnce(Command) -> Child,
    agent: SocketAddr,
    target: SocketAddr,
    flags: &[&str],
    meanwhile: impl FnOnce(),
) -> Asked {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("remote.json");
    let (agent, target) = (agent.to_string(), target.to_string());
    let ours = [
        "--agent",
        &agent,
        "--report",
        report.to_str().unwrap(),
        &target,
    ];
    let running = start(throng("remote", &[&ours, flags].concat()));
    meanwhile();
    let output = finish(running, BOUND);
    let report = fs::read(report).unwrap_or_default();
    Asked {
        said: text(&output),
        report: serde_json::from_slice(&report).unwrap_or_default(),
        output,
    }
}

const QUICK: [&str; 10] = [
    "--connections",
    "300",
    "--heartbeat",
    "200ms",
    "--quiet-for",
    "2s",
    "--active",
    "20",
    "--hold",
    "2s",
];

fn has_ring(test: &str) -> bool {
    has_engine("uring", test)
}

/// Both ends were seen in each phase, and joined.
fn is_whole(asked: &Asked, server: &Server) {
    let Asked {
        output,
        said,
        report,
    } = asked;
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(report["failures"], serde_json::json!([]), "{said}");
    assert_eq!(report["partial"], false);
    assert_eq!(report["agent"]["processes"][0]["pid"], server.pid());
    assert!(report["environment"]["kernel"] == report["agent"]["environment"]["kernel"]);
    assert_eq!(report["client"]["established"], 300);
    // However it came about, it is one machine here, and that is said.
    assert_eq!(report["is_one_host"], true);
    assert!(said.contains("on one machine"), "{said}");
    let phase = |name: &str| {
        let phases = report["phases"].as_array().unwrap();
        let phase = phases.iter().find(|phase| phase["name"] == name);
        phase.unwrap_or_else(|| panic!("no {name}: {said}"))
    };
    for (name, counted, least) in [
        // From the first look at it on.
        ("ramp", "connections", 1.0),
        ("quiet", "heartbeats", 300.0),
        ("active", "messages", 50.0),
    ] {
        let phase = phase(name);
        assert_eq!(phase["counted"], counted, "{said}");
        for end in ["server", "client"] {
            let spent = &phase["spent"][end];
            assert!(spent["looks"].as_u64() >= Some(2), "{name} {end}: {said}");
            assert!(
                spent["count"].as_f64().unwrap() >= least,
                "{name} {end}: {said}"
            );
            assert!(
                spent["processes_ns"].as_u64() > Some(0),
                "{name} {end}: {said}"
            );
        }
    }
    // The messages that the client counts in all are no fewer than those between two looks.
    let all = report["client"]["messages"]["completed"].as_f64().unwrap();
    let counted = phase("active")["spent"]["server"]["count"]
        .as_f64()
        .unwrap();
    assert!(counted <= all, "{counted} of {all}");
    let kept = &report["kept"]["server"];
    assert_eq!(kept["connections"], 300, "{said}");
    assert!(kept["growth"]["slab_pages"].is_number());
    let moments = report["moments"]["server"].as_array().unwrap();
    let times: Vec<i64> = moments
        .iter()
        .map(|one| one["t_us"].as_i64().unwrap())
        .collect();
    assert!(times[0] < 0 && times.is_sorted(), "{times:?}");
    // What was written is the report, whole.
    let mut parsed: Report = serde_json::from_value(report.clone()).unwrap();
    assert_eq!(&serde_json::to_value(&parsed).unwrap(), report);
    // On two machines the same would be said of each end; and of a clock that is hardly known, that it is.
    parsed.is_one_host = false;
    parsed.clock.as_mut().unwrap().uncertainty_ns = 1_000_000_000;
    parsed.conclude();
    let apart = results(&parsed, Paint::plain());
    assert!(apart.contains("server's end   client's end"), "{apart}");
    assert!(!apart.contains("on one machine"), "{apart}");
    assert!(apart.contains("is known to ±1.00 s only"), "{apart}");
}

/// The clock there is known to be `ahead_ns`.
fn is_ahead_by(report: &Value, ahead_ns: i64) {
    for reading in ["begin", "end"] {
        let reading = &report["clock"][reading];
        let offset_ns = reading["offset_ns"].as_i64().unwrap();
        let uncertainty_ns = reading["uncertainty_ns"].as_u64().unwrap();
        assert!(offset_ns.abs_diff(ahead_ns) <= uncertainty_ns, "{reading}");
    }
}

#[test]
fn both_ends_are_seen_and_joined_over_loopback() {
    if !has_ring("both_ends_are_seen_and_joined_over_loopback") {
        return;
    }
    let server = Server::start(&["--heartbeat", "200ms"]);
    let mut agent = Agent::beside(&server);
    assert!(agent.ready_line.contains(&server.pid().to_string()));
    let asked = ask(agent.address, server.address, &QUICK, || {});
    is_whole(&asked, &server);
    is_ahead_by(&asked.report, 0);
    assert!(agent.next_line().ends_with(": done\n"));
    agent.signal(Signal::SIGTERM);
    let status = wait(&mut agent.child, Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_clock_that_is_hours_ahead_is_measured() {
    let test = "a_clock_that_is_hours_ahead_is_measured";
    if !has_ring(test) {
        return;
    }
    let can = |flags: &[&str]| {
        let mut tried = Command::new("unshare");
        tried.args(flags).args(["--monotonic", "1", "true"]);
        let tried = tried.stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let ways: [&[&str]; 2] = [&["-T"], &["-r", "-T"]];
    let Some(way) = ways.into_iter().find(|way| can(way)) else {
        return skip(
            test,
            "no time namespace can be made here (unshare -T as root, or -rT)",
        );
    };
    let server = Server::start(&["--heartbeat", "200ms"]);
    let mut command = Command::new("unshare");
    command
        .args(way)
        .args(["--monotonic", "12345"])
        .arg(bench())
        .args([
            "agent",
            "--listen",
            "127.0.0.1:0",
            "--pid",
            &server.pid().to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let agent = Agent::start(command);
    let asked = ask(agent.address, server.address, &QUICK, || {});
    is_whole(&asked, &server);
    is_ahead_by(&asked.report, 12_345_000_000_000);
    assert!(asked.said.contains("ahead, known to ±"), "{}", asked.said);
}

#[test]
fn between_namespaces_each_end_counts_its_own_interface() {
    let test = "between_namespaces_each_end_counts_its_own_interface";
    if !has_ring(test) {
        return;
    }
    let joined = match Joined::make() {
        Ok(joined) => joined,
        Err(why) => return skip(test, &why.to_string()),
    };
    let at = format!("{SERVER_ADDRESS}:0");
    let listen = at.clone();
    let server = joined.server.run(move || {
        Server::spawn(throng(
            "server",
            &["--listen", &listen, "--heartbeat", "200ms"],
        ))
    });
    let server = server.unwrap();
    let port = server.address.port().to_string();
    let agent = joined
        .server
        .run(move || Agent::start(throng("agent", &["--listen", &at, "--port", &port])));
    let agent = agent.unwrap();
    let flags = [&QUICK[..], &["--source", CLIENT_SOURCE]].concat();
    let inside = joined.client.clone();
    let start = |command: Command| inside.run(move || spawn(command)).unwrap();
    let asked = ask_by(start, agent.address, server.address, &flags, || {});
    is_whole(&asked, &server);
    let report = &asked.report;
    assert_eq!(report["agent"]["interface"], SERVER_DEVICE);
    let messages = report["client"]["messages"]["completed"].as_u64();
    let packets = |end: &str, what: &str| report["interface"][end][what].as_u64();
    assert!(messages > Some(0) && packets("server", "rx_packets") > messages);
    assert!(packets("client", "tx_packets") > messages, "{}", asked.said);
}

#[test]
fn when_the_agent_dies_what_was_seen_is_kept() {
    if !has_ring("when_the_agent_dies_what_was_seen_is_kept") {
        return;
    }
    let server = Server::start(&["--heartbeat", "200ms"]);
    let agent = Agent::beside(&server);
    let flags = ["-n", "300", "--heartbeat", "200ms", "--hold", "60s"];
    let asked = ask(agent.address, server.address, &flags, || {
        eventually("300 are held", BOUND, || {
            common::established(server.address.port()) >= 300
        });
        std::thread::sleep(Duration::from_secs(1));
        agent.signal(Signal::SIGKILL);
    });
    let Asked {
        output,
        said,
        report,
    } = asked;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(report["partial"], true, "{said}");
    let cause = report["failures"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("lost the agent at 127.0.0.1"), "{cause}");
    assert!(said.contains("Partial"), "{said}");
    // Both ends until then, and the client in good order.
    assert!(report["moments"]["server"].as_array().unwrap().len() >= 5);
    assert_eq!(report["client"]["ended"], "interrupted", "{said}");
    let hold = report["phases"].as_array().unwrap().iter();
    let mut hold = hold.filter(|phase| phase["name"] == "hold");
    assert!(
        hold.next().unwrap()["spent"]["server"].is_object(),
        "{said}"
    );
}

#[test]
fn when_the_server_dies_that_is_told() {
    if !has_ring("when_the_server_dies_that_is_told") {
        return;
    }
    let server = Server::start(&["--heartbeat", "200ms"]);
    let agent = Agent::beside(&server);
    let flags = ["-n", "300", "--heartbeat", "200ms", "--hold", "60s"];
    let asked = ask(agent.address, server.address, &flags, || {
        eventually("300 are held", BOUND, || {
            common::established(server.address.port()) >= 300
        });
        server.signal(Signal::SIGKILL);
    });
    assert_eq!(asked.output.status.code(), Some(1), "{}", asked.said);
    for words in ["server gone", "processes ended while they were watched"] {
        let failures = asked.report["failures"].to_string() + &asked.report["client"].to_string();
        assert!(failures.contains(words), "no {words}: {}", asked.said);
    }
}

#[test]
fn an_interrupted_run_keeps_what_was_seen_and_the_agent_serves_on() {
    if !has_ring("an_interrupted_run_keeps_what_was_seen_and_the_agent_serves_on") {
        return;
    }
    let server = Server::start(&["--heartbeat", "200ms"]);
    let agent = Agent::beside(&server);
    let flags = ["-n", "300", "--heartbeat", "200ms", "--hold", "60s"];
    let pid = Cell::new(0);
    let start = |command| {
        let child = spawn(command);
        pid.set(child.id() as i32);
        child
    };
    let asked = ask_by(start, agent.address, server.address, &flags, || {
        eventually("300 are held", BOUND, || {
            common::established(server.address.port()) >= 300
        });
        kill(Pid::from_raw(pid.get()), Signal::SIGINT).unwrap();
    });
    let Asked {
        output,
        said,
        report,
    } = asked;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(report["partial"], true, "{said}");
    assert!(
        said.contains("interrupted") && !said.contains("lost the agent"),
        "{said}"
    );
    assert_eq!(report["client"]["ended"], "interrupted", "{said}");
    assert!(report["clock"].is_object(), "{said}");
    eventually("the next is served", Duration::from_secs(10), || {
        agent.ask(HELLO).1.contains("\"answer\":\"hello\"")
    });
}

fn refused(output: &Output, words: &[&str]) {
    let said = text(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}

/// A port that nobody has: its socket is closed again.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn who_is_no_agent_is_named_so_before_anything_starts() {
    let target: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let nobody = ask(target, target, &[], || {});
    refused(
        &nobody.output,
        &["no agent answers", "throng-bench agent --listen"],
    );
    let server = Server::start(&["--engine", "epoll"]);
    let asked = ask(server.address, server.address, &[], || {});
    refused(
        &asked.output,
        &["Welcome to the echo server", "that is no agent"],
    );
    // One of a version to come.
    let later = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = later.local_addr().unwrap();
    let asked = ask(at, server.address, &[], || {
        let (mut stream, _) = later.accept().unwrap();
        let mut hello = String::new();
        BufReader::new(&stream).read_line(&mut hello).unwrap();
        assert!(hello.contains("\"version\":1"), "{hello}");
        let answer = b"{\"answer\":\"refused\",\"reason\":\"version 1 is not spoken here, but version 2\"}\n";
        stream.write_all(answer).unwrap();
    });
    refused(
        &asked.output,
        &["version 1 is not spoken here, but version 2"],
    );
}

const HELLO: &[u8] = b"{\"ask\":\"hello\",\"version\":1,\"throng_version\":\"0\"}\n";

#[test]
fn the_agent_turns_strangers_away_and_serves_the_next() {
    let server = Server::start(&["--engine", "epoll"]);
    let mut agent = Agent::beside(&server);
    for (line, words) in [
        (&b"GET / HTTP/1.1\r\n"[..], "that is no bench"),
        (b"{\"ask\":\"clock\"}\n", "before a greeting"),
        (
            b"{\"ask\":\"hello\",\"version\":99,\"throng_version\":\"9.9\",\"more\":1}\n",
            "version 99 of the protocol, of Throng 9.9, is not spoken here",
        ),
        (&[b'x'; 100_000], "a line of more than 4096 bytes"),
    ] {
        let (_, heard) = agent.ask(line);
        let told = agent.next_line();
        assert!(told.contains(words), "no {words} in {told}");
        // Of an endless line there was still some to come, which may take the answer along.
        assert!(
            heard.contains(words) || line.len() > 4096,
            "no {words} in {heard}"
        );
    }
    let (mut first, heard) = agent.ask(HELLO);
    assert!(heard.contains("\"answer\":\"hello\""), "{heard}");
    let (_, heard) = agent.ask(HELLO);
    assert!(heard.contains("one at a time"), "{heard}");
    assert!(agent.next_line().starts_with("turned 127.0.0.1:"));
    // There is nothing that it could be told to do.
    first
        .write_all(b"{\"ask\":\"run\",\"command\":\"id\"}\n")
        .unwrap();
    assert!(agent.next_line().contains("that is no question"));
    drop(first);
    eventually("the next is served", Duration::from_secs(10), || {
        agent.ask(HELLO).1.contains("\"answer\":\"hello\"")
    });
}

#[test]
fn an_agent_ends_when_stdin_closes_and_tells_an_open_address() {
    let mut command = throng("agent", &["--listen", "0.0.0.0:0", "--until-stdin-closes"]);
    command
        .args(["--pid", &std::process::id().to_string()])
        .stdin(Stdio::piped());
    let mut agent = Agent::start(command);
    assert!(agent.next_line().contains("no authentication"));
    drop(agent.child.stdin.take());
    let status = wait(&mut agent.child, Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn bad_flags_are_refused_by_name() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let nobody = free_port().to_string();
    let own = std::process::id().to_string();
    let cases: [(&str, Vec<&str>, &str); 8] = [
        ("agent", vec!["--listen", "127.0.0.1:0"], "--port"),
        ("agent", vec!["--port", "7000"], "--listen"),
        (
            "agent",
            vec!["--listen", "127.0.0.1:0", "--port", &nobody],
            "nobody listens on port",
        ),
        (
            "agent",
            vec!["--listen", "127.0.0.1:0", "--pid", "4294967295"],
            "no process 4294967295",
        ),
        ("agent", vec!["--listen", &taken, "--pid", &own], "in use"),
        (
            "remote",
            vec!["127.0.0.1:7000"],
            "--agent HOST:PORT is missing",
        ),
        ("remote", vec!["--agent", "127.0.0.1:1"], "TARGET"),
        (
            "remote",
            vec!["--agent", "127.0.0.1:1", "127.0.0.1:7000", "--hold", "soon"],
            "--hold",
        ),
    ];
    for (command, flags, words) in cases {
        refused(&run(throng(command, &flags), common::BOUND), &[words]);
    }
    for command in ["agent", "remote"] {
        let output = run(throng(command, &["--help"]), common::BOUND);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output).contains("Exit codes"), "{}", text(&output));
    }
    let help = text(&run(throng("agent", &["--help"]), common::BOUND));
    assert!(help.contains("no authentication"), "{help}");
}
