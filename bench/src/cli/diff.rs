//! The command `throng-bench diff`: two reports against each other, for a person or for a pipeline.

use std::path::PathBuf;

use clap::Args;

use super::{Refusal, bad_usage};
use crate::diff::{Diff, Judgement};
use crate::report::{diff as text, json, recorded};
use crate::screen::Screen;

pub(super) const DIFF_EXAMPLES: &str = "\
Examples:
  throng-bench diff before.json after.json
  throng-bench diff main.json branch.json --gate      in a pipeline: exit code 10 on a regression
  throng-bench diff before.json after.json --json -

A change counts when the 95 % intervals lie apart (of fewer than six rounds: all values of one beyond all of the other).
Ratios within rounds alone are judged where there are any: they have no drift of the machine in them.

Exit codes: 0 shown, or no regression; 1 nothing could be judged, with --gate; 2 bad usage, or no reports that can be
compared; 10 a regression, with --gate.";

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The JSON that the earlier run wrote
    #[arg(value_name = "BEFORE.json")]
    before: PathBuf,
    /// The JSON that the later run of the same command wrote
    #[arg(value_name = "AFTER.json")]
    after: PathBuf,

    /// Exit with 10 when a figure that counts became worse beyond noise
    #[arg(long, help_heading = "Verdict")]
    gate: bool,
    /// Where to write all of it as JSON, - for stdout instead of the text
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
}

/// Shows the two.
pub(super) fn run(args: &DiffArgs) -> Result<bool, Refusal> {
    let [before, after] =
        [&args.before, &args.after].map(|path| recorded::report(path).map_err(bad_usage));
    let (before, after) = (before?, after?);
    let [one, other] = [&before, &after].map(|report| (**report).as_ref());
    if one.command != other.command {
        return Err(bad_usage(format!(
            "the first is a report of {} and the second of {}: give two of the same command",
            one.command, other.command
        )));
    }
    if before.figures().is_empty() && after.figures().is_empty() {
        return Err(bad_usage(format!(
            "reports of {} have no figures of several rounds, so that noise and change cannot be told apart: measure \
             with compare, floor, tail, churn, heartbeat or memory",
            one.command
        )));
    }
    let diff = Diff::of((one, before.figures()), (other, after.figures()));
    let screen = Screen::new();
    let to_stdout = args
        .json
        .as_ref()
        .is_some_and(|path| path.as_os_str() == "-");
    match &args.json {
        Some(_) if to_stdout => {
            let said =
                serde_json::to_string_pretty(&diff).map_err(|cause| (cause.to_string(), 1))?;
            screen.line(&said);
        }
        Some(path) => json::write(&diff, path).map_err(|reason| (reason, 1))?,
        None => {}
    }
    if !to_stdout {
        screen.line(&text::results(&diff, screen.paint));
    }
    if !args.gate {
        return Ok(true);
    }
    if diff.judged(Judgement::Worse).next().is_some() {
        return Err((text::verdict(&diff), 10));
    }
    let judged = [Judgement::Better, Judgement::Same];
    if !judged
        .into_iter()
        .any(|judgement| diff.judged(judgement).next().is_some())
    {
        let reason =
            "nothing could be judged: both runs need the same cases, and --rounds 6 or more";
        return Err((reason.to_owned(), 1));
    }
    Ok(true)
}
