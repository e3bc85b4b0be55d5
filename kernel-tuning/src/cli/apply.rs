//! `throng-tune apply`: changes what is not as wanted, and keeps what it was.

use anyhow::bail;

use super::goal::Goal;
use super::place::Place;
use super::{Outcome, say, show};
use crate::apply::apply;
use crate::persist;
use crate::plan::{Todo, plan};
use crate::state::StateFile;

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune apply --connections 1000000 --dry-run
  sudo throng-tune apply --connections 1000000 --role server
  sudo throng-tune apply --persist                    and at every start of this host
  sudo throng-tune revert                             all of it back as it was

The originals are on the disk before the first setting is written. When one cannot be written, or reads other than it was
written, none is changed. A setting that is good already, a larger one included, is left alone.

Exit codes: 0 all is as wanted, 10 what is not here or this process may not change is not, 1 failed and nothing is changed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    goal: Goal,

    #[command(flatten)]
    place: Place,

    /// Show what would be changed, and change nothing
    #[arg(long, help_heading = "How")]
    dry_run: bool,

    /// Write /etc/sysctl.d/90-throng.conf too, which gives the settings these values at every start
    #[arg(long, help_heading = "How")]
    persist: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let (demand, tree) = (args.goal.demand()?, args.place.tree());
    let steps = plan(&tree, &demand);
    let is_change = |todo: &Todo| matches!(todo, Todo::Change { .. });
    let is_left = |todo: &Todo| {
        matches!(
            todo,
            Todo::Forbidden { .. }
                | Todo::Unknown {
                    is_needed: true,
                    ..
                }
        )
    };
    let changes = show::count(&steps, is_change);
    let forbidden = steps.iter().find_map(|step| match step.todo {
        Todo::Forbidden { why, .. } => Some(why),
        _ => None,
    });
    if args.dry_run {
        say(show::plan(&steps, &demand));
        if args.persist {
            say(format_args!(
                "\nwould write {}\n",
                tree.path(persist::PATH).display()
            ));
        }
        say("\nnothing was changed\n");
        return Ok(Outcome::Done);
    }
    if let (0, Some(why)) = (changes, forbidden) {
        let (goal, place) = (args.goal.flags(), args.place.flags());
        let persist = if args.persist { " --persist" } else { "" };
        bail!(
            "nothing can be changed: {why}; as root of the host: sudo throng-tune apply{goal}{place}{persist}"
        );
    }
    if changes > 0 || args.persist {
        let file = StateFile::lock(&args.place.state())?;
        // Again, as another may have held the lock until now.
        let steps = plan(&tree, &demand);
        let state = apply(&tree, &file, &steps, args.persist)?;
        say(show::plan(&steps, &demand).replace("\nto change\n", "\nchanged\n"));
        say(format_args!("\noriginals: {}\n", file.path().display()));
        if args.persist {
            say(format_args!(
                "at every start: {} settings of {}\n",
                state.changes.len(),
                tree.path(persist::PATH).display()
            ));
        }
        say(format_args!(
            "take it back: sudo throng-tune revert{}\n",
            args.place.flags()
        ));
    } else {
        say(show::plan(&steps, &demand));
    }
    Ok(match show::count(&steps, is_left) {
        0 => Outcome::Done,
        _ => Outcome::Warned,
    })
}
