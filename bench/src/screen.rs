//! What the user sees while a run goes on: plain lines on stdout, and on a terminal what is being done now, with a bar where
//! it is known how long that takes.
//!
//! A line that cannot be written (a closed pipe) is let go: the report's file is the record of a run, and losing the
//! reader must not lose the measurement.

use std::fmt::Write;
use std::io::{IsTerminal, Write as _, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::clock::millis;
use crate::result::Failure;

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    colour: bool,
}

impl Paint {
    /// Colours only when stdout is a terminal, and NO_COLOR (no-color.org) is not set.
    pub fn for_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colour: wanted && stdout().is_terminal(),
        }
    }

    /// None, as for a pipe.
    pub fn plain() -> Self {
        Self { colour: false }
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Less important.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// A doubt.
    pub fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }

    /// A failure.
    pub fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Where a run tells of itself.
#[derive(Debug)]
pub struct Screen {
    /// Colours for what is written here.
    pub paint: Paint,
    now: ProgressBar,
}

impl Screen {
    /// A screen on stdout; the moving line is on stderr, and only where that is a terminal.
    pub fn new() -> Self {
        let now = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {course}") {
            let style = style.with_key("course", |state: &ProgressState, out: &mut dyn Write| {
                // A bar's length is in milliseconds.
                let expected = state.len().map(Duration::from_millis);
                let _ = out.write_str(&course(state.elapsed(), expected));
            });
            now.set_style(style);
        }
        Self {
            paint: Paint::for_stdout(),
            now,
        }
    }

    /// Writes `text` and a line end.
    pub fn line(&self, text: &str) {
        self.now.suspend(|| {
            let _ = writeln!(stdout(), "{text}").and_then(|()| stdout().flush());
        });
    }

    /// Says what is being done now, on a terminal.
    pub fn doing(&self, what: String) {
        self.show(what, None);
    }

    /// The same, of what takes about so long: with a bar.
    pub fn doing_for(&self, what: String, expected: Duration) {
        self.show(what, Some(expected));
    }

    /// Says which phase begins: on a terminal with a bar, where it is `expected` to take so long, elsewhere as a line.
    pub fn phase(&self, what: String, expected: Option<Duration>) {
        if let Some(expected) = expected.filter(|_| self.now.is_hidden()) {
            self.line(&format!("  {what}, {:.1} s", expected.as_secs_f64()));
        }
        self.show(what, expected);
    }

    fn show(&self, what: String, expected: Option<Duration>) {
        self.now.reset_elapsed();
        self.now.set_message(what);
        match expected {
            Some(expected) => self.now.set_length(millis(expected)),
            None => self.now.unset_length(),
        }
        self.now.enable_steady_tick(Duration::from_millis(250));
    }

    /// Nothing is being done any more.
    pub fn done(&self) {
        self.now.finish_and_clear();
    }

    /// Tells a failure as it happens, with what the process said last; the report has more of it.
    pub fn failure(&self, failure: &Failure) {
        const LINES: usize = 8;
        self.line(
            &self
                .paint
                .red(&format!("  failed {}: {}", failure.during, failure.cause)),
        );
        let skipped = failure.stderr_tail.len().saturating_sub(LINES);
        for line in &failure.stderr_tail[skipped..] {
            self.line(&self.paint.dim(&format!("    | {line}")));
        }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

/// The time that is over; a bar of it where it is known how long it takes.
fn course(elapsed: Duration, expected: Option<Duration>) -> String {
    const CELLS: usize = 20;
    let elapsed = elapsed.as_secs_f64();
    let Some(expected) = expected.map(|expected| expected.as_secs_f64()) else {
        return format!("{elapsed:.0} s");
    };
    let done = ((elapsed / expected.max(1e-3)).min(1.0) * CELLS as f64) as usize;
    format!(
        "[{}{}] {elapsed:.0} of {expected:.0} s",
        "#".repeat(done),
        "-".repeat(CELLS - done)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_up_and_stays_full_when_it_takes_longer() {
        let seconds = Duration::from_secs;
        let course_of = |elapsed| course(seconds(elapsed), Some(seconds(40)));
        assert_eq!(course_of(0), format!("[{}] 0 of 40 s", "-".repeat(20)));
        assert_eq!(
            course_of(10),
            format!("[#####{}] 10 of 40 s", "-".repeat(15))
        );
        assert_eq!(course_of(50), format!("[{}] 50 of 40 s", "#".repeat(20)));
        assert_eq!(course(seconds(7), None), "7 s");
    }
}
