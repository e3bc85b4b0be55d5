//! Listening sockets: one a worker, all on one port; bound here, or given by somebody who bound them.
//!
//! Invariant: given sockets are neither bound again nor changed before [`adopt`]: others may still accept from them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use thiserror::Error;
use tracing::warn;

/// Why there is no listener.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another socket has the port.
    #[error(
        "{0} is in use by another socket: see `ss -ltnp`, choose another port, or share it with --reuse-port on both sides"
    )]
    InUse(SocketAddr),
    /// The address is not this machine's.
    #[error("{0} is not an address of this machine: see `ip addr`")]
    NotLocal(SocketAddr),
    /// A port below 1024 without the right to it.
    #[error(
        "no right to listen on {0}: ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE"
    )]
    Privileged(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, #[source] io::Error),
}

/// Why given sockets cannot be served on.
#[derive(Debug, Error)]
pub enum GivenError {
    /// Not a TCP socket.
    #[error("socket {number} is none of TCP ({why}): give ListenStream=ADDRESS:PORT")]
    NotTcp {
        /// Which, from 0.
        number: usize,
        /// Why.
        why: String,
    },
    /// A connection, or bound only.
    #[error("socket {0} does not listen: give listening sockets (Accept=no)")]
    NotListening(usize),
    /// Not all on one port.
    #[error(
        "socket {number} listens on {address}, the first on {first}: all must be on one address"
    )]
    Apart {
        /// Which, from 0.
        number: usize,
        /// Where.
        address: SocketAddr,
        /// Where the first does.
        first: SocketAddr,
    },
    /// Not where it was asked for.
    #[error(
        "they listen on {given}, and --listen says {wanted}: leave --listen away, or give that"
    )]
    Elsewhere {
        /// Where they listen.
        given: SocketAddr,
        /// What `--listen` says.
        wanted: SocketAddr,
    },
    /// Some would have no worker.
    #[error(
        "there are {sockets} and only {workers} workers, and connections would wait for ever where no worker accepts: \
         give --cores {cores} (a core may be named more than once)"
    )]
    TooFewWorkers {
        /// Sockets.
        sockets: usize,
        /// Workers.
        workers: usize,
        /// A list of cores that is long enough.
        cores: String,
    },
}

/// How long a port may stay in use that a killed server has just left: the kernel takes a ring's sockets down after
/// the process has gone, 100,000 of them within 0.1 to 0.4 s, and in more than 2 s on a busy machine.
const LEAVING: Duration = Duration::from_secs(10);

/// After so long it is said that, and why, the port is waited for.
const SHORT: Duration = Duration::from_millis(200);

/// What accepted connections inherit from their listener; none where it is left to the host's settings, or not done at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inherited {
    /// An idle connection is probed after so long, then every tenth of it (at least each second), and given up after as
    /// many probes as the host says (net.ipv4.tcp_keepalive_probes).
    pub keepalive: Option<Duration>,
    /// Sent bytes, and probes, may stay unacknowledged for so long (TCP_USER_TIMEOUT, RFC 5482).
    pub user_timeout: Option<Duration>,
    /// What the kernel keeps of output that the peer has not taken, before the rest waits here (SO_SNDBUF, socket(7)): it takes
    /// twice as much of memory.
    pub send_buffer_bytes: Option<usize>,
}

