//! A result as text for the terminal and as JSON. Reads [`crate::result`] and nothing else.

pub mod format;
pub mod json;
pub mod side_by_side;
pub mod table;
pub mod text;
pub mod verdict;
