//! `throng-tune revert`: everything as it was before the first `apply`.

use super::place::Place;
use super::{Outcome, say, show};
use crate::apply::{Reverted, revert};
use crate::state::{self, StateFile};

pub(super) const EXAMPLES: &str = "\
Examples:
  sudo throng-tune revert

After an apply that was killed half-way, and after several of them, it goes back to what was before the first. What somebody
else changed since is left to them, and said.

Exit codes: 0 done, 10 something was left to somebody else, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let path = args.place.state();
    if state::read(&path)?.is_none() {
        say(format_args!("nothing is changed (no {})\n", path.display()));
        return Ok(Outcome::Done);
    }
    let reverted = revert(&args.place.tree(), &StateFile::lock(&path)?)?;
    for Reverted {
        name,
        original,
        found,
        is_left,
    } in &reverted
    {
        let original = show::shown(original);
        match found {
            None => say(format_args!(
                "  {name}: not here any more; it was {original}\n"
            )),
            Some(found) if *is_left => say(format_args!(
                "  {name}: left at {}, which somebody else gave it; its original: sudo sysctl -w {name}='{original}'\n",
                show::shown(found)
            )),
            Some(found) if found == original => {
                say(format_args!("  {name}: was {original} already\n"))
            }
            Some(found) => say(format_args!(
                "  {name}: {} -> {original}\n",
                show::shown(found)
            )),
        }
    }
    Ok(match reverted.iter().any(|reverted| reverted.is_left) {
        false => Outcome::Done,
        true => Outcome::Warned,
    })
}
