//! Which limit stopped a run: from an errno, what was being done, and what the host said, to a name and a way out.
//!
//! Pure: it reads nothing and changes nothing. A command is only ever printed, for the user to judge and run.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub use crate::evidence::Evidence;

mod rules;

/// What was seen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A system call or completion failed with this (positive) errno.
    Errno(i32),
    /// Nothing failed and nothing went on: connects stayed unanswered.
    Stalled,
    /// The other side accepted a connection and closed it at once.
    ClosedAfterAccept,
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
    /// The addresses `--source` stands for, as the user gave them.
    pub source_network: Option<String>,
    /// How many source addresses there are.
    pub sources: u64,
    /// How many destinations (address and port) there are.
    pub destinations: u64,
    /// The source ports the client chooses from; `None` when it leaves the choice to the kernel.
    pub source_ports: Option<RangeInclusive<u16>>,
}

impl Context {
    /// The context of `step`, with nothing established and one source and destination.
    pub fn new(step: Step) -> Self {
        Self {
            step,
            established: 0,
            address: None,
            source: None,
            source_network: None,
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
        Cause::ClosedAfterAccept => return rules::closed_after_accept(context),
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
        (Errno::ECONNREFUSED, _) => rules::refused(context),
        (Errno::ECONNRESET | Errno::EPIPE, _) => rules::reset(context, evidence),
        (Errno::ETIMEDOUT, _) => rules::unanswered(context, evidence),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::host::{CgroupMemory, Files, Memory, NetCounters, Sockstat};
    use crate::process::Nofile;

    fn context(step: Step, established: u64) -> Context {
        Context {
            established,
            address: Some("127.0.0.1:7000".parse().unwrap()),
            ..Context::new(step)
        }
    }

    /// What a stock host says.
    fn evidence() -> Evidence {
        Evidence {
            memory: Some(Memory {
                total_bytes: 24 << 30,
                free_bytes: 1 << 30,
                available_bytes: 1 << 30,
                slab_bytes: 8 << 30,
                slab_reclaimable_bytes: 1 << 30,
                slab_unreclaimable_bytes: 7 << 30,
                page_tables_bytes: 1 << 20,
            }),
            sockstat: Some(Sockstat {
                inuse: 1,
                orphan: 0,
                time_wait: 0,
                alloc: 1,
                mem_pages: 170,
            }),
            tcp_mem_pages: Some([287_901, 383_868, 575_802]),
            files: Some(Files {
                allocated: 2_466_000,
                max: 2_466_186,
            }),
            nofile: Some(Nofile {
                soft: 20_000,
                hard: 20_000,
            }),
            nr_open: Some(1 << 20),
            memlock_bytes: Some(8 << 20),
            port_range: Some(32_768..=60_999),
            somaxconn: Some(4096),
            netdev_max_backlog: Some(1000),
            io_uring_disabled: Some(0),
            kernel: Some("6.18.44".to_owned()),
            ..Evidence::default()
        }
    }

    fn counted_evidence(name: &str, value: u64) -> Evidence {
        let counters = NetCounters::from_iter([(name.to_owned(), value)]);
        Evidence {
            counters,
            ..evidence()
        }
    }

    fn of(errno: Errno, context: &Context, evidence: &Evidence) -> (Limit, String) {
        let diagnosis = diagnose(Cause::Errno(errno as i32), context, evidence);
        let text = diagnosis.to_string();
        assert!(text.lines().count() <= 2, "{text}");
        (diagnosis.limit, text)
    }

    #[test]
    fn exhausted_ports_are_counted_and_the_way_out_is_printed() {
        let (_, text) = of(
            Errno::EADDRNOTAVAIL,
            &context(Step::Connect, 28_232),
            &evidence(),
        );
        assert_eq!(
            text,
            "stopped by ephemeral ports: 28232 ports x 1 source address allow 28232 connections to one destination; \
             add sources (--source 127.1.0.0/16) or widen: sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\""
        );
    }

    #[test]
    fn reserved_ports_are_not_counted_and_a_full_range_is_not_widened() {
        let two = Context {
            sources: 2,
            destinations: 3,
            ..context(Step::Connect, 0)
        };
        let host = Evidence {
            port_range: Some(1024..=65_535),
            reserved_ports: vec![7000..=7001, 80..=80],
            ..evidence()
        };
        let (_, text) = of(Errno::EADDRNOTAVAIL, &two, &host);
        assert!(
            text.contains(
                "64510 ports x 2 source addresses x 3 destinations allow 387060 connections"
            ),
            "{text}"
        );
        assert!(!text.contains("sysctl"), "{text}");
    }

    #[test]
    fn explicit_ports_do_not_depend_on_the_kernels_range() {
        let explicit = Context {
            source_ports: Some(10_000..=19_999),
            ..context(Step::Bind, 9_000)
        };
        let mut host = evidence();
        host.sockstat.as_mut().unwrap().time_wait = 1_000;
        let (limit, text) = of(Errno::EADDRINUSE, &explicit, &host);
        assert_eq!(limit, Limit::EphemeralPorts);
        assert!(
            text.contains("10000 ports x 1 source address")
                && text.contains("9000 are established")
                && text.contains("1000 sockets in TIME_WAIT"),
            "{text}"
        );
        assert!(!text.contains("ip_local_port_range"), "{text}");
    }

    #[test]
    fn a_source_that_is_not_local_gets_the_command_that_makes_it_so() {
        let source = Some("10.9.0.1".parse().unwrap());
        let one = Context {
            source,
            ..context(Step::Bind, 0)
        };
        let (limit, text) = of(Errno::EADDRNOTAVAIL, &one, &evidence());
        assert_eq!(limit, Limit::SourceAddress);
        assert!(
            text.contains("10.9.0.1 is not configured")
                && text.ends_with("ip addr add 10.9.0.1/32 dev lo"),
            "{text}"
        );
        let many = Context {
            source_network: Some("10.9.0.0/16".to_owned()),
            ..one
        };
        assert!(
            of(Errno::EADDRNOTAVAIL, &many, &evidence())
                .1
                .ends_with("ip route add local 10.9.0.0/16 dev lo")
        );
    }

    #[test]
    fn open_files_show_the_limit_and_how_far_it_can_go() {
        let (limit, text) = of(Errno::EMFILE, &context(Step::Socket, 19_990), &evidence());
        assert_eq!(limit, Limit::OpenFiles);
        assert!(
            text.contains("soft 20000, hard 20000") && text.contains("ulimit -n 1048576"),
            "{text}"
        );
        let low = Evidence {
            nofile: Some(Nofile {
                soft: 1024,
                hard: 20_000,
            }),
            ..evidence()
        };
        assert!(
            of(Errno::EMFILE, &context(Step::Accept, 1_000), &low)
                .1
                .contains("ulimit -n 20000")
        );
        let (limit, text) = of(Errno::ENFILE, &context(Step::Accept, 0), &evidence());
        assert_eq!(limit, Limit::HostOpenFiles);
        assert!(text.contains("sysctl -w fs.file-max=4932372"), "{text}");
    }

    #[test]
    fn memory_is_the_groups_tcps_or_the_hosts() {
        let step = context(Step::Connect, 5);
        assert_eq!(of(Errno::ENOMEM, &step, &evidence()).0, Limit::Memory);
        let cgroup = Some(CgroupMemory {
            limit_bytes: 1 << 30,
            used_bytes: (1 << 30) - 4096,
        });
        assert_eq!(
            of(
                Errno::ENOMEM,
                &step,
                &Evidence {
                    cgroup,
                    ..evidence()
                }
            )
            .0,
            Limit::CgroupMemory
        );
        let mut full = evidence();
        full.sockstat.as_mut().unwrap().mem_pages = 673_962;
        let (limit, text) = of(Errno::ENOBUFS, &step, &full);
        assert_eq!(limit, Limit::TcpMemory);
        assert!(
            text.contains("sysctl -w net.ipv4.tcp_mem=\"575802 767736 1151604\""),
            "{text}"
        );
        assert_eq!(
            of(
                Errno::ECONNRESET,
                &step,
                &counted_evidence("TCPAbortOnMemory", 3)
            )
            .0,
            Limit::TcpMemory
        );
        assert_eq!(
            of(Errno::ENOMEM, &context(Step::IoUring, 0), &evidence()).0,
            Limit::LockedMemory
        );
    }

    #[test]
    fn a_refusal_at_the_first_connect_differs_from_one_half_way() {
        let (limit, text) = of(Errno::ECONNREFUSED, &context(Step::Connect, 0), &evidence());
        assert_eq!(limit, Limit::NobodyListens);
        assert!(
            text.ends_with("throng-server --listen 127.0.0.1:7000"),
            "{text}"
        );
        let (limit, text) = of(
            Errno::ECONNREFUSED,
            &context(Step::Connect, 5_000),
            &evidence(),
        );
        assert_eq!(limit, Limit::OtherSide);
        assert!(text.contains("after 5000 connections"), "{text}");
        let closed = diagnose(
            Cause::ClosedAfterAccept,
            &context(Step::Hold, 1_000),
            &evidence(),
        );
        assert_eq!(closed.limit, Limit::OtherSide);
        assert!(closed.to_string().contains("--max-connections"));
    }

    #[test]
    fn unanswered_connects_are_explained_by_what_the_host_counted() {
        let step = context(Step::Connect, 700);
        let (limit, text) = of(
            Errno::ETIMEDOUT,
            &step,
            &counted_evidence("ListenOverflows", 564),
        );
        assert_eq!(limit, Limit::AcceptQueue);
        assert!(
            text.contains("564 handshakes") && text.contains("too slowly"),
            "{text}"
        );
        assert!(!text.contains("sysctl"), "{text}");
        let short_queue = Evidence {
            somaxconn: Some(128),
            ..counted_evidence("ListenOverflows", 564)
        };
        let (_, text) = of(Errno::ETIMEDOUT, &step, &short_queue);
        assert!(text.contains("sysctl -w net.core.somaxconn=4096"), "{text}");
        let (limit, text) = of(
            Errno::ETIMEDOUT,
            &step,
            &counted_evidence("TCPReqQFullDrop", 1),
        );
        assert_eq!(limit, Limit::SynQueue);
        assert!(
            text.ends_with("sysctl -w net.ipv4.tcp_syncookies=1"),
            "{text}"
        );
        let short_queue = Evidence {
            somaxconn: Some(128),
            ..counted_evidence("TCPReqQFullDrop", 1)
        };
        let (_, text) = of(Errno::ETIMEDOUT, &step, &short_queue);
        assert!(
            text.contains("tcp_syncookies=1 net.core.somaxconn=4096"),
            "{text}"
        );
        assert_eq!(
            diagnose(
                Cause::Stalled,
                &step,
                &counted_evidence("SoftnetDropped", 1)
            )
            .limit,
            Limit::PacketBacklog
        );
        let none = diagnose(
            Cause::Stalled,
            &step,
            &counted_evidence("TCPSynRetrans", 445),
        );
        assert_eq!(none.limit, Limit::NoAnswer);
        assert!(none.to_string().contains("445 SYNs were sent again"));
    }

    #[test]
    fn io_uring_is_switched_off_filtered_or_missing() {
        let step = context(Step::IoUring, 0);
        let with = |disabled| Evidence {
            io_uring_disabled: disabled,
            ..evidence()
        };
        assert_eq!(
            of(Errno::EPERM, &step, &with(Some(2))).0,
            Limit::IoUringDisabled
        );
        assert!(
            of(Errno::EPERM, &step, &with(Some(1)))
                .1
                .contains("io_uring_group")
        );
        assert_eq!(
            of(Errno::EPERM, &step, &with(Some(0))).0,
            Limit::IoUringFiltered
        );
        assert_eq!(
            of(Errno::EPERM, &step, &with(None)).0,
            Limit::IoUringFiltered
        );
        assert_eq!(
            of(Errno::ENOSYS, &step, &with(Some(0))).0,
            Limit::IoUringFiltered
        );
        assert_eq!(
            of(Errno::ENOSYS, &step, &with(None)).0,
            Limit::IoUringMissing
        );
        assert_eq!(
            of(Errno::EINVAL, &step, &with(Some(0))).0,
            Limit::IoUringMissing
        );
    }

    #[test]
    fn every_errno_at_every_step_has_a_diagnosis_even_without_evidence() {
        let steps = [
            Step::IoUring,
            Step::Socket,
            Step::Listen,
            Step::Accept,
            Step::Bind,
            Step::Connect,
            Step::Hold,
        ];
        for (step, errno) in steps
            .into_iter()
            .flat_map(|step| (0..134).map(move |errno| (step, errno)))
        {
            let diagnosis = diagnose(
                Cause::Errno(errno),
                &Context::new(step),
                &Evidence::default(),
            );
            assert!(diagnosis.to_string().lines().count() <= 2);
        }
        let (limit, text) = of(Errno::EHOSTUNREACH, &context(Step::Connect, 0), &evidence());
        assert_eq!(limit, Limit::Unknown);
        assert!(text.contains("EHOSTUNREACH"), "{text}");
    }

    #[test]
    fn a_port_in_use_names_its_holder_command() {
        let (limit, text) = of(Errno::EADDRINUSE, &context(Step::Listen, 0), &evidence());
        assert_eq!(limit, Limit::AddressInUse);
        assert!(text.ends_with("ss -ltnp 'sport = :7000'"), "{text}");
    }

    #[test]
    fn fewer_connections_fit_than_memory_would_just_hold() {
        assert_eq!(connections_that_fit(1_000_000_000, 9_000), 94_444);
        assert_eq!(connections_that_fit(0, 9_000), 0);
        assert_eq!(connections_that_fit(1, 0), u64::MAX);
    }
}
