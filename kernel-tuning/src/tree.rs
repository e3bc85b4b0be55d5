//! The files that settings live in: this host's, or another tree of the same form.
//!
//! Reads only. Invariant: every path is below the root of the tree, so a tree made for a test keeps what is done to it.

use std::path::PathBuf;
use std::{fs, io};

/// A file tree with `proc/sys`, `etc` and `var` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    /// This host's.
    fn default() -> Self {
        Self::at("/")
    }
}

/// What a setting has now.
#[derive(Debug)]
pub enum Now {
    /// This, its numbers with one space between them.
    Value(String),
    /// This kernel or network namespace does not have it.
    Missing,
    /// It is there and cannot be read.
    Unreadable(io::Error),
}

impl Tree {
    /// The tree below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the file `path`, such as `/etc/fstab`, is in this tree.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Where the setting `name`, such as `net.ipv4.tcp_mem`, is in this tree.
    pub fn sysctl_path(&self, name: &str) -> PathBuf {
        self.path("proc/sys").join(name.replace('.', "/"))
    }

    /// The value of the setting `name`.
    pub fn sysctl(&self, name: &str) -> Now {
        match fs::read_to_string(self.sysctl_path(name)) {
            Ok(text) => Now::Value(one_line(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Now::Missing,
            Err(error) => Now::Unreadable(error),
        }
    }
}

/// The kernel separates the numbers of one setting with tabs.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
