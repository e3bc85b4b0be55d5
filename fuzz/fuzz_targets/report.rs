//! A bench report: read, and refused with words, or shown in every form.
#![no_main]

use std::io::Write;

use bench::report::{html, markdown, recorded};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = tempfile::NamedTempFile::new() else {
        return;
    };
    if file.write_all(bytes).is_err() {
        return;
    }
    match recorded::page(file.path()) {
        Ok(page) => {
            assert!(!markdown::markdown(&page).is_empty());
            // A chart that cannot be drawn is refused with words.
            let _ = html::html(&page);
        }
        Err(why) => assert!(!why.is_empty()),
    }
});
