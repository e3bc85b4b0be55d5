//! The page of a comparison. Pure.

use super::{Finding, Page, doubted};
use crate::report::chart::{Chart, PERCENTILES, Row, Rows, Scale};
use crate::report::format::{bytes, count, micros, of_many, ratio, rounded, span, spread};
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
    page.charts = charts(report);
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

fn charts(report: &Report) -> Vec<Chart> {
    let mut charts = vec![
        ratios(report),
        echo(
            report,
            "Messages a second",
            |echo| echo.per_second,
            &rounded,
        ),
        echo(
            report,
            "Server CPU a message, µs",
            |echo| echo.cpu_us_per_message,
            &|value| format!("{value:.2}"),
        ),
    ];
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
    charts.push(each(
        "Kernel memory a connection, both ends",
        Hold::slab_bytes_per_conn,
    ));
    charts.push(each(
        "Server RSS a connection, above empty",
        Hold::server_rss_bytes_per_conn,
    ));
    charts.push(lateness(report));
    charts
        .into_iter()
        .filter(|rows| !rows.rows.is_empty())
        .map(Chart::Rows)
        .collect()
}

/// uring ÷ epoll, pair by pair.
fn ratios(report: &Report) -> Rows {
    let rows = report.echo_summary.iter().flat_map(|summary| {
        [
            ("CPU a message", summary.cpu_ratio),
            ("messages a second", summary.rate_ratio),
        ]
        .into_iter()
        .filter_map(move |(what, ratios)| {
            Some(row(
                format!("{what}, {}", summary.case),
                &ratios?,
                &ratio,
                Ink::Uring,
            ))
        })
    });
    Rows {
        title: "uring ÷ epoll, pair by pair".to_owned(),
        about: format!(
            "Median of the pairs, {}; at 1.00 both are equal. Less CPU is better, more messages are better",
            whisker(report)
        ),
        scale: Scale::AroundOne,
        tick: ratio,
        rows: rows.collect(),
    }
}

fn echo(
    report: &Report,
    title: &str,
    of: fn(&EngineEcho) -> Spread,
    show: &dyn Fn(f64) -> String,
) -> Rows {
    let rows = report.echo_summary.iter().flat_map(|summary| {
        summary.engines.iter().map(|figures| {
            let label = format!("{}, {}", figures.engine, summary.case);
            row(label, &of(figures), show, Ink::of(figures.engine))
        })
    });
    Rows {
        title: title.to_owned(),
        about: format!("Median of the rounds, {}", whisker(report)),
        scale: Scale::FromZero,
        tick: plain,
        rows: rows.collect(),
    }
}

/// A value with its interval, or with the whole range of too few values for one.
fn row(label: String, of: &Spread, show: &dyn Fn(f64) -> String, ink: Ink) -> Row {
    let (low, high) = of
        .interval
        .map_or((of.min, of.max), |interval| (interval.low, interval.high));
    let shown = spread(
        &Spread {
            min: low,
            max: high,
            ..*of
        },
        show,
    );
    Row {
        label,
        shown,
        value: of.median,
        range: Some((low, high)),
        ink,
    }
}

fn whisker(report: &Report) -> &'static str {
    let all = report
        .echo_summary
        .iter()
        .flat_map(|summary| &summary.engines);
    match all
        .map(|figures| figures.per_second.interval)
        .all(|interval| interval.is_some())
    {
        true => "with its 95 % interval (bootstrap)",
        false => "with the least and the greatest: too few rounds for an interval",
    }
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

fn plain(value: f64) -> String {
    if value.abs() < 100.0 && value.fract() != 0.0 {
        format!("{value:.1}")
    } else {
        rounded(value)
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
    fn an_interval_is_drawn_where_there_is_one_and_otherwise_the_range() {
        let mut report = recorded();
        assert!(
            page(&report).charts[0]
                .about()
                .contains("too few rounds for an interval")
        );
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
        let interval = report.echo_summary[0].cpu_ratio.unwrap().interval.unwrap();
        let Chart::Rows(rows) = &page.charts[0] else {
            panic!()
        };
        assert_eq!(rows.rows[0].range, Some((interval.low, interval.high)));
    }
}
