//! `throng-tune diff`: what `apply` would change.

use super::goal::Goal;
use super::{Outcome, say};
use crate::host::sysctl;
use crate::profile;
use crate::setting::wanted;

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune diff --connections 1000000 --role server
  throng-tune diff --port 80 --port 9000-9010

Exit codes: 0 nothing is to be changed, 10 something is, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    goal: Goal,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let demand = args.goal.demand()?;
    let mut outcome = Outcome::Done;
    for setting in profile::settings(demand.role) {
        let wanted = wanted(&setting, &demand);
        let Ok(now) = sysctl(&setting.name) else {
            continue;
        };
        if !wanted.is_met(&now)? {
            say(format_args!(
                "{}: {now} -> {}\n",
                setting.name,
                wanted.adjusted(&now)?
            ));
            outcome = Outcome::Warned;
        }
    }
    Ok(outcome)
}
