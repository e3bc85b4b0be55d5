//! Numbers and lists as people read them. Pure; KB and MB are powers of 1000, GiB of 1024.

use std::fmt::Display;

use crate::stats::Spread;

/// What stands where nothing was measured.
pub const NOTHING: &str = "–";

/// A figure by `show`, or the sign that there is none.
pub fn figure(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| NOTHING.to_owned(), show)
}

/// A count with its thousands apart.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// A whole number drawn from a measured one.
pub fn rounded(value: f64) -> String {
    count(value.round().max(0.0) as u64)
}

/// A count of things named by a regular noun.
pub fn of_many(value: u64, noun: &str) -> String {
    format!(
        "{} {noun}{}",
        count(value),
        if value == 1 { "" } else { "s" }
    )
}

/// Bytes, in the unit that leaves two to four digits.
pub fn bytes(value: f64) -> String {
    match value.abs() {
        below if below < 1_000.0 => format!("{value:.0} B"),
        below if below < 1_000_000.0 => format!("{:.2} KB", value / 1e3),
        _ => format!("{:.1} MB", value / 1e6),
    }
}

/// Memory of a machine.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Bytes.
pub const MIB: f64 = (1 << 20) as f64;

/// So many of [`MIB`], on an axis.
pub fn mebibytes(mib: f64) -> String {
    match mib {
        small if small < 10.0 => format!("{small:.1} MiB"),
        large => format!("{} MiB", rounded(large)),
    }
}

/// A part of a machine's memory, which may be small.
pub fn part_of_memory(bytes: u64) -> String {
    match bytes {
        small if small < 1 << 30 => format!("{} MiB", small.div_ceil(1 << 20)),
        large => gib(large),
    }
}

/// Microseconds, in the unit that reads best.
pub fn micros(value: f64) -> String {
    match value.abs() {
        below if below < 1_000.0 => format!("{value:.0} µs"),
        below if below < 1_000_000.0 => format!("{:.1} ms", value / 1e3),
        _ => format!("{:.2} s", value / 1e6),
    }
}

/// Milliseconds of a plan, as short as they can be said.
pub fn span(milliseconds: u64) -> String {
    if milliseconds.is_multiple_of(1_000) {
        format!("{} s", milliseconds / 1_000)
    } else {
        format!("{milliseconds} ms")
    }
}

/// A share of one.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 10.0 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// A ratio.
pub fn ratio(value: f64) -> String {
    format!("{value:.2}")
}

/// `median [min – max]`, each by `each`; a single value has no spread.
pub fn spread(spread: &Spread, each: impl Fn(f64) -> String) -> String {
    if spread.count == 1 {
        return each(spread.median);
    }
    format!(
        "{} [{} – {}]",
        each(spread.median),
        each(spread.min),
        each(spread.max)
    )
}

/// The median with its 95 % interval where there is one, and otherwise with nothing.
pub fn median(spread: &Spread, each: impl Fn(f64) -> String) -> String {
    let median = each(spread.median);
    match spread.interval {
        Some(interval) => format!(
            "{median} (95 %: {} – {})",
            each(interval.low),
            each(interval.high)
        ),
        None => median,
    }
}

/// `a, b and c`.
pub fn join<T: Display>(items: &[T]) -> String {
    let words: Vec<String> = items.iter().map(T::to_string).collect();
    match words.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(100_000), "100,000");
        assert_eq!(count(1_003_600), "1,003,600");
        assert_eq!(of_many(1, "round"), "1 round");
        assert_eq!(of_many(1_000, "round"), "1,000 rounds");
        assert_eq!(bytes(131.4), "131 B");
        assert_eq!(bytes(8_173.0), "8.17 KB");
        assert_eq!(bytes(-12.0), "-12 B");
        assert_eq!(micros(7.0), "7 µs");
        assert_eq!(micros(1_250.0), "1.2 ms");
        assert_eq!(percent(0.016), "1.6 %");
        assert_eq!(percent(0.99), "99 %");
        assert_eq!(part_of_memory(20_000_000), "20 MiB");
        assert_eq!(part_of_memory(3 << 30), "3.0 GiB");
        assert_eq!(span(10_000), "10 s");
        assert_eq!(span(1_500), "1500 ms");
        assert_eq!(join(&["a", "b", "c"]), "a, b and c");
        assert_eq!(join::<u8>(&[]), "");
    }

    proptest! {
        #[test]
        fn a_count_keeps_its_digits(value: u64) {
            prop_assert_eq!(count(value).replace(',', ""), value.to_string());
        }
    }
}
