//! What stopped a run short of what was asked, in words.
//!
//! Pure: judges what was measured beside what the host said meanwhile. The table of limits is `kernel_tuning::limit`'s.

use std::collections::BTreeMap;

use kernel_tuning::limit::{self, Cause, Context, Evidence, Step};
use nix::errno::Errno;

use crate::run::GRACE;
use crate::source::{Plan, Source};
use crate::summary::{Ended, Report, Summary};

/// What stopped a run short of what was asked, in words.
pub(crate) fn diagnose(
    summary: &Summary,
    report: &Report,
    plan: &Plan,
    evidence: &Evidence,
) -> Option<String> {
    if summary.is_flawless() || summary.ended == Ended::Interrupted {
        return None;
    }
    let config = &summary.config;
    let source = report.unbound.and_then(|address| config.source_of(address));
    let context = |step| Context {
        established: summary.established,
        address: config.targets.first().copied(),
        sources: plan.addresses(),
        source: report.unbound,
        source_networks: source.map(Source::networks).unwrap_or_default(),
        source_interface: source.and_then(Source::interface).map(str::to_owned),
        destinations: config.targets.len() as u64,
        source_ports: Some(plan.ports()),
        ..Context::new(step)
    };
    let say = |cause, step| Some(limit::diagnose(cause, &context(step), evidence).to_string());
    let most = |counts: &BTreeMap<String, u64>| {
        counts
            .iter()
            .max_by_key(|(_, count)| **count)
            .map(|(name, count)| (name.clone(), *count))
    };
    if summary.ended == Ended::LowMemory {
        return say(Cause::Errno(Errno::ENOMEM as i32), Step::Socket);
    }
    let cycles = summary.churn.as_ref().map_or(0, |churn| churn.cycles);
    let is_echoed = summary.messages.completed + cycles > 0;
    let failed = report.failed.iter().chain(&report.churn_failed);
    if let Some(((step, errno), _)) = failed.max_by_key(|(_, count)| **count) {
        return say(Cause::Errno(*errno), *step);
    }
    if summary.ended == Ended::Stalled {
        return say(Cause::Stalled, Step::Connect);
    }
    if let Some((cause, count)) = most(&summary.lost_by_cause) {
        return match cause.as_str() {
            "closed before the first byte" if summary.ended != Ended::ServerGone => {
                // Those that are left, not the most there were: some were not yet closed when others came. Each
                // connection ever established has its latency.
                let ever = summary.connect_latency_us.count;
                let context = Context {
                    established: ever.saturating_sub(summary.lost_while_held),
                    ..context(Step::Connect)
                };
                Some(limit::diagnose(Cause::ClosedAfterAccept, &context, evidence).to_string())
            }
            "ECONNRESET" => say(Cause::Errno(Errno::ECONNRESET as i32), Step::Hold),
            cause if summary.ended == Ended::ServerGone || !cause.contains("bytes") => {
                Some(format!(
                    "{count} connections were lost ({cause}): the server's own output says why"
                ))
            }
            cause => Some(format!(
                "{count} connections were given up ({cause}): the server does not speak this protocol (see --protocol), or \
                 it, or something on the way, spoils what it sends{}",
                match is_echoed {
                    true => String::new(),
                    false => format!("; what came was \"{}\"", report.stray.escape_ascii()),
                }
            )),
        };
    }
    if summary.greetings_missing > 0 && summary.greetings_verified > 0 {
        let context = Context {
            established: summary.greetings_verified,
            ..context(Step::Hold)
        };
        return Some(limit::diagnose(Cause::NeverServed, &context, evidence).to_string());
    }
    if summary.greetings_missing > 0 {
        return Some(format!(
            "{} connections were accepted and never greeted: the server does not speak this protocol (try --protocol \
             echo), or is too slow (hold longer)",
            summary.greetings_missing
        ));
    }
    if summary.heartbeats.missing > 0 {
        return Some(format!(
            "{} connections had no heartbeat for two intervals: is the server's --heartbeat {}, and does it still run?",
            summary.heartbeats.missing,
            humantime::format_duration(config.heartbeat)
        ));
    }
    let unfinished = summary.churn.as_ref().map_or(0, |churn| churn.unfinished);
    if summary.messages.unanswered + unfinished > 0 && !is_echoed {
        return Some(
            "the server took messages and answered none: it is no echo server, or stands still; see that it is the one \
             you mean (see --protocol)"
                .into(),
        );
    }
    [
        (summary.messages.unanswered, "messages were not answered"),
        (unfinished, "churn cycles were not finished"),
    ]
    .into_iter()
    .find(|(count, _)| *count > 0)
    .map(|(count, what)| {
        format!(
            "{count} {what} within {} after the end: the server is too slow, or stands still",
            humantime::format_duration(GRACE)
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::counters::Counts;
    use crate::summary::Course;
    use std::time::Duration;

    #[test]
    fn a_source_that_fails_during_the_run_is_named_with_its_network() {
        let args = "throng-client 127.0.0.1:7000 --source 192.0.2.0/24";
        let (config, plan) = Config::parse(args.split_whitespace().map(Into::into)).unwrap();
        let mut report = Report::default();
        let unbound = std::net::IpAddr::from([192, 0, 2, 77]);
        let failure = crate::dial::check_source(unbound).unwrap_err();
        report.unbound = failure.source;
        report.failed.insert((failure.step, failure.errno), 3);
        report
            .failed
            .insert((Step::Connect, Errno::EADDRNOTAVAIL as i32), 2);
        let course = Course {
            ended: Ended::Complete,
            counts: Counts::default(),
            hold_from: Duration::ZERO,
            hold: Duration::ZERO,
            at_hold_end: Counts::default(),
            storm: None,
            peak_rss_bytes: 0,
            steps: Vec::new(),
        };
        let summary = Summary::new(config, &report, &[], &course);
        assert_eq!(summary.failed["EADDRNOTAVAIL"], 5);
        let said = diagnose(&summary, &report, &plan, &Evidence::default()).unwrap();
        assert!(said.contains("192.0.2.77 is not configured here"), "{said}");
        assert!(
            said.ends_with("ip route add local 192.0.2.0/24 dev lo"),
            "{said}"
        );
    }
}
