//! `throng-bench peer-guard`: starts a peer, says when it is ready as a server of Throng's would, and takes it down.
//!
//! A peer knows nothing of this bench: neither that it is to end when the bench does, nor how to say that it is ready.
//! So a small process of our own stands between the two. Whatever the peer starts, in whatever session or group,
//! descends from this process (PR_SET_CHILD_SUBREAPER, prctl(2), Linux 3.4), and it ends last.
//!
//! Invariant: when this process ends by itself nothing of the peer is left, also where the bench was killed.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write, stdin, stdout};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use kernel_tuning::process::{prefer_oom_kill, raise_nofile};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::peer::tree::descendants;
use crate::peer::words;
use crate::stop::TICK;

/// The name of this role.
pub const ROLE: &str = "peer-guard";

/// How long a peer may take to be ready: a script may have to build it first.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a peer may take to end when asked to.
const GRACE: Duration = Duration::from_secs(5);

/// How long what was killed may take to be gone: sockets of many connections are closed.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// In this time the guard has ended the peer and itself.
pub const ENDS_WITHIN: Duration = Duration::from_secs(GRACE.as_secs() + GONE_WITHIN.as_secs() + 2);

/// The same flags as those of `throng-server`, where they mean something here.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// What to start, with {port} and {host} in it
    #[arg(long)]
    command: String,
    /// Where it is to listen; port 0 is one that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Cores to run it on
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
    /// How long it may take to echo
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    ready_within: Duration,
    /// Write the summary to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// End when standard input closes
    #[arg(long)]
    until_stdin_closes: bool,
}

/// Runs it until it is told to end, or the peer ends.
///
/// # Errors
/// What to tell the user; nothing of the peer is left then either.
pub fn run(args: &GuardArgs) -> Result<(), String> {
    let outcome = guard(args);
    if let Some(path) = &args.json {
        let summary = serde_json::json!({
            "command": args.command,
            "diagnosis": outcome.as_ref().err(),
        });
        fs::write(path, summary.to_string())
            .map_err(|cause| format!("cannot write {}: {cause}", path.display()))?;
    }
    outcome
}

fn guard(args: &GuardArgs) -> Result<(), String> {
    let is_over = told_to_end(args.until_stdin_closes)
        .map_err(|cause| format!("cannot handle signals: {cause}"))?;
    let address =
        free(args.listen).map_err(|cause| format!("cannot listen on {}: {cause}", args.listen))?;
    let mut peer = Peer::start(args, address)?;
    let outcome = peer
        .until_ready(address, args.ready_within, &is_over)
        .and_then(|is_ready| match is_ready {
            true => {
                // Nobody may listen any more, and then it is about to end.
                let _ = writeln!(stdout(), "ready on {address} (a peer: {})", args.command);
                peer.follow(&is_over)
            }
            false => Ok(()),
        });
    let gone = peer.take_down();
    outcome.and(gone)
}

/// Set when a signal asks for the end or, with `until_stdin_closes`, when the one that started this is no more.
fn told_to_end(until_stdin_closes: bool) -> io::Result<Arc<AtomicBool>> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_over))?;
    }
    if until_stdin_closes {
        // The peer inherits it. Where it is refused (a read-only /proc), this works as well.
        let _ = prefer_oom_kill();
        let over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            let mut ignored = [0; 64];
            while matches!(stdin().read(&mut ignored), Ok(1..)) {}
            over.store(true, Ordering::Relaxed);
        });
    }
    Ok(is_over)
}

/// An address like `listen` on which nobody listens.
fn free(listen: SocketAddr) -> io::Result<SocketAddr> {
    TcpListener::bind(listen)?.local_addr()
}

/// The peer's first process, its process group, and all that descends from them.
struct Peer {
    first: Pid,
    words: String,
}

impl Peer {
    fn start(args: &GuardArgs, address: SocketAddr) -> Result<Self, String> {
        let cannot = |what: &str, cause: &dyn fmt::Display| format!("cannot {what}: {cause}");
        let words = words(&args.command, &address.ip().to_string(), address.port())?;
        let (program, rest) = words.split_first().ok_or("the command is empty")?;
        raise_nofile().map_err(|error| error.to_string())?;
        set_child_subreaper(true).map_err(|errno| cannot("become a subreaper", &errno))?;
        pin(&args.cores).map_err(|errno| {
            cannot(
                &format!("run on cores {:?} (see taskset -p)", args.cores),
                &errno,
            )
        })?;
        // The own stdout says when the peer is ready, and nothing else.
        let said = io::stderr().as_fd().try_clone_to_owned();
        let said = said.map_err(|cause| cannot("share stderr", &cause))?;
        let child = Command::new(program)
            .args(rest)
            .stdin(Stdio::null())
            .stdout(said)
            .process_group(0)
            .spawn();
        let child =
            child.map_err(|cause| cannot(&format!("start {program:?} (is it there?)"), &cause))?;
        // A process id always fits; it is waited for below, among all that descend from this process.
        let first = i32::try_from(child.id()).map_err(|cause| cannot("follow it", &cause))?;
        Ok(Self {
            first: Pid::from_raw(first),
            words: shell_words::join(&words),
        })
    }

