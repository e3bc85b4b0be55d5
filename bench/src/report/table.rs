//! A table with aligned columns: the first to the left, the others to the right. Pure.

use crate::screen::Paint;

/// Rows of cells under a heading.
#[derive(Debug, Default)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first heading cell says what it is about.
    pub fn new(heading: impl IntoIterator<Item = String>) -> Self {
        Self {
            heading: heading.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that it lacks at its end stay empty.
    pub fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(std::iter::once(format!("  {name}")).chain(cells).collect());
    }

    /// The cells of its heading.
    pub fn heading(&self) -> &[String] {
        &self.heading
    }

    /// The cells of its rows; the first is indented under what it belongs to.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// The table, its heading bold, without spaces at line ends.
    pub fn render(&self, paint: Paint) -> String {
        let heading = self.line(&self.heading);
        let rows = self.rows.iter().map(|row| self.line(row));
        std::iter::once(paint.bold(&heading))
            .chain(rows)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn line(&self, cells: &[String]) -> String {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = self.width(column);
            if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self
            .rows
            .iter()
            .chain([&self.heading])
            .filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_letters() {
        let mut table = Table::new(["echo", "uring", "ratio"].map(String::from));
        table.row("CPU", ["7 µs", "0.9"].map(String::from));
        table.row("messages a second", ["100,000".to_owned()]);
        assert_eq!(
            table.render(Paint::plain()),
            "echo                    uring   ratio\n  CPU                    7 µs     0.9\n  messages a second   100,000"
        );
    }
}
