//! What was measured: statistics, the table and the JSON.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Value, json};

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Only reported.
    None,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// For `--only`, and in the JSON.
    pub(crate) name: &'static str,
    /// What it is, for people.
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
    /// The median, unless `what` says otherwise.
    pub(crate) value: f64,
    /// What each repetition gave.
    pub(crate) samples: Vec<f64>,
    /// The parts of the value: the baseline, a spread, a count.
    pub(crate) note: String,
}

impl Figure {
    /// The median of `samples`.
    pub(crate) fn median(
        name: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        target: Target,
        samples: Vec<f64>,
    ) -> Self {
        Self { name, what: what.into(), unit, target, value: median(&samples), samples, note: String::new() }
    }

    /// The ratio of the medians of ours and of a baseline, which were measured in the same unit.
    pub(crate) fn ratio(
        name: &'static str,
        what: impl Into<String>,
        target: Target,
        ours: &[f64],
        raw: &[f64],
        unit: &str,
    ) -> Self {
        let samples = ours.iter().zip(raw).map(|(ours, raw)| ours / raw).collect();
        let note = format!("ours {} {unit}, raw {} {unit}", number(median(ours)), number(median(raw)));
        Self { name, what: what.into(), unit: "x", target, value: median(ours) / median(raw), samples, note }
    }

    pub(crate) fn note(mut self, note: impl AsRef<str>) -> Self {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(note.as_ref());
        self
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match self.target {
            Target::AtMost(limit) if self.value <= limit => "ok",
            Target::AtLeast(limit) if self.value >= limit => "ok",
            Target::AtMost(_) | Target::AtLeast(_) => "missed",
            Target::None => "-",
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::AtMost(limit) => format!("<= {limit} {}", self.unit),
            Target::AtLeast(limit) => format!(">= {limit} {}", self.unit),
            Target::None => String::from("-"),
        }
    }

    pub(crate) fn json(&self) -> Value {
        let target = match self.target {
            Target::AtMost(limit) => json!({"atMost": limit}),
            Target::AtLeast(limit) => json!({"atLeast": limit}),
            Target::None => Value::Null,
        };
        json!({
            "name": self.name, "what": self.what, "unit": self.unit, "target": target, "value": self.value,
            "samples": self.samples, "verdict": self.verdict(), "note": self.note,
        })
    }
}

/// As one line, for who waits.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.what, number(self.value), self.unit)?;
        if self.target != Target::None {
            write!(f, " ({}: {})", self.target(), self.verdict())?;
        }
        if !self.note.is_empty() {
            write!(f, "; {}", self.note)?;
        }
        Ok(())
    }
}

/// Prints the table.
pub(crate) fn table(out: &mut dyn Write, figures: &[Figure]) -> io::Result<()> {
    let mut rows = vec![["NAME", "FIGURE", "TARGET", "MEASURED", "VERDICT", "NOTE"].map(String::from)];
    rows.extend(figures.iter().map(|figure| {
        let measured = format!("{} {}", number(figure.value), figure.unit);
        let verdict = figure.verdict().to_owned();
        [figure.name.to_owned(), figure.what.clone(), figure.target(), measured, verdict, figure.note.clone()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Three significant digits, or all of a large number.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle one; of an even number the mean of the two middle ones. NaN for none, which fails every target.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let sorted = sorted(samples);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The smallest one that `share` of them (0 to 1) do not exceed.
pub(crate) fn percentile(samples: &[f64], share: f64) -> f64 {
    let sorted = sorted(samples);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or(f64::NAN)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_textbook() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert!((percentile(&hundred, 0.5) - 50.0).abs() < 1e-9);
        assert!((percentile(&hundred, 0.99) - 99.0).abs() < 1e-9);
        assert!((percentile(&hundred, 1.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_measured_meets_no_target() {
        let none = Figure::median("x", "x", "ms", Target::AtMost(1.0), Vec::new());
        assert_eq!(none.verdict(), "missed");
    }

    #[test]
    fn a_ratio_is_judged_on_the_right_side_of_its_target() {
        let ratio = |target| Figure::ratio("x", "x", target, &[20.0, 30.0, 40.0], &[10.0, 10.0, 10.0], "ms").verdict();
        assert_eq!(ratio(Target::AtMost(3.0)), "ok");
        assert_eq!(ratio(Target::AtMost(2.9)), "missed");
        assert_eq!(ratio(Target::AtLeast(3.0)), "ok");
        assert_eq!(ratio(Target::AtLeast(3.1)), "missed");
    }

    #[test]
    fn the_table_keeps_its_columns() {
        let figure = Figure::median("start", "a b", "ms", Target::AtMost(20.0), vec![12.34]).note("why");
        let mut out = Vec::new();
        table(&mut out, &[figure]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "NAME   FIGURE  TARGET    MEASURED  VERDICT  NOTE\nstart  a b     <= 20 ms  12.3 ms   ok       why\n"
        );
    }
}
