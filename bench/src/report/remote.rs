//! Two hosts as text. Pure.

use crate::footprint::CACHES_UNREADABLE;
use crate::remote::join::{Counted, Ends, Kept, Phase, Spent};
use crate::remote::plan::Plan;
use crate::remote::protocol::{Hello, Watched};
use crate::remote::result::Report;
use crate::report::format::{NOTHING, count, figure, join, micros, percent, rounded, span};
use crate::report::memory::growth_rows;
use crate::report::rounds::machine;
use crate::report::table::Table;
use crate::report::text::section;
use crate::run::About;
use crate::screen::Paint;

/// What will be run, and where.
pub fn plan(plan: &Plan, agent: &Hello, about: &About, paint: Paint) -> String {
    let named = |one: &Watched| format!("{} {}", one.name, one.pid);
    let watched: Vec<String> = agent.processes.iter().map(named).collect();
    let messages = match plan.active {
        0 => String::new(),
        active => format!(", {} of them exchange messages", count(active)),
    };
    let quiet = match plan.quiet_ms {
        0 => String::new(),
        quiet_ms => format!("{} quiet, then ", span(quiet_ms)),
    };
    let lines = [
        paint.bold(&format!(
            "Throng {}: {} connections to {}, both hosts watched, about {} s",
            about.throng_version,
            count(plan.connections),
            join(&plan.targets),
            plan.estimate().as_secs()
        )),
        format!("  client   {}", machine(&about.environment)),
        format!(
            "  server   {}: {}",
            machine(&agent.environment),
            join(&watched)
        ),
        format!("  hold     {quiet}{}{messages}", span(plan.hold_ms)),
        format!(
            "  look     at both hosts every {}; the agent at {} is of Throng {}",
            span(plan.interval_ms),
            plan.agent,
            agent.throng_version
        ),
    ];
    lines.join("\n") + "\n"
}

/// The tables, the clocks, the doubts and the failures.
pub fn results(report: &Report, paint: Paint) -> String {
    let mut parts = Vec::new();
    if !report.phases.is_empty() {
        parts.push(phases(&report.phases).render(paint));
        parts.push(HOW_CPU_COUNTS.to_owned());
    }
    if let Some(table) = memory(report) {
        parts.push(table.render(paint));
        let has_caches = [&report.kept.server, &report.kept.client]
            .into_iter()
            .flatten()
            .all(|kept| kept.growth.caches.is_some());
        parts.extend((!has_caches).then(|| CACHES_UNREADABLE.to_owned()));
    }
    parts.push(clocks(report));
    let doubts = report.warnings.iter();
    let doubts = doubts.map(|doubt| paint.yellow(&doubt.to_string()));
    parts.extend(section(paint.bold("Doubts"), doubts.collect()));
    let failures = report.about.failures.iter();
    let failures =
        failures.map(|failure| paint.red(&format!("{}: {}", failure.during, failure.cause)));
    parts.extend(section(paint.bold("Failures"), failures.collect()));
    let seconds = report.about.duration_ms as f64 / 1e3;
    parts.push(format!("The run took {seconds:.1} s."));
    if report.about.partial {
        parts.push(paint.red("Partial: the run ended early."));
    }
    format!("{}\n", parts.join("\n\n"))
}

pub(crate) const HOW_CPU_COUNTS: &str = "\
CPU time is that of the processes and of ksoftirqd on all CPUs of their host; the whole machine's time has interrupts in \
it too, and all else that ran there, but for the looks. Of hold, quiet and active the first fifth is not counted.";

pub(crate) fn phases(phases: &[Phase]) -> Table {
    let headings = [
        "phase",
        "length",
        "counted",
        "server: CPU each",
        "whole machine",
        "busy, of a core",
        "client: CPU each",
        "whole machine",
        "busy, of a core",
    ];
    let mut table = Table::new(headings.map(str::to_owned));
    for phase in phases {
        let seconds = (phase.end_us - phase.begin_us) as f64 / 1e6;
        let Ends { server, client } = &phase.spent;
        let counted = server.as_ref().or(client.as_ref()).zip(phase.counted);
        let counted = counted.map_or_else(
            || NOTHING.to_owned(),
            |(spent, what)| format!("{} {}", rounded(spent.count), name(what)),
        );
        let cells = [server, client].into_iter().flat_map(cost);
        let first = [format!("{seconds:.2} s"), counted];
        table.row(&phase.name, first.into_iter().chain(cells));
    }
    table
}

