//! The role `deaf-client`: connections that send and never read, until the server gives them up.
//!
//! Invariant: each connection sends a bounded amount, so that what is queued for all of them is bounded too.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kernel_tuning::process::pin_current_thread;
use socket2::Socket;

use crate::bare::client::{BareClientArgs, connect, tell};
use crate::bare::end_of;
use crate::load::Progress;

/// What each sends: more than a small send buffer of the server keeps of the echo.
const MOST_BYTES: usize = 96 << 10;
/// Of a socket whose reader is slow.
const RECV_BUFFER_BYTES: usize = 4 << 10;

/// Runs it until it is told to end, or every connection is closed.
///
/// # Errors
/// What to tell the user.
pub fn run(args: &BareClientArgs) -> Result<(), String> {
    let is_over = end_of(args.until_stdin_closes)?;
    if let Some(core) = args.cores.first() {
        pin_current_thread(*core).map_err(|error| error.to_string())?;
    }
    let began = Instant::now();
    let mut sockets = Vec::new();
    connect(args, &is_over, &mut sockets, |socket| {
        socket.set_recv_buffer_size(RECV_BUFFER_BYTES)
    })?;
    let all = sockets.len() as u64;
    let mut speakers = Vec::new();
    for socket in sockets {
        socket
            .set_nonblocking(true)
            .map_err(|error| error.to_string())?;
        speakers.push(Speaker { socket, said: 0 });
    }
    let hold = |established| Progress {
        established,
        lost: all - established,
        ..Progress::default()
    };
    tell("hold", began, hold(all));
    while !is_over.load(Ordering::Relaxed) {
        speakers.retain_mut(Speaker::speak);
        tell("hold", began, hold(speakers.len() as u64));
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
