//! Flags to what the canaries are to do.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::{Serialize, Serializer};

/// What a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An ICMP echo
    Ping,
    /// A fresh TCP connection, to the first byte of the other side
    Connect,
    /// A UDP round trip to the server's responder
    Udp,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Ping, Kind::Connect, Kind::Udp];

    /// The word for it, as in flags.
    pub fn name(self) -> &'static str {
        ["ping", "connect", "udp"][self as usize]
    }

    /// A probe of this kind to `target`, by name.
    pub fn of(self, target: SocketAddr) -> String {
        match self {
            Kind::Ping => format!("{} {}", self.name(), target.ip()),
            _ => format!("{} {target}", self.name()),
        }
    }
}

/// What the canaries do. Part of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Each kind to each target, to which it applies.
    pub probes: Vec<(Kind, SocketAddr)>,
    /// Between two probes of a kind to a target.
    #[serde(rename = "interval_seconds", serialize_with = "seconds")]
    pub interval: Duration,
    /// How long the baseline is.
    #[serde(rename = "baseline_seconds", serialize_with = "seconds")]
    pub baseline: Duration,
    /// How long is probed after the mass close.
    #[serde(rename = "recovery_seconds", serialize_with = "seconds")]
    pub recovery: Duration,
    /// A connect hears something at once; else it has to speak first.
    pub is_greeted: bool,
}

/// The flags of the group "Canaries".
#[derive(Args, Debug)]
#[command(next_help_heading = "Canaries")]
pub struct CanaryFlags {
    /// Probe the rest of the network through the whole run: a list of ping, connect, udp [default: all that can work]
    #[arg(
        long,
        value_name = "KINDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    canary: Option<Kinds>,
    /// Between two probes of a kind to a target
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = humantime::parse_duration, requires = "canary")]
    canary_interval: Duration,
    /// Where `throng-server --canary-port` answers: needed for udp; connect goes there too
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "canary")]
    canary_port: Option<u16>,
    /// A further host to ping, repeatable
    #[arg(long, value_name = "ADDRESS", requires = "canary")]
    canary_neighbour: Vec<IpAddr>,
    /// How long to probe before the first connection, to compare with
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration, requires = "canary")]
    baseline: Duration,
    /// How long to probe after the mass close
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration, requires = "canary")]
    recovery: Duration,
}

/// The value of `--canary`.
#[derive(Clone, Debug)]
struct Kinds {
    kinds: Vec<Kind>,
    is_default: bool,
}

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Kinds, String> {
        let is_default = text == "all";
        let kind = |name: &str| {
            Kind::ALL
                .into_iter()
                .find(|kind| kind.name() == name)
                .ok_or_else(|| format!("{name:?} is none of ping, connect, udp"))
        };
        let mut kinds = match is_default {
            true => Kind::ALL.to_vec(),
            false => text.split(',').map(kind).collect::<Result<_, _>>()?,
        };
        kinds.dedup();
        Ok(Kinds { kinds, is_default })
    }
}

/// More would be a load of their own.
const MOST_PROBES: usize = 32;

