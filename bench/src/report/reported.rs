//! What every command's report has: a name, a text for the terminal and a page. Owns nothing.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::report::page::Page;
use crate::run::About;
use crate::screen::Paint;

/// The report of one command.
pub trait Reported: Serialize + DeserializeOwned + AsRef<About> {
    /// The command's name, which is in every report of it.
    const COMMAND: &'static str;

    /// The tables, what they say, the doubts and the failures, for the terminal.
    fn text(&self, paint: Paint) -> String;

    /// The same for the browser and for Markdown.
    fn page(&self) -> Page;
}

/// Ties a report's type to its command and its forms, of which each has a room of its own.
macro_rules! reported {
    ($($report:ty, $command:literal, $text:path, $page:path;)*) => {$(
        impl Reported for $report {
            const COMMAND: &'static str = $command;

            fn text(&self, paint: Paint) -> String {
                $text(self, paint)
            }

            fn page(&self) -> Page {
                $page(self)
            }
        }

        impl AsRef<About> for $report {
            fn as_ref(&self) -> &About {
                &self.about
            }
        }
    )*};
}

use crate::report::{canary, churn, climb, floor, heartbeat, memory, page, selfcheck, tail, text};

reported! {
    crate::result::Report, "compare", text::results, page::compare::page;
    crate::climb::result::Climb, "hold", climb::results, page::climb::page;
    crate::canary::result::Report, "canary", canary::results, page::canary::page;
    crate::memory::result::MemoryReport, "memory", memory::results, page::memory::page;
    crate::floor::result::Report, "floor", floor::results, page::floor::page;
    crate::tail::result::Report, "tail", tail::results, page::tail::page;
    crate::heartbeat::Report, "heartbeat", heartbeat::results, page::heartbeat::page;
    crate::churn::Report, "churn", churn::results, page::churn::page;
    crate::selfcheck::result::Report, "selfcheck", selfcheck::results, page::selfcheck::page;
}
