//! The keys of one part of the input, taken out one by one.
//!
//! Whoever reads a part takes the keys it knows and calls [`Fields::finish`]: what nobody took becomes a note, so that a
//! key which is forgotten here is never lost in silence.

use crate::notes::Notes;
use crate::tree::{Entry, Node, Value};
use crate::units;

/// Keys not yet taken.
#[derive(Debug)]
pub(crate) struct Fields {
    /// What notes call it: the process, and the path of keys.
    pub(crate) about: String,
    entries: Vec<Entry>,
}

impl Fields {
    pub(crate) fn new(about: impl Into<String>, entries: Vec<Entry>) -> Self {
        Self { about: about.into(), entries }
    }

    /// The keys of a mapping; a note when it is none.
    pub(crate) fn of(about: impl Into<String>, node: Node, notes: &mut Notes) -> Self {
        let about = about.into();
        let entries = match node.value {
            Value::Map(entries) => entries,
            Value::Null => Vec::new(),
            Value::Text(_) | Value::List(_) => {
                notes.lost(node.line, &about, "is not a mapping of keys to values");
                Vec::new()
            }
        };
        Self { about, entries }
    }

    /// The name of a key of this part, for notes.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.about.is_empty() { key.to_owned() } else { format!("{}.{key}", self.about) }
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(at);
        (entry.node.value != Value::Null).then_some(entry)
    }

    /// The first of several names that is there.
    pub(crate) fn take_any(&mut self, keys: &[&str]) -> Option<Entry> {
        keys.iter().find_map(|key| self.take(key))
    }

    /// Every value of a key that may be repeated.
    pub(crate) fn take_all(&mut self, key: &str) -> Vec<Entry> {
        std::iter::from_fn(|| self.take(key)).collect()
    }

    /// The part below a key.
    pub(crate) fn part(&mut self, key: &str, notes: &mut Notes) -> Self {
        let about = self.path(key);
        match self.take(key) {
            Some(entry) => Self::of(about, entry.node, notes),
            None => Self::new(about, Vec::new()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries that are left.
    pub(crate) fn drain(&mut self) -> Vec<Entry> {
        std::mem::take(&mut self.entries)
    }

    /// The entries whose keys begin in one of these ways.
    pub(crate) fn drain_prefixed(&mut self, prefixes: &[&str]) -> Vec<Entry> {
        let all = self.drain();
        let (found, rest) =
            all.into_iter().partition(|entry| prefixes.iter().any(|prefix| entry.key.starts_with(prefix)));
        self.entries = rest;
        found
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        notes: &mut Notes,
        wanted: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<(T, u32)> {
        let entry = self.take(key)?;
        let value = match &entry.node.value {
            Value::Text(text) => read(text.trim()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        };
        if value.is_none() {
            notes.lost(entry.line, &self.path(key), format!("is not {wanted}, and left out"));
        }
        value.map(|value| (value, entry.line))
    }

    pub(crate) fn text(&mut self, key: &str, notes: &mut Notes) -> Option<(String, u32)> {
        self.parsed(key, notes, "a text", |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    pub(crate) fn flag(&mut self, key: &str, notes: &mut Notes) -> Option<(bool, u32)> {
        self.parsed(key, notes, "true or false", units::flag)
    }

    pub(crate) fn count(&mut self, key: &str, notes: &mut Notes) -> Option<(u64, u32)> {
        self.parsed(key, notes, "a number", |text| text.parse().ok())
    }

    pub(crate) fn factor(&mut self, key: &str, notes: &mut Notes) -> Option<(f64, u32)> {
        self.parsed(key, notes, "a number", |text| text.parse().ok().filter(|number: &f64| number.is_finite()))
    }

    /// A duration as Go writes it.
    pub(crate) fn duration(&mut self, key: &str, notes: &mut Notes) -> Option<(ostler_core::Span, u32)> {
        self.parsed(key, notes, "a duration", units::duration)
    }

    /// An amount of bytes with whatever suffix.
    pub(crate) fn bytes(&mut self, key: &str, notes: &mut Notes) -> Option<(u64, u32)> {
        self.parsed(key, notes, "an amount of bytes", units::bytes)
    }

    /// A text or a list of texts.
    pub(crate) fn texts(&mut self, key: &str, notes: &mut Notes) -> Option<(Vec<String>, u32)> {
        let entry = self.take(key)?;
        let texts = texts(&entry.node);
        if texts.is_none() {
            notes.lost(entry.line, &self.path(key), "is not a list of texts, and left out");
        }
        texts.map(|texts| (texts, entry.line))
    }

    /// Takes keys that have no equivalent, and says why.
    pub(crate) fn lost(&mut self, keys: &[&str], why: &str, notes: &mut Notes) {
        for key in keys {
            for entry in self.take_all(key) {
                notes.lost(entry.line, &self.path(key), why);
            }
        }
    }

    /// Takes keys that have nearly an equivalent, and says how it differs.
    pub(crate) fn near(&mut self, keys: &[&str], how: &str, notes: &mut Notes) {
        for key in keys {
            for entry in self.take_all(key) {
                notes.near(entry.line, &self.path(key), how);
            }
        }
    }

    /// Takes keys that concern the other manager only.
    pub(crate) fn hint(&mut self, keys: &[&str], what: &str, notes: &mut Notes) {
        for key in keys {
            for entry in self.take_all(key) {
                notes.hint(entry.line, &self.path(key), what);
            }
        }
    }

    /// Takes keys that say what is so anyway.
    pub(crate) fn skip(&mut self, keys: &[&str]) {
        for key in keys {
            self.take_all(key);
        }
    }

    /// Says what nobody took.
    pub(crate) fn finish(mut self, notes: &mut Notes) {
        for entry in self.drain() {
            if entry.node.value != Value::Null {
                notes.lost(entry.line, &self.path(&entry.key), "is not known here, and left out");
            }
        }
    }
}

/// A text, or a list of texts.
pub(crate) fn texts(node: &Node) -> Option<Vec<String>> {
    match &node.value {
        Value::Text(text) => Some(vec![text.clone()]),
        Value::List(items) => items
            .iter()
            .map(|item| match &item.value {
                Value::Text(text) => Some(text.clone()),
                Value::Null => Some(String::new()),
                Value::List(_) | Value::Map(_) => None,
            })
            .collect(),
        Value::Null | Value::Map(_) => None,
    }
}
