//! The flags of `throng-bench hold`, and the plan they make.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::climb::plan::{Active, ClimbPlan, Up};
use crate::clock::millis;
use crate::scenario::Engine;
use crate::usage::this_host;

pub(super) const HOLD_EXAMPLES: &str = "\
Examples:
  throng-bench hold --connections 1000000             held for 3 minutes, a heartbeat each every minute
  throng-bench hold --connections 1000000 --then-active 100000 --message-rate 20000
  throng-bench hold --connections 1000000 --hold 10s --step 250000 --up-to 2000000
  throng-bench hold --connections 50000 --engine epoll --hold 10s

It stops in good order before memory or fs.file-max runs out, closes what it opened, and says how many were held and
what stopped it.

Exit codes: 0 --connections were held (and --up-to went as far as this machine goes), 1 they were not, do not fit, or
something failed, 2 bad usage.";

/// Below this the client itself gives up, and not in the order that is wanted.
const LEAST_KEEP_FREE_BYTES: u64 = 512 << 20;

/// The client's bound.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    /// Connections to bring up and hold
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..=50_000_000),
        help_heading = "What is held"
    )]
    connections: u64,
    /// How long they are held
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = humantime::parse_duration, help_heading = "What is held")]
    hold: Duration,
    /// Interval of the server's heartbeat on each connection, 0: none
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration, help_heading = "What is held")]
    heartbeat: Duration,
    /// Engine of the server: uring, epoll or tokio-uring
    #[arg(
        long,
        default_value = "uring",
        hide_possible_values = true,
        help_heading = "What is held"
    )]
    engine: Engine,

    /// Then add further connections, until there are so many or something is about to run out
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "then_active",
        help_heading = "Then more"
    )]
    up_to: Option<u64>,
    /// Connections added at a time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 250_000,
        requires = "up_to",
        help_heading = "Then more"
    )]
    step: u64,

    /// Then let so many of them exchange messages, in open loop
    #[arg(long, value_name = "N", help_heading = "Then active")]
    then_active: Option<u64>,
    /// Messages a second, of all of them
    #[arg(
        long,
        value_name = "PER_SECOND",
        default_value_t = 20_000,
        requires = "then_active",
        help_heading = "Then active"
    )]
    message_rate: u64,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration, requires = "then_active", help_heading = "Then active")]
    active_for: Duration,

    /// Memory to keep free, such as 2GiB [default: what the close may need, 2.8 KB a connection, and 1GiB at least]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Bounds")]
    keep_free: Option<u64>,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/hold.json",
        help_heading = "Output"
    )]
    pub(super) report: PathBuf,
}

impl HoldArgs {
    /// The plan that the flags ask for, on this machine.
    pub(super) fn plan(&self) -> Result<ClimbPlan, String> {
        /// Memory is read over a second at the end of a hold.
        const SHORTEST_HOLD: Duration = Duration::from_secs(2);
        within("--hold", self.hold, SHORTEST_HOLD, LONGEST_HOLD)?;
        if !self.heartbeat.is_zero() {
            let shortest = Duration::from_millis(10);
            within("--heartbeat", self.heartbeat, shortest, LONGEST_HOLD)?;
        }
        within(
            "--active-for",
            self.active_for,
            Duration::from_secs(1),
            LONGEST_HOLD,
        )?;
        if let Some(bytes) = self.keep_free
            && bytes < LEAST_KEEP_FREE_BYTES
        {
            return Err("--keep-free must be at least 512MiB".to_owned());
        }
        let (placement, nofile_hard) = this_host()?;
        let plan = ClimbPlan {
            engine: self.engine,
            connections: self.connections,
            hold_ms: millis(self.hold),
            heartbeat_ms: millis(self.heartbeat),
            up: self.up_to.map(|to| Up {
                step: self.step,
                to,
            }),
            active: self.then_active.map(|connections| Active {
                connections,
                message_rate: self.message_rate,
                for_ms: millis(self.active_for),
            }),
            keep_free_bytes: self.keep_free,
            placement,
            nofile_hard,
        };
        plan.check()?;
        Ok(plan)
    }
}

fn within(flag: &str, value: Duration, least: Duration, most: Duration) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{flag} must be between {} and {}",
        humantime::format_duration(least),
        humantime::format_duration(most)
    ))
}

/// `512MiB`, `2GiB`, or bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text {
        text if text.ends_with("GiB") => (text.trim_end_matches("GiB"), 30),
        text if text.ends_with("MiB") => (text.trim_end_matches("MiB"), 20),
        text => (text, 0),
    };
    number
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "it has the form of 512MiB, 2GiB, or a number of bytes".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Hold {
        #[command(flatten)]
        args: HoldArgs,
    }

    fn hold(args: &[&str]) -> Result<ClimbPlan, String> {
        let parsed = Hold::try_parse_from([&["hold"], args].concat());
        parsed.map_err(|error| error.to_string())?.args.plan()
    }

    #[test]
    fn the_defaults_make_a_plan() {
        let plan = hold(&["--connections", "1000000"]).unwrap();
        assert_eq!((plan.hold_ms, plan.heartbeat_ms), (180_000, 60_000));
        assert!(plan.up.is_none() && plan.active.is_none());
        let plan = hold(&["--connections", "500", "--up-to", "1000", "--step", "250"]).unwrap();
        assert_eq!(
            plan.up,
            Some(Up {
                step: 250,
                to: 1_000
            })
        );
    }

    #[test]
    fn bad_usage_is_refused_with_the_flag_named() {
        let bad: [(&[&str], &str); 12] = [
            (&["--connections", "0"], "--connections"),
            (&["--hold", "1s"], "--hold"),
            (&["--heartbeat", "1ms"], "--heartbeat"),
            (&["--engine", "kqueue"], "--engine"),
            (&["--step", "5"], "--up-to"),
            (&["--up-to", "100000"], "--up-to"),
            (&["--up-to", "200000", "--step", "0"], "--step"),
            (&["--up-to", "200000", "--step", "10"], "--step"),
            (&["--then-active", "100001"], "--then-active"),
            (&["--message-rate", "5"], "--then-active"),
            (&["--then-active", "5", "--up-to", "200000"], "--up-to"),
            (&["--keep-free", "1MiB"], "--keep-free"),
        ];
        for (args, flag) in bad {
            let error = hold(args).unwrap_err();
            assert!(error.contains(flag), "{args:?}: {error}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("4096"), Ok(4_096));
        for bad in ["2GB", "much", "-1GiB", "99999999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
