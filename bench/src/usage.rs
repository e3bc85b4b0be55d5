//! Checks of flags that several commands have in common. Each refusal names the flag.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use kernel_tuning::process::{Nofile, affinity, raise_nofile};

use crate::clock::millis;
use crate::exchange::Times;
use crate::peer::Peer;
use crate::rounds::Goal;
use crate::scenario::{Engine, Placement};

/// The servers of others that are measured beside the engines.
#[derive(Debug, Clone, Args)]
pub struct PeerArgs {
    /// Another server that sends every byte back, started with this command, such as go='./echo --listen {host}:{port}';
    /// may be repeated
    #[arg(
        long = "peer",
        value_name = "NAME=COMMAND",
        help_heading = "Servers of others"
    )]
    peers: Vec<Peer>,
}

impl PeerArgs {
    /// All that is measured, `engines` (of `--engines`) first, and how the peers among them are started.
    ///
    /// # Errors
    /// What is named twice.
    pub fn beside(self, mut engines: Vec<Engine>) -> Result<(Vec<Engine>, Vec<Peer>), String> {
        distinct("--engines", &engines)?;
        let names: Vec<_> = self.peers.iter().map(|peer| peer.name).collect();
        if !names.is_empty() {
            distinct("--peer", &names)?;
        }
        engines.extend(names.into_iter().map(Engine::Peer));
        Ok((engines, self.peers))
    }
}

/// The flags of how ratios are measured in rounds.
#[derive(Debug, Args)]
pub struct RoundsArgs {
    /// Rounds, each with everything that is compared
    #[arg(
        long,
        value_name = "N",
        default_value_t = 15,
        help_heading = "How it is measured"
    )]
    pub rounds: usize,
    /// Length of one measurement; its first fifth is not counted
    #[arg(long, value_name = "TIME", default_value = "1500ms", value_parser = humantime::parse_duration, help_heading = "How it is measured")]
    exchange: Duration,
    /// Go on after these rounds until the 95 % interval of every ratio is within so many percent of its median
    #[arg(long, value_name = "PERCENT", help_heading = "How it is measured")]
    until_width: Option<f64>,
    /// Or until the rounds took so long, with --until-width
    #[arg(long, value_name = "TIME", default_value = "5m", requires = "until_width", value_parser = humantime::parse_duration, help_heading = "How it is measured")]
    at_most: Duration,
}

impl RoundsArgs {
    /// How many rounds there are at least, until when they go on, and the times of a measurement.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn plan(self) -> Result<(usize, Option<Goal>, Times), String> {
        within("--rounds", self.rounds as u64, 1..=10_000)?;
        let goal = |percent: f64| {
            if !(0.1..=50.0).contains(&percent) {
                return Err(format!(
                    "--until-width {percent}: it must be between 0.1 and 50 percent"
                ));
            }
            if !(Duration::from_secs(1)..=Duration::from_secs(24 * 3_600)).contains(&self.at_most) {
                return Err("--at-most must be between 1s and 24h".to_owned());
            }
            Ok(Goal {
                half_width: percent / 100.0,
                at_most_ms: millis(self.at_most),
            })
        };
        let until = self.until_width.map(goal).transpose()?;
        Ok((self.rounds, until, times(self.exchange)?))
    }
}

/// Which CPUs each side gets, and the open files that a process may have.
///
/// # Errors
/// What the kernel refused.
pub fn this_host() -> Result<(Placement, u64), String> {
    let cpus = affinity().map_err(|error| error.to_string())?;
    let nofile = raise_nofile()
        .or_else(|_| Nofile::read())
        .map_err(|error| error.to_string())?;
    Ok((Placement::halves(&cpus), nofile.hard))
}

/// Refuses a list that names a value twice, or none.
///
/// # Errors
/// What is wrong with it.
pub fn distinct<T: PartialEq + std::fmt::Display>(flag: &str, values: &[T]) -> Result<(), String> {
    if values.is_empty() {
        return Err(format!("{flag} names nothing"));
    }
    let repeated = (1..values.len()).find(|index| values[..*index].contains(&values[*index]));
    repeated.map_or(Ok(()), |index| {
        Err(format!("{flag} names {} twice", values[index]))
    })
}

/// Refuses a number out of `range`.
///
/// # Errors
/// What is wrong with it.
pub fn within(flag: &str, value: u64, range: RangeInclusive<u64>) -> Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = (range.start(), range.end());
    Err(format!(
        "{flag} {value}: it must be between {least} and {most}"
    ))
}

/// The times of a measurement of `exchange`: its first fifth is warm-up.
///
/// # Errors
/// When it is too short to be sampled, or endless.
pub fn times(exchange: Duration) -> Result<Times, String> {
    const ALLOWED: RangeInclusive<Duration> =
        Duration::from_millis(500)..=Duration::from_secs(3_600);
    if !ALLOWED.contains(&exchange) {
        return Err("--exchange must be between 500ms (to be sampled) and 1h".to_owned());
    }
    let exchange_ms = millis(exchange);
    Ok(Times {
        exchange_ms,
        warm_up_ms: exchange_ms / 5,
        sample_interval_ms: (exchange_ms / 15).clamp(20, 100),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_flag() {
        assert_eq!(distinct("--idle", &[0, 5]), Ok(()));
        assert!(distinct("--idle", &[0, 5, 0]).is_err_and(|said| said == "--idle names 0 twice"));
        assert!(distinct::<u64>("--idle", &[]).is_err_and(|said| said.contains("--idle")));
        assert!(within("--rounds", 0, 1..=9).is_err_and(|said| said.contains("--rounds 0")));
        assert!(times(Duration::from_millis(499)).is_err_and(|said| said.contains("--exchange")));
        assert!(times(Duration::from_secs(1)).is_ok_and(|times| times.warm_up_ms == 200));
    }
}
