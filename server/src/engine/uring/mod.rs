//! The io_uring engine: [`driver`] moves completions and operations between the rings and two pure parts, the
//! [`machine`] of each table and the worker's [`acceptor`].

pub mod acceptor;
mod driver;
pub mod machine;
#[cfg(test)]
mod overflow;
mod peers;
mod rings;
#[cfg(test)]
mod simulation;

pub use driver::Uring;
