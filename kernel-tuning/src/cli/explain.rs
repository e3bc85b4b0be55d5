//! `throng-tune explain`: what a setting or counter means, without a network.

use std::fmt::Write;

use serde_json::json;

use super::goal::Goal;
use super::paint::Paint;
use super::{Outcome, UsageError, say};
use crate::explain::{Known, all, find, near};
use crate::host::{Counter, Kind, sysctl};
use crate::setting::{Demand, Scope, Setting, wanted};

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune explain                                     everything that is known, a line each
  throng-tune explain tcp_mem --connections 1000000       a setting, with what it should be
  throng-tune explain ListenOverflows                     a counter, with what to do when it grows

Exit codes: 0 done, 1 failed, 2 bad usage or an unknown name.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A setting or counter, as the kernel, sysctl or nstat names it; none: a list of all
    name: Option<String>,

    #[command(flatten)]
    goal: Goal,

    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let demand = args.goal.demand()?;
    let paint = Paint::for_stdout();
    match (&args.name, args.json) {
        (None, false) => say(list(paint)),
        (None, true) => {
            let all: Vec<_> = all().iter().map(|known| in_json(known, &demand)).collect();
            say(format_args!("{}\n", serde_json::to_string_pretty(&all)?));
        }
        (Some(name), is_json) => {
            let known = find(name).ok_or_else(|| unknown(name))?;
            match is_json {
                true => say(format_args!(
                    "{}\n",
                    serde_json::to_string_pretty(&in_json(&known, &demand))?
                )),
                false => say(text(&known, &demand, paint)),
            }
        }
    }
    Ok(Outcome::Done)
}

fn unknown(name: &str) -> UsageError {
    let near = match near(name) {
        near if near.is_empty() => String::new(),
        near => format!("; near it: {}", near.join(", ")),
    };
    UsageError(format!(
        "{name} is not known here{near}; throng-tune explain lists all"
    ))
}

fn list(paint: Paint) -> String {
    let all = all();
    let width = all
        .iter()
        .map(|known| known.name().len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let mut section = "";
    for known in &all {
        let of = match known {
            Known::Setting(_) => "settings",
            Known::Counter(counter) => counter.place,
        };
        if of != section {
            let gap = if section.is_empty() { "" } else { "\n" };
            // Writing to a String does not fail.
            let _ = writeln!(text, "{gap}{}", paint.bold(of));
            section = of;
        }
        let _ = writeln!(text, "  {:width$}  {}", known.name(), known.means());
    }
    text
}

fn text(known: &Known, demand: &Demand, paint: Paint) -> String {
    let rows = match known {
        Known::Setting(setting) => setting_rows(setting, demand),
        Known::Counter(counter) => counter_rows(counter),
    };
    let mut text = format!("{}, a {}\n", paint.bold(known.name()), known.kind());
    for (key, value) in rows {
        let _ = writeln!(text, "  {} {value}", paint.dim(&format!("{key:8}")));
    }
    text
}

fn setting_rows(setting: &Setting, demand: &Demand) -> Vec<(&'static str, String)> {
    let now =
        sysctl(&setting.name).map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "));
    let wanted = wanted(setting, demand);
    let default: Vec<String> = setting
        .default
        .iter()
        .map(|formula| formula.value(demand).to_string())
        .collect();
    let scope = match setting.scope {
        Scope::Host => {
            "the whole host, one value for all of it; a container or another network namespace may lack it, or not be let write it"
        }
        Scope::Namespace => "a network namespace",
    };
    let change = now
        .as_ref()
        .ok()
        .and_then(|now| Some((wanted.is_met(now).ok()?, wanted.adjusted(now).ok()?)));
    let mut rows = vec![
        ("means", setting.reason.clone()),
        ("counts", setting.unit.clone()),
        ("of", scope.to_owned()),
        ("now", now.unwrap_or_else(|error| error.to_string())),
        (
            "wanted",
            format!("{wanted}, for {} connections", demand.connections),
        ),
    ];
    if !default.is_empty() {
        rows.push((
            "default",
            format!("{}, as far as it can be computed", default.join(" ")),
        ));
    }
    if let Some(bytes) = setting.bytes {
        rows.push((
            "costs",
            format!("{bytes} bytes of kernel memory for each that is used"),
        ));
    }
    match change {
        Some((false, value)) => {
            rows.push(("change", format!("sysctl -w {}='{value}'", setting.name)))
        }
        Some((true, _)) => rows.push(("change", "not needed".to_owned())),
        None => {}
    }
    rows.push(("source", setting.source.clone()));
    rows
}

fn counter_rows(counter: &Counter) -> Vec<(&'static str, String)> {
    let growth = match counter.kind {
        Kind::Trouble => "is trouble",
        Kind::Traffic => "is traffic, no trouble by itself",
        Kind::Gauge => "and shrinks: a figure of now",
    };
    let mut rows = vec![
        ("means", counter.means.to_owned()),
        ("where", counter.place.to_owned()),
        ("growth", growth.to_owned()),
    ];
    rows.extend(counter.remedy.map(|remedy| ("do", remedy.to_owned())));
    rows
}

fn in_json(known: &Known, demand: &Demand) -> serde_json::Value {
    let rows = match known {
        Known::Setting(setting) => setting_rows(setting, demand),
        Known::Counter(counter) => counter_rows(counter),
    };
    let mut object = json!({ "name": known.name(), "kind": known.kind() });
    for (key, value) in rows {
        object[key] = value.into();
    }
    object
}
