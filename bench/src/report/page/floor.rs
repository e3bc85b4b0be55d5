//! The page of the command `floor`. Pure.

use super::Page;
use crate::floor::result::Report;
use crate::report::floor::{multiples, table};
use crate::screen::Paint;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = "Throng: the engines against the floor of the TCP stack".to_owned();
    let headline = multiples(report, Paint::plain());
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    page.tables = vec![table(report)];
    page
}
