//! The flags of `throng-bench memory`, and the plan they make.

use std::path::PathBuf;

use clap::Args;

use crate::memory::result::MemoryPlan;
use crate::scenario::{Engine, most_connections};
use crate::usage::{PeerArgs, this_host, within};

pub(super) const MEMORY_EXAMPLES: &str = "\
Examples:
  sudo throng-bench memory                            by slab cache, which only root may read
  throng-bench memory --connections 5000 --engines uring,epoll --rounds 1

Exit codes: 0 all was measured, 1 something failed or was interrupted, 2 bad usage.";

#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    /// Engines to measure beside the bare socket: uring, epoll, tokio-uring
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll,tokio-uring",
        hide_possible_values = true,
        help_heading = "What is measured"
    )]
    engines: Vec<Engine>,
    #[command(flatten)]
    peers: PeerArgs,
    /// Connections that each holds
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(1..=10_000_000),
        help_heading = "What is measured"
    )]
    connections: u64,
    /// Rounds, each with two bare ends, the bare server and every engine in random order
    #[arg(
        long,
        value_name = "N",
        default_value_t = 3,
        value_parser = clap::value_parser!(u64).range(1..=100),
        help_heading = "What is measured"
    )]
    rounds: u64,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/memory.json",
        help_heading = "Output"
    )]
    pub(super) report: PathBuf,
}

impl MemoryArgs {
    /// The plan that the flags ask for, on this machine.
    pub(super) fn plan(&self) -> Result<MemoryPlan, String> {
        let (engines, peers) = self.peers.clone().beside(self.engines.clone())?;
        let (placement, nofile_hard) = this_host()?;
        for peer in engines.iter() {
            if let Some(most) = most_connections(*peer, nofile_hard) {
                within("--connections", self.connections, 1..=most).map_err(|reason| {
                    format!("{reason}: {peer} has a file for each (see ulimit -Hn)")
                })?;
            }
        }
        Ok(MemoryPlan {
            engines,
            peers,
            connections: self.connections,
            rounds: self.rounds as usize,
            keep_free_bytes: 1 << 30,
            placement,
            nofile_hard,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Memory {
        #[command(flatten)]
        args: MemoryArgs,
    }

    #[test]
    fn bare_ends_and_three_engines_unless_others_are_named() {
        let plan = |args: &[&str]| {
            let parsed = Memory::try_parse_from([&["memory"], args].concat()).unwrap();
            parsed.args.plan()
        };
        assert_eq!(plan(&[]).unwrap().subjects().len(), 5);
        assert_eq!(plan(&["--engines", "epoll"]).unwrap().subjects().len(), 3);
        let refused = plan(&["--engines", "epoll,uring,epoll"]).unwrap_err();
        assert!(refused.contains("--engines names epoll twice"), "{refused}");
    }
}
