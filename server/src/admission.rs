//! Who may come in: how many, from where, how fast, and while there is memory.
//!
//! Owns: the counts that all workers share. Takes from the kernel only the address of a peer, and only where places are
//! counted by source. Invariant: whoever came in is counted until he leaves, and whoever may not is counted by the reason;
//! the memory this needs is bounded by the connections held.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrStorage, getpeername};
use serde::Serialize;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// As many are held as may be.
    MaxConnections,
    /// As many are held from that source as may be.
    MaxPerSource,
    /// As many came within the last second as may.
    AcceptRate,
    /// Memory is short.
    Memory,
}

impl Refusal {
    /// Every reason there is.
    pub const ALL: [Refusal; 4] = [
        Refusal::MaxConnections,
        Refusal::MaxPerSource,
        Refusal::AcceptRate,
        Refusal::Memory,
    ];
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::MaxConnections => "over --max-connections",
            Refusal::MaxPerSource => "over --max-per-source",
            Refusal::AcceptRate => "over --accept-rate",
            Refusal::Memory => "for memory was short (--memory-reserve)",
        })
    }
}

/// The bounds; none where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Connections held at a time.
    pub max_connections: Option<u64>,
    /// Connections held at a time from one source.
    pub max_per_source: Option<u32>,
    /// Connections a second, and as many at once.
    pub accept_rate: Option<u32>,
}

