//! Round trips of datagrams, one socket for all of a target: ICMP echo, and UDP to the server's responder.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::icmp::{self, Heard, Icmp};
use super::ledger::Ledger;
use super::socket::{self, payload, seq_of};

#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Socket,
    nonce: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// On a connected socket.
    Icmp(Icmp),
    /// Not connected: a responder on all addresses may answer from another one.
    Udp(SockAddr),
}

impl Datagrams {
    pub(super) fn icmp(target: SocketAddr, nonce: u64) -> Result<Datagrams, String> {
        let (socket, icmp) = icmp::open(target.ip(), nonce)?;
        Ok(Datagrams {
            socket,
            nonce,
            kind: Kind::Icmp(icmp),
        })
    }

    pub(super) fn udp(target: SocketAddr, nonce: u64) -> Result<Datagrams, String> {
        let open = || -> std::io::Result<Socket> {
            let socket = Socket::new(
                Domain::for_address(target),
                Type::DGRAM.nonblocking().cloexec(),
                Some(Protocol::UDP),
            )?;
            socket::stamp(&socket)?;
            Ok(socket)
        };
        Ok(Datagrams {
            socket: open().map_err(|error| format!("no UDP socket: {error}"))?,
            nonce,
            kind: Kind::Udp(target.into()),
        })
    }

    /// The bytes of a probe, so that nothing but the send itself is between the clock and the kernel.
    pub(super) fn prepare(&self, seq: u64) -> Vec<u8> {
        let payload = payload(self.nonce, seq);
        match &self.kind {
            Kind::Icmp(icmp) => icmp.encode(seq, &payload),
            Kind::Udp(_) => payload.to_vec(),
        }
    }

    pub(super) fn send(&self, packet: &[u8]) -> nix::Result<()> {
        let sent = match &self.kind {
            Kind::Icmp(_) => self.socket.send(packet),
            Kind::Udp(target) => self.socket.send_to(packet, target),
        };
        sent.map(|_| ()).map_err(socket::errno)
    }

    /// All that has come.
    pub(super) fn receive(&self, ledger: &mut Ledger, now: impl Fn() -> Duration) {
        let mut buffer = [0; 1024];
        loop {
            let (length, stamp) = match socket::receive(&self.socket, &mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    // An error of an earlier packet (ICMP unreachable); reading it has cleared it.
                    ledger.noted(&format!("{errno:?}"));
                    continue;
                }
            };
            let bytes = &buffer[..length];
            let heard = match &self.kind {
                Kind::Icmp(icmp) => icmp.decode(bytes, self.nonce),
                Kind::Udp(_) => seq_of(bytes, self.nonce).map_or(Heard::Stranger, Heard::Answer),
            };
            match heard {
                Heard::Answer(seq) => ledger.answered(seq, stamp, now()),
                Heard::Stranger => ledger.strangers += 1,
                Heard::Other => {}
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
