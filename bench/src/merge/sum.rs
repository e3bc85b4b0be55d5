//! The parts added up. Pure, but for the time of day.
//!
//! Invariant: a count of the whole is the sum of the parts' counts, a histogram the sum of their histograms; nothing is
//! averaged. Times are from the common start on, each set right by what its host's clock was ahead.

use std::collections::{BTreeMap, BTreeSet};

use client::mergeable::Mergeable;
use client::times::Times;

use crate::merge::clocks::Clocks;
use crate::merge::parts::{Fleet, Given};
use crate::merge::result::{Apart, Doubt, Held, Latency, PartRow, Ramp, Report};
use crate::report::Reported;
use crate::report::format::count;
use crate::result::Failure;
use crate::run::{About, FORMAT_VERSION};
use crate::scenario::Placement;

/// Beyond this a clock did not run faster or slower, but was set.
const SET_US: i64 = 10_000;
/// Below this share of common time a rate of the whole says little.
const TOGETHER: f64 = 0.9;

/// The report of `fleet`, whose hosts' clocks are ahead by `clocks`.
///
/// # Errors
/// Histograms of two parts cannot be added up.
pub fn report(fleet: &Fleet, clocks: &Clocks, command_line: Vec<String>) -> Result<Report, String> {
    let parts: Vec<&Given> = fleet.parts.values().collect();
    let apart = apart(&parts, clocks);
    let time = Common::of(&parts, clocks, apart);
    let (latency, latency_by_phase) = latencies(&parts)?;
    let counters = sum(parts.iter().map(|given| &given.part.counters));
    let mut causes: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for (kind, by_cause) in parts.iter().flat_map(|given| &given.part.causes) {
        let all = causes.entry(kind.clone()).or_default();
        *all = sum([&*all, by_cause].into_iter());
    }
    let asked = parts.first().map(|first| first.part.asked.clone());
    let mut report = Report {
        about: about(fleet, &parts, &time, command_line),
        asked: asked.unwrap_or_default(),
        of: fleet.of,
        missing: fleet.missing(),
        parts: parts
            .iter()
            .map(|given| row(given, clocks, &time))
            .collect(),
        clocks: apart,
        ramp: None,
        hold: None,
        counters,
        causes,
        latency,
        latency_by_phase,
        warnings: Vec::new(),
    };
    report.ramp = ramp(&parts, &time, &report);
    report.hold = held(&parts, &time, &report);
    report.warnings = doubts(&parts, &report);
    Ok(report)
}

/// One time for all parts.
struct Common<'a> {
    start_unix_us: i64,
    /// None where they are not to be used.
    clocks: Option<&'a Clocks>,
}

impl<'a> Common<'a> {
    fn of(parts: &[&Given], clocks: &'a Clocks, apart: Apart) -> Common<'a> {
        let is_measured = matches!(apart, Apart::Measured { .. });
        let mut common = Common {
            start_unix_us: 0,
            clocks: is_measured.then_some(clocks),
        };
        let asked = parts
            .iter()
            .find_map(|given| given.part.clock.start_at_unix_us);
        let began = parts.iter().map(|given| common.at(&given.part, 0)).min();
        common.start_unix_us = asked.map_or(began.unwrap_or(0), |asked| asked as i64);
        common
    }

    /// The common time of what came so long after the start of a part's run.
    fn at(&self, part: &Mergeable, after_us: u64) -> i64 {
        let ahead = self.clocks.and_then(|clocks| clocks.get(&part.part.number));
        let ahead = ahead.map_or(0, |ahead| ahead.offset_us);
        // Of this millennium.
        (part.clock.began_unix_us + after_us) as i64 - ahead - self.start_unix_us
    }
}

fn apart(parts: &[&Given], clocks: &Clocks) -> Apart {
    let mut kernels = BTreeSet::new();
    for given in parts {
        let host = &given.part.host;
        // One that cannot be told is one of its own.
        let boot = host.boot_id.clone();
        kernels.insert(boot.unwrap_or_else(|| format!("of part {}", given.part.part.number)));
    }
    let hosts = kernels.len() as u64;
    if hosts <= 1 {
        return Apart::OneClock;
    }
    let known: Option<Vec<_>> = parts
        .iter()
        .map(|given| clocks.get(&given.part.part.number))
        .collect();
    let Some(known) = known else {
        return Apart::Unknown { hosts };
    };
    let offsets = || known.iter().map(|ahead| ahead.offset_us);
    let (least, most) = (offsets().min().unwrap_or(0), offsets().max().unwrap_or(0));
    Apart::Measured {
        hosts,
        apart_us: most.abs_diff(least),
        uncertainty_us: known
            .iter()
            .map(|ahead| ahead.uncertainty_us)
            .max()
            .unwrap_or(0),
    }
}

fn sum<'a>(all: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (name, count) in all.flatten() {
        *sum.entry(name.clone()).or_default() += count;
    }
    sum
}

