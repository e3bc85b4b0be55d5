//! The command line of `throng-tune`. Each command has a file of its own in `cli/`, with its arguments and a `run` from
//! them to an [`Outcome`]; here they are named, and outcomes become exit codes.

mod addresses;
mod apply;
mod check;
mod diff;
mod explain;
mod export;
mod goal;
mod paint;
mod place;
mod revert;
mod show;
mod status;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  throng-tune check --connections 1000000             what is in the way of a million
  throng-tune explain tcp_mem                         what a setting or counter means
  throng-tune watch                                   the kernel's counters as they move
  throng-tune diff --connections 1000000              what would be changed for a million, and why
  sudo throng-tune apply --connections 1000000        change it
  throng-tune status                                  what is changed at the moment
  sudo throng-tune revert                             take it back
  throng-tune export sysctl --connections 1000000     as a file for /etc/sysctl.d

Exit codes: 0 done, 1 failed, 2 bad usage; 10 something is not as wanted, 11 something is wrong.";

/// The limits of this host: what they should be for so many connections, and what is in the way.
#[derive(Debug, Parser)]
#[command(name = "throng-tune", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The command line as clap has it, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what of this host is in the way, and what changes that
    #[command(after_help = check::EXAMPLES)]
    Check(check::Args),
    /// Say what a setting or counter means
    #[command(after_help = explain::EXAMPLES)]
    Explain(explain::Args),
    /// Show the kernel's counters as they move
    #[command(after_help = watch::EXAMPLES)]
    Watch(watch::Args),
    /// Give this host more source addresses, and take them back
    #[command(after_help = addresses::EXAMPLES)]
    Addresses(addresses::Args),
    /// Show what `apply` would change
    #[command(after_help = diff::EXAMPLES)]
    Diff(diff::Args),
    /// Change what is not as wanted
    #[command(after_help = apply::EXAMPLES)]
    Apply(apply::Args),
    /// Give what `apply` changed its original value again
    #[command(after_help = revert::EXAMPLES)]
    Revert(revert::Args),
    /// Show what is changed at the moment
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Print files that say the same: sysctl.d, limits.d, systemd, seccomp
    #[command(after_help = export::EXAMPLES)]
    Export(export::Args),
}

impl Command {
    fn run(&self) -> anyhow::Result<Outcome> {
        match self {
            Self::Check(args) => check::run(args),
            Self::Explain(args) => explain::run(args),
            Self::Watch(args) => watch::run(args),
            Self::Addresses(args) => addresses::run(args),
            Self::Diff(args) => diff::run(args),
            Self::Apply(args) => apply::run(args),
            Self::Revert(args) => revert::run(args),
            Self::Status(args) => status::run(args),
            Self::Export(args) => export::run(args),
        }
    }
}

/// How a command that did its work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// There is nothing to say against it.
    Done,
    /// Something is not as it should be.
    Warned,
    /// Something is wrong.
    Failed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::Warned => 10,
            Outcome::Failed => 11,
        })
    }
}

/// What was asked for cannot be; said before anything was begun.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;

/// Runs a command. `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come this way too, with exit code 0. Nobody to tell when this fails.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    cli.command.run().map_or_else(fail, ExitCode::from)
}

fn fail(error: anyhow::Error) -> ExitCode {
    // Nobody to tell when this fails.
    let _ = writeln!(io::stderr(), "error: {error:#}");
    ExitCode::from(match error.is::<UsageError>() {
        true => BAD_USAGE,
        false => FAILED,
    })
}

/// Prints what a command has to say; a reader that has gone away is no failure.
fn say(text: impl std::fmt::Display) {
    let _ = write!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
