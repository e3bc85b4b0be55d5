//! Scenarios by name: a command of this program and its flags, as data. Owns the files built in from `bench/scenarios`.
//!
//! ```toml
//! about = "What it measures, in a sentence"
//! command = "tail"            # a command that measures
//!
//! [flags]                     # its flags, as its --help names them
//! idle = [0, 100_000]
//! exchange = "3s"
//! ```
//!
//! Invariant: a scenario says nothing that the command's own flags cannot say, and is checked where they are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use serde::Deserialize;
use toml::Value;

use crate::merge::result::Report as Merge;
use crate::remote::result::Report as Remote;
use crate::report::{COMMANDS, Reported};

/// The file of each, under its name.
const BUILT_IN: [(&str, &str); 7] = [
    ("compare", include_str!("../scenarios/compare.toml")),
    ("hold", include_str!("../scenarios/hold.toml")),
    ("echo", include_str!("../scenarios/echo.toml")),
    ("tail", include_str!("../scenarios/tail.toml")),
    ("heartbeat", include_str!("../scenarios/heartbeat.toml")),
    ("churn", include_str!("../scenarios/churn.toml")),
    ("floor", include_str!("../scenarios/floor.toml")),
];

/// The commands that a scenario may be of: those that measure, but for those that need another host, or others' files.
fn measuring() -> impl Iterator<Item = &'static str> {
    let commands = COMMANDS.iter().copied();
    commands.filter(|command| ![Remote::COMMAND, Merge::COMMAND].contains(command))
}

/// A command and its flags.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it measures, in a sentence.
    pub about: String,
    /// The command.
    pub command: String,
    /// Its flags, without the dashes.
    #[serde(default)]
    pub flags: BTreeMap<String, Value>,
}

/// The names of those built in.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// The scenario built in under `name`, or the one in the file of that name, where it ends with `.toml`.
///
/// # Errors
/// What to tell the user.
pub fn find(name: &str) -> Result<Scenario, String> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return parse(name, text);
    }
    if Path::new(name).extension().is_none_or(|end| end != "toml") {
        let known: Vec<&str> = names().collect();
        return Err(format!(
            "there is no scenario {name}; there are {}, and files that end with .toml",
            known.join(", ")
        ));
    }
    let text = std::fs::read_to_string(name)
        .map_err(|cause| format!("the scenario {name} cannot be read: {cause}"))?;
    parse(name, &text)
}

fn parse(name: &str, text: &str) -> Result<Scenario, String> {
    let scenario: Scenario = toml::from_str(text)
        .map_err(|cause| format!("the scenario {name} is not well formed: {cause}"))?;
    let command = scenario.command.as_str();
    if measuring().any(|known| known == command) {
        return Ok(scenario);
    }
    let known: Vec<&str> = measuring().collect();
    Err(format!(
        "the scenario {name} is of the command {command:?}; those that measure are {}",
        known.join(", ")
    ))
}

impl Scenario {
    /// The arguments of the command. What `own` says, as the user typed it, takes the place of the scenario's flags.
    ///
    /// # Errors
    /// Which flag has no form on a command line.
    pub fn arguments(&self, own: &[OsString]) -> Result<Vec<OsString>, String> {
        let is_own = |flag: &str| {
            own.iter().any(|word| {
                let word = word.to_string_lossy();
                word.split('=').next() == Some(flag)
            })
        };
        let mut arguments = vec![self.command.clone().into()];
        for (name, value) in &self.flags {
            let flag = format!("--{name}");
            if is_own(&flag) {
                continue;
            }
            match value {
                Value::Boolean(true) => arguments.push(flag.into()),
                Value::Boolean(false) => {}
                value => arguments.extend([
                    flag.into(),
                    word(value)
                        .ok_or_else(|| format!("{name} of the scenario cannot be a flag: give it a number, a text, or a list"))?
                        .into(),
                ]),
            }
        }
        arguments.extend_from_slice(own);
        Ok(arguments)
    }
}

/// A value as a command line has it.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Array(values) => {
            let words: Option<Vec<String>> = values.iter().map(word).collect();
            Some(words?.join(","))
        }
        Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn arguments(flags: &str, own: &[&str]) -> Vec<String> {
        let text = format!("about = \"\"\ncommand = \"tail\"\n[flags]\n{flags}");
        let own: Vec<OsString> = own.iter().map(OsString::from).collect();
        let all = parse("x", &text).unwrap().arguments(&own).unwrap();
        all.iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn flags_become_words() {
        let words = arguments(
            "idle = [0, 100_000]\nexchange = \"3s\"\nuntil-width = 2.5\nquiet = true",
            &[],
        );
        let expected = "tail --exchange 3s --idle 0,100000 --quiet --until-width 2.5".split(' ');
        assert_eq!(words, expected.collect::<Vec<_>>());
    }

    #[test]
    fn what_is_typed_takes_the_place_of_what_the_scenario_says() {
        let flags = "idle = [0]\nload = [50]\nrounds = 5";
        let words = arguments(flags, &["--idle", "7", "--load=80"]);
        assert_eq!(words, ["tail", "--rounds", "5", "--idle", "7", "--load=80"]);
    }

    #[test]
    fn what_is_no_scenario_is_refused_with_the_way_out() {
        assert!(find("dance").unwrap_err().contains("echo, tail"));
        assert!(
            find("/nonexistent/x.toml")
                .unwrap_err()
                .contains("/nonexistent")
        );
        let typo = parse("x", "about = \"\"\ncomand = \"tail\"").unwrap_err();
        assert!(typo.contains("comand"), "{typo}");
        let other = "about = \"\"\ncommand = \"server\"";
        assert!(parse("x", other).unwrap_err().contains("\"server\""));
        let table = parse("x", "about = \"\"\ncommand = \"tail\"\n[flags.idle]\na = 1").unwrap();
        assert!(table.arguments(&[]).unwrap_err().contains("idle"));
    }
}
