//! Values over time, one panel below the other, with the phases of the run marked: a kind of [`Chart`](super::chart::Chart).
//! Pure.

use std::ops::Range;

use plotters::prelude::*;

use crate::report::chart::{AXIS_HEIGHT, Area, Drawn, LETTER_PIXELS, WIDTH, letters};
use crate::report::format::figure;
use crate::report::ink::Ink;
use crate::report::table::Table;

/// Values over the same time, one panel below the other.
#[derive(Debug)]
pub struct Timeline {
    /// What is shown.
    pub title: String,
    /// How it is to be read.
    pub about: String,
    /// What was done meanwhile, in order: the second it began, and its name.
    pub phases: Vec<(f64, String)>,
    /// From the top.
    pub panels: Vec<Panel>,
}

/// Values of one kind over time.
#[derive(Debug)]
pub struct Panel {
    /// Of what.
    pub title: String,
    /// A value as text.
    pub show: fn(f64) -> String,
    /// One for each that has such a value.
    pub lines: Vec<Line>,
}

/// One value over time.
#[derive(Debug)]
pub struct Line {
    /// Whose, where there are several.
    pub label: String,
    /// Seconds and value, in order.
    pub points: Vec<(f64, f64)>,
    /// Its colour.
    pub ink: Ink,
}

const PANEL_HEIGHT: u32 = 170;
/// A line of letters above a panel.
const LEGEND_HEIGHT: u32 = 20;
/// Left of a panel, for the labels of its axis.
const PANEL_LEFT: u32 = 74;
/// Right of it.
const PANEL_RIGHT: u32 = 24;
/// Lines of letters in which the names of phases stand.
const PHASE_LINES: usize = 3;

impl Timeline {
    pub(super) fn height(&self) -> u32 {
        self.phases_height() + self.panels.iter().map(Panel::height).sum::<u32>()
    }

    pub(super) fn words(&self) -> Vec<String> {
        let words = self.lines().map(|(panel, line)| {
            let figures = match self.phases.is_empty() {
                true => line.each(panel.show),
                false => self.by_phase(line, panel.show),
            };
            format!("{}: {}", name(panel, line), figures.join(", "))
        });
        words.collect()
    }

    /// What there was at the end of each phase, of every line.
    pub fn table(&self) -> Table {
        let names = self.lines().map(|(panel, line)| name(panel, line));
        let heading = std::iter::once("at the end of each phase".to_owned());
        let mut table = Table::new(heading.chain(names));
        for (at, (_, phase)) in self.phases.iter().enumerate() {
            let cells = self.lines().map(|(panel, line)| {
                let value = self.at_end(at, line);
                figure(value, panel.show)
            });
            table.row(phase, cells);
        }
        table
    }

    fn lines(&self) -> impl Iterator<Item = (&Panel, &Line)> {
        let panels = self.panels.iter();
        panels.flat_map(|panel| panel.lines.iter().map(move |line| (panel, line)))
    }

    /// The last value in the phase of that number.
    fn at_end(&self, phase: usize, line: &Line) -> Option<f64> {
        let begin = self.phases.get(phase)?.0;
        let end = self
            .phases
            .get(phase + 1)
            .map_or(f64::INFINITY, |next| next.0);
        let within = |point: &&(f64, f64)| (begin..end).contains(&point.0);
        let (_, value) = line.points.iter().rfind(within)?;
        Some(*value)
    }

    fn by_phase(&self, line: &Line, show: fn(f64) -> String) -> Vec<String> {
        let each = self.phases.iter().enumerate();
        each.filter_map(|(at, (_, phase))| {
            let value = self.at_end(at, line)?;
            Some(format!("{} at the end of {phase}", show(value)))
        })
        .collect()
    }

    fn phases_height(&self) -> u32 {
        match self.phases.is_empty() {
            true => 0,
            false => PHASE_LINES as u32 * LEGEND_HEIGHT,
        }
    }

