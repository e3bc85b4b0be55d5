//! A server that only accepts and keeps its connections.
//!
//! Invariant: a connection that was accepted stays open until the process ends.

use std::io::{Write, stdout};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use clap::Args;
use kernel_tuning::process::pin_current_thread;
use socket2::{Domain, Socket, Type};

use crate::bare::{cannot, end_of};
use crate::stop::TICK;

/// The same flags as those of `throng-server`, where they mean something here.
#[derive(Debug, Args)]
pub struct BareArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Cores to run on
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Share the port with other processes that do the same (SO_REUSEPORT)
    #[arg(long)]
    reuse_port: bool,
    /// Write the summary to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// End when standard input closes
    #[arg(long)]
    until_stdin_closes: bool,
}

/// Runs it until it is told to end.
///
/// # Errors
/// What to tell the user.
pub fn run(args: &BareArgs) -> Result<(), String> {
    let is_over = end_of(args.until_stdin_closes)?;
    let listener =
        listen(args).map_err(|cause| cannot(&format!("listen on {}", args.listen), &cause))?;
    let address = listener
        .local_addr()
        .map_err(|cause| cannot("read the address", &cause))?;
    let accepted = Arc::new(AtomicU64::new(0));
    let failure = accept(listener, args.cores.first().copied(), Arc::clone(&accepted));
    let _ = writeln!(stdout(), "ready on {address} (bare: accepts, and keeps)");
    let failed = loop {
        match failure.recv_timeout(TICK) {
            Ok(cause) => break Some(cause),
            Err(RecvTimeoutError::Disconnected) => break Some("accepting ended".to_owned()),
            Err(RecvTimeoutError::Timeout) if is_over.load(Ordering::Relaxed) => break None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    if let Some(path) = &args.json {
        write_summary(path, accepted.load(Ordering::Relaxed))
            .map_err(|cause| cannot(&format!("write {}", path.display()), &cause))?;
    }
    failed.map_or(Ok(()), Err)
}

fn listen(args: &BareArgs) -> std::io::Result<TcpListener> {
    /// As the server's own.
    const BACKLOG: i32 = 4_096;
    let socket = Socket::new(Domain::for_address(args.listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(args.reuse_port)?;
    socket.bind(&args.listen.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts on a thread of its own, which ends with the process; what it cannot accept comes back as a cause.
fn accept(
    listener: TcpListener,
    core: Option<usize>,
    accepted: Arc<AtomicU64>,
) -> Receiver<String> {
    let (failure, failures) = channel();
    std::thread::spawn(move || {
        if let Some(Err(error)) = core.map(pin_current_thread) {
            let _ = failure.send(error.to_string());
            return;
        }
        // The descriptor and nothing else: a blocking socket that nobody reads.
        let mut kept: Vec<OwnedFd> = Vec::new();
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    kept.push(stream.into());
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    let _ = failure.send(format!(
                        "cannot accept after {} connections: {error}",
                        kept.len()
                    ));
                    return;
                }
            }
        }
    });
    failures
}

fn write_summary(path: &Path, accepted: u64) -> std::io::Result<()> {
    let summary = serde_json::json!({ "accepted": accepted });
    std::fs::write(path, summary.to_string())
}
