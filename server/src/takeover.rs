//! A running server hands its listening sockets to its successor, over its control socket.
//!
//! The sockets themselves are passed (SCM_RIGHTS, unix(7)): an accept queue belongs to its socket, and what waits in the
//! queue of one that is closed is reset. The conversation:
//!
//! | who | says |
//! |---|---|
//! | successor | `takeover` |
//! | server | `l` with each listening socket, `c` with the control socket, `a` with that of the admin side where there is one, and a line end; or `error: …` |
//! | successor | `ready`, followed by ` with control`, ` with admin`, or both, once nothing is left to do but accept; or it goes away: then nothing has happened |
//! | server | `yours`, once none of its workers accepts any more; it drains meanwhile |
//!
//! Owns: both sides of it. Invariant: the successor accepts only after `yours`, or when the server has not said it within
//! [`LET_GO`]; in between, connections wait in the queues. Two processes that accept from one socket would be correct most of
//! the time: the kernel wakes only one of the rings that wait on a socket, and an accept that is cancelled just then leaves
//! the connection to nobody, until the next one comes.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, geteuid};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;
use tracing::{info, warn};

use crate::admin::{Address, Offer, Socket};
use crate::engine::EngineKind;
use crate::worker::Event;

/// What a successor says first.
pub const REQUEST: &[u8] = b"takeover\n";
const READY: &str = "ready";
const WITH_CONTROL: &str = " with control";
const WITH_ADMIN: &str = " with admin";
const YOURS: &str = "yours\n";
const LISTENER: u8 = b'l';
const CONTROL: u8 = b'c';
const ADMIN: u8 = b'a';

/// How long a successor may take from the sockets to its readiness: more than a server needs to start.
const START: Duration = Duration::from_secs(60);
/// How long the workers may take to accept no more.
const LET_GO: Duration = Duration::from_secs(10);
/// How long the server may take to answer: it may have another client.
const ANSWER: Duration = Duration::from_secs(10);

