//! YAML, and the JSON that PM2 accepts, as a tree with lines.
//!
//! More lenient than manifests: words keep their text, so that `yes` is whatever the reader of the key takes it for.
//! Bounded all the same: the parser limits nesting, and aliases may not multiply.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};

use crate::Error;

const MAX_DEPTH: usize = 64;
/// Most values, those that aliases repeat included.
const MAX_NODES: usize = 200_000;

/// A value, and the line where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `null`, or nothing at all.
    Null,
    /// A word, a number, a truth value, a text.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: u32,
    pub(crate) node: Node,
}

impl Value {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node.value),
            Self::Null | Self::Text(_) | Self::List(_) => None,
        }
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = &Value> {
        let items = match self {
            Self::List(items) => items.as_slice(),
            Self::Null | Self::Text(_) | Self::Map(_) => &[],
        };
        items.iter().map(|item| &item.value)
    }

    fn size(&self) -> usize {
        1 + match self {
            Self::Null | Self::Text(_) => 0,
            Self::List(items) => items.iter().map(|item| item.value.size()).sum(),
            Self::Map(entries) => entries.iter().map(|entry| entry.node.value.size()).sum(),
        }
    }
}

/// The first document of a text.
pub(crate) fn parse(text: &str) -> Result<Node, Error> {
    let plain;
    let text = if text.trim_start().starts_with(['{', '[']) || text.trim_start().starts_with("//") {
        plain = plain_json(text);
        &plain
    } else {
        text
    };
    let lines: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line_of = |offset: usize| lines.partition_point(|start| *start <= offset) as u32;
    let mut options = granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    options.set_emit_comments(false);
    let mut builder = Builder { stack: Vec::new(), anchors: HashMap::new(), root: None, nodes: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| Error::Syntax {
            line: line_of(error.marker().byte_offset().unwrap_or_default()),
            message: format!("not valid YAML: {}", error.info()),
        })?;
        let line = line_of(span.byte_range().unwrap_or_default().start);
        if matches!(event, Event::DocumentStart(..)) && builder.root.is_some() {
            return Err(Error::Syntax { line, message: "more than one YAML document in a file".to_owned() });
        }
        builder.event(event, line).map_err(|message| Error::Syntax { line, message })?;
    }
    Ok(builder.root.unwrap_or(Node { line: 1, value: Value::Null }))
}

enum Frame {
    List(u32, usize, Vec<Node>),
    Map(u32, usize, Vec<Entry>, Vec<Node>, Option<(String, u32)>),
}

struct Builder {
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    nodes: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, line: u32) -> Result<(), String> {
        match event {
            Event::SequenceStart(_, anchor, _) => self.stack.push(Frame::List(line, anchor, Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.stack.push(Frame::Map(line, anchor, Vec::new(), Vec::new(), None));
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Frame::List(line, anchor, items)) => {
                    return self.value(Node { line, value: Value::List(items) }, anchor);
                }
                Some(Frame::Map(line, anchor, mut entries, merges, _)) => {
                    merge(&mut entries, merges)?;
                    return self.value(Node { line, value: Value::Map(entries) }, anchor);
                }
                None => {}
            },
            Event::Scalar(text, style, anchor, tag) => {
                let null = style == ScalarStyle::Plain
                    && tag.is_none()
                    && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                if let Some(Frame::Map(_, _, _, _, key @ None)) = self.stack.last_mut() {
                    *key = Some((text.into_owned(), line));
                    return Ok(());
                }
                let value = if null { Value::Null } else { Value::Text(text.into_owned()) };
                return self.value(Node { line, value }, anchor);
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned().ok_or("this alias is part of what it refers to")?;
                self.nodes += node.value.size();
                return self.value(node, 0);
            }
            _ => {}
        }
        Ok(())
    }

    fn value(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES || self.stack.len() > MAX_DEPTH {
            return Err("too much for a configuration file; do aliases multiply?".to_owned());
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::List(_, _, items)) => items.push(node),
            Some(Frame::Map(_, _, entries, merges, key)) => match key.take() {
                Some((key, _)) if key == "<<" => merges.push(node),
                Some((key, line)) => {
                    if entries.iter().any(|entry| entry.key == key) {
                        return Err(format!("key {key:?} is given twice"));
                    }
                    entries.push(Entry { key, line, node });
                }
                None => return Err("a key must be a word".to_owned()),
            },
        }
        Ok(())
    }
}

