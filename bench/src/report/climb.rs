//! What `throng-bench hold` found, as text: the plan, a line for each step, then tables. Pure.

use crate::climb::plan::ClimbPlan;
use crate::climb::result::{Climb, Close, Step};
use crate::footprint::CACHES_UNREADABLE;
use crate::report::format::{
    NOTHING, bytes, count, figure, gib, micros, of_many, part_of_memory, rounded, span,
};
use crate::report::memory::growth_rows;
use crate::report::rounds::heading;
use crate::report::table::Table;
use crate::report::text::section;
use crate::screen::Paint;

/// What will be done, what it needs, and what there is.
pub fn plan(report: &Climb, paint: Paint) -> String {
    let ClimbPlan {
        engine,
        connections,
        hold_ms,
        heartbeat_ms,
        ..
    } = report.plan;
    let plan = &report.plan;
    let heartbeat = match heartbeat_ms {
        0 => "no heartbeat".to_owned(),
        every => format!("a heartbeat every {}", span(every)),
    };
    let what = format!("{} connections with {engine}", count(plan.most()));
    let mut lines = heading(&what, plan.estimate().as_secs(), &report.about, paint);
    lines.push(format!(
        "  servers  {}",
        match report.processes {
            1 => "1 process".to_owned(),
            several => format!("{several} processes"),
        }
    ));
    lines.push(format!(
        "  hold     {} connections for {}, {heartbeat}",
        count(connections),
        span(hold_ms)
    ));
    lines.extend(plan.active.map(|active| {
        format!(
            "  active   then {} messages a second on {} of them for {}, sent when due",
            count(active.message_rate),
            count(active.connections),
            span(active.for_ms)
        )
    }));
    lines.extend(plan.up.map(|up| {
        format!(
            "  up       then {} more at a time, up to {}, or until something is about to run out",
            count(up.step),
            count(up.to)
        )
    }));
    lines.push(needs(report, connections));
    if plan.most() > connections {
        lines.push(needs(report, plan.most()));
    }
    let enforced = match report.room.is_bound_by_file_max {
        true => "enforced for this user",
        false => "not enforced for this user (CAP_SYS_ADMIN), so only watched",
    };
    lines.push(format!(
        "  files    {} needed, {} open, fs.file-max {}: {enforced}",
        count(plan.needs_files(plan.most())),
        count(report.room.files_open),
        count(report.room.file_max)
    ));
    lines.join("\n") + "\n"
}

fn needs(report: &Climb, connections: u64) -> String {
    let (plan, available) = (&report.plan, report.room.available_bytes);
    let (needed, kept) = (plan.needs(connections), plan.keep_free(connections));
    format!(
        "  memory   {} connections need about {} ({} each, both ends); {} are available and {} kept free (--keep-free): {}",
        count(connections),
        part_of_memory(needed),
        bytes(plan.engine.bytes_per_connection() as f64),
        gib(available),
        part_of_memory(kept),
        match needed.saturating_add(kept) <= available {
            true => "enough",
            false => "not enough, so it will end before",
        }
    )
}

/// One step, as soon as it is over.
pub fn step_line(report: &Climb, step: &Step) -> String {
    let how = match (step.is_whole(), step.ramp_ms) {
        (true, Some(ramp_ms)) => format!(
            "the last {} in {}, held for {}",
            count(step.added),
            seconds(ramp_ms),
            seconds(step.held_ms)
        ),
        (false, Some(_)) => "the hold was cut short".to_owned(),
        (_, None) => format!("not the {} wanted", count(step.wanted)),
    };
    format!(
        "  {:>9} established: {how}, {} lost; kernel {}, server {} a connection; {} available",
        count(step.established),
        count(step.lost),
        figure(step.growth.as_ref().map(|growth| growth.kernel()), bytes),
        figure(report.server_rss_bytes_per_conn(step), bytes),
        gib(step.worst.available_lowest_bytes)
    )
}

/// The close, as soon as it is over.
pub fn close_line(close: &Close) -> String {
    let gone = match close.sockets_gone_ms {
        Some(gone_ms) => format!("all sockets were gone after {}", seconds(gone_ms)),
        None => "sockets were still there when it was waited for no longer".to_owned(),
    };
    format!(
        "  {:>9} closed: clients ended within {}, {gone}; {} available at the lowest, {} of TCP data queued at most",
        count(close.connections),
        seconds(close.clients_ended_ms),
        gib(close.worst.available_lowest_bytes),
        of_many(close.worst.queued_most_pages, "page")
    )
}

