//! What every command's report has: a name, a text for the terminal and a page. Owns nothing.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::diff::{Figure, figures};
use crate::report::page::Page;
use crate::run::About;
use crate::screen::Paint;

/// What can be shown of a report, of whichever command it is.
pub trait Shown: AsRef<About> {
    /// The tables, what they say, the doubts and the failures, for the terminal.
    fn text(&self, paint: Paint) -> String;

    /// The same for the browser and for Markdown.
    fn page(&self) -> Page;

    /// What another report of the same command can be held against; nothing of one that measures each thing once.
    fn figures(&self) -> Vec<Figure>;
}

/// The report of one command.
pub trait Reported: Shown + Serialize + DeserializeOwned + 'static {
    /// The command's name, which is in every report of it.
    const COMMAND: &'static str;
}

/// Ties a report's type to its command and its forms, of which each has a room of its own.
macro_rules! reported {
    ($($report:ty, $command:literal, $text:path, $page:path, $figures:expr;)*) => {
        /// The commands that write reports.
        pub const COMMANDS: &[&str] = &[$($command),*];

        /// The report of `command` that `value` holds; `None` where no command is called so.
        pub(crate) fn from_value(command: &str, value: &Value) -> Option<serde_json::Result<Box<dyn Shown>>> {
            match command {
                $($command => Some(boxed::<$report>(value)),)*
                _ => None,
            }
        }

        $(impl Reported for $report {
            const COMMAND: &'static str = $command;
        }

        impl Shown for $report {
            fn text(&self, paint: Paint) -> String {
                $text(self, paint)
            }

            fn page(&self) -> Page {
                $page(self)
            }

            fn figures(&self) -> Vec<Figure> {
                $figures(self)
            }
        }

        impl AsRef<About> for $report {
            fn as_ref(&self) -> &About {
                &self.about
            }
        })*
    };
}

fn boxed<R: Reported>(value: &Value) -> serde_json::Result<Box<dyn Shown>> {
    Ok(Box::new(R::deserialize(value)?))
}

use crate::report::{
    canary, churn, climb, faults, floor, heartbeat, memory, merge, page, remote, selfcheck, tail,
    text,
};

reported! {
    crate::result::Report, "compare", text::results, page::compare::page, figures::of_compare;
    crate::climb::result::Climb, "hold", climb::results, page::climb::page, figures::of_none;
    crate::canary::result::Report, "canary", canary::results, page::canary::page, figures::of_none;
    crate::memory::result::MemoryReport, "memory", memory::results, page::memory::page, figures::of_memory;
    crate::merge::result::Report, "merge", merge::results, page::merge::page, figures::of_none;
    crate::remote::result::Report, "remote", remote::results, page::remote::page, figures::of_none;
    crate::floor::result::Report, "floor", floor::results, page::floor::page, figures::of_floor;
    crate::tail::result::Report, "tail", tail::results, page::tail::page, figures::of_tail;
    crate::heartbeat::Report, "heartbeat", heartbeat::results, page::heartbeat::page, figures::of_heartbeat;
    crate::churn::Report, "churn", churn::results, page::churn::page, figures::of_churn;
    crate::faults::result::Report, "faults", faults::results, page::faults::page, figures::of_none;
    crate::selfcheck::result::Report, "selfcheck", selfcheck::results, page::selfcheck::page, figures::of_none;
}
