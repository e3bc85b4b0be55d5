//! Which limit stopped a run: from an errno, what was being done, and what the host said, to a name and a way out.
//!
//! Pure: it reads nothing and changes nothing. A command is only ever printed, for the user to judge and run.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub use crate::evidence::Evidence;
pub(crate) use headroom::SOCKET_BYTES;
pub use headroom::{Headroom, headrooms};

mod headroom;
mod network;
mod rules;
#[cfg(test)]
mod tests;

/// What was seen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A system call or completion failed with this (positive) errno.
    Errno(i32),
    /// Nothing failed and nothing went on: connects stayed unanswered.
    Stalled,
    /// The other side accepted a connection and closed it at once.
    ClosedAfterAccept,
    /// The other side served some connections, and others, which its kernel took, not at all.
    NeverServed,
}

impl From<&io::Error> for Cause {
    /// An error without an errno of the system counts as EIO.
    fn from(error: &io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(Errno::EIO as i32))
    }
}

/// What was being done when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Setting up io_uring, or registering something with it.
    IoUring,
    /// Making a socket.
    Socket,
    /// Binding or listening as a server.
    Listen,
    /// Accepting.
    Accept,
    /// Binding a client's socket to its source.
    Bind,
    /// Connecting.
    Connect,
    /// Using an established connection.
    Hold,
}

/// The circumstances of the failure.
#[derive(Debug, Clone)]
pub struct Context {
    /// What was being done.
    pub step: Step,
    /// Connections established so far.
    pub established: u64,
    /// Where to: a client's destination, or the address a server listens on.
    pub address: Option<SocketAddr>,
    /// The source address that was being used.
    pub source: Option<IpAddr>,
    /// The CIDRs that the `--source` it belongs to stands for; none where that is one address or an interface.
    pub source_networks: Vec<String>,
    /// The interface that the `--source` names, where it names one.
    pub source_interface: Option<String>,
    /// How many source addresses there are.
    pub sources: u64,
    /// How many destinations (address and port) there are.
    pub destinations: u64,
    /// How many ports of a source the client chooses from; `None` when it leaves the choice to the kernel.
    pub source_ports: Option<u64>,
}

impl Context {
    /// The context of `step`, with nothing established and one source and destination.
    pub fn new(step: Step) -> Self {
        Self {
            step,
            established: 0,
            address: None,
            source: None,
            source_networks: Vec::new(),
            source_interface: None,
            sources: 1,
            destinations: 1,
            source_ports: None,
        }
    }
}

/// A limit that can stop a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// All ports of the sources towards the destinations are taken.
    EphemeralPorts,
    /// A source address is not one of this host's.
    SourceAddress,
    /// Something else listens there.
    AddressInUse,
    /// RLIMIT_NOFILE of this process.
    OpenFiles,
    /// `fs.file-max` of the host.
    HostOpenFiles,
    /// Memory of the host.
    Memory,
    /// `net.ipv4.tcp_mem`: queued TCP data.
    TcpMemory,
    /// The memory limit of the control group.
    CgroupMemory,
    /// RLIMIT_MEMLOCK.
    LockedMemory,
    /// Nothing listens at the destination.
    NobodyListens,
    /// The other side refused, reset or closed a connection by its own rules.
    OtherSide,
    /// An accept queue was full.
    AcceptQueue,
    /// The queue of half-open connections was full.
    SynQueue,
    /// A CPU's input queue was full.
    PacketBacklog,
    /// The table of tracked connections was full.
    Conntrack,
    /// The table of neighbours was full.
    NeighbourTable,
    /// `rp_filter` dropped packets of sources that come by another way than packets to them go.
    ReversePathFilter,
    /// There is no route, or the next host on it does not answer.
    Unreachable,
    /// A rule of this host forbids it.
    Forbidden,
    /// No answer came, and this host counted no drop of its own.
    NoAnswer,
    /// io_uring is switched off by sysctl.
    IoUringDisabled,
    /// A filter (seccomp, as containers have it, or a security module) forbids io_uring.
    IoUringFiltered,
    /// This kernel has no io_uring, or one too old.
    IoUringMissing,
    /// An error that no known limit explains.
    Unknown,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EphemeralPorts => "ephemeral ports",
            Self::SourceAddress => "a source address that this host does not have",
            Self::AddressInUse => "an address in use",
            Self::OpenFiles => "the open-file limit of this process (nofile)",
            Self::HostOpenFiles => "the open-file limit of this host (fs.file-max)",
            Self::Memory => "memory",
            Self::TcpMemory => "memory for queued TCP data (tcp_mem)",
            Self::CgroupMemory => "the memory limit of this control group",
            Self::LockedMemory => "the limit on locked memory (memlock)",
            Self::NobodyListens => "a destination where nobody listens",
            Self::OtherSide => "the other side",
            Self::AcceptQueue => "a full accept queue",
            Self::SynQueue => "a full queue of half-open connections",
            Self::PacketBacklog => "a full packet queue of a CPU",
            Self::Conntrack => "a full table of tracked connections (nf_conntrack_max)",
            Self::NeighbourTable => "a full table of neighbours (gc_thresh3)",
            Self::ReversePathFilter => "the reverse path filter (rp_filter)",
            Self::Unreachable => "a destination that cannot be reached",
            Self::Forbidden => "a rule of this host",
            Self::NoAnswer => "connects that nobody answers",
            Self::IoUringDisabled => "kernel.io_uring_disabled",
            Self::IoUringFiltered => "a filter that forbids io_uring",
            Self::IoUringMissing => "a kernel without the io_uring this needs",
            Self::Unknown => "an error that no known limit explains",
        })
    }
}

