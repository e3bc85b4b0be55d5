//! The report as JSON: all that the text says and more. Owns the report's file.

use std::fs::{OpenOptions, create_dir_all};
use std::io;
use std::path::Path;

use serde::Serialize;

/// Makes sure, before anything is measured, that the report can be written; an earlier one stays as it is until then.
///
/// # Errors
/// What to tell the user.
pub fn check_writable(path: &Path) -> Result<(), String> {
    let opened = directory_of(path)
        .map_or(Ok(()), create_dir_all)
        .and_then(|()| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map(drop)
        });
    opened.map_err(|cause| unwritable(path, &cause, "choose another file with --report FILE"))
}

/// Writes `report`, of whichever command, to `path`.
///
/// # Errors
/// What to tell the user.
pub fn write(report: &impl Serialize, path: &Path) -> Result<(), String> {
    let text = serde_json::to_string_pretty(report).map_err(io::Error::from);
    let written = text.and_then(|text| std::fs::write(path, text + "\n"));
    written.map_err(|cause| unwritable(path, &cause, "is the disk full? see: df ."))
}

fn unwritable(path: &Path, cause: &io::Error, advice: &str) -> String {
    format!(
        "cannot write the report to {}: {cause}; {advice}",
        path.display()
    )
}

fn directory_of(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|directory| !directory.as_os_str().is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::result::Report;
    use crate::result::tests::recorded;

    #[test]
    fn what_was_written_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deeper/report.json");
        check_writable(&path).unwrap();
        let report = recorded();
        write(&report, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        check_writable(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn an_unwritable_path_is_refused_with_its_name_and_a_way_out() {
        for path in ["/proc/throng/report.json", "/"] {
            let error = check_writable(Path::new(path)).unwrap_err();
            assert!(
                error.contains(path) && error.contains("--report"),
                "{error}"
            );
        }
    }
}
