//! How the view looks: a model to a frame.
//!
//! Pure. Invariant: whatever the size of the terminal, it draws what there is room for, the most telling first.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::HumanCount;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Gauge, RenderDirection, Sparkline};

use super::model::{Model, Series};
use crate::display::Length;

const NAME: Style = Style::new().fg(Color::Cyan);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().fg(Color::DarkGray);
const SPARK: Style = Style::new().fg(Color::Green);
const GAUGE: Style = Style::new().fg(Color::Cyan).bg(Color::Black);

/// The widths of a name and of its figure, on a terminal that is wide enough.
const NAME_WIDTH: u16 = 23;
const FIGURE_WIDTH: u16 = 24;
const KEYS: &str = "q: end";
/// Lines that a sparkline may have.
const TALLEST: u16 = 3;

/// Draws `model` on the whole of `frame`.
pub(super) fn draw(model: &Model, frame: &mut Frame<'_>) {
    let rows = rows(model);
    let (probes, notes) = (probes(model), notes(model));
    let lines = 3 + failures(model).len() + usize::from(!probes.is_empty()) + notes.len();
    let sparklines = rows.len() + probes.len();
    let spare = usize::from(frame.area().height).saturating_sub(lines + sparklines);
    let height = 1 + (spare / sparklines.max(1)).min(usize::from(TALLEST - 1)) as u16;

    let mut page = Page {
        left: frame.area(),
        frame,
    };
    page.title(model);
    page.gauge(model);
    page.line(connections(model));
    for line in failures(model) {
        page.line(line);
    }
    for row in &rows {
        page.row(row, height);
    }
    if !probes.is_empty() {
        page.line(canaries(model));
    }
    for row in &probes {
        page.row(row, height);
    }
    for note in notes {
        page.line(note);
    }
}

/// A figure over time.
struct Row<'a> {
    name: String,
    figure: String,
    style: Style,
    series: &'a Series,
}

fn rows(model: &Model) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let rate = |name: &str, series, (count, what): (u64, &str)| {
        let rate = HumanCount(Series::newest(series));
        let (more, style) = match count {
            0 => (String::new(), Style::new()),
            _ => (format!(", {} {what}", HumanCount(count)), BAD),
        };
        Row {
            name: name.into(),
            figure: format!("{rate}{more}"),
            style,
            series,
        }
    };
    let counts = &model.counts;
    rows.push(rate("connects/s", &model.connects, (0, "")));
    if model.has_messages {
        rows.push(rate("messages/s", &model.messages, (counts.owed, "owed")));
    }
    if model.has_cycles {
        rows.push(rate("cycles/s", &model.cycles, (0, "")));
    }
    let [mean, max] = [&model.latency_mean_us, &model.latency_max_us].map(Series::newest);
    rows.push(Row {
        name: "latency".into(),
        figure: match max {
            0 => "-".into(),
            _ => {
                let [mean, max] = [mean, max].map(Duration::from_micros).map(time);
                format!("{mean}, max {max}")
            }
        },
        style: Style::new(),
        series: &model.latency_max_us,
    });
    if model.has_heartbeats {
        let late = (counts.heartbeats_late, "late");
        rows.push(rate("heartbeats/s", &model.heartbeats, late));
    }
    rows
}

fn probes(model: &Model) -> Vec<Row<'_>> {
    let rows = model.probes.iter().map(|probe| Row {
        name: probe.name.clone(),
        figure: format!(
            "{}, {} lost",
            probe.rtt.map_or("no answer".into(), time),
            HumanCount(probe.lost)
        ),
        style: if probe.lost > 0 { BAD } else { Style::new() },
        series: &probe.slowest_ns,
    });
    rows.collect()
}

fn connections(model: &Model) -> Line<'static> {
    let (up, wanted) = (
        HumanCount(model.counts.live()).to_string(),
        HumanCount(model.wanted),
    );
    let text = match model.is_closed {
        false => format!("{up} of {wanted}"),
        true => format!("were {up} of {wanted}"),
    };
    Line::from(vec![Span::styled("connections ", NAME), text.into()])
}

