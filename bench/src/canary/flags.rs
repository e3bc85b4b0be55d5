//! The flags of `throng-bench canary`, and the plan they make on this machine.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::canary::path::{Kind, Way};
use crate::canary::plan::Plan;
use crate::clock;
use crate::load::flag_ms;
use crate::scenario::Engine;
use crate::usage::{distinct, this_host, within};

/// The client's bound, without the last level.
const MOST_STEPS: u64 = 8;

/// The flags.
#[derive(Debug, Args)]
pub struct CanaryArgs {
    /// Connections to hold, one count after the other
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "100000",
        help_heading = "What is held"
    )]
    connections: Vec<u64>,
    /// Where so many do not fit into memory, hold as many as the highest of --steps that does
    #[arg(long, help_heading = "What is held")]
    fit: bool,
    /// What lies in between, one after the other: loopback, veth [default: veth where it can be made, else loopback]
    #[arg(
        long,
        value_name = "PATH,PATH",
        value_delimiter = ',',
        hide_possible_values = true,
        help_heading = "What is held"
    )]
    path: Vec<Kind>,
    /// Engines of the server, one after the other: uring, epoll, tokio-uring
    #[arg(
        long,
        value_name = "ENGINE,ENGINE",
        value_delimiter = ',',
        default_value = "uring",
        hide_possible_values = true,
        help_heading = "What is held"
    )]
    engines: Vec<Engine>,
    /// Interval of the server's heartbeat on each connection, 0: none
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "What is held")]
    heartbeat: Duration,

    /// Probes alone, before the first connection: what all is compared with
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    baseline: Duration,
    /// Levels that the connections come up to before all of them, where they are below; 0: none
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "1000,10000",
        help_heading = "Phases"
    )]
    steps: Vec<u64>,
    /// How long each of them is held
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    step_hold: Duration,
    /// All connections held before the server's heartbeat begins; 0s: it begins with the server
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    idle: Duration,
    /// All connections held, with heartbeats
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    hold: Duration,
    /// Then so many of them (or all, if there are fewer) exchange messages, 0: none
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1_000,
        help_heading = "Phases"
    )]
    active: u64,
    /// Messages a second, of all of them, sent when due
    #[arg(
        long,
        value_name = "PER_SECOND",
        default_value_t = 5_000,
        help_heading = "Phases"
    )]
    message_rate: u64,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    active_for: Duration,
    /// Then so many broadcasts to all connections, one after the other, 0: none
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Phases")]
    storm: u64,
    /// Each spread evenly over so long, 0: at once
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    storm_over: Duration,
    /// Probes alone, after all connections were closed at once
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    recovery: Duration,
    /// Between two probes of a kind: ping, connect, udp
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = humantime::parse_duration, help_heading = "Phases")]
    interval: Duration,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/canary.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

impl CanaryArgs {
    /// What the flags ask for, and the paths, which are laid here.
    ///
    /// # Errors
    /// What is wrong with them, or why the path cannot be laid.
    pub fn plan(&self) -> Result<(Plan, Vec<Way>), String> {
        distinct("--connections", &self.connections)?;
        for connections in &self.connections {
            within("--connections", *connections, 1..=50_000_000)?;
        }
        distinct("--engines", &self.engines)?;
        if !self.path.is_empty() {
            let names: Vec<&str> = self.path.iter().map(|path| path.name()).collect();
            distinct("--path", &names)?;
        }
        let steps = match self.steps[..] {
            [0] => Vec::new(),
            _ => self.steps.clone(),
        };
        if steps.first() == Some(&0) || !steps.windows(2).all(|two| two[0] < two[1]) {
            return Err("--steps must rise, from above 0".to_owned());
        }
        within("--steps (how many)", steps.len() as u64, 0..=MOST_STEPS)?;
        within("--message-rate", self.message_rate, 1..=10_000_000)?;
        within("--storm", self.storm, 0..=1_000)?;
        let heartbeat_ms = match self.heartbeat.is_zero() {
            true => 0,
            false => millis("--heartbeat", self.heartbeat, 10..=86_400_000)?,
        };
        let (placement, nofile_hard) = this_host()?;
        let mut plan = Plan {
            connections: self.connections.clone(),
            steps,
            step_hold_ms: millis("--step-hold", self.step_hold, 100..=86_400_000)?,
            fit: self.fit,
            paths: Vec::new(),
            why_not_veth: None,
            engines: self.engines.clone(),
            heartbeat_ms,
            interval_ms: millis("--interval", self.interval, 1..=10_000)?,
            baseline_ms: millis("--baseline", self.baseline, 100..=600_000)?,
            idle_ms: match heartbeat_ms {
                // The hold has none either.
                0 => 0,
                _ => millis("--idle", self.idle, 0..=86_400_000)?,
            },
            hold_ms: millis("--hold", self.hold, 1_000..=86_400_000)?,
            active: self.active,
            message_rate: self.message_rate,
            active_ms: millis("--active-for", self.active_for, 1_000..=86_400_000)?,
            storm: self.storm,
            storm_over_ms: millis("--storm-over", self.storm_over, 0..=3_600_000)?,
            recovery_ms: millis("--recovery", self.recovery, 0..=600_000)?,
            placement,
            nofile_hard,
        };
        // Last, for it is the first thing that is made.
        let ways = Way::find(&self.path)?;
        plan.paths = ways.iter().map(Way::kind).collect();
        plan.why_not_veth = ways.iter().find_map(|way| way.why_not_veth.clone());
        Ok((plan, ways))
    }
}

fn millis(flag: &str, time: Duration, range: RangeInclusive<u64>) -> Result<u64, String> {
    let ms = clock::millis(time);
    if range.contains(&ms) {
        return Ok(ms);
    }
    let (least, most) = (flag_ms(*range.start()), flag_ms(*range.end()));
    Err(format!("{flag} must be between {least} and {most}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: CanaryArgs,
    }

    /// The plan of these flags, over loopback.
    pub(crate) fn parsed(flags: &str) -> Result<Plan, String> {
        let words = ["x", "--path", "loopback"].into_iter();
        let command = Command::try_parse_from(words.chain(flags.split_whitespace()));
        let (plan, ways) = command.map_err(|error| error.to_string())?.args.plan()?;
        assert!(ways.iter().all(|way| way.joined.is_none()));
        Ok(plan)
    }

    #[test]
    fn bad_flags_are_refused_with_their_name() {
        for (flags, named) in [
            ("--connections 0", "--connections"),
            ("--connections 5,5", "--connections"),
            ("--hold 1ms", "--hold"),
            ("--baseline 0s", "--baseline"),
            ("--heartbeat 1ms", "--heartbeat"),
            ("--message-rate 0", "--message-rate"),
            ("--storm 5000", "--storm"),
            ("--storm-over 2h", "--storm-over"),
            ("--interval 0s", "--interval"),
            ("--path wire", "--path"),
            ("--path loopback", "--path"),
            ("--engines epoll,epoll", "--engines"),
            ("--steps 10,5", "--steps"),
            ("--steps 0,5", "--steps"),
            ("--steps 1,2,3,4,5,6,7,8,9", "--steps"),
            ("--step-hold 1ms", "--step-hold"),
            ("--idle 25h", "--idle"),
        ] {
            let refused = parsed(flags).unwrap_err();
            assert!(refused.contains(named), "{flags}: {refused}");
        }
        assert_eq!(parsed("--heartbeat 0s").unwrap().heartbeat_ms, 0);
    }
}
