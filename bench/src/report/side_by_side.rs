//! The tables that put the engines side by side. Pure.

use crate::report::format::{
    NOTHING, bytes, count, figure, micros, of_many, percent, ratio, rounded, span, spread,
};
use crate::report::table::Table;
use crate::result::{EngineEcho, Hold, Report};
use crate::scenario::Engine;
use crate::stats::Spread;
use crate::warning::DROP_COUNTERS;

/// What each engine's hold found, and the ratio where one means something.
pub fn hold_table(report: &Report) -> Table {
    let hold = report.plan.hold.as_ref();
    let title = hold.map_or_else(String::new, |hold| {
        format!(
            "{} connections held for {}",
            count(hold.connections),
            span(hold.hold_ms)
        )
    });
    let mut table = heading(report, title);
    for (name, value, show, is_compared) in HOLD_ROWS {
        let of = |engine| report.hold_of(engine).and_then(value);
        let cells = report
            .plan
            .engines
            .iter()
            .map(|engine| figure(of(*engine), show));
        let quotient = || {
            Some(ratio(
                of(Engine::Uring)? / of(Engine::Epoll).filter(|value| *value > 0.0)?,
            ))
        };
        table.row(name, cells.chain(is_compared.then(quotient).flatten()));
    }
    table
}

/// What the echo rounds found, with the ratios pair by pair.
pub fn echo_table(report: &Report) -> Table {
    let plan = report.plan.echo.as_ref();
    let rounds = report.echo.iter().map(|echo| echo.round).max();
    let title = plan.map_or_else(String::new, |echo| {
        format!(
            "echo, median [min – max] of {}",
            of_many(rounds.unwrap_or(echo.rounds) as u64, "round")
        )
    });
    let mut table = heading(report, title);
    let processes = report.plan.engines.iter().map(|engine| {
        figure(
            report.echo_processes(*engine).map(|count| count as f64),
            rounded,
        )
    });
    table.row("server processes", processes);
    let cpu_a_message = if report.has_softirq() {
        "server CPU a message, softirq included, µs"
    } else {
        "server CPU a message, µs"
    };
    for summary in report
        .echo_summary
        .iter()
        .filter(|summary| !summary.engines.is_empty())
    {
        table.row(&summary.case.to_string(), []);
        let mut row = |name: &str,
                       value: fn(&EngineEcho) -> Spread,
                       show: &dyn Fn(f64) -> String,
                       ratios: Option<Spread>| {
            let cells = report.plan.engines.iter().map(|engine| {
                summary.of(*engine).map_or_else(
                    || NOTHING.to_owned(),
                    |figures| spread(&value(figures), show),
                )
            });
            let ratios = ratios.map(|ratios| spread(&ratios, ratio));
            table.row(&format!("  {name}"), cells.chain(ratios));
        };
        row(
            "messages a second",
            |figures| figures.per_second,
            &rounded,
            summary.rate_ratio(),
        );
        row(
            cpu_a_message,
            |figures| figures.cpu_us_per_message,
            &|value| format!("{value:.2}"),
            summary.cpu_ratio(),
        );
        row(
            "whole machine's CPU a message, µs",
            |figures| figures.machine_cpu_us_per_message,
            &|value| format!("{value:.2}"),
            None,
        );
        row(
            "server busy, of a core",
            |figures| figures.server_cores,
            &percent,
            None,
        );
        row(
            "client busy, of a core",
            |figures| figures.client_cores,
            &percent,
            None,
        );
        // Of the two that are always compared the last column tells.
        if report.plan.engines.len() > 2 {
            for (name, of) in OF_EPOLL {
                let cells = report.plan.engines.iter().map(|engine| {
                    let ratios = summary.of(*engine).and_then(of);
                    ratios.map_or_else(String::new, |ratios| spread(&ratios, ratio))
                });
                table.row(&format!("  {name}"), cells);
            }
        }
    }
    table
}

/// A ratio to epoll: what it is of, and where it stands.
type OfEpoll = (&'static str, fn(&EngineEcho) -> Option<Spread>);

const OF_EPOLL: [OfEpoll; 2] = [
    ("CPU a message ÷ epoll's", |figures| figures.cpu_of_epoll),
    ("messages a second ÷ epoll's", |figures| {
        figures.rate_of_epoll
    }),
];

fn heading(report: &Report, title: String) -> Table {
    let engines = report
        .plan
        .engines
        .iter()
        .map(|engine| engine.name().to_owned());
    let last = has_both(report).then(|| "uring ÷ epoll".to_owned());
    Table::new(std::iter::once(title).chain(engines).chain(last))
}

fn has_both(report: &Report) -> bool {
    [Engine::Uring, Engine::Epoll]
        .iter()
        .all(|engine| report.plan.engines.contains(engine))
}

/// A row of the hold's table: what it is, from a hold, as text, and whether a ratio of the two engines means something.
type HoldRow = (
    &'static str,
    fn(&Hold) -> Option<f64>,
    fn(f64) -> String,
    bool,
);

const HOLD_ROWS: &[HoldRow] = &[
    (
        "established",
        |hold| Some(hold.established as f64),
        rounded,
        false,
    ),
    (
        "lost while held",
        |hold| hold.client_figure("/lost_while_held"),
        rounded,
        false,
    ),
    (
        "server processes",
        |hold| Some(hold.processes as f64),
        rounded,
        false,
    ),
    (
        "first connect to last established",
        |hold| hold.client_figure("/ramp_seconds"),
        seconds,
        true,
    ),
    (
        "connects a second",
        |hold| hold.client_figure("/connects_per_second"),
        rounded,
        true,
    ),
    (
        "connect latency p99",
        |hold| hold.client_figure("/connect_latency_us/p99"),
        micros,
        true,
    ),
    (
        "kernel memory a connection, both ends",
        Hold::slab_bytes_per_conn,
        bytes,
        true,
    ),
    (
        "server RSS a connection, above empty",
        Hold::server_rss_bytes_per_conn,
        bytes,
        true,
    ),
    (
        "queued TCP data, pages",
        |hold| Some(hold.queued_pages()? as f64),
        rounded,
        false,
    ),
    (
        "server CPU while connecting",
        |hold| Some(hold.ramp?.server_ns() as f64 / 1e9),
        seconds,
        true,
    ),
    (
        "server CPU while held, of a core",
        |hold| Some(hold.hold?.server_cores()),
        percent,
        true,
    ),
    (
        "heartbeats received",
        |hold| heartbeats(hold, "/heartbeats/received"),
        rounded,
        false,
    ),
    (
        "heartbeats late p99, at the client",
        |hold| heartbeats(hold, "/heartbeats/lateness_us/p99"),
        micros,
        false,
    ),
    (
        "heartbeats late p99, at the server",
        |hold| hold.worst_server_figure("/heartbeat_lateness_us/p99"),
        micros,
        false,
    ),
    (
        "handshakes and packets dropped or repeated",
        |hold| Some(dropped(hold) as f64),
        rounded,
        false,
    ),
];

fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

/// A peer has none, which is not the same as none that came.
fn heartbeats(hold: &Hold, pointer: &str) -> Option<f64> {
    match hold.engine {
        Engine::Peer(_) => None,
        Engine::Uring | Engine::Epoll | Engine::TokioUring => hold.client_figure(pointer),
    }
}

/// ListenDrops has ListenOverflows in it.
fn dropped(hold: &Hold) -> u64 {
    let apart = DROP_COUNTERS
        .iter()
        .filter(|name| **name != "ListenOverflows");
    apart.filter_map(|name| hold.counters.get(name)).sum()
}
