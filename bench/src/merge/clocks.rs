//! How far the clock of each part's host is ahead of a common one, as it was measured before the run. Reads one file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Of a part's clock of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ahead {
    /// How far it is ahead.
    pub offset_us: i64,
    /// How wrong that may be, either way: half of what the question took.
    pub uncertainty_us: u64,
}

/// Of each part that it is known of.
pub type Clocks = BTreeMap<u64, Ahead>;

/// What the file says.
///
/// # Errors
/// It cannot be read, or a line is of another form.
pub fn read(path: &Path) -> Result<Clocks, String> {
    let text = std::fs::read_to_string(path).map_err(|cause| {
        format!(
            "--clocks {}: {cause}; deploy/fleet/pdsh.sh writes it beside the parts",
            path.display()
        )
    })?;
    parse(&text).map_err(|reason| format!("--clocks {}: {reason}", path.display()))
}

fn parse(text: &str) -> Result<Clocks, String> {
    let mut clocks = Clocks::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ahead = match words.as_slice() {
            [part, offset, uncertainty] => part
                .parse::<u64>()
                .ok()
                .zip(offset.parse::<i64>().ok())
                .zip(uncertainty.parse::<u64>().ok()),
            _ => None,
        };
        let Some(((part, offset_us), uncertainty_us)) = ahead else {
            return Err(format!(
                "{line:?} is not PART OFFSET_US UNCERTAINTY_US, three whole numbers"
            ));
        };
        let ahead = Ahead {
            offset_us,
            uncertainty_us,
        };
        if clocks.insert(part, ahead).is_some() {
            return Err(format!("part {part} stands there twice"));
        }
    }
    Ok(clocks)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_a_line() {
        let clocks = parse("1 -250 80\n\n3 12000 90\n").unwrap();
        let third = Ahead {
            offset_us: 12_000,
            uncertainty_us: 90,
        };
        assert_eq!((clocks[&1].offset_us, clocks[&3]), (-250, third));
        for (text, said) in [
            ("1 2\n", "three"),
            ("1 x 2", "three"),
            ("1 2 3\n1 2 3", "twice"),
        ] {
            assert!(parse(text).unwrap_err().contains(said), "{text}");
        }
    }
}
