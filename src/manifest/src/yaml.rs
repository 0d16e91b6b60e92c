//! YAML into values with places, by YAML 1.2's core schema.
//!
//! Aliases are copied, merge keys (`<<`) applied. Words that other YAML readers take for something else (`yes`, `0644`)
//! are refused unless they are in quotes, and so is what JSON cannot say. A syntax error ends the text.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::Number;

use crate::diagnostic::Report;
use crate::source::Source;
use crate::tree::{Budget, Data, Entry, MAX_DEPTH, Node, Span, refuse_duplicates};

/// Reads every document of a text; empty ones are left out. What ends the text early is reported.
pub(crate) fn parse(source: &Source, budget: &mut Budget, report: &mut Report) -> Vec<Node> {
    let mut options = granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    // Another crate of the program may have switched on the feature that makes this the default.
    options.set_emit_comments(false);
    let mut builder =
        Builder { source, budget, report, stack: Vec::new(), anchors: HashMap::new(), documents: Vec::new() };
    for event in Parser::new_from_str_with_options(source.text(), options) {
        let outcome = match event {
            Ok((event, span)) => {
                // Spans of a text that is in memory always have byte ranges.
                let range = span.byte_range().unwrap_or_default();
                builder.event(event, Span::new(range.start, range.end))
            }
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or_default();
                Err((Span::new(at, at + 1), format!("not valid YAML: {}", error.info())))
            }
        };
        if let Err((span, message)) = outcome {
            let hint = message.contains("tabs disallowed").then(|| "indent with spaces".to_owned());
            builder.report.at(source, span, message, hint);
            break;
        }
    }
    builder.documents
}

/// Puts words in quotes that [`load`](crate::load) refuses without them, in YAML that something else has written.
///
/// Writers of YAML 1.2 leave `yes` and the like bare, which older readers take for truth values. Text that is not YAML
/// comes back as it is from the first error on.
pub fn quote_doubtful(yaml: &str) -> String {
    let mut out = String::with_capacity(yaml.len());
    let mut copied = 0;
    for (event, span) in Parser::new_from_str(yaml).map_while(Result::ok) {
        let Event::Scalar(text, ScalarStyle::Plain, _, None) = event else { continue };
        if let (Plain::Doubtful { .. }, Some(range)) = (resolve(&text), span.byte_range())
            && yaml.get(range.clone()) == Some(&*text)
        {
            out.push_str(&yaml[copied..range.start]);
            // None of these words has a quote in it.
            out.extend(["'", &text, "'"]);
            copied = range.end;
        }
    }
    out.push_str(&yaml[copied..]);
    out
}

/// Why reading cannot go on.
type Fatal = (Span, String);

enum Frame {
    List { start: usize, anchor: usize, items: Vec<Node> },
    Map { start: usize, anchor: usize, entries: Vec<Entry>, merges: Vec<Entry>, key: Option<Key> },
}

/// A key whose value has not come yet.
struct Key {
    text: String,
    span: Span,
    merge: bool,
}

