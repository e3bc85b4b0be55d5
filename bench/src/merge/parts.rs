//! The parts of a fleet, as their clients wrote them: read, and held against each other.
//!
//! Owns no file. Invariant: a [`Fleet`] is of one run, each part is in it at most once, and whatever was given and is not
//! in it is named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use client::mergeable::{Mergeable, SCHEMA};
use serde::Deserialize;
use serde_json::Value;

/// What was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// By number; never empty.
    pub parts: BTreeMap<u64, Given>,
    /// How many there should be.
    pub of: u64,
    /// Files that are not merged: which, and why.
    pub left_out: Vec<(String, String)>,
}

/// A part, and the file it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    /// Its path.
    pub file: String,
    /// What it tells.
    pub part: Mergeable,
}

/// Why a file is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unfit {
    /// The part failed, or never wrote it whole.
    Broken(String),
    /// It is no part, or of another form.
    Foreign(String),
}

impl Fleet {
    /// Reads `files`. With `is_partial` what is missing or does not belong there is left out, and named; the run is that
    /// of the first file that can be read.
    ///
    /// # Errors
    /// All that is wrong, with the names of the files.
    pub fn read(files: &[PathBuf], is_partial: bool) -> Result<Fleet, String> {
        let mut read = Vec::new();
        let mut left_out = Vec::new();
        for path in files {
            let file = path.display().to_string();
            match part_in(path) {
                Ok(part) => read.push(Given { file, part }),
                Err(Unfit::Broken(reason)) => left_out.push((file, reason)),
                Err(Unfit::Foreign(reason)) => return Err(format!("{file} {reason}")),
            }
        }
        Fleet::of(read, left_out, is_partial)
    }

    /// The fleet that these are of, in the order given.
    fn of(
        read: Vec<Given>,
        mut left_out: Vec<(String, String)>,
        is_partial: bool,
    ) -> Result<Fleet, String> {
        let mut parts: BTreeMap<u64, Given> = BTreeMap::new();
        let mut first: Option<Given> = None;
        let mut failed = Vec::new();
        for given in read {
            let first = first.get_or_insert_with(|| given.clone());
            let number = given.part.part.number;
            if let Some(difference) = difference(&first.part, &given.part) {
                let reason = format!("is of another run than {}: {difference}", first.file);
                left_out.push((given.file, reason));
            } else if let Some(earlier) = parts.get(&number) {
                let reason = format!("is part {number}, as {} is", earlier.file);
                left_out.push((given.file, reason));
            } else {
                if given.part.ended != "complete" {
                    let why = given.part.diagnosis.as_deref().unwrap_or("see its summary");
                    failed.push(format!(
                        "{} is of a part that failed ({}: {why})",
                        given.file, given.part.ended
                    ));
                }
                parts.insert(number, given);
            }
        }
        let fleet = Fleet {
            of: first.as_ref().map_or(0, |first| first.part.part.of),
            parts,
            left_out,
        };
        let mut wrong: Vec<String> = fleet
            .left_out
            .iter()
            .map(|(file, reason)| format!("{file} {reason}"))
            .collect();
        wrong.extend(failed);
        let missing: Vec<String> = fleet.missing().iter().map(u64::to_string).collect();
        if !missing.is_empty() {
            wrong.push(format!(
                "of {} parts these are missing: {}",
                fleet.of,
                missing.join(", ")
            ));
        }
        match () {
            () if fleet.parts.is_empty() => {
                Err(format!("no part can be read: {}", wrong.join("; ")))
            }
            () if wrong.is_empty() || is_partial => Ok(fleet),
            () => Err(format!(
                "{}; run the fleet again, or give --partial for a report of what there is",
                wrong.join("; ")
            )),
        }
    }

    /// The numbers of those that are not there.
    pub fn missing(&self) -> Vec<u64> {
        (1..=self.of)
            .filter(|number| !self.parts.contains_key(number))
            .collect()
    }
}

