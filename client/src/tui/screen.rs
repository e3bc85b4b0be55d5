//! The terminal while it is ours: raw, on its alternate screen, with the logs kept back.
//!
//! Touches stderr, and the keys of the terminal by crossterm. Invariants: the terminal is given back exactly once, by
//! [`Screen::close`] or by a panic, whichever is first; what was logged meanwhile is told then.

use std::io::{self, IsTerminal, Write, stderr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};

/// What is kept of the logs.
const MOST_LOG_BYTES: usize = 64 * 1024;

/// The terminal, and whether it is ours. Closed at first.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_open: bool,
    log: Vec<u8>,
    /// Lines for which there was no room.
    lines_left_out: u64,
}

impl Screen {
    /// Why there can be no view here.
    ///
    /// # Errors
    /// In words, with what to do.
    pub(crate) fn check(is_stdout_written: bool) -> Result<(), String> {
        if !stderr().is_terminal() || !io::stdin().is_terminal() {
            return Err(
                "--tui draws on stderr and reads keys from stdin, and both must be a terminal; leave it out for plain \
                 lines, or use --samples FILE"
                    .into(),
            );
        }
        if is_stdout_written && io::stdout().is_terminal() {
            return Err(
                "--samples - would write into the view of --tui; name a file, or pipe stdout"
                    .into(),
            );
        }
        Ok(())
    }

    /// Takes the terminal.
    ///
    /// # Errors
    /// It cannot be made raw, or not be written to.
    pub(super) fn open(self: &Arc<Screen>) -> io::Result<()> {
        let screen = Arc::clone(self);
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            screen.close();
            previous(panic);
        }));
        self.state().is_open = true;
        enable_raw_mode()
            .and_then(|()| execute!(stderr(), EnterAlternateScreen, cursor::Hide))
            .inspect_err(|_| self.close())
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().is_open
    }

    /// Gives the terminal back, if it is ours, and tells what was logged.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if !std::mem::take(&mut state.is_open) {
            return;
        }
        // Nobody to tell when any of this fails.
        let _ = execute!(stderr(), LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
        let _ = stderr().write_all(&std::mem::take(&mut state.log));
        if state.lines_left_out > 0 {
            let _ = writeln!(
                stderr(),
                "{} further lines of the log were left out",
                state.lines_left_out
            );
        }
    }

    /// Whether q or Ctrl-C has been pressed. A terminal that is gone asks for the end too.
    pub(crate) fn is_end_asked(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        let pressed = || -> io::Result<bool> {
            while event::poll(Duration::ZERO)? {
                if is_end(&event::read()?) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        pressed().unwrap_or(true)
    }

    /// The end of what was logged.
    pub(super) fn last_line(&self) -> Option<String> {
        let state = self.state();
        let text = state.log.trim_ascii_end();
        let line = text.rsplit(|byte| *byte == b'\n').next()?;
        (!line.is_empty()).then(|| String::from_utf8_lossy(line).into_owned())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A state is whole at any time, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_end(event: &Event) -> bool {
    let Some(key) = event.as_key_press_event() else {
        return false;
    };
    match key.code {
        KeyCode::Char('q') => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// Logs go to stderr, or are kept while that is the screen.
impl Write for &Screen {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        if !state.is_open {
            return stderr().write(line);
        }
        match state.log.len() + line.len() <= MOST_LOG_BYTES {
            true => state.log.extend(line),
            false => state.lines_left_out += 1,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn only_q_and_ctrl_c_end_a_run() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        assert!(is_end(&key(KeyCode::Char('q'), none)));
        assert!(is_end(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        for other in [
            key(KeyCode::Char('c'), none),
            key(KeyCode::Char('x'), KeyModifiers::CONTROL),
            key(KeyCode::Esc, none),
            Event::Resize(80, 24),
        ] {
            assert!(!is_end(&other), "{other:?}");
        }
    }

    #[test]
    fn what_is_logged_meanwhile_is_kept_within_bounds() {
        let screen = Screen::default();
        screen.state().is_open = true;
        assert_eq!(screen.last_line(), None);
        (&screen).write_all(b"one\n").unwrap();
        (&screen).write_all(b"two\n").unwrap();
        assert_eq!(screen.last_line().unwrap(), "two");
        (&screen).write_all(&[b'x'; MOST_LOG_BYTES]).unwrap();
        let state = screen.state();
        assert_eq!(state.log, b"one\ntwo\n");
        assert_eq!(state.lines_left_out, 1);
    }

    /// The test runs itself in a terminal, which script(1) makes, and panics there.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        const INSIDE: &str = "THRONG_TEST_INSIDE";
        let test = "tui::screen::tests::a_panic_gives_the_terminal_back_before_it_is_told";
        if std::env::var_os(INSIDE).is_some() {
            let screen = Arc::new(Screen::default());
            screen.open().unwrap();
            (&*screen).write_all(b"logged meanwhile\n").unwrap();
            panic!("at the disco");
        }
        let exe = std::env::current_exe().unwrap();
        let inside = format!("exec {} --exact {test} --nocapture", exe.display());
        let output = std::process::Command::new("script")
            .args(["-q", "-c", &inside, "/dev/null"])
            .env(INSIDE, "1")
            .stdin(std::process::Stdio::null())
            .output();
        let Ok(output) = output else {
            let line = format!("SKIPPED {test}: no script(1)\n");
            return stderr().write_all(line.as_bytes()).unwrap();
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let (_, after) = said.split_once("\x1b[?1049l").unwrap();
        let (logged, told) = after.split_once("logged meanwhile").unwrap();
        assert!(!logged.contains("at the disco"), "{said}");
        assert!(told.contains("at the disco"), "{said}");
    }
}
