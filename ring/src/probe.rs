//! What this kernel can do, found by trying, and why not.
//!
//! Nothing here parses a version string: kernels are patched, and containers refuse what kernels offer.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use io_uring::IoUring;
use nix::libc;
use thiserror::Error;

use crate::group::{Config, Group};
use crate::operation::Operation;

/// Why io_uring cannot be used here.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// ENOSYS.
    #[error(
        "this kernel was built without io_uring (CONFIG_IO_URING), or a seccomp filter hides it"
    )]
    NotBuilt,
    /// kernel.io_uring_disabled is not 0.
    #[error(
        "io_uring is switched off by a sysctl: kernel.io_uring_disabled = {0}; as root: sysctl -w kernel.io_uring_disabled=0"
    )]
    Disabled(u32),
    /// EPERM or EACCES while the sysctl allows it.
    #[error(
        "io_uring is refused, most likely by a seccomp filter (container runtimes deny it by default): allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Refused,
    /// The ring, its flags or its sparse table are unknown here.
    #[error("this kernel is too old for {missing}: Linux 6.1 or newer is needed")]
    TooOld {
        /// The missing feature.
        missing: &'static str,
    },
    /// ENOMEM: RLIMIT_MEMLOCK ([`Config::queue_bytes`]), or really no memory.
    #[error(
        "a ring was refused memory (ENOMEM), most likely by RLIMIT_MEMLOCK, to which all rings of a user without CAP_IPC_LOCK are charged: see `ulimit -l`; raise it (LimitMEMLOCK=infinity in a unit of systemd; as root: prlimit --memlock=unlimited --pid $$)"
    )]
    NoMemory,
    /// EMFILE and the like.
    #[error("a ring could not be created: {0}; look at `ulimit -n`")]
    Failed(io::Error),
}

/// Creates the smallest ring of the kind this crate uses, and throws it away.
///
/// # Errors
/// The reason in words, with what to do.
pub fn probe() -> Result<(), Unavailable> {
    let ring: IoUring = IoUring::builder()
        .setup_defer_taskrun()
        .setup_single_issuer()
        .setup_submit_all()
        .build(4)
        .map_err(|error| why(error, "deferred task work (IORING_SETUP_DEFER_TASKRUN)"))?;
    ring.submitter()
        .register_files_sparse(4)
        .map_err(|error| why(error, "sparse tables of direct descriptors"))?;
    if !ring.params().is_feature_skip_cqe_on_success() {
        return Err(Unavailable::TooOld {
            missing: "sends without a completion (IOSQE_CQE_SKIP_SUCCESS)",
        });
    }
    Ok(())
}

/// Makes a ring with a table of so many direct descriptors, and throws it away.
///
/// # Errors
/// That of the kernel: EMFILE above RLIMIT_NOFILE or 1 << 20, ENOMEM.
pub fn holds_table(slots: u32) -> io::Result<()> {
    let ring: IoUring = IoUring::builder()
        .setup_defer_taskrun()
        .setup_single_issuer()
        .build(4)?;
    ring.submitter().register_files_sparse(slots)
}

/// Whether closing a direct descriptor closes its socket while a request is parked on another slot.
///
/// Before Linux 6.13 one long-lived request keeps every socket alive that is closed after it (liburing #1192; kernel
/// commit 7029acd8a950): a server that parks idle connections would never let a peer go. Found by trying: a poll is
/// parked on one socket, another is closed, and its peer must see the end.
///
/// # Errors
/// The ring or the sockets could not be had.
pub fn direct_descriptors_release() -> Result<bool, Unavailable> {
    let mut group = Group::new(Config {
        table_slots: 2,
        recv_buffers: 1,
        ..Config::default()
    })?;
    releases(&mut group).map_err(Unavailable::Failed)
}

fn releases(group: &mut Group) -> io::Result<bool> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let (parked, _parked_peer) = UnixStream::pair()?;
    let (closed, mut peer) = UnixStream::pair()?;
    group.install(0, 0, &[parked.into(), closed.into()])?;
    let generation = 0;
    for operation in [
        Operation::Poll {
            slot: 0,
            generation,
        },
        Operation::Close {
            slot: 1,
            generation,
        },
    ] {
        group.push(0, operation)?;
        group.submit_and_wait(Duration::ZERO)?;
    }
    peer.set_read_timeout(Some(PATIENCE))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match peer.read(&mut [0]) {
            Ok(count) => return Ok(count == 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // A ring's task work interrupts calls.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
    }
}

/// The likely cause of a refused set-up.
pub(crate) fn why(error: io::Error, missing: &'static str) -> Unavailable {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Unavailable::NotBuilt,
        Some(libc::EPERM | libc::EACCES) => match disabled_by_sysctl() {
            Some(level @ 1..) => Unavailable::Disabled(level),
            _ => Unavailable::Refused,
        },
        Some(libc::EINVAL) => Unavailable::TooOld { missing },
        Some(libc::ENOMEM) => Unavailable::NoMemory,
        _ => Unavailable::Failed(error),
    }
}

fn disabled_by_sysctl() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn direct_descriptors_are_tried_and_not_assumed() {
        if let Ok(releases) = direct_descriptors_release() {
            // True on every kernel since 6.13; a false is a finding about the kernel, not an error here.
            println!("direct descriptors release their sockets: {releases}");
        }
    }

    #[test]
    fn a_table_is_bounded_by_the_open_file_limit() {
        if probe().is_err() {
            return;
        }
        holds_table(64).unwrap();
        let error = holds_table(u32::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    }

    #[test]
    fn the_queues_of_a_ring_are_what_was_seen_to_be_charged() {
        let pages = |table_slots| {
            let config = Config {
                table_slots,
                ..Config::default()
            };
            config.queue_bytes(4096) / 4096
        };
        // By the least limit with which an ordinary user had such a ring, on Linux 6.18.
        assert_eq!([300, 8192, 20_000, 1 << 20].map(pages), [33, 49, 145, 273]);
    }

    #[test]
    fn each_refusal_names_its_cause() {
        let says = |errno, word: &str| {
            let text = why(io::Error::from_raw_os_error(errno), "x").to_string();
            assert!(text.contains(word), "{text}");
        };
        says(libc::ENOSYS, "CONFIG_IO_URING");
        says(libc::EPERM, "allow io_uring");
        says(libc::EINVAL, "Linux 6.1");
        says(libc::ENOMEM, "RLIMIT_MEMLOCK");
        says(libc::EMFILE, "ulimit -n");
    }
}