fn part_in(path: &Path) -> Result<Mergeable, Unfit> {
    let bytes =
        std::fs::read(path).map_err(|cause| Unfit::Broken(format!("cannot be read: {cause}")))?;
    part_of(&bytes)
}

fn part_of(bytes: &[u8]) -> Result<Mergeable, Unfit> {
    if bytes.is_empty() {
        return Err(Unfit::Broken(
            "is empty: its client was killed, could not start, or still runs".into(),
        ));
    }
    let summary: Value = serde_json::from_slice(bytes)
        .map_err(|cause| Unfit::Broken(format!("is not JSON, or was cut off ({cause})")))?;
    let Some(part) = summary.get("part").filter(|part| !part.is_null()) else {
        return Err(Unfit::Foreign(
            "is not of a part: give what throng-client --part I/N wrote with --json".into(),
        ));
    };
    match part.get("schema").and_then(Value::as_u64) {
        Some(schema) if schema == u64::from(SCHEMA) => {}
        Some(schema) => {
            let whose = match schema < u64::from(SCHEMA) {
                true => "an older",
                false => "a newer",
            };
            return Err(Unfit::Foreign(format!(
                "is of schema {schema}, and this program merges {SCHEMA}: {whose} Throng wrote it; merge it with that one"
            )));
        }
        None => return Err(Unfit::Foreign("has a part without a schema".into())),
    }
    Mergeable::deserialize(part).map_err(|cause| {
        Unfit::Foreign(format!(
            "has the schema {SCHEMA} but not its fields ({cause}); was it changed?"
        ))
    })
}

