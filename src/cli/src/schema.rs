//! What `ostler explain` knows: the published schemas of the kinds, read as kubectl explains them.

use std::collections::BTreeMap;
use std::fmt::Write;

use ostler_core::suggest;
use serde_json::Value;

use crate::error::Error;
use crate::kinds::{self, Kind};

fn source(kind: Kind) -> &'static str {
    match kind {
        Kind::ConfigMap => include_str!("../../../api/configmap.v1.json"),
        Kind::Secret => include_str!("../../../api/secret.v1.json"),
        Kind::Process => include_str!("../../../api/process.v1.json"),
        Kind::Job => include_str!("../../../api/job.v1.json"),
        Kind::CronJob => include_str!("../../../api/cronjob.v1.json"),
        Kind::Instance => include_str!("../../../api/instance.v1.json"),
        Kind::Namespace => include_str!("../../../api/namespace.v1.json"),
        Kind::Source => include_str!("../../../api/source.v1.json"),
        Kind::External => include_str!("../../../api/external.v1.json"),
        Kind::Event => include_str!("../../../api/event.v1.json"),
    }
}

/// The text for `process.spec.stop`.
pub(crate) fn explain(path: &str, recursive: bool) -> Result<String, Error> {
    let mut words = path.split('.');
    let kind = kinds::parse(words.next().unwrap_or_default())?;
    let root: Value = serde_json::from_str(source(kind))?;
    let fields: Vec<&str> = words.map(|word| word.split('[').next().unwrap_or(word)).collect();
    let schema = Schema { root: &root };
    schema.explain(kind, &fields, recursive)
}

struct Schema<'v> {
    root: &'v Value,
}

/// A field's schema with everything that refers elsewhere resolved.
struct Resolved<'v> {
    /// The nearest schema with content.
    content: &'v Value,
    /// From the outermost that has one: it speaks of this field and not of the type.
    description: Option<&'v str>,
    default: Option<&'v Value>,
    /// Name of the type, where the schema has one.
    name: Option<&'v str>,
}

