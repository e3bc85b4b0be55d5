//! Echo: every byte back, whatever the pieces and the room; the first two bytes say which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::{Echo, Out, Session};

fuzz_target!(|bytes: &[u8]| {
    let [piece, room, bytes @ ..] = bytes else {
        return;
    };
    let mut room = vec![0; usize::from(*room) + 1];
    let mut back = Vec::new();
    for mut rest in bytes.chunks(usize::from(*piece) + 1) {
        while !rest.is_empty() {
            let mut out = Out::new(&mut room);
            let taken = Echo.on_bytes(rest, &mut out);
            assert!(taken > 0 && !out.overflowed() && out.closing().is_none());
            let written = out.written();
            back.extend_from_slice(&room[..written]);
            rest = &rest[taken..];
        }
    }
    assert_eq!(back, bytes);
});
