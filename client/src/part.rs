//! One part of a fleet of clients: what share of the connections, of the sources and of the rates is its own.
//!
//! Pure. Invariant: of whatever is divided, the shares of all parts are apart from each other and add up to the whole; no
//! part has to hear of another to know its own.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The most parts that a fleet has.
const MOST_PARTS: u64 = 10_000;

/// Part `number`, from 1 on, of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Which, from 1 on.
    pub number: u64,
    /// Of how many.
    pub of: u64,
}

impl Part {
    /// What the flag `--part` says: `2/3`, or `job/3`, where `job` stands for `job_index`, the number of a job that is
    /// counted from 0 (`JOB_COMPLETION_INDEX` of a Kubernetes Indexed Job).
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub fn parse(text: &str, job_index: Option<&str>) -> Result<Part, String> {
        const FORM: &str = "it has the form I/N, such as 1/3, 2/3 and 3/3; or job/N, in an Indexed Job of Kubernetes";
        let (number, of) = text.split_once('/').ok_or(FORM)?;
        let of: u64 = of.parse().map_err(|_| FORM)?;
        if !(1..=MOST_PARTS).contains(&of) {
            return Err(format!("there are 1 to {MOST_PARTS} parts"));
        }
        let number: u64 = match (number, job_index) {
            ("job", None) => {
                return Err(
                    "job/N takes the part from JOB_COMPLETION_INDEX, which is not set: set completionMode: Indexed, or \
                     give I/N"
                        .into(),
                );
            }
            ("job", Some(index)) => {
                let index = index.parse::<u64>().map_err(|_| {
                    format!("JOB_COMPLETION_INDEX is {index:?}, and no number from 0 on")
                })?;
                index.saturating_add(1)
            }
            (number, _) => number.parse().map_err(|_| FORM)?,
        };
        if !(1..=of).contains(&number) {
            return Err(format!(
                "part {number} of {of}: parts are counted from 1 to {of}"
            ));
        }
        Ok(Part { number, of })
    }

    /// Which of `total` things, in order, are this part's: as many as any other's, or one more, which the first parts have.
    pub fn range(&self, total: u64) -> Range<u64> {
        let (each, more) = (total / self.of, total % self.of);
        let before = self.number - 1;
        let first = before * each + before.min(more);
        first..first + each + u64::from(before < more)
    }

    /// How many these are.
    pub fn share(&self, total: u64) -> u64 {
        let range = self.range(total);
        range.end - range.start
    }

    /// Of a `rate` that `total` have together, that of those which are this part's: each of them has the same, whichever
    /// part it is in.
    pub fn rate(&self, rate: f64, total: u64) -> f64 {
        rate * self.share(total) as f64 / total.max(1) as f64
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {}", self.number, self.of)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_shares_are_the_whole_and_even(of in 1u64..500, total in 0u64..1_000_000, rate in 0.0f64..1e6) {
            let parts: Vec<Part> = (1..=of).map(|number| Part { number, of }).collect();
            let mut next = 0;
            for part in &parts {
                let range = part.range(total);
                prop_assert_eq!(range.start, next);
                next = range.end;
                prop_assert!(part.share(total) >= parts[of as usize - 1].share(total));
                prop_assert!(part.share(total) <= parts[0].share(total));
            }
            prop_assert_eq!(next, total);
            prop_assert!(parts[0].share(total) - parts[of as usize - 1].share(total) <= 1);
            let sum: f64 = parts.iter().map(|part| part.rate(rate, total)).sum();
            prop_assert!(total == 0 || (sum - rate).abs() <= 1e-6 * rate.max(1.0), "{sum}, not {rate}");
        }

        #[test]
        fn the_shares_of_some_are_within_those_of_all(of in 1u64..100, all in 0u64..10_000, share in 0.0..=1.0f64) {
            let some = (all as f64 * share) as u64;
            for number in 1..=of {
                let part = Part { number, of };
                prop_assert!(part.share(some) <= part.share(all));
            }
        }
    }

    #[test]
    fn a_part_is_named_by_hand_or_by_the_job() {
        let part = |number, of| Ok(Part { number, of });
        assert_eq!(Part::parse("2/3", None), part(2, 3));
        assert_eq!(
            Part::parse("2/3", Some("0")),
            part(2, 3),
            "asked for explicitly, or not at all"
        );
        assert_eq!(Part::parse("job/3", Some("0")), part(1, 3));
        assert_eq!(Part::parse("job/3", Some("2")), part(3, 3));
        for (text, job, said) in [
            ("3", None, "I/N"),
            ("x/3", None, "I/N"),
            ("1/x", None, "I/N"),
            ("0/3", None, "counted from 1"),
            ("4/3", None, "counted from 1 to 3"),
            ("1/0", None, "1 to 10000"),
            ("1/10001", None, "1 to 10000"),
            ("job/3", None, "JOB_COMPLETION_INDEX"),
            ("job/3", Some("x"), "\"x\""),
            ("job/3", Some("3"), "part 4 of 3"),
            ("job/3", Some("18446744073709551615"), "counted from 1"),
        ] {
            let error = Part::parse(text, job).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
