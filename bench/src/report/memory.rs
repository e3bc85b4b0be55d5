//! What connections take of the kernel's memory, as text. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::footprint::{CACHES_UNREADABLE, Growth};
use crate::memory::result::{Kept, MemoryPlan, MemoryReport, Side, Subject};
use crate::report::format::{NOTHING, bytes, count, figure, of_many, spread};
use crate::report::rounds::{heading, peers};
use crate::report::table::Table;
use crate::report::text::{engines, section};
use crate::run::About;
use crate::screen::Paint;
use crate::stats::Spread;
use crate::warning::others_of;

/// How the figures by cache are to be read.
const HOW_CACHES_COUNT: &str = "\
Objects in use (active_objs of /proc/slabinfo): the kernel counts a slab that a CPU is filling as in use as a whole,
some dozen objects a cache. Caches of like objects may be merged under one name. Caches of files on disk are left
out: other work of the host fills them. Outside of the caches are large tables (vmalloc), and the pages of a ring's
queues, which only the memory that is available (MemAvailable, and the free pages that CPUs keep for themselves) shows, with
the processes' own; it is a check, and moves with other work.";

/// How a side is told from both ends.
pub const HOW_A_SIDE_IS_TOLD: &str = "\
One side: slab is of the whole host, and nothing in it shows to which end an object belongs. A bare server and a bare client,
which do nothing but keep their connections, are alike but for the port that the client binds (128 to 256 bytes a connection,
which are in both halves evenly): one bare side is half of what they take. Throng's client is what it takes together with
the bare server, less one bare side; an engine's server is what it takes together with that client, less that client. Each of the
same round.";

/// What will be measured, and where.
pub fn plan(plan: &MemoryPlan, about: &About, paint: Paint) -> String {
    let what = format!(
        "memory of an idle connection, {} above a bare socket",
        engines(&plan.engines)
    );
    let mut lines = heading(&what, plan.estimate().as_secs(), about, paint);
    lines.push(format!(
        "  keep     {} connections, no greeting and no heartbeat, {}, in random order",
        count(plan.connections),
        of_many(plan.rounds as u64, "round")
    ));
    lines.extend(peers(&plan.peers));
    lines.join("\n") + "\n"
}

/// One measurement, as soon as it is over.
pub fn kept_line(kept: &Kept) -> String {
    format!(
        "  round {}  {:<11}  kernel {} a connection, both ends; slab in use {}; server {}{}",
        kept.round,
        kept.subject,
        bytes(kept.growth.kernel()),
        figure(kept.growth.slab_in_use, bytes),
        bytes(kept.server_rss),
        if kept.settled { "" } else { " (not settled)" }
    )
}

/// The tables and what they say.
pub fn results(report: &MemoryReport, paint: Paint) -> String {
    let mut parts = vec![whole(report).render(paint), above(report).render(paint)];
    if !report.sides.is_empty() {
        parts.push(sides(report).render(paint));
        parts.push(HOW_A_SIDE_IS_TOLD.to_owned());
    }
    parts.push(how_caches_count(report).to_owned());
    let doubts = doubts(report).into_iter();
    let doubts = doubts.map(|doubt| paint.yellow(&doubt));
    parts.extend(section(paint.bold("Doubts"), doubts.collect()));
    let failures = report.about.failures.iter();
    let failures =
        failures.map(|failure| paint.red(&format!("{}: {}", failure.during, failure.cause)));
    parts.extend(section(paint.bold("Failures"), failures.collect()));
    parts.push(format!(
        "The run took {:.1} s.",
        report.about.duration_ms as f64 / 1e3
    ));
    format!("\n{}\n", parts.join("\n\n"))
}

/// How the figures by cache are to be read, or why there are none.
pub(crate) fn how_caches_count(report: &MemoryReport) -> &'static str {
    match report.kept.iter().all(|kept| kept.growth.caches.is_some()) {
        true => HOW_CACHES_COUNT,
        false => CACHES_UNREADABLE,
    }
}

/// What is doubtful, measurement by measurement.
pub(crate) fn doubts(report: &MemoryReport) -> Vec<String> {
    let all = report.kept.iter();
    all.flat_map(|kept| doubts_of(kept, report.plan.connections))
        .collect()
}

fn doubts_of(kept: &Kept, connections: u64) -> Vec<String> {
    let Kept { subject, round, .. } = kept;
    let unsettled = (!kept.settled).then(|| {
        format!(
            "sockets or slab were not back near their base when {subject} began in round {round}"
        )
    });
    let others = others_of(
        (kept.growth.sockets * connections as f64) as i64,
        connections,
    );
    let others = others.map(|sockets| {
        format!(
            "while {subject} kept its connections in round {round}, {} sockets that were not of this run {}: its figures \
             are wrong; end what else has many connections and run again",
            count(sockets.unsigned_abs()),
            if sockets > 0 { "came" } else { "went" }
        )
    });
    unsettled.into_iter().chain(others).collect()
}