fn failures(model: &Model) -> Vec<Line<'static>> {
    let line = |what: &str, count: u64, causes: &BTreeMap<String, u64>| {
        let causes: Vec<String> = causes
            .iter()
            .map(|(cause, count)| format!("{cause} {}", HumanCount(*count)))
            .collect();
        let text = format!("{what} {} ({})", HumanCount(count), causes.join(", "));
        (count > 0).then(|| Line::styled(text, BAD))
    };
    let (counts, causes) = (&model.counts, &model.causes);
    [
        line("failed", counts.failed, &causes.failed),
        line("lost", counts.lost, &causes.lost),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn canaries(model: &Model) -> Line<'static> {
    let lateness = time(Duration::from_nanos(model.lateness_ns.newest()));
    let not_sent = match model.not_sent {
        0 => String::new(),
        count => format!(", {} probes not sent", HumanCount(count)),
    };
    Line::from(vec![
        Span::styled("canaries ", NAME),
        Span::styled(format!("prober late by {lateness}{not_sent}"), FAINT),
    ])
}

fn notes(model: &Model) -> Vec<Line<'_>> {
    let trouble = model.trouble.iter();
    let trouble = trouble.map(|text| Line::styled(format!("host: {text}"), BAD));
    let log = model.log.iter();
    trouble
        .chain(log.map(|text| Line::styled(text.as_str(), FAINT)))
        .collect()
}

/// What is left of the frame, from the top down.
struct Page<'a, 'b> {
    frame: &'a mut Frame<'b>,
    left: Rect,
}

impl Page<'_, '_> {
    fn take(&mut self, height: u16) -> Rect {
        let [taken, left] =
            Layout::vertical([Constraint::Length(height), Constraint::Fill(1)]).areas(self.left);
        self.left = left;
        taken
    }

    fn line(&mut self, line: Line<'_>) {
        let area = self.take(1);
        self.frame.render_widget(line, area);
    }

    fn title(&mut self, model: &Model) {
        let area = self.take(1);
        let widths = [Constraint::Fill(1), Constraint::Length(KEYS.len() as u16)];
        let [title, keys] = Layout::horizontal(widths).spacing(1).areas(area);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let line = Line::from(vec![
            Span::styled("throng-client ", bold),
            model.targets.as_str().into(),
        ]);
        self.frame.render_widget(line, title);
        self.frame.render_widget(Line::styled(KEYS, FAINT), keys);
    }

    fn gauge(&mut self, model: &Model) {
        let area = self.take(1);
        let name_width = 12.min(area.width);
        let [name, bar] =
            Layout::horizontal([Constraint::Length(name_width), Constraint::Fill(1)]).areas(area);
        self.frame
            .render_widget(Line::styled(model.stage, NAME), name);
        let lasted = seconds(model.lasted);
        let label = match &model.length {
            Length::Time(length) => format!("{lasted} of {}", seconds(*length)),
            Length::Share(share) => format!("{:.0} % after {lasted}", share * 100.0),
            Length::Unknown => lasted,
        };
        let ratio = model.length.ratio(model.lasted);
        let gauge = Gauge::default()
            .ratio(ratio)
            .label(label)
            .gauge_style(GAUGE);
        self.frame.render_widget(gauge, bar);
    }

    fn row(&mut self, row: &Row<'_>, height: u16) {
        let area = self.take(height);
        // Half of a narrow terminal is for the figure, and what is left for the name and the sparkline.
        let widths = [
            Constraint::Length(NAME_WIDTH.min(area.width * 3 / 10)),
            Constraint::Length(FIGURE_WIDTH.min(area.width / 2)),
            Constraint::Fill(1),
        ];
        let [name, figure, spark] = Layout::horizontal(widths).spacing(1).areas(area);
        self.frame
            .render_widget(Line::styled(row.name.as_str(), NAME), name);
        self.frame
            .render_widget(Line::styled(row.figure.as_str(), row.style), figure);
        let values: Vec<u64> = row.series.last(usize::from(spark.width)).collect();
        let sparkline = Sparkline::default()
            .data(&values)
            .direction(RenderDirection::RightToLeft)
            .style(SPARK);
        self.frame.render_widget(sparkline, spark);
    }
}

