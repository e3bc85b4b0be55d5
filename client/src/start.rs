//! The time at which a client is to start, together with others: what `--start-at` says, and how late it was kept.
//!
//! Pure but for [`wait`]. By the clock of day, which is the only one that hosts have in common; so it is looked at again and
//! again, and what it was set by meanwhile counts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::interrupts::Interrupts;

/// By how much a start may be past: less than anybody waits for who starts a fleet, and more than a process takes.
const LATEST: Duration = Duration::from_secs(1);
/// How far ahead it may be: a mistyped day is no reason to wait for it.
const FARTHEST: Duration = Duration::from_secs(3600);
/// How often the clock is looked at, at least.
const LOOK: Duration = Duration::from_millis(200);

/// When a run was to start, and when it did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Start {
    /// When, in seconds since 1970, by this host's clock of day.
    pub at_unix_seconds: f64,
    /// How much later the first connect began; where none did, the run.
    pub late_seconds: f64,
}

impl Start {
    /// To start `at`, `began` as it was.
    pub(crate) fn new(at: SystemTime, began: SystemTime) -> Start {
        Start {
            at_unix_seconds: unix_seconds(at),
            late_seconds: unix_seconds(began) - unix_seconds(at),
        }
    }
}

/// The value of `--start-at`: RFC 3339 with `Z` or an offset, or seconds since 1970.
///
/// # Errors
/// What it is not.
pub(crate) fn parse(text: &str) -> Result<SystemTime, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        // The year 9999 ends before.
        return match (0.0..253_402_300_800.0).contains(&seconds) {
            true => Ok(UNIX_EPOCH + Duration::from_secs_f64(seconds)),
            false => Err("it is seconds since 1970".into()),
        };
    }
    const FORM: &str = "it is a time such as 2030-01-31T12:00:00Z or 2030-01-31T14:00:00+02:00, or seconds since 1970 \
                        (date +%s -d '+20 seconds')";
    let (local, offset_minutes) = split_offset(text);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).map_err(|_| FORM)?;
    let offset = Duration::from_secs(60 * offset_minutes.unsigned_abs());
    let moved = match offset_minutes {
        0.. => local.checked_sub(offset),
        _ => local.checked_add(offset),
    };
    moved.ok_or_else(|| FORM.to_owned())
}

/// The time without its offset from UTC, and that in minutes; a time that has none is left with a letter too much.
fn split_offset(text: &str) -> (&str, i64) {
    if let Some(local) = text.strip_suffix(['Z', 'z']) {
        return (local, 0);
    }
    let number = |digits: &str, most: i64| {
        let is_plain = digits.len() == 2 && digits.bytes().all(|letter| letter.is_ascii_digit());
        let number = is_plain.then(|| digits.parse::<i64>().ok());
        number.flatten().filter(|number| *number <= most)
    };
    let of_offset = || {
        let (rest, minutes) = text.rsplit_once(':')?;
        let at = rest.rfind(['+', '-'])?;
        let (local, offset) = rest.split_at(at);
        let minutes = 60 * number(offset.get(1..)?, 23)? + number(minutes, 59)?;
        let sign = if offset.starts_with('-') { -1 } else { 1 };
        Some((local, sign * minutes))
    };
    of_offset().unwrap_or(("", 0))
}

/// Refuses a start that is over, or too far ahead of `now`.
///
/// # Errors
/// Which of the two.
pub(crate) fn check(start: SystemTime, now: SystemTime) -> Result<(), String> {
    let shown = humantime::format_rfc3339_millis(start);
    match start.duration_since(now) {
        Ok(ahead) if ahead > FARTHEST => Err(format!(
            "--start-at {shown}: that is {} ahead by this host's clock, more than an hour; is the time in UTC, and the \
             clock right (timedatectl)?",
            whole_seconds(ahead)
        )),
        Ok(_) => Ok(()),
        Err(past) if past.duration() > LATEST => Err(format!(
            "--start-at {shown}: that was {} ago by this host's clock: start the fleet again with a time further ahead, \
             and look whether the clock is right (timedatectl)",
            whole_seconds(past.duration())
        )),
        Err(_) => Ok(()),
    }
}

/// Waits until `start`. True when the run is to end before.
pub(crate) fn wait(start: SystemTime, interrupts: &Interrupts) -> anyhow::Result<bool> {
    while let Ok(ahead) = start.duration_since(SystemTime::now())
        && !ahead.is_zero()
    {
        if interrupts.linger(ahead.min(LOOK), || false)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn whole_seconds(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_said_in_rfc_3339_or_in_unix_seconds() {
        let noon = UNIX_EPOCH + Duration::from_secs(1_893_499_200);
        for text in [
            "2030-01-01T12:00:00Z",
            "2030-01-01T12:00:00.000Z",
            "2030-01-01T14:30:00+02:30",
            "2030-01-01T00:00:00-12:00",
            "1893499200",
            "1893499200.0",
        ] {
            assert_eq!(parse(text), Ok(noon), "{text}");
        }
        let quarter = UNIX_EPOCH + Duration::from_millis(1_893_499_200_250);
        assert_eq!(parse("2030-01-01T12:00:00.25Z"), Ok(quarter));
        assert_eq!(parse("1893499200.25"), Ok(quarter));
        for text in [
            "",
            "noon",
            "2030-01-01",
            "2030-01-01T12:00:00",
            "2030-01-01T12:00:00+24:00",
            "2030-01-01T12:00:00+2:00",
            "2030-13-01T12:00:00Z",
            "-5",
            "inf",
            "nan",
            "1e300",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_over_or_far_ahead_is_refused() {
        let now = UNIX_EPOCH + Duration::from_secs(1_893_499_200);
        let second = Duration::from_secs(1);
        for start in [now, now - second, now + second, now + 3600 * second] {
            assert_eq!(check(start, now), Ok(()));
        }
        let past = check(now - 90 * second, now).unwrap_err();
        assert!(
            past.contains("1m 30s ago") && past.contains("2030-01-01T11:58:30"),
            "{past}"
        );
        let ahead = check(now + 7200 * second, now).unwrap_err();
        assert!(ahead.contains("2h ahead"), "{ahead}");
    }

    #[test]
    fn a_start_tells_how_late_it_was() {
        let at = UNIX_EPOCH + Duration::from_secs(10);
        let start = Start::new(at, at + Duration::from_millis(250));
        assert_eq!((start.at_unix_seconds, start.late_seconds), (10.0, 0.25));
    }
}
