//! Network namespaces joined by veth pairs, made for one run: a path that is not loopback, within one host, and a
//! neighbour who has nothing to do with what goes over it.
//!
//! Owns: a thread inside each namespace, which does there what it is given, such as starting a process, which inherits
//! it. Configures with `ip`, inside alone. Invariant: no namespace has a name, so the kernel removes them, and the pairs
//! with them, after the last thread and process within, however this program ends; nothing of the host's own network is
//! touched.

use std::convert::identity;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getpid, gettid};

/// The server's end of the path.
pub const SERVER_DEVICE: &str = "throng-server";
/// The client's.
const CLIENT_DEVICE: &str = "throng-client";

/// Where the server listens.
pub const SERVER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

/// Where connections come from: all addresses of it are the client's (AnyIP), and none is that of its interface.
pub const CLIENT_SOURCE: &str = "10.78.0.0/16";

/// Who answers the client's pings, by a pair of its own.
pub const NEIGHBOUR_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 6));

/// The namespaces, joined and configured.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The one with [`CLIENT_SOURCE`].
    pub client: Arc<Inside>,
    /// The one with [`SERVER_ADDRESS`].
    pub server: Arc<Inside>,
    /// The one with [`NEIGHBOUR_ADDRESS`]: nobody lives there but the kernel.
    _neighbour: Arc<Inside>,
}

impl Joined {
    /// Makes them.
    ///
    /// # Errors
    /// Why it cannot be, and what would allow it.
    pub fn make() -> Result<Self, Refusal> {
        let [client, server, neighbour] = [Inside::new()?, Inside::new()?, Inside::new()?];
        for inside in [&client, &server, &neighbour] {
            inside.ip("link set lo up")?;
        }
        client.join(
            CLIENT_DEVICE,
            "10.77.0.1/30",
            &server,
            SERVER_DEVICE,
            "10.77.0.2/30",
        )?;
        let (here, there) = ("throng-near", "throng-next");
        client.join(here, "10.77.0.5/30", &neighbour, there, "10.77.0.6/30")?;
        client.ip(&format!("route add local {CLIENT_SOURCE} dev lo"))?;
        server.ip(&format!("route add {CLIENT_SOURCE} via 10.77.0.1"))?;
        let [client, server, _neighbour] = [client, server, neighbour].map(Arc::new);
        Ok(Self {
            client,
            server,
            _neighbour,
        })
    }
}

