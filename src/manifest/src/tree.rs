//! Values with the place of every part of them.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::diagnostic::Report;
use crate::source::Source;

/// How deep values may be nested, so that nothing that recurses over them can overflow a stack.
pub(crate) const MAX_DEPTH: usize = 64;
/// Most values in one load, those that aliases repeat included.
const MAX_NODES: usize = 1_000_000;

/// A range of bytes of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) data: Data,
}

#[derive(Clone, Debug)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Node {
    /// The value of a key, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key),
            Data::Null | Data::Bool(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => None,
        }
    }

    /// The entries, if this is a mapping.
    pub(crate) fn entries_mut(&mut self) -> Option<&mut Vec<Entry>> {
        match &mut self.data {
            Data::Map(entries) => Some(entries),
            Data::Null | Data::Bool(_) | Data::Number(_) | Data::Text(_) | Data::List(_) => None,
        }
    }

    /// The text, if this is one.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text),
            Data::Null | Data::Bool(_) | Data::Number(_) | Data::List(_) | Data::Map(_) => None,
        }
    }

    /// How many levels it has, and what repeating it costs: its values, and its text at 32 bytes a value.
    pub(crate) fn measure(&self) -> (usize, usize) {
        let inner = |sizes: &mut dyn Iterator<Item = (usize, usize)>| {
            let (depth, cost) = sizes.fold((0, 1), |(depth, cost), (d, c)| (depth.max(d), cost + c));
            (depth + 1, cost)
        };
        match &self.data {
            Data::Null | Data::Bool(_) | Data::Number(_) => (0, 1),
            Data::Text(text) => (0, 1 + text.len() / 32),
            Data::List(items) => inner(&mut items.iter().map(Self::measure)),
            Data::Map(entries) => inner(&mut entries.iter().map(|entry| {
                let (depth, cost) = entry.value.measure();
                (depth, cost + entry.key.len() / 32)
            })),
        }
    }

    /// The value as JSON, and the places of its parts.
    pub(crate) fn split(self) -> (Value, Marks) {
        let (value, inner) = match self.data {
            Data::Null => (Value::Null, Inner::Scalar),
            Data::Bool(value) => (Value::Bool(value), Inner::Scalar),
            Data::Number(number) => (Value::Number(number), Inner::Scalar),
            Data::Text(text) => (Value::String(text), Inner::Scalar),
            Data::List(items) => {
                let (values, marks) = items.into_iter().map(Self::split).unzip();
                (Value::Array(values), Inner::List(marks))
            }
            Data::Map(entries) => {
                let (mut values, mut marks) = (Map::new(), BTreeMap::new());
                for Entry { key, key_span, value } in entries {
                    let (value, mut mark) = value.split();
                    mark.key = Some(key_span);
                    values.insert(key.clone(), value);
                    marks.insert(key, mark);
                }
                (Value::Object(values), Inner::Map(marks))
            }
        };
        (value, Marks { key: None, value: self.span, inner })
    }
}

/// The places of a value and of everything in it.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    key: Option<Span>,
    value: Span,
    inner: Inner,
}

#[derive(Clone, Debug)]
enum Inner {
    Scalar,
    List(Vec<Marks>),
    Map(BTreeMap<String, Marks>),
}

impl Marks {
    /// The part at a path such as `spec.ports[1].port`, or the nearest part around it that exists.
    pub(crate) fn find(&self, path: &str) -> &Self {
        let path = path.strip_prefix('.').unwrap_or(path);
        if path.is_empty() {
            return self;
        }
        let next = match &self.inner {
            Inner::Scalar => None,
            Inner::List(items) => {
                path.strip_prefix('[').and_then(|tail| tail.split_once(']')).and_then(|(index, rest)| {
                    let index: usize = index.parse().ok()?;
                    Some((items.get(index)?, rest))
                })
            }
            // Keys of labels have dots themselves: the longest key that fits is meant.
            Inner::Map(entries) => cuts(path).find_map(|(key, rest)| Some((entries.get(key)?, rest))),
        };
        match next {
            Some((marks, rest)) => marks.find(rest),
            None => self,
        }
    }

    /// What to point at for an error about a value: a scalar itself, else the key that holds the value.
    pub(crate) fn span(&self) -> Span {
        match (&self.inner, self.key) {
            (Inner::List(_) | Inner::Map(_), Some(key)) => key,
            (Inner::Scalar | Inner::List(_) | Inner::Map(_), _) => self.value,
        }
    }

    /// What to point at for an error about a key.
    pub(crate) fn key(&self) -> Span {
        self.key.unwrap_or(self.value)
    }

    /// The place of the value, if it is neither list nor mapping.
    pub(crate) fn scalar(&self) -> Option<Span> {
        match self.inner {
            Inner::Scalar => Some(self.value),
            Inner::List(_) | Inner::Map(_) => None,
        }
    }
}

/// Every way to cut a path into a key and the rest, the longest key first.
fn cuts(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let inner = path.char_indices().rev().filter(|(_, c)| matches!(c, '.' | '[')).map(|(at, _)| path.split_at(at));
    std::iter::once((path, "")).chain(inner)
}

/// Takes the second and later ones of equal keys out, reporting each.
pub(crate) fn refuse_duplicates(entries: &mut Vec<Entry>, source: &Source, report: &mut Report) {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|a, b| entries[*a].key.cmp(&entries[*b].key));
    let mut repeated: Vec<(usize, usize)> = Vec::new();
    let mut first = 0;
    for pair in order.windows(2) {
        if entries[pair[0]].key != entries[pair[1]].key {
            continue;
        }
        // The sort is stable, so the first of a run of equal keys came first in the text.
        if repeated.last().is_none_or(|(_, last)| *last != pair[0]) {
            first = pair[0];
        }
        repeated.push((first, pair[1]));
    }
    repeated.sort_by_key(|(_, index)| *index);
    for (first, index) in &repeated {
        // Places of errors that nobody sees are not looked for: there may be a million.
        let (line, column) = if report.is_full() { (0, 0) } else { source.place(entries[*first].key_span.start) };
        let message = format!("key {:?} is given twice; first in line {line}, column {column}", entries[*index].key);
        report.at(source, entries[*index].key_span, message, None);
    }
    let mut repeated = repeated.into_iter().map(|(_, index)| index).peekable();
    let mut index = 0;
    entries.retain(|_| {
        index += 1;
        repeated.next_if_eq(&(index - 1)).is_none()
    });
}

/// What is left of the limits of one load.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    nodes: usize,
    /// Bytes that may still be read.
    pub(crate) bytes: u64,
    /// Documents that may still begin.
    pub(crate) documents: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { nodes: MAX_NODES, bytes: crate::MAX_TOTAL, documents: crate::MAX_DOCUMENTS }
    }
}

impl Budget {
    /// Takes `cost` values; a message when there are not so many left.
    pub(crate) fn spend(&mut self, cost: usize) -> Result<(), String> {
        self.nodes = self
            .nodes
            .checked_sub(cost)
            .ok_or_else(|| format!("more than {MAX_NODES} values at once, those that aliases repeat included"))?;
        Ok(())
    }

    /// Takes one document.
    pub(crate) fn document(&mut self) -> Result<(), String> {
        let message = || format!("more than {} documents at once; apply them in parts", crate::MAX_DOCUMENTS);
        self.documents = self.documents.checked_sub(1).ok_or_else(message)?;
        Ok(())
    }
}