struct Builder<'a> {
    source: &'a Source,
    budget: &'a mut Budget,
    report: &'a mut Report,
    stack: Vec<Frame>,
    /// Anchored values, with their depth and what a copy costs.
    anchors: HashMap<usize, (Node, usize, usize)>,
    documents: Vec<Node>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Fatal> {
        match event {
            Event::DocumentStart(..) => self.budget.document().map_err(|message| (span, message)),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", span);
                self.open(Frame::List { start: span.start as usize, anchor, items: Vec::new() }, span)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", span);
                let start = span.start as usize;
                self.open(Frame::Map { start, anchor, entries: Vec::new(), merges: Vec::new(), key: None }, span)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                if self.key_is_next() {
                    let merge = plain && text == "<<";
                    self.anchor(anchor, || Node { span, data: Data::Text(text.to_string()) }, span)?;
                    self.key(Key { text: text.into_owned(), span, merge });
                    return self.spend(1, span);
                }
                let data = self.scalar(&text, style, tag.as_deref(), span);
                self.value(Node { span, data }, anchor)
            }
            Event::Alias(anchor) => {
                let Some((node, depth, cost)) = self.anchors.get(&anchor) else {
                    return Err((span, "this alias is part of what it refers to".to_owned()));
                };
                let (depth, cost) = (*depth, *cost);
                if self.stack.len() + depth > MAX_DEPTH {
                    return Err((span, too_deep()));
                }
                self.budget.spend(cost).map_err(|message| (span, message))?;
                let node = node.clone();
                self.value(node, 0)
            }
            // Comments and the ends of the stream say nothing; the others are not asked for.
            _ => Ok(()),
        }
    }

    fn spend(&mut self, cost: usize, span: Span) -> Result<(), Fatal> {
        self.budget.spend(cost).map_err(|message| (span, message))
    }

    fn open(&mut self, frame: Frame, span: Span) -> Result<(), Fatal> {
        if self.stack.len() == MAX_DEPTH {
            return Err((span, too_deep()));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), Fatal> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let end = end.end as usize;
        let (node, anchor) = match frame {
            Frame::List { start, anchor, items } => {
                (Node { span: Span::new(start, end.max(start)), data: Data::List(items) }, anchor)
            }
            Frame::Map { start, anchor, mut entries, mut merges, key: _ } => {
                refuse_duplicates(&mut entries, self.source, self.report);
                refuse_duplicates(&mut merges, self.source, self.report);
                if let Some(merge) = merges.pop() {
                    self.merge(&mut entries, merge);
                }
                (Node { span: Span::new(start, end.max(start)), data: Data::Map(entries) }, anchor)
            }
        };
        self.value(node, anchor)
    }

    /// Adds the fields of the merged mappings that are not there; earlier ones come first.
    fn merge(&mut self, entries: &mut Vec<Entry>, merge: Entry) {
        let sources = match merge.value.data {
            Data::List(items) => items,
            Data::Map(_) | Data::Null | Data::Bool(_) | Data::Number(_) | Data::Text(_) => vec![merge.value],
        };
        let mut known: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
        for node in sources {
            let Data::Map(merged) = node.data else {
                let message = "only mappings, or a list of them, can be merged by <<";
                self.report.at(self.source, merge.key_span, message, None);
                continue;
            };
            entries.extend(merged.into_iter().filter(|entry| known.insert(entry.key.clone())));
        }
    }

    fn key_is_next(&self) -> bool {
        matches!(self.stack.last(), Some(Frame::Map { key: None, .. }))
    }

    fn key(&mut self, next: Key) {
        if let Some(Frame::Map { key, .. }) = self.stack.last_mut() {
            *key = Some(next);
        }
    }

    /// Keeps a copy of an anchored value.
    fn anchor(&mut self, anchor: usize, node: impl FnOnce() -> Node, span: Span) -> Result<(), Fatal> {
        if anchor == 0 {
            return Ok(());
        }
        let node = node();
        let (depth, cost) = node.measure();
        self.spend(cost, span)?;
        self.anchors.insert(anchor, (node, depth, cost));
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn value(&mut self, node: Node, anchor: usize) -> Result<(), Fatal> {
        self.spend(1, node.span)?;
        self.anchor(anchor, || node.clone(), node.span)?;
        match self.stack.last_mut() {
            None => {
                if !matches!(node.data, Data::Null) {
                    self.documents.push(node);
                }
            }
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, merges, key, .. }) => match key.take() {
                Some(Key { text, span, merge }) => {
                    let entry = Entry { key: text, key_span: span, value: node };
                    if merge { merges.push(entry) } else { entries.push(entry) }
                }
                // Plain scalars became keys before; this is an alias, a list or a mapping.
                None => match node.data {
                    Data::Text(text) => *key = Some(Key { text, span: node.span, merge: false }),
                    Data::Null | Data::Bool(_) | Data::Number(_) | Data::List(_) | Data::Map(_) => {
                        return Err((node.span, "a key must be a word".to_owned()));
                    }
                },
            },
        }
        Ok(())
    }

    fn check_tag(&mut self, tag: Option<&Tag>, wanted: &str, span: Span) {
        if let Some(tag) = tag
            && tag.core_suffix() != Some(wanted)
        {
            self.refuse_tag(tag, span);
        }
    }

    fn refuse_tag(&mut self, tag: &Tag, span: Span) {
        self.report.at(self.source, span, format!("the tag {} means nothing here", tag.original()), None);
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Data {
        let plain = match tag {
            None => style == ScalarStyle::Plain,
            Some(tag) => match tag.core_suffix() {
                Some("str") => false,
                Some("int" | "float" | "bool" | "null") => true,
                _ => {
                    // A lone `!` says that it is text.
                    if tag.original() != "!" {
                        self.refuse_tag(tag, span);
                    }
                    false
                }
            },
        };
        if !plain {
            return Data::Text(text.to_owned());
        }
        match resolve(text) {
            Plain::Is(data) => data,
            Plain::Doubtful { why, hint } => {
                self.report.at(self.source, span, why, Some(hint));
                Data::Text(text.to_owned())
            }
        }
    }
}

fn too_deep() -> String {
    format!("nested more than {MAX_DEPTH} levels deep")
}

/// What a word without quotes means.
#[derive(Debug, PartialEq)]
enum Plain {
    Is(Data),
    Doubtful { why: String, hint: String },
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Number(a), Self::Number(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) | Self::Map(_), _) => false,
        }
    }
}

fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Is(Data::Null),
        "true" | "True" | "TRUE" => return Plain::Is(Data::Bool(true)),
        "false" | "False" | "FALSE" => return Plain::Is(Data::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => return not_finite(text),
        _ => {}
    }
    if let Some((_, value)) = [("yes", true), ("no", false), ("on", true), ("off", false)]
        .into_iter()
        .find(|(word, _)| [word.to_lowercase(), word.to_uppercase(), title(word)].iter().any(|form| form == text))
    {
        return Plain::Doubtful {
            why: format!("{text} is a truth value to some YAML readers and a word to others"),
            hint: format!("write it in quotes: {text:?}; or {value}, if that is meant"),
        };
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(digits, ".inf" | ".Inf" | ".INF") {
        return not_finite(text);
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(number) = text.strip_prefix(prefix).filter(|rest| !rest.starts_with('+'))
            && let Ok(number) = u64::from_str_radix(number, radix)
        {
            return Plain::Is(Data::Number(number.into()));
        }
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Plain::Is(Data::Text(text.to_owned()));
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        if digits.len() > 1 && digits.starts_with('0') {
            return Plain::Doubtful {
                why: format!("{text} is an octal number to some YAML readers and a decimal one to others"),
                hint: format!("write it in quotes: {text:?}; or without the leading zero"),
            };
        }
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let number = unsigned.parse::<u64>().map(Number::from).or_else(|_| unsigned.parse::<i64>().map(Number::from));
        if let Ok(number) = number {
            return Plain::Is(Data::Number(number));
        }
    }
    let float = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>() {
        Ok(number) if float => {
            Number::from_f64(number).map_or_else(|| not_finite(text), |number| Plain::Is(Data::Number(number)))
        }
        _ => Plain::Is(Data::Text(text.to_owned())),
    }
}

fn title(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

fn not_finite(text: &str) -> Plain {
    Plain::Doubtful { why: format!("{text} is not a finite number"), hint: format!("write it in quotes: {text:?}") }
}
