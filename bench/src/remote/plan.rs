//! The flags of `throng-bench remote`, and what they make of a run. The client checks its own.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use client::config::{Config, Protocol};
use kernel_tuning::process::{Nofile, raise_nofile};
use serde::{Deserialize, Serialize};

use crate::clock::millis;
use crate::load::flag_ms;

/// The flags.
#[derive(Debug, Args)]
#[command(
    override_usage = "throng-bench remote --agent HOST:PORT [OPTIONS] TARGET [CLIENT FLAGS]..."
)]
pub struct RemoteArgs {
    /// The agent beside the server
    #[arg(long, value_name = "HOST:PORT", help_heading = "What is measured")]
    pub agent: Option<String>,
    /// The server, and the client's flags: all that throng-client takes, but for those of samples and summaries
    #[arg(
        value_names = ["TARGET", "CLIENT FLAGS"],
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        help_heading = "What is measured"
    )]
    client: Vec<String>,
    /// Between two looks at both hosts [default: 100ms, longer in a run of more than a quarter of an hour]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "How it is measured")]
    interval: Option<Duration>,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/remote.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// `HOST:PORT` of the agent.
    pub agent: String,
    /// Where the client connects to.
    pub targets: Vec<String>,
    /// What was said to the client.
    pub client: Vec<String>,
    /// Connections it holds.
    pub connections: u64,
    /// Those of them that exchange messages.
    pub active: u64,
    /// Interval of the server's heartbeats, as the client expects them; 0: none.
    pub heartbeat_ms: u64,
    /// Before the first message, all connections held.
    pub quiet_ms: u64,
    /// Then, with messages if there are to be any.
    pub hold_ms: u64,
    /// Between two looks.
    pub interval_ms: u64,
    /// CPUs of the client.
    pub cores: Vec<usize>,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

/// Given to the client by the bench.
const OURS: [(&str, &str); 5] = [
    (
        "--sample-interval",
        "it follows from --interval, before TARGET",
    ),
    ("--samples", "what it has goes into the report"),
    ("--json", "what it has goes into the report"),
    ("--until-stdin-closes", "the client ends with the bench"),
    ("--tui", "the client has no terminal here"),
];

impl RemoteArgs {
    /// What the flags ask for, on this host.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(&self) -> Result<Plan, String> {
        let is = |word: &str, flag: &str| {
            word == flag
                || word
                    .strip_prefix(flag)
                    .is_some_and(|rest| rest.starts_with('='))
        };
        let said = |flag: &str| self.client.iter().any(|word| is(word, flag));
        for flag in ["--agent", "--interval", "--report"] {
            if said(flag) {
                return Err(format!(
                    "{flag} comes before TARGET: what follows TARGET is for the client"
                ));
            }
        }
        for (flag, why) in OURS {
            if said(flag) {
                return Err(format!("{flag} is not for this command: {why}"));
            }
        }
        let agent = self.agent.clone().ok_or(
            "--agent HOST:PORT is missing; start one on the server's host: throng-bench agent --listen ADDRESS:PORT \
             --port PORT_OF_THE_SERVER",
        )?;
        let words = std::iter::once("throng-client").chain(self.client.iter().map(String::as_str));
        let parsed = Config::parse(words.map(OsString::from));
        let (config, _) = parsed.map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut plan = Plan {
            agent,
            targets: config.targets.iter().map(ToString::to_string).collect(),
            client: self.client.clone(),
            connections: config.connections,
            active: config.active,
            heartbeat_ms: match config.protocol {
                Protocol::Line => millis(config.heartbeat),
                Protocol::Echo => 0,
            },
            quiet_ms: millis(config.quiet_for),
            hold_ms: millis(config.hold),
            interval_ms: 0,
            cores: config.cores,
            nofile_hard: raise_nofile()
                .or_else(|_| Nofile::read())
                .map_err(|error| error.to_string())?
                .hard,
        };
        plan.interval_ms = plan.interval_of(self.interval)?;
        Ok(plan)
    }
}

