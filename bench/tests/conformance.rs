//! What a user of a server notices, the same for every engine, over real sockets and real processes.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{
    GREETING, Server, engine_flags, eventually, has_engine, read, read_all, run, text, throng,
};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

for_each_engine!(
    greets_echoes_and_quits,
    heartbeats_arrive,
    a_mebibyte_comes_back_byte_for_byte,
    a_half_close_is_answered_to_the_last_byte,
    resets_hurt_nobody_else,
    a_peer_that_never_reads_hurts_nobody_else,
    a_line_over_the_limit_closes_and_is_counted,
    connections_over_the_maximum_are_closed_and_counted,
    those_over_the_maximum_are_told_so,
    sigterm_drains_and_sums_up,
    a_closed_lifeline_ends_the_server,
    a_port_is_shared_only_when_asked,
    ipv6_works_too,
    a_broadcast_reaches_everybody_once_and_in_order,
    the_silent_go_in_time_and_the_talking_stay,
    a_peer_that_takes_nothing_goes_by_the_write_timeout,
    a_peer_that_reads_nothing_of_what_is_published_goes,
    a_reader_that_stops_and_resumes_gets_every_line_once,
    slow_writers_get_their_lines_back_whole,
    what_slow_writers_leave_is_bounded_over_all_of_them,
);

fn server(engine: &str, flags: &[&str]) -> Server {
    Server::start(&[engine_flags(engine), flags].concat())
}

fn greets_echoes_and_quits(engine: &str) {
    let server = server(engine, &["--heartbeat", "0"]);
    let name = engine_flags(engine)[1];
    assert!(server.ready_line.contains(&format!("engine {name},")));
    let mut stream = server.connect();
    assert_eq!(read(&mut stream, GREETING.len()), GREETING);
    stream.write_all(b"hello\ntwo").unwrap();
    assert_eq!(read(&mut stream, 6), b"hello\n");
    stream.write_all(b" parts\r\n  Quit \r\nnever").unwrap();
    assert_eq!(read_all(&mut stream), b"two parts\r\n");
}

fn heartbeats_arrive(engine: &str) {
    let server = server(engine, &["--heartbeat", "200ms"]);
    let mut streams: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let started = Instant::now();
    for stream in &mut streams {
        assert_eq!(read(stream, GREETING.len()), GREETING);
        assert_eq!(read(stream, 9), b"ok\nok\nok\n");
    }
    // The third comes between two and three intervals after the first could.
    assert!(started.elapsed() < Duration::from_secs(10));
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("heartbeats"), "{said}");
}

