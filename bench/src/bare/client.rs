//! A client that only connects and keeps its connections, from addresses and ports of its own choice as `throng-client` does.
//!
//! Invariant: each connection has a source address and port that it was bound to, and stays open until the process ends, by a
//! reset, so that none is left in TIME_WAIT.

use std::io::{self, Write, stdout};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use kernel_tuning::process::pin_current_thread;
use socket2::{Domain, Socket, Type};

use crate::bare::{cannot, end_of};
use crate::clock::millis;
use crate::load::Progress;
use crate::stop::TICK;

/// The ports that are bound at each address, in order.
const PORTS: std::ops::Range<u16> = 20_000..60_000;

/// The same flags as those of `throng-client`, where they mean something here.
#[derive(Debug, Args)]
pub struct BareClientArgs {
    /// Where to connect to
    pub(crate) target: SocketAddr,
    /// Cores to run on
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) cores: Vec<usize>,
    /// How many connections
    #[arg(long, value_name = "N")]
    pub(crate) connections: u64,
    /// The first address to connect from
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Ipv4Addr,
    /// Write JSON lines of how it goes; `-` alone, stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) samples: Option<PathBuf>,
    /// Write the summary to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// End when standard input closes
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

/// Runs it until it is told to end.
///
/// # Errors
/// What to tell the user.
pub fn run(args: &BareClientArgs) -> Result<(), String> {
    let is_over = end_of(args.until_stdin_closes)?;
    if let Some(core) = args.cores.first() {
        pin_current_thread(*core).map_err(|error| error.to_string())?;
    }
    let began = Instant::now();
    tell("ramp", began, Progress::default());
    let mut kept = Vec::new();
    let failed = connect(args, &is_over, &mut kept, |_| Ok(()));
    let established = kept.len() as u64;
    let hold = || Progress {
        established,
        failed: args.connections - established,
        ..Progress::default()
    };
    tell("hold", began, hold());
    let mut told = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
        if told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            tell("hold", began, hold());
        }
    }
    if let Some(path) = &args.json {
        let diagnosis = failed.as_ref().err();
        let summary = serde_json::json!({ "established": established, "diagnosis": diagnosis });
        std::fs::write(path, summary.to_string())
            .map_err(|cause| cannot(&format!("write {}", path.display()), &cause))?;
    }
    failed
}

/// As many as were asked for, one after the other, unless it is over before. Each socket is made `ready` before it is bound.
pub(crate) fn connect(
    args: &BareClientArgs,
    is_over: &AtomicBool,
    kept: &mut Vec<Socket>,
    ready: impl Fn(&Socket) -> io::Result<()>,
) -> Result<(), String> {
    let first = u32::from(args.source);
    let addresses = (first..=u32::MAX).map(Ipv4Addr::from);
    let mut sources = addresses.flat_map(|ip| PORTS.map(move |port| SocketAddrV4::new(ip, port)));
    while (kept.len() as u64) < args.connections && !is_over.load(Ordering::Relaxed) {
        let Some(source) = sources.next() else { break };
        match connected(source, args.target, &ready) {
            Ok(socket) => kept.push(socket),
            // Somebody else's port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                let what = format!("connect from {source} after {} connections", kept.len());
                return Err(cannot(&what, &error));
            }
        }
    }
    Ok(())
}

fn connected(
    source: SocketAddrV4,
    target: SocketAddr,
    ready: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    ready(&socket)?;
    socket.bind(&source.into())?;
    socket.connect(&target.into())?;
    Ok(socket)
}

/// A line as those of `throng-client --samples`, of a phase that began then.
pub(crate) fn tell(phase: &str, began: Instant, progress: Progress) {
    let progress = Progress {
        t_ms: millis(began.elapsed()),
        phase: phase.to_owned(),
        ..progress
    };
    // Its reader has ended it, then.
    if let Ok(line) = serde_json::to_string(&progress) {
        let _ = writeln!(stdout(), "{line}").and_then(|()| stdout().flush());
    }
}
