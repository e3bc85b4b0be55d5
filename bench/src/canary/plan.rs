//! The flags of `throng-bench canary`, and what they make of a run.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::canary::path::{Kind, Way};
use crate::clock;
use crate::load::flag_ms;
use crate::scenario::{Engine, Placement};
use crate::usage::{distinct, this_host, within};

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
    /// What lies in between [default: veth where it can be made, else loopback]
    #[arg(long, help_heading = "What is held")]
    path: Option<Kind>,
    /// Engine of the server: uring, epoll or tokio-uring
    #[arg(
        long,
        default_value = "uring",
        hide_possible_values = true,
        help_heading = "What is held"
    )]
    engine: Engine,
    /// Interval of the server's heartbeat on each connection, 0: none
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "What is held")]
    heartbeat: Duration,

    /// Probes alone, before the first connection: what all is compared with
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration, help_heading = "Phases")]
    baseline: Duration,
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

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Connections to hold, one count after the other.
    pub connections: Vec<u64>,
    /// What lies in between.
    pub path: Kind,
    /// Why it is loopback, where that was not asked for.
    pub why_not_veth: Option<String>,
    /// Engine of the server.
    pub engine: Engine,
    /// Interval of the server's heartbeat on each connection; 0: none.
    pub heartbeat_ms: u64,
    /// Between two probes of a kind.
    pub interval_ms: u64,
    /// Probes alone, before the first connection.
    pub baseline_ms: u64,
    /// All connections held.
    pub hold_ms: u64,
    /// Of them, so many at most then exchange messages; 0: none.
    pub active: u64,
    /// Messages a second, of all of them.
    pub message_rate: u64,
    /// For how long.
    pub active_ms: u64,
    /// Broadcasts to all.
    pub storm: u64,
    /// Each spread over so long; 0: at once.
    pub storm_over_ms: u64,
    /// Probes alone, after all were closed.
    pub recovery_ms: u64,
    /// Which CPUs each side runs on.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

impl CanaryArgs {
    /// What the flags ask for, and the path, which is laid here.
    ///
    /// # Errors
    /// What is wrong with them, or why the path cannot be laid.
    pub fn plan(&self) -> Result<(Plan, Way), String> {
        distinct("--connections", &self.connections)?;
        for connections in &self.connections {
            within("--connections", *connections, 1..=50_000_000)?;
        }
        within("--message-rate", self.message_rate, 1..=10_000_000)?;
        within("--storm", self.storm, 0..=1_000)?;
        let heartbeat_ms = match self.heartbeat.is_zero() {
            true => 0,
            false => millis("--heartbeat", self.heartbeat, 10..=86_400_000)?,
        };
        let (placement, nofile_hard) = this_host()?;
        let mut plan = Plan {
            connections: self.connections.clone(),
            path: Kind::Loopback,
            why_not_veth: None,
            engine: self.engine,
            heartbeat_ms,
            interval_ms: millis("--interval", self.interval, 1..=10_000)?,
            baseline_ms: millis("--baseline", self.baseline, 100..=600_000)?,
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
        let way = Way::find(self.path)?;
        plan.path = way.kind();
        plan.why_not_veth.clone_from(&way.why_not_veth);
        Ok((plan, way))
    }
}

impl Plan {
    /// About how long it takes.
    pub fn estimate(&self) -> Duration {
        self.connections.iter().map(|n| self.estimate_of(*n)).sum()
    }

    /// About how long it takes with so many connections.
    pub fn estimate_of(&self, connections: u64) -> Duration {
        let active_ms = if self.active > 0 { self.active_ms } else { 0 };
        let phases_ms = self.baseline_ms + self.hold_ms + active_ms + self.recovery_ms;
        // Some 25,000 connects a second, and 50,000 closes; then starting, and what the kernel cleans up.
        let changes_ms = connections / 25 + connections / 50 + 4_000;
        Duration::from_millis(phases_ms + self.storm_ms(connections) + changes_ms)
    }

    /// From the beginning of one broadcast to that of the next.
    pub fn storm_every_ms(&self, connections: u64) -> u64 {
        // To be over before, even where a message takes both ends 10 µs.
        self.storm_over_ms + 1_000 + connections / 100
    }

    fn storm_ms(&self, connections: u64) -> u64 {
        self.storm * self.storm_every_ms(connections)
    }

    /// Flags of the server.
    pub fn server_flags(&self) -> Vec<String> {
        let over = flag_ms(self.storm_over_ms);
        // What a heartbeat says: the client takes any other line for a wrong one.
        let flags = [
            "--canary-port",
            "0",
            "--broadcast",
            "ok",
            "--broadcast-over",
            &over,
        ];
        flags.map(str::to_owned).to_vec()
    }

    /// Flags of the client that holds so many connections from `source`, with canaries to `canary_port`.
    pub fn client_flags(&self, connections: u64, source: &str, canary_port: u16) -> Vec<String> {
        let active = self.active.min(connections);
        let [quiet_ms, hold_ms] = match active {
            0 => [0, self.hold_ms],
            _ => [self.hold_ms, self.active_ms],
        };
        let mut flags = vec![
            ("--connections", connections.to_string()),
            ("--source", source.to_owned()),
            ("--heartbeat", flag_ms(self.heartbeat_ms)),
            ("--hold", flag_ms(hold_ms)),
            ("--canary-port", canary_port.to_string()),
            ("--canary-interval", flag_ms(self.interval_ms)),
            ("--baseline", flag_ms(self.baseline_ms)),
            ("--recovery", flag_ms(self.recovery_ms)),
            ("--sample-interval", "200ms".to_owned()),
        ];
        if active > 0 {
            flags.extend([
                ("--active", active.to_string()),
                ("--message-rate", self.message_rate.to_string()),
                ("--quiet-for", flag_ms(quiet_ms)),
            ]);
        }
        if self.storm > 0 {
            flags.push(("--storm", flag_ms(self.storm_ms(connections))));
        }
        let flags = flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        std::iter::once("--canary".to_owned())
            .chain(flags)
            .collect()
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
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: CanaryArgs,
    }

    fn parsed(flags: &str) -> Result<Plan, String> {
        let words = ["x", "--path", "loopback"].into_iter();
        let command = Command::try_parse_from(words.chain(flags.split_whitespace()));
        let (plan, way) = command.map_err(|error| error.to_string())?.args.plan()?;
        assert!(way.joined.is_none());
        Ok(plan)
    }

    #[test]
    fn the_client_goes_through_the_phases_asked_for() {
        let plan = parsed("").unwrap();
        assert_eq!(plan.connections, [100_000]);
        let flags = plan.client_flags(100_000, "10.78.0.0/16", 7001).join(" ");
        for words in [
            "--canary --connections 100000 --source 10.78.0.0/16",
            "--active 1000 --message-rate 5000 --quiet-for 30s",
            "--hold 10s",
            "--storm 6s",
        ] {
            assert!(flags.contains(words), "{words}: {flags}");
        }
        assert!(plan.client_flags(300, "x", 1).contains(&"300".to_owned()));
        let quiet = parsed("--active 0 --storm 0 --hold 5s").unwrap();
        let flags = quiet.client_flags(100, "x", 1).join(" ");
        assert!(flags.contains("--hold 5s"), "{flags}");
        for flag in ["--active", "--quiet-for", "--storm"] {
            assert!(!flags.contains(flag), "{flag}: {flags}");
        }
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
        ] {
            let refused = parsed(flags).unwrap_err();
            assert!(refused.contains(named), "{flags}: {refused}");
        }
        assert_eq!(parsed("--heartbeat 0s").unwrap().heartbeat_ms, 0);
    }
}
