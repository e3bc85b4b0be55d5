//! The two ends of the floor: blocking calls on connected sockets, and nothing else.
//!
//! `throng-bench floor-server` accepts its connections, and then, for each socket of a plain array in turn, receives a
//! message and sends it back. `throng-bench floor-client` takes the flags of `throng-client` and writes its progress
//! lines. It keeps one message outstanding on every socket, as the engines' client does, and works in groups of
//! [`GROUP`]: it waits for the answer on a group's last socket, receives all of the group, and sends all of it again. So
//! each end sleeps once in a group at most, and the server's receives find a message waiting. Were each socket received
//! from and sent to in turn, the faster end would sleep and be woken at nearly every message, and that is scheduling, not
//! the TCP stack. Were all sockets received from before the first is sent to, a message would be out of every cache before
//! the server gets to it, and late enough for delayed acknowledgements; the engines have neither.
//!
//! Both ends have the socket options of the engines' ends (TCP_NODELAY on both; the client's linger 0 and explicit source
//! addresses). The server sends a message when it has the whole of it. A message fits in a socket's buffers
//! ([`MOST_MESSAGE_BYTES`]), so no send waits for the peer, and every receive waits for what will be sent without another
//! receive before it: nobody waits in a circle, whatever the order.
//!
//! Invariant: neither end outlives its parent; blocking calls are left to a thread that ends with the process.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use clap::Parser;
use client::config::Config;
use client::source::Plan;
use kernel_tuning::process::{pin_current_thread, prefer_oom_kill, raise_nofile};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::load::Progress;

/// The send buffer that Linux gives a TCP socket by default (tcp(7), `tcp_wmem`).
pub const MOST_MESSAGE_BYTES: u64 = 16_384;

/// Sockets of a group: so many that a sleep in each costs little, so few that what was sent is in cache when it is received.
const GROUP: usize = 64;

#[derive(Debug, Parser)]
#[command(name = "throng-bench floor-server")]
struct ServerFlags {
    /// Connections to accept, and then to serve in turn
    #[arg(long)]
    connections: usize,
    /// Bytes of a message
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MOST_MESSAGE_BYTES))]
    message_bytes: u64,
    /// The CPU to run on
    #[arg(long)]
    cores: usize,
    /// Where the summary goes
    #[arg(long)]
    json: PathBuf,
    /// End when stdin reaches its end
    #[arg(long)]
    until_stdin_closes: bool,
}

/// What the server end says when it has ended.
#[derive(Debug, Serialize)]
struct Turns {
    /// Messages echoed.
    messages: u64,
    /// Times its thread slept, for a receive that found nothing.
    waits: u64,
}

/// Runs the server end; `args` begins with the program's name.
pub fn server(args: impl Iterator<Item = OsString>) -> ExitCode {
    let flags = match ServerFlags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => return refuse(&error),
    };
    let json = flags.json.clone();
    let work = move || -> io::Result<Turns> {
        pin_current_thread(flags.cores).map_err(io::Error::other)?;
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = server::listener::listen(listen, 1, 4096, false, Default::default());
        let listener = listeners.map_err(io::Error::other)?.remove(0);
        writeln!(
            io::stdout(),
            "ready on {} (the floor)",
            listener.local_addr()?
        )?;
        let mut sockets = accept(&listener, flags.connections)?;
        serve(&mut sockets, flags.message_bytes as usize)
    };
    // It stays when its client has gone, as the engines' servers do.
    let then = After::WaitToBeTold;
    until_told(flags.until_stdin_closes, then, work, |turns| {
        write_json(&json, &turns)
    })
}

fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody to tell when this fails.
    let _ = error.print();
    ExitCode::from(error.exit_code() as u8)
}

fn accept(listener: &TcpListener, connections: usize) -> io::Result<Vec<TcpStream>> {
    listener.set_nonblocking(false)?;
    let mut sockets = Vec::with_capacity(connections);
    while sockets.len() < connections {
        sockets.push(listener.accept()?.0);
    }
    Ok(sockets)
}

