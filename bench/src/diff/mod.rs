//! Two reports of one command, held against each other: what became better, what worse, and what is noise. Pure.
//!
//! Two runs are of two times, and a machine drifts. A ratio that was drawn within rounds (to epoll, to the floor, to the
//! bare socket) has no drift in it; so where there are such ratios, they alone are judged, and the rest is shown.

pub mod figures;

use serde::Serialize;

use crate::run::About;
use crate::stats::Spread;

/// One figure of a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is, of whom, in which case.
    pub name: String,
    /// What of it is better.
    pub better: Better,
    /// It was drawn within rounds, so that it has no drift of the machine in it.
    pub is_relative: bool,
    /// The figure.
    pub spread: Spread,
}

/// What of a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Such as CPU time.
    Less,
    /// Such as messages a second.
    More,
}

/// A figure that both reports have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// What it is, of whom, in which case.
    pub name: String,
    /// In the first report.
    pub before: Spread,
    /// In the second.
    pub after: Spread,
    /// It counts for the verdict.
    pub counts: bool,
    /// What to make of it.
    pub judgement: Judgement,
}

/// What to make of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Beyond noise.
    Better,
    /// Beyond noise.
    Worse,
    /// Within noise.
    Same,
    /// Of too few rounds to tell.
    TooFew,
}

/// What two reports say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// Figures that both have.
    pub changes: Vec<Change>,
    /// Figures that only one of them has.
    pub unmatched: Vec<String>,
    /// Reasons to doubt that the two can be compared.
    pub doubts: Vec<String>,
}

impl Diff {
    /// Of `before` and `after`, and what was said of the runs.
    pub fn of(before: (&About, Vec<Figure>), after: (&About, Vec<Figure>)) -> Self {
        let (earlier, mut before) = before;
        let (later, after) = after;
        let is_relative = before.iter().any(|figure| figure.is_relative);
        let (mut changes, mut unmatched) = (Vec::new(), Vec::new());
        for figure in after {
            let same = before.iter().position(|other| other.name == figure.name);
            let Some(same) = same else {
                unmatched.push(format!("{}: only in the second", figure.name));
                continue;
            };
            let other = before.remove(same);
            changes.push(Change {
                judgement: judge(figure.better, &other.spread, &figure.spread),
                before: other.spread,
                after: figure.spread,
                counts: figure.is_relative || !is_relative,
                name: figure.name,
            });
        }
        let only_before = before.into_iter();
        unmatched.extend(only_before.map(|figure| format!("{}: only in the first", figure.name)));
        Self {
            changes,
            unmatched,
            doubts: doubts(earlier, later),
        }
    }

    /// The changes that count and are of this judgement.
    pub fn judged(&self, judgement: Judgement) -> impl Iterator<Item = &Change> {
        let is_it = move |change: &&Change| change.counts && change.judgement == judgement;
        self.changes.iter().filter(is_it)
    }
}

/// Beyond noise is a change where the 95 % intervals of the two lie apart, or, of too few rounds for an interval, where
/// every value of the one lies beyond every value of the other: of four and four values, that happens by chance once in
/// 35 times.
fn judge(better: Better, before: &Spread, after: &Spread) -> Judgement {
    const LEAST: usize = 4;
    let range = |spread: &Spread| match spread.interval {
        Some(interval) => Some((interval.low, interval.high)),
        None if spread.count >= LEAST => Some((spread.min, spread.max)),
        None => None,
    };
    let both = range(before).zip(range(after));
    let Some(((low, high), (new_low, new_high))) = both else {
        return Judgement::TooFew;
    };
    let (is_less, is_more) = (new_high < low, new_low > high);
    match better {
        Better::Less if is_less => Judgement::Better,
        Better::More if is_more => Judgement::Better,
        _ if is_less || is_more => Judgement::Worse,
        _ => Judgement::Same,
    }
}