/// Over the whole run, and by phase in the order of the first part that has it.
fn latencies(parts: &[&Given]) -> Result<(Vec<Latency>, Vec<Latency>), String> {
    let mut order: Vec<&str> = Vec::new();
    let mut sums: BTreeMap<(Option<usize>, &str), Times> = BTreeMap::new();
    for given in parts {
        for of_phase in &given.part.phases {
            let known = order.iter().position(|phase| *phase == of_phase.phase);
            let place = known.unwrap_or_else(|| {
                order.push(&of_phase.phase);
                order.len() - 1
            });
            for (kind, times) in &of_phase.times {
                for key in [(None, kind.as_str()), (Some(place), kind.as_str())] {
                    match sums.get_mut(&key) {
                        Some(sum) => sum
                            .add(times)
                            .map_err(|reason| format!("{}: {kind}: {reason}", given.file))?,
                        None => _ = sums.insert(key, times.clone()),
                    }
                }
            }
        }
    }
    let latencies = sums.into_iter().map(|((place, kind), times)| Latency {
        phase: place.map(|place| order[place].to_owned()),
        kind: kind.to_owned(),
        latency_us: times.percentiles(),
        times,
    });
    Ok(latencies.partition(|latency| latency.phase.is_none()))
}

fn row(given: &Given, clocks: &Clocks, time: &Common) -> PartRow {
    let part = &given.part;
    let connected = part.course.first_connect_us;
    PartRow {
        number: part.part.number,
        file: given.file.clone(),
        host: part.host.name.clone(),
        kernel: part.host.environment.kernel.clone(),
        cpus: part.host.environment.cpus,
        ahead: clocks.get(&part.part.number).copied(),
        first_connect_us: connected.map(|after_us| time.at(part, after_us)),
        ended: part.ended.clone(),
        is_flawless: part.is_flawless,
        counters: part.counters.clone(),
    }
}

fn ramp(parts: &[&Given], time: &Common, report: &Report) -> Option<Ramp> {
    let at = |given: &&Given, after_us: Option<u64>| Some(time.at(&given.part, after_us?));
    let first = parts
        .iter()
        .filter_map(|given| at(given, given.part.course.first_connect_us));
    let last = parts
        .iter()
        .filter_map(|given| at(given, given.part.course.last_established_us));
    let (from_us, to_us) = (first.min()?, last.max()?);
    let is_held_between = report
        .asked("/shape/ramp")
        .is_some_and(|ramp| ["steps", "levels"].contains(&ramp.as_str()));
    let rate = per_second(report.counter("established"), to_us - from_us);
    Some(Ramp {
        from_us,
        to_us,
        connects_per_second: rate.filter(|_| !is_held_between),
    })
}

fn held(parts: &[&Given], time: &Common, report: &Report) -> Option<Held> {
    let spans: Vec<(i64, i64)> = parts
        .iter()
        .filter_map(|given| {
            let course = &given.part.course;
            let [from, to] = [course.hold_from_us?, course.hold_to_us?];
            Some((time.at(&given.part, from), time.at(&given.part, to)))
        })
        .collect();
    let (from_us, last_from) = (
        spans.iter().map(|span| span.0).min()?,
        spans.iter().map(|span| span.0).max()?,
    );
    let (first_to, to_us) = (
        spans.iter().map(|span| span.1).min()?,
        spans.iter().map(|span| span.1).max()?,
    );
    let rate = |name| match report.counter(name) {
        0 => None,
        counted => per_second(counted, to_us - from_us),
    };
    Some(Held {
        from_us,
        to_us,
        common_us: (first_to - last_from).max(0) as u64,
        messages_per_second: rate("messages_at_hold_end"),
        cycles_per_second: rate("cycles_at_hold_end"),
    })
}

fn per_second(counted: u64, us: i64) -> Option<f64> {
    (us > 0).then(|| counted as f64 * 1e6 / us as f64)
}

