//! A [`Page`] as one HTML file that needs nothing else: no network, no script. Pure.
//!
//! Invariant: the template escapes whatever comes from a report; of all that it holds only the drawings are put in as
//! they are, and their library escapes their texts.

use askama::Template;

use crate::report::chart::{Chart, Drawing};
use crate::report::ink::Ink;
use crate::report::page::Page;

#[derive(Template)]
#[template(path = "report.html")]
struct Html<'a> {
    page: &'a Page,
    drawings: Vec<(&'a Chart, Drawing)>,
}

/// The whole file.
///
/// # Errors
/// A chart that cannot be drawn.
pub fn html(page: &Page) -> Result<String, String> {
    let drawings = page.charts.iter();
    let drawings = drawings.map(|chart| Ok((chart, chart.draw()?)));
    let drawings = drawings.collect::<Result<_, String>>()?;
    let html = Html { page, drawings }.render();
    html.map_err(|error| format!("the page cannot be made: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::report::page::compare;
    use crate::result::tests::recorded;

    #[test]
    fn a_page_stands_alone_in_both_themes_and_on_a_phone() {
        let text = html(&compare::page(&recorded())).unwrap();
        for part in [
            "<meta name=\"viewport\" content=\"width=device-width",
            "prefers-color-scheme: dark",
            "role=\"img\"",
            "default-src 'none'",
            "How to reproduce it",
        ] {
            assert!(text.contains(part), "{part}");
        }
        for loads in [
            "<script", "<link", "<img", "<iframe", "@import", "url(", " src=", " href=",
        ] {
            assert!(!text.contains(loads), "{loads}");
        }
        assert!(text.len() < 1_000_000, "{}", text.len());
        for ink in Ink::ALL {
            assert!(
                text.contains(&format!("[fill=\"{}\"]", ink.light())),
                "{ink:?}"
            );
        }
    }

    #[test]
    fn the_verdict_comes_first_then_charts_with_their_figures_then_tables() {
        let page = compare::page(&recorded());
        let text = html(&page).unwrap();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}"));
        assert!(at("class=\"headline\"") < at("<figure>"));
        assert!(at("<figure>") < at("<table>") && at("<table>") < at("Doubts"));
        assert_eq!(text.matches("<figure>").count(), page.charts.len());
        assert_eq!(page.charts.len(), 6);
        assert_eq!(text.matches("<desc id=").count(), page.charts.len());
        assert!(page.charts.iter().all(|chart| !chart.words().is_empty()));
    }

    #[test]
    fn what_a_report_holds_is_text_and_no_markup() {
        const HOSTILE: &str = "</pre></desc><script>alert(1)</script>\"'&";
        let mut report = recorded();
        report.about.command_line.push(HOSTILE.to_owned());
        report.about.environment.kernel = Some(HOSTILE.to_owned());
        report
            .about
            .environment
            .sysctls
            .insert(HOSTILE.to_owned(), HOSTILE.to_owned());
        report.about.throng_version = HOSTILE.to_owned();
        report.about.failures.push(crate::result::Failure {
            during: HOSTILE.to_owned(),
            cause: HOSTILE.to_owned(),
            stderr_tail: Vec::new(),
        });
        let text = html(&compare::page(&report)).unwrap();
        assert!(text.contains("alert(1)") && !text.contains("<script"));
        assert_eq!(text.matches("</pre>").count(), 2);
    }
}
