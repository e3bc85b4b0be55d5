//! Where the settings and the state are, for the commands that touch them.

use std::path::PathBuf;

use clap::Args;

use crate::tree::Tree;

/// The flags that name a tree and a state file.
#[derive(Debug, Clone, Args)]
pub(super) struct Place {
    /// A tree with proc/sys and etc, instead of this host's own
    #[arg(long, value_name = "DIR", help_heading = "Where")]
    root: Option<PathBuf>,

    /// Where the original values are kept [default: /var/lib/throng/tune.json]
    #[arg(long, value_name = "FILE", help_heading = "Where")]
    state: Option<PathBuf>,
}

impl Place {
    pub fn tree(&self) -> Tree {
        self.root.as_ref().map_or_else(Tree::default, Tree::at)
    }

    pub fn state(&self) -> PathBuf {
        let default = || self.tree().path("var/lib/throng/tune.json");
        self.state.clone().unwrap_or_else(default)
    }

    /// The flags that name the same place, each after a space.
    pub fn flags(&self) -> String {
        let flag = |name, path: &Option<PathBuf>| {
            let path = path.as_ref();
            path.map_or(String::new(), |path| {
                format!(" --{name} {}", path.display())
            })
        };
        flag("root", &self.root) + &flag("state", &self.state)
    }
}
