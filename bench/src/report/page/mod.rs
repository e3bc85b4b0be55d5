//! What a report shows, whatever its form: the verdict, charts, tables, doubts and the setting it was measured in. Drawn
//! from the result types alone. Pure.
//!
//! Invariant: [`crate::report::html`] and [`crate::report::markdown`] say the same, for both read a [`Page`]; every figure
//! of a chart stands in a table too.

mod both_ends;
pub mod canary;
pub mod churn;
pub mod climb;
pub mod compare;
pub mod faults;
pub mod floor;
pub mod heartbeat;
pub mod memory;
pub mod merge;
pub mod remote;
pub mod selfcheck;
mod setting;
mod spreads;
pub mod tail;

use std::time::{Duration, UNIX_EPOCH};

use crate::blocks::Skipped;
use crate::report::chart::Chart;
use crate::report::format::{NOTHING, count, gib, percent};
use crate::report::table::Table;
use crate::run::About;
use crate::servers::core_list;
use crate::warning::Warning;

/// A report, ready to be put into a form.
#[derive(Debug)]
pub struct Page {
    /// What was measured.
    pub title: String,
    /// The answer in a sentence.
    pub headline: String,
    /// What it stands on, the most important first.
    pub findings: Vec<Finding>,
    /// The figures as pictures.
    pub charts: Vec<Chart>,
    /// The figures.
    pub tables: Vec<Table>,
    /// What one has to know to read them.
    pub notes: Vec<String>,
    /// Longer texts, each under its title, in lines that stay as they are.
    pub texts: Vec<(String, String)>,
    /// Doubts about the figures.
    pub doubts: Vec<String>,
    /// What went wrong.
    pub failures: Vec<String>,
    /// The run ended early.
    pub is_partial: bool,
    /// What it was measured on and with, name and value.
    pub setting: Vec<(String, String)>,
    /// Settings of the kernel in effect, name and value.
    pub sysctls: Vec<(String, String)>,
    /// The command line, as a shell takes it.
    pub command: String,
}

/// A sentence of the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A word or two: who wins, or what it is about.
    pub word: String,
    /// The rest.
    pub said: String,
}

impl Finding {
    fn new(word: &str, said: String) -> Self {
        let word = word.to_owned();
        Self { word, said }
    }
}

impl Page {
    /// A page with the setting, the doubts and the failures of a run, and no figures yet.
    fn of(about: &About, warnings: &[Warning], title: String, headline: String) -> Self {
        let environment = &about.environment;
        let known = |value: &Option<String>| value.clone().unwrap_or_else(|| NOTHING.to_owned());
        let nofile = environment
            .nofile
            .as_ref()
            .map_or(NOTHING.to_owned(), |nofile| {
                format!("{} soft, {} hard", count(nofile.soft), count(nofile.hard))
            });
        let mut setting = vec![
            ("Throng", about.throng_version.clone()),
            ("report format", about.format_version.to_string()),
            ("started", date(about.started_unix_s)),
            ("took", format!("{:.1} s", about.duration_ms as f64 / 1e3)),
            (
                "kernel",
                environment
                    .kernel
                    .as_ref()
                    .map_or(NOTHING.to_owned(), |kernel| format!("Linux {kernel}")),
            ),
            ("CPU", known(&environment.cpu_model)),
            (
                "CPUs online",
                environment
                    .cpus
                    .map_or(NOTHING.to_owned(), |cpus| cpus.to_string()),
            ),
            (
                "memory",
                environment
                    .memory_total_bytes
                    .map_or(NOTHING.to_owned(), gib),
            ),
            ("clock source", known(&environment.clock_source)),
            ("server on CPUs", core_list(&about.placement.server)),
            ("client on CPUs", core_list(&about.placement.client)),
            ("open files (nofile)", nofile),
            ("open files of a measured process", count(about.nofile_hard)),
        ];
        setting.extend(setting::where_known(environment));
        setting.extend(about.machine.as_ref().map(|machine| {
            let all = machine.busy_ns + machine.steal_ns + machine.idle_ns;
            let share = |part: u64| percent(part as f64 / all.max(1) as f64);
            let (busy, steal) = (share(machine.busy_ns), share(machine.steal_ns));
            (
                "machine during the run",
                format!("{busy} busy, {steal} stolen by the hypervisor"),
            )
        }));
        Self {
            title,
            headline,
            findings: Vec::new(),
            charts: Vec::new(),
            tables: Vec::new(),
            notes: Vec::new(),
            texts: Vec::new(),
            doubts: warnings.iter().map(Warning::to_string).collect(),
            failures: about
                .failures
                .iter()
                .map(|failure| format!("{}: {}", failure.during, failure.cause))
                .collect(),
            is_partial: about.partial,
            setting: setting
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            sysctls: environment.sysctls.clone().into_iter().collect(),
            command: command(&about.command_line),
        }
    }
}

/// What could not be measured is part of the verdict.
fn skipped(skipped: &[Skipped]) -> impl Iterator<Item = Finding> {
    let said = skipped.iter().map(Skipped::said);
    said.map(|said| Finding::new("skipped", said))
}

/// The end of a headline.
fn doubted(number: usize) -> String {
    match number as u64 {
        0 => String::new(),
        1 => " There is 1 doubt about the run.".to_owned(),
        doubts => format!(" There are {} doubts about the run.", count(doubts)),
    }
}

/// A time in RFC 3339, which ends with the year 9999.
fn date(unix_s: u64) -> String {
    const YEAR_10000: u64 = 253_402_300_800;
    if unix_s >= YEAR_10000 {
        return NOTHING.to_owned();
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_s)).to_string()
}

/// The words as a POSIX shell takes them.
fn command(words: &[String]) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:=,+@%".contains(letter);
    let quoted = words.iter().map(|word| match word {
        plain if !plain.is_empty() && plain.chars().all(is_plain) => plain.clone(),
        other => format!("'{}'", other.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_has_a_form() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(u64::MAX), NOTHING);
    }

    #[test]
    fn a_command_line_can_be_given_to_a_shell() {
        let words = [
            "throng-bench",
            "--hold",
            "5s",
            "a b",
            "",
            "it's",
            "<script>",
        ];
        let words = words.map(String::from);
        assert_eq!(
            command(&words),
            r"throng-bench --hold 5s 'a b' '' 'it'\''s' '<script>'"
        );
    }
}