/// The rows of `columns`, each of which is what connections took: caches first, the largest on top, then the sums.
pub fn growth_rows(table: &mut Table, columns: &[Option<&Growth>]) {
    let largest = |name: &str| {
        let values = columns.iter().flatten();
        values
            .filter_map(|growth| growth.of_cache(name))
            .fold(0.0, |most: f64, value| most.max(value.abs()))
    };
    let names = columns.iter().flatten();
    let names = names.filter_map(|growth| growth.caches.as_ref());
    let names: BTreeSet<&String> = names.flat_map(|caches| caches.keys()).collect();
    let mut names: Vec<&String> = names
        .into_iter()
        .filter(|name| largest(name) >= 1.0)
        .collect();
    names.sort_by(|one, other| largest(other).total_cmp(&largest(one)));
    for name in names {
        let cells = columns.iter().map(|growth| {
            let value = growth.map(|growth| growth.of_cache(name).unwrap_or(0.0));
            figure(value, exact)
        });
        table.row(&format!("  {name}"), cells);
    }
    for (name, of) in SUMS {
        let values: Vec<Option<f64>> = columns.iter().map(|growth| of((*growth)?)).collect();
        if values.iter().any(Option::is_some) {
            table.row(name, values.into_iter().map(|value| figure(value, exact)));
        }
    }
}

/// A sum, and how it is taken from a growth.
type Sum = (&'static str, fn(&Growth) -> Option<f64>);

/// Outside of the caches, and in sum.
const SUMS: [Sum; 8] = [
    ("slab objects in use", |growth| growth.slab_in_use),
    ("slab pages, free slots and large kmallocs too", |growth| {
        Some(growth.slab_pages)
    }),
    ("vmalloc", |growth| Some(growth.vmalloc)),
    ("per-CPU", |growth| growth.percpu),
    ("page tables", |growth| Some(growth.page_tables)),
    ("queued TCP data", |growth| Some(growth.queued)),
    ("kernel, all of these", |growth| Some(growth.kernel())),
    ("available memory fell by, processes too", |growth| {
        Some(growth.available)
    }),
];

pub(crate) fn whole(report: &MemoryReport) -> Table {
    let subjects = report.plan.subjects();
    let title = format!(
        "bytes a connection, both ends, median of {}",
        of_many(report.plan.rounds as u64, "round")
    );
    let mut table =
        Table::new(std::iter::once(title).chain(subjects.iter().map(ToString::to_string)));
    let medians: Vec<Option<Growth>> = subjects
        .iter()
        .map(|subject| report.median_growth(*subject))
        .collect();
    let columns: Vec<Option<&Growth>> = medians.iter().map(Option::as_ref).collect();
    growth_rows(&mut table, &columns);
    let mut row = |name: &str, of: fn(&Kept) -> Option<f64>| {
        let cells = subjects.iter().map(|subject| {
            let spread = report.figure(*subject, of);
            figure(spread.map(|spread| spread.median), exact)
        });
        table.row(name, cells);
    };
    row("server RSS, above empty", |kept| Some(kept.server_rss));
    row("server PSS, above empty", |kept| kept.server_pss);
    row("server page tables (VmPTE), above empty", |kept| {
        kept.server_page_tables
    });
    row("client RSS", |kept| kept.client_rss);
    row("client PSS", |kept| kept.client_pss);
    row("client page tables (VmPTE)", |kept| kept.client_page_tables);
    row("a monitor's procfs inodes, in none of the sums", |kept| {
        kept.growth.procfs
    });
    let processes = subjects.iter().map(|subject| {
        let spread = report.figure(*subject, |kept| Some(kept.processes as f64));
        figure(spread.map(|spread| spread.median), exact)
    });
    table.row("server processes", processes);
    table
}

pub(crate) fn above(report: &MemoryReport) -> Table {
    let engines = &report.plan.engines;
    let title = "above the bare socket, median [min – max]".to_owned();
    let names = engines.iter().map(ToString::to_string);
    let mut table = Table::new(std::iter::once(title).chain(names));
    let mut row = |name: &str, of: &dyn Fn(&Kept) -> Option<f64>| {
        let cells = engines
            .iter()
            .map(|engine| shown(report.above_bare(*engine, of)));
        table.row(name, cells);
    };
    for name in caches_above(report) {
        let of = |kept: &Kept| {
            kept.growth.caches.as_ref()?;
            Some(kept.growth.of_cache(&name).unwrap_or(0.0))
        };
        row(&format!("  {name}"), &of);
    }
    row("slab objects in use", &|kept| kept.growth.slab_in_use);
    row("kernel, all that is accounted for", &|kept| {
        Some(kept.growth.kernel())
    });
    row("available memory fell by, processes too", &|kept| {
        Some(kept.growth.available)
    });
    table
}

/// What one side takes.
pub(crate) fn sides(report: &MemoryReport) -> Table {
    let title = "bytes of one side of a connection, median [min – max]".to_owned();
    let names = report.sides.iter().map(|side| side.whose.to_string());
    let mut table = Table::new(std::iter::once(title).chain(names));
    let caches = report.sides.iter().flat_map(|side| &side.caches).flatten();
    let mut largest: BTreeMap<&String, f64> = BTreeMap::new();
    for (name, bytes) in caches {
        let most = largest.entry(name).or_default();
        *most = most.max(bytes.abs());
    }
    let mut names: Vec<&String> = largest.keys().copied().collect();
    names.sort_by(|one, other| largest[other].total_cmp(&largest[one]));
    for name in names {
        let of = |side: &Side| {
            side.caches
                .as_ref()
                .map(|caches| caches.get(name).copied().unwrap_or(0.0))
        };
        let cells = report.sides.iter().map(|side| figure(of(side), exact));
        table.row(&format!("  {name}"), cells);
    }
    let mut row = |name: &str, of: fn(&Side) -> Option<Spread>| {
        table.row(name, report.sides.iter().map(|side| shown(of(side))));
    };
    row("slab objects in use", |side| side.slab_in_use);
    row("kernel, all that is accounted for", |side| {
        Some(side.kernel)
    });
    row("the process (PSS; of a server above empty)", |side| {
        side.pss
    });
    table
}

/// The caches of which any engine takes more, or less, than the bare socket.
pub(crate) fn caches_above(report: &MemoryReport) -> Vec<String> {
    let bare = report.median_growth(Subject::Bare);
    let mut differing = BTreeSet::new();
    for engine in &report.plan.engines {
        let growth = report.median_growth(Subject::Engine(*engine));
        let caches = [&growth, &bare].into_iter().flatten();
        let caches = caches.filter_map(|growth| growth.caches.as_ref());
        let names: BTreeSet<&String> = caches.flat_map(|caches| caches.keys()).collect();
        let of = |growth: Option<&Growth>, name: &str| {
            growth
                .and_then(|growth| growth.of_cache(name))
                .unwrap_or(0.0)
        };
        let differs =
            |name: &&String| (of(growth.as_ref(), name) - of(bare.as_ref(), name)).abs() >= 1.0;
        differing.extend(names.into_iter().filter(differs).cloned());
    }
    differing.into_iter().collect()
}

fn shown(value: Option<Spread>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| spread(&value, exact))
}

