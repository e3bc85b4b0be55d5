//! Changes settings and takes the changes back: the only writer to `/proc/sys`.
//!
//! Owns the order of things. Invariants: before a setting is written, its original value is on the disk; a set of changes
//! is made whole or not at all; the original of a setting is what it had before the first of several `apply`, unless
//! somebody else changed it in between; a value that somebody else gave is never overwritten by `revert`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::time::SystemTime;

use serde::Serialize;

use crate::persist::{self, PersistError};
use crate::plan::{Step, Todo};
use crate::state::{Change, State, StateError, StateFile};
use crate::tree::{Now, Tree, one_line};

/// Why settings were not changed, or not changed back.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The state cannot be had; no setting was written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A change failed, and those made before it were taken back.
    #[error("{cause}; every setting is as it was before")]
    RolledBack {
        /// What failed.
        cause: Failure,
    },
    /// A change failed, and so did taking others back.
    #[error(
        "{cause}; and not everything could be taken back: {}; try again with `throng-tune revert`",
        list(failures)
    )]
    HalfDone {
        /// What failed first.
        cause: Failure,
        /// What failed while taking back.
        failures: Vec<Failure>,
    },
    /// Some settings could not be restored; the state keeps them.
    #[error("not everything could be restored: {}; try again with `throng-tune revert`", list(.0))]
    NotRestored(Vec<Failure>),
}

/// One thing that failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused a value.
    #[error("cannot write {value:?} to {name}: {cause}{}", hint(cause))]
    Write {
        /// The setting.
        name: String,
        /// What was to be written.
        value: String,
        /// What the kernel answered.
        cause: io::Error,
    },
    /// The kernel took a value and made another of it.
    #[error("{name} reads {got:?} after {value:?} was written: the kernel bounds or rounds it")]
    ReadBack {
        /// The setting.
        name: String,
        /// What was written.
        value: String,
        /// What was read then.
        got: String,
    },
    /// The file for the next start cannot be written or removed.
    #[error(transparent)]
    Persist(#[from] PersistError),
    /// The state cannot be written any more.
    #[error(transparent)]
    State(#[from] StateError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (run this as root)",
        io::ErrorKind::ReadOnlyFilesystem => {
            " (/proc/sys is mounted read-only, as in a container: run this on the host, or give the container the \
             setting with --sysctl)"
        }
        io::ErrorKind::InvalidInput => " (the kernel does not take this value)",
        _ => "",
    }
}

fn list(failures: &[Failure]) -> String {
    let each: Vec<String> = failures.iter().map(Failure::to_string).collect();
    each.join("; ")
}

/// Makes the changes of `steps` in `tree`, and with `keep` those of the state last over a restart.
///
/// # Errors
/// When one of them fails: then none is made.
pub fn apply(
    tree: &Tree,
    file: &StateFile,
    steps: &[Step],
    keep: bool,
) -> Result<State, ApplyError> {
    let before = file.read()?;
    let mut state = before.clone().unwrap_or_default();
    note(&mut state, steps, keep);
    file.save(&state)?;
    let changes: Vec<_> = steps.iter().filter_map(change).collect();
    let mut begun = 0;
    let made = changes
        .iter()
        .try_for_each(|(name, _, to)| {
            begun += 1;
            write(tree, name, to)
        })
        .and_then(|()| {
            state.is_complete = true;
            file.save(&state)?;
            match keep {
                true => Ok(persist::write(tree, &state)?),
                false => Ok(()),
            }
        });
    let Err(cause) = made else { return Ok(state) };
    let taken_back = changes[..begun].iter().rev();
    let mut failures: Vec<Failure> = taken_back
        .filter_map(|(name, now, _)| put_back(tree, name, now).err())
        .collect();
    if failures.is_empty() {
        let restored = match &before {
            Some(before) => file.save(before),
            None => file.clear(),
        };
        failures.extend(restored.map_err(Failure::from).err());
    }
    Err(match failures.is_empty() {
        true => ApplyError::RolledBack { cause },
        false => ApplyError::HalfDone { cause, failures },
    })
}

/// A setting's name, its value, and the value it should get.
fn change(step: &Step) -> Option<(&str, &str, &str)> {
    match &step.todo {
        Todo::Change { now, to } => Some((&step.name, now, to)),
        _ => None,
    }
}

/// Puts the changes of `steps` into `state`, as about to be made.
fn note(state: &mut State, steps: &[Step], keep: bool) {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // A clock before 1970 is no reason to fail.
    state.applied_at_s = since_epoch.map_or(0, |time| time.as_secs());
    state.is_complete = false;
    state.is_persistent |= keep;
    for (name, now, to) in steps.iter().filter_map(change) {
        let known = state.changes.iter().position(|known| known.name == name);
        let known = known.unwrap_or_else(|| {
            state.changes.push(Change {
                name: name.to_owned(),
                original: now.to_owned(),
                ours: Vec::new(),
            });
            state.changes.len() - 1
        });
        let change = &mut state.changes[known];
        if !change.is_ours(now) {
            // Somebody else's since: theirs is what there is to go back to.
            change.original = now.to_owned();
            change.ours.clear();
        }
        change.ours.retain(|value| value != to);
        change.ours.push(to.to_owned());
    }
}

