//! The page of a comparison. Pure.

use super::spreads::{Spreads, table};
use super::{Finding, Page, doubted};
use crate::report::chart::{Chart, PERCENTILES, Row, Rows, Scale};
use crate::report::format::{bytes, count, micros, of_many, ratio, rounded, span};
use crate::report::ink::Ink;
use crate::report::side_by_side::{echo_table, hold_table};
use crate::report::text::engines;
use crate::report::verdict::{SOFTIRQ_NOTE, Verdict, processes_note, verdicts};
use crate::result::{EngineEcho, Hold, Report};
use crate::stats::Spread;

/// The page of `report`.
pub fn page(report: &Report) -> Page {
    let verdicts = verdicts(report);
    let title = format!("Throng: {}", engines(&report.plan.engines));
    let mut page = Page::of(
        &report.about,
        &report.warnings,
        title,
        headline(report, &verdicts),
    );
    let said = verdicts
        .into_iter()
        .map(|verdict| Finding::new(verdict.word, verdict.said));
    page.findings = said.chain(holds(report).map(held)).collect();
    let spreads = spreads(report);
    page.charts = spreads.iter().filter_map(Spreads::chart).collect();
    page.charts.extend(of_holds(report));
    if !report.hold.is_empty() {
        page.tables.push(hold_table(report));
    }
    if report
        .echo_summary
        .iter()
        .any(|summary| !summary.engines.is_empty())
    {
        page.tables.push(echo_table(report));
    }
    // Without intervals the table above has all that the charts have.
    if spreads.iter().any(Spreads::has_intervals) {
        page.tables.extend(table(&spreads));
    }
    page.notes
        .extend(report.has_softirq().then(|| SOFTIRQ_NOTE.to_owned()));
    page.notes.extend(processes_note(report));
    page.notes.extend(report.cut.as_ref().map(|cut| {
        format!(
            "{} connections were wanted, but memory was there for {} only.",
            count(cut.wanted),
            count(cut.fits)
        )
    }));
    page
}

/// How often io_uring wins, loses and ties.
fn headline(report: &Report, verdicts: &[Verdict]) -> String {
    let of = |word: &str| {
        verdicts
            .iter()
            .filter(|verdict| verdict.word == word)
            .count() as u64
    };
    let [won, lost, tied, unknown] =
        ["io_uring wins", "epoll wins", "a tie", "too few rounds"].map(of);
    let compared = won + lost + tied + unknown;
    if compared == 0 {
        let said = match report.plan.engines.as_slice() {
            _ if report.hold.is_empty() && report.echo.is_empty() => "Nothing was measured.",
            [_] => "One engine only: nothing to compare it with.",
            _ => "Connections were held side by side; no messages were compared.",
        };
        return said.to_owned();
    }
    if unknown == compared {
        return "Too few rounds to tell who wins.".to_owned();
    }
    let mut parts = vec![
        format!("wins {won}"),
        format!("loses {lost}"),
        format!("ties in {tied}"),
    ];
    if unknown > 0 {
        parts.push(format!("has too few rounds in {unknown}"));
    }
    let doubts = doubted(report.warnings.len());
    format!(
        "Of {} with epoll, io_uring {}; a win needs every pair of rounds.{doubts}",
        of_many(compared, "comparison"),
        parts.join(", ")
    )
}

/// In the order of the engines, which is not that of the run.
fn holds(report: &Report) -> impl Iterator<Item = &Hold> {
    report
        .plan
        .engines
        .iter()
        .filter_map(|engine| report.hold_of(*engine))
}

fn held(hold: &Hold) -> Finding {
    let lost = hold
        .client_figure("/lost_while_held")
        .map_or(String::new(), |lost| {
            format!(", {} lost while held", rounded(lost))
        });
    let said = format!(
        "{} of {} connections with {}{lost}",
        count(hold.established),
        count(hold.wanted),
        hold.engine
    );
    Finding::new("held", said)
}

/// What the holds found.
fn of_holds(report: &Report) -> Vec<Chart> {
    let each = |title: &str, value: fn(&Hold) -> Option<f64>| {
        let rows = holds(report).filter_map(|hold| {
            let value = value(hold)?;
            Some(Row {
                label: hold.engine.to_string(),
                shown: bytes(value),
                value,
                range: None,
                ink: Ink::of(hold.engine),
            })
        });
        let held = report.plan.hold.as_ref().map_or(String::new(), |hold| {
            format!(
                "{} connections, each engine held once for {}",
                count(hold.connections),
                span(hold.hold_ms)
            )
        });
        Rows {
            title: title.to_owned(),
            about: held,
            scale: Scale::FromZero,
            tick: bytes,
            rows: rows.collect(),
        }
    };
    let rows = [
        each(
            "Kernel memory a connection, both ends",
            Hold::slab_bytes_per_conn,
        ),
        each(
            "Server RSS a connection, above empty",
            Hold::server_rss_bytes_per_conn,
        ),
        lateness(report),
    ];
    rows.into_iter()
        .filter(|rows| !rows.rows.is_empty())
        .map(Chart::Rows)
        .collect()
}

