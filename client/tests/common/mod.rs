//! What the client's tests over real sockets share: a client run to its summary, servers, and namespaces.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use serde_json::Value;

/// Said, past the capture of test output: something could not be tested here. The test script counts these lines.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// False, said loudly, where this machine has no io_uring.
pub fn has_io_uring(test: &str) -> bool {
    let Err(why) = ring::probe() else { return true };
    skip(test, &why.to_string());
    false
}

/// The summary of a client with `args`.
pub fn run(args: &str) -> Value {
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!("throng-client {args} --json {}", json.path().display());
    client::cli::main(args.split_whitespace().map(OsString::from));
    serde_json::from_slice(&fs::read(json.path()).unwrap()).unwrap()
}

/// Accepts on `address` and holds what comes, until the test ends.
pub fn silent_server(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let held: Vec<TcpStream> = listener.incoming().flatten().collect();
        drop(held);
    });
    address
}

/// Whether this is the run of `test` inside a network namespace of its own, with loopback up. If it is not, `test` is
/// run once more, in one; where that cannot be made the test is skipped.
pub fn is_in_namespace(test: &str) -> bool {
    const OUTSIDE: &str = "THRONG_TEST_OUTSIDE";
    let namespace = fs::read_link("/proc/self/ns/net").unwrap();
    if let Some(outside) = std::env::var_os(OUTSIDE) {
        assert_ne!(
            OsString::from(&namespace),
            outside,
            "nothing of the host's own namespace may be changed"
        );
        command("ip link set lo up");
        // That of the host shows the host's interfaces.
        command("mount -t sysfs sysfs /sys");
        return true;
    }
    if !has_io_uring(test) {
        return false;
    }
    // With a user namespace too, so that an ordinary user can.
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "--mount", "--kill-child", "--"]);
        command
    };
    let probe = unshare()
        .args(["mount", "-t", "sysfs", "sysfs", "/sys"])
        .output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            skip(test, String::from_utf8_lossy(&output.stderr).trim());
            return false;
        }
        Err(error) => {
            skip(test, &format!("unshare: {error}"));
            return false;
        }
    }
    let inside = unshare()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(OUTSIDE, namespace)
        .output()
        .unwrap();
    let said = [inside.stdout, inside.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(inside.status.success(), "in its namespace: {said}");
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        std::io::stderr()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }
    false
}

/// Runs `line`, words apart by spaces.
pub fn command(line: &str) {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// Sets a sysctl of the namespace that the test made.
pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Serves each connection that comes, counted from 0, by `serve` on a thread of its own.
pub fn stub(serve: impl Fn(TcpStream, usize) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream, number));
        }
    });
    address
}
