//! Memory, sockets and connections over the whole of a run, by phase.
//!
//! Owns a thread that reads `/proc` every [`EVERY`], also while the run waits for something else, and at each change of
//! phase. Invariant: there are never more than [`MOST`] samples, however long the run: when they are that many every second
//! one goes, and from then on they are taken half as often; the first of each phase stays.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel_tuning::host::{HostError, Memory, NetCounters, Sockstat};
use kernel_tuning::process::Usage;
use serde::{Deserialize, Serialize};

use crate::clock::millis;
use crate::load::Progress;
use crate::netns::Inside;

/// How often it is read at first.
const EVERY: Duration = Duration::from_millis(250);

/// The most samples that are kept.
pub const MOST: usize = 400;

/// One reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the beginning of the baseline.
    pub t_ms: u64,
    /// What the client did, as in its samples.
    pub phase: String,
    /// Connections established, as the client said last; none after the mass close.
    pub connections: u64,
    /// Messages that came back, since the beginning.
    pub messages: u64,
    /// Heartbeats heard, since the beginning.
    pub heartbeats: u64,
    /// TCP sockets of the whole host, in any state: both ends, and those that the kernel still closes.
    pub sockets: u64,
    /// Memory that is available.
    pub available_bytes: u64,
    /// All slab caches of the kernel.
    pub slab_bytes: u64,
    /// Page tables of all processes.
    pub page_tables_bytes: u64,
    /// Pages of queued TCP data (`mem` of sockstat).
    pub queued_pages: u64,
    /// Resident memory of the servers; `None` once one has ended.
    pub server_rss_bytes: Option<u64>,
    /// Resident memory of the client; `None` while there is none.
    pub client_rss_bytes: Option<u64>,
    /// By how much the counters that mean trouble have grown since the beginning, at the server's end.
    pub trouble: BTreeMap<String, u64>,
}

/// All that was kept, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// Between two of them, but for those at a change of phase.
    pub every_ms: u64,
    /// The readings.
    pub samples: Vec<Sample>,
    /// Readings that could not be made.
    pub unread: u64,
}

impl Series {
    /// The samples of each phase, in order of their beginning. A phase that comes back is told again.
    pub fn phases(&self) -> impl Iterator<Item = &[Sample]> {
        self.samples.chunk_by(|one, next| one.phase == next.phase)
    }

    fn push(&mut self, sample: Sample) {
        if self.samples.len() == MOST {
            self.thin_out();
        }
        self.samples.push(sample);
    }

    fn thin_out(&mut self) {
        let mut kept: Vec<Sample> = Vec::with_capacity(MOST);
        for (index, sample) in std::mem::take(&mut self.samples).into_iter().enumerate() {
            let begins = kept.last().is_none_or(|last| last.phase != sample.phase);
            if begins || index % 2 == 0 {
                kept.push(sample);
            }
        }
        // However many phases there are, there is room again.
        kept.truncate(MOST - 1);
        self.samples = kept;
        self.every_ms *= 2;
    }
}

/// What the run is doing, as far as it is known.
#[derive(Debug, Clone)]
struct Now {
    /// As the client said last.
    progress: Progress,
    client: Option<u32>,
}

/// Reads until it is finished or dropped.
#[derive(Debug)]
pub struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Series>>,
}

#[derive(Debug)]
struct Shared {
    servers: Vec<u32>,
    /// Where the server's end is.
    inside: Option<Arc<Inside>>,
    is_over: AtomicBool,
    now: Mutex<Now>,
}

impl Sampler {
    /// Begins to read, in the phase `phase`, beside the processes `servers`; the network's counters `inside`, where the
    /// servers are in a namespace.
    pub fn start(phase: &str, servers: Vec<u32>, inside: Option<Arc<Inside>>) -> Self {
        let progress = Progress {
            phase: phase.to_owned(),
            ..Progress::default()
        };
        let now = Now {
            progress,
            client: None,
        };
        let shared = Arc::new(Shared {
            servers,
            inside,
            is_over: AtomicBool::new(false),
            now: Mutex::new(now),
        });
        let reading = Arc::clone(&shared);
        Self {
            shared,
            thread: Some(std::thread::spawn(move || reading.read_all())),
        }
    }

