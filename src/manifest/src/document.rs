//! From values with places to objects that may be sent.

use std::path::{Component, Path, PathBuf};

use ostler_core::object::DecodeError;
use ostler_core::{Applicable, Kind};
use serde_json::{Map, Value};

use crate::diagnostic::Report;
use crate::source::Source;
use crate::tree::{Data, Marks, Node};

/// What only the daemon sets. Taken out, so that what was read from it can be applied again.
const SERVER_SET: [&str; 9] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "ownerReferences",
    "finalizers",
];

/// One object, valid unless [`load`](crate::load) says otherwise.
#[derive(Clone, Debug)]
pub struct Document {
    /// The object as it was written, without what only the daemon sets, its paths absolute; defaults are not filled in.
    pub json: Value,
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.namespace`, where it is given.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
    /// Where the object begins.
    pub origin: Origin,
    source: Source,
    marks: Marks,
}

/// A place in an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file as it was named or found, or `<stdin>`.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Document {
    /// Line and column, from 1, of a field given as `spec.ports[1].port`, or of the nearest field around it that was
    /// written. A list or mapping is found at its key.
    pub fn place(&self, field: &str) -> (u32, u32) {
        self.source.place(self.marks.find(field).span().start)
    }

    /// Reports this object as the second one of its name.
    pub(crate) fn refuse_repetition(&self, first: &Self, report: &mut Report) {
        let (line, column) = first.place("metadata.name");
        let namespace = self.namespace.as_ref().map(|name| format!("{name}/")).unwrap_or_default();
        let message = format!(
            "{} {namespace}{} is given twice; first in {}:{line}:{column}",
            self.kind, self.name, first.origin.file
        );
        report.at(&self.source, self.marks.find("metadata.name").span(), message, None);
    }
}

/// Appends the objects of a text's values, reporting what is wrong with them. Returns whether a list was among them.
pub(crate) fn extend(
    documents: &mut Vec<Document>,
    roots: Vec<Node>,
    source: &Source,
    base: &Path,
    report: &mut Report,
) -> bool {
    let mut lists = false;
    for root in roots {
        if root.get("kind").and_then(|kind| kind.value.text()) == Some("List") {
            lists = true;
            // One more than there may be is enough for the error about it.
            let room = (crate::MAX_DOCUMENTS + 1).saturating_sub(documents.len());
            for item in items(root, source, report).into_iter().take(room) {
                documents.push(document(item, source, base, report));
            }
        } else {
            documents.push(document(root, source, base, report));
        }
    }
    lists
}

/// The items of a list, as `get` writes several objects.
fn items(root: Node, source: &Source, report: &mut Report) -> Vec<Node> {
    let span = root.span;
    let Data::Map(entries) = root.data else { return Vec::new() };
    let mut items = None;
    let mut versioned = false;
    for entry in entries {
        match entry.key.as_str() {
            "apiVersion" => {
                versioned = true;
                if entry.value.text() != Some("v1") {
                    report.at(source, entry.value.span, "List has apiVersion \"v1\"", None);
                }
            }
            "kind" | "metadata" => {}
            "items" => match entry.value.data {
                Data::List(nodes) => items = Some(nodes),
                Data::Null | Data::Bool(_) | Data::Number(_) | Data::Text(_) | Data::Map(_) => {
                    report.at(source, entry.key_span, "items must be a list of objects", None);
                    items = Some(Vec::new());
                }
            },
            other => {
                let near = ostler_core::suggest::nearest(other, ["apiVersion", "kind", "metadata", "items"]);
                let hint = near.map_or_else(|| "a List has items".to_owned(), |near| format!("did you mean {near:?}?"));
                report.at(source, entry.key_span, format!("unknown field {other:?}; {hint}"), None);
            }
        }
    }
    if !versioned {
        report.at(source, span, "apiVersion is missing", None);
    }
    items.unwrap_or_else(|| {
        report.at(source, span, "items is missing", None);
        Vec::new()
    })
}

fn document(mut node: Node, source: &Source, base: &Path, report: &mut Report) -> Document {
    drop_server_set(&mut node);
    let (line, column) = source.place(node.span.start);
    let (mut json, marks) = node.split();
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = text(json.get("kind"));
    if let Some(place) = Kind::ALL.into_iter().find(|known| known.name() == kind).and_then(command_place)
        && let Some(spec) = json.pointer_mut(place).and_then(Value::as_object_mut)
    {
        absolute_paths(spec, base);
    }
    if kind == Kind::Source.name()
        && let Some(Value::String(path)) = json.get_mut("spec").and_then(|spec| spec.get_mut("path"))
        && !path.is_empty()
    {
        *path = absolute(base, path);
    }
    for error in Applicable::from_json(&json).err().unwrap_or_default() {
        if kind == Kind::Secret.name() {
            // The line may hold a value.
            report.unseen(source, marks.find(&error.field).span(), error.message.as_str());
        } else {
            refuse(&error, source, &marks, report);
        }
    }
    let metadata = json.get("metadata");
    let namespace = text(metadata.and_then(|metadata| metadata.get("namespace")));
    Document {
        api_version: text(json.get("apiVersion")),
        kind,
        namespace: (!namespace.is_empty()).then_some(namespace),
        name: text(metadata.and_then(|metadata| metadata.get("name"))),
        origin: Origin { file: source.name().to_owned(), line, column },
        json,
        source: source.clone(),
        marks,
    }
}

fn drop_server_set(node: &mut Node) {
    let Some(entries) = node.entries_mut() else { return };
    entries.retain(|entry| entry.key != "status");
    if let Some(metadata) = entries.iter_mut().find(|entry| entry.key == "metadata")
        && let Some(entries) = metadata.value.entries_mut()
    {
        entries.retain(|entry| !SERVER_SET.contains(&entry.key.as_str()));
    }
}

/// Reports what is wrong with a field, at its place.
pub(crate) fn refuse(error: &DecodeError, source: &Source, marks: &Marks, report: &mut Report) {
    let found = marks.find(&error.field);
    if error.message.starts_with("unknown field") {
        report.at(source, found.key(), error.message.as_str(), None);
        return;
    }
    // A number or truth value where text is wanted: the text was meant, as it stands.
    let hint = found.scalar().filter(|_| error.message.starts_with("invalid type") && wants_text(&error.message));
    let hint = hint.map(|span| match source.slice(span) {
        "" | "~" | "null" => "write \"\" for an empty text".to_owned(),
        raw => format!("write it in quotes: {raw:?}"),
    });
    report.at(source, found.span(), error.message.as_str(), hint);
}

fn wants_text(message: &str) -> bool {
    ["a string", "a duration", "in quotes"].iter().any(|what| message.contains(&format!("expected {what}")))
}

/// Where a kind has its command and working directory, as a JSON pointer.
fn command_place(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Process => Some("/spec"),
        Kind::Job => Some("/spec/template"),
        Kind::CronJob => Some("/spec/jobTemplate/spec/template"),
        Kind::Namespace
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Instance
        | Kind::Source
        | Kind::External
        | Kind::Event => None,
    }
}

/// Resolves what a manifest says relative to its own place. What is not of the expected type is left to be refused.
fn absolute_paths(spec: &mut Map<String, Value>, base: &Path) {
    let resolve = |command: Option<&mut Value>| {
        if let Some(Value::String(program)) = command.and_then(|command| command.get_mut(0))
            && program.contains('/')
            // Where a variable begins the path, its value decides.
            && !program.starts_with("$(")
        {
            *program = absolute(base, program);
        }
    };
    resolve(spec.get_mut("command"));
    for hook in spec.get_mut("lifecycle").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        resolve(hook.get_mut("exec").and_then(|exec| exec.get_mut("command")));
    }
    for file in spec.get_mut("envFiles").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::String(path)) = file.get_mut("path")
            && !path.is_empty()
        {
            *path = absolute(base, path);
        }
    }
    resolve(spec.get_mut("fallback").and_then(|fallback| fallback.get_mut("command")));
    match spec.get_mut("workingDir") {
        Some(Value::String(directory)) => *directory = absolute(base, directory),
        Some(_) => {}
        None => {
            spec.insert("workingDir".to_owned(), Value::String(absolute(base, "")));
        }
    }
}

/// `path`, seen from `base`, without `.` and `..`. Symbolic links are not looked at: what they point to may change
/// until the process starts.
fn absolute(base: &Path, path: &str) -> String {
    if path.starts_with('/') {
        return normal(Path::new(path)).to_string_lossy().into_owned();
    }
    normal(&base.join(path)).to_string_lossy().into_owned()
}

fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}
