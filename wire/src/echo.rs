//! Every byte back, no greeting.

use crate::session::{Out, Session};

/// The raw echo protocol: what arrives is sent back, in order, whatever it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Session for Echo {
    fn on_open(&mut self, _out: &mut Out<'_>) {}

    fn on_bytes(&mut self, input: &[u8], out: &mut Out<'_>) -> usize {
        let taken = input.len().min(out.room());
        out.put(&input[..taken]);
        taken
    }

    fn on_tick(&mut self, _out: &mut Out<'_>) {}

    fn on_message(&mut self, message: &[u8], out: &mut Out<'_>) {
        out.put(message);
    }

    fn on_eof(&mut self, _rest: &[u8], _out: &mut Out<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_byte_comes_back_whatever_the_pieces(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            piece in 1usize..300,
            room in 1usize..300,
        ) {
            let mut session = Echo;
            let mut back = Vec::new();
            let mut memory = vec![0; room];
            for piece in bytes.chunks(piece) {
                let mut rest = piece;
                while !rest.is_empty() {
                    let mut out = Out::new(&mut memory);
                    let taken = session.on_bytes(rest, &mut out);
                    prop_assert!(taken > 0 && !out.overflowed());
                    let written = out.written();
                    back.extend_from_slice(&memory[..written]);
                    rest = &rest[taken..];
                }
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