/// To the byte: what is compared here differs by tens of them.
pub(crate) fn exact(value: f64) -> String {
    let sign = if value.round() < 0.0 { "−" } else { "" };
    format!("{sign}{}", count(value.abs().round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::result::tests::{growth, report};
    use crate::scenario::Engine;

    #[test]
    fn caches_stand_side_by_side_and_above_the_bare_socket() {
        let uring = Subject::Engine(Engine::Uring);
        let report = report(vec![
            (Subject::Pair, 1, growth(8_000.0, 0.0)),
            (Subject::Bare, 1, growth(8_000.0, 0.0)),
            (uring, 1, growth(8_000.0, 256.0)),
        ]);
        let text = results(&report, Paint::plain());
        let cells = |name: &str| {
            let lines = text
                .lines()
                .filter(|line| line.trim_start().starts_with(name));
            lines
                .map(|line| {
                    line.split_whitespace()
                        .map(str::to_owned)
                        .collect::<Vec<_>>()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(
            cells("io_kiocb"),
            [
                vec!["io_kiocb", "0", "0", "256"],
                vec!["io_kiocb", "256"],
                vec!["io_kiocb", "0", "0", "256"]
            ]
        );
        assert_eq!(
            cells("TCP"),
            [
                ["TCP", "8,000", "8,000", "8,000"],
                ["TCP", "4,000", "4,000", "4,000"]
            ]
        );
        assert!(
            text.contains("One side: slab is of the whole host"),
            "{text}"
        );
        assert!(text.contains("active_objs"), "{text}");
    }

    #[test]
    fn an_ordinary_user_is_told_what_is_missing() {
        let mut bare = growth(8_000.0, 0.0);
        bare.caches = None;
        bare.slab_in_use = None;
        let text = results(&report(vec![(Subject::Bare, 1, bare)]), Paint::plain());
        assert!(!text.contains("One side"), "{text}");
        assert!(
            text.contains("run as root") && text.contains("8,010"),
            "{text}"
        );
        assert!(!text.contains("active_objs"));
    }

    #[test]
    fn a_figure_below_zero_keeps_its_sign() {
        assert_eq!(
            [exact(-12.4), exact(-0.2), exact(1_234.0)],
            ["−12", "0", "1,234"]
        );
    }
}
