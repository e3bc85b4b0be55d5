//! `throng-tune`: see [`kernel_tuning::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    kernel_tuning::cli::main(std::env::args_os())
}
