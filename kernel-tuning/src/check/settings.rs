//! The settings of the profile, each by its direction, and whose they are.
//!
//! Pure. What is wanted of a setting, and whether it can be written, is [`crate::plan`]'s to say.

use super::{About, Finding, Fix, Readings, Theme, Verdict};
use crate::plan::{Obstacle, Step, Todo};

/// One for all, then one for each.
pub(super) fn findings(plan: &[Step], readings: &Readings) -> Vec<Finding> {
    let each = plan.iter().map(|step| finding(step, readings));
    std::iter::once(ownership(plan)).chain(each).collect()
}

fn finding(step: &Step, readings: &Readings) -> Finding {
    let name = step.name.as_str();
    let why = format!("{} ({})", step.reason, step.unit);
    let about = About::new(Theme::Settings, name, &step.wanted, why);
    // What bounds a table that stays empty bounds nothing.
    let is_idle = name.starts_with("net.netfilter.nf_conntrack")
        && readings.number("net.netfilter.nf_conntrack_count") == Ok(0);
    match &step.todo {
        Todo::Keep { now } => about.pass(shown(now)),
        Todo::Change { now, .. } | Todo::Forbidden { now, .. } if is_idle => {
            about.pass(format!("{now}, and nothing is tracked"))
        }
        Todo::Change { now, to } => about.warn(shown(now), Fix::sysctl(name, to)),
        Todo::Forbidden { now, to, why } => {
            let fix = Fix::sysctl(name, to);
            let on = match why {
                Obstacle::NotRoot => "as root",
                Obstacle::OtherNamespace | Obstacle::ReadOnly => "on the host itself",
            };
            let now_fix = format!("{on}, as {why}: {}", fix.now);
            about.warn(shown(now), Fix::new(now_fix, fix.keep))
        }
        Todo::Unknown { why, .. } => about.unknown(why),
    }
}

fn ownership(plan: &[Step]) -> Finding {
    let about = About::new(
        Theme::Settings,
        "whose settings",
        "all are here, and those to be changed can be",
        "a container or network namespace has only some of the settings; the others are the host's, and count here too",
    );
    let names = |is_one: fn(&Todo) -> bool| -> Vec<&str> {
        let steps = plan.iter().filter(|step| is_one(&step.todo));
        steps.map(|step| step.name.as_str()).collect()
    };
    let absent = names(|todo| {
        matches!(
            todo,
            Todo::Unknown {
                is_needed: true,
                ..
            }
        )
    });
    let frozen =
        names(|todo| matches!(todo, Todo::Forbidden { why, .. } if *why != Obstacle::NotRoot));
    if plan
        .iter()
        .all(|step| matches!(step.todo, Todo::Unknown { .. }))
    {
        return about.unknown("no setting can be read: /proc/sys is not here");
    }
    let told = |what: &str, names: &[&str]| {
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let told = [told("not here", &absent), told("read-only", &frozen)];
    let told: Vec<String> = told.into_iter().flatten().collect();
    match told.is_empty() {
        true => about.pass("they are"),
        false => about.finding(
            Verdict::Warn,
            told.join("; "),
            Some(Fix::new(
                "run throng-tune check and apply on the host itself",
                "the host's own /etc/sysctl.d, or --sysctl of the container for those of a network namespace",
            )),
        ),
    }
}

fn shown(now: &str) -> &str {
    if now.is_empty() { "empty" } else { now }
}
