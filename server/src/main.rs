//! `throng-server`: see [`server::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    server::cli::main(std::env::args_os())
}
