//! The processes of a run: started, listened to, ended.
//!
//! Invariant: no process outlives its [`Child`]. It ends on SIGTERM, or after a bound by SIGKILL; and should this
//! program itself be killed, the child's stdin closes, which tells it to end (`--until-stdin-closes`). Children are in
//! process groups of their own, so that a Ctrl-C in the terminal reaches this program alone, which then ends them.

use std::collections::VecDeque;
use std::convert::identity;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel_tuning::process::{ProcessError, ProcessMemory, Usage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Inside;
use crate::peer::{Peer, PeerName, guard};
use crate::result::Failure;
use crate::stop::TICK;

/// Starts this program again as a server or a client.
#[derive(Debug)]
pub struct Launcher {
    program: OsString,
    address: IpAddr,
    inside: Option<Arc<Inside>>,
    peers: Vec<Peer>,
    /// Words before those of every process: a program that becomes it.
    through: Vec<OsString>,
}

impl Launcher {
    /// A launcher of this very program.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn new() -> Result<Self, String> {
        let program = std::env::current_exe();
        let program =
            program.map_err(|cause| format!("cannot find this program's own file: {cause}"))?;
        Ok(Self {
            program: program.into(),
            address: Ipv4Addr::LOCALHOST.into(),
            inside: None,
            peers: Vec::new(),
            through: Vec::new(),
        })
    }

    /// From now on it knows how these are started.
    pub fn learn(&mut self, peers: &[Peer]) {
        self.peers.extend_from_slice(peers);
    }

    /// How the peer of this name is started.
    pub fn peer_command(&self, name: PeerName) -> Option<&str> {
        let peer = self.peers.iter().find(|peer| peer.name == name)?;
        Some(&peer.command)
    }

    /// The same, of processes in a network namespace, in which servers listen on `address`.
    pub fn within(self, inside: Arc<Inside>, address: IpAddr) -> Self {
        Self {
            address,
            inside: Some(inside),
            ..self
        }
    }

    /// The same, of processes that are started by the program that `words` begin with: it does something to itself first, such
    /// as lower a limit, and then becomes the process (execve(2)).
    pub fn through(self, words: &[&str]) -> Self {
        let through = words.iter().map(OsString::from).collect();
        Self { through, ..self }
    }

    /// Where servers listen.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Starts `throng-bench role args… --json FILE --until-stdin-closes`; what it writes there becomes [`Ended::summary`].
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(&self, role: &'static str, args: Vec<OsString>) -> Result<Child, Failure> {
        let summary = unnamed_file(role)?;
        let mut words = self.through.iter().chain([&self.program]);
        // There is at least the program.
        let mut command = Command::new(words.next().unwrap_or(&self.program));
        command
            .args(words)
            .arg(role)
            .args(args)
            .arg("--json")
            .arg(path_of(&summary))
            .arg("--until-stdin-closes");
        Child::spawn(role, command, summary, self.inside.as_deref())
    }
}

/// A file without a name, so that nothing of it is left however this program ends.
fn unnamed_file(role: &'static str) -> Result<File, Failure> {
    tempfile::tempfile().map_err(|cause| {
        let directory = std::env::temp_dir();
        let cause = format!(
            "cannot make a file in {}: {cause}; set TMPDIR to a directory of yours",
            directory.display()
        );
        not_started(role, cause)
    })
}

/// The path by which another process of this user can open it, as long as this one lives (proc_pid_fd(5)).
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

fn not_started(name: &'static str, cause: String) -> Failure {
    Failure {
        during: format!("starting a {name}"),
        cause,
        stderr_tail: Vec::new(),
    }
}

/// What a process's stdout had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A line.
    Line(String),
    /// Nothing yet.
    Nothing,
    /// The end.
    Closed,
}

/// A process that was started here.
#[derive(Debug)]
pub struct Child {
    name: &'static str,
    process: std::process::Child,
    lifetime: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Tail,
    summary: File,
    /// Once this is set the process has been waited for, and its id may be another's.
    status: Option<ExitStatus>,
}

