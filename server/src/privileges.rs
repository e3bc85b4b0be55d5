//! Who the process is once its ports are bound: an ordinary user, for good.
//!
//! Owns: the change of identity, for all threads at once (the C library sees to that). Invariant: after
//! [`Identity::assume`] nothing of what was given up can be had again, which is tried and not assumed.

use std::io;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Group, Uid, User, getegid, geteuid, getgroups, getresgid, getresuid, setgroups, setresgid,
    setresuid,
};
use thiserror::Error;

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: Uid,
    /// Its only group.
    pub gid: Gid,
}

/// Why an identity could not be taken on.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    /// The kernel refuses a step.
    #[error(
        "{call} failed: {errno}; dropping privileges needs CAP_SETUID and CAP_SETGID: start as root, or without --user"
    )]
    Refused {
        /// The call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// What was given up is still there.
    #[error("privileges were dropped and {0} is still there: the server does not start")]
    Kept(&'static str),
}

impl Identity {
    /// Takes on this identity in place of the present one.
    ///
    /// # Errors
    /// Which step the kernel refuses, or what can still be had again.
    pub fn assume(self) -> Result<(), PrivilegeError> {
        if (geteuid(), getegid()) == (self.uid, self.gid) && !geteuid().is_root() {
            return Ok(());
        }
        let refused = |call| move |errno| PrivilegeError::Refused { call, errno };
        // The groups first: without the user's rights they could not be changed any more.
        setgroups(&[self.gid]).map_err(refused("setgroups"))?;
        setresgid(self.gid, self.gid, self.gid).map_err(refused("setresgid"))?;
        setresuid(self.uid, self.uid, self.uid).map_err(refused("setresuid"))?;
        self.verify()
    }

    fn verify(self) -> Result<(), PrivilegeError> {
        let kept = |is_kept, what| match is_kept {
            true => Err(PrivilegeError::Kept(what)),
            false => Ok(()),
        };
        let users = getresuid().map(|r| [r.real, r.effective, r.saved]);
        kept(users != Ok([self.uid; 3]), "a former user")?;
        let groups = getresgid().map(|r| [r.real, r.effective, r.saved]);
        kept(groups != Ok([self.gid; 3]), "a former group")?;
        kept(
            getgroups().as_deref() != Ok(&[self.gid]),
            "a former supplementary group",
        )?;
        let root = Uid::from_raw(0);
        kept(setresuid(root, root, root).is_ok(), "the way back to root")?;
        kept(has_capabilities().unwrap_or(true), "a capability")
    }
}

/// Whether this thread may do more than an ordinary user (capabilities(7)).
fn has_capabilities() -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let is_some = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.is_none_or(|mask| !mask.trim().trim_start_matches('0').is_empty())
    };
    Ok(is_some("CapPrm:") || is_some("CapEff:") || is_some("CapAmb:"))
}

impl std::str::FromStr for Identity {
    type Err = String;

    /// `NAME` or `UID`, with the group of the user's account, or `:GROUP` or `:GID` behind it.
    fn from_str(text: &str) -> Result<Identity, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let account = match user.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(user),
        };
        let account = account.map_err(|errno| format!("looking `{user}` up: {errno}"))?;
        let uid = match (&account, user.parse()) {
            (Some(account), _) => account.uid,
            (None, Ok(uid)) => Uid::from_raw(uid),
            (None, Err(_)) => {
                return Err(format!("there is no user `{user}`: see `getent passwd`"));
            }
        };
        let gid = match (group, account) {
            (None, Some(account)) => account.gid,
            (None, None) => {
                return Err(format!(
                    "user {user} has no account to take a group from: give {user}:GID"
                ));
            }
            (Some(group), _) => match group.parse() {
                Ok(gid) => Gid::from_raw(gid),
                Err(_) => {
                    Group::from_name(group)
                        .map_err(|errno| format!("looking `{group}` up: {errno}"))?
                        .ok_or_else(|| format!("there is no group `{group}`: see `getent group`"))?
                        .gid
                }
            },
        };
        match uid.is_root() {
            true => Err("root is what is to be given up: name an ordinary user".into()),
            false => Ok(Identity { uid, gid }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_and_root_is_none() {
        let identity = |uid, gid| {
            Ok(Identity {
                uid: Uid::from_raw(uid),
                gid: Gid::from_raw(gid),
            })
        };
        assert_eq!(
            "4000001:4000002".parse::<Identity>(),
            identity(4_000_001, 4_000_002)
        );
        assert_eq!("4000001:root".parse::<Identity>(), identity(4_000_001, 0));
        for (wrong, why) in [
            ("4000001", "give 4000001:GID"),
            ("root", "ordinary"),
            ("0:1", "ordinary"),
            ("no-such-user", "getent passwd"),
            ("4000001:no-such-group", "getent group"),
        ] {
            let said = wrong.parse::<Identity>().unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }
}
