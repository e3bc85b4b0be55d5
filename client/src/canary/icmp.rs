//! ICMP echo (RFC 792, RFC 4443): the socket that may send it, and its packets (pure).
//!
//! An unprivileged datagram socket (icmp(7), for the groups of net.ipv4.ping_group_range) is tried first, then a raw one
//! (CAP_NET_RAW, raw(7)). The first chooses the identifier itself and hears only answers to it; the second hears every
//! ICMP packet from the target.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::socket::{self, PAYLOAD_BYTES};

/// Identifier, sequence number and what is before them.
const HEADER_BYTES: usize = 8;

/// An ICMP echo socket, connected to its target.
#[derive(Debug)]
pub(super) struct Icmp {
    is_v6: bool,
    /// None: the kernel writes it, and sees to it that only answers to it come.
    id: Option<u16>,
}

/// What came in on the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Answer(u64),
    /// An answer, but to nobody here.
    Stranger,
    /// Not an answer at all: a raw socket hears requests and errors too.
    Other,
}

/// Opens a socket for echoes to `target`.
///
/// # Errors
/// Why none may be had, and the command that allows it.
pub(super) fn open(target: IpAddr, nonce: u64) -> Result<(Socket, Icmp), String> {
    let is_v6 = target.is_ipv6();
    let (domain, protocol) = match is_v6 {
        true => (Domain::IPV6, Protocol::ICMPV6),
        false => (Domain::IPV4, Protocol::ICMPV4),
    };
    let socket = |kind: Type| Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol));
    let (socket, id) = match socket(Type::DGRAM) {
        Ok(socket) => (socket, None),
        Err(_) => match socket(Type::RAW) {
            Ok(socket) => (socket, Some(nonce as u16)),
            Err(error) => return Err(forbidden(error)),
        },
    };
    let set_up = || -> std::io::Result<()> {
        socket.connect(&SocketAddr::new(target, 0).into())?;
        Ok(socket::stamp(&socket)?)
    };
    set_up().map_err(|error| format!("{target} cannot be pinged from here: {error}"))?;
    Ok((socket, Icmp { is_v6, id }))
}

fn forbidden(error: std::io::Error) -> String {
    match socket::errno(error) {
        Errno::EPERM | Errno::EACCES => {
            let group = nix::unistd::getegid();
            let program = std::env::current_exe()
                .map_or("throng-client".into(), |path| path.display().to_string());
            format!(
                "no right to send ICMP: allow it for this group with `sysctl -w net.ipv4.ping_group_range=\"{group} {group}\"`, \
                 or for this program with `setcap cap_net_raw+ep {program}`"
            )
        }
        errno => format!("no ICMP socket: {errno}"),
    }
}

impl Icmp {
    /// An echo request.
    pub(super) fn encode(&self, seq: u64, payload: &[u8; PAYLOAD_BYTES]) -> Vec<u8> {
        let mut packet = vec![if self.is_v6 { 128 } else { 8 }, 0, 0, 0];
        packet.extend(self.id.unwrap_or(0).to_be_bytes());
        packet.extend((seq as u16).to_be_bytes());
        packet.extend(payload);
        if !self.is_v6 {
            // ICMPv6 covers the addresses too, so the kernel does it.
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// Whose answer `packet` is.
    pub(super) fn decode(&self, packet: &[u8], nonce: u64) -> Heard {
        // A raw IPv4 socket gives the IP header too (raw(7)); its length is in words of 4 bytes.
        let header = match (self.is_v6, self.id) {
            (false, Some(_)) => packet.first().map_or(0, |b| usize::from(b & 15) * 4),
            _ => 0,
        };
        let packet = packet.get(header..).unwrap_or_default();
        if packet.len() < HEADER_BYTES || packet[0] != (if self.is_v6 { 129 } else { 0 }) {
            return Heard::Other;
        }
        let field = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        match socket::seq_of(&packet[HEADER_BYTES..], nonce) {
            Some(seq) if seq as u16 == field(6) && self.id.is_none_or(|id| id == field(4)) => {
                Heard::Answer(seq)
            }
            _ => Heard::Stranger,
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::super::socket::payload;
    use super::*;
    use proptest::prelude::*;

    /// What the target makes of a request.
    fn answer(icmp: &Icmp, request: &[u8]) -> Vec<u8> {
        let mut packet = request.to_vec();
        packet[0] = if icmp.is_v6 { 129 } else { 0 };
        match (icmp.is_v6, icmp.id) {
            (false, Some(_)) => [&[0x46; 24][..], &packet].concat(),
            _ => packet,
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_known_and_anything_else_is_not(seq: u64, nonce: u64, is_v6: bool, raw: bool, at in 0_usize..64) {
            let icmp = Icmp { is_v6, id: raw.then_some(nonce as u16) };
            let request = icmp.encode(seq, &payload(nonce, seq));
            prop_assert_eq!(icmp.decode(&request, nonce), Heard::Other);
            let reply = answer(&icmp, &request);
            prop_assert_eq!(icmp.decode(&reply, nonce), Heard::Answer(seq));
            prop_assert_eq!(icmp.decode(&reply, nonce ^ 1), Heard::Stranger);
            let at = at.min(reply.len() - 1);
            prop_assert_ne!(icmp.decode(&reply[..at], nonce), Heard::Answer(seq));
        }
    }

    #[test]
    fn the_checksum_makes_the_sum_zero() {
        let icmp = Icmp {
            is_v6: false,
            id: Some(0xbeef),
        };
        assert_eq!(checksum(&icmp.encode(3, &payload(1, 3))), 0);
        // The example of RFC 1071.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
