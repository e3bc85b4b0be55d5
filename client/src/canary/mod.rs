//! Canaries: does the rest of the network suffer while very many connections are opened, held, exercised and closed?
//!
//! | room | owns |
//! |---|---|
//! | [`config`] | the flags, and what is probed |
//! | `timeline` | the stages of the run, and when a probe is due (pure) |
//! | `ledger` | what became of each probe (pure) |
//! | `news` | the same since somebody last looked (pure) |
//! | `socket`, `icmp`, `datagram`, `connect` | the probes themselves, their answers stamped by the kernel |
//! | `teardown` | when the mass close is over (pure) |
//! | `prober` | the thread that sends and receives |
//! | `statistics`, [`verdict`] | each stage against the baseline, by a stated test (pure) |
//! | [`path`], `link` | what lies in between |
//! | [`report`] | data and text |
//!
//! This file owns the prober's thread, and is all that the run knows of it: start, say which stage it is, finish.
//! Invariant: the thread ends within a second or two of [`Canaries::finish`], or of the drop.

pub mod config;
mod connect;
mod datagram;
mod icmp;
mod ledger;
mod link;
mod news;
pub mod path;
mod prober;
pub mod report;
mod socket;
mod statistics;
mod teardown;
pub mod timeline;
pub mod verdict;

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use kernel_tuning::host::Sockstat;

pub use config::{CanaryFlags, Config, Kind};
pub(crate) use news::News;
pub use path::Path;
pub use report::Report;
pub use timeline::Stage;

use connect::Connects;
use datagram::Datagrams;
use ledger::Ledger;
use prober::{Clock, Means, Probe};
use report::{Account, NotMeasured};
use teardown::Teardown;
use timeline::Schedule;

/// Where connects come from on loopback.
const CONNECT_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);

/// The canaries of a run, in their baseline from the start on.
pub(crate) struct Canaries {
    config: Config,
    clock: Arc<Clock>,
    thread: Option<JoinHandle<Vec<Probe>>>,
    /// Those that could be made.
    names: Vec<(Kind, SocketAddr)>,
    not_measured: Vec<NotMeasured>,
    /// TCP sockets of this host before the first connection, where it says.
    sockets_before: Option<u64>,
}

impl Canaries {
    /// Starts the prober. What this host does not allow is told in the report.
    ///
    /// # Errors
    /// No thread can be had.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Canaries> {
        let nonce = RandomState::new().hash_one(std::process::id());
        let (mut probes, mut names, mut not_measured) = (Vec::new(), Vec::new(), Vec::new());
        let clock = Clock::new();
        for (number, (kind, target)) in (0_u32..).zip(&config.probes) {
            // Spread over the interval, so that probes do not queue behind each other.
            let offset = config.interval * number / config.probes.len() as u32;
            match means(
                *kind,
                *target,
                config.is_greeted,
                nonce.wrapping_add(number.into()),
            ) {
                Ok(means) => {
                    names.push((*kind, *target));
                    probes.push(Probe {
                        means,
                        schedule: Schedule::new(offset, config.interval),
                        ledger: Ledger::new()?,
                        next_seq: 0,
                    });
                }
                Err(why) => {
                    tracing::warn!("{}: could not measure: {why}", kind.of(*target));
                    not_measured.push(NotMeasured {
                        kind: *kind,
                        target: *target,
                        why,
                    });
                }
            }
        }
        let shared = Arc::clone(&clock);
        let thread = std::thread::Builder::new()
            .name("canary".into())
            .spawn(move || prober::run(&shared, probes))
            .context("cannot start the canaries' thread")?;
        Ok(Canaries {
            config: config.clone(),
            clock,
            thread: Some(thread),
            names,
            not_measured,
            sockets_before: sockets(),
        })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What the run does from now on.
    pub(crate) fn enter(&self, stage: Stage) {
        self.clock.timeline().enter(stage, self.clock.now());
    }

    /// Each probe that could be made, and what has become of it since this was last asked.
    pub(crate) fn news(&self) -> impl Iterator<Item = (String, News)> {
        let names = self.names.iter().map(|(kind, target)| kind.of(*target));
        names.zip(self.clock.take_news())
    }

    /// Tells, whenever it is asked, whether the kernel has taken down the `held` connections.
    pub(crate) fn teardown(&self, held: u64) -> impl FnMut() -> bool + use<> {
        let mut teardown = Teardown::new(self.sockets_before, held);
        let clock = Arc::clone(&self.clock);
        move || teardown.is_over(sockets(), clock.now())
    }

    /// Waits for the last answers, and judges. `held` is the most connections there were.
    ///
    /// # Errors
    /// The prober panicked: a bug.
    pub(crate) fn finish(mut self, held: u64, levels: &[u64]) -> anyhow::Result<Report> {
        let probes = self
            .join()
            .ok_or_else(|| anyhow::anyhow!("the canaries' thread panicked: this is a bug"))?;
        let accounts: Vec<Account> = self
            .names
            .iter()
            .zip(probes)
            .map(|((kind, target), probe)| Account {
                kind: *kind,
                target: *target,
                includes_own_wakeup: matches!(&probe.means, Means::Connects(c) if !c.is_greeted()),
                ledger: probe.ledger,
            })
            .collect();
        Ok(Report::new(
            &self.clock.timeline(),
            &accounts,
            std::mem::take(&mut self.not_measured),
            self.config.interval,
            held,
            levels,
        ))
    }

    fn join(&mut self) -> Option<Vec<Probe>> {
        self.clock.timeline().finish(self.clock.now());
        self.thread.take()?.join().ok()
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        self.join();
    }
}

fn means(kind: Kind, target: SocketAddr, is_greeted: bool, nonce: u64) -> Result<Means, String> {
    match kind {
        Kind::Ping => Datagrams::icmp(target, nonce).map(Means::Datagrams),
        Kind::Udp => Datagrams::udp(target, nonce).map(Means::Datagrams),
        Kind::Connect => {
            let source = match target.ip() {
                // Held connections may have every port of the address that the kernel would choose.
                IpAddr::V4(ip) if ip.is_loopback() => CONNECT_SOURCE.into(),
                ip => Path::to(ip)
                    .1
                    .ok_or_else(|| format!("no route to {ip}; see `ip route get {ip}`"))?,
            };
            Ok(Means::Connects(Connects::new(target, source, is_greeted)))
        }
    }
}

fn sockets() -> Option<u64> {
    Sockstat::read().ok().map(|stat| stat.inuse)
}