fn a_mebibyte_comes_back_byte_for_byte(engine: &str) {
    let server = server(engine, &["--protocol", "echo"]);
    let mut random = StdRng::seed_from_u64(7);
    let sent: Vec<u8> = (0..1 << 20).map(|_| random.random()).collect();
    let mut writer = server.connect();
    let mut reader = writer.try_clone().unwrap();
    let bytes = sent.clone();
    let writing = std::thread::spawn(move || {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let piece = random.random_range(1..=rest.len().min(50_000));
            writer.write_all(&rest[..piece]).unwrap();
            rest = &rest[piece..];
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // A reader that starts late: the server's sends are cut short, and the rest waits.
    std::thread::sleep(Duration::from_millis(300));
    let back = read_all(&mut reader);
    writing.join().unwrap();
    assert_eq!(back.len(), sent.len());
    assert!(back == sent, "bytes differ");
}

fn a_half_close_is_answered_to_the_last_byte(engine: &str) {
    let server = server(engine, &["--heartbeat", "0"]);
    for _ in 0..20 {
        let mut stream = server.connect();
        stream.write_all(b"one\nan unfinished line").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let expected = [GREETING, b"one\nan unfinished line"].concat();
        assert_eq!(read_all(&mut stream), expected);
    }
    eventually("all are closed", Duration::from_secs(5), || {
        common::established(server.address.port()) == 0
    });
}

fn resets_hurt_nobody_else(engine: &str) {
    let core = kernel_tuning::process::affinity().unwrap()[0].to_string();
    let server = server(engine, &["--protocol", "echo", "--cores", &core]);
    let mut steady = server.connect();
    for round in 0..100u8 {
        let stream = server.connect();
        (&stream).write_all(b"soon gone").unwrap();
        let socket = socket2::Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        steady.write_all(&[round; 10]).unwrap();
        assert_eq!(read(&mut steady, 10), [round; 10]);
    }
    drop(steady);
    // Served after all that came before it: there is one worker, and one accept queue.
    let mut last = server.connect();
    last.write_all(b"last").unwrap();
    assert_eq!(read(&mut last, 4), b"last");
    let (status, said) = server.stop(Duration::from_secs(10));
    assert!(status.success());
    assert!(said.contains("102 accepted"), "{said}");
}

fn a_peer_that_never_reads_hurts_nobody_else(engine: &str) {
    let server = server(engine, &["--protocol", "echo"]);
    let mut deaf = server.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    // Until the server reads no more: its bound on what waits, and both sockets' buffers, are full.
    let chunk = vec![1; 1 << 20];
    let mut written = 0u64;
    while let Ok(count) = deaf.write(&chunk) {
        written += count as u64;
        assert!(written < 1 << 30, "the server buffers without a bound");
    }
    let rss = kernel_tuning::process::Usage::of(server.pid())
        .unwrap()
        .rss_bytes;
    assert!(rss < 200 << 20, "{rss} bytes of memory for one deaf peer");
    let mut other = server.connect();
    for _ in 0..100 {
        other.write_all(b"still there?").unwrap();
        assert_eq!(read(&mut other, 12), b"still there?");
    }
    // It may still change its mind.
    let mut back = vec![0; 1 << 16];
    let mut got = 0u64;
    while got < written {
        let count = deaf.read(&mut back).unwrap();
        assert!(count > 0 && back[..count].iter().all(|b| *b == 1));
        got += count as u64;
    }
}

fn a_line_over_the_limit_closes_and_is_counted(engine: &str) {
    let server = server(engine, &["--heartbeat", "0"]);
    let mut fits = server.connect();
    let line = [vec![b'x'; 64 * 1024 - 1], b"\n".to_vec()].concat();
    fits.write_all(&line).unwrap();
    assert_eq!(
        read(&mut fits, GREETING.len() + line.len())[GREETING.len()..],
        line[..]
    );
    let mut over = server.connect();
    // The server may close before all of it is written.
    let _ = over.write_all(&vec![b'x'; 128 * 1024]);
    read_all(&mut over);
    fits.write_all(b"and on\n").unwrap();
    assert_eq!(read(&mut fits, 7), b"and on\n");
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("1 for a line over the limit"), "{said}");
}

fn connections_over_the_maximum_are_closed_and_counted(engine: &str) {
    let server = server(engine, &["--max-connections", "3", "--heartbeat", "0"]);
    let mut held: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut held {
        assert_eq!(read(stream, GREETING.len()), GREETING);
    }
    assert_eq!(read_all(&mut server.connect()), b"");
    held[0].write_all(b"quit\n").unwrap();
    read_all(&mut held[0]);
    eventually("the place is free again", Duration::from_secs(5), || {
        let mut next = server.connect();
        let mut first = [0];
        matches!(next.read(&mut first), Ok(1))
    });
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("over --max-connections"), "{said}");
}

/// Then comes the end, and no reset: also for those who have said something already, which nobody will read.
fn those_over_the_maximum_are_told_so(engine: &str) {
    let flags = ["--max-connections", "1", "--refusal", "busy, try later"];
    let server = server(engine, &[&flags[..], &["--heartbeat", "0"]].concat());
    let mut held = server.connect();
    assert_eq!(read(&mut held, GREETING.len()), GREETING);
    for text in [&b""[..], &[b'x'; 3000]] {
        // What they say is there before the server looks.
        server.signal(Signal::SIGSTOP);
        let mut over: Vec<_> = (0..50).map(|_| server.connect()).collect();
        for stream in &mut over {
            stream.write_all(text).unwrap();
        }
        server.signal(Signal::SIGCONT);
        for stream in &mut over {
            let mut told = Vec::new();
            stream.read_to_end(&mut told).expect("a reset");
            assert_eq!(told, b"busy, try later\n");
        }
    }
    for _ in 0..50 {
        let mut talking = server.connect();
        // It may have been closed already.
        let _ = talking.write_all(&[b'x'; 3000]);
        assert_eq!(read_all(&mut talking), b"busy, try later\n");
    }
    held.write_all(b"hello\n").unwrap();
    assert_eq!(read(&mut held, 6), b"hello\n");
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("150 over --max-connections"), "{said}");
}

fn sigterm_drains_and_sums_up(engine: &str) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let path = json.path().to_str().unwrap();
    let flags = ["--json", path, "--heartbeat", "0", "--drain-timeout", "1s"];
    let server = server(engine, &flags);
    let mut streams: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for stream in &mut streams {
        assert_eq!(read(stream, GREETING.len()), GREETING);
    }
    let address = server.address;
    let (status, said) = server.stop(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0));
    assert!(said.contains("10 accepted, 10 held at most"), "{said}");
    for stream in &mut streams {
        assert_eq!(read_all(stream), b"bye\n");
    }
    assert!(std::net::TcpStream::connect(address).is_err());
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(summary["accepted"], 10);
    assert_eq!(summary["closed"]["shutdown"], 10);
    assert_eq!(summary["engine"], engine_flags(engine)[1]);
}

