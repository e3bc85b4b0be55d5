//! The command `throng-bench report`: a report that was written before, in another form.

use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Refusal, bad_usage};
use crate::report::html::html;
use crate::report::markdown::markdown;
use crate::report::recorded;

pub(super) const REPORT_EXAMPLES: &str = "\
Examples:
  throng-bench report target/throng/report.json       writes target/throng/report.html
  throng-bench report hold.json --html /tmp/hold.html
  throng-bench report canary.json --markdown -        to stdout, for a pull request

Reports of every command can be shown. The page needs no network: open it from disk.

Exit codes: 0 written, 1 it could not be written, 2 bad usage, or the file is no report that this version reads.";

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// The JSON that a run wrote
    #[arg(value_name = "FILE.json")]
    file: PathBuf,

    /// Where to write it as a page for the browser [default, without --markdown: FILE.html]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Where to write it as Markdown, - for stdout
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    markdown: Option<PathBuf>,
}

/// Writes what is asked for.
pub(super) fn run(args: &ReportArgs) -> Result<bool, Refusal> {
    let failed = |reason| (reason, 1);
    let page = recorded::page(&args.file).map_err(bad_usage)?;
    let to_html = match (&args.html, &args.markdown) {
        (None, None) => recorded::page_beside(&args.file).map_err(bad_usage)?,
        (html, _) => html.clone(),
    };
    if to_html.is_none() && args.markdown.is_none() {
        let file = args.file.display();
        return Err(bad_usage(format!(
            "{file} is no regular file: say where to write with --html FILE"
        )));
    }
    for (flag, path) in [("--html", &to_html), ("--markdown", &args.markdown)] {
        if path.as_ref().is_some_and(|path| is_same(path, &args.file)) {
            return Err(bad_usage(format!(
                "{flag} names the report itself; choose another file"
            )));
        }
    }
    if let Some(path) = &to_html {
        recorded::write(path, &html(&page).map_err(failed)?).map_err(failed)?;
        say(
            &format!("page: {}\n", path.display()),
            args.markdown.as_deref() != Some(Path::new("-")),
        )
        .map_err(failed)?;
    }
    match &args.markdown {
        None => {}
        Some(path) if path == Path::new("-") => say(&markdown(&page), true).map_err(failed)?,
        Some(path) => {
            recorded::write(path, &markdown(&page)).map_err(failed)?;
            say(&format!("markdown: {}\n", path.display()), true).map_err(failed)?;
        }
    }
    Ok(true)
}

fn is_same(path: &Path, other: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().ok();
    path == other || (whole(path).is_some() && whole(path) == whole(other))
}

/// On stdout, unless that is taken; a reader that has gone needs it no more.
fn say(text: &str, to_stdout: bool) -> Result<(), String> {
    let written = match to_stdout {
        true => stdout()
            .write_all(text.as_bytes())
            .and_then(|()| stdout().flush()),
        false => io::stderr().write_all(text.as_bytes()),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to stdout: {error}"))
        }
        _ => Ok(()),
    }
}
