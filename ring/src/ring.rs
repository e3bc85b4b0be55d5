//! One io_uring: set-up, submission that flushes when full, waiting, draining.
//!
//! Owns: the ring. Invariant: the submission queue is never overrun, and a submission the kernel did not take
//! stays queued.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{EnterFlags, IoUring, squeue};
use nix::libc;

use crate::lockdown::{Uses, installs, restrict};
use crate::probe::{Unavailable, why};

/// What makes a ring the first of its group or one of the others.
pub(crate) enum Role {
    /// The ring the thread waits on: its task work is deferred to that wait.
    First,
    /// A ring whose completions are announced on an eventfd that the first ring polls. Deferred task work
    /// would wait here for an enter that nobody knows is due.
    Other {
        /// The eventfd.
        wake: RawFd,
    },
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) enters: u64,
    pub(crate) submitted: u64,
    pub(crate) full_flushes: u64,
    pub(crate) overflows: u64,
    pub(crate) refused_submits: u64,
}

pub(crate) struct Ring {
    io: IoUring,
    /// Whether completions may be announced on an eventfd.
    announces: bool,
    no_iowait: bool,
    /// Completions that were in the queue when the last submission was over, and have not been drained.
    owed: usize,
    pub(crate) counters: Counters,
    /// Why it may be asked for anything, where it may.
    pub(crate) unrestricted: Option<io::Error>,
    /// Whether it makes ordinary descriptors of direct ones.
    pub(crate) installs: bool,
}

/// What `struct io_uring_getevents_arg` is in the kernel's headers. `min_wait_usec` (padding before Linux 6.12) is always
/// 0: a minimum wait is a timer more for each wait, and costs more than the completions it gathers save.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timeout: u64,
}

impl Ring {
    /// How often the kernel may take nothing of what is queued, a millisecond apart, before this gives up.
    const MAX_STUCK_FLUSHES: u32 = 1000;

    pub(crate) fn new(
        role: Role,
        entries: u32,
        cq_entries: u32,
        table_slots: u32,
        uses: Uses,
    ) -> Result<Ring, Unavailable> {
        // The ladder: an index array less where the kernel knows how (6.6), else as 6.1 has it.
        let io = build(&role, entries, cq_entries, true)
            .or_else(|_| build(&role, entries, cq_entries, false))
            .map_err(|error| why(error, "the rings this engine needs"))?;
        if table_slots > 0 {
            io.submitter()
                .register_files_sparse(table_slots)
                .map_err(|error| why(error, "sparse tables of direct descriptors"))?;
        }
        // A close or a shutdown that goes to the kernel's worker threads must not start hundreds of them.
        io.submitter()
            .register_iowq_max_workers(&mut [2, 2])
            .map_err(|error| why(error, "a bound on worker threads"))?;
        let announces = match role {
            Role::First => false,
            Role::Other { wake } => {
                io.submitter()
                    .register_eventfd(wake)
                    .map_err(|error| why(error, "eventfd announcements"))?;
                true
            }
        };
        let installs = installs(&io, uses);
        let unrestricted = restrict(&io, uses, installs).err();
        io.submitter()
            .register_enable_rings()
            .map_err(|error| why(error, "rings that are enabled when they are set up"))?;
        let params = io.params();
        Ok(Ring {
            announces,
            no_iowait: params.is_feature_no_iowait(),
            owed: 0,
            counters: Counters::default(),
            unrestricted,
            installs,
            io,
        })
    }