fn doubts(parts: &[&Given], report: &Report) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let has_start = |given: &&Given| given.part.clock.start_at_unix_us.is_some();
    if parts.len() > 1 && !parts.iter().all(has_start) {
        doubts.push(Doubt::NoCommonStart);
    }
    if let Apart::Unknown { hosts } = report.clocks {
        doubts.push(Doubt::ClocksUnknown { hosts });
    }
    for given in parts {
        let (part, clock) = (given.part.part.number, &given.part.clock);
        let by_day = clock.ended_unix_us as i64 - clock.began_unix_us as i64;
        let passed = clock.ended_monotonic_us as i64 - clock.began_monotonic_us as i64;
        let by_us = by_day - passed;
        if by_us.abs() > SET_US {
            doubts.push(Doubt::ClockSet { part, by_us });
        }
        let said = given.part.bottleneck.clone();
        doubts.extend(said.map(|said| Doubt::Bottleneck { part, said }));
    }
    if let Some(held) = &report.hold {
        let common = held.common_us as f64 / (held.to_us - held.from_us).max(1) as f64;
        if common < TOGETHER {
            doubts.push(Doubt::HoldsApart { common });
        }
    }
    let versions: BTreeSet<&String> = parts
        .iter()
        .map(|given| &given.part.throng_version)
        .collect();
    if versions.len() > 1 {
        let versions = versions.into_iter().cloned().collect();
        doubts.push(Doubt::Versions { versions });
    }
    doubts
}

