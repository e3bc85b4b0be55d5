//! `throng-bench`: see `throng-bench --help`.

fn main() -> std::process::ExitCode {
    bench::cli::main(std::env::args_os())
}