/// `count` listening sockets on `address`, the kernel spreading connections over them. Port 0 takes a free
/// port, the same for all. With `share`, other processes may listen on the port too; without it, a port that
/// another socket has is an error.
///
/// # Errors
/// Why there is none.
pub fn listen(
    address: SocketAddr,
    count: usize,
    backlog: u32,
    share: bool,
    inherited: Inherited,
) -> Result<Vec<TcpListener>, ListenError> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal(address),
        io::ErrorKind::PermissionDenied => ListenError::Privileged(address),
        _ => ListenError::Other(address, error),
    };
    if !share && address.port() != 0 {
        // Sockets that share a port do not collide, so the port is first tried without sharing.
        let begun = Instant::now();
        let mut is_said = false;
        while let Err(error) = bind(address, false) {
            if error.kind() != io::ErrorKind::AddrInUse || begun.elapsed() > LEAVING {
                return Err(explain(error));
            }
            if begun.elapsed() > SHORT && !is_said {
                is_said = true;
                warn!(
                    "{address} is in use: waiting up to {} s, as the kernel may still be closing the sockets of a server that was killed",
                    LEAVING.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let first = bind(address, true).map_err(explain)?;
    let address = first
        .local_addr()
        .map_err(explain)?
        .as_socket()
        .unwrap_or(address);
    let mut listeners = Vec::with_capacity(count);
    let mut next = Some(first);
    while listeners.len() < count {
        let socket = match next.take() {
            Some(socket) => socket,
            None => bind(address, true).map_err(explain)?,
        };
        // Accepted sockets inherit both.
        expect(&socket, inherited).map_err(explain)?;
        socket.listen(backlog as i32).map_err(explain)?;
        listeners.push(socket.into());
    }
    Ok(listeners)
}

/// The sockets that a service manager has opened and left to this process (sd_listen_fds(3)); none without. Not to be
/// called while other threads read the environment.
///
/// # Errors
/// One of them is none of TCP.
pub fn from_environment() -> Result<Vec<TcpListener>, GivenError> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::with_capacity(given.len());
    for number in 0..given.len() {
        let socket = given.take_tcp_listener(number);
        sockets.extend(socket.map_err(|error| GivenError::NotTcp {
            number,
            why: error.to_string(),
        })?);
    }
    Ok(sockets)
}

/// The one address that `sockets` listen on, which is `wanted` where there is such. Each has a worker of those on `cores`.
/// Port 0 where there are none.
///
/// # Errors
/// They cannot be served on.
pub fn check(
    sockets: &[TcpListener],
    wanted: Option<SocketAddr>,
    cores: &[usize],
) -> Result<SocketAddr, GivenError> {
    let mut first = None;
    for (number, socket) in sockets.iter().enumerate() {
        let not_tcp = |why: io::Error| GivenError::NotTcp {
            number,
            why: why.to_string(),
        };
        let it = SockRef::from(socket);
        let (kind, protocol) = (it.r#type(), it.protocol());
        if kind.map_err(not_tcp)? != Type::STREAM
            || protocol.map_err(not_tcp)? != Some(Protocol::TCP)
        {
            return Err(not_tcp(io::Error::other("another type or protocol")));
        }
        if !it.is_listener().map_err(not_tcp)? {
            return Err(GivenError::NotListening(number));
        }
        let address = socket.local_addr().map_err(not_tcp)?;
        let first = *first.get_or_insert(address);
        if address != first {
            return Err(GivenError::Apart {
                number,
                address,
                first,
            });
        }
    }
    match (first, wanted) {
        (Some(given), Some(wanted)) if given != wanted => {
            return Err(GivenError::Elsewhere { given, wanted });
        }
        _ if sockets.len() > cores.len() => {
            let enough = cores.iter().cycle().take(sockets.len());
            let names: Vec<String> = enough.map(usize::to_string).collect();
            return Err(GivenError::TooFewWorkers {
                sockets: sockets.len(),
                workers: cores.len(),
                cores: names.join(","),
            });
        }
        _ => {}
    }
    Ok(first
        .or(wanted)
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0))))
}

/// Makes a given socket one as [`listen`] has them. Whether its calls wait is left to whoever accepts.
///
/// # Errors
/// The kernel's.
pub fn adopt(socket: &TcpListener, backlog: u32, inherited: Inherited) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    expect(&socket, inherited)?;
    // Again, for the backlog alone; what waits goes on waiting.
    socket.listen(backlog as i32)
}

