//! How long to wait before a lost connection is made again.
//!
//! Pure: randomness is given. Exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture
//! Blog, 2015): the bound doubles with each attempt, and the wait is anywhere below it, so that those lost together do
//! not come back together.
//! Invariant: a wait is never longer than the maximum.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::config::seconds;

/// The bounds of the waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backoff {
    /// Bound of the first wait.
    #[serde(rename = "min_seconds", serialize_with = "seconds")]
    pub min: Duration,
    /// Bound of all waits.
    #[serde(rename = "max_seconds", serialize_with = "seconds")]
    pub max: Duration,
}

impl Backoff {
    /// The longest bound that may be given.
    const LONGEST: Duration = Duration::from_secs(24 * 3600);

    /// The wait before an attempt, of which `failed` have failed before, by 64 `random` bits.
    pub fn delay(&self, failed: u8, random: u64) -> Duration {
        let factor = 1u32.checked_shl(failed.into()).unwrap_or(u32::MAX);
        let bound = self.min.saturating_mul(factor).min(self.max);
        bound.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

impl FromStr for Backoff {
    type Err = String;

    fn from_str(text: &str) -> Result<Backoff, String> {
        let explain = || {
            "it has the form MIN..MAX, two times such as 100ms..30s; a target comes before it, or write --reconnect=100ms..30s"
                .to_string()
        };
        let (min, max) = text.split_once("..").ok_or_else(explain)?;
        let time = |text: &str| humantime::parse_duration(text).map_err(|_| explain());
        let (min, max) = (time(min)?, time(max)?);
        if min < Duration::from_millis(1) || min > max || max > Self::LONGEST {
            return Err("MIN is at least 1ms, and MAX from MIN to 1day".into());
        }
        Ok(Backoff { min, max })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_are_bounded_and_their_bounds_grow(min_ms in 1u64..10_000, more_ms in 0u64..100_000, failed: u8, random: u64) {
            let backoff = Backoff {
                min: Duration::from_millis(min_ms),
                max: Duration::from_millis(min_ms + more_ms),
            };
            let delay = backoff.delay(failed, random);
            prop_assert!(delay <= backoff.max);
            prop_assert!(delay.as_secs_f64() <= backoff.min.as_secs_f64() * 2f64.powi(failed.into()));
            prop_assert!(backoff.delay(failed.saturating_add(1), random) >= delay);
            prop_assert_eq!(backoff.delay(failed, 0), Duration::ZERO);
        }
    }

    #[test]
    fn both_bounds_are_read() {
        let backoff: Backoff = "100ms..30s".parse().unwrap();
        assert_eq!(
            (backoff.min, backoff.max),
            (Duration::from_millis(100), Duration::from_secs(30))
        );
        // All jitter: half of the bound by half of the randomness.
        assert_eq!(backoff.delay(3, 1 << 63), Duration::from_millis(400));
        assert_eq!(backoff.delay(200, 1 << 63), Duration::from_secs(15));
        for text in ["", "1s", "2s..1s", "0ms..1s", "1s..", "1s..9days"] {
            assert!(text.parse::<Backoff>().is_err(), "{text}");
        }
    }
}