/// Why nothing was taken over.
#[derive(Debug, Error)]
pub enum TakeoverError {
    /// Nobody is there.
    #[error(
        "no server answers at {path}: {error}; was it started with --control {path}? Where none runs, start without --takeover"
    )]
    Nobody {
        /// The control socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It will not.
    #[error("the server at {path} hands nothing over: {why}")]
    Refused {
        /// The control socket.
        path: PathBuf,
        /// What it said.
        why: String,
    },
    /// The conversation ended early.
    #[error("the server at {path} was not taken over and goes on, if it lives: {error}; try again")]
    Broken {
        /// The control socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The side that hands over.
#[derive(Debug)]
pub struct Handover {
    /// The workers alone keep them open.
    listeners: Vec<Weak<TcpListener>>,
    engine: EngineKind,
    /// Who may take over, beside root.
    owner: Uid,
    stop: Sender<Event>,
    admin: OnceLock<Arc<Offer>>,
}

impl Handover {
    /// Of a server that listens on `listeners` as the present user, and is ended through `stop`.
    pub(crate) fn new(
        listeners: &[Arc<TcpListener>],
        engine: EngineKind,
        stop: Sender<Event>,
    ) -> Handover {
        Handover {
            listeners: listeners.iter().map(Arc::downgrade).collect(),
            engine,
            owner: geteuid(),
            stop,
            admin: OnceLock::new(),
        }
    }

    /// From now on the admin side's socket is offered too.
    pub(crate) fn offer(&self, admin: Arc<Offer>) {
        // There is only one.
        let _ = self.admin.set(admin);
    }

    /// The sockets, while all of them are listened on.
    pub(crate) fn listeners(&self) -> Option<Vec<Arc<TcpListener>>> {
        self.listeners.iter().map(Weak::upgrade).collect()
    }

    /// Answers a successor that has said [`REQUEST`] on `stream`; what it says next comes from `lines`. `control` is
    /// offered too. Some where the server has been taken over and drains: whether `control` went along.
    ///
    /// # Errors
    /// The conversation broke off, and nothing has happened.
    pub(crate) fn hand_over(
        &self,
        mut stream: &UnixStream,
        lines: &mut impl BufRead,
        control: &UnixListener,
    ) -> io::Result<Option<bool>> {
        let peer = getsockopt(&stream, PeerCredentials)?;
        let listeners = match self.may(Uid::from_raw(peer.uid())) {
            Ok(listeners) => listeners,
            Err(why) => {
                warn!(pid = peer.pid(), uid = peer.uid(), "no takeover: {why}");
                return stream
                    .write_all(format!("error: {why}\n").as_bytes())
                    .map(|()| None);
            }
        };
        for listener in &listeners {
            send(stream, LISTENER, listener.as_fd())?;
        }
        send(stream, CONTROL, control.as_fd())?;
        if let Some(admin) = self.admin.get() {
            send(stream, ADMIN, admin.socket().as_fd())?;
        }
        stream.write_all(b"\n")?;
        // From here on the workers' own are all there are.
        drop(listeners);
        stream.set_read_timeout(Some(START))?;
        let mut line = String::new();
        // Too late, it is as if nothing was said.
        let _ = lines.read_line(&mut line);
        let ready = line.strip_suffix('\n').and_then(|l| l.strip_prefix(READY));
        let (with_control, with_admin) = match ready {
            Some(with) => (with.contains(WITH_CONTROL), with.contains(WITH_ADMIN)),
            None => {
                warn!(
                    pid = peer.pid(),
                    "a successor did not start: this server goes on"
                );
                // One that lives must not think that this server has died, and serve beside it.
                let _ = stream.write_all(b"error: this took too long\n");
                return Ok(None);
            }
        };
        info!(pid = peer.pid(), "taken over");
        // Fails where the server ends already.
        let _ = self.stop.send(Event::Stop("taken over"));
        let deadline = Instant::now() + LET_GO;
        while self.listeners.iter().any(|l| l.strong_count() > 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(admin) = self.admin.get().filter(|_| with_admin) {
            admin.give();
        }
        // It has the sockets, whether it hears this or not.
        let _ = stream.write_all(YOURS.as_bytes());
        Ok(Some(with_control))
    }

    /// The sockets, for somebody who may have them.
    fn may(&self, peer: Uid) -> Result<Vec<Arc<TcpListener>>, String> {
        if peer != self.owner && !peer.is_root() {
            return Err(format!(
                "it belongs to user {}: only that user, or root, may take it over, not user {peer}",
                self.owner
            ));
        }
        if self.engine == EngineKind::TokioUring {
            return Err("the engine tokio-uring ends its accepts by shutting its sockets down, for whoever has them; \
                        stop it, then start the other"
                .into());
        }
        self.listeners().ok_or_else(|| {
            "it is ending already: wait for its end, then start without --takeover".into()
        })
    }
}

/// The side that takes over: the server that still runs.
#[derive(Debug)]
pub struct Predecessor {
    path: PathBuf,
    stream: UnixStream,
    control: Option<UnixListener>,
    takes_control: bool,
    admin: Option<OwnedFd>,
    takes_admin: bool,
}

impl Predecessor {
    /// Asks the server whose control socket is at `path` for its listening sockets, at least one. It goes on accepting,
    /// and goes on for good where this is dropped.
    ///
    /// # Errors
    /// It hands nothing over.
    pub fn ask(path: &Path) -> Result<(Predecessor, Vec<TcpListener>), TakeoverError> {
        let path = path.to_owned();
        let mut stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) => return Err(TakeoverError::Nobody { path, error }),
        };
        let mut asked = || {
            stream.set_read_timeout(Some(ANSWER))?;
            stream.set_write_timeout(Some(ANSWER))?;
            stream.write_all(REQUEST)?;
            receive_all(&stream)
        };
        let (listeners, control, admin) = match asked() {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(why)) => return Err(TakeoverError::Refused { path, why }),
            Err(error) => return Err(TakeoverError::Broken { path, error }),
        };
        let predecessor = Predecessor {
            path,
            stream,
            control,
            takes_control: false,
            admin,
            takes_admin: false,
        };
        Ok((predecessor, listeners))
    }

    /// Its control socket, to be served here from now on; its file will be left alone. None where it was taken before.
    pub fn take_control(&mut self) -> Option<UnixListener> {
        self.takes_control = self.control.is_some();
        self.control.take()
    }

    /// Its admin side's socket, where that listens at `address`; to be served here once this server has it alone.
    pub fn take_admin(&mut self, address: &Address) -> Option<Socket> {
        let socket = Socket::inherited(self.admin.take()?, address)?;
        self.takes_admin = true;
        Some(socket)
    }

    /// Lets it drain, and waits until it accepts no more, or has died. The caller must accept then: nobody else does.
    ///
    /// # Errors
    /// It has waited long enough, and goes on.
    pub fn retire(mut self) -> Result<(), TakeoverError> {
        let mut ready = READY.to_owned();
        for (word, takes) in [
            (WITH_CONTROL, self.takes_control),
            (WITH_ADMIN, self.takes_admin),
        ] {
            ready += if takes { word } else { "" };
        }
        ready.push('\n');
        // What it said last can be read, whether it hears this or not.
        let _ = self.stream.set_read_timeout(Some(LET_GO + ANSWER));
        let _ = self.stream.write_all(ready.as_bytes());
        let mut said = String::new();
        let heard = BufReader::new(&self.stream).read_line(&mut said);
        if let Some(why) = said.strip_prefix("error: ") {
            return Err(TakeoverError::Refused {
                path: self.path,
                why: why.trim_end().to_owned(),
            });
        }
        if said != YOURS {
            let path = self.path.display();
            warn!(
                ?heard,
                "the server at {path} has not said that it accepts no more: this one does"
            );
        }
        Ok(())
    }
}

type Sockets = (Vec<TcpListener>, Option<UnixListener>, Option<OwnedFd>);

