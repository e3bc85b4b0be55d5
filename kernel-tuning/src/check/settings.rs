//! The settings of the profile, each by its direction.
//!
//! Pure.

use super::{About, Finding, Fix, Readings, Sysctl, Theme};
use crate::profile;
use crate::setting::{Demand, Setting, wanted};

pub(super) fn findings(readings: &Readings, demand: &Demand) -> Vec<Finding> {
    profile::settings(demand.role)
        .iter()
        .map(|setting| finding(setting, readings, demand))
        .collect()
}

fn finding(setting: &Setting, readings: &Readings, demand: &Demand) -> Finding {
    let name = setting.name.as_str();
    let wanted = wanted(setting, demand);
    let why = format!("{} ({})", setting.reason, setting.unit);
    let about = About::new(Theme::Settings, name, wanted.to_string(), why);
    let now = match readings.sysctl(name) {
        Ok(now) => now,
        Err(why) => return about.unknown(why),
    };
    let shown = if now.is_empty() { "empty" } else { now };
    let is_writable = matches!(
        readings.sysctls.get(name),
        Some(Sysctl::Value {
            is_writable: true,
            ..
        })
    );
    // What bounds a table that stays empty bounds nothing.
    let is_idle = name.starts_with("net.netfilter.nf_conntrack")
        && readings.number("net.netfilter.nf_conntrack_count") == Ok(0);
    match (wanted.is_met(now), wanted.adjusted(now)) {
        (Ok(true), _) => about.pass(shown),
        (Ok(false), _) if is_idle => about.pass(format!("{shown}, and nothing is tracked")),
        (Ok(false), Ok(value)) if is_writable => about.warn(shown, Fix::sysctl(name, value)),
        (Ok(false), Ok(value)) => {
            let there = "on the host itself, as it cannot be written here: ";
            let fix = Fix::sysctl(name, value);
            about.warn(
                shown,
                Fix::new(
                    format!("{there}{}", fix.now),
                    format!("{there}{}", fix.keep),
                ),
            )
        }
        (Err(error), _) | (_, Err(error)) => about.unknown(error.to_string()),
    }
}