/// What is counted, in the plural.
pub(crate) fn name(counted: Counted) -> &'static str {
    match counted {
        Counted::Connections => "connections",
        Counted::Heartbeats => "heartbeats",
        Counted::Messages => "messages",
        Counted::Cycles => "cycles",
    }
}

fn cost(spent: &Option<Spent>) -> [String; 3] {
    let Some(spent) = spent else {
        return [(); 3].map(|()| NOTHING.to_owned());
    };
    [
        micros_each(spent.each_us()),
        micros_each(spent.machine_each_us()),
        percent(spent.cores()),
    ]
}

/// CPU time of one of many.
pub(crate) fn micros_each(us: Option<f64>) -> String {
    figure(us, |us| format!("{us:.2} µs"))
}

/// What a connection takes of each host; on one machine, of both ends together.
pub(crate) fn memory(report: &Report) -> Option<Table> {
    let Ends { server, client } = &report.kept;
    let columns: Vec<Option<&Kept>> = match report.is_one_host {
        true => vec![server.as_ref()],
        false => vec![server.as_ref(), client.as_ref()],
    };
    let connections = columns.iter().flatten().next()?.connections;
    let ends: &[&str] = match report.is_one_host {
        true => &["both ends"],
        false => &["server's end", "client's end"],
    };
    let title = format!("{} connections at rest, B each", count(connections));
    let headings = std::iter::once(title).chain(ends.iter().map(|end| (*end).to_owned()));
    let mut table = Table::new(headings);
    let growths: Vec<_> = columns
        .iter()
        .map(|kept| kept.map(|kept| &kept.growth))
        .collect();
    growth_rows(&mut table, &growths);
    for (name, of) in OF_PROCESSES {
        let cells = [server, client].map(|kept| figure(kept.as_ref().and_then(of), exact));
        if report.is_one_host {
            let [server, client] = cells;
            table.row(&format!("{name} of the server, above empty"), [server]);
            table.row(&format!("{name} of the client, all"), [client]);
        } else {
            let row = format!("{name}: the server's above empty, the client's all");
            table.row(&row, cells);
        }
    }
    Some(table)
}

/// A figure of the processes, and how it is taken from what was kept.
type OfProcesses = (&'static str, fn(&Kept) -> Option<f64>);

const OF_PROCESSES: [OfProcesses; 3] = [
    ("RSS", |kept| Some(kept.rss_bytes)),
    ("PSS", |kept| kept.pss_bytes),
    ("open files", |kept| kept.open_files),
];

fn exact(value: f64) -> String {
    format!("{value:.0}")
}

/// How the clocks were held together.
pub(crate) fn clocks(report: &Report) -> String {
    let Some(clock) = &report.clock else {
        return "The clock of the server's host is not known: it was not asked in time.".to_owned();
    };
    let way = |is_behind| if is_behind { "behind" } else { "ahead" };
    let offset_ns = clock.end.offset_ns;
    let differs = match offset_ns.unsigned_abs() <= clock.uncertainty_ns {
        true => "is the client's".to_owned(),
        false => {
            let seconds = (offset_ns as f64 / 1e9).abs();
            format!("is {seconds:.6} s {}", way(offset_ns < 0))
        }
    };
    let day = report.day_clock_ahead_us.map(|us| {
        let by = micros(us.abs() as f64);
        format!(" Its clock of day is {by} {}.", way(us < 0))
    });
    format!(
        "Clocks: that of the server's host (CLOCK_MONOTONIC) {differs}, known to ±{} from {} exchanges, and gains {:.1} \
         ppm.{}",
        micros(clock.uncertainty_ns as f64 / 1e3),
        count(clock.exchanges as u64),
        clock.drift_ppm,
        day.unwrap_or_default()
    )
}
