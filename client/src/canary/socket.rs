//! What the probes' sockets have in common: packets stamped by the kernel on their way in, and the bytes that say whose
//! a packet is.
//!
//! SO_TIMESTAMPNS (socket(7)): the kernel notes CLOCK_REALTIME as a packet arrives from the device, before any process
//! has to run; recvmsg hands it over, for TCP as for datagrams. It costs every packet of the host a reading of the clock
//! while such a socket is open.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimestampns;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};
use nix::sys::time::TimeSpec;

/// What a probe begins with. A responder answers nothing else.
pub(super) const MAGIC: &[u8; 8] = b"throng\x00\x01";

/// The bytes of one probe: the magic, the run, the number of the probe.
pub(super) const PAYLOAD_BYTES: usize = 24;

pub(super) fn payload(nonce: u64, seq: u64) -> [u8; PAYLOAD_BYTES] {
    let mut bytes = [0; PAYLOAD_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&nonce.to_be_bytes());
    bytes[16..].copy_from_slice(&seq.to_be_bytes());
    bytes
}

/// The number of the probe, if these are all the bytes of one of this run's.
pub(super) fn seq_of(bytes: &[u8], nonce: u64) -> Option<u64> {
    let seq = u64::from_be_bytes(bytes.get(16..24)?.try_into().ok()?);
    (bytes == payload(nonce, seq)).then_some(seq)
}

/// An error of a system call always has its number.
pub(super) fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Asks for stamps on all that `socket` receives.
pub(super) fn stamp(socket: &impl AsFd) -> nix::Result<()> {
    setsockopt(socket, ReceiveTimestampns, &true)
}

/// One receive that does not wait: its length, and when the kernel had it, since the epoch.
pub(super) fn receive(
    socket: &impl AsRawFd,
    buffer: &mut [u8],
) -> nix::Result<(usize, Option<Duration>)> {
    let mut control = cmsg_space!(TimeSpec);
    let mut slices = [IoSliceMut::new(buffer)];
    loop {
        let received = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        );
        let received = match received {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        let stamp = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
            _ => None,
        });
        return Ok((received.bytes, stamp));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::SystemTime;

    #[test]
    fn a_payload_is_known_by_its_run_and_number() {
        let bytes = payload(7, 42);
        assert_eq!(seq_of(&bytes, 7), Some(42));
        assert_eq!(seq_of(&bytes, 8), None);
        assert_eq!(seq_of(&bytes[..23], 7), None);
        assert_eq!(seq_of(&[&bytes[..], b"x"].concat(), 7), None);
    }

    /// The stamp is of the arrival, not of the look: for TCP as for UDP.
    #[test]
    fn the_kernel_stamps_datagrams_and_streams_at_their_arrival() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        stamp(&udp).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stamp(&stream).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // Stamping is switched on by a worker of the kernel's, a moment after it was asked for.
        std::thread::sleep(Duration::from_millis(100));
        let before = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        udp.send_to(b"x", udp.local_addr().unwrap()).unwrap();
        server.write_all(b"x").unwrap();
        let sent = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        for received in [receive(&udp, &mut [0; 8]), receive(&stream, &mut [0; 8])] {
            let (length, stamp) = received.unwrap();
            assert_eq!(length, 1);
            let stamp = stamp.expect("no stamp");
            assert!(
                stamp >= before && stamp < sent + Duration::from_millis(150),
                "{stamp:?}"
            );
        }
    }
}