fn doubts(before: &About, after: &About) -> Vec<String> {
    let (one, other) = (&before.environment, &after.environment);
    let mut doubts = Vec::new();
    let mut compare = |what: &str, one: String, other: String| {
        if one != other {
            doubts.push(format!("{what}: {one} in the first, {other} in the second"));
        }
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    compare("another kernel", text(&one.kernel), text(&other.kernel));
    compare("another CPU", text(&one.cpu_model), text(&other.cpu_model));
    let number = |value: Option<usize>| value.map_or_else(String::new, |number| number.to_string());
    compare("CPUs", number(one.cpus), number(other.cpus));
    for (name, value) in &one.sysctls {
        let now = other.sysctls.get(name).cloned().unwrap_or_default();
        compare(name, value.clone(), now);
    }
    for (which, about) in [("first", before), ("second", after)] {
        if about.partial {
            doubts.push(format!("the {which} run ended early"));
        }
    }
    doubts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::run::tests::about;

    fn figure(name: &str, is_relative: bool, values: &[f64]) -> Figure {
        Figure {
            name: name.to_owned(),
            better: Better::Less,
            is_relative,
            spread: Spread::of(values.iter().copied()).unwrap(),
        }
    }

    fn judged(before: &[f64], after: &[f64], better: Better) -> Judgement {
        let [before, after] = [before, after].map(|values| Spread::of(values.to_vec()).unwrap());
        judge(better, &before, &after)
    }

    #[test]
    fn a_change_counts_only_beyond_noise_and_in_its_own_direction() {
        let (low, high) = ([1.0, 1.1, 1.2, 1.3, 1.4], [2.0, 2.1, 2.2, 2.3, 2.4]);
        assert_eq!(judged(&low, &high, Better::Less), Judgement::Worse);
        assert_eq!(judged(&low, &high, Better::More), Judgement::Better);
        assert_eq!(judged(&high, &low, Better::Less), Judgement::Better);
        assert_eq!(
            judged(&low, &[1.35, 2.0, 2.1, 2.2], Better::Less),
            Judgement::Same
        );
        assert_eq!(judged(&low[..3], &high, Better::Less), Judgement::TooFew);
    }

    #[test]
    fn ratios_alone_are_judged_where_there_are_any() {
        let of = |relative: f64, absolute: f64| {
            vec![
                figure("ratio", true, &[relative; 6]),
                figure("µs", false, &[absolute; 6]),
            ]
        };
        let about = about("churn");
        let diff = Diff::of((&about, of(1.0, 5.0)), (&about, of(1.0, 9.0)));
        assert_eq!(diff.judged(Judgement::Worse).count(), 0);
        let diff = Diff::of((&about, of(1.0, 5.0)), (&about, of(1.2, 5.0)));
        assert_eq!(diff.judged(Judgement::Worse).count(), 1);
        let alone = |value: f64| vec![figure("µs", false, &[value; 6])];
        let diff = Diff::of((&about, alone(5.0)), (&about, alone(9.0)));
        assert_eq!(diff.judged(Judgement::Worse).next().unwrap().name, "µs");
    }

    #[test]
    fn what_only_one_has_and_another_machine_are_told() {
        let (mut one, other) = (about("churn"), about("churn"));
        one.environment.kernel = Some("5.4".to_owned());
        one.partial = true;
        let figures = |name: &str| vec![figure(name, true, &[1.0; 6])];
        let diff = Diff::of((&one, figures("a")), (&other, figures("b")));
        assert!(diff.changes.is_empty() && diff.unmatched.len() == 2);
        let said = diff.doubts.join("; ");
        assert!(
            said.contains("another kernel: 5.4") && said.contains("ended early"),
            "{said}"
        );
    }

    proptest! {
        #[test]
        fn a_report_against_itself_is_the_same(values in prop::collection::vec(0.1f64..10.0, 4..40)) {
            prop_assert_eq!(judged(&values, &values, Better::Less), Judgement::Same);
        }

        #[test]
        fn what_is_worse_one_way_is_better_the_other(
            one in prop::collection::vec(0.1f64..10.0, 4..20),
            other in prop::collection::vec(0.1f64..10.0, 4..20),
        ) {
            let there = judged(&one, &other, Better::Less);
            let back = judged(&other, &one, Better::Less);
            let expected = match there {
                Judgement::Worse => Judgement::Better,
                Judgement::Better => Judgement::Worse,
                same => same,
            };
            prop_assert_eq!(back, expected);
        }
    }
}
