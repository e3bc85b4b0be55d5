//! Whether the rest of the network suffered: each stage against the baseline, by a stated test (pure).
//!
//! Loss: Fisher's exact test, one-sided, at 1 %. Latency: the 99 % bootstrap interval of the difference of the p50, and
//! of the p99; worse is what lies wholly above zero **and** is a difference of at least 0.05 ms. A stage in which the
//! prober was starved gets no verdict on the network, for nothing is known of it. Each test has its own level: of the
//! dozens of a run, one in a hundred will err.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::ledger::Tally;
use super::statistics::{Bootstrap, fisher_one_sided};

/// How likely a loss test may cry wolf.
const LOSS_LEVEL: f64 = 0.01;
/// How sure an interval of a difference is.
const CONFIDENCE: f64 = 0.99;
/// A difference that matters to somebody, in nanoseconds.
const LEAST_DIFFERENCE_NS: f64 = 50_000.0;
/// Fewer answers in a stage, or in the baseline, are not compared.
const LEAST_ANSWERS: u64 = 20;
/// More slots than this not sent: starved.
const MOST_NOT_SENT: f64 = 0.2;

/// The tests, as part of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Test {
    /// Level of the one-sided exact test of loss.
    pub loss_level: f64,
    /// Confidence of the bootstrap interval of a latency's difference.
    pub latency_confidence: f64,
    /// Smaller differences are not called worse.
    pub least_difference_ns: u64,
    /// Fewer answers are not compared.
    pub least_answers: u64,
    /// A larger share of slots not sent means that the prober was starved; so does a lateness (p99) above the interval.
    pub most_not_sent: f64,
}

impl Test {
    /// The one there is.
    pub const STATED: Test = Test {
        loss_level: LOSS_LEVEL,
        latency_confidence: CONFIDENCE,
        least_difference_ns: LEAST_DIFFERENCE_NS as u64,
        least_answers: LEAST_ANSWERS,
        most_not_sent: MOST_NOT_SENT,
    };
}

/// What a stage's figures say of the network.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The prober did not run as it should have: nothing is said of the network.
    ProberStarved,
    /// So it was in the baseline.
    BaselineStarved,
    /// Nothing, or too little, was answered in the baseline.
    NoBaseline,
    /// The stage was too short, and no loss stands out.
    TooFew,
    /// Nothing is worse.
    NoWorse(Comparison),
    /// Loss or latency is.
    Worse(Comparison),
}

/// A stage beside the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// How likely so much loss is by chance.
    pub loss_p: f64,
    /// It is less than the level.
    pub is_loss_worse: bool,
    /// Of the median; none where too few were answered.
    pub p50: Option<Shift>,
    /// Of the 99th percentile; none where too few were answered.
    pub p99: Option<Shift>,
}

/// How far a percentile moved, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shift {
    /// In the baseline.
    pub before_ns: u64,
    /// In the stage.
    pub after_ns: u64,
    /// The interval of the difference begins here,
    pub low_ns: f64,
    /// and ends here.
    pub high_ns: f64,
    /// It lies above zero, and the difference matters.
    pub is_worse: bool,
}

/// What `tally` says beside `base`, the baseline's.
pub(super) fn judge(tally: &Tally, base: &Tally, interval: Duration) -> Verdict {
    if is_starved(tally, interval) {
        return Verdict::ProberStarved;
    }
    if is_starved(base, interval) {
        return Verdict::BaselineStarved;
    }
    if base.rtt_ns.len() < LEAST_ANSWERS {
        return Verdict::NoBaseline;
    }
    let loss_p = fisher_one_sided(tally.lost, tally.sent, base.lost, base.sent);
    let is_loss_worse = loss_p < LOSS_LEVEL;
    if tally.rtt_ns.len() < LEAST_ANSWERS && !is_loss_worse {
        return Verdict::TooFew;
    }
    let (p50, p99) = (shift(tally, base, 0.5), shift(tally, base, 0.99));
    let is_worse = is_loss_worse || [p50, p99].iter().flatten().any(|shift| shift.is_worse);
    let comparison = Comparison {
        loss_p,
        is_loss_worse,
        p50,
        p99,
    };
    match is_worse {
        true => Verdict::Worse(comparison),
        false => Verdict::NoWorse(comparison),
    }
}