    /// What the process `client` has just said.
    pub fn note(&self, progress: &Progress, client: u32) {
        let mut now = self.shared.now();
        let is_new = now.progress.phase != progress.phase;
        now.progress.clone_from(progress);
        now.client = Some(client);
        drop(now);
        if is_new && let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// What was read.
    pub fn finish(mut self) -> Series {
        self.end().unwrap_or_default()
    }

    fn end(&mut self) -> Option<Series> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let thread = self.thread.take()?;
        thread.thread().unpark();
        // It does nothing that panics.
        thread.join().ok()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn read_all(&self) -> Series {
        let began = Instant::now();
        let base = self.counters();
        let mut series = Series {
            every_ms: millis(EVERY),
            ..Series::default()
        };
        let (mut next_ms, mut phase) = (0, String::new());
        while !self.is_over.load(Ordering::Relaxed) {
            let now_ms = millis(began.elapsed());
            let now = self.now().clone();
            if now_ms < next_ms && now.progress.phase == phase {
                std::thread::park_timeout(Duration::from_millis(next_ms - now_ms));
                continue;
            }
            now.progress.phase.clone_into(&mut phase);
            match self.read(now_ms, &now, base.as_ref().ok()) {
                Ok(sample) => series.push(sample),
                Err(_) => series.unread += 1,
            }
            next_ms = now_ms + series.every_ms;
        }
        series
    }

    fn read(&self, t_ms: u64, now: &Now, base: Option<&NetCounters>) -> Result<Sample, HostError> {
        let progress = &now.progress;
        let (memory, sockstat) = (Memory::read()?, Sockstat::read()?);
        let rss_bytes = |pid: u32| Some(Usage::of(pid).ok()?.rss_bytes);
        let grown = base.and_then(|base| Some(self.counters().ok()?.grown(base)));
        let trouble = grown.iter().flat_map(NetCounters::troubles);
        Ok(Sample {
            t_ms,
            phase: progress.phase.clone(),
            connections: match progress.phase.as_str() {
                "recovery" => 0,
                _ => progress.established,
            },
            messages: progress.messages,
            heartbeats: progress.heartbeats,
            sockets: sockstat.alloc,
            available_bytes: memory.available_bytes,
            slab_bytes: memory.slab_bytes,
            page_tables_bytes: memory.page_tables_bytes,
            queued_pages: sockstat.mem_pages,
            server_rss_bytes: self.servers.iter().map(|pid| rss_bytes(*pid)).sum(),
            client_rss_bytes: now.client.and_then(rss_bytes),
            trouble: trouble.map(|(name, by, _)| (name.to_owned(), by)).collect(),
        })
    }

    fn counters(&self) -> Result<NetCounters, HostError> {
        let Some(inside) = &self.inside else {
            return NetCounters::read();
        };
        let read = inside.run(NetCounters::read);
        read.unwrap_or_else(|cause| {
            let path = "/proc/thread-self/net".into();
            Err(HostError::Read {
                path,
                cause,
                hint: "",
            })
        })
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        // It is whole at any time.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(t_ms: u64, phase: &str, connections: u64) -> Sample {
        Sample {
            t_ms,
            phase: phase.to_owned(),
            connections,
            messages: 0,
            heartbeats: 0,
            sockets: 2 * connections,
            available_bytes: (1 << 34) - 10_000 * connections,
            slab_bytes: 8_000 * connections,
            page_tables_bytes: 0,
            queued_pages: 0,
            server_rss_bytes: Some((1 << 23) + 64 * connections),
            client_rss_bytes: Some((1 << 23) + 48 * connections),
            trouble: BTreeMap::new(),
        }
    }

    #[test]
    fn samples_are_bounded_and_the_first_of_each_phase_stays() {
        let mut series = Series {
            every_ms: 250,
            ..Series::default()
        };
        let phase = |t: u64| match t {
            0..1_001 => "ramp",
            1_001 => "step-1",
            _ => "hold",
        };
        for t in 0..10_000 {
            series.push(sample(t, phase(t), t));
            assert!(series.samples.len() <= MOST);
        }
        assert!(series.samples.len() > MOST / 4 && series.every_ms > 250);
        assert!(series.samples.is_sorted_by_key(|sample| sample.t_ms));
        let firsts: Vec<(&str, u64)> = series
            .phases()
            .map(|phase| (phase[0].phase.as_str(), phase[0].t_ms))
            .collect();
        assert_eq!(firsts, [("ramp", 0), ("step-1", 1_001), ("hold", 1_002)]);
    }

    #[test]
    fn a_process_is_followed_through_the_phases_and_its_end_is_no_figure() {
        let me = std::process::id();
        let sampler = Sampler::start("baseline", vec![me], None);
        let soon = || std::thread::sleep(Duration::from_millis(100));
        let said = |phase: &str| -> Progress {
            let line = format!(
                r#"{{"t_ms":1,"phase":"{phase}","established":7,"failed":0,"lost":0,"messages":3}}"#
            );
            serde_json::from_str(&line).unwrap()
        };
        soon();
        sampler.note(&said("ramp"), me);
        soon();
        sampler.note(&said("recovery"), u32::MAX);
        soon();
        let series = sampler.finish();
        let phases: Vec<&str> = series
            .phases()
            .map(|phase| phase[0].phase.as_str())
            .collect();
        assert_eq!(phases, ["baseline", "ramp", "recovery"]);
        let [first, ramp, last] = [0, 1, 2].map(|at| &series.samples[at]);
        assert_eq!((first.client_rss_bytes, ramp.connections), (None, 7));
        assert!(first.server_rss_bytes > Some(0) && ramp.client_rss_bytes > Some(0));
        assert_eq!((last.connections, last.client_rss_bytes), (0, None));
        assert!(last.slab_bytes > 0 && last.available_bytes > 0);
    }
}