/// The limit that stopped a run, why we think so, and the way out.
///
/// Its `Display` is one line, or two where there is a value to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The limit.
    pub limit: Limit,
    /// What was seen.
    pub evidence: String,
    /// The value of the limit now, where it has one.
    pub now: Option<String>,
    /// What to do, in words.
    pub advice: String,
    /// The command that raises the limit or, where none can, that shows more.
    pub raise_command: Option<String>,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stopped by {}: {}; {}",
            self.limit, self.evidence, self.advice
        )?;
        if let Some(command) = &self.raise_command {
            write!(f, ": {command}")?;
        }
        self.now
            .as_ref()
            .map_or(Ok(()), |now| write!(f, "\n  now: {now}"))
    }
}

impl Diagnosis {
    fn new(limit: Limit, evidence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            limit,
            evidence: evidence.into(),
            now: None,
            advice: advice.into(),
            raise_command: None,
        }
    }

    fn now(self, now: impl Into<Option<String>>) -> Self {
        Self {
            now: now.into(),
            ..self
        }
    }

    fn command(self, command: impl Into<String>) -> Self {
        Self {
            raise_command: Some(command.into()),
            ..self
        }
    }
}

/// Names the limit that `cause` points to.
pub fn diagnose(cause: Cause, context: &Context, evidence: &Evidence) -> Diagnosis {
    let errno = match cause {
        Cause::Errno(raw) => Errno::from_raw(raw),
        Cause::Stalled => Errno::ETIMEDOUT,
        Cause::ClosedAfterAccept => return network::closed_after_accept(context),
        Cause::NeverServed => return network::never_served(context),
    };
    match (errno, context.step) {
        (Errno::EMFILE, _) => rules::open_files(context, evidence),
        (Errno::ENFILE, _) => rules::host_open_files(evidence),
        (Errno::ENOMEM | Errno::ENOBUFS, _) => rules::memory(errno, context, evidence),
        (Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EINVAL, Step::IoUring) => {
            rules::io_uring(errno, evidence)
        }
        (Errno::EADDRNOTAVAIL, Step::Bind | Step::Listen) => rules::source_address(context),
        (Errno::EADDRINUSE, Step::Listen) => rules::address_in_use(context),
        (Errno::EADDRNOTAVAIL | Errno::EADDRINUSE, _) => rules::ephemeral_ports(context, evidence),
        (Errno::ECONNREFUSED, _) => network::refused(context),
        (Errno::ECONNRESET | Errno::EPIPE, _) => network::reset(context, evidence),
        (Errno::ETIMEDOUT, _) => network::unanswered(context, evidence),
        (Errno::EHOSTUNREACH | Errno::ENETUNREACH, _) => {
            network::unreachable(errno, context, evidence)
        }
        (Errno::EPERM | Errno::EACCES, Step::Connect) => network::forbidden(errno, context),
        _ => rules::unknown(errno, context),
    }
}

/// How many connections fit into the memory that is available, with 15 % of it left over.
///
/// The reserve is for the end: an idle connection queues nothing, but closing one queues a FIN, which takes a page, and
/// leaves a TIME_WAIT socket behind. A host filled to the brim could hold its connections and not end them.
pub fn connections_that_fit(memory_available_bytes: u64, bytes_per_connection: u64) -> u64 {
    let usable_bytes = memory_available_bytes / 100 * 85;
    usable_bytes
        .checked_div(bytes_per_connection)
        .unwrap_or(u64::MAX)
}
