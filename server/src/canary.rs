//! The responder that canaries probe: UDP and TCP on one port, on a thread of its own, beside the workers.
//!
//! UDP: a datagram that begins with [`MAGIC`] comes back as it is; any other gets no answer, so that the port amplifies
//! nothing. TCP: a fixed [`GREETING`] at once, then an echo for a bounded time. Touches its own sockets alone: no worker,
//! no session, no count of the server's own. Invariant: nothing is kept of a datagram, at most [`MAX_CONNECTIONS`]
//! connections are open at once, each at most [`MAX_AGE`] and with one unsent piece; the thread ends when the
//! [`Responder`] is dropped.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;
use thiserror::Error;
use tracing::warn;

/// What a datagram begins with to be answered.
pub const MAGIC: &[u8; 8] = b"throng\x00\x01";
/// What a TCP connection hears at once.
pub const GREETING: &[u8] = b"throng canary\n";
/// Longer datagrams are cut by the kernel and not answered.
const MAX_DATAGRAM_BYTES: usize = 512;
/// Connections open at once; more are accepted, closed and counted.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may last.
const MAX_AGE: Duration = Duration::from_secs(5);
/// How often connections that are too old are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// Datagrams or connections taken in one turn, so that neither keeps the other waiting.
const BURST: usize = 64;
/// Ports tried for one that both UDP and TCP have free.
const ATTEMPTS: usize = 16;

/// Why there is no responder.
#[derive(Debug, Error)]
#[error(
    "no canary responder on {address}: {source}; see `ss -lntup`, or choose another --canary-port (0 takes a free one)"
)]
pub struct ResponderError {
    /// Where it should have listened.
    address: SocketAddr,
    /// Why it does not.
    #[source]
    source: io::Error,
}

/// What the responder did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResponderSummary {
    /// Where it listened.
    pub address: SocketAddr,
    /// Datagrams sent back.
    pub datagrams: u64,
    /// Datagrams without the magic, too long, or whose answer could not be sent.
    pub datagrams_ignored: u64,
    /// TCP connections greeted.
    pub connections: u64,
    /// TCP connections closed at once, for there were too many.
    pub connections_refused: u64,
}

#[derive(Default)]
struct Counters {
    datagrams: AtomicU64,
    datagrams_ignored: AtomicU64,
    connections: AtomicU64,
    connections_refused: AtomicU64,
}

