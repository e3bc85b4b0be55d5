//! The role `deaf-client`: connections that send and never read, until the server gives them up.
//!
//! Invariant: each connection sends a bounded amount, so that what is queued for all of them is bounded too.

use std::io::{self, Write, stdout};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use kernel_tuning::process::pin_current_thread;
use socket2::{Domain, Socket, Type};

use crate::bare::end_of;
use crate::clock::millis;
use crate::load::Progress;

/// The ports that are bound at each address, in order.
const PORTS: std::ops::Range<u16> = 20_000..60_000;
/// What each sends: more than a small send buffer of the server keeps of the echo.
const MOST_BYTES: usize = 96 << 10;
/// Of a socket whose reader is slow.
const RECV_BUFFER_BYTES: usize = 4 << 10;

/// The same flags as those of `throng-client`, where they mean something here.
#[derive(Debug, Args)]
pub struct DeafArgs {
    /// Where to connect to
    target: SocketAddr,
    /// Cores to run on
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
    /// How many connections
    #[arg(long, value_name = "N")]
    connections: u64,
    /// The first address to connect from
    #[arg(long, value_name = "ADDRESS")]
    source: Ipv4Addr,
    /// Write a JSON line at each change; `-` alone, stdout
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Write the summary to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// End when standard input closes
    #[arg(long)]
    until_stdin_closes: bool,
}

/// Runs it until it is told to end, or every connection is closed.
///
/// # Errors
/// What to tell the user.
pub fn run(args: &DeafArgs) -> Result<(), String> {
    let is_over = end_of(args.until_stdin_closes)?;
    if let Some(core) = args.cores.first() {
        pin_current_thread(*core).map_err(|error| error.to_string())?;
    }
    let began = Instant::now();
    let first = u32::from(args.source);
    let addresses = (first..=u32::MAX).map(Ipv4Addr::from);
    let sources = addresses.flat_map(|ip| PORTS.map(move |port| SocketAddrV4::new(ip, port)));
    let mut speakers = Vec::new();
    for source in sources {
        if speakers.len() as u64 == args.connections || is_over.load(Ordering::Relaxed) {
            break;
        }
        match connected(source, args.target) {
            Ok(socket) => speakers.push(Speaker { socket, said: 0 }),
            // Somebody else's port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(format!("cannot connect from {source}: {error}")),
        }
    }
    let all = speakers.len() as u64;
    tell("hold", began, all, 0);
    while !is_over.load(Ordering::Relaxed) {
        speakers.retain_mut(Speaker::speak);
        let left = speakers.len() as u64;
        tell("hold", began, left, all - left);
        std::thread::sleep(Duration::from_millis(20));
    }
    if let Some(path) = &args.json {
        let summary =
            serde_json::json!({ "established": all, "given_up": all - speakers.len() as u64 });
        std::fs::write(path, summary.to_string())
            .map_err(|cause| format!("cannot write {}: {cause}", path.display()))?;
    }
    Ok(())
}

struct Speaker {
    socket: Socket,
    said: usize,
}

impl Speaker {
    /// Says what the socket takes. False when the server has closed the connection.
    fn speak(&mut self) -> bool {
        const LINES: [u8; 4096] = {
            let mut lines = [b'x'; 4096];
            let mut end = 63;
            while end < lines.len() {
                lines[end] = b'\n';
                end += 64;
            }
            lines
        };
        loop {
            if self.said >= MOST_BYTES {
                // What it said is all taken: the connection's own state tells.
                return !matches!(self.socket.take_error(), Ok(Some(_)) | Err(_));
            }
            match self.socket.send(&LINES[self.said % LINES.len()..]) {
                Ok(sent) => self.said += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return !matches!(self.socket.take_error(), Ok(Some(_)) | Err(_));
                }
                Err(_) => return false,
            }
        }
    }
}

fn connected(source: SocketAddrV4, target: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_recv_buffer_size(RECV_BUFFER_BYTES)?;
    socket.bind(&source.into())?;
    socket.connect(&target.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A line as those of `throng-client --samples`.
fn tell(phase: &str, began: Instant, established: u64, lost: u64) {
    let progress = Progress {
        t_ms: millis(began.elapsed()),
        phase: phase.to_owned(),
        established,
        lost,
        ..Progress::default()
    };
    // Its reader has ended it, then.
    if let Ok(line) = serde_json::to_string(&progress) {
        let _ = writeln!(stdout(), "{line}").and_then(|()| stdout().flush());
    }
}