impl CanaryFlags {
    /// What to probe in a run against `targets`, which greet or not. None without `--canary`.
    ///
    /// # Errors
    /// What is wrong with the flags.
    pub fn resolve(
        self,
        targets: &[SocketAddr],
        is_greeted: bool,
    ) -> Result<Option<Config>, String> {
        let Some(Kinds { kinds, is_default }) = self.canary else {
            return Ok(None);
        };
        let has = |kind| kinds.contains(&kind);
        if has(Kind::Udp) && !is_default && self.canary_port.is_none() {
            return Err(
                "--canary=udp needs somebody who answers: start the server with --canary-port PORT and give its port here"
                    .into(),
            );
        }
        if !has(Kind::Ping) && !self.canary_neighbour.is_empty() {
            return Err("--canary-neighbour is for pings: add ping to --canary".into());
        }
        for (flag, value, least, most) in [
            ("--canary-interval", self.canary_interval, 1, 10_000),
            ("--baseline", self.baseline, 100, 600_000),
            ("--recovery", self.recovery, 0, 600_000),
        ] {
            let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
            if !(least..=most).contains(&value) {
                let [value, least, most] =
                    [value, least, most].map(|time| humantime::format_duration(time).to_string());
                return Err(format!("{flag} {value}: it is between {least} and {most}"));
            }
        }
        let mut hosts: Vec<IpAddr> = targets.iter().map(SocketAddr::ip).collect();
        hosts.sort();
        hosts.dedup();
        let at = |port: u16| hosts.iter().map(move |host| SocketAddr::new(*host, port));
        let mut probes = Vec::new();
        if has(Kind::Ping) {
            let mut pinged = hosts.clone();
            pinged.extend(self.canary_neighbour.iter().filter(|n| !hosts.contains(n)));
            probes.extend(
                pinged
                    .into_iter()
                    .map(|host| (Kind::Ping, (host, 0).into())),
            );
        }
        match (has(Kind::Connect), self.canary_port) {
            (true, Some(port)) => probes.extend(at(port).map(|to| (Kind::Connect, to))),
            (true, None) => probes.extend(targets.iter().map(|to| (Kind::Connect, *to))),
            (false, _) => {}
        }
        if let Some(port) = self.canary_port
            && has(Kind::Udp)
        {
            probes.extend(at(port).map(|to| (Kind::Udp, to)));
        }
        if probes.len() > MOST_PROBES {
            return Err(format!(
                "--canary: {} probes would be a load of their own, at most {MOST_PROBES} are made; name fewer kinds, targets \
                 or neighbours",
                probes.len()
            ));
        }
        Ok(Some(Config {
            probes,
            interval: self.canary_interval,
            baseline: self.baseline,
            recovery: self.recovery,
            is_greeted: is_greeted || self.canary_port.is_some(),
        }))
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        flags: CanaryFlags,
        targets: Vec<SocketAddr>,
    }

    fn parse(args: &str) -> Result<Option<Config>, String> {
        let args = std::iter::once("x").chain(args.split_whitespace());
        let command = Command::try_parse_from(args).map_err(|error| error.to_string())?;
        command.flags.resolve(&command.targets, true)
    }

    fn names(args: &str) -> Vec<String> {
        let config = parse(args).unwrap().unwrap();
        config
            .probes
            .iter()
            .map(|(kind, to)| kind.of(*to))
            .collect()
    }

    #[test]
    fn all_that_can_work_is_probed() {
        assert!(parse("127.0.0.1:7000").unwrap().is_none());
        assert_eq!(
            names("--canary 127.0.0.1:7000 127.0.0.1:7001"),
            [
                "ping 127.0.0.1",
                "connect 127.0.0.1:7000",
                "connect 127.0.0.1:7001"
            ]
        );
        assert_eq!(
            names(
                "--canary --canary-port 9000 --canary-neighbour 127.0.0.9 127.0.0.1:7000 127.0.0.1:7001"
            ),
            [
                "ping 127.0.0.1",
                "ping 127.0.0.9",
                "connect 127.0.0.1:9000",
                "udp 127.0.0.1:9000"
            ]
        );
        assert_eq!(names("--canary=connect [::1]:7000"), ["connect [::1]:7000"]);
    }

    #[test]
    fn bad_flags_are_refused_with_what_is_wrong() {
        for (args, expected) in [
            ("--canary=udp 127.0.0.1:7000", "--canary-port"),
            ("--canary=pong 127.0.0.1:7000", "pong"),
            ("--baseline 5s 127.0.0.1:7000", "--canary"),
            (
                "--canary --canary-interval 1us 127.0.0.1:7000",
                "--canary-interval",
            ),
            ("--canary --baseline 0s 127.0.0.1:7000", "--baseline"),
            ("--canary --canary-port 0 127.0.0.1:7000", "--canary-port"),
            (
                "--canary=connect --canary-neighbour 127.0.0.2 127.0.0.1:7000",
                "ping",
            ),
        ] {
            let error = parse(args).expect_err(args);
            assert!(error.contains(expected), "{args}: {error}");
        }
    }
}
