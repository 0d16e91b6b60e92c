//! JSON into values with places: one or more values, one after another. Standard JSON, nothing more.

use serde_json::Number;

use crate::diagnostic::Report;
use crate::source::Source;
use crate::tree::{Budget, Data, Entry, MAX_DEPTH, Node, Span, refuse_duplicates};

/// Why and where a text is not JSON.
pub(crate) struct SyntaxError {
    pub(crate) span: Span,
    pub(crate) message: String,
}

/// Reads every value of a text. Duplicate keys are reported and do not end it; a syntax error does.
pub(crate) fn parse(source: &Source, budget: &mut Budget, report: &mut Report) -> Result<Vec<Node>, SyntaxError> {
    let mut reader = Reader { source, text: source.text(), at: 0, depth: 0, budget, report };
    let mut nodes = Vec::new();
    reader.blank();
    while reader.at < reader.text.len() {
        let start = reader.at;
        reader.budget.document().map_err(|message| SyntaxError { span: Span::new(start, start + 1), message })?;
        nodes.push(reader.value()?);
        reader.blank();
    }
    Ok(nodes)
}

struct Reader<'a> {
    source: &'a Source,
    text: &'a str,
    at: usize,
    depth: usize,
    budget: &'a mut Budget,
    report: &'a mut Report,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, SyntaxError> {
        Err(SyntaxError { span: Span::new(self.at, self.at + 1), message: message.into() })
    }

    fn expected<T>(&self, what: &str) -> Result<T, SyntaxError> {
        match self.text[self.at..].chars().next() {
            Some(found) => self.error(format!("not valid JSON: expected {what}, found {found:?}")),
            None => self.error(format!("not valid JSON: expected {what}, found the end")),
        }
    }

    fn value(&mut self) -> Result<Node, SyntaxError> {
        let start = self.at;
        if let Err(message) = self.budget.spend(1) {
            return self.error(message);
        }
        let data = match self.peek() {
            Some(b'{') => self.nested(Self::map)?,
            Some(b'[') => self.nested(Self::list)?,
            Some(b'"') => Data::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => Data::Number(self.number()?),
            _ => self.word()?,
        };
        Ok(Node { span: Span::new(start, self.at), data })
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Data, SyntaxError>) -> Result<Data, SyntaxError> {
        if self.depth == MAX_DEPTH {
            return self.error(format!("nested more than {MAX_DEPTH} levels deep"));
        }
        self.depth += 1;
        self.at += 1;
        let data = read(self)?;
        self.depth -= 1;
        Ok(data)
    }

    /// Whether another element follows; otherwise `close` was read.
    fn more(&mut self, first: bool, close: u8, what: &str) -> Result<bool, SyntaxError> {
        self.blank();
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                self.blank();
                Ok(true)
            }
            _ if first => Ok(true),
            _ => self.expected(what),
        }
    }

    fn list(&mut self) -> Result<Data, SyntaxError> {
        let mut items = Vec::new();
        while self.more(items.is_empty(), b']', "',' or ']'")? {
            items.push(self.value()?);
        }
        Ok(Data::List(items))
    }

    fn map(&mut self) -> Result<Data, SyntaxError> {
        let mut entries = Vec::new();
        while self.more(entries.is_empty(), b'}', "',' or '}'")? {
            let start = self.at;
            if self.peek() != Some(b'"') {
                return self.expected("a key in double quotes");
            }
            let key = self.string()?;
            let key_span = Span::new(start, self.at);
            self.blank();
            if self.peek() != Some(b':') {
                return self.expected("':'");
            }
            self.at += 1;
            self.blank();
            entries.push(Entry { key, key_span, value: self.value()? });
        }
        refuse_duplicates(&mut entries, self.source, self.report);
        Ok(Data::Map(entries))
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut end = start + 1;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(b'\n') | None => return self.error("not valid JSON: this string has no end"),
                Some(_) => end += 1,
            }
        }
        let Ok(text) = serde_json::from_str(&self.text[start..=end]) else {
            return self.error("not valid JSON: this string has an invalid escape or a control character");
        };
        self.at = end + 1;
        Ok(text)
    }

    fn number(&mut self) -> Result<Number, SyntaxError> {
        let rest = &self.text[self.at..];
        let length = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')).unwrap_or(rest.len());
        let Ok(number) = serde_json::from_str(&rest[..length]) else {
            return self.error("not valid JSON: not a number, or one that is too large");
        };
        self.at += length;
        Ok(number)
    }

    fn word(&mut self) -> Result<Data, SyntaxError> {
        for (word, data) in [("true", Data::Bool(true)), ("false", Data::Bool(false)), ("null", Data::Null)] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(data);
            }
        }
        self.expected("a value")
    }
}
