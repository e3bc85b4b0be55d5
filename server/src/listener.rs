//! Listening sockets: one a worker, all on one port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use thiserror::Error;

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

/// How long a port may stay in use that a killed server has just left: the kernel takes a ring's sockets down after
/// the process has gone.
const LEAVING: Duration = Duration::from_secs(2);

/// How a peer that has vanished is found out; none where it is left to the host's settings, or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vanishing {
    /// An idle connection is probed after so long, then every tenth of it (at least each second), and given up after as
    /// many probes as the host says (net.ipv4.tcp_keepalive_probes).
    pub keepalive: Option<Duration>,
    /// Sent bytes, and probes, may stay unacknowledged for so long (TCP_USER_TIMEOUT, RFC 5482).
    pub user_timeout: Option<Duration>,
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
    vanishing: Vanishing,
) -> Result<Vec<TcpListener>, ListenError> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal(address),
        io::ErrorKind::PermissionDenied => ListenError::Privileged(address),
        _ => ListenError::Other(address, error),
    };
    if !share && address.port() != 0 {
        // Sockets that share a port do not collide, so the port is first tried without sharing.
        let deadline = Instant::now() + LEAVING;
        loop {
            match bind(address, false) {
                Ok(_) => break,
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(explain(error)),
            }
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
        expect(&socket, vanishing).map_err(explain)?;
        socket.listen(backlog as i32).map_err(explain)?;
        listeners.push(socket.into());
    }
    Ok(listeners)
}

fn expect(socket: &Socket, vanishing: Vanishing) -> io::Result<()> {
    if let Some(time) = vanishing.keepalive {
        let interval = (time / 10).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    match vanishing.user_timeout {
        Some(time) => socket.set_tcp_user_timeout(Some(time)),
        None => Ok(()),
    }
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
        let listeners = listen(any, 3, 16, false, Vanishing::default()).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
        assert!(matches!(
            listen(address, 1, 16, false, Vanishing::default()),
            Err(ListenError::InUse(_))
        ));
        assert!(listen(address, 1, 16, true, Vanishing::default()).is_ok());
    }

    #[test]
    fn what_is_accepted_inherits_how_vanishing_is_found_out() {
        let any = "127.0.0.1:0".parse().unwrap();
        let vanishing = Vanishing {
            keepalive: Some(Duration::from_secs(300)),
            user_timeout: Some(Duration::from_millis(45_000)),
        };
        let listener = listen(any, 1, 16, false, vanishing).unwrap().remove(0);
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
    }

    #[test]
    fn a_foreign_address_is_named() {
        let error = listen(
            "192.0.2.77:7000".parse().unwrap(),
            1,
            16,
            false,
            Vanishing::default(),
        )
        .unwrap_err();
        assert!(matches!(error, ListenError::NotLocal(_)), "{error}");
    }
}
