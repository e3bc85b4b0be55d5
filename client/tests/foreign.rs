//! Servers that are none of ours: the client ends in bounded time with each, says what is wrong with what it met, and
//! works with those that speak what it was told.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{has_io_uring, silent_server};
use serde_json::Value;

/// Every run here is asked to hold for less than a second.
const BOUND: Duration = Duration::from_secs(20);

/// A run of the client: its exit code, and its summary.
fn client(target: SocketAddr, flags: &str) -> (i32, Value) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_throng-client"))
        .arg(target.to_string())
        .args(["--connections", "20", "--json"])
        .arg(json.path())
        .args(flags.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + BOUND;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("still running after {BOUND:?}: {flags}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let summary = serde_json::from_slice(&std::fs::read(json.path()).unwrap()).unwrap();
    (status.code().unwrap(), summary)
}

/// A server that does `talk` with each connection, on a thread of its own.
fn server(talk: fn(TcpStream) -> std::io::Result<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || talk(stream));
        }
    });
    address
}

/// Sends everything back, until the other side ends.
fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Says `words` first, and then nothing.
fn greet(mut stream: TcpStream, words: &str) -> std::io::Result<()> {
    stream.write_all(words.as_bytes())?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// As a web server does with what is no request.
fn refuse_politely(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_exact(&mut [0; 64])?;
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
}

/// A run that ends of itself, or after its hold of half a second, with exit code 1, and says each of `words`.
fn says(target: SocketAddr, flags: &str, words: &[&str]) {
    let (code, summary) = client(target, flags);
    assert_eq!(code, 1, "{flags}: {summary}");
    let said = summary["diagnosis"].as_str();
    let said = said.unwrap_or_else(|| panic!("{flags}: no diagnosis in {summary}"));
    for word in words {
        assert!(said.contains(word), "{flags}: no `{word}` in: {said}");
    }
}

#[test]
fn a_server_that_only_accepts_is_held_and_its_silence_is_named() {
    if !has_io_uring("a_server_that_only_accepts_is_held_and_its_silence_is_named") {
        return;
    }
    let silent = silent_server("127.0.0.1:0");
    for exchange in [
        "",
        "--active 5",
        "--churn 5",
        "--canary=connect --baseline 200ms --recovery 200ms",
    ] {
        let flags = format!("--hold 500ms {exchange}");
        says(silent, &flags, &["never greeted", "--protocol echo"]);
    }
    for exchange in ["--active 5", "--active 5 --message-rate 100", "--churn 5"] {
        let flags = format!("--protocol echo --hold 500ms {exchange}");
        says(silent, &flags, &["answered none", "no echo server"]);
    }
    let (code, summary) = client(silent, "--protocol echo --hold 500ms");
    assert_eq!(
        (code, &summary["established"]),
        (0, &20.into()),
        "{summary}"
    );
}

#[test]
fn a_server_that_greets_with_something_else_is_quoted() {
    if !has_io_uring("a_server_that_greets_with_something_else_is_quoted") {
        return;
    }
    let other = server(|stream| greet(stream, "SSH-2.0-OpenSSH_9.6\r\n"));
    // The hold is cut short: nobody is left.
    for flags in ["--hold 1m", "--hold 1m --active 5", "--hold 1m --churn 5"] {
        says(
            other,
            flags,
            &[
                "wrong bytes in the greeting",
                "SSH-2.0-OpenSSH_9.6",
                "--protocol",
            ],
        );
    }
    let unasked = ["bytes nobody asked for", "SSH-2.0-OpenSSH_9.6"];
    says(other, "--hold 1m --protocol echo", &unasked);
}

#[test]
fn an_echo_server_of_any_make_will_do() {
    if !has_io_uring("an_echo_server_of_any_make_will_do") {
        return;
    }
    let echo = server(echo);
    for exchange in [
        "--active 5",
        "--active 5 --message-rate 200",
        "--active 5 --message-bytes 20000",
        "--active 5 --churn 5",
    ] {
        let (code, summary) = client(echo, &format!("--protocol echo --hold 500ms {exchange}"));
        assert_eq!(code, 0, "{exchange}: {summary}");
        assert!(
            summary["messages"]["completed"].as_u64().unwrap() > 0,
            "{summary}"
        );
    }
    // It waits for the first word, and so does a client that expects to be greeted.
    says(
        echo,
        "--hold 500ms --active 5",
        &["never greeted", "--protocol echo"],
    );
}

#[test]
fn a_server_that_closes_at_once_is_named() {
    if !has_io_uring("a_server_that_closes_at_once_is_named") {
        return;
    }
    let closing = server(|stream| {
        drop(stream);
        Ok(())
    });
    for flags in [
        "--hold 1m",
        "--hold 1m --protocol echo",
        "--hold 1m --protocol echo --active 5",
        "--hold 1m --protocol echo --churn 5",
    ] {
        says(
            closing,
            flags,
            &["closed every connection as soon as", "nc -v 127.0.0.1"],
        );
    }
}

#[test]
fn a_server_that_answers_with_something_else_is_quoted() {
    if !has_io_uring("a_server_that_answers_with_something_else_is_quoted") {
        return;
    }
    let web = server(refuse_politely);
    for exchange in ["--active 20", "--churn 20"] {
        let flags = format!("--protocol echo --hold 1m {exchange}");
        says(
            web,
            &flags,
            &["wrong bytes in an echo", "HTTP/1.1 400 Bad Request"],
        );
    }
}
