//! The flags of `throng-bench compare`, which is also what runs without a command.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::clock::millis;
use crate::scenario::{EchoPlan, Engine, HoldPlan, Plan};
use crate::usage::{PeerArgs, RoundsArgs, distinct, this_host, within};

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Engines to compare: uring (direct descriptors), epoll (the baseline), tokio-uring
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "uring,epoll",
        hide_possible_values = true,
        help_heading = "What is compared"
    )]
    engines: Vec<Engine>,

    #[command(flatten)]
    peers: PeerArgs,

    /// Connections to hold; 0 leaves the hold out
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        help_heading = "The hold"
    )]
    connections: u64,
    /// How long they are held
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "The hold")]
    hold: Duration,
    /// Interval of the server's heartbeat on each connection, 0: none
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration, help_heading = "The hold")]
    heartbeat: Duration,

    /// Connections that exchange messages at the same time
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "500,10000",
        help_heading = "The echo"
    )]
    active: Vec<u64>,
    /// Bytes of a message
    #[arg(
        long,
        value_name = "BYTES,BYTES",
        value_delimiter = ',',
        default_value = "64",
        help_heading = "The echo"
    )]
    message_bytes: Vec<u64>,

    #[command(flatten)]
    rounds: RoundsArgs,

    /// Where to write the report as JSON: all that is printed and more; a page for the browser goes beside it, as .html
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/report.json",
        help_heading = "Output"
    )]
    pub(super) report: PathBuf,
}

impl CompareArgs {
    /// The plan that the flags ask for, on this machine.
    pub(super) fn plan(self) -> Result<Plan, String> {
        let (engines, peers) = self.peers.beside(self.engines)?;
        distinct("--active", &self.active)?;
        if self.active.contains(&0) {
            return Err("--active must be above 0".to_owned());
        }
        /// The client's bound.
        const MOST_MESSAGE_BYTES: u64 = 65_536;
        distinct("--message-bytes", &self.message_bytes)?;
        for bytes in &self.message_bytes {
            within("--message-bytes", *bytes, 1..=MOST_MESSAGE_BYTES)?;
        }
        if self.connections == 0 && self.rounds.rounds == 0 {
            return Err(
                "with --connections 0 and --rounds 0 nothing is left to measure".to_owned(),
            );
        }
        /// Below this the client's samples, one a second, would not see the hold.
        const SHORTEST_HOLD: Duration = Duration::from_secs(3);
        /// The client's bound.
        const LONGEST_HOLD: Duration = Duration::from_secs(30 * 24 * 3_600);
        if self.connections > 0 && !(SHORTEST_HOLD..=LONGEST_HOLD).contains(&self.hold) {
            return Err(format!(
                "--hold must be between {} (to be sampled) and {}",
                humantime::format_duration(SHORTEST_HOLD),
                humantime::format_duration(LONGEST_HOLD)
            ));
        }
        /// Bounds of the server and of the client.
        const HEARTBEATS: RangeInclusive<Duration> =
            Duration::from_millis(10)..=Duration::from_secs(24 * 3_600);
        if !self.heartbeat.is_zero() && !HEARTBEATS.contains(&self.heartbeat) {
            return Err("--heartbeat must be between 10ms and 24h, or 0 for none".to_owned());
        }
        let hold = HoldPlan {
            connections: self.connections,
            hold_ms: millis(self.hold),
            heartbeat_ms: millis(self.heartbeat),
        };
        let echo = match self.rounds.rounds {
            0 => None,
            _ => {
                let (rounds, until, times) = self.rounds.plan()?;
                Some(EchoPlan {
                    active: self.active,
                    message_bytes: self.message_bytes,
                    rounds,
                    until,
                    times,
                })
            }
        };
        let (placement, nofile_hard) = this_host()?;
        Ok(Plan {
            engines,
            peers,
            hold: (self.connections > 0).then_some(hold),
            echo,
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
    struct Compare {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn parsed(args: &[&str]) -> Result<Plan, String> {
        let parsed = Compare::try_parse_from([&["compare"], args].concat());
        parsed.map_err(|error| error.to_string())?.args.plan()
    }

    #[test]
    fn a_part_can_be_left_out_but_not_all() {
        assert!(parsed(&["--connections", "0"]).unwrap().hold.is_none());
        assert!(parsed(&["--rounds", "0"]).unwrap().echo.is_none());
        assert!(
            parsed(&["--rounds", "0", "--connections", "0"])
                .unwrap_err()
                .contains("nothing is left")
        );
    }

    #[test]
    fn bad_usage_is_refused_with_the_flag_named() {
        let bad = [
            (vec!["--engines", "kqueue"], "--engines"),
            (vec!["--engines", "epoll,epoll"], "--engines"),
            (vec!["--active", "0"], "--active"),
            (vec!["--active", "500,500"], "--active"),
            (vec!["--hold", "1s"], "--hold"),
            (vec!["--hold", "soon"], "--hold"),
            (vec!["--hold", "31days"], "--hold"),
            (vec!["--heartbeat", "9999us"], "--heartbeat"),
            (vec!["--heartbeat", "100us"], "--heartbeat"),
            (vec!["--heartbeat", "25h"], "--heartbeat"),
            (vec!["--message-bytes", "0"], "--message-bytes"),
            (vec!["--message-bytes", "65537"], "--message-bytes"),
        ];
        for (args, flag) in bad {
            assert!(parsed(&args).unwrap_err().contains(flag), "{args:?}");
        }
    }

    #[test]
    fn what_the_server_and_the_client_take_at_most_is_taken() {
        for heartbeat in ["0", "10ms", "24h"] {
            parsed(&["--heartbeat", heartbeat]).unwrap();
        }
        let plan = parsed(&["--message-bytes", "65536"]).unwrap();
        assert_eq!(plan.echo.unwrap().message_bytes, [65_536]);
    }
}
