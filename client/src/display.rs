//! What a person sees: progress while it runs, and the summary.
//!
//! Touches stderr for progress; the summary goes where [`crate::cli`] says. Invariant: a terminal gets a live
//! line and colour, anything else plain lines.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stderr};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use crate::config::Config;
use crate::counters::{Counts, Phase};
use crate::phases::HostCounters;
use crate::rates::{PerSecond, Rates};
use crate::shape::Rise;
use crate::summary::{OpenLoop, Percentiles, Summary};

/// Rates are over this long at least.
const RATES_OVER: Duration = Duration::from_millis(500);
/// Steps of a full bar.
const STEPS: u64 = 1000;

/// How much there is of each phase.
pub(crate) struct Lengths {
    step_hold: Duration,
    idle_for: Duration,
    quiet_for: Duration,
    hold: Duration,
    storm: Duration,
    wanted: u64,
}

/// How much of a phase there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Length {
    /// It lasts that long.
    Time(Duration),
    /// This much of it is done, of 1.
    Share(f64),
    /// Nobody knows.
    Unknown,
}

impl Lengths {
    pub(crate) fn new(config: &Config) -> Lengths {
        Lengths {
            step_hold: match config.shape.rise {
                Rise::Levels { hold, .. } => hold,
                _ => Duration::ZERO,
            },
            idle_for: config.idle_for,
            quiet_for: config.quiet_for,
            hold: config.hold,
            storm: config.storm.unwrap_or_default(),
            wanted: config.connections,
        }
    }

    /// That of `phase`, at `counts`.
    pub(crate) fn of(&self, phase: Phase, counts: &Counts) -> Length {
        match phase {
            Phase::Ramp => {
                let ended = counts.established + counts.failed;
                Length::Share((ended as f64 / self.wanted as f64).min(1.0))
            }
            Phase::Step(_) => Length::Time(self.step_hold),
            Phase::Idle => Length::Time(self.idle_for),
            Phase::Quiet => Length::Time(self.quiet_for),
            Phase::Hold | Phase::Active => Length::Time(self.hold),
            Phase::Storm => Length::Time(self.storm),
            Phase::RampDown => {
                let all = (counts.closed + counts.live()).max(1);
                Length::Share(counts.closed as f64 / all as f64)
            }
            Phase::Close | Phase::Done | Phase::Recovery => Length::Unknown,
        }
    }
}

impl Length {
    /// How much is done, from 0 to 1, after it has `lasted`.
    pub(crate) fn ratio(&self, lasted: Duration) -> f64 {
        match *self {
            Length::Time(time) if time.is_zero() => 1.0,
            Length::Time(time) => (lasted.as_secs_f64() / time.as_secs_f64()).min(1.0),
            Length::Share(share) => share,
            Length::Unknown => 1.0,
        }
    }
}

/// Progress on stderr.
pub(crate) struct Progress {
    how: How,
    lengths: Lengths,
    rates: Rates,
    phase: Option<(Phase, Duration)>,
}

enum How {
    /// On a terminal.
    Bar(ProgressBar),
    Lines,
    /// There is a view instead.
    Silence,
}

impl Progress {
    pub(crate) fn new(config: &Config) -> Progress {
        let how = match stderr().is_terminal() {
            _ if config.tui => How::Silence,
            true => How::Bar(bar()),
            false => How::Lines,
        };
        Progress {
            how,
            lengths: Lengths::new(config),
            rates: Rates::new(RATES_OVER),
            phase: None,
        }
    }

    /// The live line, drawn as often as this is called.
    pub(crate) fn update(&mut self, at: Duration, phase: Phase, counts: &Counts) {
        let since = match self.phase {
            Some((current, since)) if current == phase => since,
            _ => {
                self.phase = Some((phase, at));
                at
            }
        };
        let How::Bar(bar) = &self.how else { return };
        let ratio = self.lengths.of(phase, counts).ratio(at - since);
        bar.set_prefix(phase.name());
        bar.set_position((ratio * STEPS as f64) as u64);
        bar.set_message(figures(counts, self.rates.look(at, counts)));
    }

