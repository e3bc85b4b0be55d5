//! Memory and connections over a run, as a table by phase. Pure.

use crate::report::format::{NOTHING, count, figure, of_many, part_of_memory, rounded};
use crate::report::table::Table;
use crate::series::{Sample, Series};

/// What there was of `what` at the end of each phase, and the most that was queued in it; none without a sample.
pub fn by_phase(what: &str, series: &Series) -> Option<Table> {
    let first = series.samples.first()?;
    let samples = of_many(series.samples.len() as u64, "sample");
    let unread = match series.unread {
        0 => String::new(),
        unread => format!(", {} more unreadable", count(unread)),
    };
    let title = format!("{what}: at the end of each phase, of {samples}{unread}");
    let headings = [
        "connections",
        "TCP sockets",
        "slab, more",
        "queued pages, most",
        "server RSS",
        "client RSS",
    ];
    let mut table = Table::new(std::iter::once(title).chain(headings.map(str::to_owned)));
    for phase in series.phases() {
        let Some(last) = phase.last() else { continue };
        table.row(
            &format!("{}, at {:.1} s", last.phase, last.t_ms as f64 / 1e3),
            cells(first, phase, last),
        );
    }
    Some(table)
}

fn cells(first: &Sample, phase: &[Sample], last: &Sample) -> [String; 6] {
    let rss = |bytes: Option<u64>| bytes.map_or_else(|| NOTHING.to_owned(), part_of_memory);
    let queued = phase.iter().map(|sample| sample.queued_pages).max();
    [
        count(last.connections),
        count(last.sockets),
        part_of_memory(last.slab_bytes.saturating_sub(first.slab_bytes)),
        figure(queued.map(|pages| pages as f64), rounded),
        rss(last.server_rss_bytes),
        rss(last.client_rss_bytes),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::screen::Paint;
    use crate::series::tests::sample;

    #[test]
    fn each_phase_has_a_row_with_what_there_was_at_its_end() {
        let mut samples = vec![sample(0, "baseline", 0), sample(900, "baseline", 0)];
        samples.extend([sample(1_000, "ramp", 10), sample(1_500, "step-1", 100_000)]);
        let mut last = sample(9_000, "recovery", 0);
        last.client_rss_bytes = None;
        samples.push(last);
        let series = Series {
            every_ms: 250,
            samples,
            unread: 0,
        };
        let table = by_phase("10 with uring", &series).unwrap();
        let words = |row: &[String]| row.join(" ").trim().to_owned();
        let rows: Vec<String> = table.rows().iter().map(|row| words(row)).collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(
            rows[2],
            "step-1, at 1.5 s 100,000 200,000 763 MiB 0 15 MiB 13 MiB"
        );
        assert!(rows[3].ends_with(NOTHING), "{rows:?}");
        assert!(
            table
                .render(Paint::plain())
                .contains("10 with uring: at the end of each phase, of 5 samples")
        );
        assert!(by_phase("", &Series::default()).is_none());
    }
}
