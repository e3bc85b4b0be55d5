//! What may not run out while connections are added: memory, and open files of the host.
//!
//! Owns a thread that reads `/proc` every [`EVERY`], also while the run waits for something else. Invariant: the first
//! limit that is reached stays the one that was; the lowest and the highest readings are those of all looks since they
//! were last taken.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kernel_tuning::host::{Files, HostError, Memory, Sockstat};
use serde::{Deserialize, Serialize};

use crate::report::format::{count, gib};
use crate::sample::available_bytes;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// Of the host's open files, the share that is left to others.
const FILES_SHARE: u64 = 100;

/// What was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "limit", rename_all = "snake_case")]
pub enum Limit {
    /// Less memory than is to be kept free.
    Memory {
        /// What was available.
        available_bytes: u64,
        /// What is to be kept.
        keep_free_bytes: u64,
    },
    /// `fs.file-max` but for what is left to others.
    Files {
        /// Open files of the host.
        open: u64,
        /// `fs.file-max`.
        max: u64,
    },
}

impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory {
                available_bytes,
                keep_free_bytes,
            } => write!(
                out,
                "memory: {} were available, and {} are kept free for the close",
                gib(*available_bytes),
                gib(*keep_free_bytes)
            ),
            Self::Files { open, max } => write!(
                out,
                "open files of this host: {} of fs.file-max {}, and a hundredth is left to others; a connection takes \
                 two, so raise it first: sudo sysctl -w fs.file-max={}",
                count(*open),
                count(*max),
                max * 2
            ),
        }
    }
}

/// The worst readings of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extremes {
    /// The least memory that was available.
    pub available_lowest_bytes: u64,
    /// The most files that the host had open.
    pub files_most: u64,
    /// The most pages of TCP data that were queued.
    pub queued_most_pages: u64,
}

impl Extremes {
    fn read() -> Result<Self, HostError> {
        Ok(Self {
            available_lowest_bytes: available_bytes(&Memory::read()?),
            files_most: Files::read()?.allocated,
            queued_most_pages: Sockstat::read()?.mem_pages,
        })
    }

    fn worst(self, other: Self) -> Self {
        Self {
            available_lowest_bytes: self
                .available_lowest_bytes
                .min(other.available_lowest_bytes),
            files_most: self.files_most.max(other.files_most),
            queued_most_pages: self.queued_most_pages.max(other.queued_most_pages),
        }
    }

    /// The limit that this reading is beyond.
    fn limit(&self, keep_free_bytes: u64, file_max: Option<u64>) -> Option<Limit> {
        if self.available_lowest_bytes < keep_free_bytes {
            return Some(Limit::Memory {
                available_bytes: self.available_lowest_bytes,
                keep_free_bytes,
            });
        }
        let max = file_max?;
        (self.files_most > files_to_be_had(max)).then_some(Limit::Files {
            open: self.files_most,
            max,
        })
    }
}

/// How many files may be open on a host of this `fs.file-max`.
pub fn files_to_be_had(file_max: u64) -> u64 {
    file_max - file_max.div_ceil(FILES_SHARE)
}

/// Looks at the host until it is dropped.
#[derive(Debug)]
pub struct Guard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    keep_free_bytes: AtomicU64,
    file_max: Option<u64>,
    is_over: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    extremes: Extremes,
    limit: Option<Limit>,
}

impl Guard {
    /// Begins to look. `file_max` is `fs.file-max` where the kernel holds this user to it.
    ///
    /// # Errors
    /// When the host cannot be read.
    pub fn watch(keep_free_bytes: u64, file_max: Option<u64>) -> Result<Self, HostError> {
        let shared = Arc::new(Shared {
            keep_free_bytes: AtomicU64::new(keep_free_bytes),
            file_max,
            is_over: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                extremes: Extremes::read()?,
                limit: None,
            }),
        });
        let looking = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !looking.is_over.load(Ordering::Relaxed) {
                looking.look();
                std::thread::park_timeout(EVERY);
            }
        });
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on so much is kept free.
    pub fn keep_free(&self, bytes: u64) {
        self.shared.keep_free_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The limit that was reached first, if one was.
    pub fn limit(&self) -> Option<Limit> {
        self.shared.seen().limit
    }

    /// The worst readings since this was last asked, or since the beginning; the present one is among them.
    pub fn take_extremes(&self) -> Extremes {
        let now = Extremes::read();
        let mut seen = self.shared.seen();
        let Ok(now) = now else {
            return seen.extremes;
        };
        std::mem::replace(&mut seen.extremes, now).worst(now)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn look(&self) {
        // What could be read at the start can be read now, but for the moment of a lack of files.
        let Ok(now) = Extremes::read() else {
            return;
        };
        let limit = now.limit(self.keep_free_bytes.load(Ordering::Relaxed), self.file_max);
        let mut seen = self.seen();
        seen.extremes = seen.extremes.worst(now);
        seen.limit = seen.limit.or(limit);
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: Extremes = Extremes {
        available_lowest_bytes: 1 << 30,
        files_most: 9_900,
        queued_most_pages: 7,
    };

    #[test]
    fn memory_below_the_reserve_is_a_limit_and_so_are_files_where_they_are_enforced() {
        assert_eq!(NOW.limit(1 << 30, Some(10_000)), None);
        let memory = NOW.limit(2 << 30, Some(10_000)).unwrap().to_string();
        assert!(
            memory.contains("1.0 GiB were") && memory.contains("2.0 GiB are kept"),
            "{memory}"
        );
        let files = NOW.limit(1 << 30, Some(9_999)).unwrap().to_string();
        assert!(files.contains("9,900 of fs.file-max 9,999"), "{files}");
        assert_eq!(NOW.limit(1 << 30, None), None);
    }

    #[test]
    fn the_first_limit_stays_and_the_extremes_begin_anew_when_taken() {
        let guard = Guard::watch(0, None).unwrap();
        assert_eq!(guard.limit(), None);
        guard.keep_free(u64::MAX);
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while guard.limit().is_none() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        guard.keep_free(0);
        assert!(matches!(guard.limit(), Some(Limit::Memory { .. })));
        guard.shared.seen().extremes = Extremes {
            files_most: u64::MAX,
            ..NOW
        };
        assert_eq!(guard.take_extremes().files_most, u64::MAX);
        assert!(guard.take_extremes().files_most < u64::MAX);
    }
}
