//! The profiles: `profiles/*.conf`, the one place that says which settings matter, what they should be, and why.
//!
//! They are files for sysctl.d (sysctl.d(5)) that `sysctl -p` accepts; what it takes for comments is read here:
//!
//! ```text
//! ## said to a person who reads the file
//! # reason: what happens without it
//! #   and on the next line
//! # unit: pages
//! # scope: host | namespace
//! # wanted: at least sockets, at most ram_pages / 4; at most 9; exactly 1; any     (one for each number)
//! # wanted: the listening ports                                                    (of a list of ports)
//! # default: ram_pages * 3 / 64; 9; 1; 5                                           (what the kernel starts with)
//! # bytes: 256                                                                     (of kernel memory for one unit)
//! # source: where it is documented
//! net.ipv4.tcp_mem = 1 2 3 4
//! ```
//!
//! The value is the one for [`reference`]; a `-` before the name says that a host may lack it, as for `sysctl`.
//! Invariant: a setting is in one file only.

use crate::formula::Formula;
use crate::setting::{Demand, Field, Role, Rule, Scope, Setting};

const FILES: [(Role, &str, &str); 3] = [
    (
        Role::Both,
        "common.conf",
        include_str!("../profiles/common.conf"),
    ),
    (
        Role::Server,
        "server.conf",
        include_str!("../profiles/server.conf"),
    ),
    (
        Role::Client,
        "client.conf",
        include_str!("../profiles/client.conf"),
    ),
];

/// The demand that the values in the files are right for, where the kernel has its defaults.
pub fn reference() -> Demand {
    Demand {
        connections: 1_000_000,
        role: Role::Server,
        ram_bytes: 16 << 30,
        page_bytes: 4096,
        listen_ports: vec![7000..=7000],
    }
}

/// Every setting of `role`, in the order in which they are to be written.
pub fn settings(role: Role) -> Vec<Setting> {
    let is_wanted = |of: Role| of == Role::Both || role == Role::Both || of == role;
    let files = FILES.iter().filter(|(of, ..)| is_wanted(*of));
    files
        .flat_map(|(of, name, text)| {
            // A test parses each of these texts, which are part of the program.
            #[expect(clippy::panic, reason = "proved by a test")]
            parse(text, *of).unwrap_or_else(|what| panic!("{name}: {what}"))
        })
        .collect()
}

/// The setting of that name, whatever its role.
pub fn setting(name: &str) -> Option<Setting> {
    let mut all = settings(Role::Both).into_iter();
    all.find(|setting| setting.name == name)
}

/// Parses a profile for `role`.
///
/// # Errors
/// What is wrong, with the number of the line.
fn parse(text: &str, role: Role) -> Result<Vec<Setting>, String> {
    let mut settings = Vec::new();
    let mut notes = Notes::default();
    for (index, line) in text.lines().enumerate() {
        let at_line = |what: String| format!("line {}: {what}", index + 1);
        let line = line.trim_end();
        if line.is_empty() || line == "#" || line.starts_with("##") {
            continue;
        } else if let Some(comment) = line.strip_prefix('#') {
            notes.read(comment).map_err(at_line)?;
        } else {
            let notes = std::mem::take(&mut notes);
            settings.push(notes.setting(line, role).map_err(at_line)?);
        }
    }
    match notes.0.is_empty() {
        true => Ok(settings),
        false => Err("comments at the end that belong to no setting".into()),
    }
}

const KEYS: [&str; 7] = [
    "reason", "unit", "scope", "wanted", "default", "bytes", "source",
];

