//! A result as text for the terminal and as JSON. Reads [`crate::result`] and nothing else.

pub mod churn;
pub mod floor;
pub mod format;
pub mod json;
pub mod rounds;
pub mod side_by_side;
pub mod table;
pub mod tail;
pub mod text;
pub mod verdict;
