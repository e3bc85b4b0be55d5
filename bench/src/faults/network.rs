//! Peers that vanish: within namespaces made for it.
//!
//! As [`ends`](super::ends).

use std::time::Instant;

use super::ends::Took;
use super::holder::Holder;
use super::scene::Scene;
use crate::netns::Joined;

/// A server finds out within a heartbeat and the second of these. Whoever answers heartbeats is never probed: probes to very
/// many at once are a load that answers to some come too late in.
pub const FLAGS: [&str; 4] = ["--keepalive", "10s", "--user-timeout", "8s"];

/// Where those connect from that stay.
pub const OUTSIDE_SOURCE: &str = "10.78.0.0/17";
/// Where those connect from that vanish: half of the client's network.
const VANISHING_SOURCE: &str = "10.78.128.0/17";

/// Everything to and from `victims` peers is dropped, without a word, until the server has given all of them up.
pub fn half_open(scene: &mut Scene<'_>, victims: u64, joined: &Joined) -> Took {
    let heartbeat = ["--heartbeat", "0"].map(str::to_owned);
    let mut gone = Holder::start(
        scene.stage,
        &scene.server,
        victims,
        VANISHING_SOURCE,
        &heartbeat,
    )?;
    scene.wait("those are connected that are to vanish", |_| {
        gone.has_ramped() && gone.last().established == victims
    })?;
    let refused = |scene: &Scene<'_>, why: crate::netns::Refusal| scene.failure(why.to_string());
    let route = format!("{VANISHING_SOURCE} table local");
    joined
        .client
        .ip(&format!("route add blackhole {route}"))
        .map_err(|why| refused(scene, why))?;
    let began = Instant::now();
    let back = scene.held_at_most(scene.held);
    let took = began.elapsed();
    joined
        .client
        .ip(&format!("route del blackhole {route}"))
        .map_err(|why| refused(scene, why))?;
    back?;
    gone.end();
    Ok((took, None))
}
