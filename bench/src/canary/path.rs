//! What lies between the client and the server: found before anything starts, and held for the run.

use std::fmt;
use std::net::IpAddr;

use clap::ValueEnum;
use kernel_tuning::host::{Environment, environment};
use serde::{Deserialize, Serialize};

use crate::netns::{self, Joined};
use crate::runner::Launcher;
use crate::scenario;

/// The kinds of path that this program can lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// No device is crossed
    Loopback,
    /// A pair of virtual devices between two network namespaces
    Veth,
}

impl Kind {
    /// As `--path` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Veth => "veth",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Loopback => "loopback: not a network measurement",
            Self::Veth => {
                "veth between two network namespaces: both stacks whole, within this host, over no wire"
            }
        })
    }
}

/// A path that is there. Ends when dropped.
#[derive(Debug)]
pub struct Way {
    /// Over veth.
    pub joined: Option<Joined>,
    /// Why it is loopback, where that was not asked for.
    pub why_not_veth: Option<String>,
}

impl Way {
    /// Those asked for, in that order; veth where it can be, if none was, and loopback alone where it cannot.
    ///
    /// # Errors
    /// Why the only one asked for cannot be, and what would allow it.
    pub fn find(asked: &[Kind]) -> Result<Vec<Self>, String> {
        let loopback = |why_not_veth| Self {
            joined: None,
            why_not_veth,
        };
        if asked == [Kind::Loopback] {
            return Ok(vec![loopback(None)]);
        }
        let joined = match Joined::make() {
            Ok(joined) => joined,
            Err(why) if asked == [Kind::Veth] => {
                return Err(format!("--path veth: {why}; or use --path loopback"));
            }
            Err(why) => return Ok(vec![loopback(Some(why.to_string()))]),
        };
        let way = |kind: &Kind| match kind {
            Kind::Loopback => loopback(None),
            Kind::Veth => Self {
                joined: Some(joined.clone()),
                why_not_veth: None,
            },
        };
        let wanted = if asked.is_empty() {
            &[Kind::Veth]
        } else {
            asked
        };
        Ok(wanted.iter().map(way).collect())
    }

    /// Of which kind it is.
    pub fn kind(&self) -> Kind {
        match self.joined {
            Some(_) => Kind::Veth,
            None => Kind::Loopback,
        }
    }

    /// Starts servers at its one end.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn server(&self) -> Result<Launcher, String> {
        let launcher = Launcher::new()?;
        Ok(match &self.joined {
            Some(joined) => launcher.within(joined.server.clone(), netns::SERVER_ADDRESS),
            None => launcher,
        })
    }

    /// Starts clients at its other end.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn client(&self) -> Result<Launcher, String> {
        let launcher = Launcher::new()?;
        Ok(match &self.joined {
            Some(joined) => launcher.within(joined.client.clone(), netns::SERVER_ADDRESS),
            None => launcher,
        })
    }

    /// Where connections come from.
    pub fn source(&self) -> &'static str {
        match self.joined {
            Some(_) => netns::CLIENT_SOURCE,
            None => scenario::CLIENT_SOURCE,
        }
    }

    /// Who else may be pinged, by another way than that.
    pub fn neighbour(&self) -> Option<IpAddr> {
        self.joined.as_ref().map(|_| netns::NEIGHBOUR_ADDRESS)
    }

    /// The host with the settings at the server's end: a new namespace has the kernel's own, whatever the host's are.
    pub fn environment(&self) -> Environment {
        let inside = self.joined.as_ref();
        inside
            .and_then(|joined| joined.server.run(environment).ok())
            .unwrap_or_else(environment)
    }
}
