//! Ends that come all at once: of clients, of servers, and pauses.
//!
//! Each function does its fault to a scene once, and gives how long it took until all was as before, and until another
//! server was ready where one took the place of the first.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::holder::Holder;
use super::scene::Scene;
use crate::result::Failure;

/// What a fault took.
pub type Took = Result<(Duration, Option<Duration>), Failure>;

/// How long a server is stopped.
const STOPPED: Duration = Duration::from_secs(3);

/// A client with `victims` connections is killed.
pub fn client_kill(scene: &mut Scene<'_>, victims: u64) -> Took {
    let client = scene.connected(victims, &[])?;
    client.kill();
    Ok((scene.held_at_most(scene.held)?, None))
}

/// A client resets its `victims` connections.
pub fn resets(scene: &mut Scene<'_>, victims: u64) -> Took {
    let client = scene.connected(victims, &[])?;
    client.reset();
    Ok((scene.held_at_most(scene.held)?, None))
}

/// As [`resets`], of connections that all talk.
pub fn resets_while_talking(scene: &mut Scene<'_>, victims: u64) -> Took {
    talking(scene, victims)?.reset();
    Ok((scene.held_at_most(scene.held)?, None))
}

/// The same while the server is stopped: it finds all resets at once when it goes on.
pub fn resets_met_at_once(scene: &mut Scene<'_>, victims: u64) -> Took {
    let client = talking(scene, victims)?;
    scene.server.signal(Signal::SIGSTOP);
    client.reset();
    client.end();
    scene.server.signal(Signal::SIGCONT);
    Ok((scene.held_at_most(scene.held)?, None))
}

/// A client whose `victims` connections all talk.
fn talking(scene: &mut Scene<'_>, victims: u64) -> Result<Holder, Failure> {
    let active = victims.to_string();
    let mut client = scene.connected(victims, &["--active", &active])?;
    scene.wait("each of those that are to be hit has talked", |_| {
        client.last().messages >= 2 * victims
    })?;
    Ok(client)
}

/// `victims` clients are dropped at once, and as many come at once: until all of them are in.
pub fn storm(scene: &mut Scene<'_>, victims: u64) -> Took {
    let dropped = scene.connected(victims, &[])?;
    dropped.kill();
    let mut back = scene.crowd(victims, 3)?;
    let took = scene.wait("all have come back", |scene| {
        back.last().established == victims && scene.holds(scene.held + victims)
    })?;
    back.reset();
    drop(dropped);
    scene.held_at_most(scene.held)?;
    Ok((took, None))
}

/// The server is stopped for a while, and goes on.
pub fn stopped(scene: &mut Scene<'_>) -> Took {
    scene.server.signal(Signal::SIGSTOP);
    std::thread::sleep(STOPPED);
    scene.server.signal(Signal::SIGCONT);
    // All that became due meanwhile is caught up with.
    let owed = scene.plan.message_rate * STOPPED.as_secs();
    let enough = scene.outside.last().messages + owed;
    let took = scene.wait("what was put off has been said", |scene| {
        scene.outside.last().messages >= enough
    })?;
    Ok((took, None))
}

/// The server is killed, and another is started on its port: until all have come back.
pub fn server_kill(scene: &mut Scene<'_>) -> Took {
    let began = Instant::now();
    scene.server.signal(Signal::SIGKILL);
    let server = scene.another(false)?;
    let ready = began.elapsed();
    let moved = scene.move_to(server, true)?;
    Ok((ready + moved, Some(ready)))
}

/// The server is told to end, and another is started on its port.
pub fn drain(scene: &mut Scene<'_>) -> Took {
    let began = Instant::now();
    scene.server.signal(Signal::SIGTERM);
    let server = scene.another(false)?;
    let ready = began.elapsed();
    let moved = scene.move_to(server, false)?;
    Ok((ready + moved, Some(ready)))
}

/// Another server takes over from the one that runs, by its control socket.
pub fn takeover(scene: &mut Scene<'_>) -> Took {
    let began = Instant::now();
    let server = scene.another(true)?;
    let ready = began.elapsed();
    let moved = scene.move_to(server, false)?;
    Ok((ready + moved, Some(ready)))
}