impl Child {
    fn spawn(
        name: &'static str,
        mut command: Command,
        summary: File,
        inside: Option<&Inside>,
    ) -> Result<Self, Failure> {
        let failed = |cause| not_started(name, cause);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let words = format!("{command:?}");
        let spawned = match inside {
            None => command.spawn(),
            Some(inside) => inside.run(move || command.spawn()).and_then(identity),
        };
        let mut process =
            spawned.map_err(|cause| failed(format!("cannot start {words}: {cause}")))?;
        let (Some(stdout), Some(stderr)) = (process.stdout.take(), process.stderr.take()) else {
            // Never so: both were asked for above.
            return Err(failed("it has no output".to_owned()));
        };
        let (lines, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let lifetime = process.stdin.take();
        Ok(Self {
            name,
            process,
            lifetime,
            stdout: receiver,
            stderr: Tail::of(stderr),
            summary,
            status: None,
        })
    }

    /// Its process id, which is another's once it has been waited for.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What the process uses now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn usage(&self) -> Result<Usage, ProcessError> {
        Usage::of(self.process.id())
    }

    /// Its memory now.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self) -> Result<ProcessMemory, ProcessError> {
        ProcessMemory::of(self.process.id())
    }

    /// The next line of its stdout, waiting for it at most for `patience`.
    pub fn next_line(&self, patience: Duration) -> Next {
        match self.stdout.recv_timeout(patience) {
            Ok(line) => Next::Line(line),
            Err(RecvTimeoutError::Timeout) => Next::Nothing,
            Err(RecvTimeoutError::Disconnected) => Next::Closed,
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.poll_status().is_some()
    }

    /// Lets it end by itself for `patience`, asks it to end for `grace`, then makes it.
    pub fn end(mut self, patience: Duration, grace: Duration) -> Ended {
        let mut killed = false;
        if !self.wait(patience) {
            self.signal(Signal::SIGTERM);
            if !self.wait(grace) {
                killed = true;
                self.kill();
            }
        }
        Ended {
            name: self.name,
            status: self.status,
            killed,
            summary: read_json(&mut self.summary),
            stderr_tail: self.stderr.lines(Duration::from_secs(1)),
        }
    }

    fn wait(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.poll_status().is_none() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(TICK / 4);
        }
        true
    }

    fn poll_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.process.try_wait().ok().flatten();
        }
        self.status
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if let (None, Ok(pid)) = (self.status, i32::try_from(self.process.id())) {
            // It fails only when the process is gone, which is what is wanted.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// SIGKILL cannot be refused; a process that is torn down for long (a ring with many requests) is waited for.
    /// A peer's guard has something to end itself, and does so when its stdin closes.
    fn kill(&mut self) {
        self.lifetime = None;
        if self.name == guard::ROLE && self.wait(guard::ENDS_WITHIN) {
            return;
        }
        let _ = self.process.kill();
        self.status = self.process.wait().ok();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.poll_status().is_none() {
            self.kill();
        }
    }
}

/// What is left of a process.
#[derive(Debug)]
pub struct Ended {
    name: &'static str,
    status: Option<ExitStatus>,
    killed: bool,
    /// The summary it wrote, `null` when there is none.
    pub summary: Value,
    /// The last lines of its stderr.
    pub stderr_tail: Vec<String>,
}

impl Ended {
    /// Whether it said itself that all went well.
    pub fn is_success(&self) -> bool {
        !self.killed && self.status.is_some_and(|status| status.success())
    }

    /// How it ended, in words, with the reason it gave itself.
    pub fn how(&self) -> String {
        let Self {
            name,
            status,
            killed,
            summary,
            ..
        } = self;
        let how = match status {
            _ if *killed => format!("the {name} did not end when asked to and was killed"),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("the {name} ended with exit code {code}"),
                (None, Some(9)) => {
                    format!("the {name} was killed (SIGKILL; dmesg tells whether memory ran out)")
                }
                (None, Some(signal)) => format!("the {name} ended by signal {signal}"),
                (None, None) => format!("the {name} ended ({status})"),
            },
            None => format!("the {name} is gone"),
        };
        match summary.get("diagnosis").and_then(Value::as_str) {
            Some(diagnosis) => format!("{how}: {diagnosis}"),
            None => how,
        }
    }

    /// A failure with this end as its cause.
    pub fn failure(self, during: impl Into<String>) -> Failure {
        Failure {
            during: during.into(),
            cause: self.how(),
            stderr_tail: self.stderr_tail,
        }
    }
}

