//! A session that takes its input in sips, says nothing to some of them, and waits for a mouthful before others: what it
//! leaves must come again, and may be more than a connection may keep.

use wire::{Out, Session};

/// Echoes some of its input.
pub struct Sip;

/// Bytes it takes at a time.
const MOST: usize = 40;
/// What it waits for at times.
const MOUTHFUL: usize = 3_000;

impl Session for Sip {
    fn on_open(&mut self, _out: &mut Out<'_>) {}

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        if input.len() < MOUTHFUL && input.first().is_some_and(|byte| byte % 16 == 0) {
            return 0;
        }
        let taken = input.len().min(MOST);
        if input.first().is_some_and(|byte| byte % 3 > 0) {
            out.put(&input[..taken]);
        }
        taken
    }

    fn on_tick(&mut self, _out: &mut Out<'_>) {}

    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>) {
        out.put(message);
    }

    fn on_eof(&mut self, _rest: &[u8], _out: &mut Out<'_>) {}
}
