//! An echo server on tokio, as one would write it: a task for each connection, a buffer in each task.
//!
//! `tokio-echo PORT [--threads N]`: on one thread unless told otherwise, for the bench pins it to the server's cores and
//! on one core more threads only take turns.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Builder;

/// As Throng's own: connections that wait to be accepted (listen(2) cuts it to net.core.somaxconn).
const BACKLOG: u32 = 4_096;

/// Enough for the messages of the bench in one read.
const BUFFER_BYTES: usize = 4_096;

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: tokio-echo PORT [--threads N]");
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse::<u16>().map_err(|_| usage());
    let (port, threads) = match &args[..] {
        [port] => (number(port)?, 1),
        [port, flag, threads] if flag == "--threads" => (number(port)?, number(threads)?),
        _ => return Err(usage()),
    };
    let mut runtime = match threads {
        0 | 1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 1 {
        runtime.worker_threads(threads.into());
    }
    runtime.enable_io().build()?.block_on(serve(port))
}

async fn serve(port: u16) -> io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
    let listener = socket.listen(BACKLOG)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(echo(stream));
            }
            // Such as EMFILE: said, for a server that takes no more looks like one that is slow.
            Err(cause) => {
                eprintln!("cannot accept: {cause}");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn echo(mut stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if stream.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
