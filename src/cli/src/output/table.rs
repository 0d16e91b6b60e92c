//! Tables as kubectl draws them: upper-case headers, three spaces between columns, nothing else.

use std::io::{self, Write};

/// How a cell stands out on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Style {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
}

impl Style {
    /// What a phase or the status of a process means to the reader.
    pub(crate) fn of_status(status: &str) -> Style {
        match status {
            "Running" | "Available" | "Ready" | "Active" | "Synced" | "Healthy" => Style::Good,
            "Pending" | "Starting" | "Stopping" | "Progressing" | "Terminating" | "Backoff" => Style::Busy,
            "Failed" | "Stuck" | "Lost" | "Unknown" | "Warning" | "OutOfSync" | "Degraded" => Style::Bad,
            _ => Style::Plain,
        }
    }

    /// The escape sequence that begins it; nothing for plain text.
    pub(crate) fn escape(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Good => "\x1b[32m",
            Style::Busy => "\x1b[33m",
            Style::Bad => "\x1b[31m",
        }
    }
}

/// Text between its style's escape sequences.
pub(crate) fn paint(text: &str, style: Style, color: bool) -> String {
    if color && style != Style::Plain { format!("{}{text}\x1b[0m", style.escape()) } else { text.to_owned() }
}

/// One field of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) style: Style,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.into(), style: Style::Plain }
    }
}

/// A cell coloured by what its text means.
pub(crate) fn status(text: impl Into<String>) -> Cell {
    let text = text.into();
    let style = Style::of_status(&text);
    Cell { text, style }
}

/// Draws rows; keeps the widths, so that rows of a watch stay below their headers.
#[derive(Debug, Default)]
pub(crate) struct Printer {
    widths: Vec<usize>,
    color: bool,
}

const GAP: usize = 3;

impl Printer {
    pub(crate) fn new(color: bool) -> Self {
        Printer { widths: Vec::new(), color }
    }

    /// Makes room for a row, before anything is drawn.
    fn fit(&mut self, row: &[Cell]) {
        self.widths.resize(self.widths.len().max(row.len()), 0);
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }

    /// Draws rows, all as wide as the widest so far.
    pub(crate) fn print(&mut self, out: &mut dyn Write, rows: &[Vec<Cell>]) -> io::Result<()> {
        for row in rows {
            self.fit(row);
        }
        let mut line = String::new();
        for row in rows {
            line.clear();
            for (index, cell) in row.iter().enumerate() {
                let escape = if self.color { cell.style.escape() } else { "" };
                line.push_str(escape);
                // A line break in a message would look like another row.
                line.extend(cell.text.chars().map(|c| if c.is_control() { ' ' } else { c }));
                if !escape.is_empty() {
                    line.push_str("\x1b[0m");
                }
                if index + 1 < row.len() {
                    let pad = self.widths[index] + GAP - cell.text.chars().count();
                    line.extend(std::iter::repeat_n(' ', pad));
                }
            }
            out.write_all(line.trim_end().as_bytes())?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// A row of plain text.
pub(crate) fn row<const N: usize>(texts: [&str; N]) -> Vec<Cell> {
    texts.into_iter().map(Cell::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(printer: &mut Printer, rows: &[Vec<Cell>]) -> String {
        let mut out = Vec::new();
        printer.print(&mut out, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut printer = Printer::new(false);
        let text = drawn(&mut printer, &[row(["NAME", "AGE"]), row(["web-0", "5s"]), row(["é", ""])]);
        assert_eq!(text, "NAME    AGE\nweb-0   5s\né\n");
        assert_eq!(drawn(&mut printer, &[row(["db", "1m"])]), "db      1m\n");
    }

    #[test]
    fn colours_do_not_count_as_width() {
        let mut printer = Printer::new(true);
        let text = drawn(&mut printer, &[vec![status("Running"), "x".into()], vec![status("Bad"), "y".into()]]);
        assert_eq!(text, "\x1b[32mRunning\x1b[0m   x\nBad       y\n");
    }

    #[test]
    fn control_characters_cannot_break_a_row() {
        assert_eq!(drawn(&mut Printer::new(false), &[row(["a\nb", "c"])]), "a b   c\n");
    }
}