/// To three digits.
fn time(time: Duration) -> String {
    let (value, unit) = match time.as_nanos() as f64 {
        ns @ ..1e6 => (ns / 1e3, "µs"),
        ns @ ..1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let digits = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::canary::News;
    use crate::counters::{Causes, Counts};
    use crate::tui::model::Scene;
    use crate::tui::model::tests::{model, scene};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    /// The lines of a terminal of this size, without the blanks at their ends.
    fn lines(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(model, frame)).unwrap();
        let cells = terminal.backend().buffer().content();
        cells
            .chunks(usize::from(width).max(1))
            .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    /// A busy run: three looks, canaries, losses, and trouble.
    fn busy() -> Model {
        let mut model = model("--connections 100000 --active 500 --message-rate 4000 --canary");
        for look in 1..=3 {
            let counts = Counts {
                established: 100_000,
                failed: 12,
                lost: 3,
                messages: 1_000 * look,
                owed: 5,
                timed: 100_000 + 1_000 * look,
                timed_us: 85_000 * look,
                ..Counts::default()
            };
            let news = News {
                rtt: Some(Duration::from_micros(20 * look)),
                slowest: Some(Duration::from_micros(25 * look)),
                lost: 0,
                not_sent: 0,
                lateness: Duration::from_micros(120),
            };
            let canaries = vec![
                ("ping 127.0.0.1".to_owned(), news),
                (
                    "connect 127.0.0.1:7000".to_owned(),
                    News {
                        rtt: None,
                        slowest: None,
                        lost: 1,
                        ..news
                    },
                ),
            ];
            let causes = Causes {
                failed: [("ETIMEDOUT".to_owned(), 12)].into(),
                lost: [
                    ("ECONNRESET".to_owned(), 2),
                    ("closed by the server".to_owned(), 1),
                ]
                .into(),
            };
            let scene = Scene {
                causes,
                canaries,
                slowest: Duration::from_micros(400 * look),
                trouble: Some(vec![
                    "445 SYN and SYN-ACK packets sent again [TCPSynRetrans]".into(),
                ]),
                ..scene(counts)
            };
            model.look(Duration::from_millis(250 * look), scene);
        }
        model.log = Some("WARN a close failed".into());
        model
    }

    #[test]
    fn a_usual_terminal_shows_all_there_is() {
        assert_eq!(
            lines(&busy(), 80, 24),
            [
                "throng-client 127.0.0.1:7000                                              q: end",
                "active      ███                       0.5 s of 10.0 s",
                "connections 99,997 of 100,000",
                "failed 12 (ETIMEDOUT 12)",
                "lost 3 (ECONNRESET 2, closed by the server 1)",
                "connects/s              0                                                    █",
                "                                                                             █",
                "messages/s              4,000, 5 owed                                        ███",
                "                                                                             ███",
                "latency                 85.0 µs, max 1.20 ms                                  ▂█",
                "                                                                             ▅██",
                "heartbeats/s            0",
                "",
                "canaries prober late by 120 µs",
                "ping 127.0.0.1          60.0 µs, 0 lost                                       ▂█",
                "                                                                             ▅██",
                "connect 127.0.0.1:7000  no answer, 3 lost",
                "",
                "host: 445 SYN and SYN-ACK packets sent again [TCPSynRetrans]",
                "WARN a close failed",
                "",
                "",
                "",
                "",
            ]
        );
    }

    #[test]
    fn a_small_terminal_shows_the_most_telling() {
        assert_eq!(
            lines(&busy(), 40, 10),
            [
                "throng-client 127.0.0.1:7000      q: end",
                "active      █     0.5 s of 10.0 s",
                "connections 99,997 of 100,000",
                "failed 12 (ETIMEDOUT 12)",
                "lost 3 (ECONNRESET 2, closed by the serv",
                "connects/s   0                       █",
                "messages/s   4,000, 5 owed           ███",
                "latency      85.0 µs, max 1.20 ms    ▂▅█",
                "heartbeats/s 0",
                "canaries prober late by 120 µs",
            ]
        );
    }

    #[test]
    fn no_size_and_no_figures_are_too_small() {
        for model in [busy(), model(""), model("--churn 5 --active 5")] {
            for (width, height) in [(0, 0), (1, 1), (5, 40), (200, 1), (3, 3), (600, 80)] {
                lines(&model, width, height);
            }
        }
    }

    #[test]
    fn times_have_three_digits() {
        let times = [0, 950, 9_994, 85_000, 1_234_567, 99_950_000, 12_345_678_901];
        let texts = times.map(|ns| time(Duration::from_nanos(ns)));
        assert_eq!(
            texts,
            [
                "0.00 µs", "0.95 µs", "9.99 µs", "85.0 µs", "1.23 ms", "100 ms", "12.3 s"
            ]
        );
    }
}
