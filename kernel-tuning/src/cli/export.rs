//! `throng-tune export`: the same values as files, for those who configure hosts by files.

use std::path::PathBuf;

use clap::Subcommand;

use super::goal::Goal;
use super::{Outcome, UsageError, say};
use crate::{export, seccomp};

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune export sysctl --connections 1000000 --role server --ram-mib 65536 > 90-throng.conf
  throng-tune export limits --connections 1000000 > /etc/security/limits.d/90-throng.conf
  throng-tune export systemd --connections 1000000 --role server
  throng-tune export seccomp --base /usr/share/containers/seccomp.json > io_uring.json
  docker run --security-opt seccomp=io_uring.json ...

They go to standard output, for the host that the flags describe: this one, where they say nothing.

Exit codes: 0 done, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    file: File,
}

#[derive(Debug, Subcommand)]
enum File {
    /// A file for /etc/sysctl.d
    Sysctl(Goal),
    /// A file for /etc/security/limits.d
    Limits(Goal),
    /// A drop-in for the unit of a service
    Systemd(Goal),
    /// A container runtime's seccomp profile with io_uring allowed
    ///
    /// Runtimes merge nothing: a profile replaces the default. So the default is the base: Podman's is
    /// /usr/share/containers/seccomp.json, Docker's is seccomp/default.json of github.com/moby/profiles.
    Seccomp {
        /// The profile to add to, as a file
        #[arg(long, value_name = "FILE")]
        base: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    say(match &args.file {
        File::Sysctl(goal) => export::sysctl(&goal.demand()?),
        File::Limits(goal) => export::limits(&goal.demand()?),
        File::Systemd(goal) => export::systemd(&goal.demand()?),
        File::Seccomp { base } => {
            let path = base.display();
            let text = std::fs::read_to_string(base).map_err(|why| {
                UsageError(format!(
                    "cannot read {path}: {why}: name the default profile of the runtime (see --help)"
                ))
            })?;
            seccomp::allow_io_uring(&text)
                .map_err(|why| UsageError(format!("{path} is no seccomp profile: {why}")))?
        }
    });
    Ok(Outcome::Done)
}
