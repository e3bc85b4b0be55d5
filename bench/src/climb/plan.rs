//! What `throng-bench hold` is to do, as data, and whether it fits this machine. Pure.
//!
//! Invariant: no two parts connect from the same address, so no two connections of a run are the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guard::files_to_be_had;
use crate::report::format::{count, gib, part_of_memory};
use crate::scenario::{Engine, Placement};

/// As many parts as there are networks 127.x.0.0/16, without the server's own and the one with the broadcast address.
const MOST_PARTS: u64 = 254;

/// How long each step is held, unless the hold itself is shorter.
const STEP_HOLD_MS: u64 = 10_000;

/// Memory that the close of a connection may take: one million of them that ended with a FIN had 2.6 GiB queued. The
/// client resets, which queues nothing, but a server that dies does not.
const CLOSE_BYTES_PER_CONNECTION: u64 = 2_800;

/// Less is never kept free.
const LEAST_KEPT_BYTES: u64 = 1 << 30;

/// Files of the host that a connection takes, both ends.
const FILES_PER_CONNECTION: u64 = 2;

/// Connections to bring up, to hold, and perhaps to exceed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClimbPlan {
    /// The engine.
    pub engine: Engine,
    /// Connections that must be held.
    pub connections: u64,
    /// For how long.
    pub hold_ms: u64,
    /// Interval of the server's heartbeat on each; 0: none.
    pub heartbeat_ms: u64,
    /// What follows on top of them, until something is about to run out.
    pub up: Option<Up>,
    /// What is exchanged on some of them after the hold.
    pub active: Option<Active>,
    /// Memory to keep free, where it is not to follow from the connections.
    pub keep_free_bytes: Option<u64>,
    /// Which CPUs each side runs on.
    pub placement: Placement,
    /// The hard open-file limit.
    pub nofile_hard: u64,
}

/// Further connections, step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Up {
    /// Connections of a step.
    pub step: u64,
    /// All connections after the last.
    pub to: u64,
}

/// Messages in open loop: sent when they are due, whatever has come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// Connections that take part.
    pub connections: u64,
    /// Messages a second, of all of them.
    pub message_rate: u64,
    /// For how long.
    pub for_ms: u64,
}

/// The connections of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where they come from.
    pub source: String,
    /// How many.
    pub added: u64,
    /// With those of the parts before.
    pub total: u64,
    /// How long all are held once these are there.
    pub hold_ms: u64,
}

/// What this machine can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Memory that is available.
    pub available_bytes: u64,
    /// Files the host has open.
    pub files_open: u64,
    /// `fs.file-max`.
    pub file_max: u64,
    /// Whether the kernel holds this user to it.
    pub is_bound_by_file_max: bool,
}

impl ClimbPlan {
    /// One client after the other.
    pub fn parts(&self) -> Vec<Part> {
        let totals = std::iter::successors(Some(self.connections), |total| {
            let Up { step, to } = self.up?;
            (*total < to).then(|| (total + step).min(to))
        });
        let mut before = 0;
        let parts = totals.zip(1..).map(|(total, network)| {
            let part = Part {
                source: format!("127.{network}.0.0/16"),
                added: total - before,
                total,
                hold_ms: match before {
                    0 => self.hold_ms,
                    _ => self.hold_ms.min(STEP_HOLD_MS),
                },
            };
            before = total;
            part
        });
        parts.collect()
    }

    /// All connections at the end, if nothing stops it.
    pub fn most(&self) -> u64 {
        self.up.map_or(self.connections, |up| up.to)
    }

