//! The live view of `--tui`: a screen of its own on stderr, drawn a few times a second.
//!
//! | room | owns |
//! |---|---|
//! | `model` | what is shown: rates, and the last values of each (pure) |
//! | `draw` | how it looks (pure) |
//! | `screen` | the terminal, its keys, and what is logged meanwhile |
//!
//! Invariant: a run is not slower or longer for being watched, and the terminal is given back however it ends.

mod draw;
mod model;
mod screen;

use std::io::{self, BufWriter, Stderr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use crate::config::Config;
pub(crate) use model::Scene;
use model::{LOOK, Model};
pub(crate) use screen::Screen;

/// The view of a run.
pub(crate) struct View {
    screen: Arc<Screen>,
    terminal: Terminal<CrosstermBackend<BufWriter<Stderr>>>,
    model: Model,
    start: Instant,
    next: Duration,
}

impl View {
    /// Takes the terminal, until [`Screen::close`] or a panic.
    ///
    /// # Errors
    /// The terminal cannot be had.
    pub(crate) fn open(config: &Config, screen: &Arc<Screen>) -> io::Result<View> {
        let terminal = Terminal::new(CrosstermBackend::new(BufWriter::new(io::stderr())))?;
        screen.open()?;
        Ok(View {
            screen: Arc::clone(screen),
            terminal,
            model: Model::new(config),
            start: Instant::now(),
            next: Duration::ZERO,
        })
    }

    /// Draws what `scene` says, if it is time to.
    pub(crate) fn show(&mut self, scene: impl FnOnce() -> Scene) {
        let now = self.start.elapsed();
        // After a panic elsewhere the terminal is not ours any more.
        if now < self.next || !self.screen.is_open() {
            return;
        }
        self.next = now + LOOK;
        self.model.look(now, scene());
        self.model.log = self.screen.last_line();
        let model = &self.model;
        // A terminal that went away is no reason to stop: the next look tells whether it is back.
        let _ = self.terminal.draw(|frame| draw::draw(model, frame));
    }
}
