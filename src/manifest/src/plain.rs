//! A mapping that is no object of the API, such as the daemon's configuration: as strict, and with places.

use std::path::Path;

use ostler_core::object::DecodeError;
use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Report};
use crate::input;
use crate::source::Source;
use crate::tree::{Budget, Data, Marks, Node, Span};

/// A mapping and the places of its parts.
#[derive(Clone, Debug)]
pub struct Plain {
    values: Map<String, Value>,
    source: Source,
    marks: Marks,
}

/// Reads one mapping, in YAML or JSON, from a file. A file without any value is the empty one.
///
/// # Errors
/// What cannot be read or makes no sense, with its place.
pub fn plain(path: &Path) -> Result<Plain, Vec<Diagnostic>> {
    let name = path.display().to_string();
    let (mut budget, mut report) = (Budget::default(), Report::default());
    let loaded = match input::read_file(path, &mut budget) {
        Ok(loaded) => loaded,
        Err((message, hint)) => {
            report.whole(&name, &message, hint);
            return report.into_result(()).and_then(|()| Err(Vec::new()));
        }
    };
    let Some(source) = Source::decode(name, loaded.bytes, &mut report) else {
        return report.into_result(()).and_then(|()| Err(Vec::new()));
    };
    let mut nodes = crate::parse(&source, loaded.json, &mut budget, &mut report).into_iter();
    let empty = || Node { span: Span::default(), data: Data::Map(Vec::new()) };
    let node = nodes.next().unwrap_or_else(empty);
    if let Some(second) = nodes.next() {
        report.at(&source, second.span, "there is a second document; one mapping is wanted", None);
    }
    let span = node.span;
    let (value, marks) = node.split();
    let values = match value {
        Value::Object(values) => values,
        Value::Null => Map::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            report.at(&source, span, "a mapping of keys to values is wanted, such as \"tick: 1s\"", None);
            Map::new()
        }
    };
    report.into_result(Plain { values, source, marks })
}

impl Plain {
    /// The mapping.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// Line and column, from 1, of a key, or of the nearest part around it.
    pub fn place(&self, path: &str) -> (u32, u32) {
        self.source.place(self.marks.find(path).key().start)
    }

    /// What is wrong with some of its values, with their places.
    pub fn refuse(&self, errors: &[DecodeError]) -> Vec<Diagnostic> {
        let mut report = Report::default();
        for error in errors {
            crate::document::refuse(error, &self.source, &self.marks, &mut report);
        }
        report.into_result(()).err().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Plain, Vec<Diagnostic>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        plain(&path)
    }

    #[test]
    fn a_mapping_is_read_and_its_errors_have_places() {
        let plain = read("# words\ntick: 2s\nprobeAllow:\n- a\n- 7\n").unwrap();
        assert_eq!(Value::from(plain.values().clone()), serde_json::json!({"tick": "2s", "probeAllow": ["a", 7]}));
        assert_eq!(plain.place("probeAllow"), (3, 1));
        let wrong = DecodeError { field: "probeAllow[1]".to_owned(), message: "no".to_owned() };
        let refused = plain.refuse(&[wrong]);
        assert_eq!((refused[0].line, refused[0].column), (5, 3));
        assert!(read("# nothing\n").unwrap().values().is_empty());
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for text in ["- a\n", "a\n", "a: 1\n---\nb: 2\n", "a: 1\na: 2\n", "a: [\n"] {
            assert!(!read(text).unwrap_err().is_empty(), "{text}");
        }
        assert!(plain(Path::new("/nonexistent/config.yaml")).is_err());
    }
}