/// The prober ran too late, or not at all, too often.
fn is_starved(tally: &Tally, interval: Duration) -> bool {
    let slots = tally.sent + tally.not_sent;
    u128::from(tally.lateness_ns.value_at_quantile(0.99)) > interval.as_nanos()
        || tally.not_sent as f64 > MOST_NOT_SENT * slots as f64
}

fn shift(tally: &Tally, base: &Tally, quantile: f64) -> Option<Shift> {
    if tally.rtt_ns.len() < LEAST_ANSWERS {
        return None;
    }
    let (low_ns, high_ns) = Bootstrap::of(&tally.rtt_ns, quantile)?
        .difference(&Bootstrap::of(&base.rtt_ns, quantile)?, CONFIDENCE);
    let [before_ns, after_ns] = [base, tally].map(|t| t.rtt_ns.value_at_quantile(quantile));
    let shift = Shift {
        before_ns,
        after_ns,
        low_ns,
        high_ns,
        is_worse: false,
    };
    Some(Shift {
        is_worse: low_ns > 0.0 && shift.matters(),
        ..shift
    })
}

impl Shift {
    /// The percentile has grown by more than nothing, for sure or by chance.
    fn matters(&self) -> bool {
        self.after_ns as f64 - self.before_ns as f64 >= LEAST_DIFFERENCE_NS
    }
}

/// The verdict on a stage in words, without whose it is.
pub(super) struct Words<'a> {
    pub(super) verdict: &'a Verdict,
    pub(super) tally: &'a Tally,
    pub(super) base: &'a Tally,
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tally, base) = (self.tally, self.base);
        match self.verdict {
            Verdict::ProberStarved => write!(
                f,
                "PROBER STARVED ({}): nothing is said of the network",
                starvation(tally)
            ),
            Verdict::BaselineStarved => write!(
                f,
                "nothing to compare with, the prober was starved in the baseline ({})",
                starvation(base)
            ),
            Verdict::NoBaseline => write!(
                f,
                "nothing to compare with, {} of {} were answered in the baseline",
                base.rtt_ns.len(),
                base.sent
            ),
            Verdict::TooFew => write!(
                f,
                "too few to compare, {} of {} answered{}",
                tally.rtt_ns.len(),
                tally.sent,
                match tally.rtt_ns.len() {
                    0 => String::new(),
                    _ => format!(", at most {} ms", ms(tally.rtt_ns.max())),
                }
            ),
            Verdict::NoWorse(comparison) | Verdict::Worse(comparison) => {
                compared(f, comparison, tally)
            }
        }?;
        if tally.unbound_without_port > 0 {
            write!(
                f,
                "; {} of {} connects without a bind found NO PORT, as other programs of this host do now: held connections \
                 have bound every port of net.ipv4.ip_local_port_range",
                tally.unbound_without_port, tally.unbound
            )?;
        }
        Ok(())
    }
}

fn compared(f: &mut fmt::Formatter<'_>, comparison: &Comparison, tally: &Tally) -> fmt::Result {
    // The p50 is told where it alone is worse.
    let told = match (comparison.p50, comparison.p99) {
        (Some(p50), Some(p99)) if p50.is_worse && !p99.is_worse => Some(("p50", p50)),
        (_, p99) => p99.map(|p99| ("p99", p99)),
    };
    if let Some((name, shift)) = told {
        let (before, after) = (ms(shift.before_ns), ms(shift.after_ns));
        write!(f, "{name} {before} → {after} ms")?;
        let more = ms(shift.after_ns.saturating_sub(shift.before_ns));
        let [low, high] = [shift.low_ns, shift.high_ns].map(|ns| ms(ns.max(0.0) as u64));
        if shift.is_worse {
            write!(f, " (WORSE: +{more} ms, within +{low} and +{high})")?;
        } else if shift.matters() {
            write!(
                f,
                " (may be chance: of so few probes, within +{low} and +{high})"
            )?;
        }
        write!(f, ", ")?;
    }
    match (tally.lost, comparison.is_loss_worse) {
        (0, _) => write!(f, "no loss"),
        (lost, false) => write!(f, "{lost} of {} lost, as may be chance", tally.sent),
        (lost, true) => write!(
            f,
            "{lost} of {} lost ({:.0} %, WORSE)",
            tally.sent,
            100.0 * lost as f64 / tally.sent as f64
        ),
    }
}

