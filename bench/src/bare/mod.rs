//! Two ends of a connection that do nothing but keep it: no readiness machinery, no protocol, not a byte said or read. They
//! are what a connection's memory is held against; `throng-bench memory` starts them.
//!
//! | room | owns |
//! |---|---|
//! | [`server`] | accepts, and keeps |
//! | [`client`] | connects, and keeps |

use std::io::{Read, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kernel_tuning::process::{prefer_oom_kill, raise_nofile};
use signal_hook::consts::{SIGINT, SIGTERM};

pub mod client;
pub mod server;

/// True once this process is to end: by a signal, or when its standard input closes, where that is a lifeline.
pub(crate) fn end_of(until_stdin_closes: bool) -> Result<Arc<AtomicBool>, String> {
    raise_nofile().map_err(|error| error.to_string())?;
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_over))
            .map_err(|cause| cannot("handle signals", &cause))?;
    }
    if until_stdin_closes {
        // Part of a load test. Where it is refused (a read-only /proc), this works as well.
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

fn cannot(what: &str, cause: &dyn std::fmt::Display) -> String {
    format!("cannot {what}: {cause}")
}
