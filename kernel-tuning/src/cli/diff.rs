//! `throng-tune diff`: what `apply` would change, and why.

use super::goal::Goal;
use super::place::Place;
use super::{Outcome, say, show};
use crate::plan::{Todo, plan};

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune diff --connections 1000000 --role server
  throng-tune diff --port 80 --port 9000-9010 --json

Exit codes: 0 nothing is to be changed, 10 something is, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    goal: Goal,

    #[command(flatten)]
    place: Place,

    /// Print every setting as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let demand = args.goal.demand()?;
    let steps = plan(&args.place.tree(), &demand);
    let is_to_do = |todo: &Todo| matches!(todo, Todo::Change { .. } | Todo::Forbidden { .. });
    let changes = show::count(&steps, is_to_do);
    if args.json {
        say(serde_json::to_string_pretty(&steps)? + "\n");
    } else {
        say(show::plan(&steps, &demand, "to change"));
        if changes > 0 {
            let (goal, place) = (args.goal.flags(), args.place.flags());
            say(format_args!(
                "\nchange it: sudo throng-tune apply{goal}{place}\n"
            ));
        }
    }
    Ok(match changes {
        0 => Outcome::Done,
        _ => Outcome::Warned,
    })
}
