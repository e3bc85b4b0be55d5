//! The page of the command `memory`. Pure.

use super::spreads::{self, Spreads};
use super::{Finding, Page, doubted};
use crate::footprint::Growth;
use crate::memory::result::{Kept, MemoryReport, Side, Subject, Whose};
use crate::report::chart::{Chart, Row, Rows, Scale};
use crate::report::format::{bytes, count, join, spread};
use crate::report::ink::Ink;
use crate::report::memory::{
    HOW_A_SIDE_IS_TOLD, above, caches_above, doubts, exact, how_caches_count, sides, whole,
};
use crate::report::rounds::names;
use crate::scenario::Engine;
use crate::stats::Spread;

/// The page of `report`.
pub fn page(report: &MemoryReport) -> Page {
    let title = format!(
        "Throng: memory of an idle connection, {} above a bare socket",
        names(&report.plan.engines)
    );
    let doubts = doubts(report);
    let headline = headline(report) + &doubted(doubts.len());
    let mut page = Page::of(&report.about, &[], title, headline);
    page.doubts = doubts;
    page.findings = findings(report);
    if !report.kept.is_empty() {
        page.tables = vec![whole(report), above(report)];
        if !report.sides.is_empty() {
            page.tables.push(sides(report));
            page.notes.push(HOW_A_SIDE_IS_TOLD.replace('\n', " "));
        }
        page.notes.push(how_caches_count(report).replace('\n', " "));
    }
    let spreads = [
        by_side(report),
        kernel(report),
        above_bare(report),
        by_cache(report),
        server(report),
    ];
    spreads::add(&mut page, &spreads);
    page.charts.extend(breakdowns(report));
    page
}

fn headline(report: &MemoryReport) -> String {
    // Pages that are partly free come and go with other work; objects in use do not, but only root can read them.
    let has_objects = report
        .kept
        .iter()
        .all(|kept| kept.growth.slab_in_use.is_some());
    let (what, of): (_, fn(&Kept) -> Option<f64>) = match has_objects {
        true => ("slab objects in use", |kept| kept.growth.slab_in_use),
        false => ("kernel memory", of_kernel),
    };
    let each = |engine: &Engine| {
        let above = report.above_bare(*engine, of)?;
        Some(format!("{} B with {engine}", exact(above.median)))
    };
    let said: Vec<String> = report.plan.engines.iter().filter_map(each).collect();
    match said.as_slice() {
        [] if report.kept.is_empty() => "Nothing was measured.".to_owned(),
        [] => "Nothing was measured beside a bare socket in the same round.".to_owned(),
        said => format!(
            "Above a bare socket, an idle connection takes {} more: {what}, both ends together.",
            join(said)
        ),
    }
}

fn findings(report: &MemoryReport) -> Vec<Finding> {
    let subjects = report.plan.subjects().into_iter();
    let each = subjects.filter_map(|subject| {
        let kernel = report.figure(subject, of_kernel)?;
        let server = report.figure(subject, |kept| Some(kept.server_rss))?;
        let largest = report.median_growth(subject);
        let largest = largest
            .as_ref()
            .map_or(Vec::new(), |growth| largest_caches(growth, 3));
        let largest: Vec<String> = largest
            .into_iter()
            .map(|(name, value)| format!("{name} {}", bytes(value)))
            .collect();
        let largest = match largest.is_empty() {
            true => String::new(),
            false => format!(" (most of it: {})", join(&largest)),
        };
        let said = format!(
            "{} of the kernel{largest}, {} of the server",
            spread(&kernel, bytes),
            spread(&server, bytes)
        );
        Some(Finding::new(&subject.to_string(), said))
    });
    let held = format!(
        "{} connections, no greeting and no heartbeat; figures are for one of them, both ends together",
        count(report.plan.connections)
    );
    let kept = [Finding::new("kept", held)];
    let sides = report.sides.iter().map(of_side);
    each.chain(kept).chain(sides).collect()
}

/// What is of one side alone.
fn of_side(side: &Side) -> Finding {
    let and = |of: Option<Spread>, what: &str| {
        of.map_or_else(String::new, |of| format!(", {} {what}", spread(&of, bytes)))
    };
    let said = format!(
        "alone {} of the kernel{}{}",
        spread(&side.kernel, bytes),
        and(side.page_tables, "of page tables"),
        and(side.pss, "of the process (PSS)")
    );
    Finding::new(&side.whose.to_string(), said)
}

