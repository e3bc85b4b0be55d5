//! The limits of a host: what they are now, what they did to a run, and which one stopped it.
//!
//! | module | owns |
//! |---|---|
//! | [`host`] | reading `/proc` and `/sys`: memory, sockets, counters, sysctls, the environment of a result |
//! | [`process`] | one process: its open-file limit, CPUs, memory and CPU time |
//! | [`profile`] | the settings that matter, from `profiles/*.conf` |
//! | [`setting`] | one setting: what it should be for a demand, and what that makes of its value |
//! | [`formula`] | the arithmetic of the profiles |
//! | [`check`] | the doctor: what is in the way, and what changes that |
//! | [`explain`] | what a setting or counter means |
//! | [`watch`] | the counters as they move |
//! | [`addresses`] | further source addresses; with what applies settings, all that changes the host |
//! | [`cli`] | the command `throng-tune` |
//! | [`limit`] | from an errno and what the host said at that moment to a named limit and the command that raises it |
//!
//! It knows nothing of connections, rings or engines. Nothing here changes a host-wide setting; the only things
//! written are properties of the calling process (its soft open-file limit, CPU mask and OOM score).

#![forbid(unsafe_code)]

pub mod addresses;
mod cgroup;
pub mod check;
pub mod cli;
mod counters;
mod environment;
mod evidence;
pub mod explain;
mod footprint;
pub mod formula;
pub mod host;
mod interface;
pub mod limit;
pub mod process;
pub mod profile;
pub mod setting;
mod table;
pub mod watch;
