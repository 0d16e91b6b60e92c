//! JSON and YAML of objects as users see them: with metadata.resourceVersion, alone or in a List.
//!
//! A list of a thousand objects is put together from the bytes the daemon sent; nothing is parsed.

use std::io::{self, Write};

use ostler_rpc::v1;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::PrettyFormatter;

use crate::error::Error;

/// Writes `{"apiVersion":"v1","kind":"List",…}`, one object a line.
pub(crate) fn write_list<'a>(out: &mut dyn Write, objects: impl Iterator<Item = &'a v1::Object>) -> io::Result<()> {
    out.write_all(br#"{"apiVersion":"v1","kind":"List","items":["#)?;
    for (index, object) in objects.enumerate() {
        out.write_all(if index == 0 { b"\n" } else { b",\n" })?;
        write_object(out, object)?;
    }
    out.write_all(b"\n],\"metadata\":{\"resourceVersion\":\"\"}}\n")
}

/// Writes the object's own bytes, its revision put into the metadata.
pub(crate) fn write_object(out: &mut dyn Write, object: &v1::Object) -> io::Result<()> {
    match metadata_start(&object.json) {
        Some(at) => {
            let (before, after) = object.json.split_at(at);
            let comma = if after.trim_ascii_start().first() == Some(&b'}') { "" } else { "," };
            out.write_all(before)?;
            write!(out, "\"resourceVersion\":\"{}\"{comma}", object.revision)?;
            out.write_all(after)
        }
        None => out.write_all(&object.json),
    }
}

/// Where the content of the top-level "metadata" begins.
fn metadata_start(json: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let end = string_end(json, at)?;
                if depth == 1 && &json[at..=end] == b"\"metadata\"" {
                    let rest = json[end + 1..].trim_ascii_start();
                    let rest = rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
                    // A value of that text is followed by no colon.
                    if let Some(inner) = rest.and_then(|rest| rest.strip_prefix(b"{")) {
                        return Some(json.len() - inner.len());
                    }
                }
                at = end;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The closing quote of the string that opens at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
}

/// The object as a tree, with its revision in the metadata.
pub(crate) fn value(object: &v1::Object) -> Result<Value, Error> {
    let mut value: Value = serde_json::from_slice(&object.json)?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), object.revision.to_string().into());
    }
    Ok(value)
}

/// A List of trees.
pub(crate) fn list(items: &[Value]) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {"resourceVersion": ""}})
}

/// Indented as kubectl does it.
pub(crate) fn write_pretty(out: &mut dyn Write, value: &Value) -> Result<(), Error> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    value.serialize(&mut serializer)?;
    text.push(b'\n');
    out.write_all(&text)?;
    Ok(())
}

/// One YAML document.
pub(crate) fn yaml(value: &Value) -> Result<String, Error> {
    // Texts such as `yes` are written so that they can be applied again.
    Ok(ostler_manifest::quote_doubtful(&serde_yaml::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str, revision: u64) -> v1::Object {
        v1::Object { json: json.to_owned().into(), revision }
    }

    fn written(json: &str) -> String {
        let mut out = Vec::new();
        write_object(&mut out, &object(json, 7)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_revision_goes_into_the_objects_own_metadata() {
        assert_eq!(
            written(r#"{"kind":"metadata","metadata":{"name":"a"}}"#),
            r#"{"kind":"metadata","metadata":{"resourceVersion":"7","name":"a"}}"#
        );
        assert_eq!(written(r#"{"metadata": { } }"#), r#"{"metadata": {"resourceVersion":"7" } }"#);
    }

    #[test]
    fn nested_metadata_and_text_that_looks_like_it_stay_as_they_are() {
        let json = r#"{"a":"x\"metadata\":{","spec":{"metadata":{"b":1}},"metadata":{"name":"a"}}"#;
        assert_eq!(written(json), json.replace(r#"{"name""#, r#"{"resourceVersion":"7","name""#));
        assert_eq!(written(r#"{"spec":{"metadata":{}}}"#), r#"{"spec":{"metadata":{}}}"#);
        assert_eq!(written("{\"broken"), "{\"broken");
    }

    #[test]
    fn a_list_is_valid_json_with_the_shape_kubectl_prints() {
        let objects = [object(r#"{"metadata":{"name":"a"}}"#, 1), object(r#"{"metadata":{"name":"b"}}"#, 2)];
        let mut out = Vec::new();
        write_list(&mut out, objects.iter()).unwrap();
        let parsed: Value = serde_json::from_slice(&out).unwrap();
        let built = list(&objects.iter().map(|object| value(object).unwrap()).collect::<Vec<_>>());
        assert_eq!(parsed, built);
        assert_eq!(parsed["items"][1]["metadata"]["resourceVersion"], "2");
        let mut empty = Vec::new();
        write_list(&mut empty, std::iter::empty()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&empty).unwrap(), list(&[]));
    }

    #[test]
    fn pretty_json_is_indented_by_four() {
        let mut out = Vec::new();
        write_pretty(&mut out, &serde_json::json!({"a": [1]})).unwrap();
        assert_eq!(out, b"{\n    \"a\": [\n        1\n    ]\n}\n");
    }
}
