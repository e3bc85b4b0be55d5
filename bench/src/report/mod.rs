//! A result as text for the terminal and as JSON. Reads plain data, [`crate::result`] and its like, and nothing else.

pub mod canary;
pub mod churn;
pub mod climb;
pub mod floor;
pub mod format;
pub mod json;
pub mod memory;
pub mod rounds;
pub mod selfcheck;
pub mod side_by_side;
pub mod table;
pub mod tail;
pub mod text;
pub mod verdict;
