//! Errors with their place, shown as compilers do.

use std::fmt;

use crate::source::Source;
use crate::tree::Span;

/// More errors than this are counted, not kept.
const MAX_DIAGNOSTICS: usize = 200;
/// Characters of a line that an excerpt shows.
const WIDTH: usize = 100;

/// One error in one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as it was named, or `<stdin>`.
    pub file: String,
    /// Line from 1; 0 when the error is about the file as a whole.
    pub line: u32,
    /// Column from 1, in characters; 0 when the error is about the file as a whole.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The line, for people.
    pub excerpt: Option<Excerpt>,
}

/// A part of a line with something in it to point at. It holds no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The part of the line.
    pub text: String,
    /// How many characters of `text` come before what is pointed at.
    pub start: usize,
    /// How many characters are pointed at; at least 1.
    pub length: usize,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", printable(&self.message))?;
        let file = printable(&self.file);
        if self.line == 0 {
            write!(f, "\n  --> {file}")?;
            if let Some(hint) = &self.hint {
                write!(f, "\n   = help: {}", printable(hint))?;
            }
            return Ok(());
        }
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        write!(f, "\n {gutter}--> {file}:{}:{}", self.line, self.column)?;
        if let Some(Excerpt { text, start, length }) = &self.excerpt {
            write!(f, "\n {gutter} |\n {number} | {text}\n {gutter} | {}{}", " ".repeat(*start), "^".repeat(*length))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n {gutter} = help: {}", printable(hint))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// Text of a manifest must not drive the terminal that an error is shown on.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c == '\t' { ' ' } else { c }).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Excerpt {
    fn new(source: &Source, span: Span) -> Self {
        let (before, after) = source.around(span.start);
        // A window around the place: a line may have megabytes.
        let long = before.chars().rev().nth(WIDTH * 3 / 4).is_some();
        let skipped = before.char_indices().rev().nth(WIDTH / 4).filter(|_| long).map_or(0, |(at, _)| at);
        let before = &before[skipped..];
        let (lead, tail) =
            (if skipped > 0 { "... " } else { "" }, if after.chars().nth(WIDTH).is_some() { " ..." } else { "" });
        let shown: String = after.chars().take(WIDTH).collect();
        let pointed = source.slice(span).lines().next().unwrap_or_default().chars().take(WIDTH).count();
        Self {
            start: lead.len() + before.chars().count(),
            length: pointed.min(shown.chars().count()).max(1),
            text: printable(&format!("{lead}{before}{shown}{tail}")),
        }
    }
}

/// Collects errors.
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: Vec<Diagnostic>,
    hidden: usize,
}

impl Report {
    /// Adds an error about a place.
    pub(crate) fn at(&mut self, source: &Source, span: Span, message: impl Into<String>, hint: Option<String>) {
        if self.is_full() {
            self.hidden += 1;
            return;
        }
        let (line, column) = source.place(span.start);
        let excerpt = Some(Excerpt::new(source, span));
        self.add(Diagnostic { file: source.name().to_owned(), line, column, message: message.into(), hint, excerpt });
    }

    /// Adds an error about a place that must not be shown.
    pub(crate) fn unseen(&mut self, source: &Source, span: Span, message: impl Into<String>) {
        let (line, column) = source.place(span.start);
        let (file, message) = (source.name().to_owned(), message.into());
        self.add(Diagnostic { file, line, column, message, hint: None, excerpt: None });
    }

    /// Whether further errors are only counted.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= MAX_DIAGNOSTICS
    }

    /// Adds an error about a whole file.
    pub(crate) fn whole(&mut self, file: &str, message: &str, hint: Option<String>) {
        let (file, message) = (file.to_owned(), message.to_owned());
        self.add(Diagnostic { file, line: 0, column: 0, message, hint, excerpt: None });
    }

    fn add(&mut self, diagnostic: Diagnostic) {
        if self.is_full() {
            self.hidden += 1;
        } else {
            self.found.push(diagnostic);
        }
    }

    /// Adds the errors of another report.
    pub(crate) fn append(&mut self, other: Self) {
        self.hidden += other.hidden;
        other.found.into_iter().for_each(|diagnostic| self.add(diagnostic));
    }

    /// How many errors there are, hidden ones included.
    pub(crate) fn len(&self) -> usize {
        self.found.len() + self.hidden
    }

    /// `value`, if nothing was found.
    pub(crate) fn into_result<T>(mut self, value: T) -> Result<T, Vec<Diagnostic>> {
        if self.hidden > 0
            && let Some(last) = self.found.last_mut()
        {
            let more = format!("{} more errors are not shown", self.hidden);
            last.hint = Some(last.hint.take().map_or(more.clone(), |hint| format!("{hint}; {more}")));
        }
        if self.found.is_empty() { Ok(value) } else { Err(self.found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, span: Span, message: &str, hint: Option<&str>) -> String {
        let mut report = Report::default();
        let source = Source::decode("web.yaml".to_owned(), text.as_bytes().to_vec(), &mut report).unwrap();
        report.at(&source, span, message, hint.map(str::to_owned));
        report.into_result(()).unwrap_err()[0].to_string()
    }

    #[test]
    fn errors_point_at_their_place() {
        let text = "spec:\n  stop:\n    gracePeriode: 5s\n";
        let expected = "error: unknown field\n  --> web.yaml:3:5\n   |\n 3 |     gracePeriode: 5s\n   |     ^^^^^^^^^^^^\
            \n   = help: look";
        assert_eq!(shown(text, Span::new(18, 30), "unknown field", Some("look")), expected);
    }

    #[test]
    fn long_lines_are_shown_in_part_and_control_characters_not_at_all() {
        let text = format!("a: {}\u{1b}[2J{}", "x".repeat(1 << 20), "y".repeat(1 << 20));
        let all = shown(&text, Span::new(3 + (1 << 20), 4 + (1 << 20)), "bad \u{1b}[2J", None);
        assert!(all.len() < 500, "{all}");
        assert!(!all.contains('\u{1b}'));
        let lines: Vec<&str> = all.lines().collect();
        let caret = lines[4].find('^').unwrap();
        assert_eq!(lines[3].chars().nth(caret), Some('\u{fffd}'));
    }
}
