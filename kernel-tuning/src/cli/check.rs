//! `throng-tune check`: the doctor's table, as text or JSON.

use std::fmt::Write;
use std::time::Instant;

use serde::Serialize;

use super::goal::Goal;
use super::paint::Paint;
use super::{Outcome, say};
use crate::check::{Finding, Readings, Theme, Trials, Verdict, check, grouped, role_name, size};
use crate::plan::plan;
use crate::setting::{Demand, Role};
use crate::tree::Tree;

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune check                                             for 100,000 connections, both ends here
  throng-tune check --connections 1000000 --role server         for a server that is to hold a million
  throng-tune check --json | jq '.findings[] | select(.verdict == \"fail\")'

Exit codes: 0 nothing is in the way, 10 warnings, 11 failures, 1 failed, 2 bad usage.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    goal: Goal,

    /// Print JSON: all that the text says and more
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// All of a run.
#[derive(Debug, Serialize)]
struct Report {
    connections: u64,
    role: Role,
    listen_ports: Vec<String>,
    ram_bytes: u64,
    kernel: Option<String>,
    cpus: Option<u64>,
    verdict: Verdict,
    passed: usize,
    warned: usize,
    failed: usize,
    unknown: usize,
    seconds: f64,
    findings: Vec<Finding>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let demand = args.goal.demand()?;
    let tree = Tree::default();
    let readings = Readings::read(&tree);
    let findings = check(&readings, &Trials::run(), &plan(&tree, &demand), &demand);
    let report = Report::new(&demand, &readings, findings, begun);
    match args.json {
        true => say(format_args!("{}\n", serde_json::to_string_pretty(&report)?)),
        false => say(report.text(Paint::for_stdout())),
    }
    Ok(match report.verdict {
        Verdict::Pass | Verdict::Unknown => Outcome::Done,
        Verdict::Warn => Outcome::Warned,
        Verdict::Fail => Outcome::Failed,
    })
}

impl Report {
    fn new(demand: &Demand, readings: &Readings, findings: Vec<Finding>, begun: Instant) -> Self {
        let count = |verdict| {
            findings
                .iter()
                .filter(|finding| finding.verdict == verdict)
                .count()
        };
        let ports = demand.listen_ports.iter();
        Self {
            connections: demand.connections,
            role: demand.role,
            listen_ports: ports
                .map(|range| format!("{}-{}", range.start(), range.end()))
                .collect(),
            ram_bytes: demand.ram_bytes,
            kernel: readings.kernel().map(str::to_owned),
            cpus: readings.cpus,
            verdict: findings
                .iter()
                .map(|finding| finding.verdict)
                .max()
                .unwrap_or(Verdict::Unknown),
            passed: count(Verdict::Pass),
            warned: count(Verdict::Warn),
            failed: count(Verdict::Fail),
            unknown: count(Verdict::Unknown),
            seconds: begun.elapsed().as_secs_f64(),
            findings,
        }
    }

    fn text(&self, paint: Paint) -> String {
        let mut text = format!(
            "{} connections, {}: Linux {}, {} CPUs, {}\n",
            grouped(self.connections),
            match self.role {
                Role::Server => "accepted here",
                Role::Client => "opened here",
                Role::Both => "both ends here",
            },
            self.kernel.as_deref().unwrap_or("unknown"),
            self.cpus
                .map_or("unknown".to_owned(), |cpus| cpus.to_string()),
            size(self.ram_bytes),
        );
        let width = self
            .findings
            .iter()
            .map(|finding| finding.name.chars().count())
            .max()
            .unwrap_or(0);
        for (index, finding) in self.findings.iter().enumerate() {
            if index == 0 || self.findings[index - 1].theme != finding.theme {
                let _ = writeln!(text, "\n{}", paint.bold(finding.theme.title()));
            }
            write_finding(&mut text, finding, width, paint);
        }
        let arguments = format!(
            "--connections {} --role {}",
            self.connections,
            role_name(self.role)
        );
        let _ = writeln!(
            text,
            "\n{} pass, {} warn, {} fail, {} could not be checked; {:.0} ms",
            self.passed,
            self.warned,
            self.failed,
            self.unknown,
            self.seconds * 1000.0
        );
        if self
            .findings
            .iter()
            .any(|finding| finding.theme == Theme::Settings && finding.fix.is_some())
        {
            let _ = writeln!(
                text,
                "all settings at once: sudo throng-tune apply {arguments} (see them first: throng-tune diff)"
            );
        }
        text
    }
}

/// One line where nothing is to be done; else also why and what.
fn write_finding(text: &mut String, finding: &Finding, width: usize, paint: Paint) {
    let (word, painted): (&str, fn(Paint, &str) -> String) = match finding.verdict {
        Verdict::Pass => ("pass", Paint::green),
        Verdict::Unknown => ("?   ", Paint::dim),
        Verdict::Warn => ("warn", Paint::yellow),
        Verdict::Fail => ("FAIL", Paint::red),
    };
    let wanted = match &finding.fix {
        None => paint.dim(&format!(" (wanted: {})", finding.wanted)),
        Some(_) => String::new(),
    };
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "  {}  {:width$}  {}{wanted}",
        painted(paint, word),
        finding.name,
        finding.now
    );
    let Some(fix) = &finding.fix else {
        return;
    };
    let rows = [
        ("wanted", &finding.wanted),
        ("why", &finding.why),
        ("now", &fix.now),
        ("keep", &fix.keep),
    ];
    for (key, value) in rows {
        let _ = writeln!(text, "        {} {value}", paint.dim(&format!("{key:6}")));
    }
}