    /// A line at a sample interval, where there is no live one.
    pub(crate) fn line(&mut self, at: Duration, phase: Phase, counts: &Counts) {
        if let How::Lines = self.how {
            let (seconds, phase) = (at.as_secs_f64(), phase.name());
            let figures = figures(counts, self.rates.look(at, counts));
            // A reader that went away is no reason to stop.
            let _ = writeln!(stderr(), "{seconds:>7.1} s  {phase:<9} {figures}");
        }
    }

    /// What the run does while no connection is opened or held.
    pub(crate) fn note(&self, text: &str) {
        match &self.how {
            How::Bar(bar) => {
                bar.set_prefix("before");
                bar.set_message(text.to_string());
            }
            How::Lines => {
                // A reader that went away is no reason to stop.
                let _ = writeln!(stderr(), "{text}");
            }
            How::Silence => {}
        }
    }

    pub(crate) fn finish(&self) {
        if let How::Bar(bar) = &self.how {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(STEPS);
    match ProgressStyle::with_template("{prefix:>9.cyan.bold} {wide_bar:.cyan/blue} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What there is of each kind, with its rate while there is more.
fn figures(counts: &Counts, rates: PerSecond) -> String {
    let mut text = String::new();
    for (count, what, rate) in [
        (counts.live(), "established", rates.connects),
        (counts.failed, "failed", 0.0),
        (counts.lost, "lost", 0.0),
        (counts.heartbeats, "heartbeats", rates.heartbeats),
        (counts.heartbeats_late, "late", 0.0),
        (counts.messages, "messages", rates.messages),
        (counts.owed, "owed", 0.0),
        (counts.cycles, "cycles", rates.cycles),
        (counts.cycles_owed, "cycles owed", 0.0),
        (counts.reconnected, "made again", 0.0),
        (counts.closed, "closed", 0.0),
    ] {
        if count == 0 && !text.is_empty() {
            continue;
        }
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}{} {what}", HumanCount(count));
        if rate >= 0.5 {
            let _ = write!(text, " ({}/s)", HumanCount(rate.round() as u64));
        }
    }
    text
}

/// The summary as text, with colour or without.
pub(crate) fn summary(summary: &Summary, has_colour: bool) -> String {
    let (bold, red, green, end) = match has_colour {
        true => ("\x1b[1m", "\x1b[1;31m", "\x1b[1;32m", "\x1b[0m"),
        false => ("", "", "", ""),
    };
    let mut lines: Vec<(&str, String)> = vec![
        ("target", summary.target.clone()),
        ("path", summary.path.to_string()),
        (
            "established",
            format!(
                "{} of {} in {:.2} s ({} per second)",
                HumanCount(summary.established),
                HumanCount(summary.connections_wanted),
                summary.ramp_seconds,
                HumanCount(summary.connects_per_second as u64)
            ),
        ),
        ("connect latency", latency(&summary.connect_latency_us)),
    ];
    let division = summary.config.part.as_ref();
    lines.extend(division.map(|division| ("part", division.part.to_string())));
    if let Some(start) = &summary.start {
        let late = start.late_seconds * 1e3;
        lines.push(("start", format!("{late:.1} ms late by this host's clock")));
    }
    if let Some(lateness) = &summary.connect_lateness_us {
        lines.push(("queued before it", latency(lateness)));
    }
    for (name, step) in std::iter::once("steps")
        .chain(std::iter::repeat(""))
        .zip(&summary.steps)
    {
        let text = format!(
            "{} from {:.2} s on, up after {:.2} s, held for {:.2} s: {} established at its end",
            HumanCount(step.connections),
            step.began_seconds,
            step.up_seconds,
            step.held_seconds,
            HumanCount(step.established)
        );
        lines.push((name, text));
    }
    if !summary.failed.is_empty() {
        lines.push(("failed", by_cause(&summary.failed)));
    }
    if summary.ports_in_use > 0 {
        lines.push((
            "ports in use",
            format!("{} replaced by others", HumanCount(summary.ports_in_use)),
        ));
    }
    lines.push(match summary.lost_while_held {
        0 => ("lost", "none".into()),
        lost => (
            "lost",
            format!(
                "{} ({})",
                HumanCount(lost),
                by_cause(&summary.lost_by_cause)
            ),
        ),
    });
    if let Some(again) = &summary.reconnects {
        let failed = match again.failed.is_empty() {
            true => "none failed".into(),
            false => format!("failed: {}", by_cause(&again.failed)),
        };
        let text = format!(
            "{} attempts, {} succeeded, {failed}; {} still lost at the end",
            HumanCount(again.attempted),
            HumanCount(again.succeeded),
            HumanCount(again.still_lost)
        );
        lines.push(("reconnects", text));
        lines.push(("without one for", latency(&again.without_connection_us)));
    }
    if summary.unended > 0 {
        let text = format!(
            "{} orderly closes that the server did not answer by its own",
            HumanCount(summary.unended)
        );
        lines.push(("unended", text));
    }
    if summary.greetings_verified + summary.greetings_missing > 0 {
        let text = format!(
            "{} right, {} missing",
            HumanCount(summary.greetings_verified),
            HumanCount(summary.greetings_missing)
        );
        lines.push(("greetings", text));
    }
    let beats = &summary.heartbeats;
    if !summary.config.heartbeat.is_zero() {
        let text = format!(
            "{} received, {} late by more than 1 s, {} connections missing theirs; lateness {}",
            HumanCount(beats.received),
            HumanCount(beats.late),
            HumanCount(beats.missing),
            latency(&beats.lateness_us)
        );
        lines.push(("heartbeats", text));
    }
    let messages = &summary.messages;
    if messages.active > 0 {
        let text = format!(
            "{} of {} bytes on {} connections in {:.2} s from {:.2} s on ({} per second), {} wrong, {} unanswered; latency {}",
            HumanCount(messages.completed),
            summary.config.message_bytes,
            HumanCount(messages.active),
            messages.seconds,
            messages.began_seconds,
            HumanCount(messages.per_second as u64),
            HumanCount(messages.mismatched),
            HumanCount(messages.unanswered),
            latency(&messages.latency_us)
        );
        lines.push(("messages", text));
    }
    if let Some(open) = &messages.open_loop {
        lines.push(open_loop(
            ("open loop", "sent"),
            open,
            messages.per_second,
            (red, end),
        ));
        lines.push(("from the send", latency(&open.latency_from_send_us)));
        lines.push(("client late by", latency(&open.client_lateness_us)));
    }
    if let Some(churn) = &summary.churn {
        let failed = match churn.failed.is_empty() {
            true => "none failed".into(),
            false => format!("failed: {}", by_cause(&churn.failed)),
        };
        let text = format!(
            "{} cycles on {} connections in {:.2} s from {:.2} s on ({} per second), {failed}, {} unfinished; a cycle {}",
            HumanCount(churn.cycles),
            HumanCount(churn.connections),
            churn.seconds,
            churn.began_seconds,
            rate(churn.per_second),
            HumanCount(churn.unfinished),
            latency(&churn.cycle_us)
        );
        lines.push(("churn", text));
        lines.push(("its connects", latency(&churn.connect_us)));
        if let Some(open) = &churn.open_loop {
            lines.push(open_loop(
                ("its schedule", "begun"),
                open,
                churn.per_second,
                (red, end),
            ));
            lines.push(("from the connect", latency(&open.latency_from_send_us)));
            lines.push(("client late by", latency(&open.client_lateness_us)));
        }
    }
    if let Some(text) = summary.load.text() {
        lines.push(("client busy", format!("{text}, of the time held")));
    }
    if let Some(text) = &summary.load.bottleneck {
        lines.push(("bottleneck", format!("{red}{text}{end}")));
    }
    if let Some(storm) = &summary.storm {
        let text = format!(
            "{} lines heard in {:.2} s from {:.2} s on, heartbeats included",
            HumanCount(storm.heard),
            storm.seconds,
            storm.began_seconds
        );
        lines.push(("storm", text));
    }
    lines.push(("received", HumanBytes(summary.bytes_received).to_string()));
    lines.push((
        "peak memory",
        HumanBytes(summary.peak_rss_bytes).to_string(),
    ));
    if let Some(counters) = &summary.host_counters {
        lines.extend(host_counters(counters));
    }
    let colour = if summary.is_flawless() { green } else { red };
    lines.push(("ended", format!("{colour}{}{end}", summary.ended.name())));
    if let Some(diagnosis) = &summary.diagnosis {
        lines.push(("diagnosis", format!("{red}{diagnosis}{end}")));
    }
    let mut text: String = lines
        .iter()
        .map(|(name, text)| format!("{bold}{name:<16}{end} {text}\n"))
        .collect();
    if let Some(canaries) = &summary.canaries {
        text += &format!("{bold}canaries{end}\n{}", canaries.text());
    }
    text
}

/// Whether a schedule was kept.
fn open_loop(
    (name, verb): (&'static str, &str),
    open: &OpenLoop,
    per_second: f64,
    (red, end): (&str, &str),
) -> (&'static str, String) {
    let verdict = match open.is_short {
        true => format!(
            "{red}the rate was not kept{end}: the server is too slow, or the client, if it was late itself"
        ),
        false => "the rate was kept".into(),
    };
    let text = format!(
        "{} per second asked, {} achieved; of {} due {} were {verb}, {} are owed; {verdict}",
        rate(open.asked_per_second),
        rate(per_second),
        HumanCount(open.due),
        HumanCount(open.sent),
        HumanCount(open.owed),
    );
    (name, text)
}

/// A line for each phase in which something moved that means trouble.
fn host_counters(counters: &HostCounters) -> Vec<(&'static str, String)> {
    let troubled = counters
        .troubled()
        .map(|phase| format!("{}: {}", phase.phase, phase.trouble.join("; ")));
    let unread = counters.unread.iter().cloned();
    let lines: Vec<String> = troubled.chain(unread).collect();
    if lines.is_empty() {
        let over = counters.interfaces.join(", ");
        return vec![(
            "host counters",
            format!("nothing dropped or sent again, {over} included"),
        )];
    }
    lines
        .into_iter()
        .map(|line| ("host counters", line))
        .collect()
}

fn latency(p: &Percentiles) -> String {
    if p.count == 0 {
        return "not measured".into();
    }
    let [p50, p90, p99, p999, p9999, max] = [p.p50, p.p90, p.p99, p.p999, p.p9999, p.max].map(time);
    format!("p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, p99.99 {p9999}, max {max}")
}

fn rate(per_second: f64) -> String {
    match per_second {
        100.0.. => HumanCount(per_second.round() as u64).to_string(),
        _ => format!("{per_second:.3}"),
    }
}

fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

fn by_cause(causes: &std::collections::BTreeMap<String, u64>) -> String {
    let items: Vec<String> = causes
        .iter()
        .map(|(cause, count)| format!("{cause}: {}", HumanCount(*count)))
        .collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_has_its_rate_and_what_never_did_is_left_out() {
        let counts = Counts {
            established: 1200,
            lost: 200,
            messages: 7,
            ..Counts::default()
        };
        let rates = PerSecond {
            connects: 2500.4,
            ..PerSecond::default()
        };
        assert_eq!(
            figures(&counts, rates),
            "1,000 established (2,500/s), 200 lost, 7 messages"
        );
        assert_eq!(
            figures(&Counts::default(), PerSecond::default()),
            "0 established"
        );
    }
}