fn expect(socket: &Socket, inherited: Inherited) -> io::Result<()> {
    match inherited.keepalive {
        None => socket.set_keepalive(false)?,
        Some(time) => {
            let interval = (time / 10).max(Duration::from_secs(1));
            let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval);
            socket.set_tcp_keepalive(&keepalive)?;
        }
    }
    if let Some(bytes) = inherited.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    socket.set_tcp_user_timeout(inherited.user_timeout)
}

fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Accepted sockets inherit it: an answer must not wait for the acknowledgement of the one before.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_listeners_share_one_port_and_nobody_else_gets_it() {
        let any = "127.0.0.1:0".parse().unwrap();
        let listeners = listen(any, 3, 16, false, Inherited::default()).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
        assert!(matches!(
            listen(address, 1, 16, false, Inherited::default()),
            Err(ListenError::InUse(_))
        ));
        assert!(listen(address, 1, 16, true, Inherited::default()).is_ok());
    }

    #[test]
    fn what_is_accepted_inherits_how_vanishing_is_found_out() {
        let any = "127.0.0.1:0".parse().unwrap();
        let inherited = Inherited {
            keepalive: Some(Duration::from_secs(300)),
            user_timeout: Some(Duration::from_millis(45_000)),
            send_buffer_bytes: Some(20_000),
        };
        let listener = listen(any, 1, 16, false, inherited).unwrap().remove(0);
        listener.set_nonblocking(false).unwrap();
        let _peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = Socket::from(listener.accept().unwrap().0);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(
            accepted.tcp_keepalive_time().unwrap(),
            Duration::from_secs(300)
        );
        assert_eq!(
            accepted.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(30)
        );
        let timeout = Some(Duration::from_millis(45_000));
        assert_eq!(accepted.tcp_user_timeout().unwrap(), timeout);
        assert_eq!(accepted.send_buffer_size().unwrap(), 40_000);
    }

    #[test]
    fn given_sockets_are_looked_at_closely() {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut given = listen(any, 2, 16, false, Inherited::default()).unwrap();
        let address = given[0].local_addr().unwrap();
        assert_eq!(check(&given, None, &[0, 1]).unwrap(), address);
        assert_eq!(check(&given, Some(address), &[0, 1, 2]).unwrap(), address);
        let refused = |given: &[TcpListener], wanted, cores: &[usize]| {
            check(given, wanted, cores).unwrap_err().to_string()
        };
        let said = refused(&given, None, &[5]);
        assert!(said.contains("--cores 5,5"), "{said}");
        assert!(refused(&given, Some(any), &[0, 1]).contains("--listen says"));
        given.push(TcpListener::bind(any).unwrap());
        assert!(refused(&given, None, &[0, 1, 2]).contains("one address"));
        let peer = std::net::TcpStream::connect(address).unwrap();
        let peer = std::os::fd::OwnedFd::from(peer);
        assert!(refused(&[peer.into()], None, &[0]).contains("does not listen"));
        let udp = std::os::fd::OwnedFd::from(std::net::UdpSocket::bind(any).unwrap());
        assert!(refused(&[udp.into()], None, &[0]).contains("none of TCP"));
    }

    #[test]
    fn an_adopted_socket_is_as_one_bound_here() {
        let any = "127.0.0.1:0".parse().unwrap();
        let theirs = Inherited {
            keepalive: Some(Duration::from_secs(300)),
            user_timeout: Some(Duration::from_secs(45)),
            send_buffer_bytes: None,
        };
        let given = listen(any, 1, 16, false, theirs).unwrap().remove(0);
        adopt(&given, 16, Inherited::default()).unwrap();
        let socket = SockRef::from(&given);
        assert!(!socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        adopt(&given, 16, theirs).unwrap();
        assert!(socket.keepalive().unwrap());
    }

    #[test]
    fn a_foreign_address_is_named() {
        let error = listen(
            "192.0.2.77:7000".parse().unwrap(),
            1,
            16,
            false,
            Inherited::default(),
        )
        .unwrap_err();
        assert!(matches!(error, ListenError::NotLocal(_)), "{error}");
    }
}
