//! `throng-tune revert`: everything as it was before the first `apply`.

use super::place::Place;
use super::{Outcome, say, show};
use crate::apply::{Reverted, revert};
use crate::state::{self, StateFile};

pub(super) const EXAMPLES: &str = "\
Examples:
  sudo throng-tune revert

After an apply that was killed half-way, and after several of them, it goes back to what was before
the first. What somebody else changed since is left to them, and said.

Exit codes: 0 done, 10 something was left to somebody else, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,

    /// Print what became of each setting as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let path = args.place.state();
    let reverted = match state::read(&path)? {
        None => Vec::new(),
        Some(_) => revert(&args.place.tree(), &StateFile::lock(&path)?)?,
    };
    if args.json {
        say(serde_json::to_string_pretty(&reverted)? + "\n");
    } else if reverted.is_empty() {
        say(format_args!("nothing is changed (no {})\n", path.display()));
    } else {
        reverted.iter().for_each(|reverted| say(line(reverted)));
    }
    Ok(match reverted.iter().any(|reverted| reverted.is_left) {
        false => Outcome::Done,
        true => Outcome::Warned,
    })
}

fn line(reverted: &Reverted) -> String {
    let Reverted {
        name,
        original,
        found,
        is_left,
    } = reverted;
    let original = show::shown(original);
    match found.as_deref().map(show::shown) {
        None => format!("  {name}: not here any more; it was {original}\n"),
        Some(found) if *is_left => format!(
            "  {name}: left at {found}, which somebody else gave it; its original: sudo sysctl -w {name}='{}'\n",
            reverted.original
        ),
        Some(found) if found == original => format!("  {name}: was {original} already\n"),
        Some(found) => format!("  {name}: {found} -> {original}\n"),
    }
}