/// The comments before a setting: keys and their text.
#[derive(Default)]
struct Notes(Vec<(&'static str, String)>);

impl Notes {
    fn read(&mut self, comment: &str) -> Result<(), String> {
        if let Some(more) = comment.strip_prefix("   ") {
            let (_, text) = self
                .0
                .last_mut()
                .ok_or("it goes on with no comment before it")?;
            *text = format!("{text} {}", more.trim());
            return Ok(());
        }
        let (key, text) = comment
            .split_once(':')
            .ok_or_else(|| format!("no key in {comment:?}; a comment for people begins with ##"))?;
        let known = KEYS.into_iter().find(|known| *known == key.trim());
        let key =
            known.ok_or_else(|| format!("unknown key {:?}: known are {KEYS:?}", key.trim()))?;
        if self.get(key).is_some() {
            return Err(format!("a second {key:?}"));
        }
        self.0.push((key, text.trim().to_owned()));
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| *known == key);
        found.map(|(_, text)| text.as_str())
    }

    fn need(&self, key: &str) -> Result<&str, String> {
        self.get(key)
            .ok_or_else(|| format!("no comment {key:?} before it"))
    }

    fn setting(&self, line: &str, role: Role) -> Result<Setting, String> {
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| format!("no = in {line:?}"))?;
        let name = name.trim();
        Ok(Setting {
            name: name.trim_start_matches('-').to_owned(),
            role,
            is_optional: name.starts_with('-'),
            rule: rule(self.need("wanted")?)?,
            default: match self.get("default") {
                None => Vec::new(),
                Some(text) => text
                    .split(';')
                    .map(Formula::parse)
                    .collect::<Result<_, _>>()?,
            },
            unit: self.need("unit")?.to_owned(),
            bytes: match self.get("bytes") {
                None => None,
                Some(text) => Some(text.parse().map_err(|_| format!("bytes: {text:?}"))?),
            },
            reason: self.need("reason")?.to_owned(),
            source: self.need("source")?.to_owned(),
            scope: match self.need("scope")? {
                "host" => Scope::Host,
                "namespace" => Scope::Namespace,
                other => return Err(format!("scope: {other:?}")),
            },
            reference: value.trim().to_owned(),
        })
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    if text == "the listening ports" {
        return Ok(Rule::ListenPorts);
    }
    Ok(Rule::Numbers(
        text.split(';').map(field).collect::<Result<_, _>>()?,
    ))
}

fn field(text: &str) -> Result<Field, String> {
    let text = text.trim();
    let formula = |text| Formula::parse(text).map(Some);
    if text == "any" {
        return Ok(Field::default());
    }
    if let Some(exact) = text.strip_prefix("exactly ") {
        let at_least = formula(exact)?;
        let at_most = at_least.clone();
        return Ok(Field { at_least, at_most });
    }
    let (low, high) = match (text.split_once(", at most "), text.strip_prefix("at most ")) {
        (Some((low, high)), _) => (Some(low), Some(high)),
        (None, Some(high)) => (None, Some(high)),
        (None, None) => (Some(text), None),
    };
    let at_least = match low {
        None => None,
        Some(low) => formula(low.strip_prefix("at least ").ok_or_else(|| {
            format!("{text:?} is none of: at least …, at most …, exactly …, any")
        })?)?,
    };
    let at_most = high.map_or(Ok(None), formula)?;
    Ok(Field { at_least, at_most })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::setting::{Wanted, wanted};

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(lines in proptest::collection::vec(
            prop_oneof![
                "\\PC{0,30}",
                "# ?[a-z]{0,8}: ?\\PC{0,20}",
                "# wanted: (at least|at most|exactly)? ?[0-9a-z,; ]{0,12}",
                "-?[a-z.]{1,12} ?= ?[0-9 ]{0,12}",
                proptest::sample::select(GOOD.lines().map(str::to_owned).collect::<Vec<_>>()),
            ],
            0..14,
        )) {
            if let Ok(settings) = parse(&lines.join("\n"), Role::Both) {
                for setting in settings {
                    prop_assert!(!setting.name.starts_with('-'));
                    let _ = wanted(&setting, &reference()).adjusted(&setting.reference);
                }
            }
        }

        #[test]
        fn what_is_written_is_read(low in 0_u64..1000, more in 0_u64..1000, comment in "[a-z][a-z ,;=]{0,40}") {
            let high = low + more;
            let text = GOOD
                .replace("at least 2, at most connections", &format!("at least {low}, at most {high}"))
                .replace("# reason: this", &format!("# reason: {comment}"));
            let setting = parse(&text, Role::Both).unwrap().remove(0);
            let Wanted::Numbers(ranges) = wanted(&setting, &reference()) else {
                panic!("no numbers");
            };
            prop_assert_eq!(&ranges[0], &(low..=high));
            prop_assert_eq!(setting.reason, format!("{} and that", comment.trim()));
        }
    }

    const GOOD: &str = "## Head.\n\n# reason: this\n#   and that\n# unit: pages\n# scope: host\n\
        # wanted: at least 2, at most connections; any; exactly 1\n# source: here\n-net.x = 2 2 1\n";

    #[test]
    fn a_setting_is_read_with_its_comments() {
        let [setting] = parse(GOOD, Role::Client).unwrap().try_into().unwrap();
        assert_eq!(
            (setting.name.as_str(), setting.is_optional),
            ("net.x", true)
        );
        assert_eq!(setting.reason, "this and that");
        assert_eq!(setting.reference, "2 2 1");
        let ranges = wanted(&setting, &reference()).to_string();
        assert_eq!(ranges, "2 to 1000000; any; 1");
    }

    #[test]
    fn what_nobody_would_read_is_refused_with_its_line() {
        for (from, to, words) in [
            (
                "# unit: pages",
                "# units: pages",
                "line 5: unknown key \"units\"",
            ),
            (
                "# unit: pages",
                "# unit: pages\n# unit: bytes",
                "line 6: a second",
            ),
            ("# unit: pages\n", "", "no comment \"unit\""),
            (
                "# reason: this\n#   and that\n",
                "#   and that\n",
                "line 3: it goes on",
            ),
            ("at least 2", "at best 2", "none of"),
            ("scope: host", "scope: world", "scope"),
            ("# source: here\n", "", "no comment \"source\""),
            (" = 2 2 1", " 2 2 1", "no ="),
            (
                "# source: here\n-net.x = 2 2 1\n",
                "# source: here\n",
                "at the end",
            ),
            ("# source", "# So it is\n# source", "no key"),
        ] {
            let error = parse(&GOOD.replace(from, to), Role::Both).unwrap_err();
            assert!(error.contains(words), "{to:?}: {error}");
        }
    }

    #[test]
    fn every_profile_is_read_and_a_setting_is_in_one_of_them() {
        let all = settings(Role::Both);
        let mut names: Vec<_> = all.iter().map(|setting| setting.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let of = |role| settings(role).len();
        assert_eq!(
            of(Role::Server) + of(Role::Client),
            all.len() + parse(FILES[0].2, Role::Both).unwrap().len()
        );
        assert!(
            setting("net.ipv4.tcp_mem").is_some() && setting("net.ipv4.tcp_tw_recycle").is_none()
        );
    }

    #[test]
    fn the_values_in_the_files_are_what_the_comments_say() {
        let demand = reference();
        for setting in settings(Role::Both) {
            let numbers: Vec<String> = setting
                .default
                .iter()
                .map(|formula| formula.value(&demand).to_string())
                .collect();
            let adjusted = wanted(&setting, &demand).adjusted(&numbers.join(" "));
            assert_eq!(
                adjusted.as_ref(),
                Ok(&setting.reference),
                "{}",
                setting.name
            );
        }
    }
}
