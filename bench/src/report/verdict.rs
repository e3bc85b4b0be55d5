//! What the figures say, in sentences: where io_uring wins, ties or loses. Pure.
//!
//! A win or a loss needs every pair of rounds on the same side; everything else is a tie.

use std::fmt;

use crate::report::format::{bytes, count, join, median, ratio, span};
use crate::result::{EchoSummary, Report};
use crate::scenario::{Engine, server_processes};
use crate::stats::{Side, Spread, side};
use crate::warning::Warning;

/// A sentence of the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Who wins, or what it is about.
    pub word: &'static str,
    /// In what, and by how much.
    pub said: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:<14}  {}", self.word, self.said)
    }
}

/// The sentences, the most important first.
pub fn verdicts(report: &Report) -> Vec<Verdict> {
    let mut said: Vec<Verdict> = report.echo_summary.iter().filter_map(cpu).collect();
    said.extend(
        report
            .echo_summary
            .iter()
            .filter_map(|summary| rate(report, summary)),
    );
    said.extend(memory(report));
    said
}

/// What the servers' CPU time is made of, where all of it could be read.
pub const SOFTIRQ_NOTE: &str = "CPU time is that of the processes and of ksoftirqd on their cores: loopback receives a message in a softirq of its \
     sender, charged to the sender, and what a softirq does not finish is left to ksoftirqd, a kernel thread charged to \
     no process.";

/// Why the epoll baseline has several processes, when it has.
pub fn processes_note(report: &Report) -> Option<String> {
    let plan = &report.plan;
    let held = plan.hold.as_ref().map(|hold| hold.connections);
    let active = plan
        .echo
        .as_ref()
        .and_then(|echo| echo.active.iter().copied().max());
    let scenarios = [(held, "hold"), (active, "echo")];
    let several: Vec<String> = scenarios
        .into_iter()
        .filter_map(|(connections, scenario)| {
            let processes = server_processes(Engine::Epoll, connections?, plan.nofile_hard);
            (processes > 1)
                .then(|| format!("{processes} processes share its port in the {scenario}"))
        })
        .collect();
    (!several.is_empty() && plan.engines.contains(&Engine::Epoll)).then(|| {
        format!(
            "epoll needs an open file for each connection, and this machine allows a process {} (nofile): so {}. A limit \
             of this machine, not a fault of epoll.",
            count(plan.nofile_hard),
            join(&several)
        )
    })
}

fn cpu(summary: &EchoSummary) -> Option<Verdict> {
    let ratios = summary.cpu_ratio()?;
    let what = format!("CPU a message, {}", summary.case);
    Some(sentence(&what, &ratios, [Side::Below, Side::Above]))
}

fn rate(report: &Report, summary: &EchoSummary) -> Option<Verdict> {
    let ratios = summary.rate_ratio()?;
    let bounded = report.warnings.iter().any(
        |warning| matches!(warning, Warning::ClientBusier { case, .. } if *case == summary.case.to_string()),
    );
    let doubt = if bounded {
        ", bounded by the client"
    } else {
        ""
    };
    let what = format!("messages a second, {}{doubt}", summary.case);
    Some(sentence(&what, &ratios, [Side::Above, Side::Below]))
}

/// `won` and `lost` are the sides on which io_uring wins and loses.
fn sentence(what: &str, ratios: &Spread, [won, lost]: [Side; 2]) -> Verdict {
    let word = match side(ratios) {
        Some(side) if side == won => "io_uring wins",
        Some(side) if side == lost => "epoll wins",
        Some(_) => "a tie",
        None => "too few rounds",
    };
    let [min, max] = [ratios.min, ratios.max].map(ratio);
    let median = median(ratios, ratio);
    let said = format!("{what}: {median} of epoll's, pairs {min} – {max}");
    Verdict { word, said }
}

fn memory(report: &Report) -> Option<Verdict> {
    let of = |engine| {
        let hold = report.hold_of(engine)?;
        Some((
            bytes(hold.slab_bytes_per_conn()?),
            bytes(hold.server_rss_bytes_per_conn()?),
        ))
    };
    let (uring, epoll) = (of(Engine::Uring)?, of(Engine::Epoll)?);
    let held = span(report.plan.hold.as_ref()?.hold_ms);
    let said = format!(
        "a connection held for {held}, uring and epoll: {} and {} in the kernel, both ends; {} and {} in the servers \
         (one hold each)",
        uring.0, epoll.0, uring.1, epoll.1
    );
    Some(Verdict {
        word: "memory",
        said,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::result::tests::recorded;

    /// A result in which io_uring took `share` of epoll's CPU time in each round.
    fn with_cpu_shares(shares: &[f64]) -> Report {
        let mut report = recorded();
        for echo in &mut report.echo {
            let share = match echo.engine {
                Engine::Uring => shares[(echo.round - 1) % shares.len()],
                _ => 1.0,
            };
            echo.messages = 100_000;
            echo.cpu.server_cpu_ns = (1e9 * share) as u64;
            echo.cpu.server_softirq_ns = Some(0);
        }
        report.conclude();
        report
    }

    #[test]
    fn wins_ties_and_losses_are_named_as_such() {
        let first = |shares: &[f64]| verdicts(&with_cpu_shares(shares)).remove(0).word;
        assert!(first(&[0.8, 0.9]) == "io_uring wins");
        assert!(first(&[0.8, 1.1]) == "a tie");
        assert!(first(&[1.2, 1.1]) == "epoll wins");
    }

    #[test]
    fn a_median_of_enough_pairs_has_its_interval() {
        let mut report = with_cpu_shares(&[0.8, 0.9]);
        assert!(!verdicts(&report)[0].said.contains("95 %"));
        let mut more = report.echo.clone();
        more.iter_mut().for_each(|echo| echo.round += 5);
        report.echo.extend(more);
        report.plan.echo.as_mut().unwrap().rounds = 10;
        report.conclude();
        let said = verdicts(&report)[0].to_string();
        assert!(
            said.starts_with("io_uring wins   CPU")
                && said.contains("(95 %: 0.80 – 0.90) of epoll's")
        );
    }

    #[test]
    fn several_processes_are_explained_by_the_limit_of_the_machine() {
        let mut report = recorded();
        report.plan.nofile_hard = 20_000;
        report.plan.hold.as_mut().unwrap().connections = 100_000;
        assert!(
            processes_note(&report)
                .unwrap()
                .contains("6 processes share its port in the hold. A limit")
        );
        report.plan.echo.as_mut().unwrap().active = vec![500, 50_000];
        let note = processes_note(&report).unwrap();
        assert!(
            note.contains("in the hold and 3 processes share its port in the echo"),
            "{note}"
        );
        report.plan.nofile_hard = 1_000_000;
        assert_eq!(processes_note(&report), None);
    }
}