/// Why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The kernel gives this user no namespace.
    Namespace(Errno),
    /// `ip` is not there, or cannot be started.
    NoIp(String),
    /// `ip` was refused.
    Ip {
        /// Its words.
        command: String,
        /// What it said.
        said: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(Errno::EPERM) => write!(
                out,
                "this user may not make a network namespace (EPERM): run it as root, or, where user namespaces are \
                 allowed, with `unshare -r` before the command"
            ),
            Self::Namespace(errno) => write!(
                out,
                "the kernel makes no network namespace ({errno:?}): see `sysctl user.max_net_namespaces`, and whether it \
                 has CONFIG_NET_NS"
            ),
            Self::NoIp(cause) => write!(
                out,
                "network namespaces are joined with the program `ip`, which cannot be started ({cause}): install iproute2"
            ),
            Self::Ip { command, said } => write!(
                out,
                "network namespaces cannot be joined: `ip {command}` said: {said}; does this kernel have veth? see \
                 `modprobe veth`"
            ),
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, as a thread that lives in it.
#[derive(Debug)]
pub struct Inside {
    /// None once it is to end.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// By which another process can name it, as long as the thread lives (proc_pid_ns(5)).
    path: String,
}

impl Inside {
    fn new() -> Result<Self, Refusal> {
        let (jobs, given) = channel::<Job>();
        let (ready, made) = channel();
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                // Of this thread alone, and of what it starts.
                let outcome = unshare(CloneFlags::CLONE_NEWNET);
                let path = format!("/proc/{}/task/{}/ns/net", getpid(), gettid());
                if ready.send(outcome.map(|()| path)).is_err() || outcome.is_err() {
                    return;
                }
                for job in given {
                    job();
                }
            });
        let thread = thread.map_err(|cause| {
            Refusal::Namespace(Errno::from_raw(cause.raw_os_error().unwrap_or(0)))
        })?;
        // A thread that ends without a word has been refused one by the kernel.
        let path = made.recv().unwrap_or(Err(Errno::UnknownErrno));
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            path: path.map_err(Refusal::Namespace)?,
        })
    }

    /// Does `work` inside, and gives what it gives.
    ///
    /// # Errors
    /// The thread has ended: a bug.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = channel();
        let job: Job = Box::new(move || {
            // Nobody waits for it any more: nobody needs it.
            let _ = done.send(work());
        });
        let gone = || io::Error::other("the thread of the network namespace has ended");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }

    /// A pair of devices, one here and one at the `other`, each with its address.
    fn join(
        &self,
        here: &str,
        address: &str,
        other: &Inside,
        there: &str,
        other_address: &str,
    ) -> Result<(), Refusal> {
        let at = &other.path;
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {at}"
        ))?;
        for (inside, device, address) in [(self, here, address), (other, there, other_address)] {
            inside.ip(&format!("addr add {address} dev {device}"))?;
            inside.ip(&format!("link set {device} up"))?;
        }
        Ok(())
    }

    /// Runs `ip` with `words`.
    /// Runs `ip words` within.
    ///
    /// # Errors
    /// What `ip` said.
    pub(crate) fn ip(&self, words: &str) -> Result<(), Refusal> {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        let output = self.run(move || command.output());
        let output = output
            .and_then(identity)
            .map_err(|cause| Refusal::NoIp(cause.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Refusal::Ip {
            command: words.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // What a job panicked with was told then.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// As `/proc/PID/ns/net` reads.
    fn here() -> String {
        let link = fs::read_link("/proc/thread-self/ns/net").unwrap();
        link.to_string_lossy().into_owned()
    }

    /// The namespaces, or why there are none here, said past the capture of test output.
    fn joined() -> Option<Joined> {
        Joined::make()
            .map_err(|why| {
                let line = format!("SKIPPED netns: {why}\n");
                io::Write::write_all(&mut io::stderr(), line.as_bytes()).unwrap();
            })
            .ok()
    }

    #[test]
    fn the_two_hear_each_other_from_any_source_address_and_the_host_hears_nothing() {
        let Some(joined) = joined() else { return };
        let [client, server] =
            [&joined.client, &joined.server].map(|inside| inside.run(here).unwrap());
        assert!(client != server && client != here() && server != here());
        let listener = joined
            .server
            .run(|| TcpListener::bind((SERVER_ADDRESS, 0)).unwrap())
            .unwrap();
        let to = listener.local_addr().unwrap();
        let stream = joined.client.run(move || {
            let socket = socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::STREAM,
                Some(socket2::Protocol::TCP),
            )
            .unwrap();
            let from: std::net::SocketAddr = ([10, 78, 200, 9], 0).into();
            socket.bind(&from.into()).unwrap();
            socket
                .connect_timeout(&to.into(), std::time::Duration::from_secs(10))
                .unwrap();
            TcpStream::from(socket)
        });
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), IpAddr::from([10, 78, 200, 9]));
        drop(stream);
        let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert!(!devices.contains("throng-"), "{devices}");
    }

    #[test]
    fn a_process_started_inside_is_inside_and_a_thread_that_ends_takes_the_namespace_along() {
        let Some(joined) = joined() else { return };
        let link = joined.client.run(here).unwrap();
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        let output = joined
            .client
            .run(move || command.output())
            .unwrap()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), link);
        let path = joined.client.path.clone();
        drop(joined);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let said = Refusal::Namespace(Errno::EPERM).to_string();
        assert!(
            said.contains("root") && said.contains("unshare -r"),
            "{said}"
        );
        let said = Refusal::NoIp("no such file".into()).to_string();
        assert!(said.contains("iproute2"), "{said}");
    }
}