/// The last lines of a stream, read by a thread of its own so that the writer never blocks.
#[derive(Debug)]
struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    const LINES: usize = 20;
    const LINE_CHARS: usize = 1_000;

    fn of(stream: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let line = line.chars().take(Self::LINE_CHARS).collect();
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == Self::LINES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        });
        Self { lines, reader }
    }

    /// The lines, once the stream has ended or `patience` has.
    fn lines(&self, patience: Duration) -> Vec<String> {
        let until = Instant::now() + patience;
        while !self.reader.is_finished() && Instant::now() < until {
            std::thread::sleep(TICK / 4);
        }
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}

/// `null` when there is nothing, or only a part.
fn read_json(file: &mut File) -> Value {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) => serde_json::from_str(&text).unwrap_or(Value::Null),
        Err(_) => Value::Null,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::spawn("shell", command, tempfile::tempfile().unwrap(), None).unwrap()
    }

    fn exists(pid: u32) -> bool {
        PathBuf::from(format!("/proc/{pid}")).exists()
    }

    #[test]
    fn lines_come_one_by_one_and_the_end_is_seen() {
        let child = shell("echo one; echo two");
        assert_eq!(child.next_line(LONG), Next::Line("one".into()));
        assert_eq!(child.next_line(LONG), Next::Line("two".into()));
        assert_eq!(child.next_line(LONG), Next::Closed);
        let ended = child.end(LONG, LONG);
        assert!(ended.is_success() && ended.summary.is_null());
    }

    #[test]
    fn a_summary_is_read_back_from_a_file_without_a_name() {
        let summary = unnamed_file("shell").unwrap();
        let mut command = Command::new("sh");
        let script = format!(
            r#"echo old > {0}; echo '{{"n": 7}}' > {0}"#,
            path_of(&summary)
        );
        command.args(["-c", &script]);
        let child = Child::spawn("shell", command, summary, None).unwrap();
        assert_eq!(child.end(LONG, LONG).summary["n"], 7);
    }

    #[test]
    fn the_end_of_stderr_is_kept_and_the_exit_code_told() {
        let ended = shell("for n in $(seq 100); do echo line $n >&2; done; exit 3").end(LONG, LONG);
        assert!(!ended.is_success());
        let failure = ended.failure("a test");
        assert!(failure.cause.contains("exit code 3"), "{failure:?}");
        assert_eq!(failure.stderr_tail.len(), Tail::LINES);
        assert_eq!(failure.stderr_tail.last().unwrap(), "line 100");
    }

    #[test]
    fn one_that_ends_when_asked_is_not_killed() {
        let child = shell("trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        assert_eq!(child.next_line(LONG), Next::Line("ready".into()));
        assert!(child.end(Duration::ZERO, LONG).is_success());
    }

    #[test]
    fn one_that_ignores_the_request_is_killed() {
        let child = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        assert_eq!(child.next_line(LONG), Next::Line("ready".into()));
        let pid = child.process.id();
        let ended = child.end(Duration::ZERO, Duration::from_millis(100));
        assert!(!ended.is_success() && ended.how().contains("was killed"));
        assert!(!exists(pid));
    }

    #[test]
    fn none_outlives_its_owner() {
        let child = shell("exec sleep 600");
        let pid = child.process.id();
        assert!(exists(pid));
        drop(child);
        assert!(!exists(pid));
    }

    #[test]
    fn a_missing_program_is_a_failure_with_its_name() {
        let command = Command::new("/nonexistent/ghost");
        let error =
            Child::spawn("ghost", command, tempfile::tempfile().unwrap(), None).unwrap_err();
        assert!(error.cause.contains("/nonexistent/ghost"), "{error:?}");
    }
}
