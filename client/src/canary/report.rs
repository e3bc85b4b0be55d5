//! What the canaries found: as data, and as text.
//!
//! Pure but for the names of the paths. Invariant: the text shows nothing that the data lacks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;

use super::config::Kind;
use super::ledger::Ledger;
use super::path::Path;
use super::timeline::{Stage, Timeline};
use super::verdict::{Test, Verdict, Words, judge, ms};

/// The canaries' part of a summary.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The stages of the run.
    pub stages: Vec<StageSpan>,
    /// Each kind of probe to each target.
    pub probes: Vec<ProbeReport>,
    /// What could not be measured.
    pub not_measured: Vec<NotMeasured>,
    /// TCP connections the canaries opened: the server has counted them too, or its responder.
    pub connects: u64,
    /// By what a verdict is reached.
    pub test: Test,
    /// The verdicts in words: one for each probe in each stage but the baseline.
    pub verdicts: Vec<Said>,
}

/// A verdict in words: "at 100,000 held: ping 127.0.0.1: p99 0.11 → 0.13 ms, no loss".
#[derive(Clone, Debug, Serialize)]
pub struct Said {
    /// In which stage, with how many connections.
    pub when: String,
    /// Of which probe.
    pub probe: String,
    /// The verdict.
    pub words: String,
}

/// A stage.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StageSpan {
    /// Which.
    pub stage: Stage,
    /// How long it lasted.
    pub seconds: f64,
}

/// Probes of one kind to one target.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// Of what kind.
    pub kind: Kind,
    /// To whom; port 0 where there is none.
    pub target: SocketAddr,
    /// What is in between.
    pub path: Path,
    /// A connect that has to ask before it is answered: its time has the prober's own wake-up in it.
    pub includes_own_wakeup: bool,
    /// Answers to what was answered or given up before.
    pub duplicates: u64,
    /// Answers to nobody here.
    pub strangers: u64,
    /// What the kernel said instead of an answer.
    pub errors: BTreeMap<String, u64>,
    /// By stage.
    pub stages: Vec<StageFigures>,
}

/// What became of the probes that were due in a stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageFigures {
    /// Which.
    pub stage: Stage,
    /// Probes sent.
    pub sent: u64,
    /// Answered within a second.
    pub answered: u64,
    /// Not so.
    pub lost: u64,
    /// Slots in which the prober did not run, or had no port or file to probe with: they say nothing of the network.
    pub not_sent: u64,
    /// Answers that were timed by the prober's wake-up and not by the kernel.
    pub unstamped: u64,
    /// Connects tried as most programs do, without a bind.
    pub unbound: u64,
    /// Those of them that found no port: the connections held have bound all that connect(2) may choose.
    pub unbound_without_port: u64,
    /// From the send to the arrival of the answer.
    pub rtt_ns: Quantiles,
    /// From the intended to the real send.
    pub lateness_ns: Quantiles,
    /// Beside the baseline; none for the baseline itself.
    #[serde(flatten)]
    pub verdict: Option<Verdict>,
}

/// In nanoseconds, to three digits; all 0 where nothing was measured.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Quantiles {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// A probe that could not be made.
#[derive(Clone, Debug, Serialize)]
pub struct NotMeasured {
    /// Of what kind.
    pub kind: Kind,
    /// To whom.
    pub target: SocketAddr,
    /// Why, and what would allow it.
    pub why: String,
}

/// The books of one probe, and whose they are.
pub(super) struct Account {
    pub(super) kind: Kind,
    pub(super) target: SocketAddr,
    pub(super) includes_own_wakeup: bool,
    pub(super) ledger: Ledger,
}

impl Report {
    pub(super) fn new(
        timeline: &Timeline,
        accounts: &[Account],
        not_measured: Vec<NotMeasured>,
        interval: Duration,
        held: u64,
        levels: &[u64],
    ) -> Report {
        let stages: Vec<StageSpan> = Stage::all()
            .filter_map(|stage| {
                let seconds = timeline.lasted(stage)?.as_secs_f64();
                Some(StageSpan { stage, seconds })
            })
            .collect();
        let probes: Vec<ProbeReport> = accounts
            .iter()
            .map(|account| ProbeReport::new(account, &stages, interval))
            .collect();
        let verdicts = stages
            .iter()
            .filter(|span| span.stage != Stage::Baseline)
            .flat_map(|span| say(span.stage, (held, levels), accounts, &probes))
            .collect();
        let of_connects = |probe: &&ProbeReport| probe.kind == Kind::Connect;
        Report {
            connects: probes
                .iter()
                .filter(of_connects)
                .flat_map(|probe| &probe.stages)
                .map(|figures| figures.sent)
                .sum(),
            stages,
            probes,
            not_measured,
            test: Test::STATED,
            verdicts,
        }
    }