/// Where connections come from: an IPv4 address, or the /64 network of an IPv6 address, of which one site has at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The address.
    V4(u32),
    /// The network's first 64 bits.
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Source {
        match address.to_canonical() {
            IpAddr::V4(address) => Source::V4(address.to_bits()),
            IpAddr::V6(address) => Source::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// Counts the connections of all workers, against the bounds.
#[derive(Debug)]
pub struct Admission {
    bounds: Bounds,
    held: AtomicU64,
    held_max: AtomicU64,
    memory_is_short: AtomicBool,
    started: Instant,
    /// When the last of those that came would have come, had they come evenly; in ns from the start.
    rate_full_ns: AtomicU64,
    sources: Mutex<HashMap<Source, u32>>,
}

impl Admission {
    /// Nobody is in.
    pub fn new(bounds: Bounds) -> Admission {
        Admission {
            bounds,
            held: AtomicU64::new(0),
            held_max: AtomicU64::new(0),
            memory_is_short: AtomicBool::new(false),
            started: Instant::now(),
            rate_full_ns: AtomicU64::new(0),
            sources: Mutex::default(),
        }
    }

    /// Whether the connection of socket `fd` may come in. It is then counted until [`Admission::leave`], and its source,
    /// where those count, until [`Admission::forget`].
    ///
    /// # Errors
    /// Why not.
    pub fn enter(&self, fd: RawFd) -> Result<Option<Source>, Refusal> {
        if self.memory_is_short.load(Relaxed) {
            return Err(Refusal::Memory);
        }
        let source = match self.bounds.max_per_source {
            Some(_) => source_of(fd),
            None => None,
        };
        self.enter_from(source, self.started.elapsed())?;
        Ok(source)
    }

    fn enter_from(&self, source: Option<Source>, now: Duration) -> Result<(), Refusal> {
        let most = self.bounds.max_connections.unwrap_or(u64::MAX);
        let before = self.held.fetch_add(1, Relaxed);
        let refused = if before >= most {
            Err(Refusal::MaxConnections)
        } else {
            self.count_source(source).and_then(|()| {
                let in_time = self.is_in_time(now);
                if !in_time {
                    self.forget(source);
                }
                in_time.then_some(()).ok_or(Refusal::AcceptRate)
            })
        };
        match refused {
            Ok(()) => self.held_max.fetch_max(before + 1, Relaxed),
            Err(_) => self.held.fetch_sub(1, Relaxed),
        };
        refused
    }

    /// `count` connections have ended.
    pub fn leave(&self, count: u64) {
        self.held.fetch_sub(count, Relaxed);
    }

    /// A connection from `source` has ended.
    pub fn forget(&self, source: Option<Source>) {
        let Some(source) = source else { return };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = sources.get_mut(&source) {
            *held -= 1;
            if *held == 0 {
                sources.remove(&source);
            }
        }
    }

    /// Whether sources are counted.
    pub fn counts_sources(&self) -> bool {
        self.bounds.max_per_source.is_some()
    }

    /// Memory is short, or is no more.
    pub fn set_memory_is_short(&self, is_short: bool) {
        self.memory_is_short.store(is_short, Relaxed);
    }

    /// Connections held now.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// The most held at one time.
    pub fn held_max(&self) -> u64 {
        self.held_max.load(Relaxed)
    }

    fn count_source(&self, source: Option<Source>) -> Result<(), Refusal> {
        let (Some(source), Some(most)) = (source, self.bounds.max_per_source) else {
            return Ok(());
        };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        match sources.get_mut(&source) {
            Some(held) if *held >= most => return Err(Refusal::MaxPerSource),
            Some(held) => *held += 1,
            None => drop(sources.insert(source, 1)),
        }
        Ok(())
    }

    /// One more came; true where no more than a second's worth came at once.
    fn is_in_time(&self, now: Duration) -> bool {
        const SECOND_NS: u64 = 1_000_000_000;
        let Some(rate) = self.bounds.accept_rate else {
            return true;
        };
        let now_ns = now.as_nanos() as u64;
        let next = |full_ns: u64| {
            let full_ns = full_ns.max(now_ns) + SECOND_NS / u64::from(rate);
            (full_ns <= now_ns + SECOND_NS).then_some(full_ns)
        };
        self.rate_full_ns
            .fetch_update(Relaxed, Relaxed, next)
            .is_ok()
    }
}

/// The sources of a worker's connections, by slot. Empty where sources are not counted.
#[derive(Debug, Default)]
pub struct Sources(Vec<Option<Source>>);

impl Sources {
    /// The connection in `slot` comes from there.
    pub fn put(&mut self, slot: u32, source: Option<Source>) {
        if source.is_none() {
            return;
        }
        if self.0.len() <= slot as usize {
            self.0.resize(slot as usize + 1, None);
        }
        self.0[slot as usize] = source;
    }

    /// Where the connection in `slot` came from, which ends.
    pub fn take(&mut self, slot: u32) -> Option<Source> {
        self.0.get_mut(slot as usize)?.take()
    }
}

/// None for one that has gone already, and whom nobody counts.
fn source_of(fd: RawFd) -> Option<Source> {
    peer_of(fd).map(|address| address.ip().into())
}

/// Where the connection of socket `fd` comes from. None for one that has gone already.
pub fn peer_of(fd: RawFd) -> Option<SocketAddr> {
    let address: SockaddrStorage = getpeername(fd).ok()?;
    let v4 = || address.as_sockaddr_in().map(|a| SocketAddr::from(*a));
    let v6 = || address.as_sockaddr_in6().map(|a| SocketAddr::from(*a));
    v4().or_else(v6)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(text: &str) -> Option<Source> {
        Some(text.parse::<IpAddr>().unwrap().into())
    }

    #[test]
    fn sources_are_counted_by_address_or_network_and_forgotten() {
        let bounds = Bounds {
            max_per_source: Some(2),
            ..Bounds::default()
        };
        let admission = Admission::new(bounds);
        let enter = |text| admission.enter_from(source(text), Duration::ZERO);
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        for two in ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1"] {
            assert_eq!((enter(two), enter(two)), (Ok(()), Ok(())));
        }
        assert_eq!(enter("::ffff:10.0.0.1"), Err(Refusal::MaxPerSource));
        assert_eq!(enter("2001:db8::2:3:4:5"), Err(Refusal::MaxPerSource));
        assert_eq!(admission.held(), 8);
        for _ in 0..2 {
            admission.forget(source("10.0.0.1"));
        }
        admission.leave(2);
        assert_eq!(admission.sources.lock().unwrap().len(), 3);
        assert_eq!(enter("10.0.0.1"), Ok(()));
    }

    #[test]
    fn a_second_s_worth_comes_at_once_and_then_evenly() {
        let bounds = Bounds {
            accept_rate: Some(10),
            ..Bounds::default()
        };
        let admission = Admission::new(bounds);
        let at = |ms| admission.enter_from(None, Duration::from_millis(ms));
        let entered = |ms| (0..100).filter(|_| at(ms).is_ok()).count();
        assert_eq!((entered(0), entered(0)), (10, 0));
        assert_eq!((entered(99), entered(100), entered(450)), (0, 1, 3));
        assert_eq!(entered(60_000), 10);
        assert_eq!(at(60_000), Err(Refusal::AcceptRate));
        assert_eq!(admission.held(), 24);
    }

    #[test]
    fn the_maximum_comes_first_and_short_memory_before_it() {
        let bounds = Bounds {
            max_connections: Some(1),
            ..Bounds::default()
        };
        let admission = Admission::new(bounds);
        assert_eq!(admission.enter(-1), Ok(None));
        assert_eq!(admission.enter(-1), Err(Refusal::MaxConnections));
        admission.set_memory_is_short(true);
        assert_eq!(admission.enter(-1), Err(Refusal::Memory));
        admission.set_memory_is_short(false);
        admission.leave(1);
        assert_eq!((admission.enter(-1), admission.held_max()), (Ok(None), 1));
    }
}
