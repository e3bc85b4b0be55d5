//! The tokio-uring engine: io_uring by the crate of that name, a task per connection, for comparison.
//!
//! One current-thread runtime a worker; single-shot accepts, reads and writes, as that crate has them. A connection's
//! task alone reads and writes its socket: it starts the next read, then writes what was said, and looks at
//! what was read only when all of that is sent. So a peer that does not read is not heard either, and what waits is
//! bounded without more ado. What concerns all connections is the `hub`'s; what comes to all of them in time, the
//! `overseer`'s.
//!
//! Owns: the runtime, and all operations on the listener and the connections' sockets. Stands on `wire` and uses
//! nothing of `ring`.
//!
//! Limits: each connection takes a file descriptor (RLIMIT_NOFILE), a buffer of 4 KiB that the kernel holds while it
//! waits for input, and a task. The crate has no multishot operations, buffer rings or direct descriptors, waits for its
//! ring through epoll, and panics where the kernel refuses to take an operation.
//!
//! Invariant: no operation is in flight when its future is dropped. That would not cancel it, and the crate
//! frees the buffers of such operations when its runtime ends, kernel or no. So a read is ended by `shutdown` of
//! its socket and awaited, and a runtime that is not idle in time is left alone, not dropped.

mod hub;
mod overseer;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nix::errno::Errno;
use tokio_uring::BufResult;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};
use tracing::warn;
use wire::Session;

use crate::engine::{Engine, EngineError};
use crate::stats::Stats;
use crate::worker::Worker;
use hub::{BUFFER_BYTES, Hub, Shared};

/// The engine of [`EngineKind::TokioUring`](crate::EngineKind::TokioUring).
pub struct TokioUring;

const SUBMISSIONS: u32 = 1024;
/// Two operations for each of 8192 connections; more wait in the kernel until these are read.
const COMPLETIONS: u32 = 16 * 1024;
/// Single-shot accepts under way at a time.
const ACCEPTS: u32 = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Engine for TokioUring {
    fn run<S: Session + 'static, F: Fn() -> S + 'static>(
        mut worker: Worker<F>,
    ) -> Result<Stats, EngineError> {
        let listener = worker.listener.take().ok_or_else(|| {
            EngineError::system("finding a listener")(io::ErrorKind::NotFound.into())
        })?;
        let mut ring = tokio_uring::uring_builder();
        // Linux 5.19. Not deferred task work: the crate waits in epoll, where nothing would run it.
        ring.setup_cqsize(COMPLETIONS).setup_coop_taskrun();
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSIONS).uring_builder(&ring);
        let runtime = tokio_uring::Runtime::new(&builder)
            .map_err(EngineError::system("setting up tokio-uring"))?;
        let worker = Rc::new(worker);
        let hub = Rc::new(RefCell::new(Hub::new(Rc::clone(&worker))));
        let ended = runtime.block_on(serve(&hub, &worker, listener));
        if hub.borrow().is_idle() {
            drop(runtime);
        } else {
            warn!("operations do not end: their memory is left to them");
            std::mem::forget(runtime);
        }
        ended?;
        let stats = hub.borrow_mut().end();
        Ok(stats)
    }
}

/// Accepts until the worker is to stop; returns when all connections have ended, or will not.
async fn serve<S: Session + 'static, F: Fn() -> S + 'static>(
    hub: &Shared<S, F>,
    worker: &Rc<Worker<F>>,
    listener: Arc<std::net::TcpListener>,
) -> Result<(), EngineError> {
    let mailbox =
        overseer::watch(worker.mailbox()).map_err(EngineError::system("watching the mailbox"))?;
    // On some kernels an accept on a non-blocking socket fails instead of waiting.
    let accepting = listener
        .set_nonblocking(false)
        .and_then(|()| listener.try_clone())
        .map_err(EngineError::system("preparing the listener"))?;
    if !worker.ready() {
        return Ok(());
    }
    hub.borrow_mut().listens_on(listener);
    let listener = Rc::new(TcpListener::from_std(accepting));
    for _ in 0..ACCEPTS {
        hub.borrow_mut().acceptor_begins();
        tokio_uring::spawn(accept(Rc::clone(hub), Rc::clone(&listener)));
    }
    // The accepting tasks alone keep it.
    drop(listener);
    overseer::oversee(hub, worker, &mailbox).await;
    Ok(())
}

