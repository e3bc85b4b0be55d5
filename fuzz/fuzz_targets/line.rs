//! Lines: the same bytes, whole and cut at every place, say the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::{Close, Line, Out, Session};

fn converse(pieces: &[&[u8]]) -> (Vec<u8>, Option<Close>) {
    let mut session = Line::default();
    let mut room = vec![0; Out::MIN_ROOM];
    let (mut kept, mut said) = (Vec::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let mut out = Out::new(&mut room);
            let consumed = session.on_bytes(&kept, &mut out);
            assert!(consumed <= kept.len() && !out.overflowed());
            let (written, closing) = (out.written(), out.closing());
            said.extend_from_slice(&room[..written]);
            kept.drain(..consumed);
            if closing.is_some() {
                return (said, closing);
            }
            if consumed == 0 {
                break;
            }
        }
    }
    let mut out = Out::new(&mut room);
    session.on_eof(&kept, &mut out);
    let written = out.written();
    said.extend_from_slice(&room[..written]);
    (said, None)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = converse(&[bytes]);
    let is_prefix = bytes.starts_with(&whole.0);
    assert!(is_prefix, "what is said back is not what was said");
    for at in 0..=bytes.len() {
        assert_eq!(converse(&[&bytes[..at], &bytes[at..]]), whole, "cut at {at}");
    }
    let singly: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(converse(&singly), whole, "byte by byte");
});
