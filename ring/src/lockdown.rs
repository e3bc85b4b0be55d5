//! What a ring may be asked for: the operations in use, and nothing else.
//!
//! What is submitted to a ring passes no seccomp filter, so the ring itself is told what it is for, before its first use
//! and for good (io_uring_register(2), IORING_REGISTER_RESTRICTIONS, Linux 5.10): a process that is taken over can open no
//! file and make no socket by a ring that accepts. Invariant: a ring that is used was enabled on the thread that submits
//! to it, which IORING_SETUP_SINGLE_ISSUER asks for.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

/// What the rings of a group are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uses {
    /// Everything that is an [`Operation`](crate::Operation).
    #[default]
    All,
    /// Connections that are accepted.
    Accept,
    /// Connections that are made.
    Connect,
}

/// IORING_REGISTER_FILES_UPDATE, as the kernel's headers have it.
const REGISTER_FILES_UPDATE: u8 = 6;

/// Restricts a ring that was created disabled to what `uses` needs.
pub(crate) fn restrict(io: &IoUring, uses: Uses) -> io::Result<()> {
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
    if uses != Uses::Accept {
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
}
