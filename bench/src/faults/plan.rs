//! The flags of `throng-bench faults`, and what they come to. Pure but for what [`this_host`] reads.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::fault::{Fault, Kind};
use crate::clock::millis;
use crate::scenario::{Engine, Placement};
use crate::usage::{distinct, this_host, within};

/// The flags.
#[derive(Debug, Args)]
pub struct FaultsArgs {
    /// Which faults [default: all]
    #[arg(long, value_delimiter = ',', help_heading = "What is done")]
    only: Vec<Fault>,
    /// How often each, with the same server where it survives
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        help_heading = "What is done"
    )]
    cycles: u64,
    /// Instead, for so long: the faults that any server can go through, in random order, with one server
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "cycles", help_heading = "What is done")]
    soak: Option<Duration>,
    /// The order of a soak
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "soak",
        help_heading = "What is done"
    )]
    seed: u64,
    /// The engine
    #[arg(long, default_value = "uring", help_heading = "To whom")]
    engine: Engine,
    /// Connections held, those that are hit among them
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        help_heading = "To whom"
    )]
    connections: u64,
    /// Of those that are not hit, how many exchange messages all the time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 500,
        help_heading = "To whom"
    )]
    active: u64,
    /// Their messages, a second in all
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2_000,
        help_heading = "To whom"
    )]
    message_rate: u64,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/faults.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Which faults, in this order.
    pub faults: Vec<Fault>,
    /// How often each.
    pub cycles: u64,
    /// Instead, for how long in random order.
    pub soak: Option<Soak>,
    /// The engine.
    pub engine: Engine,
    /// Connections held.
    pub connections: u64,
    /// How many of those that are not hit exchange messages.
    pub active: u64,
    /// Their messages a second.
    pub message_rate: u64,
    /// The CPUs of each side.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

/// Faults in random order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soak {
    /// How long they go on.
    pub for_ms: u64,
    /// Where their order comes from.
    pub seed: u64,
}

impl FaultsArgs {
    /// What the flags ask for, on this machine.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<Plan, String> {
        let (placement, nofile_hard) = this_host()?;
        within("--connections", self.connections, 100..=10_000_000)?;
        within("--cycles", self.cycles, 1..=100_000)?;
        within("--active", self.active, 1..=self.connections / 10)?;
        within("--message-rate", self.message_rate, 1..=1_000_000)?;
        if !matches!(self.engine, Engine::Uring | Engine::Epoll) {
            return Err("--engine: uring or epoll".to_owned());
        }
        let mut faults = match self.only.is_empty() {
            true => Fault::value_variants().to_vec(),
            false => {
                distinct("--only", &self.only)?;
                self.only
            }
        };
        if let Some(time) = self.soak {
            if !(Duration::from_secs(1)..=Duration::from_secs(7 * 86_400)).contains(&time) {
                return Err("--soak must be between 1s and 7days".to_owned());
            }
            faults.retain(|fault| fault.is_for_any_server());
            if faults.is_empty() {
                return Err("--soak: none of --only is for any server; leave --only out".to_owned());
            }
        }
        Ok(Plan {
            faults,
            cycles: self.cycles,
            soak: self.soak.map(|time| Soak {
                for_ms: millis(time),
                seed: self.seed,
            }),
            engine: self.engine,
            connections: self.connections,
            active: self.active,
            message_rate: self.message_rate,
            placement,
            nofile_hard,
        })
    }
}

impl Plan {
    /// About how long it takes.
    pub fn estimate(&self) -> Duration {
        // Some 25,000 connects a second, and 50,000 closes.
        let ramp_ms = 3_000 + self.connections / 25 + self.connections / 50;
        if let Some(soak) = self.soak {
            return Duration::from_millis(soak.for_ms + ramp_ms);
        }
        let each = self.faults.iter().map(|fault| {
            let waits_ms = match fault {
                Fault::SlowReaders | Fault::HalfOpen | Fault::Drain | Fault::Takeover => 12_000,
                Fault::Stopped | Fault::AcceptQueue | Fault::TableFull | Fault::Files => 6_000,
                _ => 1_500,
            };
            let hit = fault.victims(self.connections) * (1 + u64::from(fault.kind() == Kind::Some));
            ramp_ms + self.cycles * (waits_ms + hit / 15)
        });
        Duration::from_millis(each.sum())
    }
}