/// What surrounds it: the failures are those of the parts, and what could not be merged.
fn about(fleet: &Fleet, parts: &[&Given], time: &Common, command_line: Vec<String>) -> About {
    let missing = fleet.missing();
    let failure = |during: String, cause: String| Failure {
        during,
        cause,
        stderr_tail: Vec::new(),
    };
    let flawed = parts.iter().filter(|given| !given.part.is_flawless);
    let of_parts = flawed.map(|given| {
        let part = &given.part;
        let counter = |name: &str| part.counters.get(name).copied().unwrap_or(0);
        let diagnosis = part.diagnosis.as_deref().unwrap_or("see its summary");
        let cause = format!(
            "ended {}: {} of {} connections established at once, {} failed, {} lost; {diagnosis}",
            part.ended,
            count(counter("established_at_once")),
            count(counter("connections_wanted")),
            count(counter("failed")),
            count(counter("lost")),
        );
        failure(format!("part {} ({})", part.part.number, given.file), cause)
    });
    let left_out = fleet
        .left_out
        .iter()
        .map(|(file, reason)| failure(file.clone(), format!("{reason}: it is left out")));
    let of_missing = missing
        .iter()
        .map(|number| failure(format!("part {number}"), "is missing".to_owned()));
    let all = of_parts.chain(left_out).chain(of_missing);
    let ended = parts.iter().map(|given| {
        let clock = &given.part.clock;
        time.at(
            &given.part,
            clock.ended_unix_us.saturating_sub(clock.began_unix_us),
        )
    });
    let environment = parts
        .first()
        .map(|first| first.part.host.environment.clone());
    let environment = environment.unwrap_or_else(kernel_tuning::host::environment);
    About {
        format_version: FORMAT_VERSION,
        command: Report::COMMAND.to_owned(),
        throng_version: env!("CARGO_PKG_VERSION").to_owned(),
        partial: !missing.is_empty() || parts.iter().any(|given| given.part.ended != "complete"),
        started_unix_s: (time.start_unix_us / 1_000_000).max(0) as u64,
        duration_ms: (ended.max().unwrap_or(0) / 1_000).max(0) as u64,
        command_line,
        nofile_hard: environment.nofile.as_ref().map_or(0, |nofile| nofile.hard),
        environment,
        placement: Placement {
            server: Vec::new(),
            client: Vec::new(),
        },
        machine: None,
        failures: all.collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::merge::clocks::Ahead;
    use crate::merge::parts::tests::given;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn fleet(parts: Vec<Given>, of: u64) -> Fleet {
        let numbered = |given: Given| (given.part.part.number, given);
        Fleet {
            parts: parts.into_iter().map(numbered).collect(),
            of,
            left_out: Vec::new(),
        }
    }

    fn merged(parts: Vec<Given>, of: u64, clocks: &Clocks) -> Report {
        report(&fleet(parts, of), clocks, Vec::new()).unwrap()
    }

    proptest! {
        #[test]
        fn the_whole_is_the_sum_of_the_parts(counts in proptest::collection::vec((0u64..1 << 40, 0u64..1 << 40), 1..20)) {
            let of = counts.len() as u64;
            let parts = (1..).zip(&counts).map(|(number, (established, lost))| {
                given(number, of, |part| {
                    part["counters"] = json!({"established": established, "lost": lost});
                    part["causes"] = json!({"lost": {"ECONNRESET": lost}, "failed": {}});
                })
            });
            let report = merged(parts.collect(), of, &Clocks::new());
            let [established, lost] = [0, 1].map(|at| counts.iter().map(|pair| [pair.0, pair.1][at]).sum::<u64>());
            prop_assert_eq!(report.counter("established"), established);
            prop_assert_eq!(report.counter("lost"), lost);
            prop_assert_eq!(report.causes["lost"]["ECONNRESET"], lost);
            prop_assert_eq!(report.parts.len() as u64, of);
        }
    }

    #[test]
    fn times_are_from_the_common_start_and_clocks_are_set_right() {
        let same = |_: &mut Value| {};
        let parts = || vec![given(1, 2, same), given(2, 2, same)];
        let plain = merged(parts(), 2, &Clocks::new());
        assert_eq!(plain.clocks, Apart::Unknown { hosts: 2 });
        assert!(plain.warnings.contains(&Doubt::ClocksUnknown { hosts: 2 }));
        let first = |report: &Report| -> Vec<i64> {
            report
                .parts
                .iter()
                .filter_map(|part| part.first_connect_us)
                .collect()
        };
        assert_eq!(first(&plain), [150, 250]);
        let ramp = plain.ramp.unwrap();
        assert_eq!((ramp.from_us, ramp.to_us), (150, 2_000_200));
        let hold = plain.hold.unwrap();
        assert_eq!(
            (hold.from_us, hold.to_us, hold.common_us),
            (2_000_100, 12_000_200, 9_999_900)
        );
        let rate = hold.messages_per_second.unwrap();
        assert!((rate - 1000.0 / 10.0001).abs() < 1e-9, "{rate}");

        let ahead = |offset_us| Ahead {
            offset_us,
            uncertainty_us: 30,
        };
        let clocks = Clocks::from([(1, ahead(-50)), (2, ahead(200))]);
        let right = merged(parts(), 2, &clocks);
        assert_eq!(first(&right), [200, 50]);
        let measured = Apart::Measured {
            hosts: 2,
            apart_us: 250,
            uncertainty_us: 30,
        };
        assert_eq!((right.clocks, right.warnings.len()), (measured, 0));

        // One kernel has one clock, whatever was measured of it.
        let here = |part: &mut Value| part["host"]["boot_id"] = "here".into();
        let one = merged(vec![given(1, 2, here), given(2, 2, here)], 2, &clocks);
        assert_eq!((one.clocks, first(&one)), (Apart::OneClock, vec![150, 250]));
    }

    #[test]
    fn what_is_doubtful_is_said() {
        let late = |part: &mut Value| {
            part["course"]["hold_from_us"] = 11_000_000.into();
            part["course"]["hold_to_us"] = 21_000_000.into();
            part["clock"]["start_at_unix_us"] = Value::Null;
            part["clock"]["ended_unix_us"] = 1_080_000_000.into();
            part["bottleneck"] = "the client was the bottleneck".into();
            part["throng_version"] = "0.0.9".into();
        };
        let report = merged(
            vec![given(1, 2, |_| {}), given(2, 2, late)],
            2,
            &Clocks::new(),
        );
        let said: Vec<String> = report.warnings.iter().map(ToString::to_string).collect();
        for words in [
            "no common start",
            "2 hosts were not compared",
            "was set by 60.00 s",
            "the bottleneck",
            "5.3 %",
            "0.0.9, 0.1.0",
        ] {
            assert!(
                said.iter().any(|one| one.contains(words)),
                "{words}: {said:?}"
            );
        }
    }

    #[test]
    fn a_part_that_lost_something_is_a_failure_of_the_whole() {
        let flawed = |part: &mut Value| {
            part["is_flawless"] = false.into();
            part["counters"]["lost"] = 3.into();
        };
        let report = merged(
            vec![given(1, 3, flawed), given(2, 3, |_| {})],
            3,
            &Clocks::new(),
        );
        let failures: Vec<&str> = report
            .about
            .failures
            .iter()
            .map(|one| one.during.as_str())
            .collect();
        assert_eq!(failures, ["part 1 (part-1.json)", "part 3"]);
        assert!(report.about.failures[0].cause.contains("3 lost"));
        assert!(report.about.partial && report.missing == [3]);
    }
}
