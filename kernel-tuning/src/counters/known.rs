//! What is known of the kernel's network counters: `known.txt`, the one place that says what each means.
//!
//! Pure. Invariant: a name stands for one counter.

use std::sync::LazyLock;

/// A counter or figure of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// As the kernel names it; those of ICMP with `Icmp` before it, as nstat(8) does.
    pub name: &'static str,
    /// Where it is found.
    pub place: &'static str,
    /// Whether it is trouble when it grows.
    pub kind: Kind,
    /// What it counts, in words.
    pub means: &'static str,
    /// What to do when it grows, where something can be done.
    pub remedy: Option<&'static str>,
}

/// What a growth says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something was lost, late or refused.
    Trouble,
    /// Nothing by itself.
    Traffic,
    /// It does not only grow: a figure of now.
    Gauge,
}

/// All that are known.
pub fn counters() -> &'static [Counter] {
    static ALL: LazyLock<Vec<Counter>> = LazyLock::new(|| parse(include_str!("known.txt")));
    &ALL
}

/// The counter of that name.
pub fn counter(name: &str) -> Option<&'static Counter> {
    counters().iter().find(|counter| counter.name == name)
}

/// What a counter means, in words.
pub fn meaning(name: &str) -> Option<&'static str> {
    counter(name).map(|counter| counter.means)
}

/// What is not understood is left out; a test says that nothing is.
fn parse(text: &'static str) -> Vec<Counter> {
    let mut all: Vec<Counter> = Vec::new();
    let mut place = "";
    for line in text
        .lines()
        .filter(|line| !line.starts_with("##") && !line.is_empty())
    {
        if let Some(section) = line.strip_prefix('[') {
            place = section.trim_end_matches(']');
        } else if let (Some(about), Some(last)) = (line.strip_prefix("  "), all.last_mut()) {
            match about.split_once(' ') {
                Some(("means", means)) => last.means = means,
                Some(("do", remedy)) => last.remedy = Some(remedy),
                Some(("is", "traffic")) => last.kind = Kind::Traffic,
                Some(("is", "gauge")) => last.kind = Kind::Gauge,
                _ => {}
            }
        } else {
            all.push(Counter {
                name: line,
                place,
                kind: Kind::Trouble,
                means: "",
                remedy: None,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_line_of_the_list_is_understood_and_every_name_is_there_once() {
        for counter in counters() {
            assert!(
                !counter.means.is_empty() && !counter.place.is_empty(),
                "{counter:?}"
            );
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            assert!(counter.name.chars().all(is_name), "{counter:?}");
        }
        let names: BTreeSet<&str> = counters().iter().map(|counter| counter.name).collect();
        assert_eq!(names.len(), counters().len());
        let keys = include_str!("known.txt")
            .lines()
            .filter_map(|line| line.strip_prefix("  "));
        for key in keys {
            let known = ["means ", "do ", "is traffic", "is gauge"];
            assert!(known.iter().any(|known| key.starts_with(known)), "{key}");
        }
    }
}