fn a_closed_lifeline_ends_the_server(engine: &str) {
    let flags = ["--listen", "127.0.0.1:0", "--until-stdin-closes"];
    let mut command = throng("server", &[engine_flags(engine), &flags].concat());
    command.stdin(std::process::Stdio::piped());
    let mut server = Server::spawn(command);
    drop(server.child.stdin.take());
    let status = common::wait(&mut server.child, Duration::from_secs(10));
    assert_eq!(
        status.expect("the server outlives its lifeline").code(),
        Some(0)
    );
}

fn a_port_is_shared_only_when_asked(engine: &str) {
    let first = server(engine, &["--reuse-port"]);
    let address = first.address.to_string();
    let flags = [engine_flags(engine), &["--listen", &address]].concat();
    let refused = run(throng("server", &flags), common::BOUND);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("in use"), "{}", text(&refused));
    let second = server(engine, &["--reuse-port", "--listen", &address]);
    assert_eq!(second.address, first.address);
}

fn ipv6_works_too(engine: &str) {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return common::skip("ipv6_works_too", "no IPv6 on this machine");
    }
    let server = server(engine, &["--protocol", "echo", "--listen", "[::1]:0"]);
    let mut stream = server.connect();
    stream.write_all(b"six").unwrap();
    assert_eq!(read(&mut stream, 3), b"six");
}

fn a_broadcast_reaches_everybody_once_and_in_order(engine: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let flags = [
        "--control",
        path.to_str().unwrap(),
        "--broadcast",
        "from a signal",
    ];
    let server = server(engine, &[&flags[..], &["--heartbeat", "0"]].concat());
    let mut streams: Vec<_> = (0..300).map(|_| server.connect()).collect();
    for stream in &mut streams {
        assert_eq!(read(stream, GREETING.len()), GREETING);
    }
    let mut control = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let started = Instant::now();
    control
        .write_all(b"broadcast over 500ms slowly\nbroadcast at once\nnonsense\n")
        .unwrap();
    control.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    control.read_to_string(&mut answers).unwrap();
    let published = "published to 300 connections\n";
    assert!(answers.starts_with(&published.repeat(2)), "{answers}");
    assert!(answers.contains("error"), "{answers}");
    for stream in &mut streams {
        assert_eq!(read(stream, 15), b"slowly\nat once\n");
    }
    assert!(started.elapsed() >= Duration::from_millis(400), "not paced");
    server.signal(Signal::SIGUSR1);
    for stream in &mut streams {
        assert_eq!(read(stream, 14), b"from a signal\n");
        stream.write_all(b"quit\n").unwrap();
        assert_eq!(read_all(stream), b"");
    }
    let (status, said) = server.stop(Duration::from_secs(10));
    assert!(status.success() && !path.exists());
    assert!(said.contains("900 messages given"), "{said}");
}

/// What the server says by itself does not count, nor does it help to read it.
fn the_silent_go_in_time_and_the_talking_stay(engine: &str) {
    let flags = ["--idle-timeout", "1s", "--heartbeat", "100ms"];
    let server = server(engine, &flags);
    let started = Instant::now();
    let mut silent: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut talking: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let readers: Vec<_> = silent
        .drain(..)
        .map(|mut stream| {
            std::thread::spawn(move || {
                let said = read_all(&mut stream);
                (started.elapsed(), said)
            })
        })
        .collect();
    let over = started + Duration::from_millis(2_500);
    while Instant::now() < over {
        for stream in &mut talking {
            stream.write_all(b"here\n").unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for reader in readers {
        let (after, said) = reader.join().unwrap();
        assert!(after >= Duration::from_secs(1), "closed after {after:?}");
        assert!(after < Duration::from_secs(6), "closed after {after:?}");
        assert!(said.starts_with(GREETING) && said.ends_with(b"ok\n"));
    }
    for stream in &mut talking {
        stream.write_all(b"quit\n").unwrap();
        assert!(read_all(stream).starts_with(GREETING));
    }
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("20 for sending nothing"), "{said}");
    assert!(said.contains("20 after quit"), "{said}");
}

fn a_peer_that_takes_nothing_goes_by_the_write_timeout(engine: &str) {
    let flags = ["--protocol", "echo", "--write-timeout", "500ms"];
    let server = server(engine, &flags);
    let mut reader = server.connect();
    let mut deaf = server.connect();
    let started = Instant::now();
    // Until the server reads no more, and then until it has closed.
    while deaf.write(&[1; 1 << 16]).is_ok() {}
    let after = started.elapsed();
    assert!(
        after >= Duration::from_millis(500),
        "closed after {after:?}"
    );
    assert!(after < Duration::from_secs(15), "closed after {after:?}");
    reader.write_all(b"still here").unwrap();
    assert_eq!(read(&mut reader, 10), b"still here");
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("1 for reading nothing"), "{said}");
}

