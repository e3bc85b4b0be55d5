//! `throng-tune addresses`: more source addresses, added, removed and listed.

use clap::Subcommand;

use super::{Outcome, UsageError, say};
use crate::addresses::{AddressError, Owned, Spec, add, list, named, plan, remove};

pub(super) const EXAMPLES: &str = "\
Examples:
  sudo throng-tune addresses add 10.9.0.0/16                              a whole network, local at once (AnyIP)
  sudo throng-tune addresses add 192.0.2.10-192.0.2.90 --interface eth0   single addresses on an interface
  throng-tune addresses list
  sudo throng-tune addresses remove                                       all that was added, and nothing else

They last until the host restarts. Another host needs a route back to them: ip route add 10.9.0.0/16 via THIS_HOST.
Exit codes: 0 done, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add what is not there yet
    Add {
        /// An address, a CIDR or FIRST-LAST
        #[arg(required = true, value_name = "ADDRESSES")]
        specs: Vec<Spec>,
        #[command(flatten)]
        how: How,
    },
    /// Remove what `add` added
    Remove {
        /// An address, a CIDR or FIRST-LAST, as it was added; none: everything
        #[arg(value_name = "ADDRESSES")]
        specs: Vec<Spec>,
        #[command(flatten)]
        how: How,
    },
    /// Show what `add` added and is there still
    List {
        /// Print JSON
        #[arg(long, help_heading = "Output")]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct How {
    /// The interface that has the addresses; without it a whole network becomes local on loopback
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.command {
        Command::Add { specs, how } => {
            let wanted = plan(specs, how.interface.as_deref()).map_err(usage)?;
            let there = list()?;
            let (known, new): (Vec<Owned>, Vec<Owned>) =
                wanted.into_iter().partition(|owned| there.contains(owned));
            let done = match how.dry_run {
                true => new,
                false => add(&new)?,
            };
            tell(if how.dry_run { "would add" } else { "added" }, &done);
            if !known.is_empty() {
                say(format_args!("{} there already\n", known.len()));
            }
        }
        Command::Remove { specs, how } => {
            let there = list()?;
            let unwanted = match specs.is_empty() {
                true => there
                    .into_iter()
                    .filter(|owned| {
                        how.interface.is_none() || owned.interface() == how.interface.as_deref()
                    })
                    .collect(),
                false => {
                    let mut named = named(specs, how.interface.as_deref()).map_err(usage)?;
                    named.retain(|owned| there.contains(owned));
                    named
                }
            };
            let done = match how.dry_run {
                true => unwanted,
                false => remove(&unwanted)?,
            };
            tell(
                if how.dry_run {
                    "would remove"
                } else {
                    "removed"
                },
                &done,
            );
        }
        Command::List { json: true } => say(format_args!(
            "{}\n",
            serde_json::to_string_pretty(&list()?)?
        )),
        Command::List { json: false } => tell("there", &list()?),
    }
    Ok(Outcome::Done)
}

fn tell(what: &str, all: &[Owned]) {
    /// More are said as a count.
    const LINES: usize = 20;
    for owned in all.iter().take(LINES) {
        say(format_args!("{what}: {owned}\n"));
    }
    match all.len() {
        0 => say(format_args!("{what}: nothing\n")),
        count if count > LINES => say(format_args!("{what}: {count} in all\n")),
        _ => {}
    }
}

fn usage(error: AddressError) -> anyhow::Error {
    match error {
        AddressError::Refused(_) | AddressError::NoInterface { .. } => {
            UsageError(error.to_string()).into()
        }
        AddressError::Kernel { .. } => error.into(),
    }
}
