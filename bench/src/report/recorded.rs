//! Reports that were written before, read again and put into another form. Owns the files of these forms.
//!
//! Invariant: a report of a version that this program would misread is refused, never shown.

use std::fs::{File, create_dir_all};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::report::html::html;
use crate::report::page::Page;
use crate::report::{Shown, reported};
use crate::run::FORMAT_VERSION;

/// No report of any command comes near it.
const MOST_BYTES: u64 = 256 << 20;

/// The page of the report in the file `path`, of whichever command wrote it.
///
/// # Errors
/// What to tell the user: what is wrong with the file, and what would be right.
pub fn page(path: &Path) -> Result<Page, String> {
    Ok(report(path)?.page())
}

/// The report in the file `path`, of whichever command wrote it.
///
/// # Errors
/// As [`page`].
pub fn report(path: &Path) -> Result<Box<dyn Shown>, String> {
    let of_file = |reason| format!("{}: {reason}", path.display());
    report_of(&read(path).map_err(of_file)?).map_err(of_file)
}

/// Where the page of the report in `path` belongs: beside it; `None` where `path` is no regular file, such as a pipe.
///
/// # Errors
/// When it would take the report's own place.
pub fn page_beside(path: &Path) -> Result<Option<PathBuf>, String> {
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(None);
    }
    let page = path.with_extension("html");
    if page == path {
        return Err(format!(
            "{} is the page's own place: let the report end with .json",
            path.display()
        ));
    }
    Ok(Some(page))
}

/// Writes the report in the file `report` as HTML to `path`.
///
/// # Errors
/// What to tell the user.
pub fn write_html(report: &Path, path: &Path) -> Result<(), String> {
    write(path, &html(&page(report)?)?)
}

/// Writes `text` to `path`.
///
/// # Errors
/// What to tell the user.
pub fn write(path: &Path, text: &str) -> Result<(), String> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    let written = directory
        .map_or(Ok(()), create_dir_all)
        .and_then(|()| std::fs::write(path, text));
    written.map_err(|cause| {
        format!(
            "cannot write {}: {cause}; choose another file, or see: df .",
            path.display()
        )
    })
}

fn read(path: &Path) -> Result<Value, String> {
    const HINT: &str =
        "a run writes it where --report says: target/throng/report.json, if nothing is said";
    let file = File::open(path).map_err(|cause| format!("cannot be opened: {cause}; {HINT}"))?;
    let mut bytes = Vec::new();
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|cause| format!("cannot be read: {cause}; {HINT}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err("is larger than any report; give the file that --report named".to_owned());
    }
    if bytes.is_empty() {
        return Err("is empty: a run makes the file as it begins and writes it at its end; wait for it, or run it again".to_owned());
    }
    serde_json::from_slice(&bytes).map_err(|cause| format!("is not JSON ({cause}); {HINT}"))
}

fn report_of(report: &Value) -> Result<Box<dyn Shown>, String> {
    check_version(report)?;
    let command = report.get("command").and_then(Value::as_str);
    let command = command.unwrap_or("(none)");
    let read = reported::from_value(command, report).ok_or_else(|| {
        format!(
            "is of the command {command}, of which this program knows no report; see throng-bench --version"
        )
    })?;
    read.map_err(|cause| {
        format!(
            "has the format {FORMAT_VERSION} but not the fields of {command} ({cause}); was it changed?"
        )
    })
}

fn check_version(report: &Value) -> Result<(), String> {
    let version = report.get("format_version").and_then(Value::as_u64);
    let hint = "see the format_version in it, and throng-bench --version";
    match version {
        None => Err(format!("has no format_version, as a report has; {hint}")),
        Some(version) if version > FORMAT_VERSION.into() => Err(format!(
            "is of format {version}, and this program knows those up to {FORMAT_VERSION}: a newer Throng wrote it; show it with that one"
        )),
        Some(version) if version < FORMAT_VERSION.into() => Err(format!(
            "is of format {version}, and this program reads {FORMAT_VERSION}: an older Throng wrote it; show it with that one, or run it again"
        )),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut report = serde_json::to_value(crate::result::tests::recorded()).unwrap();
        change(&mut report);
        report_of(&report).err().unwrap()
    }

    #[test]
    fn another_version_is_refused_with_the_way_out() {
        let newer = refused(|report| report["format_version"] = 99.into());
        assert!(
            newer.contains("format 99") && newer.contains("newer Throng"),
            "{newer}"
        );
        let older = refused(|report| report["format_version"] = 1.into());
        assert!(older.contains("older Throng"), "{older}");
        let none = refused(|report| report["format_version"] = Value::Null);
        assert!(none.contains("no format_version"), "{none}");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(
            report_of(&Value::Null)
                .err()
                .unwrap()
                .contains("no format_version")
        );
        let other = refused(|report| report["command"] = "dance".into());
        assert!(other.contains("the command dance"), "{other}");
        let torn = refused(|report| report["plan"] = Value::Null);
        assert!(torn.contains("not the fields of compare"), "{torn}");
    }

    #[test]
    fn a_page_never_takes_the_place_of_its_report() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report.json");
        assert_eq!(
            page_beside(&report).unwrap(),
            Some(report.with_extension("html"))
        );
        assert!(page_beside(&report.with_extension("html")).is_err());
        assert_eq!(page_beside(Path::new("/dev/null")).unwrap(), None);
    }

    #[test]
    fn a_report_becomes_a_page_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report.json");
        std::fs::write(&report, "").unwrap();
        assert!(page(&report).unwrap_err().contains("is empty"));
        crate::report::json::write(&crate::result::tests::recorded(), &report).unwrap();
        let path = page_beside(&report).unwrap().unwrap();
        write_html(&report, &path).unwrap();
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .starts_with("<!doctype html>")
        );
    }
}
