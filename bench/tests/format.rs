//! The report's JSON: what was recorded can be read and written again without loss, and its documentation names the
//! fields that are there.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use bench::report::Reported;
use bench::run::FORMAT_VERSION;
use common::recorded::RECORDED;
use serde_json::Value;

const DOCUMENTED: &str = include_str!("../../docs/report-format.md");

/// What `throng-bench` makes of a recorded report, read and written again.
fn again(command: &str, text: &str) -> Value {
    fn of<R: Reported + PartialEq + std::fmt::Debug>(text: &str) -> Value {
        let report: R = serde_json::from_str(text).unwrap();
        let written = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<R>(&written).unwrap(), report);
        assert_eq!(report.as_ref().command, R::COMMAND);
        assert_eq!(report.as_ref().format_version, FORMAT_VERSION);
        serde_json::to_value(&report).unwrap()
    }
    match command {
        "compare" => of::<bench::result::Report>(text),
        "hold" => of::<bench::climb::result::Climb>(text),
        "canary" => of::<bench::canary::result::Report>(text),
        "memory" => of::<bench::memory::result::MemoryReport>(text),
        "floor" => of::<bench::floor::result::Report>(text),
        "tail" => of::<bench::tail::result::Report>(text),
        "churn" => of::<bench::churn::Report>(text),
        "heartbeat" => of::<bench::heartbeat::Report>(text),
        "faults" => of::<bench::faults::result::Report>(text),
        "merge" => of::<bench::merge::result::Report>(text),
        "remote" => of::<bench::remote::result::Report>(text),
        "selfcheck" => of::<bench::selfcheck::result::Report>(text),
        other => panic!("of which type is a report of {other}?"),
    }
}

/// Every place in `value`, as a path.
fn places(value: &Value, at: &str, all: &mut BTreeSet<String>) {
    all.insert(at.to_owned());
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| places(value, &format!("{at}/{name}"), all)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, value)| places(value, &format!("{at}/{index}"), all)),
        _ => {}
    }
}

#[test]
fn nothing_of_a_recorded_report_is_lost() {
    for (command, text) in RECORDED {
        let of = |value: &Value| {
            let mut all = BTreeSet::new();
            places(value, "", &mut all);
            all
        };
        let recorded = of(&serde_json::from_str(text).unwrap());
        let written = of(&again(command, text));
        let lost: Vec<&String> = recorded.difference(&written).collect();
        assert!(lost.is_empty(), "{command}: {lost:?}");
    }
}

/// A table of the documentation: where it belongs, and the fields it names.
struct Documented {
    command: &'static str,
    pointer: &'static str,
    fields: BTreeSet<String>,
}

/// Every table below a heading that ends with `` `command` `` or `` `command /pointer` ``; `*` is every command.
fn documented() -> Vec<Documented> {
    let mut all: Vec<Documented> = Vec::new();
    for line in DOCUMENTED.lines() {
        if line.starts_with('#') {
            let place = line.split('`').nth(1).unwrap_or("");
            let (command, pointer) = place.split_once(' ').unwrap_or((place, ""));
            all.push(Documented {
                command,
                pointer,
                fields: BTreeSet::new(),
            });
        } else if let Some(rest) = line.strip_prefix("| `") {
            let (field, _) = rest.split_once('`').unwrap();
            let is_new = all.last_mut().unwrap().fields.insert(field.to_owned());
            assert!(is_new, "{field} stands twice in a table");
        }
    }
    all.retain(|one| !one.fields.is_empty());
    all
}

fn fields(value: &Value, at: &str) -> BTreeSet<String> {
    let fields = value.as_object().unwrap_or_else(|| panic!("{at}: {value}"));
    fields.keys().cloned().collect()
}

#[test]
fn the_documentation_names_the_fields_that_are_there_and_no_other() {
    let documented = documented();
    let envelope = &documented
        .iter()
        .find(|one| one.command == "*")
        .unwrap()
        .fields;
    for (command, text) in RECORDED {
        let report = again(command, text);
        let own = documented
            .iter()
            .find(|one| one.command == command && one.pointer.is_empty());
        let own = &own
            .unwrap_or_else(|| panic!("{command} is not documented"))
            .fields;
        assert!(own.is_disjoint(envelope), "{command}");
        let named: BTreeSet<String> = own.union(envelope).cloned().collect();
        assert_eq!(named, fields(&report, command), "{command}");
        for one in &documented {
            let is_its = one.command == command || one.command == "*";
            if one.pointer.is_empty() || !is_its {
                continue;
            }
            let at = format!("{command} {}", one.pointer);
            let value = report.pointer(one.pointer);
            let value = value.unwrap_or_else(|| panic!("{at}: there is nothing"));
            assert_eq!(one.fields, fields(value, &at), "{at}");
        }
    }
    let version = format!("`format_version` is {FORMAT_VERSION}.");
    assert!(DOCUMENTED.contains(&version), "{version}");
}