    /// The end of the axis, in seconds.
    fn end(&self) -> f64 {
        let lines = self.panels.iter().flat_map(|panel| &panel.lines);
        let points = lines.flat_map(|line| &line.points);
        1.02 * points.map(|(seconds, _)| *seconds).fold(1.0, f64::max)
    }

    pub(super) fn draw(&self, root: &Area<'_>) -> Drawn {
        let end = self.end();
        let (above, mut rest) = root.split_vertically(self.phases_height());
        self.draw_phases(&above, end)?;
        let begins: Vec<f64> = self.phases.iter().map(|(begin, _)| *begin).collect();
        for panel in &self.panels {
            let (area, below) = rest.split_vertically(panel.height());
            panel.draw(&area, end, &begins)?;
            rest = below;
        }
        Ok(())
    }

    /// The names of phases where they begin, the longest first: one for which there is no room is left out.
    fn draw_phases(&self, area: &Area<'_>, end: f64) -> Drawn {
        let height = self.phases_height() as i32;
        let place = |seconds: f64| {
            let width = f64::from(WIDTH - PANEL_LEFT - PANEL_RIGHT);
            PANEL_LEFT as i32 + (seconds.clamp(0.0, end) / end * width) as i32
        };
        let ends = self.phases.iter().skip(1).map(|(begin, _)| *begin);
        let each = self.phases.iter().zip(ends.chain([end]));
        let mut longest: Vec<(f64, f64, &String)> = each
            .map(|((begin, name), end)| (*begin, end - begin, name))
            .collect();
        longest.sort_by(|one, other| other.1.total_cmp(&one.1));
        let mut taken: [Vec<Range<i32>>; PHASE_LINES] = Default::default();
        let mut names = Vec::new();
        for (begin, _, name) in longest {
            let width = letters_width(name);
            let x = (place(begin) + 3).min(WIDTH as i32 - width).max(0);
            let is_free = |taken: &&mut Vec<Range<i32>>| {
                let mut taken = taken.iter();
                taken.all(|other| other.end <= x || x + width <= other.start)
            };
            let lines = taken.iter_mut().enumerate();
            let Some((line, taken)) = lines.rev().find(|(_, taken)| is_free(taken)) else {
                continue;
            };
            taken.push(x..x + width);
            let y = line as i32 * LEGEND_HEIGHT as i32;
            let mark = [(place(begin), y + 4), (place(begin), height)];
            area.draw(&PathElement::new(mark, Ink::Grid.rgb().stroke_width(1)))?;
            names.push(Text::new(name.clone(), (x, y + 3), letters()));
        }
        // Upon the marks.
        names.iter().try_for_each(|name| area.draw(name))?;
        Ok(())
    }
}

impl Panel {
    fn height(&self) -> u32 {
        PANEL_HEIGHT + self.legend_height()
    }

    fn legend_height(&self) -> u32 {
        if self.lines.len() > 1 {
            2 * LEGEND_HEIGHT
        } else {
            0
        }
    }

    fn draw(&self, area: &Area<'_>, end: f64, phases: &[f64]) -> Drawn {
        /// More than these are a line without marks.
        const MOST_MARKS: usize = 40;
        let points = self.lines.iter().flat_map(|line| &line.points);
        let most = points.map(|(_, value)| *value).fold(1.0, f64::max) * 1.1;
        let (legend, area) = area.split_vertically(self.legend_height());
        let mut builder = ChartBuilder::on(&area);
        match self.lines.len() > 1 {
            true => self.draw_legend(&legend)?,
            false => {
                builder.caption(&self.title, letters());
            }
        }
        let mut chart = builder
            .margin_right(PANEL_RIGHT)
            .x_label_area_size(AXIS_HEIGHT)
            .y_label_area_size(PANEL_LEFT)
            .build_cartesian_2d(0.0..end, 0.0..most)?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .x_labels(5)
            .y_labels(4)
            .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
            .y_label_formatter(&|value| (self.show)(*value))
            .label_style(letters())
            .bold_line_style(Ink::Grid.rgb())
            .axis_style(Ink::Grid.rgb())
            .draw()?;
        chart.draw_series(phases.iter().map(|begin| {
            let mark = [(*begin, 0.0), (*begin, most)];
            PathElement::new(mark, Ink::Grid.rgb().stroke_width(1))
        }))?;
        for Line { points, ink, .. } in &self.lines {
            let ink = ink.rgb();
            chart.draw_series(LineSeries::new(points.iter().copied(), ink.stroke_width(2)))?;
            if points.len() <= MOST_MARKS {
                let marks = points.iter();
                chart.draw_series(marks.map(|point| Circle::new(*point, 4, ink.filled())))?;
            }
        }
        Ok(())
    }

