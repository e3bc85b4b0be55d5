//! A chat server: every line goes to everybody. `cargo run --release --example chat`, then `nc 127.0.0.1 7000` twice.

use std::time::Duration;

use server::{Config, EngineKind, Publisher};
use wire::{Close, Out, Session};

/// One guest. It keeps no buffers: a half-written line stays with the engine.
pub struct Guest {
    room: Publisher,
}

impl Guest {
    /// A guest of the room that `room` reaches.
    pub fn new(room: Publisher) -> Guest {
        Guest { room }
    }
}

impl Session for Guest {
    fn on_open(&mut self, out: &mut Out<'_>) {
        out.put(b"Welcome. What you write, all will read.\n");
    }

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        let mut consumed = 0;
        for line in input.split_inclusive(|b| *b == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            if self.room.publish(line, Duration::ZERO).is_err() {
                out.close(Close::TooLong);
            }
            consumed += line.len();
        }
        if consumed == 0 && input.len() > 1000 {
            out.close(Close::TooLong);
        }
        consumed
    }

    fn on_tick(&mut self, _out: &mut Out<'_>) {}

    fn on_message(&mut self, line: &[u8], out: &mut Out<'_>) {
        out.put(line);
    }

    fn on_eof(&mut self, _rest: &[u8], _out: &mut Out<'_>) {}
}

#[allow(
    dead_code,
    reason = "the test that includes this file starts a server of its own"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::new("127.0.0.1:7000".parse()?, EngineKind::Uring, vec![0]);
    let server = server::start(&config, |room| {
        let room = room.clone();
        move || Guest::new(room.clone())
    })?;
    println!("chatting on {}", server.address());
    server.wait()?;
    Ok(())
}
