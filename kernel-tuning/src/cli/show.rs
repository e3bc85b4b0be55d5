//! A plan for a person to read.

use std::fmt::Write as _;

use crate::annotate::lines;
use crate::plan::{Step, Todo};
use crate::setting::{Demand, Role};

/// What is wanted for whom, and each setting that is not so; `changes` is the title of those that are changed.
pub(super) fn plan(steps: &[Step], demand: &Demand, changes: &str) -> String {
    let kept = count(steps, |todo| matches!(todo, Todo::Keep { .. }));
    let mut text = format!(
        "{} connections, {}, {:.1} GiB of memory: {kept} of {} settings are as wanted\n",
        demand.connections,
        match demand.role {
            Role::Server => "accepted here",
            Role::Client => "opened here",
            Role::Both => "both ends here",
        },
        demand.ram_bytes as f64 / f64::from(1 << 30),
        steps.len(),
    );
    let groups = [
        (changes, to_change as fn(&Todo) -> Option<String>),
        ("cannot be changed from here", forbidden),
        ("could not be told", unknown),
    ];
    for (title, what) in groups {
        let lines: Vec<_> = steps
            .iter()
            .filter_map(|step| Some((step, what(&step.todo)?)))
            .collect();
        if !lines.is_empty() {
            let _ = write!(text, "\n{title}\n");
        }
        for (step, what) in lines {
            text += &wrapped(&format!("{}: {what}", step.name), "  ", "      ");
            let about = format!("{} ({}): {}", step.wanted, step.unit, step.reason);
            text += &wrapped(&about, "      ", "      ");
        }
    }
    text
}

fn to_change(todo: &Todo) -> Option<String> {
    match todo {
        Todo::Change { now, to } => Some(format!("{} -> {to}", shown(now))),
        _ => None,
    }
}

fn forbidden(todo: &Todo) -> Option<String> {
    match todo {
        Todo::Forbidden { now, to, why } => Some(format!("{} -> {to} ({why})", shown(now))),
        _ => None,
    }
}

fn unknown(todo: &Todo) -> Option<String> {
    match todo {
        Todo::Unknown { why, .. } => Some(why.clone()),
        _ => None,
    }
}

/// `text` in lines of a terminal's width, the first after `first`, the others after `next`.
fn wrapped(text: &str, first: &str, next: &str) -> String {
    let lines = lines(text, 100 - next.len());
    let lines = lines.iter().enumerate().map(|(index, line)| match index {
        0 => format!("{first}{line}\n"),
        _ => format!("{next}{line}\n"),
    });
    lines.collect()
}

/// How many settings `is` true of.
pub(super) fn count(steps: &[Step], is: fn(&Todo) -> bool) -> usize {
    steps.iter().filter(|step| is(&step.todo)).count()
}

/// An empty value is one too.
pub(super) fn shown(value: &str) -> &str {
    match value {
        "" => "(empty)",
        value => value,
    }
}
