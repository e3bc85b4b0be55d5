//! What the process says of itself while it runs: lines of text or of JSON on standard error, of each cause a bounded number.
//!
//! RUST_LOG says what is said at all (`warn` where nothing is set), but for how much was left out of it. A cause is a place in the program: its first
//! [`MOST_PER_SECOND`] lines within a second are written, the others are counted, and a line says how many those were. So
//! a million closes at `debug` are some lines a second, and none of them is left out without a word.
//!
//! Owns: the counts, behind a lock that is taken only for events that RUST_LOG lets through, and a thread that sleeps
//! until something was left out.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber, error, warn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::DefaultFields;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, registry};

/// Lines of one cause within a second; what is more is counted.
pub const MOST_PER_SECOND: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

/// What RUST_LOG lets through.
///
/// # Errors
/// What is wrong with it, and what is right.
pub fn wanted() -> Result<EnvFilter, String> {
    let said = std::env::var_os(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let said = said.to_string_lossy();
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    builder.parse(&said).map_err(|error| {
        format!("RUST_LOG is `{said}`: {error}; give a level such as debug, or one for a part such as server=debug")
    })
}

/// The log of this process. When it is dropped, what was left out last is said.
#[derive(Debug)]
pub struct Log {
    format: Format,
    causes: Arc<Causes>,
}

impl Log {
    /// From now on all that is traced, and `wanted`, goes to standard error. Only the first log of a process has this
    /// effect.
    pub fn begin(format: Format, wanted: EnvFilter) -> Log {
        let causes = Arc::new(Causes::default());
        let lines = fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal());
        // Fails only where a logger is set already.
        let _ = subscriber(format, lines, wanted, &causes).try_init();
        Log { format, causes }
    }

    /// Says what is left out each second, from a thread of its own.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn sum_up(&self) -> io::Result<()> {
        let causes = Arc::clone(&self.causes);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || {
                loop {
                    causes.wait();
                    std::thread::sleep(SECOND);
                    causes.say();
                }
            })?;
        Ok(())
    }

    /// Says why the process ends, in its format.
    pub fn fail(&self, why: &str) {
        match self.format {
            Format::Text => eprintln!("error: {why}"),
            Format::Json => error!(error = why, "the server ends"),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.causes.say();
    }
}

/// Writes `lines` in `format`, of those that are `wanted`, and few of each of the `causes`.
fn subscriber<W>(
    format: Format,
    lines: fmt::Layer<Registry, DefaultFields, fmt::format::Format, W>,
    wanted: EnvFilter,
    causes: &Arc<Causes>,
) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // A log that nobody reads any more is no reason to panic.
    let lines = lines.log_internal_errors(false);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // Whatever is said, it is said what was left out of it.
    let sums = concat!(module_path!(), "=warn").parse();
    let wanted = wanted.add_directive(sums.expect("a constant that the library accepts"));
    let few = Few(Arc::clone(causes));
    registry().with(lines).with(wanted).with(few)
}

/// A place in the program.
type Place = (&'static str, u32);

#[derive(Debug, Default)]
struct Causes {
    by_place: Mutex<HashMap<Place, Cause>>,
    left_out: Condvar,
}

#[derive(Debug)]
struct Cause {
    since: Instant,
    said: u32,
    left_out: u64,
}

impl Causes {
    /// True where a line of this place may be written now; one that may not is counted.
    fn may_say(&self, place: Place, now: Instant) -> bool {
        let mut by_place = self.lock();
        let cause = by_place.entry(place).or_insert(Cause {
            since: now,
            said: 0,
            left_out: 0,
        });
        if now.saturating_duration_since(cause.since) >= SECOND {
            (cause.since, cause.said) = (now, 0);
        }
        if cause.said < MOST_PER_SECOND {
            cause.said += 1;
            return true;
        }
        cause.left_out += 1;
        if cause.left_out == 1 {
            self.left_out.notify_one();
        }
        false
    }

    /// Until something was left out.
    fn wait(&self) {
        let is_whole = |by_place: &mut HashMap<Place, Cause>| {
            by_place.values().all(|cause| cause.left_out == 0)
        };
        drop(self.left_out.wait_while(self.lock(), is_whole));
    }

    /// Takes what was left out, by its place.
    fn take(&self) -> Vec<(Place, u64)> {
        let mut by_place = self.lock();
        let left_out = by_place
            .iter_mut()
            .map(|(place, cause)| (*place, std::mem::take(&mut cause.left_out)));
        left_out.filter(|(_, count)| *count > 0).collect()
    }

    fn say(&self) {
        for ((file, line), left_out) in self.take() {
            warn!(left_out, at = %format_args!("{file}:{line}"), "more lines of one cause than are written");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Cause>> {
        self.by_place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets a bounded number of lines of each cause through.
struct Few(Arc<Causes>);

impl<S: Subscriber> Layer<S> for Few {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let at = event.metadata();
        let place = (at.file().unwrap_or(at.target()), at.line().unwrap_or(0));
        // What is said of those that were left out is said in any case.
        at.target() == module_path!() || self.0.may_say(place, Instant::now())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stats::{CloseReason, Stats};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_million_closes_are_some_lines_and_a_count() {
        const CLOSES: u64 = 1_000_000;
        for (format, wanted) in [
            (Format::Text, "server=debug"),
            (Format::Json, "server::stats=debug"),
        ] {
            let (causes, written) = (Arc::new(Causes::default()), Lines::default());
            let to = written.clone();
            let lines = fmt::layer()
                .with_ansi(false)
                .with_writer(move || to.clone());
            let wanted = EnvFilter::new(wanted);
            let began = Instant::now();
            tracing::subscriber::with_default(subscriber(format, lines, wanted, &causes), || {
                let mut stats = Stats::new();
                (0..CLOSES).for_each(|_| stats.count_close(CloseReason::Reset));
                causes.say();
            });
            let said = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            let closes = said
                .lines()
                .filter(|line| line.contains("a connection is closed"));
            let closes = closes.count() as u64;
            let most = u64::from(MOST_PER_SECOND) * (began.elapsed().as_secs() + 1);
            assert!((1..=most).contains(&closes), "{closes} lines");
            let left_out = match format {
                Format::Text => format!("left_out={} ", CLOSES - closes),
                Format::Json => format!("\"left_out\":{},", CLOSES - closes),
            };
            let last = said.lines().last().unwrap();
            assert!(
                last.contains(&left_out) && last.contains("stats.rs"),
                "{last}"
            );
            let is_json = |line| serde_json::from_str::<serde_json::Value>(line).is_ok();
            assert_eq!(said.lines().all(is_json), format == Format::Json, "{said}");
        }
    }

    #[test]
    fn of_each_cause_some_lines_a_second_are_written_and_the_others_counted() {
        let (causes, begin) = (Causes::default(), Instant::now());
        let said = |line, at: Duration, count| {
            let may = |_: &u64| causes.may_say(("file.rs", line), begin + at);
            (0..count).filter(may).count() as u32
        };
        let most = MOST_PER_SECOND;
        assert_eq!(said(1, Duration::ZERO, 1_000_000), most);
        assert_eq!(said(2, SECOND / 2, 3), 3);
        assert_eq!(said(1, SECOND, 12), most);
        assert_eq!(said(2, SECOND / 2, 10), most - 3);
        let mut left_out = causes.take();
        left_out.sort_unstable();
        let first = 1_000_000 - u64::from(most) + 2;
        assert_eq!(left_out, [(("file.rs", 1), first), (("file.rs", 2), 3)]);
        assert!(causes.take().is_empty());
    }
}