    /// Waits until it echoes; false when the end came first.
    fn until_ready(
        &mut self,
        address: SocketAddr,
        within: Duration,
        is_over: &AtomicBool,
    ) -> Result<bool, String> {
        let until = Instant::now() + within;
        loop {
            self.still_runs("before it was ready")?;
            let why = match probe(address) {
                Ok(()) => return Ok(true),
                Err(Unready::Speaks(said)) => {
                    return Err(format!(
                        "{} does not echo on {address}: it answered {said:?}. A peer has to send every byte back, and \
                         nothing else",
                        self.words
                    ));
                }
                Err(Unready::NotYet(why)) => why,
            };
            if is_over.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if Instant::now() >= until {
                return Err(format!(
                    "{} did not echo on {address} within {} ({why}): does it listen on this port?",
                    self.words,
                    humantime::format_duration(within)
                ));
            }
            std::thread::sleep(TICK);
        }
    }

    /// Until the end comes, or its own.
    fn follow(&mut self, is_over: &AtomicBool) -> Result<(), String> {
        while !is_over.load(Ordering::Relaxed) {
            self.still_runs("in the middle")?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Waits for what has ended. A peer runs on as long as anything of it does, unless its first process says that it
    /// failed.
    fn still_runs(&self, when: &str) -> Result<(), String> {
        let ended = |how: String| Err(format!("{} {how} {when}", self.words));
        loop {
            match reap() {
                Reaped::Nothing => return Ok(()),
                Reaped::NobodyIsLeft => return ended("ended".to_owned()),
                Reaped::One(pid, how) if pid == self.first => {
                    if let Some(how) = how {
                        return ended(how);
                    }
                }
                Reaped::One(..) => {}
            }
        }
    }

    /// Ends all of it: in good order, and after a while in any.
    fn take_down(&self) -> Result<(), String> {
        for pid in descendants(std::process::id()) {
            send(pid, Signal::SIGTERM);
        }
        if nobody_is_left(GRACE, || ()) {
            return Ok(());
        }
        let is_gone = nobody_is_left(GONE_WITHIN, || {
            // Both, for one that is being forked now is not found yet, and one may have left the group. It fails when
            // nobody is there.
            let _ = killpg(self.first, Signal::SIGKILL);
            for pid in descendants(std::process::id()) {
                send(pid, Signal::SIGKILL);
            }
        });
        is_gone
            .then_some(())
            .ok_or_else(|| format!("{} cannot be killed: see its state in ps", self.words))
    }
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It fails only when the process is gone, which is what is wanted.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Waits at most for `patience` until nothing descends from this process, and calls `meanwhile`.
fn nobody_is_left(patience: Duration, meanwhile: impl Fn()) -> bool {
    let until = Instant::now() + patience;
    loop {
        match reap() {
            Reaped::NobodyIsLeft => return true,
            Reaped::One(..) => {}
            Reaped::Nothing if Instant::now() >= until => return false,
            Reaped::Nothing => {
                meanwhile();
                std::thread::sleep(TICK / 4);
            }
        }
    }
}

enum Reaped {
    /// Some run, and none has ended.
    Nothing,
    /// None runs.
    NobodyIsLeft,
    /// One has ended; how, unless it was well.
    One(Pid, Option<String>),
}

/// Waits for one that has ended, as a subreaper has to.
fn reap() -> Reaped {
    match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, 0)) => Reaped::One(pid, None),
        Ok(WaitStatus::Exited(pid, code)) => {
            Reaped::One(pid, Some(format!("ended with exit code {code}")))
        }
        Ok(WaitStatus::Signaled(pid, signal, _)) => {
            Reaped::One(pid, Some(format!("was ended by {signal}")))
        }
        Err(Errno::ECHILD) => Reaped::NobodyIsLeft,
        Ok(_) | Err(_) => Reaped::Nothing,
    }
}

/// Lets this thread, and what it starts, run on `cores` only; on all where none is named.
fn pin(cores: &[usize]) -> Result<(), Errno> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut mask = CpuSet::new();
    cores.iter().try_for_each(|core| mask.set(*core))?;
    sched_setaffinity(Pid::from_raw(0), &mask)
}

/// Why a peer is not ready.
enum Unready {
    /// It may be soon.
    NotYet(String),
    /// It says something else than what it was told, and always will.
    Speaks(String),
}

/// Connects and has a few bytes sent back.
fn probe(address: SocketAddr) -> Result<(), Unready> {
    const PATIENCE: Duration = Duration::from_millis(500);
    const SENT: &[u8] = b"does it echo?\n";
    let not_yet = |cause: io::Error| Unready::NotYet(cause.to_string());
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(not_yet)?;
    // Without this a connect to a free port of one's own may be answered by oneself (a simultaneous open).
    if stream.local_addr().map_err(not_yet)? == address {
        return Err(Unready::NotYet("nobody listens".to_owned()));
    }
    stream.set_read_timeout(Some(PATIENCE)).map_err(not_yet)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(not_yet)?;
    stream.write_all(SENT).map_err(not_yet)?;
    let mut answer = Vec::new();
    while answer.len() < SENT.len() {
        let mut part = [0; SENT.len()];
        match stream.read(&mut part) {
            Ok(0) => return Err(Unready::NotYet("it closed the connection".to_owned())),
            Ok(read) => answer.extend(&part[..read]),
            Err(_) => return Err(Unready::NotYet("it did not answer".to_owned())),
        }
        if !SENT.starts_with(&answer) {
            return Err(Unready::Speaks(String::from_utf8_lossy(&answer).into()));
        }
    }
    Ok(())
}
