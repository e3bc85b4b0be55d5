//! What was changed and what it was before: a file that outlives a crash, and the lock that keeps two from changing
//! settings at once.
//!
//! Owns the state file and the lock file beside it. Invariant: the file is whole at every moment, the old or the new
//! one: it is written beside, brought to the disk, and renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// What `apply` did since the last `revert`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Unix time of the last `apply`, in seconds.
    pub applied_at_s: u64,
    /// False from before the first write until after the last: a crash leaves it so.
    pub is_complete: bool,
    /// Whether the file in `/etc/sysctl.d` is, or was about to be, there.
    pub is_persistent: bool,
    /// Each setting, in the order of writing.
    pub changes: Vec<Change>,
}

/// One changed setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// As sysctl(8) names it.
    pub name: String,
    /// Its value before the first `apply`.
    pub original: String,
    /// Every value that it was, or was about to be, given, the latest last.
    pub ours: Vec<String>,
}

impl Change {
    /// The value it should have now.
    pub fn wanted(&self) -> &str {
        self.ours.last().map_or(&self.original, String::as_str)
    }

    /// Whether `value` is one of those it was given, or its original: nobody else changed it.
    pub fn is_ours(&self, value: &str) -> bool {
        value == self.original || self.ours.iter().any(|ours| ours == value)
    }
}

/// Why the state cannot be read, written or locked.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {what} {path}: {cause}{hint}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel answered.
        cause: io::Error,
        /// What to do about it, or nothing.
        hint: &'static str,
    },
    /// It was not written by this program, or by another version.
    #[error(
        "{path} is no state of throng-tune ({cause}): move it away, or name another with --state"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
    /// Another process holds the lock.
    #[error("another throng-tune is changing settings (it holds {path}): wait for it to end")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

/// The state file, locked for as long as this lives.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateFile {
    /// Locks the state at `path`, whose directory is made where it is missing.
    ///
    /// # Errors
    /// When another holds it, or the lock file cannot be made.
    pub fn lock(path: &Path) -> Result<Self, StateError> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(cannot("make the directory", directory))?;
        }
        let lock_path = beside(path, ".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path);
        let file = file.map_err(cannot("open", &lock_path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(StateError::Locked { path: lock_path }),
            Err((_, errno)) => Err(cannot("lock", &lock_path)(errno.into())),
        }
    }

    /// What it says; nothing was changed where there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(&self) -> Result<Option<State>, StateError> {
        read(&self.path)
    }

    /// Brings `state` to the disk before it returns.
    ///
    /// # Errors
    /// When it cannot; the file is as it was.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let mut text = serde_json::to_vec_pretty(state).map_err(|cause| StateError::Format {
            path: self.path.clone(),
            cause,
        })?;
        text.push(b'\n');
        replace(&self.path, &text).map_err(cannot("write", &self.path))
    }

    /// Removes the state: nothing is changed any more.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear(&self) -> Result<(), StateError> {
        remove(&self.path).map_err(cannot("remove", &self.path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the state file at `path` says, without a lock; nothing where there is none.
///
/// # Errors
/// When it cannot be read or understood.
pub fn read(path: &Path) -> Result<Option<State>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read", path)(error)),
    };
    let state = serde_json::from_slice(&text).map_err(|cause| StateError::Format {
        path: path.to_owned(),
        cause,
    })?;
    Ok(Some(state))
}

/// Replaces the file at `path` by `content`, whole or not at all, and brings it to the disk.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = beside(path, ".new");
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory(path)
}

/// Removes the file at `path`, where there is one, for good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(path),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn cannot(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |cause| StateError::File {
        what,
        path,
        hint: match cause.kind() {
            io::ErrorKind::PermissionDenied => ": run this as root, or name another with --state",
            _ => "",
        },
        cause,
    }
}
