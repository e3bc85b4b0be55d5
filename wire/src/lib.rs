//! What is said on a connection.
//!
//! A [`Session`] is one connection's half of a protocol: it is handed bytes and says what to answer.
//! It knows neither sockets nor clocks nor buffers of its own, so the same session runs unchanged on
//! every engine, and its tests need no kernel. Everything here touches memory only.
#![forbid(unsafe_code)]

pub mod echo;
pub mod line;
mod session;

pub use echo::Echo;
pub use line::Line;
pub use session::{Close, Out, Session};
