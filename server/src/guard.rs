//! Looks at the host's memory, so that new connections are refused before those that are held suffer.
//!
//! Owns: a thread that reads and says so to the [`Admission`]. Touches no connection. The kernel knows three ends of
//! memory: of the host (then it kills), of the control group (then it kills in there), and of TCP (`tcp_mem`: then it drops
//! what arrives for connections that are held).
//!
//! Invariant: near an end it looks ten times a second; what cannot be read is no reason to refuse.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use kernel_tuning::host::{CgroupMemory, Memory, Sockstat, tcp_mem_pages};
use tracing::warn;

use crate::admission::Admission;

/// Looks until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    _alive: Sender<()>,
}

impl Guard {
    /// Has connections refused while less than `reserve_bytes` is left.
    pub(crate) fn start(admission: Arc<Admission>, reserve_bytes: u64) -> io::Result<Guard> {
        let (alive, ended) = channel();
        std::thread::Builder::new()
            .name("memory".into())
            .spawn(move || {
                let mut was_short = false;
                loop {
                    let room = Room::read();
                    let is_short = room.is_short(reserve_bytes);
                    admission.set_memory_is_short(is_short);
                    if is_short && !was_short {
                        warn!(
                            ?room,
                            reserve_bytes, "memory is short: new connections are refused"
                        );
                    }
                    was_short = is_short;
                    let pause = room.look_again(reserve_bytes);
                    if ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })?;
        Ok(Guard { _alive: alive })
    }
}

/// What is left before each end; none where there is no such end.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    host_bytes: Option<u64>,
    cgroup_bytes: Option<u64>,
    tcp_bytes: Option<u64>,
    tcp_limit_bytes: u64,
}

impl Room {
    const PAGE_BYTES: u64 = 4096;

    fn read() -> Room {
        let limit_pages = tcp_mem_pages().ok().map(|[_, _, limit]| limit);
        let used_pages = Sockstat::read().ok().map(|now| now.mem_pages);
        Room {
            host_bytes: Memory::read().ok().map(|now| now.available_bytes),
            cgroup_bytes: CgroupMemory::read()
                .map(|now| now.limit_bytes.saturating_sub(now.used_bytes)),
            tcp_bytes: limit_pages
                .zip(used_pages)
                .map(|(limit, used)| limit.saturating_sub(used) * Self::PAGE_BYTES),
            tcp_limit_bytes: limit_pages.unwrap_or(0) * Self::PAGE_BYTES,
        }
    }

    fn is_short(&self, reserve_bytes: u64) -> bool {
        self.is_within(reserve_bytes, 16)
    }

    /// Seldom while there is plenty, so that the look itself costs nothing.
    fn look_again(&self, reserve_bytes: u64) -> Duration {
        match self.is_within(reserve_bytes.saturating_mul(8), 2) {
            true => Duration::from_millis(100),
            false => Duration::from_millis(500),
        }
    }

    /// Less than so many bytes, or of TCP's less than such a part, are left.
    fn is_within(&self, bytes: u64, tcp_part: u64) -> bool {
        let is_less = |left: Option<u64>, bytes| left.is_some_and(|left| left < bytes);
        is_less(self.host_bytes, bytes)
            || is_less(self.cgroup_bytes, bytes)
            || is_less(self.tcp_bytes, self.tcp_limit_bytes / tcp_part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_seen_and_what_is_unknown_is_none() {
        const RESERVE: u64 = 64 << 20;
        let plenty = Room {
            host_bytes: Some(8 << 30),
            cgroup_bytes: None,
            tcp_bytes: Some(1 << 30),
            tcp_limit_bytes: 1 << 30,
        };
        assert!(!plenty.is_short(RESERVE) && !Room::default().is_short(RESERVE));
        assert_eq!(plenty.look_again(RESERVE), Duration::from_millis(500));
        for short in [
            Room {
                host_bytes: Some(RESERVE - 1),
                ..plenty
            },
            Room {
                cgroup_bytes: Some(0),
                ..plenty
            },
            Room {
                tcp_bytes: Some(1 << 25),
                ..plenty
            },
        ] {
            assert!(short.is_short(RESERVE), "{short:?}");
            assert_eq!(short.look_again(RESERVE), Duration::from_millis(100));
        }
    }
}
