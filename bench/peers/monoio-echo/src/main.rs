//! An echo server on monoio with io_uring, as one would write it: a task for each connection, a buffer in each task.
//!
//! `monoio-echo PORT`: one thread, one ring. Without io_uring it does not start, and says so.
#![forbid(unsafe_code)]

use std::io;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};

/// As Throng's own: connections that wait to be accepted (listen(2) cuts it to net.core.somaxconn).
const BACKLOG: i32 = 4_096;

/// Enough for the messages of the bench in one read.
const BUFFER_BYTES: usize = 4_096;

/// Entries of the submission queue: what is submitted at a time where very many are active.
const ENTRIES: u32 = 32_768;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| io::Error::other("usage: monoio-echo PORT"))?;
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(ENTRIES)
        .build()?;
    runtime.block_on(serve(port))
}

async fn serve(port: u16) -> io::Result<()> {
    let options = ListenerOpts::new()
        .backlog(BACKLOG)
        .reuse_addr(true)
        .reuse_port(false);
    let listener = TcpListener::bind_with_config(("127.0.0.1", port), &options)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                monoio::spawn(echo(stream));
            }
            // Such as EMFILE: said, for a server that takes no more looks like one that is slow.
            Err(cause) => eprintln!("cannot accept: {cause}"),
        }
    }
}

async fn echo(mut stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (read, filled) = stream.read(buffer).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let (written, mut sent) = stream.write_all(filled).await;
        if written.is_err() {
            return;
        }
        sent.clear();
        buffer = sent;
    }
}
