//! A server that holds very many long-lived TCP connections.
//!
//! [`start`] runs any [`wire::Session`] on a chosen engine, one pinned worker per core:
//!
//! ```no_run
//! use server::{Config, EngineKind};
//!
//! let config = Config::new("127.0.0.1:7000".parse()?, EngineKind::Uring, vec![0]);
//! let server = server::start(&config, |_publisher| || wire::Echo)?;
//! println!("listening on {}", server.address());
//! let ended = server.wait()?;
//! println!("{} connections were accepted", ended.stats.accepted);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod admission;
#[cfg(feature = "burn")]
pub mod burn;
pub mod canary;
pub mod cli;
pub mod config;
pub mod conn;
pub mod control;
pub mod ctl;
pub mod drain;
pub mod engine;
#[cfg(feature = "burn")]
pub mod faults;
mod guard;
pub mod inquiry;
pub mod listener;
pub mod log;
pub mod notify;
pub mod privileges;
pub mod sandbox;
pub mod schedule;
mod server;
pub mod stats;
pub mod summary;
pub mod takeover;
pub mod timeouts;
pub mod watchdog;
pub mod worker;

pub use config::Config;
pub use engine::EngineKind;
pub use server::{Ended, Server, StartError, start};
pub use worker::Publisher;
