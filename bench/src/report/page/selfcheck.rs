//! The page of the command `selfcheck`. Pure.

use super::Page;
use crate::report::selfcheck::{table, verdict};
use crate::selfcheck::result::Report;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = "Throng: the method held against itself".to_owned();
    let headline = verdict(report);
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    page.tables = vec![table(report)];
    page
}
