//! A server that breaks on purpose, so that it can be tested that this is noticed.
//!
//! A third, `escape`, starts a program, which is what a sandbox is against.
//!
//! Only in a build with the feature `burn`, which is for tests alone. Owns nothing.

use wire::{Line, Out, Session};

/// The `line` protocol, but for two lines: `panic` panics, `stall` never returns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faulty(Line);

impl Session for Faulty {
    fn on_open(&mut self, out: &mut Out<'_>) {
        self.0.on_open(out);
    }

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        match input {
            b"panic\n" => panic!("as asked for"),
            b"stall\n" => loop {
                std::thread::park();
            },
            b"escape\n" => {
                let _ = std::process::Command::new("true").spawn();
                input.len()
            }
            _ => self.0.on_bytes(input, out),
        }
    }

    fn on_tick(&mut self, out: &mut Out<'_>) {
        self.0.on_tick(out);
    }

    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>) {
        self.0.on_message(message, out);
    }

    fn on_eof(&mut self, rest: &[u8], out: &mut Out<'_>) {
        self.0.on_eof(rest, out);
    }
}
