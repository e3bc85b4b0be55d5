//! The command `merge`: one report of what all parts of a fleet of clients measured.
//!
//! | room | owns |
//! |---|---|
//! | [`parts`] | the files: read, and held against each other |
//! | [`clocks`] | how far the clocks of the hosts are apart |
//! | [`sum`] | the parts added up (pure) |
//! | [`result`] | what came of it, as plain data |
//!
//! Starts nothing and measures nothing. Invariant: what is in no part is in no report, and what is in a part is in it once.

pub mod clocks;
pub mod parts;
pub mod result;
pub mod sum;

use std::path::PathBuf;

use clap::Args;

use crate::merge::clocks::Clocks;
use crate::merge::parts::Fleet;
use crate::merge::result::Report;
use crate::screen::Screen;

/// The flags.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// What each part wrote with --json
    #[arg(value_name = "PART.json", required = true)]
    files: Vec<PathBuf>,
    /// Make a report though parts are missing or failed, and of the first file's run alone; what is not in it is named
    #[arg(long, help_heading = "What is merged")]
    partial: bool,
    /// How far the clock of each part's host is ahead: lines of PART OFFSET_US UNCERTAINTY_US, as deploy/fleet/pdsh.sh writes
    #[arg(long, value_name = "FILE", help_heading = "What is merged")]
    clocks: Option<PathBuf>,

    /// Where to write the report as JSON: all that is printed and more
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/throng/merge.json",
        help_heading = "Output"
    )]
    pub report: PathBuf,
}

/// What is to be added up.
#[derive(Debug)]
pub struct Plan {
    fleet: Fleet,
    clocks: Clocks,
}

impl MergeArgs {
    /// The parts that the flags name, which are of one run.
    ///
    /// # Errors
    /// Each file that cannot be merged, and why.
    pub fn plan(&self) -> Result<Plan, String> {
        let clocks = self.clocks.as_deref().map(clocks::read).transpose()?;
        Ok(Plan {
            fleet: Fleet::read(&self.files, self.partial)?,
            clocks: clocks.unwrap_or_default(),
        })
    }
}

/// Adds up what `plan` has.
///
/// # Errors
/// Two parts' histograms are of different forms.
pub fn run(plan: Plan, command_line: Vec<String>, _: &Screen) -> Result<Report, String> {
    sum::report(&plan.fleet, &plan.clocks, command_line)
}
