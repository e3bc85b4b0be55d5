//! io_uring made safe to hold.
//!
//! Every `unsafe` line about the ring lives in this crate, and nowhere else. What makes the face of it safe: the
//! kernel only ever reads or writes memory that this crate owns ([`RecvBuffers`], [`SendArena`], the
//! waiting sends of a [`Group`]), and that memory is given back only once the kernel has said it is done with it.
//!
//! A [`Group`] is all the rings one thread drives. Each ring has one table of direct descriptors, whose size
//! the kernel bounds by RLIMIT_NOFILE *per ring*: with several tables a thread holds more connections than
//! the process may open files.

mod buffers;
mod group;
mod lockdown;
mod operation;
pub mod probe;
mod ring;
mod table;
mod token;

pub use buffers::{BufferId, RecvBuffers, SendArena, Span};
pub use group::{Completion, Config, Descriptors, Group, Stats};
pub use lockdown::Uses;
pub use operation::Operation;
pub use probe::{Unavailable, direct_descriptors_release, probe};
pub use table::{Room, Table};
pub use token::{Op, Token};
