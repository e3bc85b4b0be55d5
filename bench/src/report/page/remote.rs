//! The page of the command `remote`. Pure.

use super::Page;
use crate::remote::result::Report;
use crate::report::format::{count, join};
use crate::report::remote::{HOW_CPU_COUNTS, clocks, memory, phases};

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let (connections, targets) = (count(report.plan.connections), join(&report.plan.targets));
    let title = format!("Throng: {connections} connections to {targets}, both hosts watched");
    let mut page = Page::of(&report.about, &[], title, clocks(report));
    page.doubts = report.warnings.iter().map(ToString::to_string).collect();
    if !report.phases.is_empty() {
        page.tables.push(phases(&report.phases));
        page.notes.push(HOW_CPU_COUNTS.to_owned());
    }
    page.tables.extend(memory(report));
    page
}