impl<'v> Schema<'v> {
    fn resolve(&self, schema: &'v Value) -> Resolved<'v> {
        let mut resolved = Resolved { content: schema, description: None, default: None, name: None };
        loop {
            let current = resolved.content;
            resolved.description = resolved.description.or_else(|| current["description"].as_str());
            resolved.default = resolved.default.or_else(|| current.get("default"));
            let next = if let Some(reference) = current["$ref"].as_str() {
                let name = reference.rsplit('/').next().unwrap_or(reference);
                resolved.name = Some(name);
                self.root["$defs"].get(name)
            } else if let Some([only]) = current["allOf"].as_array().map(Vec::as_slice) {
                Some(only)
            } else if let Some(options) = current["anyOf"].as_array() {
                // What may be left out is written as "this or null".
                let mut real = options.iter().filter(|option| option["type"] != "null");
                match (real.next(), real.next()) {
                    (Some(only), None) => Some(only),
                    _ => None,
                }
            } else {
                None
            };
            match next {
                Some(next) => resolved.content = next,
                None => return resolved,
            }
        }
    }

    /// "[]string", "Stop", "map[string]string"
    fn type_name(&self, schema: &'v Value) -> String {
        let resolved = self.resolve(schema);
        let content = resolved.content;
        let kind = match &content["type"] {
            Value::String(kind) => Some(kind.as_str()),
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            _ => None,
        };
        match kind {
            Some("array") => format!("[]{}", self.type_name(&content["items"])),
            Some("object") if content["additionalProperties"].is_object() => {
                format!("map[string]{}", self.type_name(&content["additionalProperties"]))
            }
            Some("object") => resolved.name.unwrap_or("Object").to_owned(),
            Some(kind) => match resolved.name {
                Some(name) if values(content).is_empty() => format!("{kind} ({name})"),
                Some(_) | None => kind.to_owned(),
            },
            None if !values(content).is_empty() => "string".into(),
            None => {
                let options = content["anyOf"].as_array().or(content["oneOf"].as_array());
                let mut names: Vec<String> =
                    options.into_iter().flatten().map(|option| self.type_name(option)).collect();
                names.dedup();
                if names.is_empty() { resolved.name.unwrap_or("any").to_owned() } else { names.join(" or ") }
            }
        }
    }

    /// The fields of an object, of the elements of an array, or of the values of a map; and which of them are needed.
    fn fields(&self, schema: &'v Value) -> Option<(BTreeMap<&'v str, &'v Value>, Vec<&'v str>)> {
        let content = self.resolve(schema).content;
        let mut fields = BTreeMap::new();
        let required = content["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        fields.extend(content["properties"].as_object().into_iter().flatten().map(|(name, field)| (&**name, field)));
        // What may be one of several things has the fields of all of them.
        for option in ["oneOf", "anyOf"].iter().filter_map(|key| content[*key].as_array()).flatten() {
            fields.extend(self.fields(option).into_iter().flat_map(|(fields, _)| fields));
        }
        if !fields.is_empty() {
            return Some((fields, required));
        }
        let inner = [&content["items"], &content["additionalProperties"]].into_iter().find(|inner| inner.is_object());
        self.fields(inner?)
    }

    fn explain(&self, kind: Kind, path: &[&str], recursive: bool) -> Result<String, Error> {
        let mut schema = self.root;
        let mut walked = kind.singular().to_owned();
        let mut field = None;
        for word in path {
            let Some((fields, required)) = self.fields(schema) else {
                return Err(Error::failed(format!("{walked} has no fields"), ""));
            };
            let Some(next) = fields.get(*word) else {
                let hint = suggest::nearest(word, fields.keys().copied()).map_or_else(
                    || format!("its fields are {}", fields.keys().copied().collect::<Vec<_>>().join(", ")),
                    |near| format!("did you mean \"{near}\"?"),
                );
                return Err(Error::failed(format!("{walked} has no field \"{word}\""), hint));
            };
            schema = next;
            field = Some((*word, required.contains(word)));
            let _ = write!(walked, ".{word}");
        }
        Ok(self.text(kind, schema, field, recursive))
    }

    fn text(&self, kind: Kind, schema: &'v Value, field: Option<(&str, bool)>, recursive: bool) -> String {
        let mut out = String::new();
        let version = kind.api_version();
        if let Some((group, version)) = version.split_once('/') {
            let _ = writeln!(out, "GROUP:      {group}\nKIND:       {kind}\nVERSION:    {version}");
        } else {
            let _ = writeln!(out, "KIND:       {kind}\nVERSION:    {version}");
        }
        let resolved = self.resolve(schema);
        if let Some((name, required)) = field {
            let required = if required { " -required-" } else { "" };
            let _ = writeln!(out, "\nFIELD: {name} <{}>{required}", self.type_name(schema));
        }
        let values = values(resolved.content);
        if !values.is_empty() {
            let _ = writeln!(out, "ENUM:");
            for (value, description) in values {
                let _ = match description {
                    Some(description) => writeln!(out, "    {value}: {}", one_line(description)),
                    None => writeln!(out, "    {value}"),
                };
            }
        }
        if let Some(default) = resolved.default.filter(|default| !default.is_null() && !default.is_object()) {
            let _ = writeln!(out, "DEFAULT: {default}");
        }
        out.push_str("\nDESCRIPTION:\n");
        out.push_str(&wrapped(resolved.description.unwrap_or("<empty>"), 4));
        if let Some((fields, required)) = self.fields(schema) {
            out.push_str("\nFIELDS:\n");
            let defaults = resolved.default;
            for (name, schema) in fields {
                self.field(&mut out, name, schema, &required, defaults, 2, recursive);
            }
        }
        out
    }

    #[allow(clippy::too_many_arguments, reason = "one recursive step with everything it prints")]
    fn field(
        &self,
        out: &mut String,
        name: &str,
        schema: &'v Value,
        required: &[&str],
        defaults: Option<&Value>,
        indent: usize,
        recursive: bool,
    ) {
        let resolved = self.resolve(schema);
        let _ = write!(out, "{:indent$}{name}\t<{}>", "", self.type_name(schema));
        if required.contains(&name) {
            out.push_str(" -required-");
        }
        let default = resolved.default.or_else(|| defaults.and_then(|defaults| defaults.get(name)));
        if let Some(default) = default.filter(|default| !default.is_null() && !default.is_object()) {
            let _ = write!(out, " default: {default}");
        }
        out.push('\n');
        if recursive {
            if let Some((fields, required)) = self.fields(schema) {
                for (name, schema) in fields {
                    self.field(out, name, schema, &required, default, indent + 2, true);
                }
            }
            return;
        }
        let values: Vec<String> = values(resolved.content).into_iter().map(|(value, _)| value).collect();
        if !values.is_empty() {
            let _ = writeln!(out, "{:indent$}enum: {}", "", values.join(", "));
        }
        out.push_str(&wrapped(resolved.description.unwrap_or("<no description>"), indent + 2));
        out.push('\n');
    }
}

/// The values of an enumeration with their descriptions.
fn values(content: &Value) -> Vec<(String, Option<&str>)> {
    if let Some(values) = content["enum"].as_array() {
        return values.iter().map(|value| (crate::output::jsonpath::text(value), None)).collect();
    }
    let options = content["oneOf"].as_array().or(content["anyOf"].as_array());
    options
        .into_iter()
        .flatten()
        .filter_map(|option| {
            let description = option["description"].as_str();
            let one = option.get("const").or_else(|| option["enum"].as_array()?.first())?;
            Some((crate::output::jsonpath::text(one), description))
        })
        .collect()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text in lines of at most 80 characters.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    for paragraph in text.split("\n\n") {
        let mut length = 0;
        for word in paragraph.split_whitespace() {
            let width = word.chars().count();
            if length == 0 {
                out.extend(std::iter::repeat_n(' ', indent));
                length = indent;
            } else if length + 1 + width > 80 {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent));
                length = indent;
            } else {
                out.push(' ');
                length += 1;
            }
            out.push_str(word);
            length += width;
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({
            "title": "Process", "type": "object", "description": "A long-running command.", "required": ["spec"],
            "properties": {"spec": {"$ref": "#/$defs/Spec", "description": "What should run."}},
            "$defs": {
                "Spec": {"type": "object", "required": ["command"], "properties": {
                    "command": {"type": "array", "items": {"type": "string"}, "description": "The argument list."},
                    "stop": {"$ref": "#/$defs/Stop", "description": "How it is stopped.", "default": {"signal": "SIGTERM"}},
                    "user": {"type": ["string", "null"], "description": "User."},
                    "policy": {"anyOf": [{"$ref": "#/$defs/Policy"}, {"type": "null"}]},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                }},
                "Stop": {"type": "object", "properties": {"signal": {"type": "string", "description": "Name."}}},
                "Policy": {"description": "When.", "oneOf": [
                    {"const": "Always", "description": "Whatever\n happens."}, {"enum": ["Never"]}]},
            }
        })
    }

    fn explained(path: &[&str], recursive: bool) -> Result<String, Error> {
        let root = schema();
        Schema { root: &root }.explain(Kind::Process, path, recursive)
    }

    #[test]
    fn a_field_shows_its_type_default_and_fields() {
        assert_eq!(
            explained(&["spec", "stop"], false).unwrap(),
            "GROUP:      ostler.dev\nKIND:       Process\nVERSION:    v1\n\nFIELD: stop <Stop>\n\nDESCRIPTION:\n    How \
             it is stopped.\n\nFIELDS:\n  signal\t<string> default: \"SIGTERM\"\n    Name.\n\n"
        );
    }

    #[test]
    fn types_read_as_people_write_them() {
        let text = explained(&["spec"], false).unwrap();
        for line in [
            "  command\t<[]string> -required-\n",
            "  user\t<string>\n",
            "  labels\t<map[string]string>\n",
            "  policy\t<string>\n    When",
            "  stop\t<Stop>\n",
        ] {
            assert!(
                text.contains(line) || (line.contains("policy") && text.contains("enum: Always, Never")),
                "{line}\n{text}"
            );
        }
        let policy = explained(&["spec", "policy"], false).unwrap();
        assert!(policy.contains("ENUM:\n    Always: Whatever happens.\n    Never\n"), "{policy}");
    }

    #[test]
    fn recursion_shows_only_names_and_types() {
        let text = explained(&[], true).unwrap();
        assert!(text.contains("  spec\t<Spec> -required-\n    command\t<[]string> -required-\n"), "{text}");
        assert!(text.contains("\n    stop\t<Stop>\n      signal\t<string> default: \"SIGTERM\"\n"), "{text}");
    }

    #[test]
    fn an_unknown_field_names_the_nearest() {
        let error = explained(&["spec", "comand"], false).unwrap_err();
        assert_eq!(error.to_string(), "process.spec has no field \"comand\"");
        assert_eq!(error.hint().as_deref(), Some("did you mean \"command\"?"));
        assert!(explained(&["spec", "user", "x"], false).unwrap_err().to_string().contains("has no fields"));
    }

    #[test]
    fn every_published_schema_explains_itself_down_to_the_last_field() {
        for kind in Kind::ALL {
            let root: Value = serde_json::from_str(source(kind)).unwrap();
            let text = (Schema { root: &root }).explain(kind, &[], true).unwrap();
            assert!(text.contains("metadata\t<"), "{kind}: {text}");
            assert!(!text.contains("<any>"), "{kind}: {text}");
        }
        assert!(explain("process.spec.stop.gracePeriod", false).unwrap().contains("FIELD: gracePeriod <string"));
    }

    #[test]
    fn alternatives_are_fields_like_others() {
        let text = explain("instance.status.lastExit", false).unwrap();
        for field in ["attempt", "at", "cause", "code", "signal", "unknown", "error"] {
            assert!(text.contains(&format!("\n  {field}\t<")), "{field}: {text}");
        }
        assert!(explain("instance.status.lastExit.code", false).unwrap().contains("FIELD: code <integer"));
    }

    #[test]
    fn long_text_is_wrapped() {
        let text = wrapped(&"word ".repeat(40), 4);
        assert!(text.lines().all(|line| line.len() <= 80 && line.starts_with("    word")));
        assert!(text.lines().count() > 2);
    }
}
