//! The server's command line: one argument a line. It is refused with words, or gives a configuration.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;

/// They make files.
const WRITES: [&[u8]; 3] = [b"--ad", b"--cont", b"--j"];

fuzz_target!(|bytes: &[u8]| {
    let arguments = bytes.split(|byte| *byte == b'\n');
    if arguments.clone().any(|a| WRITES.iter().any(|flag| a.starts_with(flag))) {
        return;
    }
    let name = OsString::from("throng-server");
    let arguments = arguments.map(|argument| OsString::from_vec(argument.to_vec()));
    match server::config::resolve(std::iter::once(name).chain(arguments)) {
        Ok(resolved) => assert!(!resolved.config.cores.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
