//! Spreads side by side: as a chart, and as the table of what the chart shows. Pure.
//!
//! Invariant: a range is drawn as the 95 % interval where every spread of its chart has one, and else as the least and
//! the greatest of all; the chart says which.

use super::{Finding, Page};
use crate::report::chart::{Chart, Row, Rows, Scale};
use crate::report::format::{NOTHING, median, of_many, ratio};
use crate::report::ink::Ink;
use crate::report::table::Table;
use crate::scenario::Engine;
use crate::stats::{Side, Spread, side};

/// Spreads of one figure.
#[derive(Debug)]
pub(super) struct Spreads {
    /// What is shown.
    pub(super) title: String,
    /// How it is to be read.
    pub(super) about: String,
    /// The axis.
    pub(super) scale: Scale,
    /// A value as text.
    pub(super) show: fn(f64) -> String,
    /// From the top: of what, and in which colour.
    pub(super) of: Vec<(String, Spread, Ink)>,
}

impl Spreads {
    /// The chart; `None` of nothing.
    pub(super) fn chart(&self) -> Option<Chart> {
        let all_have = self.has_intervals();
        let rows = self.of.iter().map(|(label, spread, ink)| {
            let (low, high) = spread
                .interval
                .filter(|_| all_have)
                .map_or((spread.min, spread.max), |interval| {
                    (interval.low, interval.high)
                });
            let range = Spread {
                min: low,
                max: high,
                ..*spread
            };
            Row {
                label: label.clone(),
                shown: crate::report::format::spread(&range, self.show),
                value: spread.median,
                range: Some((low, high)),
                ink: *ink,
            }
        });
        (!self.of.is_empty()).then(|| {
            Chart::Rows(Rows {
                title: self.title.clone(),
                about: format!("{}: {}", self.about, self.whisker()),
                scale: self.scale,
                tick: self.show,
                rows: rows.collect(),
            })
        })
    }

    /// Whether there is something to show, and all of it has an interval.
    pub(super) fn has_intervals(&self) -> bool {
        let mut spreads = self.of.iter().map(|(_, spread, _)| spread);
        !self.of.is_empty() && spreads.all(|spread| spread.interval.is_some())
    }

    fn whisker(&self) -> &'static str {
        let mut counts = self.of.iter().map(|(_, spread, _)| spread.count);
        match self.has_intervals() {
            true => "median, with its 95 % interval (bootstrap)",
            false if counts.all(|count| count == 1) => "one measurement each",
            false => "median, with the least and the greatest: too few rounds for an interval",
        }
    }
}

/// Adds the charts of `all`, and one table with all their figures.
pub(super) fn add(page: &mut Page, all: &[Spreads]) {
    page.charts.extend(all.iter().filter_map(Spreads::chart));
    page.tables.extend(table(all));
}

/// What the charts show and more, a group for each.
pub(super) fn table(all: &[Spreads]) -> Option<Table> {
    let heading = [
        "the charts' figures",
        "median",
        "95 % interval",
        "least",
        "greatest",
        "of",
    ];
    let mut table = Table::new(heading.map(str::to_owned));
    for spreads in all.iter().filter(|spreads| !spreads.of.is_empty()) {
        table.row(&spreads.title, []);
        for (label, spread, _) in &spreads.of {
            let show = spreads.show;
            let interval = spread.interval.map_or(NOTHING.to_owned(), |interval| {
                format!("{} – {}", show(interval.low), show(interval.high))
            });
            let cells = [
                show(spread.median),
                interval,
                show(spread.min),
                show(spread.max),
                of_many(spread.count as u64, "value"),
            ];
            table.row(&format!("  {label}"), cells);
        }
    }
    (!table.rows().is_empty()).then_some(table)
}

/// Who is better in `what`, by `engine`'s share of epoll's in the same rounds; `won` is the side on which `engine` wins.
/// A win needs every pair on the same side.
pub(super) fn against_epoll(engine: Engine, what: &str, ratios: &Spread, won: Side) -> Finding {
    let word = match side(ratios) {
        None => "too few rounds".to_owned(),
        Some(Side::Tie) => "a tie".to_owned(),
        Some(side) if side == won => format!("{engine} wins"),
        Some(_) => "epoll wins".to_owned(),
    };
    let [min, max] = [ratios.min, ratios.max].map(ratio);
    let median = median(ratios, ratio);
    Finding {
        word,
        said: format!("{what}: {engine} has {median} of epoll's, pairs {min} – {max}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spreads(counts: &[usize]) -> Spreads {
        let of = counts.iter().map(|count| {
            let spread = Spread::of((0..*count).map(|value| 1.0 + value as f64)).unwrap();
            ("x".to_owned(), spread, Ink::Uring)
        });
        Spreads {
            title: "t".to_owned(),
            about: "a".to_owned(),
            scale: Scale::AroundOne,
            show: ratio,
            of: of.collect(),
        }
    }

    fn range(spreads: &Spreads) -> (Option<(f64, f64)>, String) {
        let Some(Chart::Rows(rows)) = spreads.chart() else {
            panic!()
        };
        (rows.rows[0].range, rows.about)
    }

    #[test]
    fn an_interval_is_drawn_where_all_have_one_and_otherwise_the_range() {
        let all = spreads(&[15, 6]);
        let interval = all.of[0].1.interval.unwrap();
        let (drawn, about) = range(&all);
        assert_eq!(drawn, Some((interval.low, interval.high)));
        assert!(about.contains("95 % interval"), "{about}");
        let (drawn, about) = range(&spreads(&[15, 5]));
        assert_eq!(drawn, Some((1.0, 15.0)));
        assert!(about.contains("too few rounds"), "{about}");
        assert!(spreads(&[]).chart().is_none());
    }

    #[test]
    fn every_figure_of_a_chart_stands_in_the_table() {
        let all = [spreads(&[7]), spreads(&[]), spreads(&[3])];
        let table = table(&all).unwrap();
        let cells: Vec<&String> = table.rows().iter().flatten().collect();
        for spreads in &all {
            for (_, spread, _) in &spreads.of {
                for figure in [spread.median, spread.min, spread.max] {
                    assert!(cells.iter().any(|cell| **cell == ratio(figure)), "{figure}");
                }
            }
        }
        assert_eq!(table.rows().iter().filter(|row| row.len() == 1).count(), 2);
    }

    #[test]
    fn a_win_needs_every_pair() {
        let word = |values: &[f64], won| {
            let ratios = Spread::of(values.iter().copied()).unwrap();
            against_epoll(Engine::TokioUring, "CPU", &ratios, won).word
        };
        let below = [0.9, 0.8, 0.9, 0.7, 0.8];
        assert_eq!(word(&below, Side::Below), "tokio-uring wins");
        assert_eq!(word(&below, Side::Above), "epoll wins");
        assert_eq!(word(&[0.9, 0.8, 1.1, 0.7, 0.8], Side::Below), "a tie");
        assert_eq!(word(&below[..4], Side::Below), "too few rounds");
    }
}