fn starvation(tally: &Tally) -> String {
    let slots = tally.sent + tally.not_sent;
    format!(
        "late by p99 {} ms, {:.0} % of its slots not sent",
        ms(tally.lateness_ns.value_at_quantile(0.99)),
        100.0 * tally.not_sent as f64 / (slots.max(1)) as f64
    )
}

/// Nanoseconds as milliseconds, with as many digits as mean something.
pub(super) fn ms(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    match ms {
        ms if ms < 0.1 => format!("{ms:.3}"),
        ms if ms < 10.0 => format!("{ms:.2}"),
        _ => format!("{ms:.1}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::ledger::{Ledger, Sent};
    use super::super::timeline::{Schedule, Stage};
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_millis(20);
    const EPOCH: Duration = Duration::from_secs(1_800_000_000);

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Probes at the interval: `rtt` gives the n-th its round trip, or none.
    fn tally(count: u64, rtt: impl Fn(u64) -> Option<Duration>) -> Tally {
        let mut ledger = Ledger::new().unwrap();
        for seq in 0..count {
            let at = INTERVAL * seq as u32;
            let sent = Sent {
                since_start: at,
                since_epoch: EPOCH + at,
            };
            ledger.sent(seq, Stage::Hold, at, sent);
            match rtt(seq) {
                Some(rtt) => ledger.answered(seq, Some(EPOCH + at + rtt), at + rtt),
                None => ledger.failed(seq, "lost"),
            }
        }
        ledger.tally(Stage::Hold).clone()
    }

    fn even(n: u64) -> Option<Duration> {
        Some(us(100 + n * 7 % 13))
    }

    fn say(tally: &Tally, base: &Tally) -> (Verdict, String) {
        let verdict = judge(tally, base, INTERVAL);
        let words = Words {
            verdict: &verdict,
            tally,
            base,
        };
        (verdict.clone(), words.to_string())
    }

    #[test]
    fn the_same_again_is_no_worse() {
        let (verdict, words) = say(&tally(1500, |n| even(n + 5)), &tally(150, even));
        assert!(matches!(verdict, Verdict::NoWorse(_)), "{verdict:?}");
        assert!(words.starts_with("p99 0.11 → 0.11 ms, no loss"), "{words}");
    }

    #[test]
    fn a_difference_that_is_sure_but_tiny_is_not_called_worse() {
        let slower = tally(1500, |n| Some(even(n)? + us(20)));
        let (verdict, _) = say(&slower, &tally(150, even));
        let Verdict::NoWorse(comparison) = verdict else {
            panic!("{verdict:?}")
        };
        assert!(comparison.p99.unwrap().low_ns > 0.0);
    }

    #[test]
    fn a_slow_close_is_worse_and_says_by_how_much() {
        let slow = tally(60, |n| {
            Some(even(n)? + us(if n % 5 == 0 { 1700 } else { 0 }))
        });
        let (verdict, words) = say(&slow, &tally(150, even));
        assert!(matches!(verdict, Verdict::Worse(_)), "{verdict:?}");
        assert!(
            words.contains("p99 0.11 → 1.8") && words.contains("WORSE: +1.70 ms"),
            "{words}"
        );
    }

    #[test]
    fn one_outlier_is_no_verdict() {
        let spike = tally(60, |n| Some(even(n)? + us(if n == 30 { 9000 } else { 0 })));
        let (verdict, _) = say(&spike, &tally(150, even));
        assert!(matches!(verdict, Verdict::NoWorse(_)), "{verdict:?}");
    }

    #[test]
    fn loss_is_told_from_chance() {
        let base = tally(150, even);
        let (verdict, words) = say(&tally(500, |n| even(n).filter(|_| n % 10 > 2)), &base);
        assert!(matches!(verdict, Verdict::Worse(_)), "{verdict:?}");
        assert!(words.contains("150 of 500 lost (30 %, WORSE)"), "{words}");
        let (verdict, words) = say(&tally(500, |n| even(n).filter(|_| n != 7)), &base);
        assert!(matches!(verdict, Verdict::NoWorse(_)), "{verdict:?}");
        assert!(words.contains("1 of 500 lost, as may be chance"), "{words}");
        // Nothing at all comes back, so there is no latency; the loss is a verdict all the same.
        let (verdict, words) = say(&tally(30, |_| None), &base);
        assert!(matches!(verdict, Verdict::Worse(_)), "{verdict:?}");
        assert_eq!(words, "30 of 30 lost (100 %, WORSE)");
    }

    /// What was measured once: in a ramp, 1,000 pings at 5 ms took 22 s, while each round trip stayed at 0.02 ms.
    #[test]
    fn a_starved_prober_is_starved_and_no_slow_network() {
        let interval = Duration::from_millis(5);
        let mut schedule = Schedule::new(Duration::ZERO, interval);
        let mut ledger = Ledger::new().unwrap();
        for seq in 0..1000 {
            let now = us(22_000) * seq as u32;
            let Some(due) = schedule.take(now) else {
                continue;
            };
            for _ in &due.missed {
                ledger.missed(Stage::Ramp);
            }
            let sent = Sent {
                since_start: now,
                since_epoch: EPOCH + now,
            };
            ledger.sent(seq, Stage::Ramp, due.intended, sent);
            ledger.answered(seq, Some(EPOCH + now + us(20)), now + us(22_000));
        }
        let ramp = ledger.tally(Stage::Ramp);
        let base = tally(150, |_| Some(us(20)));
        let verdict = judge(ramp, &base, interval);
        assert_eq!(verdict, Verdict::ProberStarved);
        assert_eq!((ramp.lost, ramp.rtt_ns.len()), (0, ramp.sent));
        assert!(ramp.rtt_ns.max() < 21_000);
        let words = Words {
            verdict: &verdict,
            tally: ramp,
            base: &base,
        }
        .to_string();
        assert!(
            words.contains("STARVED") && words.contains("nothing is said"),
            "{words}"
        );
        assert_eq!(judge(&base, ramp, interval), Verdict::BaselineStarved);
    }

    #[test]
    fn without_enough_there_is_no_verdict() {
        let base = tally(150, even);
        assert_eq!(say(&tally(5, even), &base).0, Verdict::TooFew);
        assert_eq!(say(&tally(0, even), &base).0, Verdict::TooFew);
        assert_eq!(
            say(&tally(500, even), &tally(150, |_| None)).0,
            Verdict::NoBaseline
        );
    }

    proptest! {
        /// Two samples of one distribution are seldom told apart, and a shift well above both is always seen.
        #[test]
        fn a_shift_is_seen_and_its_absence_too(seed in 1_u64..1_000_000, shift_us in 2_000_u64..50_000) {
            let noise = move |n: u64| us(100 + (n ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 900);
            let base = tally(150, |n| Some(noise(n)));
            let shifted = tally(200, |n| Some(noise(n + 999) + us(shift_us)));
            let verdict = judge(&shifted, &base, INTERVAL);
            prop_assert!(matches!(verdict, Verdict::Worse(_)), "{:?}", verdict);
            let back = judge(&base, &shifted, INTERVAL);
            prop_assert!(matches!(back, Verdict::NoWorse(_)), "{:?}", back);
        }
    }
}
