//! Charts, drawn as SVG that stands inside a page. Pure.
//!
//! Invariant: every ink is one of [`Ink::ALL`], so that a page can give each another colour in the dark; and every chart
//! has its figures in words too, in [`Chart::words`]: all of them, or where phases are marked what there was at the end of
//! each.

use std::error::Error;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::report::format::micros;
use crate::report::ink::Ink;
use crate::report::timeline::Timeline;

/// A picture of figures.
#[derive(Debug)]
pub enum Chart {
    /// Values side by side.
    Rows(Rows),
    /// Values over time.
    Timeline(Timeline),
}

/// Values side by side, each on a line of its own.
#[derive(Debug)]
pub struct Rows {
    /// What is shown.
    pub title: String,
    /// How it is to be read.
    pub about: String,
    /// The axis.
    pub scale: Scale,
    /// A value of the axis as text.
    pub tick: fn(f64) -> String,
    /// From the top.
    pub rows: Vec<Row>,
}

/// One value.
#[derive(Debug)]
pub struct Row {
    /// Of what.
    pub label: String,
    /// In words, with the range.
    pub shown: String,
    /// The value.
    pub value: f64,
    /// Where it could as well be.
    pub range: Option<(f64, f64)>,
    /// Its colour.
    pub ink: Ink,
}

impl Row {
    /// A p99 in microseconds, between the p50 and the largest.
    pub fn percentiles(label: String, [p50, p99, max]: [f64; 3], ink: Ink) -> Self {
        let [low, value, high] = [p50, p99, max].map(micros);
        let shown = format!("{value} [{low} – {high}]");
        let range = Some((p50, max));
        Self {
            label,
            shown,
            value: p99,
            range,
            ink,
        }
    }
}

/// How [`Row::percentiles`] are to be read.
pub const PERCENTILES: &str = "p99, with p50 and the largest at the ends; each step to the right is ten times as long, and what is \
     below 1 µs stands at 1 µs";

/// An axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Bars that begin at 0.
    FromZero,
    /// Marks beside a line at 1.
    AroundOne,
    /// The same, with lines so far to either side.
    Within(f64),
    /// Marks of microseconds; each step is ten times the one before, and what is below one stands at one.
    Decades,
}

impl Scale {
    /// Where lines stand across all rows.
    fn lines(self) -> Vec<f64> {
        match self {
            Self::AroundOne => vec![1.0],
            Self::Within(band) => vec![1.0 - band, 1.0, 1.0 + band],
            Self::FromZero | Self::Decades => Vec::new(),
        }
    }
}

/// What is drawn, and its size.
#[derive(Debug)]
pub struct Drawing {
    /// An `<svg>` element.
    pub svg: String,
    /// Its width; a phone's, so that its letters can be read there.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

pub(super) const WIDTH: u32 = 420;
const ROW_HEIGHT: u32 = 40;
pub(super) const AXIS_HEIGHT: u32 = 30;
/// The library draws them a fifth smaller.
pub(super) const LETTER_PIXELS: u32 = 15;

impl Chart {
    /// What is shown.
    pub fn title(&self) -> &str {
        match self {
            Self::Rows(rows) => &rows.title,
            Self::Timeline(timeline) => &timeline.title,
        }
    }

    /// How it is to be read.
    pub fn about(&self) -> &str {
        match self {
            Self::Rows(rows) => &rows.about,
            Self::Timeline(timeline) => &timeline.about,
        }
    }

    /// All its figures, for those who do not see it.
    pub fn words(&self) -> String {
        let words: Vec<String> = match self {
            Self::Rows(rows) => rows
                .rows
                .iter()
                .map(|row| format!("{}: {}", row.label, row.shown))
                .collect(),
            Self::Timeline(timeline) => timeline.words(),
        };
        words.join("; ")
    }

