//! Of what kind a network device is, as rtnetlink(7) tells: sysfs does not, and may be another namespace's.

use std::io;
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
/// The flags of an attribute are no part of its type.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Of a message's header (nlmsghdr), and of what follows in a link's (ifinfomsg).
const HEADER_BYTES: usize = 16;
const IFINFO_BYTES: usize = 16;

/// `veth`, `bridge`, `vlan`, …; none of a device that is no software's, and where the kernel does not say.
pub(super) fn kind(device: &str) -> Option<String> {
    kind_in(&ask(device).ok()?)
}

/// The kernel's answer to one RTM_GETLINK. It comes at once; the bound is for a kernel that does not answer.
fn ask(device: &str) -> io::Result<Vec<u8>> {
    let index = if_nametoindex(device)?;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1))?;
    let mut message = Vec::with_capacity(HEADER_BYTES + IFINFO_BYTES);
    message.extend(((HEADER_BYTES + IFINFO_BYTES) as u32).to_ne_bytes());
    message.extend(RTM_GETLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question, so neither matters. Then family, pad and type of the device: any.
    message.extend([0; 8 + 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = vec![0; 64 * 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

/// The kind in an answer (pure).
fn kind_in(answer: &[u8]) -> Option<String> {
    if u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?) != RTM_NEWLINK {
        return None;
    }
    let info = attribute(answer.get(HEADER_BYTES + IFINFO_BYTES..)?, IFLA_LINKINFO)?;
    let kind = attribute(info, IFLA_INFO_KIND)?;
    let kind = kind.strip_suffix(&[0]).unwrap_or(kind);
    Some(String::from_utf8_lossy(kind).into_owned())
}

/// The value of the first attribute of type `wanted`: each is its length, its type, and its value, padded to 4 bytes.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let field = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(field(0)?), field(2)?);
        let value = bytes.get(4..length)?;
        if kind & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer(info: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES + IFINFO_BYTES];
        bytes[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        bytes.extend(attribute_of(3, b"eth0\0"));
        bytes.extend(attribute_of(IFLA_LINKINFO | 0x8000, info));
        bytes
    }

    #[test]
    fn the_kind_is_found_behind_other_attributes() {
        let info = [
            attribute_of(7, b"x"),
            attribute_of(IFLA_INFO_KIND, b"veth\0"),
        ]
        .concat();
        assert_eq!(kind_in(&answer(&info)).as_deref(), Some("veth"));
        assert_eq!(kind_in(&answer(&[])), None);
    }

    #[test]
    fn loopback_is_no_softwares() {
        assert_eq!(kind("lo"), None);
        assert_eq!(kind("no-such-device"), None);
        assert!(ask("lo").is_ok_and(|answer| answer.len() > HEADER_BYTES + IFINFO_BYTES));
    }

    proptest! {
        #[test]
        fn no_answer_is_too_broken(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = kind_in(&answer(&bytes));
            let _ = kind_in(&bytes);
        }
    }
}
