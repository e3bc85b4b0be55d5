//! The admin side of a server (`--admin`): metrics, health, status and connections over HTTP, for those who run it.
//!
//! Owns: its listening socket, and one thread with a runtime of its own, on which everything here happens. Touches
//! workers through their mailboxes alone ([`inquiry`](crate::inquiry)), so that a server that nobody asks pays nothing.
//!
//! Invariants: after [`Admin::start`] no thread is started, no socket opened and no file written, so that it works in the
//! sandbox; whoever connects has a bounded time, and a bounded number of others beside him.

mod address;
mod desk;
mod http;
mod metrics;
mod status;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, Semaphore};

use crate::control::Control;
use crate::worker::Gate;
pub use address::{Address, Socket};
use desk::Desk;
pub use desk::{Id, Served};
pub(crate) use http::HEADER;

/// Connections served at a time; others wait in the queue.
const MAX_CONNECTIONS: usize = 16;
/// From a connection to the end of its request's head: less than a liveness probe waits where all places are taken by those
/// who say nothing.
const HEAD: Duration = Duration::from_millis(500);
/// From a connection to its end: one request. Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an accept that failed for lack of files or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// The admin side of this process.
#[derive(Debug)]
pub struct Admin {
    address: Address,
    desk: Arc<Desk>,
    /// Accepts from then on; never where it is false.
    gate: Arc<Gate>,
    offer: Arc<Offer>,
}

/// What a successor may have: the listening socket, and the file of it.
#[derive(Debug)]
pub struct Offer {
    socket: OwnedFd,
    file: Option<Control>,
    given: Notify,
}

impl Offer {
    /// The listening socket.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// A successor has it: nobody is accepted here any more, and the file is left alone.
    pub fn give(&self) {
        if let Some(file) = &self.file {
            file.disown();
        }
        self.given.notify_one();
    }
}

impl Admin {
    /// Answers at `socket`, from a thread of its own, that the server is starting, until [`Admin::attach`]. A socket that
    /// another server still has is left to it until [`Admin::open`].
    ///
    /// # Errors
    /// No runtime, no thread.
    pub fn start(socket: Socket) -> io::Result<Admin> {
        let address = socket.address()?;
        let is_shared = socket.is_shared();
        let (offered, listener, file) = socket.into_parts()?;
        // All that the sandbox does not allow later happens here.
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _within = runtime.enter();
            Listener::register(listener)?
        };
        let admin = Admin {
            address,
            desk: Arc::new(Desk::new()),
            gate: Arc::default(),
            offer: Arc::new(Offer {
                socket: offered,
                file,
                given: Notify::new(),
            }),
        };
        let (desk, gate, offer) = (
            Arc::clone(&admin.desk),
            Arc::clone(&admin.gate),
            Arc::clone(&admin.offer),
        );
        std::thread::Builder::new()
            .name("admin".into())
            .spawn(move || {
                if *gate.wait() {
                    serve(&runtime, listener, &desk, &offer);
                }
            })?;
        if !is_shared {
            admin.open();
        }
        Ok(admin)
    }

    /// Where it answers, the port included that the kernel chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// There is a server to ask about.
    pub fn attach(&self, served: Served) {
        self.desk.attach(served);
    }

    /// The socket is this server's alone.
    pub fn open(&self) {
        if let Some(file) = &self.offer.file {
            file.claim();
        }
        // Open only once.
        let _ = self.gate.set(true);
    }

    /// What a successor may have.
    pub fn offer(&self) -> Arc<Offer> {
        Arc::clone(&self.offer)
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // A thread that still waits has nothing to wait for.
        let _ = self.gate.set(false);
        if let Some(file) = &self.offer.file {
            file.remove();
        }
    }
}

/// Until a successor has the socket, and those who had connected have their answers.
fn serve(runtime: &Runtime, listener: Listener, desk: &Arc<Desk>, offer: &Offer) {
    runtime.block_on(async {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut given = pin!(offer.given.notified());
        loop {
            // It is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let accepted = poll_fn(|cx| match given.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => listener.poll_accept(cx).map(Some),
            });
            let desk = Arc::clone(desk);
            match accepted.await {
                None => break,
                Some(Ok(Stream::Tcp(stream))) => drop(tokio::spawn(async move {
                    answer(stream, desk).await;
                    drop(place);
                })),
                Some(Ok(Stream::Unix(stream))) => drop(tokio::spawn(async move {
                    answer(stream, desk).await;
                    drop(place);
                })),
                Some(Err(_)) => tokio::time::sleep(PAUSE).await,
            }
        }
        drop(listener);
        // Their time is bounded; nobody else has a place.
        let _ = places.acquire_many(MAX_CONNECTIONS as u32).await;
    });
}

/// One request of one connection.
async fn answer(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, desk: Arc<Desk>) {
    let service = service_fn(|request: Request<Incoming>| {
        let desk = Arc::clone(&desk);
        // Nothing here has a body that matters.
        let (head, _) = request.into_parts();
        async move { Ok::<_, Infallible>(http::answer(&desk, &head).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        // Whoever has said all may say so. Nor is a question dropped whose asker has gone: that would be a way to have the
        // workers asked again at once.
        .half_close(true)
        // Whoever asks every second makes a connection a second; in return nobody keeps a place.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // One that goes away in the middle is its own loss.
    let _ = tokio::time::timeout(PATIENCE, connection).await;
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Within a runtime only.
    fn register(listener: address::Listener) -> io::Result<Listener> {
        Ok(match listener {
            address::Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Listener::Tcp(TcpListener::from_std(listener)?)
            }
            address::Listener::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Listener::Unix(UnixListener::from_std(listener)?)
            }
        })
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Listener::Tcp(listener) => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| Stream::Tcp(stream)),
            Listener::Unix(listener) => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::worker::Command;
    use desk::tests::{report, served};

    #[test]
    fn what_one_asked_who_has_gone_is_answered_to_its_end() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(gone());
    }

    async fn gone() {
        let desk = Arc::new(Desk::new());
        desk.attach(served(1));
        let served = desk.served().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(stream).unwrap();
        let connection = tokio::spawn(answer(stream, Arc::clone(&desk)));
        let question = loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Some(question) = served.publisher.mailbox(0).take().pop() {
                break question;
            }
        };
        // A reset.
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!connection.is_finished(), "its question goes on");
        let Command::Report(reply) = question else {
            panic!("a question for a report");
        };
        reply.send(report(0, 7)).unwrap();
        connection.await.unwrap();
        let accounts = desk.accounts(served).await;
        assert_eq!(accounts[0].report.as_ref().unwrap().0.held, 7);
        assert!(served.publisher.mailbox(0).take().is_empty(), "asked once");
    }
}
