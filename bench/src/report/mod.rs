//! A result as text for the terminal, as JSON, as a page for the browser and as Markdown. Reads plain data, [`crate::result`] and
//! its like, and nothing else. What a command's report is called and shown by is a line of [`Reported`].

pub mod canary;
pub mod chart;
pub mod churn;
pub mod climb;
pub mod diff;
pub mod faults;
pub mod floor;
pub mod format;
pub mod heartbeat;
pub mod html;
pub mod ink;
pub mod json;
pub mod markdown;
pub mod memory;
pub mod merge;
pub mod page;
pub mod recorded;
pub mod remote;
mod reported;
pub mod rounds;
pub mod selfcheck;
pub mod series;
pub mod side_by_side;
pub mod table;
pub mod tail;
pub mod text;
pub mod timeline;
pub mod verdict;

pub use reported::{COMMANDS, Reported, Shown};
