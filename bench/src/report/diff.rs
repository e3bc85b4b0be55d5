//! Two reports against each other, as text. Pure.

use crate::diff::{Change, Diff, Judgement};
use crate::report::format::{of_many, percent, spread};
use crate::report::table::Table;
use crate::report::text::section;
use crate::screen::Paint;

/// The table and the verdict.
pub fn results(diff: &Diff, paint: Paint) -> String {
    let mut parts = Vec::new();
    for counts in [true, false] {
        let changes: Vec<&Change> = diff
            .changes
            .iter()
            .filter(|change| change.counts == counts)
            .collect();
        if !changes.is_empty() {
            parts.push(table(counts, &changes).render(paint));
        }
    }
    parts.extend(section(paint.bold("Not in both"), diff.unmatched.clone()));
    let doubts = diff.doubts.iter().map(|doubt| paint.yellow(doubt));
    parts.extend(section(paint.bold("Doubts"), doubts.collect()));
    parts.push(paint.bold(&verdict(diff)));
    format!("\n{}\n", parts.join("\n\n"))
}

/// What the two say, in a sentence.
pub fn verdict(diff: &Diff) -> String {
    let of = |judgement| diff.judged(judgement).count() as u64;
    let worse: Vec<&str> = diff
        .judged(Judgement::Worse)
        .map(|change| change.name.as_str())
        .collect();
    let said = format!(
        "Of {} that count: {} worse beyond noise, {} better, {} the same, {} of too few rounds to tell.",
        of_many(
            diff.changes.iter().filter(|change| change.counts).count() as u64,
            "figure"
        ),
        of(Judgement::Worse),
        of(Judgement::Better),
        of(Judgement::Same),
        of(Judgement::TooFew)
    );
    match worse.is_empty() {
        true => said,
        false => format!("{said} Worse: {}.", worse.join("; ")),
    }
}

fn table(counts: bool, changes: &[&Change]) -> Table {
    let title = match counts {
        true => "figures that count, median [min – max]",
        false => "for information: the machine's drift is in them",
    };
    let headings = ["first", "second", "change", ""];
    let mut table = Table::new(std::iter::once(title).chain(headings).map(str::to_owned));
    for change in changes {
        let shown = |value: f64| match value.abs() {
            large if large >= 1_000.0 => crate::report::format::rounded(value),
            _ => format!("{value:.2}"),
        };
        let by = change.after.median / change.before.median - 1.0;
        let sign = if by >= 0.0 { "+" } else { "−" };
        let judgement = match change.judgement {
            Judgement::Better => "better",
            Judgement::Worse => "worse",
            Judgement::Same => "same",
            Judgement::TooFew => "too few rounds",
        };
        table.row(
            &change.name,
            [
                spread(&change.before, shown),
                spread(&change.after, shown),
                format!("{sign}{}", percent(by.abs())),
                judgement.to_owned(),
            ],
        );
    }
    table
}
