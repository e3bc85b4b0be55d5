//! `throng-client`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    client::cli::main(std::env::args_os())
}