/// Long before the write timeout: what waits for one connection is bounded.
fn a_peer_that_reads_nothing_of_what_is_published_goes(engine: &str) {
    let text = "x".repeat(50_000);
    let server = server(engine, &["--broadcast", &text, "--heartbeat", "0"]);
    let mut reader = server.connect();
    assert_eq!(read(&mut reader, GREETING.len()), GREETING);
    let _deaf = server.connect();
    let mut last = reader.try_clone().unwrap();
    let reading = std::thread::spawn(move || read_all(&mut reader));
    let port = server.address.port();
    eventually("the deaf one is closed", Duration::from_secs(20), || {
        server.signal(Signal::SIGUSR1);
        common::established(port) == 1
    });
    last.write_all(b"quit\n").unwrap();
    let heard = reading.join().unwrap();
    assert_eq!(heard.len() % (text.len() + 1), 0, "the other lost some");
    let (_, said) = server.stop(Duration::from_secs(10));
    assert!(said.contains("1 for not reading what waits"), "{said}");
}

/// Over a window of a few kilobytes, and more than all buffers take: sends are cut short, and the unsent rest arrives, in
/// order, once.
fn a_reader_that_stops_and_resumes_gets_every_line_once(engine: &str) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let path = json.path().to_str().unwrap();
    let server = server(engine, &["--json", path, "--heartbeat", "0"]);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address.into()).unwrap();
    let mut reader = std::net::TcpStream::from(socket);
    reader.set_read_timeout(Some(common::BOUND)).unwrap();
    let mut writer = reader.try_clone().unwrap();
    let mut random = StdRng::seed_from_u64(11);
    let said: Vec<u8> = (0..1_200)
        .flat_map(|number| {
            let filling = "x".repeat(random.random_range(0..20_000));
            format!("line {number} {filling}\n").into_bytes()
        })
        .collect();
    let lines = said.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&lines).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert_eq!(read(&mut reader, GREETING.len()), GREETING);
    let mut back = Vec::new();
    for stops in 0.. {
        if stops < 10 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let most = random.random_range(1..2_000_000);
        if (&reader).take(most).read_to_end(&mut back).unwrap() < most as usize {
            break;
        }
    }
    writing.join().unwrap();
    assert_eq!(back.len(), said.len());
    assert!(back == said, "bytes differ");
    server.stop(Duration::from_secs(10));
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(summary["short_sends"].as_u64().unwrap() >= 1, "{summary}");
    assert_eq!(summary["bytes_out"], (GREETING.len() + said.len()) as u64);
}

fn slow_writers_get_their_lines_back_whole(engine: &str) {
    let server = server(engine, &["--heartbeat", "0"]);
    let mut streams: Vec<_> = (0..50).map(|_| server.connect()).collect();
    for byte in b"slowly, byte by byte\n" {
        for stream in &mut streams {
            stream.write_all(&[*byte]).unwrap();
        }
    }
    for stream in &mut streams {
        assert_eq!(read(stream, GREETING.len()), GREETING);
        assert_eq!(read(stream, 21), b"slowly, byte by byte\n");
    }
}

/// 72 MB of unfinished lines, of which a worker keeps 64 MiB: the others are closed, for that reason.
fn what_slow_writers_leave_is_bounded_over_all_of_them(engine: &str) {
    let core = kernel_tuning::process::affinity().unwrap()[0].to_string();
    let server = server(engine, &["--heartbeat", "0", "--cores", &core]);
    let mut steady = server.connect();
    assert_eq!(read(&mut steady, GREETING.len()), GREETING);
    let unfinished: Vec<_> = (0..1_200)
        .map(|_| {
            let mut stream = server.connect();
            // The server may have closed it in the middle.
            let _ = stream.write_all(&[b'x'; 60_000]);
            stream
        })
        .collect();
    // Until then some still wait in the backlog, or unread.
    eventually("some are closed", Duration::from_secs(20), || {
        common::established(server.address.port()) <= unfinished.len()
    });
    steady.write_all(b"still here\n").unwrap();
    assert_eq!(read(&mut steady, 11), b"still here\n");
    let usage = kernel_tuning::process::Usage::of(server.pid()).unwrap();
    assert!(usage.rss_bytes < 300 << 20, "{} bytes", usage.rss_bytes);
    let (_, said) = server.stop(Duration::from_secs(10));
    drop(unfinished);
    assert!(
        said.contains("bound on waiting bytes was reached"),
        "{said}"
    );
}
