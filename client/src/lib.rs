//! Opens very many TCP connections, holds them, exercises them, and checks every byte that comes back.
//!
//! | room | owns |
//! |---|---|
//! | [`cli`] | from arguments to an exit code |
//! | [`config`] | flags to a validated [`config::Config`] |
//! | [`source`] | what `--source` means, and which source address and port connects to which target (pure) |
//! | [`outlook`] | how many connections that can be, and the tightest limit |
//! | [`part`] | which share of a fleet's connections, sources and rates is this client's (pure) |
//! | [`start`] | when it begins, where several begin together |
//! | [`shape`] | how many connections are asked for at a time (pure) |
//! | [`pace`] | how many connects may start now (pure) |
//! | [`backoff`] | how long to wait before a lost connection is made again (pure) |
//! | [`schedule`] | when each message is to be sent, in open loop (pure) |
//! | [`verify`] | what a connection must hear (pure) |
//! | `churn` | which connections churn (pure) |
//! | `origins` | by which assignments connections were made that may be made again (pure) |
//! | `conn` | what is remembered of one connection |
//! | `dial` | bound sockets, and what to do when a port is taken |
//! | `worker` | one pinned thread: its rings and its connections |
//! | `run`, `interrupts` | the phases, and the ends |
//! | `diagnosis` | what stopped a run short, in words |
//! | [`phases`] | what the host's counters did in each phase |
//! | `counters` | what workers tell while they run |
//! | `latency` | how long things took, as a worker records it |
//! | `tally`, `hlog` | that of all workers, by phase; and by interval, in a file |
//! | [`load`] | how busy the workers were |
//! | `rates` | what that is per second (pure) |
//! | [`canary`] | whether the rest of the network suffers meanwhile |
//! | [`summary`] | what was measured, merged |
//! | [`mergeable`], [`times`] | what a part of a fleet tells, so that the parts can be added up |
//! | `display`, `samples` | what a person and a program see of it |
//! | `tui` | the live view |
#![forbid(unsafe_code)]

pub mod backoff;
pub mod canary;
mod churn;
pub mod cli;
pub mod config;
mod conn;
mod counters;
mod diagnosis;
mod dial;
mod display;
mod hlog;
mod interrupts;
mod latency;
pub mod load;
pub mod mergeable;
mod origins;
pub mod outlook;
pub mod pace;
pub mod part;
pub mod phases;
mod rates;
mod run;
mod samples;
pub mod schedule;
pub mod shape;
pub mod source;
pub mod start;
pub mod summary;
mod tally;
pub mod times;
mod tui;
pub mod verify;
mod worker;
