//! Holds, echoes and compares: io_uring beside an honest epoll, on one machine, in one interleaved run.
//!
//! | room | owns |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`scenario`] | what is run, as data |
//! | [`compare`] | the order of a run, and what becomes of a failure |
//! | [`hold`], [`echo`] | the two scenarios |
//! | [`floor`] | what the TCP stack alone costs, and each engine as a multiple of it |
//! | [`tail`] | latency in open loop beside idle connections |
//! | [`churn`] | what a connection costs that comes, exchanges a message and goes |
//! | [`rounds`], [`exchange`] | measured in random order, and one measurement |
//! | [`beside`] | servers with idle connections, kept up over all rounds |
//! | [`run`], [`usage`] | what surrounds every run, and checks of its flags |
//! | [`runner`], [`servers`], [`load`] | the processes: started, pinned, followed, ended; none is left behind |
//! | [`sample`] | what is read from the host and the processes |
//! | [`stop`], [`lock`] | the bounds of a run: Ctrl-C, the clock, one heavy run for each machine |
//! | [`result`], [`stats`], [`warning`] | plain data, the figures drawn from it, and the doubts about them |
//! | [`report`] | text and JSON, from [`result`] alone |
//!
//! Every process measured is this program again (`throng-bench server …`, `throng-bench client …`), with its own pinned
//! cores; only what these processes print and write is read.

#![forbid(unsafe_code)]

pub mod beside;
pub mod churn;
pub mod cli;
pub mod compare;
pub mod echo;
pub mod exchange;
pub mod floor;
pub mod hold;
pub mod load;
pub mod lock;
pub mod report;
pub mod result;
pub mod rounds;
pub mod run;
pub mod runner;
pub mod sample;
pub mod scenario;
pub mod screen;
pub mod servers;
pub mod stats;
pub mod stop;
pub mod tail;
pub mod usage;
pub mod warning;
