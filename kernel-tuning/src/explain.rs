//! What every setting and counter that is known here means: of the profiles, and of [`crate::host::counters`].
//!
//! Pure. Invariant: nothing is explained twice; this only finds it.

use crate::host::{Counter, Kind, counters};
use crate::profile;
use crate::setting::{Role, Setting};

/// Something that can be explained.
#[derive(Debug, Clone)]
pub enum Known {
    /// A setting of the profiles.
    Setting(Box<Setting>),
    /// A counter or figure of the kernel.
    Counter(&'static Counter),
}

impl Known {
    /// Its full name.
    pub fn name(&self) -> &str {
        match self {
            Self::Setting(setting) => &setting.name,
            Self::Counter(counter) => counter.name,
        }
    }

    /// In one line.
    pub fn means(&self) -> &str {
        match self {
            Self::Setting(setting) => &setting.reason,
            Self::Counter(counter) => counter.means,
        }
    }

    /// What it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Setting(_) => "setting",
            Self::Counter(counter) if counter.kind == Kind::Gauge => "figure",
            Self::Counter(_) => "counter",
        }
    }
}

/// Everything, settings first.
pub fn all() -> Vec<Known> {
    let settings = profile::settings(Role::Both)
        .into_iter()
        .map(|setting| Known::Setting(Box::new(setting)));
    settings
        .chain(counters().iter().map(Known::Counter))
        .collect()
}

/// What is meant by `name`: in any case of letters; a setting by its last word or as a path; a counter as nstat(8) has it,
/// `TcpExtListenDrops`.
pub fn find(name: &str) -> Option<Known> {
    let wanted = plain(name);
    let known = all();
    let is_full = |known: &&Known| plain(known.name()) == wanted;
    let is_short = |known: &&Known| short(known.name()) == wanted;
    let found = known
        .iter()
        .find(is_full)
        .or_else(|| known.iter().find(is_short));
    found.cloned()
}

/// Up to five names that `name` may have been meant to be, the likeliest first.
pub fn near(name: &str) -> Vec<String> {
    /// Of Jaro and Winkler's likeness, where one word may still be another with a slip.
    const LIKE: f64 = 0.8;
    let wanted = plain(name);
    let last = short(&wanted);
    let mut scored: Vec<(f64, String)> = all()
        .iter()
        .map(|known| {
            let (full, word) = (plain(known.name()), short(known.name()));
            let is_part = wanted.len() > 2 && full.contains(&wanted);
            let like = strsim::jaro_winkler(&full, &wanted).max(strsim::jaro_winkler(&word, &last));
            (
                like.max(if is_part { LIKE } else { 0.0 }),
                known.name().to_owned(),
            )
        })
        .filter(|(like, _)| *like >= LIKE)
        .collect();
    scored.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    scored.into_iter().map(|(_, name)| name).take(5).collect()
}

fn plain(name: &str) -> String {
    let name = name
        .trim()
        .trim_start_matches("/proc/sys/")
        .replace('/', ".")
        .to_lowercase();
    let bare = ["tcpext", "ip.", "tcp."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    bare.map_or(name.clone(), str::to_owned)
}

/// The last word of a setting's name; of a counter all of it.
fn short(name: &str) -> String {
    let name = plain(name);
    name.rsplit('.').next().unwrap_or(&name).to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everything_is_found_by_its_own_name() {
        for known in all() {
            assert_eq!(find(known.name()).unwrap().name(), known.name());
            assert!(!known.means().is_empty());
        }
        let names: BTreeSet<String> = all().iter().map(|known| known.name().to_owned()).collect();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn what_is_meant_is_found_as_people_and_tools_write_it() {
        for (written, name) in [
            ("tcp_mem", "net.ipv4.tcp_mem"),
            ("NET.IPV4.TCP_MEM", "net.ipv4.tcp_mem"),
            ("/proc/sys/net/core/somaxconn", "net.core.somaxconn"),
            ("net/core/somaxconn", "net.core.somaxconn"),
            ("TcpExtListenOverflows", "ListenOverflows"),
            ("listendrops", "ListenDrops"),
            ("softnetdropped", "SoftnetDropped"),
        ] {
            assert_eq!(find(written).unwrap().name(), name, "{written}");
        }
        assert!(find("no_such").is_none() && find("").is_none());
    }

    #[test]
    fn a_slip_of_the_pen_has_near_names() {
        assert_eq!(near("somaxcon")[0], "net.core.somaxconn");
        assert_eq!(near("ListenOverflow")[0], "ListenOverflows");
        assert!(
            near("keepalive")
                .iter()
                .all(|name| name.contains("keepalive"))
        );
        assert!(near("qqqqqq").is_empty());
        assert!(near("tcp").len() <= 5);
    }
}
