//! Shortages: of room, of files, of memory, of buffers, of a peer's patience.
//!
//! As [`ends`](super::ends). Owns the control group that a server is put into, and removes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::ends::Took;
use super::holder::Holder;
use super::scene::Scene;

/// What a server's guard leaves free by default (`--memory-reserve`).
const RESERVE_BYTES: u64 = 64 << 20;

/// Clients that send and do not read, until the server has closed them all.
pub fn slow_readers(scene: &mut Scene<'_>, victims: u64) -> Took {
    let count = victims.to_string();
    let flags = ["--connections", &count, "--source", "127.6.0.1"];
    let flags = flags.map(str::to_owned).to_vec();
    let mut deaf = Holder::of_role("deaf-client", scene.stage, &scene.server, flags)?;
    scene.wait("the slow readers are connected", |scene| {
        deaf.has_ramped() && !scene.holds(scene.held)
    })?;
    let took = scene.held_at_most(scene.held)?;
    deaf.end();
    Ok((took, None))
}

/// Clients that connect at once while the server is stopped for a moment: until all are in.
pub fn accept_queue(scene: &mut Scene<'_>, victims: u64) -> Took {
    scene.server.signal(Signal::SIGSTOP);
    let victim = scene.crowd(victims, 1);
    std::thread::sleep(Duration::from_secs(1));
    scene.server.signal(Signal::SIGCONT);
    let mut victim = victim?;
    let took = scene.wait("all are in that waited", |scene| {
        victim.last().established == victims && scene.holds(scene.held + victims)
    })?;
    victim.reset();
    scene.held_at_most(scene.held)?;
    Ok((took, None))
}

/// Half of `victims` fills the server, the other half has no room, until the first half goes: from then until all of the
/// second half are served.
pub fn full(scene: &mut Scene<'_>, victims: u64) -> Took {
    let half = victims / 2;
    let first = scene.connected(half, &[])?;
    let mut second = scene.crowd(half, 2)?;
    std::thread::sleep(Duration::from_millis(1_500));
    if scene.holds(scene.held + victims) {
        let state = second.state();
        return Err(scene.failure(format!("there was room for all: {state}")));
    }
    let began = Instant::now();
    first.end();
    scene.wait("those are served that had no room", |scene| {
        second.last().messages >= half && scene.holds(scene.held + half)
    })?;
    let took = began.elapsed();
    second.reset();
    scene.held_at_most(scene.held)?;
    Ok((took, None))
}

/// A group almost at its limit: newcomers are refused; from when there is room again until all of them are in.
pub fn memory_group(scene: &mut Scene<'_>, victims: u64, group: &Group) -> Took {
    let broken = |scene: &Scene<'_>, error: io::Error| {
        scene.failure(format!(
            "the memory group {}: {error}",
            group.path.display()
        ))
    };
    let used = group.used().map_err(|error| broken(scene, error))?;
    group
        .limit(used + RESERVE_BYTES / 2)
        .map_err(|error| broken(scene, error))?;
    // The guard looks ten times a second where it is short, twice where it is not.
    std::thread::sleep(Duration::from_millis(700));
    let mut newcomers = scene.victims(victims, &["--reconnect", "50ms..1s"])?;
    scene.wait("newcomers are refused", |_| {
        newcomers.has_ramped() && newcomers.last().lost >= victims
    })?;
    group
        .limit(u64::MAX)
        .map_err(|error| broken(scene, error))?;
    let began = Instant::now();
    let mut since = (began, 0);
    // Who is let in stays in.
    scene.wait("newcomers are let in", |_| {
        let now = newcomers.last();
        if now.established < victims || now.lost != since.1 {
            since = (Instant::now(), now.lost);
        }
        since.0.elapsed() > Duration::from_millis(500)
    })?;
    let took = since.0.saturating_duration_since(began);
    newcomers.reset();
    scene.held_at_most(scene.held)?;
    Ok((took, None))
}

/// A memory control group made for one run. Its processes have to have ended when it is dropped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    limit: &'static str,
    used: &'static str,
}

impl Group {
    /// Makes one, of version 2 where that has a memory controller, else of version 1.
    ///
    /// # Errors
    /// Why there is none.
    pub fn make() -> Result<Self, String> {
        let name = format!("throng-faults-{}", std::process::id());
        let is_v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|controllers| controllers.split(' ').any(|one| one.trim() == "memory"));
        let (root, limit, used) = match is_v2 {
            true => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            false => (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
        };
        let path = Path::new(root).join(name);
        let group = Self {
            path: path.clone(),
            limit,
            used,
        };
        fs::create_dir(&path)
            .and_then(|()| fs::metadata(path.join(limit)))
            .map_err(|error| {
                let path = path.display();
                format!("no memory control group can be made at {path} ({error}): it needs root, and a memory controller")
            })?;
        Ok(group)
    }

    /// What a process says to itself, in a shell, to be in it.
    pub fn join(&self) -> String {
        let path = self.path.display();
        format!("echo $$ > {path}/cgroup.procs && exec \"$@\"")
    }

    fn used(&self) -> io::Result<u64> {
        let text = fs::read_to_string(self.path.join(self.used))?;
        text.trim().parse().map_err(io::Error::other)
    }

    fn limit(&self, bytes: u64) -> io::Result<()> {
        let words = match bytes {
            u64::MAX if self.limit == "memory.max" => "max".to_owned(),
            u64::MAX => "-1".to_owned(),
            bytes => bytes.to_string(),
        };
        fs::write(self.path.join(self.limit), words)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty but for a moment after its last process has ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
