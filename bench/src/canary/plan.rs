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

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Connections to hold, one count after the other.
    pub connections: Vec<u64>,
    /// Levels to which they come up before, where those are below; each is held.
    pub steps: Vec<u64>,
    /// How long each of them is held.
    pub step_hold_ms: u64,
    /// Whether a count that does not fit gives way to the highest step that does.
    pub fit: bool,
    /// What lies in between, one after the other.
    pub paths: Vec<Kind>,
    /// Why veth is not among them, where it should be.
    pub why_not_veth: Option<String>,
    /// Engines of the server, one after the other.
    pub engines: Vec<Engine>,
    /// Interval of the server's heartbeat on each connection; 0: none.
    pub heartbeat_ms: u64,
    /// Between two probes of a kind.
    pub interval_ms: u64,
    /// Probes alone, before the first connection.
    pub baseline_ms: u64,
    /// All connections held, before the heartbeat begins; 0: it begins with the server.
    pub idle_ms: u64,
    /// All connections held, with heartbeats.
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

impl Plan {
    /// About how long it takes.
    pub fn estimate(&self) -> Duration {
        let each: Duration = self.cases().map(|(_, n)| self.estimate_of(n)).sum();
        each * self.paths.len() as u32
    }

    /// What is held over each path, one after the other: with what, and how many.
    pub fn cases(&self) -> impl Iterator<Item = (Engine, u64)> {
        let counts = |engine: Engine| self.connections.iter().map(move |count| (engine, *count));
        self.engines.iter().copied().flat_map(counts)
    }

    /// The levels that so many connections come up to; the last has all of them.
    pub fn levels(&self, connections: u64) -> Vec<u64> {
        let below = self.steps.iter().filter(|step| **step < connections);
        below.copied().chain([connections]).collect()
    }

    /// As many of `connections` as fit into `room_bytes` with an engine that takes so much of each: all, or with `fit` the
    /// highest step that does.
    pub fn fitting(&self, connections: u64, bytes_each: u64, room_bytes: u64) -> Option<u64> {
        let fits = |count: &u64| count.saturating_mul(bytes_each) <= room_bytes;
        let mut levels = self.levels(connections);
        if !self.fit {
            levels = vec![connections];
        }
        levels.into_iter().rfind(fits)
    }

    /// About how long the client's `phase` takes with so many connections, `leg` of which, from 0 on, is the ramp's; none
    /// where that is not known.
    pub fn expected(&self, phase: &str, leg: usize, connections: u64) -> Option<Duration> {
        let ms = match phase {
            "baseline" => self.baseline_ms,
            "ramp" => {
                let levels = self.levels(connections);
                let from = leg.checked_sub(1).and_then(|before| levels.get(before));
                ramp_ms(levels.get(leg)? - from.unwrap_or(&0))
            }
            "idle" => self.idle_ms,
            "quiet" | "hold" => self.hold_ms,
            "active" => self.active_ms,
            "storm" => self.storm_ms(connections),
            "done" => close_ms(connections),
            "recovery" => self.recovery_ms,
            phase if phase.starts_with("step-") => self.step_hold_ms,
            _ => return None,
        };
        Some(Duration::from_millis(ms))
    }

    /// About how long it takes with so many connections.
    pub fn estimate_of(&self, connections: u64) -> Duration {
        let active_ms = if self.active > 0 { self.active_ms } else { 0 };
        let steps_ms = (self.levels(connections).len() as u64 - 1) * self.step_hold_ms;
        let held_ms = steps_ms + self.idle_ms + self.hold_ms + active_ms;
        let phases_ms = self.baseline_ms + held_ms + self.recovery_ms;
        // Then starting, and what the kernel cleans up.
        let changes_ms = ramp_ms(connections) + close_ms(connections) + 4_000;
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
        let mut flags = vec![
            "--canary-port",
            "0",
            "--broadcast",
            "ok",
            "--broadcast-over",
            &over,
        ];
        if self.idle_ms > 0 {
            flags.push("--heartbeat-at-signal");
        }
        flags.into_iter().map(str::to_owned).collect()
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
        let levels = self.levels(connections);
        if levels.len() > 1 {
            let levels: Vec<String> = levels.iter().map(u64::to_string).collect();
            flags.push(("--steps", levels.join(",")));
            flags.push(("--step-hold", flag_ms(self.step_hold_ms)));
        }
        if self.idle_ms > 0 {
            flags.push(("--idle-for", flag_ms(self.idle_ms)));
        }
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

/// The client's bound, without the last level.
const MOST_STEPS: u64 = 8;

/// Some 25,000 connects a second.
fn ramp_ms(connections: u64) -> u64 {
    connections / 25
}

/// Some 50,000 closes a second.
fn close_ms(connections: u64) -> u64 {
    connections / 50
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
        let (plan, ways) = command.map_err(|error| error.to_string())?.args.plan()?;
        assert!(ways.iter().all(|way| way.joined.is_none()));
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
            "--steps 1000,10000,100000 --step-hold 10s --idle-for 10s",
        ] {
            assert!(flags.contains(words), "{words}: {flags}");
        }
        assert!(
            plan.server_flags()
                .contains(&"--heartbeat-at-signal".to_owned())
        );
        assert!(plan.client_flags(300, "x", 1).contains(&"300".to_owned()));
        let quiet = parsed("--active 0 --storm 0 --hold 5s --steps 0 --idle 0s").unwrap();
        let flags = quiet.client_flags(100, "x", 1).join(" ");
        assert!(flags.contains("--hold 5s"), "{flags}");
        for flag in [
            "--active",
            "--quiet-for",
            "--storm",
            "--steps",
            "--idle-for",
        ] {
            assert!(!flags.contains(flag), "{flag}: {flags}");
        }
        assert!(
            !quiet
                .server_flags()
                .contains(&"--heartbeat-at-signal".to_owned())
        );
    }

    #[test]
    fn steps_below_a_count_lead_to_it_and_carry_it_where_it_does_not_fit() {
        let plan = parsed("--connections 5000,2000000 --steps 1000,10000,100000").unwrap();
        assert_eq!(plan.levels(5_000), [1_000, 5_000]);
        assert_eq!(plan.levels(2_000_000).len(), 4);
        assert_eq!(plan.fitting(5_000, 10, 50_000), Some(5_000));
        assert_eq!(plan.fitting(2_000_000, 10, 1_500_000), None);
        let fit = Plan { fit: true, ..plan };
        assert_eq!(fit.fitting(2_000_000, 10, 1_500_000), Some(100_000));
        assert_eq!(fit.fitting(2_000_000, 10, 5_000), None);
    }

    #[test]
    fn the_estimate_is_the_sum_of_what_is_expected_of_the_phases_and_of_all_cases() {
        let plan = parsed("").unwrap();
        let expected = |phase: &str, leg| plan.expected(phase, leg, 100_000).unwrap();
        let phases = [
            "baseline", "step-1", "step-2", "idle", "quiet", "active", "storm", "done", "recovery",
        ];
        let ramp: Duration = (0..3).map(|leg| expected("ramp", leg)).sum();
        let all: Duration = phases.iter().map(|phase| expected(phase, 0)).sum();
        let apart = plan.estimate() - (all + ramp);
        assert_eq!(apart, Duration::from_secs(4));
        assert_eq!(plan.expected("close", 0, 100_000), None);
        let two = parsed("--engines uring,epoll").unwrap();
        assert_eq!(two.estimate(), plan.estimate() * 2);
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