    /// The picture.
    ///
    /// # Errors
    /// What the library that draws it says.
    pub fn draw(&self) -> Result<Drawing, String> {
        let height = match self {
            Self::Rows(rows) => rows.rows.len() as u32 * ROW_HEIGHT + AXIS_HEIGHT,
            Self::Timeline(timeline) => timeline.height(),
        };
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let drawn = match self {
            Self::Rows(rows) => rows.draw(&root),
            Self::Timeline(timeline) => timeline.draw(&root),
        };
        let drawn = drawn.and_then(|()| Ok(root.present()?));
        drop(root);
        drawn.map_err(|error| format!("the chart “{}” cannot be drawn: {error}", self.title()))?;
        Ok(Drawing {
            svg,
            width: WIDTH,
            height,
        })
    }
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn = Result<(), Box<dyn Error>>;

impl Rows {
    fn draw(&self, root: &Area<'_>) -> Drawn {
        let axis = self.axis();
        let from = axis.start;
        let lines = self.rows.len() as f64;
        let mut chart = ChartBuilder::on(root)
            .margin_left(24)
            .margin_right(36)
            .x_label_area_size(AXIS_HEIGHT)
            .build_cartesian_2d(axis.clone(), 0.0..lines)?;
        let decades = self.scale == Scale::Decades;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .max_light_lines(0)
            .x_labels(if decades {
                (axis.end - axis.start) as usize + 2
            } else {
                5
            })
            .x_label_formatter(&|at| (self.tick)(if decades { 10f64.powf(*at) } else { *at }))
            .x_label_style(letters())
            .bold_line_style(Ink::Grid.rgb())
            .axis_style(Ink::Grid.rgb())
            .draw()?;
        for (index, row) in self.rows.iter().enumerate() {
            let top = lines - index as f64;
            let (upper, middle, lower) = (top - 0.5, top - 0.68, top - 0.86);
            let value = self.place(row.value);
            // Beside the marks, and not through the labels.
            let beside = self.scale.lines().into_iter();
            chart.draw_series(beside.map(|at| line([(at, top - 0.45), (at, top - 0.93)])))?;
            let label = format!("{}: {}", row.label, row.shown);
            chart.draw_series([Text::new(label, (from, top - 0.1), letters())])?;
            match self.scale {
                Scale::FromZero => {
                    let bar = [(0.0, upper), (value, lower)];
                    chart.draw_series([Rectangle::new(bar, row.ink.rgb().filled())])?;
                }
                Scale::AroundOne | Scale::Within(_) | Scale::Decades => {
                    chart.draw_series([Circle::new((value, middle), 5, row.ink.rgb().filled())])?;
                }
            }
            if let Some((low, high)) = row.range {
                let (low, high) = (self.place(low), self.place(high));
                let ends = [low, high].map(|end| line([(end, upper), (end, lower)]));
                chart.draw_series(
                    ends.into_iter()
                        .chain([line([(low, middle), (high, middle)])]),
                )?;
            }
        }
        Ok(())
    }

    /// Where a value stands on the axis.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Decades => value.max(1.0).log10(),
            Scale::FromZero | Scale::AroundOne | Scale::Within(_) => value,
        }
    }

    /// All values, and their ranges, with a margin; the decades whole.
    fn axis(&self) -> Range<f64> {
        let ends = self.rows.iter().flat_map(|row| {
            let (low, high) = row.range.unwrap_or((row.value, row.value));
            [low, high, row.value].map(|value| self.place(value))
        });
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| {
            (low.min(end), high.max(end))
        });
        match self.scale {
            Scale::FromZero => low.min(0.0) * 1.05..if high > 0.0 { high * 1.05 } else { 1.0 },
            Scale::AroundOne => low.min(0.95) - 0.02..high.max(1.05) + 0.02,
            Scale::Within(band) => low.min(1.0 - band) - 0.02..high.max(1.0 + band) + 0.02,
            Scale::Decades => low.floor()..high.ceil().max(low.floor() + 1.0),
        }
    }
}

pub(super) fn letters() -> TextStyle<'static> {
    ("sans-serif", LETTER_PIXELS)
        .into_font()
        .color(&Ink::Text.rgb())
}

fn line(ends: [(f64, f64); 2]) -> PathElement<(f64, f64)> {
    PathElement::new(ends, Ink::Text.rgb().stroke_width(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::timeline::tests::{panel, phases, timeline};

    fn rows(scale: Scale, values: &[f64]) -> Chart {
        let row = |value: &f64| Row {
            label: "<b>".to_owned(),
            shown: value.to_string(),
            value: *value,
            range: Some((value * 0.9, value * 1.1)),
            ink: Ink::Epoll,
        };
        let rows = values.iter().map(row).collect();
        Chart::Rows(Rows {
            title: String::new(),
            about: String::new(),
            scale,
            tick: micros,
            rows,
        })
    }

    #[test]
    fn every_ink_has_a_colour_in_the_dark_and_no_other_is_used() {
        let drawn = [
            rows(Scale::AroundOne, &[0.9, 1.2]),
            timeline(
                phases(&[0.0, 4.0]),
                vec![panel(&[&[(0.0, 0.0), (9.0, 5.0)], &[(3.0, 1.0)]])],
            ),
        ];
        for drawing in drawn.map(|chart| chart.draw().unwrap()) {
            for colour in drawing.svg.split('"').filter(|part| part.starts_with('#')) {
                assert!(Ink::ALL.iter().any(|ink| ink.light() == colour), "{colour}");
            }
        }
    }

    #[test]
    fn a_label_is_text_whatever_is_in_it() {
        let svg = rows(Scale::FromZero, &[1.0]).draw().unwrap().svg;
        assert!(svg.contains("&lt;b&gt;") && !svg.contains("<b>"), "{svg}");
    }

    proptest! {
        #[test]
        fn whatever_was_measured_can_be_drawn(values in proptest::collection::vec(-1e3f64..1e12, 1..9)) {
            for scale in [Scale::FromZero, Scale::AroundOne, Scale::Within(0.08), Scale::Decades] {
                prop_assert!(!rows(scale, &values).draw().unwrap().svg.contains("NaN"));
            }
        }
    }
}
