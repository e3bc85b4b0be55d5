//! What would have to change on a host for a demand: each setting, its value now, and the value it should get.
//!
//! Reads settings and writes nothing. Invariant: a plan has every setting of its role, those that cannot be read or
//! written too, with the reason.

use std::fmt;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use serde::Serialize;

use crate::profile;
use crate::setting::{Demand, Scope, Setting, wanted};
use crate::tree::{Now, Tree};

/// One setting of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// As sysctl(8) names it.
    pub name: String,
    /// What it should be, in words.
    pub wanted: String,
    /// What there is to do.
    #[serde(flatten)]
    pub todo: Todo,
    /// What its numbers count.
    pub unit: String,
    /// What happens without it.
    pub reason: String,
    /// Where it is documented.
    pub source: String,
    /// How far it reaches.
    pub scope: Scope,
}

/// What there is to do about a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "todo", rename_all = "snake_case")]
pub enum Todo {
    /// Nothing: it is as wanted.
    Keep {
        /// Its value.
        now: String,
    },
    /// It is to be changed.
    Change {
        /// Its value.
        now: String,
        /// The value it should get.
        to: String,
    },
    /// It should be changed and this process may not.
    Forbidden {
        /// Its value.
        now: String,
        /// The value it should get.
        to: String,
        /// Why not.
        why: Obstacle,
    },
    /// Nothing can be said of it.
    Unknown {
        /// Why not.
        why: String,
        /// Every host that this is for has it, or should.
        is_needed: bool,
    },
}

/// Why a setting cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// It needs another user.
    NotRoot,
    /// It is of the host's network namespace, and this process is in another.
    OtherNamespace,
    /// `/proc/sys` is mounted read-only.
    ReadOnly,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::NotRoot => "only root may write it",
            Self::OtherNamespace => "only the host's own network namespace may write it",
            Self::ReadOnly => "/proc/sys is mounted read-only, as in a container",
        })
    }
}

/// What would have to change in `tree` for `demand`.
pub fn plan(tree: &Tree, demand: &Demand) -> Vec<Step> {
    let settings = profile::settings(demand.role).into_iter();
    settings
        .map(|setting| step(tree, setting, demand))
        .collect()
}

fn step(tree: &Tree, setting: Setting, demand: &Demand) -> Step {
    let wanted = wanted(&setting, demand);
    let unknown = |why| Todo::Unknown {
        why,
        is_needed: !setting.is_optional,
    };
    let todo = match tree.sysctl(&setting.name) {
        Now::Missing => unknown(missing(&setting).into()),
        Now::Unreadable(error) => unknown(error.to_string()),
        Now::Value(now) => match (wanted.is_met(&now), wanted.adjusted(&now)) {
            (Ok(true), _) => Todo::Keep { now },
            (Ok(false), Ok(to)) => match obstacle(tree, &setting) {
                None => Todo::Change { now, to },
                Some(why) => Todo::Forbidden { now, to, why },
            },
            (Err(error), _) | (_, Err(error)) => unknown(error.to_string()),
        },
    };
    Step {
        name: setting.name,
        wanted: wanted.to_string(),
        todo,
        unit: setting.unit,
        reason: setting.reason,
        source: setting.source,
        scope: setting.scope,
    }
}

fn missing(setting: &Setting) -> &'static str {
    match (setting.is_optional, setting.scope) {
        (true, _) => "not here: its module is not loaded, or this kernel is without it",
        (false, Scope::Host) => {
            "not here: this kernel is without it, or this is not the host's network namespace"
        }
        (false, Scope::Namespace) => "not here: this kernel is without it",
    }
}

fn obstacle(tree: &Tree, setting: &Setting) -> Option<Obstacle> {
    use std::os::unix::fs::PermissionsExt;

    let path = tree.sysctl_path(&setting.name);
    let may = faccessat(
        nix::fcntl::AT_FDCWD,
        &path,
        AccessFlags::W_OK,
        AtFlags::AT_EACCESS,
    );
    let is_for_nobody =
        || std::fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o222 == 0);
    match may {
        Err(Errno::EROFS) => Some(Obstacle::ReadOnly),
        Err(Errno::EACCES | Errno::EPERM) if is_for_nobody() => Some(Obstacle::OtherNamespace),
        Err(Errno::EACCES | Errno::EPERM) => Some(Obstacle::NotRoot),
        // What else there may be, the write will tell.
        Ok(()) | Err(_) => None,
    }
}
