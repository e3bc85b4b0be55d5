//! The file that gives settings their values again at the next start: `/etc/sysctl.d/90-throng.conf`.
//!
//! Owns that file. Invariant: a file of that name that this program did not write is neither replaced nor removed.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::annotate::sysctl_d;
use crate::state::{State, remove as remove_file, replace};
use crate::tree::Tree;

/// Where it is.
pub const PATH: &str = "/etc/sysctl.d/90-throng.conf";

/// How it begins.
const MARK: &str = "# Written by `throng-tune apply --persist`; `throng-tune revert` removes it.\n";

/// Why the file cannot be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// Another's file.
    #[error("{0} was not written by throng-tune: move it away first")]
    NotOurs(PathBuf),
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Writes all that `state` changed.
///
/// # Errors
/// When the file is another's or cannot be written; it is as it was.
pub fn write(tree: &Tree, state: &State) -> Result<(), PersistError> {
    let path = tree.path(PATH);
    let file = |what, path: &PathBuf| {
        let path = path.clone();
        move |source| PersistError::File { what, path, source }
    };
    if is_ours(&path).map_err(file("read", &path))? == Some(false) {
        return Err(PersistError::NotOurs(path));
    }
    if let Some(directory) = path.parent() {
        let directory = directory.to_owned();
        fs::create_dir_all(&directory).map_err(file("make the directory", &directory))?;
    }
    let values = state
        .changes
        .iter()
        .map(|change| (change.name.as_str(), change.wanted()));
    let text = format!("{MARK}\n{}", sysctl_d(values));
    replace(&path, text.as_bytes()).map_err(file("write", &path))
}

/// Removes it, where it is there and ours.
///
/// # Errors
/// When it cannot be read or removed.
pub fn remove(tree: &Tree) -> Result<(), PersistError> {
    let path = tree.path(PATH);
    let removed = match is_ours(&path) {
        Ok(Some(true)) => remove_file(&path),
        other => other.map(|_| ()),
    };
    removed.map_err(|source| PersistError::File {
        what: "remove",
        path,
        source,
    })
}

/// Whether the file is there and was written by this program.
///
/// # Errors
/// When it cannot be read.
pub fn is_there(tree: &Tree) -> io::Result<bool> {
    Ok(is_ours(&tree.path(PATH))? == Some(true))
}

fn is_ours(path: &PathBuf) -> io::Result<Option<bool>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.starts_with(MARK))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
