//! A [`Page`] as Markdown for a pull request: the verdict and the tables, and the rest folded. Pure.
//!
//! Invariant: what comes from a report is text, whatever letters it has: escaped, or inside a fence longer than any in it.

use std::fmt::Write;

use crate::report::page::Page;
use crate::report::table::Table;

/// The whole text.
pub fn markdown(page: &Page) -> String {
    let mut out = format!(
        "## {}\n\n**{}**\n\n",
        text(&page.title),
        text(&page.headline)
    );
    if page.is_partial {
        out += "**Partial: the run ended early.**\n\n";
    }
    let findings = page.findings.iter();
    let findings =
        findings.map(|finding| format!("{}: {}", text(&finding.word), text(&finding.said)));
    out += &list(findings);
    for (title, said) in [("Failures", &page.failures), ("Doubts", &page.doubts)] {
        if !said.is_empty() {
            out += &format!(
                "### {title}\n\n{}",
                list(said.iter().map(|line| text(line)))
            );
        }
    }
    page.tables.iter().for_each(|each| out += &table(each));
    for note in &page.notes {
        out += &format!("{}\n\n", text(note));
    }
    for (title, lines) in &page.texts {
        out += &folded(&text(title), &fenced("text", lines));
    }
    let width = page
        .setting
        .iter()
        .chain(&page.sysctls)
        .map(|(name, _)| name.chars().count());
    let width = width.max().unwrap_or(0);
    let lines = page.setting.iter().chain(&page.sysctls);
    let lines: Vec<String> = lines
        .map(|(name, value)| format!("{name:<width$}  {value}"))
        .collect();
    let reproduce = format!(
        "To reproduce it, on an idle machine set up so:\n\n{}",
        fenced("sh", &page.command)
    );
    out += &folded(
        "Where it was measured, and how",
        &(fenced("text", &lines.join("\n")) + &reproduce),
    );
    out.trim_end().to_owned() + "\n"
}

fn list(lines: impl Iterator<Item = String>) -> String {
    let lines: String = lines.map(|line| format!("- {line}\n")).collect();
    if lines.is_empty() {
        lines
    } else {
        lines + "\n"
    }
}

fn table(table: &Table) -> String {
    let line = |cells: &mut dyn Iterator<Item = String>| {
        format!(
            "|{}\n",
            cells.map(|cell| format!(" {cell} |")).collect::<String>()
        )
    };
    let columns = table.heading().len();
    let mut out = line(&mut table.heading().iter().map(|cell| text(cell)));
    out +=
        &line(&mut (0..columns).map(|column| if column == 0 { ":--" } else { "--:" }.to_owned()));
    for row in table.rows() {
        let is_group = row.len() == 1;
        let cells = row.iter().map(|cell| match text(cell.trim()) {
            name if is_group => format!("**{name}**"),
            cell => cell,
        });
        out += &line(
            &mut cells
                .chain(std::iter::repeat_with(String::new))
                .take(columns),
        );
    }
    out + "\n"
}

fn folded(summary: &str, inner: &str) -> String {
    format!("<details><summary>{summary}</summary>\n\n{inner}</details>\n\n")
}

/// Lines as they are, between fences that none of them can close.
fn fenced(language: &str, lines: &str) -> String {
    let longest = lines
        .split(|letter| letter != '`')
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    format!("{fence}{language}\n{lines}\n{fence}\n\n")
}

/// A line of text with nothing in it that Markdown or HTML would read.
fn text(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for letter in line.chars() {
        // Writing to a String does not fail.
        let _ = match letter {
            '&' => out.write_str("&amp;"),
            '<' => out.write_str("&lt;"),
            '\n' | '\r' => out.write_char(' '),
            '\\' | '`' | '*' | '[' | ']' | '|' | '~' => write!(out, "\\{letter}"),
            other => out.write_char(other),
        };
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::Shown;
    use crate::report::page::compare;
    use crate::result::tests::recorded;

    /// When the form changes on purpose: `UPDATE_GOLDEN=1 cargo test -p throng-bench golden`.
    #[test]
    fn golden() {
        const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
        let golden = [
            (
                "report.md",
                include_str!("../../testdata/report.md"),
                compare::page(&recorded()),
            ),
            (
                "floor.md",
                include_str!("../../testdata/floor.md"),
                crate::floor::result::tests::recorded().page(),
            ),
            (
                "memory.md",
                include_str!("../../testdata/memory.md"),
                crate::memory::result::tests::recorded().page(),
            ),
        ];
        for (file, golden, page) in golden {
            let text = markdown(&page);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(format!("{DIRECTORY}/{file}"), &text).unwrap();
            } else {
                assert_eq!(text, golden, "{file}");
            }
        }
    }

    #[test]
    fn what_a_report_holds_closes_no_fence_and_opens_no_markup() {
        let mut report = recorded();
        report
            .about
            .command_line
            .push("a\n```\n</details><script>".to_owned());
        report.about.throng_version = "|x|<script>`".to_owned();
        report.plan.engines.clear();
        let text = markdown(&compare::page(&report));
        assert!(
            text.contains("````sh\nthrong-bench 'a\n```\n</details><script>'\n````\n"),
            "{text}"
        );
        assert_eq!(super::text("a|b <i> *c*\nd"), "a\\|b &lt;i> \\*c\\* d");
    }
}