async fn accept<S: Session + 'static, F: Fn() -> S + 'static>(
    hub: Shared<S, F>,
    listener: Rc<TcpListener>,
) {
    while !hub.borrow().is_stopping() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let stream = Rc::new(stream);
                let opened = hub.borrow_mut().open(&stream);
                if let Some(slot) = opened {
                    tokio_uring::spawn(converse(Rc::clone(&hub), slot, stream));
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().map(Errno::from_raw);
                if let Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) = errno
                {
                    hub.borrow_mut().count_retry(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // Otherwise the peer has gone again, or the listener is shut down.
            }
        }
    }
    hub.borrow_mut().acceptor_ends();
}

/// A connection's task.
async fn converse<S: Session, F: Fn() -> S>(hub: Shared<S, F>, slot: u32, stream: Rc<TcpStream>) {
    let mut reading = pin!(read(&stream, Vec::with_capacity(BUFFER_BYTES)));
    let mut input = Input::UnderWay;
    loop {
        loop {
            let lent = hub.borrow_mut().lend_output(slot);
            let Some(bytes) = lent else { break };
            let bytes = write(&hub, slot, &stream, bytes, &mut reading, &mut input).await;
            hub.borrow_mut().return_output(slot, bytes);
        }
        if hub.borrow().is_closing(slot) {
            break;
        }
        if let Input::UnderWay = input {
            input = poll_fn(|cx| match reading.as_mut().poll(cx) {
                Poll::Ready(read) => Poll::Ready(Input::Read(read)),
                Poll::Pending => hub
                    .borrow_mut()
                    .is_wanted(slot, cx)
                    .map(|()| Input::UnderWay),
            })
            .await;
        }
        let mut hub = hub.borrow_mut();
        let mut buffer = match std::mem::replace(&mut input, Input::Ended) {
            Input::UnderWay => {
                input = Input::UnderWay;
                continue;
            }
            Input::Left(buffer) => buffer,
            Input::Read((Ok(read), buffer)) if read > 0 => {
                hub.count_receive(slot, read);
                buffer
            }
            Input::Read((Ok(_), rest)) => {
                hub.receive_eof(slot, &rest);
                continue;
            }
            Input::Read((Err(_), _)) | Input::Ended => {
                hub.lose(slot);
                continue;
            }
        };
        if hub.digest(slot, &mut buffer) {
            input = Input::Left(buffer);
        } else if !hub.is_closing(slot) {
            reading.set(read(&stream, buffer));
            input = Input::UnderWay;
        }
    }
    if let Input::UnderWay = input {
        // It fails where the peer has gone already, and then the read ends too.
        let _ = stream.shutdown(Shutdown::Both);
        let _ = reading.await;
    }
    hub.borrow_mut().leave(slot);
}

/// Where a connection's input is.
enum Input {
    /// The kernel has the buffer.
    UnderWay,
    /// The read has ended; nobody has looked yet.
    Read(BufResult<usize, Vec<u8>>),
    /// The session has more to consume once its output is sent.
    Left(Vec<u8>),
    /// No more comes.
    Ended,
}

/// Reads behind what `buffer` holds.
async fn read(stream: &TcpStream, buffer: Vec<u8>) -> BufResult<usize, Vec<u8>> {
    let from = buffer.len();
    let (result, buffer) = stream.read(buffer.slice(from..)).await;
    (result, buffer.into_inner())
}

/// Writes all of `bytes` while a read may be under way, and returns them. A connection that is lost meanwhile is closing.
async fn write<S: Session, F: Fn() -> S>(
    hub: &Shared<S, F>,
    slot: u32,
    stream: &TcpStream,
    mut bytes: Vec<u8>,
    reading: &mut Pin<&mut impl Future<Output = BufResult<usize, Vec<u8>>>>,
    input: &mut Input,
) -> Vec<u8> {
    let mut written = 0;
    while written < bytes.len() {
        let mut writing = stream.write(bytes.slice(written..)).submit();
        let (result, slice) = poll_fn(|cx| {
            if let Input::UnderWay = input
                && let Poll::Ready(read) = reading.as_mut().poll(cx)
            {
                *input = Input::Read(read);
            }
            Pin::new(&mut writing).poll(cx)
        })
        .await;
        bytes = slice.into_inner();
        match result {
            Ok(count) if count > 0 => {
                written += count;
                hub.borrow_mut().sent(slot, count);
            }
            _ => {
                hub.borrow_mut().lose(slot);
                break;
            }
        }
    }
    bytes
}
