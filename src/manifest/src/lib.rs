//! Reads manifests: YAML and JSON, from files, directories and standard input, into objects that may be sent.
//!
//! Strict: what `ostler_core` would refuse is refused here, with the same words and with file, line and column; what
//! YAML leaves in doubt (duplicate keys, words that were truth values once) is refused too. Every error of every input
//! is collected. Input is not trusted: size, nesting, aliases and the number of objects are bounded, and nothing but a
//! regular file is opened. Nothing is sent, written or executed here.

mod diagnostic;
mod document;
mod input;
mod json;
mod plain;
mod source;
mod tree;
mod yaml;

use std::collections::HashMap;
use std::path::PathBuf;

pub use diagnostic::{Diagnostic, Excerpt};
pub use document::{Document, Origin};
pub use plain::{Plain, plain};
pub use yaml::quote_doubtful;

use diagnostic::Report;
use source::Source;
use tree::Budget;

/// Largest file, in bytes; standard input likewise.
pub const MAX_FILE: u64 = 8 << 20;
/// Most bytes read by one [`load`].
pub const MAX_TOTAL: u64 = 64 << 20;
/// Most objects in one [`load`].
pub const MAX_DOCUMENTS: usize = 10_000;

/// Where manifests come from.
#[derive(Clone, Debug)]
pub enum Input {
    /// A file, or a directory, whose `.yaml`, `.yml` and `.json` files are read in the order of their names. Hidden
    /// files and directories are skipped, and directories behind symbolic links are not entered.
    Path {
        /// The file or directory.
        path: PathBuf,
        /// Whether the directories in a directory are read too.
        recursive: bool,
    },
    /// The standard input of this process, to its end. Relative paths in it are resolved against the current directory.
    Stdin,
    /// Text at hand.
    Text {
        /// What errors call it.
        name: String,
        /// The manifests, in UTF-8.
        text: Vec<u8>,
        /// What relative paths in it are resolved against.
        base: PathBuf,
    },
    /// Files that were read already, as the content of one directory: there has to be an object in one of them.
    Files {
        /// What errors about all of them call the directory.
        name: String,
        /// In the order in which they are to be read.
        files: Vec<Gathered>,
    },
}

/// A file that was read already.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// What errors call it. The ending `.json` says that it has to be JSON.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// What relative paths in it are resolved against.
    pub base: PathBuf,
}

/// Reads every object of every input, in order.
///
/// Objects come back as they were written, except that fields which only the daemon sets are gone and the paths of a
/// Process are absolute. Errors are in the order of the inputs; any error means that nothing is to be sent.
pub fn load(inputs: &[Input]) -> Result<Vec<Document>, Vec<Diagnostic>> {
    let mut report = Report::default();
    let mut budget = Budget::default();
    let mut documents = Vec::new();
    for input in inputs {
        let (errors, objects) = (report.len(), documents.len());
        let mut lists = false;
        input::each(input, &mut budget, &mut report, &mut |file, budget, report| {
            let Some(source) = Source::decode(file.name, file.bytes, report) else { return };
            let roots = parse(&source, file.json, budget, report);
            lists |= document::extend(&mut documents, roots, &source, &file.base, report);
        });
        if report.len() == errors && documents.len() == objects && !lists {
            report.whole(&input::name(input), "there is no object in it", None);
        }
    }
    refuse_repetition(&documents, &mut report);
    if let Some(extra) = documents.get(MAX_DOCUMENTS) {
        let message = format!("more than {MAX_DOCUMENTS} objects at once");
        report.whole(&extra.origin.file, &message, Some("apply them in parts".to_owned()));
    }
    report.into_result(documents)
}

/// The documents of a text. JSON where the name says so, or where the text is an object and JSON.
fn parse(source: &Source, json: bool, budget: &mut Budget, report: &mut Report) -> Vec<tree::Node> {
    if json {
        return json::parse(source, budget, report).unwrap_or_else(|error| {
            report.at(source, error.span, error.message, None);
            Vec::new()
        });
    }
    if source.text().trim_start().starts_with('{') {
        // YAML has everything JSON has but surrogate pairs in strings; only what is JSON throughout is read as such.
        let mut trial = Report::default();
        let used = budget.clone();
        if let Ok(nodes) = json::parse(source, budget, &mut trial) {
            report.append(trial);
            return nodes;
        }
        *budget = used;
    }
    yaml::parse(source, budget, report)
}

fn refuse_repetition(documents: &[Document], report: &mut Report) {
    let mut seen: HashMap<(&str, Option<&str>, &str), &Document> = HashMap::new();
    for document in documents.iter().filter(|document| !document.name.is_empty()) {
        let key = (document.kind.as_str(), document.namespace.as_deref(), document.name.as_str());
        if let Some(first) = seen.get(&key) {
            document.refuse_repetition(first, report);
        } else {
            seen.insert(key, document);
        }
    }
}
