//! Which processes are the server: named by an id, or by the port that they listen on.

use std::collections::HashSet;

use procfs::net::{TcpState, tcp, tcp6};
use procfs::process::{FDTarget, Process, all_processes};

use crate::remote::protocol::Watched;

/// Whom to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The process of this id.
    Pid(u32),
    /// All that have a socket listening on this port, in this network namespace.
    Port(u16),
}

impl Whom {
    /// Those there are now. Where they are named by a port, this lists the open files of every process that may be seen:
    /// it is for before a load, not for during one.
    ///
    /// # Errors
    /// There is none: why, and what to do about it.
    pub fn find(self) -> Result<Vec<Watched>, String> {
        match self {
            Self::Pid(pid) => {
                let found = i32::try_from(pid)
                    .ok()
                    .and_then(|pid| Process::new(pid).ok());
                let found = found.and_then(|process| named(&process));
                let gone = || {
                    format!(
                        "there is no process {pid}: name one that runs with --pid, or the server's port with --port"
                    )
                };
                Ok(vec![found.ok_or_else(gone)?])
            }
            Self::Port(port) => listening_on(port),
        }
    }
}

/// `None` when it has ended.
fn named(process: &Process) -> Option<Watched> {
    let stat = process.stat().ok()?;
    let pid = u32::try_from(stat.pid).ok()?;
    let name = stat.comm;
    // A zombie is waited for, and does nothing any more.
    (stat.state != 'Z').then_some(Watched { pid, name })
}

fn listening_on(port: u16) -> Result<Vec<Watched>, String> {
    let listed = tcp().map_err(|error| format!("cannot list the sockets of this host: {error}"))?;
    // A host without IPv6 has no such list.
    let sockets: HashSet<u64> = listed
        .into_iter()
        .chain(tcp6().unwrap_or_default())
        .filter(|socket| socket.state == TcpState::Listen && socket.local_address.port() == port)
        .map(|socket| socket.inode)
        .collect();
    if sockets.is_empty() {
        return Err(format!(
            "nobody listens on port {port} in this network namespace: start the server first, and see: ss -ltn"
        ));
    }
    let has_one = |process: &Process| {
        let files = process.fd().into_iter().flatten().flatten();
        let mut targets = files.map(|file| file.target);
        targets.any(|target| matches!(target, FDTarget::Socket(inode) if sockets.contains(&inode)))
    };
    let all = all_processes().map_err(|error| format!("cannot list the processes: {error}"))?;
    let found: Vec<Watched> = all
        .flatten()
        .filter(has_one)
        .filter_map(|process| named(&process))
        .collect();
    if found.is_empty() {
        return Err(format!(
            "a process listens on port {port}, and this user may not see which: run the agent as root or as the server's \
             user, or name the process with --pid"
        ));
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_listens_is_found_and_nobody_is_told() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let found = Whom::Port(port).find().unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].pid, std::process::id());
            assert_eq!(Whom::Pid(found[0].pid).find().unwrap(), found);
            drop(listener);
            let refused = Whom::Port(port).find().unwrap_err();
            assert!(refused.contains(&format!("nobody listens on port {port}")));
        }
        let refused = Whom::Pid(u32::MAX).find().unwrap_err();
        assert!(refused.contains("no process 4294967295") && refused.contains("--port"));
    }
}
