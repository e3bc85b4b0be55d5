//! The page of the command `memory`. Pure.

use super::Page;
use crate::memory::result::MemoryReport;
use crate::report::memory::{above, whole};

/// The page of `report`.
pub fn page(report: &MemoryReport) -> Page {
    let title = "Throng: memory of an idle connection".to_owned();
    let headline = "What an idle connection takes of the kernel, above a bare socket.".to_owned();
    let mut page = Page::of(&report.about, &[], title, headline);
    page.tables = vec![whole(report), above(report)];
    page
}
