//! A scenario's TOML: refused with words, or arguments.
#![no_main]

use std::io::Write;

use bench::scenarios;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = tempfile::Builder::new().suffix(".toml").tempfile() else {
        return;
    };
    if file.write_all(bytes).is_err() {
        return;
    }
    let Some(name) = file.path().to_str() else {
        return;
    };
    match scenarios::find(name).and_then(|scenario| scenario.arguments(&[])) {
        Ok(arguments) => assert!(!arguments.is_empty()),
        Err(why) => assert!(!why.is_empty()),
    }
});