impl Plan {
    /// Looks at each end that a report has at most, as long as it takes no longer than estimated.
    const MOST_LOOKS: u64 = 10_000;

    /// `asked`, where that is neither too dear nor too seldom for this run.
    fn interval_of(&self, asked: Option<Duration>) -> Result<u64, String> {
        const ALLOWED_MS: RangeInclusive<u64> = 50..=300_000;
        const USUAL_MS: u64 = 100;
        let least_ms = millis(self.estimate()).div_ceil(Self::MOST_LOOKS);
        let interval_ms = asked.map_or(least_ms.max(USUAL_MS), millis);
        if !ALLOWED_MS.contains(&interval_ms) {
            return Err("--interval must be between 50ms and 5m".to_owned());
        }
        if interval_ms < least_ms {
            return Err(format!(
                "--interval {}: a report has {} looks at most, and this run would make more; use --interval {least_ms}ms",
                flag_ms(interval_ms),
                Self::MOST_LOOKS
            ));
        }
        Ok(interval_ms)
    }

    /// About how long it takes; slow ramps apart.
    pub fn estimate(&self) -> Duration {
        // Some 25,000 connects a second; then starting, looking before and after.
        Duration::from_millis(self.quiet_ms + self.hold_ms + self.connections / 25 + 5_000)
    }

    /// The phase in which connections rest, or rest most, and how long it is: there memory is looked at.
    pub fn resting(&self) -> (&'static str, u64) {
        match (self.quiet_ms, self.active) {
            (0, 0) => ("hold", self.hold_ms),
            (0, _) => ("active", self.hold_ms),
            (quiet_ms, _) => ("quiet", quiet_ms),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: RemoteArgs,
    }

    fn parsed(flags: &str) -> Result<Plan, String> {
        let words = std::iter::once("remote").chain(flags.split_whitespace());
        let command = Command::try_parse_from(words);
        command.map_err(|error| error.to_string())?.args.plan()
    }

    #[test]
    fn what_follows_the_target_is_the_clients() {
        let plan = parsed(
            "--agent 10.0.0.2:7070 127.0.0.1:7000 -n 500 --quiet-for 5s --active 100 --hold 7s",
        );
        let plan = plan.unwrap();
        assert_eq!((plan.connections, plan.active), (500, 100));
        assert_eq!(plan.resting(), ("quiet", 5_000));
        assert_eq!(plan.targets, ["127.0.0.1:7000"]);
        let plan = parsed("--agent a:1 127.0.0.1:7000 --protocol echo").unwrap();
        assert_eq!(plan.heartbeat_ms, 0);
        assert_eq!(plan.resting(), ("hold", 10_000));
        assert_eq!(plan.interval_ms, 100);
        let long = parsed("--agent a:1 127.0.0.1:7000 --hold 1h").unwrap();
        assert_eq!(long.interval_ms, 361);
    }

    #[test]
    fn bad_flags_are_refused_with_their_name() {
        for (flags, named) in [
            ("127.0.0.1:7000", "throng-bench agent --listen"),
            ("127.0.0.1:7000 --agent a:1", "--agent comes before TARGET"),
            ("--agent a:1 127.0.0.1:7000 --json x", "--json"),
            ("--agent a:1 127.0.0.1:7000 --samples=-", "--samples"),
            ("--agent a:1 --interval 1ms 127.0.0.1:7000", "--interval"),
            (
                "--agent a:1 --interval 100ms 127.0.0.1:7000 --hold 1h",
                "use --interval 361ms",
            ),
            ("--agent a:1 127.0.0.1:7000 -n 5 --active 9", "--active 9"),
            ("--agent a:1 127.0.0.1", "HOST:PORT"),
            ("--agent a:1", "TARGET"),
        ] {
            let refused = parsed(flags).unwrap_err();
            assert!(refused.contains(named), "{flags}: {refused}");
        }
    }
}