/// The tables, what stopped it, and the doubts.
pub fn results(report: &Climb, paint: Paint) -> String {
    let mut parts = vec![steps(report).render(paint), whole(report).render(paint)];
    parts.extend(memory(report).map(|table| table.render(paint)));
    parts.extend(report.lacks_caches().then(|| CACHES_UNREADABLE.to_owned()));
    if let Some(limit) = report.stopped_by {
        parts.push(paint.bold(&format!(
            "Held {}. Stopped by {limit}.",
            of_many(report.held(), "connection")
        )));
    }
    let warnings = report.warnings.iter();
    let warnings = warnings.map(|warning| paint.yellow(&warning.to_string()));
    parts.extend(section(paint.bold("Doubts"), warnings.collect()));
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

/// What the largest step that was held took of the kernel.
pub(crate) fn memory(report: &Climb) -> Option<Table> {
    let growth = report.highest()?.growth.as_ref()?;
    let title = "kernel memory a connection, both ends".to_owned();
    let mut table = Table::new([title, count(report.held())]);
    growth_rows(&mut table, &[Some(growth)]);
    Some(table)
}

/// Each step.
pub(crate) fn steps(report: &Climb) -> Table {
    let heading = [
        "connections",
        "first to last connect",
        "a second",
        "lost",
        "server RSS each",
        "client RSS each",
        "kernel each",
        "available",
        "open files",
    ];
    let mut table = Table::new(heading.map(String::from));
    for (index, step) in report.steps.iter().enumerate() {
        let of_client = |pointer| report.client_figure(index, pointer);
        table.row(
            &count(step.established),
            [
                figure(of_client("/ramp_seconds"), |time| format!("{time:.2} s")),
                figure(of_client("/connects_per_second"), rounded),
                count(step.lost),
                figure(report.server_rss_bytes_per_conn(step), bytes),
                figure(report.client_rss_bytes_per_conn(step), bytes),
                figure(step.growth.as_ref().map(|growth| growth.kernel()), bytes),
                gib(step.worst.available_lowest_bytes),
                count(step.worst.files_most),
            ],
        );
    }
    table
}

/// Latencies and counts of all steps together.
pub(crate) fn whole(report: &Climb) -> Table {
    let title = "the whole run".to_owned();
    let columns = ["p50", "p99", "p99.9", "largest"].map(String::from);
    let mut table = Table::new(std::iter::once(title).chain(columns));
    let percentiles = |of: &dyn Fn(&str) -> Option<f64>, histogram: &str| {
        let any = of(&format!("{histogram}/count")).is_some_and(|count| count > 0.0);
        ["p50", "p99", "p999", "max"].map(|at| {
            let value = of(&format!("{histogram}/{at}")).filter(|_| any);
            figure(value, micros)
        })
    };
    let by_server = |pointer: &str| report.worst_server_figure(pointer);
    let by_client = |pointer: &str| report.worst_client_figure(pointer);
    table.row(
        "heartbeats late, inside the server",
        percentiles(&by_server, "/heartbeat_lateness_us"),
    );
    table.row(
        "heartbeats late, at the client",
        percentiles(&by_client, "/heartbeats/lateness_us"),
    );
    table.row(
        "connect latency",
        percentiles(&by_client, "/connect_latency_us"),
    );
    if report.plan.active.is_some() {
        table.row(
            "echo, from when it was due",
            percentiles(&by_client, "/messages/latency_us"),
        );
        table.row(
            "echo, from when it was sent",
            percentiles(&by_client, "/messages/open_loop/latency_from_send_us"),
        );
        table.row(
            "client late to its own schedule",
            percentiles(&by_client, "/messages/open_loop/client_lateness_us"),
        );
        for (name, pointer) in [
            ("messages a second", "/messages/per_second"),
            ("messages due", "/messages/open_loop/due"),
            ("messages owed at the end", "/messages/open_loop/owed"),
            ("messages unanswered", "/messages/unanswered"),
        ] {
            table.row(name, [figure(by_client(pointer), rounded)]);
        }
    }
    let sum = |pointer| figure(report.server_sum(pointer).map(|sum| sum as f64), rounded);
    table.row("heartbeats sent", [sum("/heartbeats_sent")]);
    table.row("tables (rings)", [sum("/ring/rings")]);
    let close = report.close.as_ref();
    table.row(
        "close, until the last socket was gone",
        [close
            .and_then(|close| close.sockets_gone_ms)
            .map_or_else(|| NOTHING.to_owned(), seconds)],
    );
    let lowest = report.steps.iter().map(|step| step.worst);
    let lowest = lowest
        .chain(report.active)
        .chain(close.map(|close| close.worst))
        .map(|worst| worst.available_lowest_bytes);
    table.row(
        "memory available at the lowest",
        [lowest.min().map_or_else(|| NOTHING.to_owned(), gib)],
    );
    table
}

fn seconds(milliseconds: u64) -> String {
    format!("{:.1} s", milliseconds as f64 / 1e3)
}
