//! What a ring may be asked for: the operations in use, and nothing else.
//!
//! What is submitted to a ring passes no seccomp filter, so the ring itself is told what it is for, before its first use
//! and for good (io_uring_register(2), IORING_REGISTER_RESTRICTIONS, Linux 5.10): a process that is taken over can open no
//! file and make no socket by a ring that accepts. Invariant: a ring that is used was enabled on the thread that submits
//! to it, which IORING_SETUP_SINGLE_ISSUER asks for.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue};

/// What the rings of a group are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uses {
    /// Everything that is an [`Operation`](crate::Operation).
    #[default]
    All,
    /// Connections that are accepted.
    Accept,
    /// Connections that are accepted, and that the kernel is asked about by ordinary descriptors.
    Inspect,
    /// Connections that are made.
    Connect,
}

/// IORING_REGISTER_FILES_UPDATE, as the kernel's headers have it.
const REGISTER_FILES_UPDATE: u8 = 6;

/// Whether `uses` needs ordinary descriptors of direct ones, and the kernel makes them (Linux 6.8). Restrictions that name an
/// operation which the kernel does not know are refused as a whole.
pub(crate) fn installs(io: &IoUring, uses: Uses) -> bool {
    let mut probe = Probe::new();
    matches!(uses, Uses::All | Uses::Inspect)
        && io.submitter().register_probe(&mut probe).is_ok()
        && probe.is_supported(opcode::FixedFdInstall::CODE)
}

/// Restricts a ring that was created disabled to what `uses` needs, with ordinary descriptors of direct ones or without.
pub(crate) fn restrict(io: &IoUring, uses: Uses, installs: bool) -> io::Result<()> {
    let flags = squeue::Flags::FIXED_FILE | squeue::Flags::SKIP_SUCCESS;
    let mut allowed = vec![
        Restriction::sqe_flags_allowed(flags.bits()),
        Restriction::sqe_op(opcode::PollAdd::CODE),
        Restriction::sqe_op(opcode::Recv::CODE),
        Restriction::sqe_op(opcode::Send::CODE),
        Restriction::sqe_op(opcode::AsyncCancel::CODE),
        Restriction::sqe_op(opcode::Close::CODE),
    ];
    if uses != Uses::Connect {
        allowed.push(Restriction::sqe_op(opcode::Accept::CODE));
    }
    if installs {
        allowed.push(Restriction::sqe_op(opcode::FixedFdInstall::CODE));
    }
    if matches!(uses, Uses::All | Uses::Connect) {
        allowed.extend([
            Restriction::sqe_op(opcode::Connect::CODE),
            Restriction::sqe_op(opcode::Shutdown::CODE),
            Restriction::register_op(REGISTER_FILES_UPDATE),
        ]);
    }
    io.submitter().register_restrictions(&mut allowed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Config, Group, Operation, probe};
    use nix::libc;
    use std::time::Duration;

    #[test]
    fn a_ring_does_what_it_is_for_and_nothing_else() {
        if let Err(why) = probe() {
            return eprintln!("SKIPPED: {why}");
        }
        let mut group = Group::new(Config {
            uses: Uses::Accept,
            targets: vec!["127.0.0.1:1".parse().unwrap()],
            ..Config::default()
        })
        .unwrap();
        group.add_ring().unwrap();
        assert!(group.unrestricted().is_none(), "{:?}", group.unrestricted());
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let refused = group.install(0, 0, &[socket.into()]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        let (slot, generation) = (0, 0);
        for (operation, errno) in [
            (
                Operation::Connect {
                    slot,
                    generation,
                    target: 0,
                },
                libc::EACCES,
            ),
            (Operation::Shutdown { slot, generation }, libc::EACCES),
            (Operation::FdInstall { slot, generation }, libc::EACCES),
            // Allowed; there is nothing in the slot.
            (Operation::Recv { slot, generation }, libc::EBADF),
        ] {
            for ring in 0..2 {
                let text = format!("{operation:?} on ring {ring}");
                let operation = match operation {
                    Operation::Connect { .. } => Operation::Connect {
                        slot,
                        generation,
                        target: 0,
                    },
                    Operation::Shutdown { .. } => Operation::Shutdown { slot, generation },
                    Operation::FdInstall { .. } => Operation::FdInstall { slot, generation },
                    _ => Operation::Recv { slot, generation },
                };
                group.push(ring, operation).unwrap();
                let mut completions = Vec::new();
                for _ in 0..100 {
                    group.submit_and_wait(Duration::from_millis(100)).unwrap();
                    group.drain(&mut completions);
                    group.settle().unwrap();
                    if !completions.is_empty() {
                        break;
                    }
                }
                assert_eq!(completions.len(), 1, "{text}");
                assert_eq!(completions[0].result, -errno, "{text}");
            }
        }
    }

    #[test]
    fn an_ordinary_descriptor_is_made_of_a_direct_one_and_outlives_it() {
        if let Err(why) = probe() {
            return eprintln!("SKIPPED: {why}");
        }
        let mut group = Group::new(Config::default()).unwrap();
        if !group.installs() {
            return eprintln!("SKIPPED: this kernel is older than Linux 6.8");
        }
        let (socket, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
        group.install(0, 0, &[socket.into()]).unwrap();
        let (slot, generation) = (0, 7);
        for operation in [
            Operation::FdInstall { slot, generation },
            Operation::Close { slot, generation },
            Operation::FdInstall { slot, generation },
        ] {
            group.push(0, operation).unwrap();
        }
        // Done in this order when they are submitted: whoever is closed after the question is asked is the one asked about.
        group.submit_and_wait(Duration::ZERO).unwrap();
        let mut completions = Vec::new();
        group.drain(&mut completions);
        let results: Vec<_> = completions.iter().map(|c| c.result).collect();
        assert!(
            matches!(results[..], [fd, e] if fd >= 0 && e == -libc::EBADF),
            "{results:?}"
        );
        peer.set_nonblocking(true).unwrap();
        let mut read = || std::io::Read::read(&mut peer, &mut [0]);
        assert!(read().is_err(), "it is open as long as the descriptor is");
        nix::unistd::close(results[0]).unwrap();
        assert_eq!(read().unwrap(), 0);
    }
}
