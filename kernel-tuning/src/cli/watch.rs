//! `throng-tune watch`: the counters as they move, a line for each interval and one for each trouble.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Outcome;
use super::paint::Paint;
use crate::check::{grouped, size};
use crate::watch::{Moved, Sample, Step};

pub(super) const EXAMPLES: &str = "\
Examples:
  throng-tune watch                                 a line a second until Ctrl-C
  throng-tune watch --interval 10s --count 6        a minute, in six lines
  throng-tune watch --json                          a JSON object a line, with all that moved

queued: pages of TCP data of the whole host, as net.ipv4.tcp_mem counts. sockets, orphans and time_wait: of this network
namespace.

Exit codes: 0 nothing that means trouble moved, 10 something did, 1 failed, 2 bad usage.";

/// Lines after which the heading is said again.
const SCREEN: u64 = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Time between two lines
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval, help_heading = "How long")]
    interval: Duration,

    /// Lines; without it, until Ctrl-C
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "How long")]
    count: Option<u64>,

    /// Print a JSON object a line
    #[arg(long, help_heading = "Output")]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let bounds = Duration::from_millis(10)..=Duration::from_secs(86_400);
    match bounds.contains(&interval) {
        true => Ok(interval),
        false => Err("it is at least 10ms and at most a day".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let signals = Signals::block()?;
    let paint = Paint::for_stdout();
    let mut told = Told::default();
    let begun = Instant::now();
    let mut before = (Sample::read()?, begun);
    for line in 0..args.count.unwrap_or(u64::MAX) {
        // The next is due by the clock, whatever a line takes.
        let due = begun
            + args
                .interval
                .saturating_mul(u32::try_from(line + 1).unwrap_or(u32::MAX));
        let is_over = signals.wait_until(due)?;
        let now = (Sample::read()?, Instant::now());
        let step = now.0.since(&before.0, (now.1 - before.1).as_secs_f64());
        let text = match args.json {
            true => format!("{}\n", serde_json::to_string(&step)?),
            false => told.text(&step, line, begun.elapsed(), paint),
        };
        told.count(&step);
        let mut out = io::stdout().lock();
        // A reader that has gone away ends it in order.
        if out
            .write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
            || is_over
        {
            break;
        }
        before = now;
    }
    if !args.json {
        super::say(told.totals(begun.elapsed()));
    }
    Ok(match told.totals.is_empty() {
        true => Outcome::Done,
        false => Outcome::Warned,
    })
}

/// SIGINT and SIGTERM as something to wait for.
struct Signals(SignalFd);

impl Signals {
    fn block() -> anyhow::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("cannot block signals")?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
            .context("cannot wait for signals")?;
        Ok(Self(descriptor))
    }

    /// Waits, and tells whether a signal came.
    fn wait_until(&self, due: Instant) -> anyhow::Result<bool> {
        let left = due.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut waiting = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut waiting, timeout).context("cannot wait")? > 0)
    }
}

/// What was said already.
#[derive(Default)]
struct Told {
    remedies: BTreeSet<&'static str>,
    /// Of each trouble, by its name.
    totals: BTreeMap<String, u64>,
}

impl Told {
    fn count(&mut self, step: &Step) {
        for moved in step.moved.iter().filter(|moved| moved.is_trouble) {
            *self.totals.entry(full_name(moved)).or_default() += moved.by;
        }
    }

    fn text(&mut self, step: &Step, line: u64, elapsed: Duration, paint: Paint) -> String {
        let mut text = String::new();
        if line.is_multiple_of(SCREEN) {
            text += &paint.bold(&row(&HEADINGS.map(str::to_owned)));
        }
        text += &row(&cells(step, elapsed));
        for moved in step.moved.iter().filter(|moved| moved.is_trouble) {
            let name = paint.yellow(&format!("{} +{}", full_name(moved), grouped(moved.by)));
            text += &format!("  {name}  {}\n", moved.means.unwrap_or_default());
            // Once is enough.
            if let Some(remedy) = moved.remedy.filter(|remedy| self.remedies.insert(remedy)) {
                text += &format!("    {} {remedy}\n", paint.dim("do"));
            }
        }
        text
    }

    fn totals(&self, elapsed: Duration) -> String {
        let all: Vec<String> = self
            .totals
            .iter()
            .map(|(name, by)| format!("{name} {}", grouped(*by)))
            .collect();
        let all = match all.is_empty() {
            true => "nothing that means trouble moved".to_owned(),
            false => all.join(", "),
        };
        format!("in {:.1} s: {all}\n", elapsed.as_secs_f64())
    }
}

fn full_name(moved: &Moved) -> String {
    match &moved.interface {
        Some(interface) => format!("{interface} {}", moved.name),
        None => moved.name.clone(),
    }
}

const HEADINGS: [&str; 9] = [
    "seconds",
    "sockets",
    "orphans",
    "time_wait",
    "queued",
    "opened/s",
    "accepted/s",
    "open files",
    "available",
];

fn cells(step: &Step, elapsed: Duration) -> [String; 9] {
    let sockets = step.figures.sockets;
    let number = |value: Option<u64>| value.map_or("-".to_owned(), grouped);
    let rate = |value: Option<u64>| {
        number(value.map(|value| (value as f64 / step.seconds.max(1e-9)).round() as u64))
    };
    [
        format!("{:.1}", elapsed.as_secs_f64()),
        number(sockets.map(|tcp| tcp.inuse)),
        number(sockets.map(|tcp| tcp.orphan)),
        number(sockets.map(|tcp| tcp.time_wait)),
        number(sockets.map(|tcp| tcp.mem_pages)),
        rate(step.opened),
        rate(step.accepted),
        number(step.figures.files.map(|files| files.allocated)),
        step.figures.available_bytes.map_or("-".to_owned(), size),
    ]
}

fn row(cells: &[String; 9]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>11}")).collect();
    format!("{}\n", cells.concat())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::watch::Figures;

    #[test]
    fn a_trouble_is_named_in_words_each_time_and_its_remedy_once() {
        let step = Step {
            seconds: 0.5,
            figures: Figures::default(),
            opened: Some(600),
            accepted: None,
            moved: vec![Moved {
                name: "rx_missed_errors".into(),
                interface: Some("eth0".into()),
                by: 1234,
                is_trouble: true,
                means: Some("missed"),
                remedy: Some("a larger ring"),
            }],
        };
        let mut told = Told::default();
        let first = told.text(&step, 0, Duration::from_secs(1), Paint::plain());
        let second = told.text(&step, 1, Duration::from_secs(2), Paint::plain());
        assert!(
            first.contains("eth0 rx_missed_errors +1,234  missed\n    do a larger ring"),
            "{first}"
        );
        assert!(
            first.contains("time_wait") && first.contains("1,200"),
            "{first}"
        );
        assert!(
            second.contains("missed") && !second.contains("a larger ring"),
            "{second}"
        );
        told.count(&step);
        told.count(&step);
        assert_eq!(
            told.totals(Duration::from_secs(2)),
            "in 2.0 s: eth0 rx_missed_errors 2,468\n"
        );
    }

    #[test]
    fn an_interval_has_bounds() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        for text in ["0s", "1", "2days", "x"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