/// Until the client closes.
fn serve(sockets: &mut [TcpStream], message_bytes: usize) -> io::Result<Turns> {
    let mut message = vec![0; message_bytes];
    let (waits_before, mut messages) = (waits()?, 0);
    loop {
        for socket in &mut *sockets {
            let echoed = socket
                .read_exact(&mut message)
                .and_then(|()| socket.write_all(&message));
            match echoed {
                Ok(()) => messages += 1,
                Err(error) if is_the_end(&error) => {
                    let waits = waits()? - waits_before;
                    return Ok(Turns { messages, waits });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_the_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Voluntary context switches of this thread so far.
fn waits() -> io::Result<u64> {
    let switches = getrusage(UsageWho::RUSAGE_THREAD)?.voluntary_context_switches();
    Ok(u64::try_from(switches).unwrap_or(0))
}

/// Runs the client end; `args` begins with the program's name and goes on as that of `throng-client`.
pub fn client(args: impl Iterator<Item = OsString>) -> ExitCode {
    let (config, plan) = match Config::parse(args) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&error),
    };
    let (json, until_stdin_closes) = (config.json.clone(), config.until_stdin_closes);
    let work = move || -> io::Result<Summary> {
        pin_current_thread(config.cores[0]).map_err(io::Error::other)?;
        let mut sockets = connect(&config, &plan)?;
        exchange(&mut sockets, &config)
    };
    until_told(until_stdin_closes, After::End, work, |summary| {
        json.as_deref()
            .map_or(Ok(()), |json| write_json(json, &summary))
    })
}

/// The client end's summary, in the form of `throng-client`'s.
#[derive(Debug, Serialize)]
struct Summary {
    messages: Messages,
}

#[derive(Debug, Serialize)]
struct Messages {
    active: usize,
    completed: u64,
    seconds: f64,
    per_second: f64,
}

/// In order, so that the server accepts them in the same.
fn connect(config: &Config, plan: &Plan) -> io::Result<Vec<TcpStream>> {
    let target = config.targets[0];
    let mut sockets = Vec::with_capacity(config.connections as usize);
    let mut numbers = 0..;
    while (sockets.len() as u64) < config.connections {
        let assignment = numbers.next().and_then(|number| plan.assignment(number));
        let assignment = assignment.ok_or(io::ErrorKind::AddrNotAvailable)?;
        match connected(assignment.source, target) {
            Ok(socket) => sockets.push(socket),
            // The port is another's: there are spares.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

fn connected(source: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(source),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&source.into())?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

fn exchange(sockets: &mut [TcpStream], config: &Config) -> io::Result<Summary> {
    let began = Instant::now();
    let mut talk = Talk {
        message: vec![0; config.message_bytes as usize],
        answer: vec![0; config.message_bytes as usize],
    };
    let (mut turn, mut completed, mut next_sample) = (0, 0, Duration::ZERO);
    tell(Duration::ZERO, sockets.len(), 0)?;
    talk.send(0, sockets, turn)?;
    loop {
        let is_last = began.elapsed() >= config.hold;
        for (group, members) in sockets.chunks_mut(GROUP).enumerate() {
            let first = group * GROUP;
            talk.receive(first, members, turn)?;
            if !is_last {
                talk.send(first, members, turn + 1)?;
            }
        }
        completed += sockets.len() as u64;
        turn += 1;
        let now = began.elapsed();
        if now >= next_sample || is_last {
            next_sample = now + config.sample_interval;
            tell(now, sockets.len(), completed)?;
        }
        if is_last {
            let seconds = now.as_secs_f64();
            let messages = Messages {
                active: sockets.len(),
                completed,
                seconds,
                per_second: completed as f64 / seconds,
            };
            return Ok(Summary { messages });
        }
    }
}

/// What the client says and hears, each socket and turn in other words.
struct Talk {
    message: Vec<u8>,
    answer: Vec<u8>,
}

impl Talk {
    /// To sockets of which `first` is the number of the first.
    fn send(&mut self, first: usize, sockets: &mut [TcpStream], turn: u64) -> io::Result<()> {
        for (number, socket) in (first..).zip(sockets) {
            mark(&mut self.message, number, turn);
            socket.write_all(&self.message)?;
        }
        Ok(())
    }

    /// The last one first: when its answer has come, all have.
    fn receive(&mut self, first: usize, sockets: &mut [TcpStream], turn: u64) -> io::Result<()> {
        let last = sockets.len() - 1;
        for index in std::iter::once(last).chain(0..last) {
            sockets[index].read_exact(&mut self.answer)?;
            mark(&mut self.message, first + index, turn);
            if self.answer != self.message {
                return Err(io::Error::other("wrong bytes in an echo"));
            }
        }
        Ok(())
    }
}

/// Makes `message` that of a socket and a turn.
fn mark(message: &mut [u8], number: usize, turn: u64) {
    let of = (number as u64 ^ turn.rotate_left(32)).to_le_bytes();
    let len = message.len().min(of.len());
    message[..len].copy_from_slice(&of[..len]);
}

/// A line as those of `throng-client --samples`.
fn tell(now: Duration, established: usize, messages: u64) -> io::Result<()> {
    let progress = Progress {
        t_ms: now.as_millis() as u64,
        phase: "active".to_owned(),
        established: established as u64,
        messages,
        ..Progress::default()
    };
    writeln!(io::stdout(), "{}", serde_json::to_string(&progress)?)
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    std::fs::write(path, serde_json::to_vec(value)?)
}

/// What follows when the work is done.
#[derive(PartialEq)]
enum After {
    End,
    WaitToBeTold,
}

enum Event<T> {
    Told,
    Done(io::Result<T>),
}

/// Does `work` on a thread of its own until it is done or this process is told to end; what is still in a blocking call
/// ends with the process. Hands on what came of it.
fn until_told<T: Send + 'static>(
    until_stdin_closes: bool,
    after: After,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    mut hand_on: impl FnMut(T) -> io::Result<()>,
) -> ExitCode {
    let run = || -> io::Result<()> {
        raise_nofile().map_err(io::Error::other)?;
        // Part of a load test. Where it is refused (a read-only /proc), it works as well.
        let _ = prefer_oom_kill();
        let (events, received) = channel();
        tell_of_signals(events.clone())?;
        if until_stdin_closes {
            tell_of_stdin(events.clone());
        }
        std::thread::spawn(move || events.send(Event::Done(work())));
        while let Ok(Event::Done(done)) = received.recv() {
            hand_on(done?)?;
            if after == After::End {
                break;
            }
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// To be called before any thread starts, so that all of them inherit the mask.
fn tell_of_signals<T: Send + 'static>(events: Sender<Event<T>>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        let _ = events.send(Event::Told);
    });
    Ok(())
}

fn tell_of_stdin<T: Send + 'static>(events: Sender<Event<T>>) {
    std::thread::spawn(move || {
        let mut ignored = [0; 512];
        while matches!(io::stdin().read(&mut ignored), Ok(1..)) {}
        let _ = events.send(Event::Told);
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_on_its_socket_and_nobody_waits_in_a_circle() {
        for (connections, message_bytes) in [(1, 1), (300, 64), (20, MOST_MESSAGE_BYTES)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = listener.local_addr().unwrap();
            let serving = std::thread::spawn(move || {
                let mut sockets = accept(&listener, connections).unwrap();
                serve(&mut sockets, message_bytes as usize).unwrap()
            });
            let args = format!(
                "floor {target} --connections {connections} --active {connections} --protocol echo \
                 --message-bytes {message_bytes} --hold 100ms --source 127.3.0.0/16 --sample-interval 1h"
            );
            let (config, plan) =
                Config::parse(args.split_whitespace().map(OsString::from)).unwrap();
            let mut sockets = connect(&config, &plan).unwrap();
            let summary = exchange(&mut sockets, &config).unwrap();
            drop(sockets);
            let turns = serving.join().unwrap();
            assert!(turns.messages > 0);
            assert_eq!(turns.messages, summary.messages.completed);
        }
    }
}