/// The sockets, or the reason that is given for none.
fn receive_all(stream: &UnixStream) -> io::Result<Result<Sockets, String>> {
    let (mut listeners, mut control, mut admin) = (Vec::new(), None, None);
    loop {
        match receive(stream)? {
            (LISTENER, Some(fd)) => listeners.push(fd.into()),
            (CONTROL, Some(fd)) => control = Some(fd.into()),
            (ADMIN, fd @ Some(_)) => admin = fd,
            (b'\n', None) if !listeners.is_empty() => return Ok(Ok((listeners, control, admin))),
            (b'e', None) => {
                let mut rest = String::new();
                BufReader::new(stream.take(4096)).read_line(&mut rest)?;
                return Ok(Err(rest.trim_start_matches("rror: ").trim_end().to_owned()));
            }
            (byte, fd) => {
                let what = format!("byte {byte} with {} socket", fd.map_or("no", |_| "a"));
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
    }
}

/// Gives `fd` away with a byte that says what it is.
fn send(stream: &UnixStream, what: u8, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    // There is room for one.
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let what = [what];
    let what = [IoSlice::new(&what)];
    let sent = retry_on_intr(|| sendmsg(stream, &what, &mut ancillary, SendFlags::NOSIGNAL))?;
    match sent {
        1 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// One byte, and what came with it.
fn receive(stream: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut byte)];
    // A socket with a timeout is not waited on again by the kernel: a ring's work for this thread is enough to interrupt it.
    let received =
        retry_on_intr(|| recvmsg(stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((byte[0], fd))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    struct Old {
        listeners: Vec<Arc<TcpListener>>,
        handover: Handover,
        stopped: Receiver<Event>,
    }

    fn old(engine: EngineKind) -> Old {
        let bind = |_| Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let listeners: Vec<_> = (0..3).map(bind).collect();
        let (stop, stopped) = channel();
        Old {
            handover: Handover::new(&listeners, engine, stop),
            listeners,
            stopped,
        }
    }

    /// Both sides, each on a thread of its own; what the server says has come of it.
    fn converse(old: &Old, successor: impl FnOnce(UnixStream) + Send) -> io::Result<Option<bool>> {
        let (server, client) = UnixStream::pair().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(directory.path().join("control")).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| successor(client));
            let mut lines = BufReader::new(&server);
            old.handover.hand_over(&server, &mut lines, &control)
        })
    }

    #[test]
    fn the_very_sockets_are_handed_over_and_let_go_before_they_are_used() {
        let mut old = old(EngineKind::Epoll);
        let addresses = |all: &[TcpListener]| -> Vec<_> {
            all.iter().map(|l| l.local_addr().unwrap()).collect()
        };
        let theirs: Vec<_> = old
            .listeners
            .iter()
            .map(|l| l.local_addr().unwrap())
            .collect();
        let workers = std::mem::take(&mut old.listeners);
        let let_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(workers);
        });
        let taken = converse(&old, |mut stream| {
            let (listeners, control, admin) = receive_all(&stream).unwrap().unwrap();
            assert_eq!(addresses(&listeners), theirs);
            assert!(control.is_some() && admin.is_none());
            stream.write_all(b"ready with control\n").unwrap();
            let mut said = String::new();
            BufReader::new(&stream).read_line(&mut said).unwrap();
            assert_eq!(said, YOURS);
        });
        assert_eq!(taken.unwrap(), Some(true));
        let_go.join().unwrap();
        assert!(matches!(
            old.stopped.try_recv(),
            Ok(Event::Stop("taken over"))
        ));
        assert!(
            old.handover
                .may(old.handover.owner)
                .unwrap_err()
                .contains("ending")
        );
    }

    #[test]
    fn a_successor_that_goes_away_changes_nothing() {
        let old = old(EngineKind::Uring);
        let taken = converse(&old, |stream| {
            receive_all(&stream).unwrap().unwrap();
        });
        assert_eq!(taken.unwrap(), None);
        assert!(old.stopped.try_recv().is_err());
        assert_eq!(old.handover.listeners().unwrap().len(), 3);
    }

    #[test]
    fn one_that_waits_no_longer_is_left_alone_and_one_that_dies_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let control = UnixListener::bind(&path).unwrap();
        for (last, follows) in [("", true), ("error: this took too long\n", false)] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let asked = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut stream = control.accept().unwrap().0;
                    stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
                    send(&stream, LISTENER, listener.as_fd()).unwrap();
                    stream.write_all(format!("\n{last}").as_bytes()).unwrap();
                });
                Predecessor::ask(&path)
            });
            let (predecessor, sockets) = asked.unwrap();
            assert_eq!(sockets[0].local_addr().unwrap(), address);
            assert_eq!(predecessor.retire().is_ok(), follows);
        }
    }

    #[test]
    fn who_may_not_and_what_cannot_is_told_why() {
        let cannot = old(EngineKind::TokioUring);
        let taken = converse(&cannot, |stream| {
            let why = receive_all(&stream).unwrap().unwrap_err();
            assert!(why.starts_with("the engine tokio-uring"), "{why}");
        });
        assert_eq!(taken.unwrap(), None);
        let old = old(EngineKind::Epoll);
        let other = Uid::from_raw(old.handover.owner.as_raw() + 1);
        assert!(
            old.handover
                .may(other)
                .unwrap_err()
                .contains("only that user")
        );
        assert!(old.handover.may(Uid::from_raw(0)).is_ok());
    }
}