fn of_kernel(kept: &Kept) -> Option<f64> {
    Some(kept.growth.kernel())
}

fn ink(subject: Subject) -> Ink {
    match subject {
        Subject::Bare | Subject::Pair => Ink::Bare,
        Subject::Engine(engine) => Ink::of(engine),
    }
}

fn chart(title: &str, about: &str, of: Vec<(String, Spread, Ink)>) -> Spreads {
    Spreads {
        title: title.to_owned(),
        about: about.to_owned(),
        scale: Scale::FromZero,
        show: exact,
        of,
    }
}

/// What each side takes, broken down: of the kernel what is known best, objects in use where they can be read.
fn by_side(report: &MemoryReport) -> Spreads {
    let has_objects = report.sides.iter().all(|side| side.slab_in_use.is_some());
    let rows = report.sides.iter().flat_map(|side| {
        let kernel = match has_objects {
            true => ("kernel slab objects", side.slab_in_use),
            false => ("kernel", Some(side.kernel)),
        };
        let parts = [
            kernel,
            ("page tables", side.page_tables),
            ("process (PSS)", side.pss),
        ];
        let ink = match side.whose {
            Whose::Bare => Ink::Bare,
            Whose::Client => Ink::Peer,
            Whose::Server(engine) => Ink::of(engine),
        };
        parts.into_iter().filter_map(move |(part, spread)| {
            Some((format!("{}, {part}", side.whose), spread?, ink))
        })
    });
    chart(
        "One side of a connection, bytes",
        "Whose memory it is; of a server's process what is above empty, of the client's all",
        rows.collect(),
    )
}

fn kernel(report: &MemoryReport) -> Spreads {
    let subjects = report.plan.subjects().into_iter();
    let rows = subjects.filter_map(|subject| {
        let kernel = report.figure(subject, of_kernel)?;
        Some((subject.to_string(), kernel, ink(subject)))
    });
    chart(
        "Kernel memory a connection, bytes",
        "All that is accounted for by its use, both ends",
        rows.collect(),
    )
}

fn above_bare(report: &MemoryReport) -> Spreads {
    let rows = report.plan.engines.iter().filter_map(|engine| {
        let above = report.above_bare(*engine, of_kernel)?;
        Some((engine.to_string(), above, Ink::of(*engine)))
    });
    chart(
        "Kernel memory above a bare socket, bytes",
        "In the same round, both ends",
        rows.collect(),
    )
}

/// The largest differences; all of them stand in a table of their own.
fn by_cache(report: &MemoryReport) -> Spreads {
    const SHOWN: usize = 12;
    let names = caches_above(report);
    let each = names.iter().flat_map(|name| {
        report.plan.engines.iter().filter_map(move |engine| {
            let above = report.above_bare(*engine, |kept| {
                kept.growth.caches.as_ref()?;
                Some(kept.growth.of_cache(name).unwrap_or(0.0))
            })?;
            Some((format!("{name}, {engine}"), above, Ink::of(*engine)))
        })
    });
    let mut rows: Vec<_> = each.collect();
    rows.sort_by(|(_, one, _), (_, other, _)| other.median.abs().total_cmp(&one.median.abs()));
    rows.truncate(SHOWN);
    chart(
        "Slab caches above a bare socket, bytes",
        "Objects in use, in the same round: the largest differences",
        rows,
    )
}

fn server(report: &MemoryReport) -> Spreads {
    let subjects = report.plan.subjects().into_iter();
    let rows = subjects.filter_map(|subject| {
        let server = report.figure(subject, |kept| Some(kept.server_rss))?;
        Some((subject.to_string(), server, ink(subject)))
    });
    chart(
        "Server RSS a connection, bytes",
        "Resident memory of the server processes, above what they take empty",
        rows.collect(),
    )
}