/// A running responder. Ends when dropped.
pub struct Responder {
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Listens on `port` of `ip`; port 0 takes one that is free for both UDP and TCP.
    ///
    /// # Errors
    /// The port cannot be had, or the thread cannot be started.
    pub fn start(ip: IpAddr, port: u16) -> Result<Responder, ResponderError> {
        let wanted = SocketAddr::new(ip, port);
        let explain = |source| ResponderError {
            address: wanted,
            source,
        };
        let (tcp, udp) = bind(wanted).map_err(explain)?;
        let address = tcp.local_addr().map_err(explain)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| explain(errno.into()))?;
        let (stop, counters) = (Arc::new(stop), Arc::new(Counters::default()));
        let room = Room {
            tcp,
            udp,
            guests: Vec::new(),
            counters: Arc::clone(&counters),
        };
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("canary".into())
            .spawn(move || {
                if let Err(error) = room.serve(&stopped) {
                    warn!(%error, "the canary responder has ended: probes will find nobody");
                }
            })
            .map_err(explain)?;
        Ok(Responder {
            address,
            counters,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens, the port included that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has done.
    pub fn summary(&self) -> ResponderSummary {
        ResponderSummary {
            address: self.address,
            datagrams: self.counters.datagrams.load(Relaxed),
            datagrams_ignored: self.counters.datagrams_ignored.load(Relaxed),
            connections: self.counters.connections.load(Relaxed),
            connections_refused: self.counters.connections_refused.load(Relaxed),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // Cannot fail: the counter is far from full. A panicked thread has told of itself already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own: its sockets and who is on the line.
struct Room {
    tcp: TcpListener,
    udp: UdpSocket,
    guests: Vec<Guest>,
    counters: Arc<Counters>,
}

struct Guest {
    stream: TcpStream,
    since: Instant,
    /// What could not be sent at once; nothing is read meanwhile.
    unsent: Vec<u8>,
}

impl Room {
    fn serve(mut self, stop: &EventFd) -> io::Result<()> {
        loop {
            let mut fds = vec![
                PollFd::new(stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.udp.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.tcp.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(self.guests.iter().map(|guest| {
                let wanted = match guest.unsent.is_empty() {
                    true => PollFlags::POLLIN,
                    false => PollFlags::POLLOUT,
                };
                PollFd::new(guest.stream.as_fd(), wanted)
            }));
            // Longest first wait: without guests nothing grows old.
            let timeout = match self.guests.is_empty() {
                true => PollTimeout::NONE,
                false => PollTimeout::try_from(SWEEP).unwrap_or(PollTimeout::MAX),
            };
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            if ready[0] {
                return Ok(());
            }
            let mut speaking = ready[3..].iter();
            self.guests.retain_mut(|guest| {
                let is_speaking = speaking.next().is_some_and(|ready| *ready);
                guest.since.elapsed() < MAX_AGE && (!is_speaking || guest.turn().is_ok())
            });
            if ready[1] {
                self.answer_datagrams();
            }
            if ready[2] {
                self.admit();
            }
        }
    }

    fn answer_datagrams(&mut self) {
        // One more than is answered, so that a longer one shows.
        let mut datagram = [0; MAX_DATAGRAM_BYTES + 1];
        for _ in 0..BURST {
            let (length, from) = match self.udp.recv_from(&mut datagram) {
                Ok(received) => received,
                // Also what an earlier answer met (ECONNREFUSED): nobody waits for it any more.
                Err(_) => return,
            };
            let is_ours = length <= MAX_DATAGRAM_BYTES && datagram[..length].starts_with(MAGIC);
            let counter = match is_ours && self.udp.send_to(&datagram[..length], from).is_ok() {
                true => &self.counters.datagrams,
                false => &self.counters.datagrams_ignored,
            };
            counter.fetch_add(1, Relaxed);
        }
    }

    fn admit(&mut self) {
        for _ in 0..BURST {
            let stream = match self.tcp.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // Out of files, or of memory: the queue keeps it, and a pause keeps this thread from spinning.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return;
                }
            };
            if self.guests.len() >= MAX_CONNECTIONS {
                self.counters.connections_refused.fetch_add(1, Relaxed);
                continue;
            }
            let mut guest = Guest {
                stream,
                since: Instant::now(),
                unsent: GREETING.to_vec(),
            };
            if guest.greet().is_ok() {
                self.counters.connections.fetch_add(1, Relaxed);
                self.guests.push(guest);
            }
        }
    }
}

impl Guest {
    fn greet(&mut self) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        self.stream.set_nodelay(true)?;
        self.send()
    }

    /// Sends what waits, or echoes what has come. An error, its end included, ends the connection.
    fn turn(&mut self) -> io::Result<()> {
        if !self.unsent.is_empty() {
            return self.send();
        }
        let mut piece = [0; 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.unsent.extend_from_slice(&piece[..length]);
                self.send()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        match self.stream.write(&self.unsent) {
            Ok(sent) => {
                self.unsent.drain(..sent);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn bind(wanted: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let tcp = TcpListener::bind(wanted)?;
        match UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => {
                tcp.set_nonblocking(true)?;
                udp.set_nonblocking(true)?;
                return Ok((tcp, udp));
            }
            // The port that the kernel chose for TCP is another's for UDP: choose again.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && wanted.port() == 0
                    && attempts.next().is_some() => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn responder() -> Responder {
        Responder::start("127.0.0.1".parse().unwrap(), 0).unwrap()
    }

    fn connect(responder: &Responder) -> TcpStream {
        let stream = TcpStream::connect(responder.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// Waits until it is: the answer is out before it is counted.
    fn counted(responder: &Responder, is: fn(&ResponderSummary) -> bool) {
        let begun = Instant::now();
        while !is(&responder.summary()) {
            let summary = responder.summary();
            assert!(begun.elapsed() < Duration::from_secs(20), "{summary:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_datagram_with_the_magic_comes_back_as_it_is_and_others_are_not_answered() {
        let responder = responder();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut long = MAGIC.to_vec();
        long.resize(MAX_DATAGRAM_BYTES + 1, 7);
        for stranger in [&b"hello"[..], b"", b"throng", &long] {
            socket.send_to(stranger, responder.address()).unwrap();
        }
        let probe = [&MAGIC[..], b"whatever"].concat();
        socket.send_to(&probe, responder.address()).unwrap();
        // Loopback keeps the order: an answer to a stranger would be the first.
        let mut answer = [0; 1024];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(answer[..length], probe);
        counted(&responder, |summary| {
            (summary.datagrams, summary.datagrams_ignored) == (1, 4)
        });
    }

    #[test]
    fn a_connection_is_greeted_at_once_and_echoes() {
        let responder = responder();
        let mut stream = connect(&responder);
        let mut heard = vec![0; GREETING.len()];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(heard, GREETING);
        stream.write_all(b"any bytes").unwrap();
        let mut heard = [0; 9];
        stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"any bytes");
        counted(&responder, |summary| summary.connections == 1);
    }

    #[test]
    fn a_connection_is_bounded_in_time() {
        let responder = responder();
        let mut stream = connect(&responder);
        let mut heard = Vec::new();
        // To the end, that the responder makes.
        stream.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, GREETING);
    }

    #[test]
    fn connections_are_bounded_in_number_and_end_with_the_responder() {
        let responder = responder();
        let mut streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(&responder)).collect();
        for stream in &mut streams {
            stream.read_exact(&mut [0; GREETING.len()]).unwrap();
        }
        let mut one_more = connect(&responder);
        assert!(matches!(one_more.read(&mut [0; 64]), Ok(0) | Err(_)));
        assert_eq!(responder.summary().connections_refused, 1);
        let address = responder.address();
        drop(responder);
        assert!(matches!(streams[0].read(&mut [0; 64]), Ok(0) | Err(_)));
        // Both ports are free again.
        Responder::start(address.ip(), address.port()).unwrap();
    }

    #[test]
    fn a_port_in_use_is_named() {
        let first = responder();
        let error = Responder::start(first.address().ip(), first.address().port())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(&first.address().to_string()) && error.contains("--canary-port"),
            "{error}"
        );
    }
}