    /// The title, and under it whose each line is.
    fn draw_legend(&self, area: &Area<'_>) -> Drawn {
        let left = PANEL_LEFT as i32;
        area.draw(&Text::new(self.title.clone(), (left, 4), letters()))?;
        let (mut x, y) = (left, LEGEND_HEIGHT as i32 + 4);
        for line in &self.lines {
            let mark = [(x, y + 2), (x + 10, y + 12)];
            area.draw(&Rectangle::new(mark, line.ink.rgb().filled()))?;
            area.draw(&Text::new(line.label.clone(), (x + 14, y), letters()))?;
            x += 24 + letters_width(&line.label);
        }
        Ok(())
    }
}

impl Line {
    fn each(&self, show: fn(f64) -> String) -> Vec<String> {
        let each = self.points.iter();
        each.map(|(seconds, value)| format!("{} at {seconds:.1} s", show(*value)))
            .collect()
    }
}

fn name(panel: &Panel, line: &Line) -> String {
    match panel.lines.len() {
        1 => panel.title.clone(),
        _ => format!("{}, {}", panel.title, line.label),
    }
}

/// About as wide as they are drawn; rather more.
fn letters_width(text: &str) -> i32 {
    text.chars().count() as i32 * LETTER_PIXELS as i32 / 2 + 2
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::report::chart::Chart;
    use crate::report::format::micros;

    pub(crate) fn panel(lines: &[&[(f64, f64)]]) -> Panel {
        let line = |points: &&[(f64, f64)]| Line {
            label: "<i>".to_owned(),
            points: points.to_vec(),
            ink: Ink::Uring,
        };
        Panel {
            title: "p".to_owned(),
            show: micros,
            lines: lines.iter().map(line).collect(),
        }
    }

    pub(crate) fn phases(begins: &[f64]) -> Vec<(f64, String)> {
        let each = begins.iter().enumerate();
        each.map(|(index, begin)| (*begin, format!("phase-{index}")))
            .collect()
    }

    pub(crate) fn timeline(phases: Vec<(f64, String)>, panels: Vec<Panel>) -> Chart {
        Chart::Timeline(Timeline {
            title: String::new(),
            about: String::new(),
            phases,
            panels,
        })
    }

    #[test]
    fn a_phase_is_told_by_its_end_and_marked_where_there_is_room() {
        let points: Vec<(f64, f64)> = (0..100).map(|t| (f64::from(t), f64::from(t))).collect();
        let chart = timeline(
            phases(&[0.0, 10.0, 10.5, 60.0]),
            vec![panel(&[&points, &[]])],
        );
        let words = chart.words();
        assert!(
            words.starts_with(
                "p, <i>: 9 µs at the end of phase-0, 10 µs at the end of phase-1, 59 µs"
            ),
            "{words}"
        );
        let svg = chart.draw().unwrap().svg;
        for phase in ["phase-0", "phase-2", "phase-3", "&lt;i&gt;"] {
            assert!(svg.contains(phase), "{phase}");
        }
        // However many there are, the names do not lie upon each other, and each panel has the lines.
        let begins: Vec<f64> = (0..90).map(f64::from).collect();
        let svg = timeline(phases(&begins), vec![panel(&[&points])]).draw();
        assert!(svg.unwrap().svg.matches("phase-").count() < 30);
        let all = timeline(Vec::new(), vec![panel(&[&points])]).words();
        assert_eq!(all.matches(" µs at ").count(), 100);
    }
}
