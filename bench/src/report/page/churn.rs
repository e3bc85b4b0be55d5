//! The page of the command `churn`. Pure.

use super::Page;
use crate::churn::Report;
use crate::report::churn::table;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let title = "Throng: connections that come and go".to_owned();
    let headline = "What a connection costs that comes, exchanges a message and goes.".to_owned();
    let mut page = Page::of(&report.about, &report.warnings, title, headline);
    page.tables = vec![table(report)];
    page
}