    /// As lines for a person: a table, what could not be measured, and the verdicts.
    pub fn text(&self) -> String {
        // Writing to a String cannot fail.
        let mut text = format!(
            "  {:<28} {:<9} {:>6} {:>6} {:>6} {:>8}  {:>23}  {:>15}\n",
            "probe",
            "stage",
            "sent",
            "lost",
            "unsent",
            "answered",
            "rtt ms p50/p99/max",
            "late ms p99/max"
        );
        for probe in &self.probes {
            for figures in &probe.stages {
                let (rtt, late) = (&figures.rtt_ns, &figures.lateness_ns);
                let rtt = match figures.answered {
                    0 => "-".into(),
                    _ => format!("{} / {} / {}", ms(rtt.p50), ms(rtt.p99), ms(rtt.max)),
                };
                let late = match figures.sent {
                    0 => "-".into(),
                    _ => format!("{} / {}", ms(late.p99), ms(late.max)),
                };
                let _ = writeln!(
                    text,
                    "  {:<28} {:<9} {:>6} {:>6} {:>6} {:>8}  {rtt:>23}  {late:>15}",
                    probe.name(),
                    figures.stage.name(),
                    figures.sent,
                    figures.lost,
                    figures.not_sent,
                    figures.answered,
                );
            }
        }
        let paths: BTreeMap<_, _> = self
            .probes
            .iter()
            .map(|probe| (probe.target.ip(), &probe.path))
            .collect();
        for (host, path) in paths {
            let _ = writeln!(text, "  path to {host}: {path}");
        }
        if self.probes.iter().any(|probe| probe.kind != Kind::Ping) {
            text += "  connect and udp are answered by a process, whose wait for a CPU is in their times; ping by the kernel\n";
        }
        for probe in &self.probes {
            let name = probe.name();
            let unstamped: u64 = probe.stages.iter().map(|s| s.unstamped).sum();
            for (count, what) in [
                (probe.duplicates, "answers came twice or after a second"),
                (probe.strangers, "answers were to nobody here"),
                (
                    unstamped,
                    "answers had no stamp of the kernel's and are timed by the prober's wake-up",
                ),
            ] {
                if count > 0 {
                    let _ = writeln!(text, "  {name}: {} {what}", HumanCount(count));
                }
            }
            for (error, count) in &probe.errors {
                let _ = writeln!(text, "  {name}: {error} {} times", HumanCount(*count));
            }
            if probe.includes_own_wakeup {
                let _ = writeln!(
                    text,
                    "  {name}: this server speaks only when spoken to, so the time has the prober's own wake-up in it; \
                     `throng-server --canary-port` and --canary-port avoid that"
                );
            }
        }
        for NotMeasured { kind, target, why } in &self.not_measured {
            let name = kind.of(*target);
            let _ = writeln!(text, "  {name}: could not measure: {why}");
        }
        if self.connects > 0 {
            let _ = writeln!(
                text,
                "  {} of the connections that the other side has counted were canaries",
                HumanCount(self.connects)
            );
        }
        let mut last = "";
        for Said { when, probe, words } in &self.verdicts {
            if when != last {
                let _ = writeln!(text, "  {when}:");
                last = when;
            }
            let _ = writeln!(text, "    {probe:<26} {words}");
        }
        text
    }
}

impl ProbeReport {
    fn new(account: &Account, stages: &[StageSpan], interval: Duration) -> ProbeReport {
        let ledger = &account.ledger;
        let base = ledger.tally(Stage::Baseline);
        let figures = |stage: Stage| {
            let tally = ledger.tally(stage);
            StageFigures {
                stage,
                sent: tally.sent,
                answered: tally.rtt_ns.len(),
                lost: tally.lost,
                not_sent: tally.not_sent,
                unstamped: tally.unstamped,
                unbound: tally.unbound,
                unbound_without_port: tally.unbound_without_port,
                rtt_ns: Quantiles::of(&tally.rtt_ns),
                lateness_ns: Quantiles::of(&tally.lateness_ns),
                verdict: (stage != Stage::Baseline).then(|| judge(tally, base, interval)),
            }
        };
        ProbeReport {
            kind: account.kind,
            target: account.target,
            path: Path::to(account.target.ip()).0,
            includes_own_wakeup: account.includes_own_wakeup,
            duplicates: ledger.duplicates,
            strangers: ledger.strangers,
            errors: ledger.errors.clone(),
            stages: stages.iter().map(|span| figures(span.stage)).collect(),
        }
    }

    fn name(&self) -> String {
        self.kind.of(self.target)
    }
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Quantiles {
        Quantiles {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        }
    }
}

/// The verdicts on a stage, of a run that held so many connections, and so many at the end of each step.
fn say(
    stage: Stage,
    (held, levels): (u64, &[u64]),
    accounts: &[Account],
    probes: &[ProbeReport],
) -> Vec<Said> {
    let held = HumanCount(held);
    let when = match stage {
        Stage::Baseline => "before".into(),
        Stage::Step(step) => match levels.get(usize::from(step) - 1) {
            Some(level) => format!("at {} held, a step", HumanCount(*level)),
            None => format!("at {}", stage.name()),
        },
        Stage::Idle => format!("at {held} held, without heartbeats"),
        Stage::Ramp => format!("in the ramp to {held}"),
        Stage::Hold => format!("at {held} held"),
        Stage::Active => format!("at {held} held, with messages"),
        Stage::Storm => format!("in the storm on {held}"),
        Stage::Close => format!("during the mass close of {held}"),
        Stage::Recovery => "in recovery".into(),
    };
    let of_probe = |(account, probe): (&Account, &ProbeReport)| {
        let figures = probe.stages.iter().find(|f| f.stage == stage)?;
        let words = Words {
            verdict: figures.verdict.as_ref()?,
            tally: account.ledger.tally(stage),
            base: account.ledger.tally(Stage::Baseline),
        };
        Some(Said {
            when: when.clone(),
            probe: probe.name(),
            words: words.to_string(),
        })
    };
    accounts.iter().zip(probes).filter_map(of_probe).collect()
}
