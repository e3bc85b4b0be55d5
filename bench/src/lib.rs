//! Holds, echoes and compares: io_uring beside an honest epoll, on one machine, in one interleaved run.
//!
//! | room | owns |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`scenario`], [`scenarios`] | what is run, as data; and by name |
//! | [`peer`] | servers of others, measured as an engine is |
//! | [`compare`] | the order of a run, and what becomes of a failure |
//! | [`hold`], [`echo`] | the two scenarios |
//! | [`floor`] | what the TCP stack alone costs, and each engine as a multiple of it |
//! | [`tail`] | latency in open loop beside idle connections |
//! | [`heartbeat`] | what a heartbeat costs, and how late it comes, on connections that are held |
//! | [`churn`] | what a connection costs that comes, exchanges a message and goes |
//! | [`faults`] | the command `faults`: what becomes of the others when something goes wrong |
//! | [`selfcheck`] | the method held against itself: the same engine under two names |
//! | [`rounds`], [`exchange`] | measured in random order, and one measurement |
//! | [`beside`], [`blocks`] | servers with idle connections, kept up over all rounds; those up at the same time |
//! | [`run`], [`usage`], [`clock`] | what surrounds every run, checks of its flags, and times as reports have them |
//! | [`climb`] | the command `hold`: connections brought up, held, exercised and closed |
//! | [`canary`] | the command `canary`: does the rest of the network suffer meanwhile? |
//! | [`memory`], [`bare`], [`footprint`] | the command `memory`: what a connection takes of the kernel, beside a bare socket |
//! | [`remote`] | two hosts: the commands `agent` and `remote`, and one clock for both |
//! | [`runner`], [`servers`], [`load`], [`crowd`] | the processes: started, pinned, followed, ended; none is left behind |
//! | [`sample`], [`series`] | what is read from the host and the processes, around a run and all through it |
//! | [`netns`] | network namespaces joined by veth pairs, for one run |
//! | [`stop`], [`lock`], [`guard`] | the bounds of a run: Ctrl-C, the clock, one heavy run for each machine, memory and files |
//! | [`result`], [`stats`], [`warning`] | plain data, the figures drawn from it, and the doubts about them |
//! | [`merge`] | the command `merge`: the parts of a fleet of clients, added up |
//! | [`diff`] | two reports of one command, held against each other |
//! | [`report`] | text, JSON, a page for the browser and Markdown, from [`result`] and its like alone |
//!
//! Every process measured is this program again (`throng-bench server …`, `throng-bench client …`), with its own pinned
//! cores; only what these processes print and write is read.

#![forbid(unsafe_code)]

pub mod bare;
pub mod beside;
pub mod blocks;
pub mod canary;
pub mod churn;
pub mod cli;
pub mod climb;
pub mod clock;
pub mod compare;
pub mod crowd;
pub mod diff;
pub mod echo;
pub mod exchange;
pub mod faults;
pub mod floor;
pub mod footprint;
pub mod guard;
pub mod heartbeat;
pub mod hold;
pub mod load;
pub mod lock;
pub mod memory;
pub mod merge;
pub mod netns;
pub mod peer;
pub mod remote;
pub mod report;
pub mod result;
pub mod rounds;
pub mod run;
pub mod runner;
pub mod sample;
pub mod scenario;
pub mod scenarios;
pub mod screen;
pub mod selfcheck;
pub mod series;
pub mod servers;
pub mod stats;
pub mod stop;
pub mod tail;
pub mod usage;
pub mod warning;
