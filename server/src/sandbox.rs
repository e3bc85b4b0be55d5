//! The system calls that a running server makes, and no others: a seccomp filter, on request.
//!
//! Owns: the list. The filter is for all threads and for good. A call that is not on it kills the process: it is one that
//! this program never makes, so somebody else's code makes it, and a server that goes on with an EPERM gives that code
//! another try. What is submitted to a ring does not pass the filter; the rings are restricted by themselves.
//!
//! Invariant: no program, thread, socket or connection is started, no file is opened to be written, and no memory becomes
//! executable.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// No such architecture, or too many rules.
    #[error("the filter cannot be built here: {0}")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel refuses it.
    #[error(
        "the kernel refuses the filter: {0}; see CONFIG_SECCOMP_FILTER, or start without --sandbox"
    )]
    Apply(#[from] seccompiler::Error),
}

/// What is allowed whatever its arguments.
const CALLS: &[i64] = &[
    // Rings, and their growth.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_eventfd2,
    // Connections that are there, and those that come.
    libc::SYS_accept4,
    // Once, the backlog of sockets that were taken over: they are changed when their former server has let go of them.
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_fcntl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    // Reading /proc.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_pread64,
    // Memory that is not to be executed; see below for mmap and mprotect.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    // Threads that are there, or have just been started, and time.
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    // Signals, and the end.
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_unlinkat,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[i64] = &[];

/// Confines all threads of this process.
///
/// # Errors
/// The filter cannot be had.
pub fn enter() -> Result<(), SandboxError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(
        rules()?,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}

fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS
        .iter()
        .chain(OLD_CALLS)
        .map(|call| (*call, Vec::new()))
        .collect();
    let writes = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64;
    let executable = libc::PROT_EXEC as u64;
    rules.insert(libc::SYS_openat, vec![without(2, writes)?]);
    rules.insert(libc::SYS_mmap, vec![without(2, executable)?]);
    rules.insert(libc::SYS_mprotect, vec![without(2, executable)?]);
    // Whether it is a terminal, and whether it waits: not TIOCSTI, which types for the terminal's user.
    rules.insert(
        libc::SYS_ioctl,
        vec![with(1, libc::TCGETS)?, with(1, libc::FIONBIO)?],
    );
    // A thread's name.
    rules.insert(libc::SYS_prctl, vec![with(0, libc::PR_SET_NAME as u64)?]);
    Ok(rules)
}

/// True where argument number `argument` is `value`.
fn with(argument: u8, value: u64) -> Result<SeccompRule, SandboxError> {
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// True where argument number `argument` has none of `bits`.
fn without(argument: u8, bits: u64) -> Result<SeccompRule, SandboxError> {
    let none = SeccompCmpOp::MaskedEq(bits);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, none, 0)?;
    Ok(SeccompRule::new(vec![condition])?)
}