/// What tells the run of `other` from that of `one`.
fn difference(one: &Mergeable, other: &Mergeable) -> Option<String> {
    if one.part.of != other.part.of {
        return Some(format!("of {} parts, not {}", other.part.of, one.part.of));
    }
    if one.asked == other.asked {
        return None;
    }
    let empty = serde_json::Map::new();
    let [here, there] = [&other.asked, &one.asked].map(|asked| asked.as_object().unwrap_or(&empty));
    let mut names: Vec<&String> = here.keys().chain(there.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let shown =
        |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| here.get(*name) != there.get(*name))
        .map(|name| {
            let (here, there) = (shown(here.get(name)), shown(there.get(name)));
            format!("{name} is {here}, not {there}")
        })
        .collect();
    Some(differing.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// What part `number` of `of` may tell, with changes.
    pub(crate) fn told(number: u64, of: u64, change: impl FnOnce(&mut Value)) -> Value {
        let environment = kernel_tuning::host::environment();
        let mut part = json!({
            "schema": SCHEMA,
            "throng_version": "0.1.0",
            "number": number,
            "of": of,
            "asked": {"connections": 100 * of, "hold_seconds": 10.0, "start_at_unix_seconds": 1000.0, "targets": ["127.0.0.1:7000"]},
            "host": {"name": format!("host-{number}"), "boot_id": format!("boot-{number}"), "environment": environment},
            "clock": {
                "start_at_unix_us": 1_000_000_000_u64,
                "began_unix_us": 1_000_000_000 + 100 * number,
                "began_monotonic_us": 5_000_000_u64,
                "ended_unix_us": 1_020_000_000 + 100 * number,
                "ended_monotonic_us": 25_000_000_u64,
            },
            "course": {
                "first_connect_us": 50,
                "last_established_us": 2_000_000,
                "hold_from_us": 2_000_000,
                "hold_to_us": 12_000_000,
            },
            "counters": {"connections_wanted": 100, "established": 100, "messages_at_hold_end": 500, "lost": 0},
            "causes": {"failed": {}, "lost": {}},
            "phases": [],
            "ended": "complete",
            "is_flawless": true,
            "diagnosis": null,
            "bottleneck": null,
        });
        change(&mut part);
        json!({"part": part})
    }

    pub(crate) fn given(number: u64, of: u64, change: impl FnOnce(&mut Value)) -> Given {
        let told = told(number, of, change).to_string();
        Given {
            file: format!("part-{number}.json"),
            part: part_of(told.as_bytes()).unwrap(),
        }
    }

    fn fleet(given: Vec<Given>, is_partial: bool) -> Result<Fleet, String> {
        Fleet::of(given, Vec::new(), is_partial)
    }

    fn unfit(bytes: &[u8]) -> String {
        match part_of(bytes).unwrap_err() {
            Unfit::Broken(reason) | Unfit::Foreign(reason) => reason,
        }
    }

    #[test]
    fn all_parts_of_a_run_are_a_fleet_in_whatever_order() {
        let same = |_: &mut Value| {};
        let fleet = fleet(
            vec![given(3, 3, same), given(1, 3, same), given(2, 3, same)],
            false,
        );
        let fleet = fleet.unwrap();
        assert!(fleet.parts.keys().eq(&[1, 2, 3]) && fleet.missing().is_empty());
    }

    #[test]
    fn what_is_missing_twice_of_another_run_or_failed_is_named() {
        let same = |_: &mut Value| {};
        let one = || given(1, 3, same);
        let missing = fleet(vec![one()], false).unwrap_err();
        assert!(
            missing.contains("missing: 2, 3") && missing.contains("--partial"),
            "{missing}"
        );
        assert_eq!(fleet(vec![one()], true).unwrap().missing(), [2, 3]);

        let all = |last: Given| vec![one(), given(2, 3, same), given(3, 3, same), last];
        let twice = fleet(all(one()), false).unwrap_err();
        assert!(
            twice.contains("part-1.json is part 1, as part-1.json is"),
            "{twice}"
        );

        let longer = given(3, 3, |part| part["asked"]["hold_seconds"] = 11.0.into());
        let other = fleet(vec![one(), given(2, 3, same), longer], false).unwrap_err();
        assert!(
            other.contains("part-3.json is of another run")
                && other.contains("hold_seconds is 11.0, not 10.0"),
            "{other}"
        );
        let wider = fleet(vec![one(), given(2, 4, same)], false).unwrap_err();
        assert!(wider.contains("of 4 parts, not 3"), "{wider}");

        let refused = |part: &mut Value| part["ended"] = "refused".into();
        let failed = || vec![one(), given(2, 3, refused), given(3, 3, same)];
        let error = fleet(failed(), false).unwrap_err();
        assert!(
            error.contains("part-2.json is of a part that failed (refused"),
            "{error}"
        );
        // What it counted counts.
        assert_eq!(fleet(failed(), true).unwrap().parts.len(), 3);
        let partial = fleet(all(one()), true).unwrap();
        assert_eq!((partial.parts.len(), partial.left_out.len()), (3, 1));
    }

    #[test]
    fn what_is_no_part_of_this_schema_is_refused_by_name() {
        let with = |change: fn(&mut Value)| told(1, 3, change).to_string();
        for (text, said) in [
            (String::new(), "is empty"),
            ("{".to_owned(), "cut off"),
            ("{}".to_owned(), "not of a part"),
            ("{\"part\": null}".to_owned(), "not of a part"),
            (
                with(|part| part["schema"] = 0.into()),
                "schema 0, and this program merges 1: an older Throng",
            ),
            (with(|part| part["schema"] = 2.into()), "a newer Throng"),
            (
                with(|part| part["schema"] = Value::Null),
                "without a schema",
            ),
            (with(|part| part["clock"] = Value::Null), "not its fields"),
        ] {
            let reason = unfit(text.as_bytes());
            assert!(reason.contains(said), "{text}: {reason}");
        }
        let error = Fleet::read(&["/nonexistent/part-1.json".into()], true).unwrap_err();
        assert!(error.contains("/nonexistent/part-1.json"), "{error}");
    }
}