/// Adds what `<<` refers to, where it is not given.
fn merge(entries: &mut Vec<Entry>, merges: Vec<Node>) -> Result<(), String> {
    for node in merges {
        let maps = match node.value {
            Value::List(items) => items,
            Value::Null | Value::Text(_) | Value::Map(_) => vec![node],
        };
        for map in maps {
            let Value::Map(more) = map.value else { return Err("only mappings can be merged by <<".to_owned()) };
            for entry in more {
                if entries.iter().all(|known| known.key != entry.key) {
                    entries.push(entry);
                }
            }
        }
    }
    Ok(())
}

/// JSON as JavaScript takes it, in terms of YAML: comments and tabs become spaces, and pairs of surrogates one escape.
/// Lines stay where they are.
fn plain_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some(_), '\\') => {
                if let Some((both, length)) = surrogates(&text[at..]) {
                    out.extend(["\\U", &format!("{both:08X}")]);
                    chars.nth(length - 2);
                } else {
                    out.push(c);
                    out.extend(chars.next().map(|(_, c)| c));
                }
            }
            (Some(open), c) => {
                out.push(c);
                if c == open {
                    quote = None;
                }
            }
            (None, '"' | '\'') => {
                out.push(c);
                quote = Some(c);
            }
            (None, '/') if text[at..].starts_with("//") => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            (None, '/') if text[at..].starts_with("/*") => {
                let end = text[at + 2..].find("*/").map_or(text.len(), |end| at + end + 4);
                while let Some((_, c)) = chars.next_if(|(at, _)| *at < end) {
                    out.push(if c == '\n' { '\n' } else { ' ' });
                }
            }
            (None, '\t') => out.push(' '),
            (None, c) => out.push(c),
        }
    }
    out
}

/// The character that `\uD83D\uDE00` stands for, and how long that is.
fn surrogates(text: &str) -> Option<(u32, usize)> {
    let half = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (high, low) = (half(0)?, half(6)?);
    let pair = (0xd800..0xdc00).contains(&high) && (0xdc00..0xe000).contains(&low);
    pair.then(|| (0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00), 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(node: &'a Node, key: &str) -> &'a str {
        match node.value.get(key) {
            Some(Value::Text(text)) => text,
            other => panic!("{key} is {other:?}"),
        }
    }

    #[test]
    fn json_may_have_what_javascript_allows() {
        let tree =
            parse("{\n\t// a comment\n\t\"a\": \"http://x\", /* more\n*/ b: 'it', \"c\": \"\\ud83d\\ude00\\/\",\n}")
                .unwrap();
        assert_eq!((text(&tree, "a"), text(&tree, "b"), text(&tree, "c")), ("http://x", "it", "\u{1f600}/"));
        let Value::Map(entries) = &tree.value else { panic!("{tree:?}") };
        assert_eq!(entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [3, 4, 4]);
    }

    #[test]
    fn merges_and_aliases_are_followed_but_may_not_multiply() {
        let tree = parse("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  b: 3\n").unwrap();
        let y = tree.value.get("y").unwrap();
        assert_eq!(y.get("a"), Some(&Value::Text("1".to_owned())));
        assert_eq!(y.get("b"), Some(&Value::Text("3".to_owned())));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let last = n - 1;
            let line = format!("a{n}: &a{n} [{}]\n", vec![format!("*a{last}"); 10].join(", "));
            bomb.push_str(&line);
        }
        assert!(matches!(parse(&bomb), Err(Error::Syntax { .. })));
    }

    #[test]
    fn mistakes_have_lines() {
        assert_eq!(
            parse("a: 1\nb: 2\na: 3\n"),
            Err(Error::Syntax { line: 3, message: "key \"a\" is given twice".to_owned() })
        );
        assert!(matches!(parse("a: [1\nb: 2\n"), Err(Error::Syntax { .. })));
    }
}
