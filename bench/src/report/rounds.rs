//! What the texts of all measurements in rounds have in common. Pure.

use kernel_tuning::host::Environment;

use crate::blocks::Skipped;
use crate::exchange::{Figures, Times};
use crate::peer::Peer;
use crate::report::format::{count, gib, of_many, percent, rounded, span, spread};
use crate::report::verdict::SOFTIRQ_NOTE;
use crate::rounds::Goal;
use crate::run::About;
use crate::scenario::Engine;
use crate::screen::Paint;
use crate::servers::core_list;
use crate::warning::Warning;

/// The first lines: what is run, about how long, and where.
pub fn heading(what: &str, seconds: u64, about: &About, paint: Paint) -> Vec<String> {
    vec![
        paint.bold(&format!(
            "Throng {}: {what}, about {seconds} s",
            about.throng_version
        )),
        format!("  machine  {}", machine(&about.environment)),
        format!(
            "  cores    server {}, client {}; open files a process (nofile) {}",
            core_list(&about.placement.server),
            core_list(&about.placement.client),
            count(about.nofile_hard)
        ),
    ]
}

/// How the peers are started, a line each.
pub fn peers(peers: &[Peer]) -> impl Iterator<Item = String> {
    peers
        .iter()
        .map(|peer| format!("  peer     {}: {}", peer.name, peer.command))
}

/// The machine in a line.
pub fn machine(environment: &Environment) -> String {
    let parts = [
        environment
            .kernel
            .as_ref()
            .map(|kernel| format!("Linux {kernel}")),
        environment.cpu_model.clone(),
        environment.cpus.map(|cpus| format!("{cpus} CPUs")),
        environment.memory_total_bytes.map(gib),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// How a measurement is made.
pub fn how(rounds: usize, times: &Times) -> String {
    format!(
        "{}, all in random order, {} each of which the first {} are not counted",
        of_many(rounds as u64, "round"),
        span(times.exchange_ms),
        span(times.warm_up_ms)
    )
}

/// Until when rounds go on beyond those, where they do.
pub fn until(goal: Option<&Goal>) -> Option<String> {
    goal.map(|goal| {
        format!(
            "  until    every ratio's 95 % interval is within ±{} of its median, or the rounds took {}",
            percent(goal.half_width),
            span(goal.at_most_ms)
        )
    })
}

/// The place of a round among those that there are at least.
pub fn place(round: usize, rounds: usize) -> String {
    if round > rounds {
        return round.to_string();
    }
    format!("{round}/{rounds}")
}

/// An engine's name, or that of the floor.
pub fn name(engine: &Option<Engine>) -> &str {
    engine.as_ref().map_or("floor", Engine::name)
}

/// `uring and epoll`, as those that were up at the same time.
pub fn names(engines: &[Engine]) -> String {
    crate::report::format::join(engines)
}

/// The cells that every engine's row ends with: what was counted a second, and how busy each side was.
pub fn common_cells(figures: &Figures) -> [String; 3] {
    [
        spread(&figures.per_second, rounded),
        percent(figures.server_cores.median),
        percent(figures.client_cores.median),
    ]
}

/// The headings of [`common_cells`] of what is counted.
pub fn common_headings(counted: &str) -> [String; 3] {
    [
        format!("{counted} a second"),
        "server busy".to_owned(),
        "client busy".to_owned(),
    ]
}

/// What follows the tables: what was skipped, what the figures are made of, doubts, failures, and the time it took.
pub fn ending(
    about: &About,
    skipped: &[Skipped],
    processes: Option<String>,
    warnings: &[Warning],
    paint: Paint,
) -> Vec<String> {
    let mut parts = Vec::new();
    let has_softirq = !warnings.contains(&Warning::SoftirqUnknown);
    parts.extend(has_softirq.then(|| SOFTIRQ_NOTE.to_owned()));
    parts.extend(processes);
    let lines = |lines: Vec<String>| lines.concat();
    if !skipped.is_empty() {
        let said = skipped
            .iter()
            .map(|skipped| format!("\n  {}", skipped.said()));
        parts.push(paint.bold("Skipped") + &lines(said.collect()));
    }
    if !warnings.is_empty() {
        let said = warnings
            .iter()
            .map(|warning| format!("\n  {}", paint.yellow(&warning.to_string())));
        parts.push(paint.bold("Doubts") + &lines(said.collect()));
    }
    if !about.failures.is_empty() {
        let said = about.failures.iter().map(|failure| {
            let said = format!("{}: {}", failure.during, failure.cause);
            format!("\n  {}", paint.red(&said))
        });
        parts.push(paint.bold("Failures") + &lines(said.collect()));
    }
    let seconds = about.duration_ms as f64 / 1e3;
    parts.push(format!("The run took {seconds:.1} s."));
    if about.partial {
        parts.push(paint.red("Partial: the run ended early."));
    }
    parts
}

/// What one has to know of these figures to read them.
pub fn notes<'a>(
    figures: impl Iterator<Item = &'a Figures>,
    warnings: &[Warning],
) -> impl Iterator<Item = String> {
    let has_softirq = !warnings.contains(&Warning::SoftirqUnknown);
    let softirq = has_softirq.then(|| SOFTIRQ_NOTE.to_owned());
    softirq.into_iter().chain(processes_note(figures))
}

/// Says of engines in several processes what that means for their figures.
pub fn processes_note<'a>(figures: impl Iterator<Item = &'a Figures>) -> Option<String> {
    let mut several: Vec<(Engine, usize)> = figures
        .filter(|figures| figures.processes > 1)
        .filter_map(|figures| Some((figures.engine?, figures.processes)))
        .collect();
    several.sort_unstable();
    several.dedup();
    let said: Vec<String> = several
        .iter()
        .map(|(engine, processes)| format!("{engine} in {processes} processes"))
        .collect();
    (!said.is_empty()).then(|| {
        format!(
            "Several processes on one core: {}. Each connection is an open file there, and a process may have only so many; \
             the active connections are spread over all of them by their hash, and switching between the processes is in \
             their CPU time. That is inherently another thing than one process with as many connections, and a limit of \
             this machine.",
            said.join(", ")
        )
    })
}
