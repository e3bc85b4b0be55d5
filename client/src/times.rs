//! Times that many measured, as text that can be added up: a histogram in nanoseconds, in base64 of HdrHistogram's V2 deflate,
//! as lines of an interval log have it.
//!
//! Pure. Invariant: what is added is counted, not averaged: percentiles of a sum are those of all that was measured.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use crate::summary::Percentiles;

/// A histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Times(Histogram<u64>);

impl Times {
    pub(crate) fn new(histogram: &Histogram<u64>) -> Times {
        Times(histogram.clone())
    }

    /// Takes `other` in.
    ///
    /// # Errors
    /// They are of different bounds or precision, of which no exact sum can be made.
    pub fn add(&mut self, other: &Times) -> Result<(), String> {
        let form = |Times(one): &Times| (one.low(), one.high(), one.sigfig());
        if form(self) != form(other) {
            return Err(format!(
                "histograms of other bounds: {:?} and {:?} (lowest, highest, digits)",
                form(self),
                form(other)
            ));
        }
        self.0.add(&other.0).map_err(|error| error.to_string())
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// In microseconds.
    pub fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.0)
    }
}

impl Serialize for Times {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.0, &mut bytes)
            .map_err(serde::ser::Error::custom)?;
        to.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Times, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        let read = Deserializer::new().deserialize(&mut bytes.as_slice());
        read.map(Times)
            .map_err(|error| D::Error::custom(format!("no histogram: {error}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(values: &[u64]) -> Times {
        let mut histogram = Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).unwrap();
        for value in values {
            histogram.saturating_record(*value);
        }
        Times(histogram)
    }

    fn again(times: &Times) -> Times {
        serde_json::from_str(&serde_json::to_string(times).unwrap()).unwrap()
    }

    proptest! {
        /// However what was measured is dealt out, and by whatever file it comes.
        #[test]
        fn parts_add_up_to_the_whole(values in proptest::collection::vec((0usize..4, 0u64..u64::MAX / 2), 0..200)) {
            let all: Vec<u64> = values.iter().map(|(_, value)| *value).collect();
            let mut sum = times(&[]);
            for part in 0..4 {
                let of_part: Vec<u64> = values.iter().filter(|(of, _)| *of == part).map(|(_, value)| *value).collect();
                sum.add(&again(&times(&of_part))).unwrap();
            }
            let whole = times(&all);
            prop_assert_eq!(sum.count(), all.len() as u64);
            prop_assert_eq!(sum.percentiles(), whole.percentiles());
            prop_assert_eq!(&again(&sum), &again(&whole));
        }
    }

    #[test]
    fn what_is_no_histogram_or_another_one_is_refused() {
        for text in ["\"\"", "\"AAAA\"", "\"%\"", "5"] {
            assert!(serde_json::from_str::<Times>(text).is_err(), "{text}");
        }
        let coarse = Times(Histogram::new_with_bounds(1_000, 3_600_000_000_000, 2).unwrap());
        let error = times(&[5_000]).add(&coarse).unwrap_err();
        assert!(error.contains("other bounds"), "{error}");
    }
}
