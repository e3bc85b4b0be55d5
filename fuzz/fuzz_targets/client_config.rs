//! The client's command line: one argument a line. It is refused with words, or gives a plan.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let name = OsString::from("throng-client");
    let arguments = bytes.split(|byte| *byte == b'\n');
    let arguments = arguments.map(|argument| OsString::from_vec(argument.to_vec()));
    match client::config::Config::parse(std::iter::once(name).chain(arguments)) {
        Ok((config, plan)) => assert!(plan.capacity() >= config.connections),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
