//! What happened, for a run that failed: kept only when a seed is played again.

use std::cell::RefCell;
use std::collections::VecDeque;

/// The last lines of a run.
pub enum Trace {
    /// None are kept.
    Off,
    /// So many of one connection, or of all where nobody is to blame.
    Of(Option<usize>, usize, RefCell<VecDeque<String>>),
}

impl Trace {
    /// The last `most` lines of the connection `blame`, or of all.
    pub fn of(blame: Option<usize>, most: usize) -> Trace {
        Trace::Of(blame, most, RefCell::default())
    }

    /// `what` happened, to the connection `who` where it is one's own affair.
    pub fn note(&self, who: Option<usize>, what: impl FnOnce() -> String) {
        if let Trace::Of(blame, most, lines) = self
            && (blame.is_none() || *blame == who)
        {
            let mut lines = lines.borrow_mut();
            if lines.len() == *most {
                lines.pop_front();
            }
            lines.push_back(what());
        }
    }

    /// The lines.
    pub fn shortened(&self) -> String {
        match self {
            Trace::Off => String::new(),
            Trace::Of(_, _, lines) => lines
                .borrow()
                .iter()
                .map(|line| format!("  {line}\n"))
                .collect(),
        }
    }
}
