//! The timeline of the page of `remote`: both ends on one clock. Pure.

use std::collections::BTreeMap;

use crate::remote::join::Moment;
use crate::remote::result::Report;
use crate::report::format::{MIB, mebibytes, percent, rounded};
use crate::report::ink::Ink;
use crate::report::timeline::{Line, Panel, Timeline};

/// Both ends over the same time.
pub(super) fn timeline(report: &Report) -> Option<Timeline> {
    report.phases.first()?;
    let second = |us: i64| us as f64 / 1e6;
    let progress = report.progress.iter();
    let connections = progress.map(|one| (one.t_ms as f64 / 1e3, one.established as f64));
    let ends = [
        ("server", &report.moments.server, Ink::Uring),
        ("client", &report.moments.client, Ink::Epoll),
    ];
    let hosts: &[_] = match report.is_one_host {
        true => &[("both ends", ends[0].1, ends[0].2)],
        false => &ends,
    };
    let phases = report.phases.iter();
    let phases: Vec<(f64, String)> = phases
        .map(|phase| (second(phase.begin_us), phase.name.clone()))
        .collect();
    let line = |label: &str, ink, points: Vec<(f64, f64)>| Line {
        label: label.to_owned(),
        points: thinned(points, &phases),
        ink,
    };
    let each = |moments: &[Moment], of: &dyn Fn(&Moment) -> f64| {
        let after = moments.iter().filter(|moment| moment.t_us >= 0);
        after
            .map(|moment| (second(moment.t_us), of(moment)))
            .collect()
    };
    let busy = ends.map(|(label, moments, ink)| line(label, ink, busy(moments)));
    let rss = ends.map(|(label, moments, ink)| {
        let points = each(moments, &|moment| {
            let processes = moment.look.processes.iter();
            processes.map(|seen| seen.rss_bytes).sum::<u64>() as f64 / MIB
        });
        line(label, ink, points)
    });
    let slab = hosts.iter().map(|(label, moments, ink)| {
        let base = moments
            .first()
            .map_or(0, |moment| moment.look.memory.slab_bytes);
        let points = each(moments, &|moment| {
            moment.look.memory.slab_bytes.saturating_sub(base) as f64 / MIB
        });
        line(label, *ink, points)
    });
    let panel = |title: &str, show: fn(f64) -> String, lines: Vec<Line>| Panel {
        title: title.to_owned(),
        show,
        lines,
    };
    Some(Timeline {
        title: "Both ends over time, on one clock".to_owned(),
        about: "Seconds from the start of the client, by the clock of its host; the phases are marked where they begin, and the \
                short ones are named in the tables alone. CPU is that of the processes and ksoftirqd between one look and the next"
            .to_owned(),
        panels: vec![
            panel(
                "connections established",
                rounded,
                vec![line("connections", Ink::Uring, connections.collect())],
            ),
            panel("CPU, of a core", percent, busy.into()),
            panel("kernel slab, grown by", mebibytes, slab.collect()),
            panel("RSS of the processes", mebibytes, rss.into()),
        ],
        phases,
    })
}

/// No more than can be told apart; of each phase the last stays.
fn thinned(points: Vec<(f64, f64)>, phases: &[(f64, String)]) -> Vec<(f64, f64)> {
    const MOST: usize = 200;
    let apart = points.len().div_ceil(MOST).max(1);
    let phase = |seconds: f64| phases.partition_point(|(begin, _)| *begin <= seconds);
    let is_last = |index: usize| {
        let next = points.get(index + 1);
        next.is_none_or(|next| phase(next.0) != phase(points[index].0))
    };
    let kept = points.iter().enumerate();
    let kept = kept.filter(|(index, _)| index % apart == 0 || is_last(*index));
    kept.map(|(_, point)| *point).collect()
}

/// Cores that the processes and ksoftirqd kept busy between a look and the next; of so many that they can be told apart.
fn busy(moments: &[Moment]) -> Vec<(f64, f64)> {
    const MOST: usize = 100;
    let after = moments.iter().filter(|moment| moment.t_us >= 0);
    let after: Vec<&Moment> = after.collect();
    let apart = after.len().div_ceil(MOST).max(1);
    let looks: Vec<&Moment> = after.into_iter().step_by(apart).collect();
    let each = looks.windows(2).map(|two| {
        let (before, now) = (&two[0].look, &two[1].look);
        let begun: BTreeMap<u32, u64> = before
            .processes
            .iter()
            .map(|seen| (seen.pid, seen.cpu_ns))
            .collect();
        let spent = now.processes.iter().map(|seen| {
            let at_begin = begun.get(&seen.pid).copied().unwrap_or(0);
            seen.cpu_ns.saturating_sub(at_begin)
        });
        let softirq_ns = now.softirq_ns.zip(before.softirq_ns);
        let softirq_ns = softirq_ns.map_or(0, |(now, before)| now.saturating_sub(before));
        let elapsed_us = (two[1].t_us - two[0].t_us).max(1);
        let spent_ns = spent.sum::<u64>() + softirq_ns;
        let cores = spent_ns as f64 / (elapsed_us as f64 * 1e3);
        (two[1].t_us as f64 / 1e6, cores)
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_thinned_out_and_each_phase_keeps_its_last() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|t| (f64::from(t), 0.0)).collect();
        let phases = vec![(0.0, "a".to_owned()), (777.0, "b".to_owned())];
        let kept = thinned(points, &phases);
        assert!(kept.len() <= 203);
        for end in [776.0, 9_999.0] {
            assert!(kept.iter().any(|point| point.0 == end), "{end}");
        }
    }
}
