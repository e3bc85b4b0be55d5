//! `throng-tune apply`: changes what is not as wanted, and keeps what it was.

use anyhow::bail;
use serde::Serialize;

use super::goal::Goal;
use super::place::Place;
use super::{Outcome, say, show};
use crate::apply::apply;
use crate::persist;
use crate::plan::{Step, Todo, plan};
use crate::state::{self, State, StateFile};

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune apply --connections 1000000 --dry-run
  sudo throng-tune apply --connections 1000000 --role server
  sudo throng-tune apply --persist                    and at every start of this host
  sudo throng-tune revert                             all of it back as it was

The originals are on the disk before the first setting is written. When one cannot be written, or
reads other than it was written, none is changed. A setting that is good already, a larger one
included, is left alone.

Exit codes: 0 all is as wanted, 10 but for what is not here or this process may not change,
1 failed and nothing is changed, 2 bad usage.";

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

    /// Print what was done as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let (demand, tree) = (args.goal.demand()?, args.place.tree());
    let steps = plan(&tree, &demand);
    if args.dry_run {
        return args.tell(&steps, "to change", None);
    }
    let forbidden = steps.iter().find_map(|step| match step.todo {
        Todo::Forbidden { why, .. } => Some(why),
        _ => None,
    });
    let changes = show::count(&steps, is_change);
    if let (0, Some(why)) = (changes, forbidden) {
        let (goal, place) = (args.goal.flags(), args.place.flags());
        let persist = if args.persist { " --persist" } else { "" };
        bail!(
            "nothing can be changed: {why}; as root of the host: sudo throng-tune apply{goal}{place}{persist}"
        );
    }
    let path = args.place.state();
    if changes == 0 && (!args.persist || state::read(&path)?.is_none()) {
        return args.tell(&steps, "changed", None);
    }
    let file = StateFile::lock(&path)?;
    // Again, as another may have held the lock until now.
    let steps = plan(&tree, &demand);
    let state = apply(&tree, &file, &steps, args.persist)?;
    args.tell(&steps, "changed", Some(&state))
}

fn is_change(todo: &Todo) -> bool {
    matches!(todo, Todo::Change { .. })
}

/// What was done, for programs.
#[derive(Debug, Serialize)]
struct Told<'a> {
    steps: &'a [Step],
    /// Nothing where nothing was changed.
    state: Option<&'a State>,
}

impl Args {
    /// Says what was done, which is `title`, and how it ended.
    fn tell(&self, steps: &[Step], title: &str, state: Option<&State>) -> anyhow::Result<Outcome> {
        if self.json {
            say(serde_json::to_string_pretty(&Told { steps, state })? + "\n");
        } else {
            say(show::plan(steps, &self.goal.demand()?, title) + &self.closing(state));
        }
        let is_left = |todo: &Todo| match todo {
            Todo::Forbidden { .. } => true,
            Todo::Unknown { is_needed, .. } => *is_needed,
            Todo::Keep { .. } | Todo::Change { .. } => false,
        };
        Ok(match self.dry_run || show::count(steps, is_left) == 0 {
            true => Outcome::Done,
            false => Outcome::Warned,
        })
    }

    fn closing(&self, state: Option<&State>) -> String {
        let kept = self.place.tree().path(persist::PATH);
        let kept = kept.display();
        match state {
            None if self.dry_run && self.persist => {
                format!("\nnothing was changed; {kept} would be written\n")
            }
            None => "\nnothing was changed\n".into(),
            Some(state) => {
                let mut text = format!("\noriginals: {}\n", self.place.state().display());
                if self.persist {
                    let count = state.changes.len();
                    text += &format!("at every start: {count} settings by {kept}\n");
                }
                text + &format!(
                    "take it back: sudo throng-tune revert{}\n",
                    self.place.flags()
                )
            }
        }
    }
}