/// What a connection of each takes by slab cache, beside the sums. The same caches in the same order for all, so that
/// they can be compared from chart to chart.
fn breakdowns(report: &MemoryReport) -> Vec<Chart> {
    const SHOWN: usize = 8;
    let growths = report.plan.subjects().into_iter();
    let growths: Vec<(Subject, Growth)> = growths
        .filter_map(|subject| Some((subject, report.median_growth(subject)?)))
        .collect();
    let Some((_, first)) = growths.first() else {
        return Vec::new();
    };
    let names: Vec<String> = largest_caches(first, SHOWN)
        .into_iter()
        .map(|(name, _)| name.to_owned())
        .collect();
    let of = |(subject, growth): &(Subject, Growth)| {
        growth.caches.as_ref()?;
        let caches = names
            .iter()
            .map(|name| (name.as_str(), growth.of_cache(name).unwrap_or(0.0)));
        let in_use = growth.slab_in_use.map(|sum| ("slab objects in use", sum));
        let sums = [in_use, Some(("kernel, all of these", growth.kernel()))];
        let rows = caches.chain(sums.into_iter().flatten());
        let row = |(label, value): (&str, f64)| Row {
            label: label.to_owned(),
            shown: exact(value),
            value,
            range: None,
            ink: ink(*subject),
        };
        Some(Chart::Rows(Rows {
            title: format!("{subject}: kernel memory by slab cache, bytes"),
            about: format!(
                "Median of the rounds, both ends: the largest {}, and the sums",
                names.len()
            ),
            scale: Scale::FromZero,
            tick: exact,
            rows: rows.map(row).collect(),
        }))
    };
    growths.iter().filter_map(of).collect()
}

/// The caches that grew most, the largest first.
fn largest_caches(growth: &Growth, most: usize) -> Vec<(&str, f64)> {
    let caches = growth.caches.iter().flatten();
    let mut caches: Vec<(&str, f64)> = caches
        .map(|(name, bytes)| (name.as_str(), *bytes))
        .filter(|(_, bytes)| *bytes >= 1.0)
        .collect();
    caches.sort_by(|one, other| other.1.total_cmp(&one.1));
    caches.truncate(most);
    caches
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::memory::result::tests::recorded;
    use crate::report::html::html;

    #[test]
    fn every_subject_is_broken_down_by_cache_and_held_against_the_bare_socket() {
        let report = recorded();
        let page = page(&report);
        let titles: Vec<&str> = page.charts.iter().map(|chart| chart.title()).collect();
        for subject in report.kept.iter().map(|kept| kept.subject) {
            let title = format!("{subject}: kernel memory by slab cache, bytes");
            assert!(titles.contains(&title.as_str()), "{titles:?}");
        }
        for title in [
            "Kernel memory above a bare socket, bytes",
            "Slab caches above a bare socket, bytes",
            "Server RSS a connection, bytes",
        ] {
            assert!(titles.contains(&title), "{titles:?}");
        }
        assert!(page.headline.contains(" with uring"), "{}", page.headline);
        // One side alone, with its parts.
        let words = page.charts[0].words();
        for part in [
            "one bare side, kernel slab objects: ",
            "Throng's client, process (PSS): ",
            "uring server, page tables: ",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }
        let said = |finding: &&Finding| finding.word == "uring server";
        let side = page.findings.iter().find(said).unwrap();
        assert!(side.said.contains("of the process (PSS)"), "{}", side.said);
        // Every figure of the breakdown stands in the first table.
        let cells: Vec<&str> = page.tables[0]
            .rows()
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        for chart in &page.charts {
            let Chart::Rows(rows) = chart else { panic!() };
            for row in rows.rows.iter().filter(|row| row.range.is_none()) {
                assert!(cells.contains(&row.shown.as_str()), "{}", row.label);
            }
        }
    }

    #[test]
    fn without_slabinfo_or_without_anything_it_is_told() {
        let mut report = recorded();
        for kept in &mut report.kept {
            kept.growth.caches = None;
            kept.growth.slab_in_use = None;
            kept.settled = false;
        }
        let told = page(&report);
        let notes = told.notes.join(" ");
        assert!(notes.contains("run as root") && told.headline.contains("doubts"));
        assert_eq!(told.charts.len(), 4);
        report.kept.clear();
        report.conclude();
        let page = page(&report);
        assert!(page.headline == "Nothing was measured." && page.charts.is_empty());
        html(&page).unwrap();
    }
}