/// What became of a changed setting in a [`revert`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reverted {
    /// As sysctl(8) names it.
    pub name: String,
    /// What it had before the first `apply`.
    pub original: String,
    /// What it had when the revert began; nothing where it is gone.
    pub found: Option<String>,
    /// Somebody else changed it since, and it was left so.
    pub is_left: bool,
}

/// Gives every changed setting of `tree` its original value again, and removes what would change it at the next start.
///
/// # Errors
/// When a setting cannot be restored: the others are, and the state keeps those that are left to do.
pub fn revert(tree: &Tree, file: &StateFile) -> Result<Vec<Reverted>, ApplyError> {
    let Some(mut state) = file.read()? else {
        return Ok(Vec::new());
    };
    let mut failures = Vec::new();
    match persist::remove(tree) {
        Ok(()) => state.is_persistent = false,
        Err(error) => failures.push(error.into()),
    }
    let mut reverted = Vec::new();
    let mut left_to_do = Vec::new();
    for change in state.changes.into_iter().rev() {
        match restore(tree, &change) {
            Ok(outcome) => reverted.push(outcome),
            Err(failure) => {
                failures.push(failure);
                left_to_do.insert(0, change);
            }
        }
    }
    if failures.is_empty() {
        file.clear()?;
        return Ok(reverted);
    }
    state.changes = left_to_do;
    state.is_complete = false;
    file.save(&state)?;
    Err(ApplyError::NotRestored(failures))
}

fn restore(tree: &Tree, change: &Change) -> Result<Reverted, Failure> {
    let found = match tree.sysctl(&change.name) {
        Now::Value(value) => Some(value),
        Now::Missing => None,
        Now::Unreadable(cause) => {
            return Err(Failure::Write {
                name: change.name.clone(),
                value: change.original.clone(),
                cause,
            });
        }
    };
    let has_original = found.as_ref() == Some(&change.original);
    let is_ours = found.as_deref().is_some_and(|found| change.is_ours(found));
    if is_ours && !has_original {
        write(tree, &change.name, &change.original)?;
    }
    Ok(Reverted {
        name: change.name.clone(),
        original: change.original.clone(),
        is_left: found.is_some() && !is_ours,
        found,
    })
}

/// Writes a setting, unless it has the value already, as after a refused write.
fn put_back(tree: &Tree, name: &str, value: &str) -> Result<(), Failure> {
    match tree.sysctl(name) {
        Now::Value(now) if now == value => Ok(()),
        _ => write(tree, name, value),
    }
}

/// Writes a setting that is there, and reads it back.
fn write(tree: &Tree, name: &str, value: &str) -> Result<(), Failure> {
    let refused = |cause| Failure::Write {
        name: name.to_owned(),
        value: value.to_owned(),
        cause,
    };
    let file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(tree.sysctl_path(name));
    // In one call: the kernel takes each for a whole value.
    file.and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()))
        .map_err(refused)?;
    match tree.sysctl(name) {
        Now::Value(got) if got == one_line(value) => Ok(()),
        Now::Value(got) => Err(Failure::ReadBack {
            name: name.to_owned(),
            value: value.to_owned(),
            got,
        }),
        Now::Missing => Err(refused(io::ErrorKind::NotFound.into())),
        Now::Unreadable(cause) => Err(refused(cause)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::plan;
    use crate::profile::{reference, settings};
    use crate::setting::{Demand, Role};

    fn demands() -> impl Strategy<Value = Demand> {
        let roles = prop_oneof![Just(Role::Server), Just(Role::Client), Just(Role::Both)];
        (1_u64..10_000_000, roles).prop_map(|(connections, role)| Demand {
            connections,
            role,
            ..reference()
        })
    }

    /// Every setting at some value: its numbers are the first of `seed`, in order.
    fn fill(tree: &Tree, seed: &[u64]) {
        for (index, setting) in settings(Role::Both).iter().enumerate() {
            let mut numbers = seed[index..index + setting.default.len()].to_vec();
            numbers.sort_unstable();
            let text: Vec<_> = numbers.iter().map(u64::to_string).collect();
            let path = tree.sysctl_path(&setting.name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.join("\t") + "\n").unwrap();
        }
    }

    fn values(tree: &Tree) -> Vec<String> {
        let read = |name: &str| match tree.sysctl(name) {
            Now::Value(value) => value,
            other => panic!("{name}: {other:?}"),
        };
        settings(Role::Both)
            .iter()
            .map(|setting| read(&setting.name))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn whatever_was_applied_to_whatever_host_comes_back(
            seed in proptest::collection::vec(0_u64..40_000_000, 40),
            demands in proptest::collection::vec(demands(), 1..4),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let tree = Tree::at(dir.path());
            fill(&tree, &seed);
            let before = values(&tree);
            let file = StateFile::lock(&dir.path().join("state/tune.json")).unwrap();
            for demand in &demands {
                let state = apply(&tree, &file, &plan(&tree, demand), false).unwrap();
                prop_assert!(state.is_complete);
                let is_kept = |step: &Step| matches!(step.todo, Todo::Keep { .. });
                prop_assert!(plan(&tree, demand).iter().all(is_kept));
            }
            let reverted = revert(&tree, &file).unwrap();
            prop_assert!(reverted.iter().all(|reverted| !reverted.is_left));
            prop_assert_eq!(values(&tree), before);
            prop_assert_eq!(file.read().unwrap(), None);
        }
    }
}