    /// Queues `entry`; where the queue is full, what is in it is submitted first.
    ///
    /// # Safety
    /// Memory that `entry` points to stays valid and is used by nobody else until its completion, or, for an
    /// operation that cannot wait, until it was submitted.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { self.io.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        self.counters.full_flushes += 1;
        self.flush()?;
        // SAFETY: the caller's promise.
        unsafe { self.io.submission().push(entry) }.map_err(io::Error::other)
    }

    /// Submits what is queued, all of it, without waiting for completions.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        for _ in 0..Self::MAX_STUCK_FLUSHES {
            let queued = self.io.submission().len();
            if queued == 0 {
                return Ok(());
            }
            self.enter(queued, 0, EnterFlags::empty(), None)?;
            if self.io.submission().len() == queued {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Err(io::Error::other(
            "the kernel takes no more submissions; it is likely out of memory (see dmesg)",
        ))
    }

    /// Brings completions that did not fit the queue into it, as far as they fit now.
    pub(crate) fn flush_overflow(&mut self) -> io::Result<()> {
        self.enter(0, 0, EnterFlags::GETEVENTS, None)
    }

    /// Submits what is queued and waits for `want` completions, or until `timeout`.
    pub(crate) fn submit_and_wait(&mut self, want: u32, timeout: Duration) -> io::Result<()> {
        let queued = self.io.submission().len();
        let timeout = Timespec::from(timeout);
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_usec: 0,
            timeout: std::ptr::from_ref(&timeout) as u64,
        };
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if self.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        self.enter(queued, want as usize, flags, Some(&arg))?;
        // The kernel may have taken only some, for lack of memory: the rest must not be thought submitted.
        self.flush()
    }

    pub(crate) fn has_completions(&mut self) -> bool {
        !self.io.completion().is_empty()
    }

    /// Completions that have not been drained; none where the kernel holds more than the queue does.
    pub(crate) fn unread(&mut self) -> Option<usize> {
        let is_all = !self.io.submission().cq_overflow();
        is_all.then(|| self.io.completion().len())
    }

    /// What has been submitted so far is answered for, as far as it did not wait, by the completions now in the queue.
    pub(crate) fn mark(&mut self) {
        self.owed = self.io.completion().len();
    }

    /// True when those have been drained.
    pub(crate) fn is_past_mark(&self) -> bool {
        self.owed == 0
    }

    /// True while the kernel holds completions that did not fit the queue.
    pub(crate) fn has_overflowed(&mut self) -> bool {
        let overflowed = self.io.submission().cq_overflow();
        self.counters.overflows += u64::from(overflowed);
        overflowed
    }

    /// Completions the kernel had to drop for lack of memory, so far. Each leaves an operation without its end.
    pub(crate) fn dropped(&mut self) -> u32 {
        self.io.completion().overflow()
    }

    /// Calls `each` with user data, result and flags of the first completions in the queue, at most `most`.
    pub(crate) fn drain(&mut self, most: usize, mut each: impl FnMut(u64, i32, u32)) {
        let mut drained = 0;
        for completion in self.io.completion().take(most) {
            drained += 1;
            each(
                completion.user_data(),
                completion.result(),
                completion.flags(),
            );
        }
        self.owed = self.owed.saturating_sub(drained);
    }

    /// Announce completions, or not: nobody needs to be woken who is awake.
    pub(crate) fn announce(&mut self, on: bool) {
        if !self.announces {
            return;
        }
        let queue = self.io.completion();
        if on {
            queue.enable_eventfd();
        } else {
            queue.disable_eventfd();
        }
    }

    /// Puts ordinary descriptors into the table from `first` on. They may be closed afterwards.
    pub(crate) fn install(&mut self, first: u32, fds: &[RawFd]) -> io::Result<()> {
        let installed = self.io.submitter().register_files_update(first, fds)?;
        if installed < fds.len() {
            return Err(io::Error::other(format!(
                "the table took {installed} of {} sockets",
                fds.len()
            )));
        }
        Ok(())
    }

    fn enter(
        &mut self,
        queued: usize,
        want: usize,
        flags: EnterFlags,
        arg: Option<&GetEventsArg>,
    ) -> io::Result<()> {
        self.counters.enters += 1;
        // SAFETY: `arg` and the timespec it points to live until the call returns; the kernel keeps neither.
        let result = unsafe {
            self.io
                .submitter()
                .enter(queued as u32, want as u32, flags.bits(), arg)
        };
        match result {
            Ok(submitted) => {
                self.counters.submitted += submitted as u64;
                Ok(())
            }
            // Nothing came in time; a signal came; or the kernel lacks memory for requests just now, and what it
            // did not take stays queued.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                Some(libc::EAGAIN | libc::EBUSY) => {
                    self.counters.refused_submits += 1;
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}

fn build(role: &Role, entries: u32, cq_entries: u32, no_sqarray: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        // Until it is restricted.
        .setup_r_disabled()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(cq_entries);
    match role {
        Role::First => builder.setup_defer_taskrun(),
        Role::Other { .. } => builder.setup_coop_taskrun(),
    };
    if no_sqarray {
        builder.setup_no_sqarray();
    }
    builder.build(entries)
}
