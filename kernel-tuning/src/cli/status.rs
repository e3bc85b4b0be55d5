//! `throng-tune status`: what is changed at the moment, and what it was.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::place::Place;
use super::{Outcome, say, show};
use crate::persist;
use crate::state::{self, Change, State};
use crate::tree::{Now, Tree};

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune status
  throng-tune status --json

Exit codes: 0 all is as apply left it, or nothing was applied; 10 an apply was cut off, or somebody
changed something since; 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,

    /// Print it as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// What is changed.
#[derive(Debug, Serialize)]
struct Status {
    state: State,
    /// Each of its settings now.
    settings: Vec<SettingNow>,
    /// The file for the next start is there.
    is_kept: bool,
}

#[derive(Debug, Serialize)]
struct SettingNow {
    name: String,
    now: Option<String>,
    is: Is,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Is {
    AsApplied,
    AsBefore,
    ChangedSince,
    Unreadable,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let path = args.place.state();
    let Some(state) = state::read(&path)? else {
        match args.json {
            true => say("null\n"),
            false => say(format_args!("nothing is changed (no {})\n", path.display())),
        }
        return Ok(Outcome::Done);
    };
    let tree = args.place.tree();
    let settings: Vec<_> = state
        .changes
        .iter()
        .map(|change| setting_now(&tree, change))
        .collect();
    let status = Status {
        settings,
        is_kept: persist::is_there(&tree)?,
        state,
    };
    match args.json {
        true => say(serde_json::to_string_pretty(&status)? + "\n"),
        false => say(text(&status, &args.place)),
    }
    let is_as_left = status
        .settings
        .iter()
        .all(|setting| setting.is == Is::AsApplied);
    Ok(match is_as_left && status.state.is_complete {
        true => Outcome::Done,
        false => Outcome::Warned,
    })
}

fn setting_now(tree: &Tree, change: &Change) -> SettingNow {
    let now = match tree.sysctl(&change.name) {
        Now::Value(now) => Some(now),
        Now::Missing | Now::Unreadable(_) => None,
    };
    let is = match now.as_deref() {
        None => Is::Unreadable,
        Some(now) if now == change.wanted() => Is::AsApplied,
        Some(now) if now == change.original => Is::AsBefore,
        Some(_) => Is::ChangedSince,
    };
    SettingNow {
        name: change.name.clone(),
        now,
        is,
    }
}

fn text(status: &Status, place: &Place) -> String {
    let state = &status.state;
    let applied_at = SystemTime::UNIX_EPOCH + Duration::from_secs(state.applied_at_s);
    let mut text = format!(
        "{} settings changed, the last time at {}\n",
        state.changes.len(),
        humantime::format_rfc3339_seconds(applied_at)
    );
    for (change, setting) in state.changes.iter().zip(&status.settings) {
        let now = setting.now.as_deref().map_or("?", show::shown);
        let is = match setting.is {
            Is::AsApplied => "",
            Is::AsBefore => ", which it was before: the host was restarted, or somebody reset it",
            Is::ChangedSince => ", which somebody else gave it",
            Is::Unreadable => ": it cannot be read",
        };
        let original = show::shown(&change.original);
        let _ = writeln!(
            text,
            "  {}: {original} -> {}, now {now}{is}",
            change.name,
            change.wanted()
        );
    }
    if !state.is_complete {
        text += "the last apply or revert was cut off: it may be half done\n";
    }
    if status.is_kept {
        let _ = writeln!(
            text,
            "at every start: {}",
            place.tree().path(persist::PATH).display()
        );
    }
    let _ = writeln!(
        text,
        "take it back: sudo throng-tune revert{}",
        place.flags()
    );
    text
}