/// Each engine ÷ epoll, pair by pair, and what each engine did.
fn spreads(report: &Report) -> [Spreads; 3] {
    let ratios = report.echo_summary.iter().flat_map(|summary| {
        summary.engines.iter().flat_map(|figures| {
            let both = [
                ("CPU a message", figures.cpu_of_epoll),
                ("messages a second", figures.rate_of_epoll),
            ];
            let (engine, case) = (figures.engine, summary.case);
            both.into_iter().filter_map(move |(what, ratios)| {
                Some((
                    format!("{engine}: {what}, {case}"),
                    ratios?,
                    Ink::of(engine),
                ))
            })
        })
    });
    let echo = |title: &str, about: &str, of: fn(&EngineEcho) -> Spread, show| {
        let rows = report.echo_summary.iter().flat_map(|summary| {
            summary.engines.iter().map(move |figures| {
                let label = format!("{}, {}", figures.engine, summary.case);
                (label, of(figures), Ink::of(figures.engine))
            })
        });
        Spreads {
            title: title.to_owned(),
            about: about.to_owned(),
            scale: Scale::FromZero,
            show,
            of: rows.collect(),
        }
    };
    [
        Spreads {
            title: "÷ epoll, pair by pair".to_owned(),
            about: "At 1.00 both are equal. Less CPU is better, more messages are better"
                .to_owned(),
            scale: Scale::AroundOne,
            show: ratio,
            of: ratios.collect(),
        },
        echo(
            "Messages a second",
            "More is better",
            |echo| echo.per_second,
            rounded,
        ),
        echo(
            "Server CPU a message, µs",
            "Less is better",
            |echo| echo.cpu_us_per_message,
            |us| format!("{us:.2}"),
        ),
    ]
}

/// How late heartbeats were: p99, from the median to the largest.
fn lateness(report: &Report) -> Rows {
    type Figure<'a> = &'a dyn Fn(&Hold, &str) -> Option<f64>;
    let sides: [(&str, Figure<'_>); 2] = [
        ("at the client", &|hold, at| {
            hold.client_figure(&format!("/heartbeats/lateness_us/{at}"))
        }),
        ("at the server", &|hold, at| {
            hold.worst_server_figure(&format!("/heartbeat_lateness_us/{at}"))
        }),
    ];
    let rows = holds(report).flat_map(|hold| {
        sides.iter().filter_map(|(side, of)| {
            of(hold, "count").filter(|count| *count > 0.0)?;
            Some(Row::percentiles(
                format!("{} {side}", hold.engine),
                [of(hold, "p50")?, of(hold, "p99")?, of(hold, "max")?],
                Ink::of(hold.engine),
            ))
        })
    });
    Rows {
        title: "Heartbeats late".to_owned(),
        about: PERCENTILES.to_owned(),
        scale: Scale::Decades,
        tick: micros,
        rows: rows.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::result::tests::recorded;
    use crate::scenario::Engine;

    fn headline(change: impl FnOnce(&mut Report)) -> String {
        let mut report = recorded();
        change(&mut report);
        report.conclude();
        page(&report).headline
    }

    #[test]
    fn the_headline_says_what_could_be_compared() {
        let all = headline(|_| ());
        assert!(
            all.contains("Of 4 comparisons with epoll, io_uring wins"),
            "{all}"
        );
        let few = headline(|report| report.echo.retain(|echo| echo.round < 3));
        assert_eq!(few, "Too few rounds to tell who wins.");
        let held = headline(|report| report.echo.clear());
        assert!(held.contains("no messages were compared"), "{held}");
        let one = headline(|report| {
            report.plan.engines = vec![Engine::Epoll];
            report.echo.retain(|echo| echo.engine == Engine::Epoll);
        });
        assert!(one.contains("One engine only"), "{one}");
        let none = headline(|report| {
            report.echo.clear();
            report.hold.clear();
        });
        assert_eq!(none, "Nothing was measured.");
    }

    #[test]
    fn intervals_stand_in_a_table_of_their_own_where_there_are_any() {
        let mut report = recorded();
        assert_eq!(page(&report).tables.len(), 2);
        for shift in [5, 10] {
            let mut more = report.echo.clone();
            more.retain(|echo| echo.round <= 5);
            more.iter_mut().for_each(|echo| echo.round += shift);
            report.echo.extend(more);
        }
        report.plan.echo.as_mut().unwrap().rounds = 15;
        report.conclude();
        let page = page(&report);
        assert!(page.charts[0].about().contains("95 % interval"));
        assert_eq!(page.tables.len(), 3);
        let interval = report.echo_summary[0]
            .cpu_ratio()
            .unwrap()
            .interval
            .unwrap();
        let cell = format!("{} – {}", ratio(interval.low), ratio(interval.high));
        assert!(page.tables[2].rows().iter().flatten().any(|it| *it == cell));
    }
}