    /// What is wrong with the plan itself, if anything: a matter of usage.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn check(&self) -> Result<(), String> {
        if let Some(Up { step, to }) = self.up {
            if to <= self.connections {
                return Err(format!(
                    "--up-to {to} must be above --connections {}",
                    self.connections
                ));
            }
            let parts = 1 + (to - self.connections).div_ceil(step.max(1));
            if step == 0 || parts > MOST_PARTS {
                return Err(format!(
                    "--step {step} makes too many steps up to {to}: {} at most, each a client of its own",
                    MOST_PARTS - 1
                ));
            }
        }
        match self.active {
            Some(active) if active.connections > self.connections => Err(format!(
                "--then-active {} must not be above --connections {}",
                active.connections, self.connections
            )),
            Some(active) if active.connections == 0 || active.message_rate == 0 => {
                Err("--then-active and --message-rate must be above 0".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Memory to keep free beside `connections`.
    pub fn keep_free(&self, connections: u64) -> u64 {
        let for_close = connections.saturating_mul(CLOSE_BYTES_PER_CONNECTION);
        self.keep_free_bytes
            .unwrap_or_else(|| for_close.max(LEAST_KEPT_BYTES))
    }

    /// Memory that `connections` take, both ends.
    pub fn needs(&self, connections: u64) -> u64 {
        connections.saturating_mul(self.engine.bytes_per_connection())
    }

    /// Files of the host that `connections` take, both ends.
    pub fn needs_files(&self, connections: u64) -> u64 {
        connections.saturating_mul(FILES_PER_CONNECTION)
    }

    /// Whether the connections that must be held fit.
    ///
    /// # Errors
    /// What they need, what there is, and what to do.
    pub fn fit(&self, room: &Room) -> Result<(), String> {
        let wanted = self.connections;
        let (needs, kept) = (self.needs(wanted), self.keep_free(wanted));
        if needs.saturating_add(kept) > room.available_bytes {
            return Err(format!(
                "{} connections do not fit: they need about {}, and {} are kept free for the close (--keep-free), but \
                 {} are available. About {} would fit; or end what uses memory: ps aux --sort=-rss | head",
                count(wanted),
                part_of_memory(needs),
                part_of_memory(kept),
                gib(room.available_bytes),
                count(self.most_that_fit(room.available_bytes))
            ));
        }
        let files = room.files_open.saturating_add(self.needs_files(wanted));
        if room.is_bound_by_file_max && files > files_to_be_had(room.file_max) {
            return Err(format!(
                "{} connections do not fit: both ends take {} open files of this host, {} are open, and fs.file-max is \
                 {}. Raise it first: sudo sysctl -w fs.file-max={}",
                count(wanted),
                count(self.needs_files(wanted)),
                count(room.files_open),
                count(room.file_max),
                files.saturating_add(files / 10)
            ));
        }
        Ok(())
    }

    fn most_that_fit(&self, available_bytes: u64) -> u64 {
        let each = self.engine.bytes_per_connection();
        let kept = self.keep_free(0);
        let at_least_kept = available_bytes.saturating_sub(kept) / each;
        match self.keep_free_bytes {
            Some(_) => at_least_kept,
            None => at_least_kept.min(available_bytes / (each + CLOSE_BYTES_PER_CONNECTION)),
        }
    }

    /// How long a client may take to connect `connections`: ten times longer than any seen.
    pub fn ramp_patience(connections: u64) -> Duration {
        Duration::from_millis(30_000 + connections / 2)
    }

    /// About how long it takes to connect `connections`: some 20,000 a second.
    pub fn ramp_estimate(connections: u64) -> Duration {
        Duration::from_millis(connections / 20)
    }

    /// About how long it all takes.
    pub fn estimate(&self) -> Duration {
        let held_ms: u64 = self.parts().iter().map(|part| part.hold_ms).sum();
        let active_ms = self.active.map_or(0, |active| active.for_ms);
        let ramp = Self::ramp_estimate(self.most());
        // Half of that time again to close.
        Duration::from_millis(held_ms + active_ms + 4_000) + ramp * 3 / 2
    }

    /// After this time a run is stuck, and ends with what it has.
    pub fn time_limit(&self) -> Duration {
        self.estimate() * 4 + Duration::from_secs(120)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn plan() -> ClimbPlan {
        ClimbPlan {
            engine: Engine::Uring,
            connections: 1_000_000,
            hold_ms: 180_000,
            heartbeat_ms: 60_000,
            up: None,
            active: None,
            keep_free_bytes: None,
            placement: Placement::halves(&[0, 1]),
            nofile_hard: 20_000,
        }
    }

    fn room(gib: u64) -> Room {
        Room {
            available_bytes: gib << 30,
            files_open: 500,
            file_max: 2_466_170,
            is_bound_by_file_max: false,
        }
    }

    #[test]
    fn without_steps_there_is_one_part() {
        let parts = plan().parts();
        let only = Part {
            source: crate::scenario::CLIENT_SOURCE.to_owned(),
            added: 1_000_000,
            total: 1_000_000,
            hold_ms: 180_000,
        };
        assert_eq!(parts, [only]);
    }

    #[test]
    fn steps_come_on_top_up_to_the_end_and_are_held_shortly() {
        let up = Some(Up {
            step: 400_000,
            to: 2_000_000,
        });
        let plan = ClimbPlan { up, ..plan() };
        let totals: Vec<u64> = plan.parts().iter().map(|part| part.total).collect();
        assert_eq!(totals, [1_000_000, 1_400_000, 1_800_000, 2_000_000]);
        let holds: Vec<u64> = plan.parts().iter().map(|part| part.hold_ms).collect();
        assert_eq!(holds, [180_000, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn the_reserve_follows_from_the_connections_unless_it_is_given() {
        assert_eq!(plan().keep_free(1_000), 1 << 30);
        assert_eq!(plan().keep_free(1_000_000), 2_800_000_000);
        let given = ClimbPlan {
            keep_free_bytes: Some(7),
            ..plan()
        };
        assert_eq!(given.keep_free(1_000_000), 7);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        plan().fit(&room(12)).unwrap();
        let said = plan().fit(&room(8)).unwrap_err();
        assert!(
            said.contains("1,000,000 connections do not fit") && said.contains("671,088 would fit"),
            "{said}"
        );
        let fewer = ClimbPlan {
            connections: 671_088,
            ..plan()
        };
        fewer.fit(&room(8)).unwrap();
    }

    #[test]
    fn file_max_refuses_only_those_who_are_held_to_it() {
        let scarce = Room {
            file_max: 1_900_000,
            ..room(24)
        };
        plan().fit(&scarce).unwrap();
        let bound = Room {
            is_bound_by_file_max: true,
            ..scarce
        };
        let said = plan().fit(&bound).unwrap_err();
        assert!(said.contains("fs.file-max=2200550"), "{said}");
    }

    proptest! {
        #[test]
        fn parts_never_share_an_address_and_add_up(
            connections in 1u64..2_000_000,
            step in 1u64..1_000_000,
            more in 1u64..4_000_000,
        ) {
            let up = Some(Up { step, to: connections + more });
            let plan = ClimbPlan { connections, up, ..plan() };
            prop_assume!(plan.check().is_ok());
            let parts = plan.parts();
            prop_assert_eq!(parts.iter().map(|part| part.added).sum::<u64>(), plan.most());
            prop_assert_eq!(parts.last().unwrap().total, plan.most());
            let mut sources: Vec<_> = parts.iter().map(|part| part.source.clone()).collect();
            sources.dedup();
            prop_assert_eq!(sources.len(), parts.len());
            let reserved = ["127.0.0.0/16".to_owned(), "127.255.0.0/16".to_owned()];
            prop_assert!(sources.iter().all(|source| !reserved.contains(source)));
            let second: u64 = sources.last().unwrap().split('.').nth(1).unwrap().parse().unwrap();
            prop_assert!(second < 255);
        }
    }
}
