//! The page of the command `tail`. Pure.

use super::Page;
use crate::report::tail::table;
use crate::tail::result::Report;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = "Throng: latency in open loop".to_owned();
    let headline = "Latency counts from when a message was to be sent.".to_owned();
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    page.tables = vec![table(report)];
    page
}
