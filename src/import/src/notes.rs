//! What could not be carried over, said so that somebody can act on it.

use std::fmt;

/// What an import means for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It has no equivalent and is left out.
    Lost,
    /// The manifest comes near, but does not mean the same.
    Approximated,
    /// The manifest means the same, or the key concerned the other manager itself; here is what to know.
    Hint,
}

impl Effect {
    /// The word that notes begin with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "no equivalent",
            Self::Approximated => "approximated",
            Self::Hint => "note",
        }
    }
}

/// One remark about one place of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Line, from 1; 0 for the file as a whole.
    pub line: u32,
    /// What it means.
    pub effect: Effect,
    /// The process, and the key in it: `web.shutdown.command`; empty for the file as a whole.
    pub about: String,
    /// Why, and what to do.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.effect.name())?;
        if !self.about.is_empty() {
            write!(f, "{}: ", self.about)?;
        }
        // Text of the input must not drive the terminal.
        for c in self.message.chars() {
            let shown = if c.is_control() { '\u{fffd}' } else { c };
            fmt::Write::write_char(f, shown)?;
        }
        Ok(())
    }
}

/// Collects notes.
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Note>);

impl Notes {
    pub(crate) fn add(&mut self, effect: Effect, line: u32, about: &str, message: impl Into<String>) {
        let note = Note { line, effect, about: about.to_owned(), message: message.into() };
        if !self.0.contains(&note) {
            self.0.push(note);
        }
    }

    pub(crate) fn lost(&mut self, line: u32, about: &str, message: impl Into<String>) {
        self.add(Effect::Lost, line, about, message);
    }

    pub(crate) fn near(&mut self, line: u32, about: &str, message: impl Into<String>) {
        self.add(Effect::Approximated, line, about, message);
    }

    pub(crate) fn hint(&mut self, line: u32, about: &str, message: impl Into<String>) {
        self.add(Effect::Hint, line, about, message);
    }

    /// In the order of the text.
    pub(crate) fn sorted(mut self) -> Vec<Note> {
        self.0.sort_by_key(|note| note.line);
        self.0
    }
}
