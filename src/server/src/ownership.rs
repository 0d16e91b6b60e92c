//! Who set which field: what a manifest, or an update, makes of a live object, and who owns what afterwards.

use ostler_core::Metadata;
use ostler_core::fields::{self, Conflict, FieldSet};
use ostler_core::kinds::{SET, TRACEPARENT};
use ostler_core::meta::ManagedFields;
use serde_json::{Map, Value, json};

use crate::service::now;

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The manifest says what its manager wants; what others set stays.
    Apply {
        /// Fields that others set otherwise are taken over.
        force: bool,
    },
    /// The object is to be exactly so.
    Update,
}

impl Mode {
    const fn operation(self) -> &'static str {
        match self {
            Self::Apply { .. } => "Apply",
            Self::Update => "Update",
        }
    }
}

/// The part of an object that people write: everything but its identity, its status, and what Ostler keeps.
pub(crate) fn content(object: &Value) -> Value {
    let Value::Object(map) = object else { return Value::Null };
    let mut content: Map<String, Value> = map
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut kept: Map<String, Value> = ["labels", "annotations"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), object["metadata"].get(key)?.clone())))
        .collect();
    // Which trace a change belongs to, and which set an object, is ours to say.
    for (map, key) in [("annotations", TRACEPARENT), ("labels", SET)] {
        if let Some(map) = kept.get_mut(map).and_then(Value::as_object_mut) {
            map.remove(key);
        }
    }
    kept.retain(|_, map| map.as_object().is_none_or(|map| !map.is_empty()));
    if !kept.is_empty() {
        content.insert("metadata".to_owned(), Value::Object(kept));
    }
    Value::Object(content)
}

/// An object of the given identity with this content.
pub(crate) fn with_content(identity: &Value, content: &Value) -> Value {
    let mut object = content.clone();
    if !object.is_object() {
        object = json!({});
    }
    for key in ["apiVersion", "kind"] {
        object[key] = identity[key].clone();
    }
    for key in ["name", "namespace"] {
        if let Some(value) = identity["metadata"].get(key) {
            object["metadata"][key] = value.clone();
        }
    }
    object
}

/// What a write makes of the live content, and who owns what then.
pub(crate) struct Written {
    pub(crate) content: Value,
    pub(crate) managed: Vec<ManagedFields>,
}

/// Decides a write; the conflicts if it must not be done.
pub(crate) fn write(
    live: &Value,
    metadata: &Metadata,
    wanted: &Value,
    manager: &str,
    mode: Mode,
) -> Result<Written, Vec<Conflict>> {
    let sets = |mine: bool| {
        let is_mine =
            move |entry: &&ManagedFields| (entry.manager == manager && entry.operation == mode.operation()) == mine;
        metadata.managed_fields.iter().filter(is_mine)
    };
    match mode {
        Mode::Apply { force } => {
            let others: Vec<(String, FieldSet)> =
                sets(false).map(|entry| (entry.manager.clone(), fields_of(entry))).collect();
            let owned = sets(true).map(fields_of).next().unwrap_or_default();
            let merged = fields::apply(live, wanted, &owned, &others);
            if !force && !merged.conflicts.is_empty() {
                return Err(merged.conflicts);
            }
            let taken: FieldSet = merged.conflicts.into_iter().map(|conflict| conflict.path).collect();
            let managed = own(metadata, manager, mode, &merged.owned, &taken);
            Ok(Written { content: merged.value, managed })
        }
        Mode::Update => {
            let (set, gone) = fields::changes(live, wanted);
            Ok(Written { content: wanted.clone(), managed: updated(metadata, manager, set, gone) })
        }
    }
}

/// Who owns what after an update that set some fields and removed others.
fn updated(metadata: &Metadata, manager: &str, set: FieldSet, gone: FieldSet) -> Vec<ManagedFields> {
    let mut mine = metadata
        .managed_fields
        .iter()
        .find(|entry| entry.manager == manager && entry.operation == Mode::Update.operation())
        .map(fields_of)
        .unwrap_or_default();
    mine.remove(&gone);
    mine.extend(set.clone());
    let mut taken = set;
    taken.extend(gone);
    own(metadata, manager, Mode::Update, &mine, &taken)
}

/// Takes note of a change that a verb made to an object.
pub(crate) fn note_update(metadata: &mut Metadata, manager: &str, before: &Value, after: &Value) {
    let (set, gone) = fields::changes(&content(before), &content(after));
    metadata.managed_fields = updated(metadata, manager, set, gone);
}

/// The list with the manager's entry renewed, and what it took over taken from the others.
fn own(metadata: &Metadata, manager: &str, mode: Mode, mine: &FieldSet, taken: &FieldSet) -> Vec<ManagedFields> {
    let mut managed = Vec::with_capacity(metadata.managed_fields.len() + 1);
    let mut entry = ManagedFields {
        manager: manager.to_owned(),
        operation: mode.operation().to_owned(),
        time: Some(now()),
        fields_v1: Some(mine.to_json()),
    };
    for other in &metadata.managed_fields {
        if other.manager == entry.manager && other.operation == entry.operation {
            if other.fields_v1 == entry.fields_v1 {
                entry.time = other.time;
            }
            continue;
        }
        let mut left = fields_of(other);
        left.remove(taken);
        if !left.is_empty() {
            managed.push(ManagedFields { fields_v1: Some(left.to_json()), ..other.clone() });
        }
    }
    if !mine.is_empty() {
        managed.push(entry);
    }
    managed
}

fn fields_of(entry: &ManagedFields) -> FieldSet {
    entry.fields_v1.as_ref().map(FieldSet::from_json).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(metadata: &Metadata) -> Vec<(&str, &str, Value)> {
        metadata
            .managed_fields
            .iter()
            .map(|entry| (entry.manager.as_str(), entry.operation.as_str(), entry.fields_v1.clone().unwrap()))
            .collect()
    }

    fn apply(metadata: &mut Metadata, live: &Value, wanted: &Value, manager: &str, force: bool) -> Option<Value> {
        let written = write(live, metadata, wanted, manager, Mode::Apply { force }).ok()?;
        metadata.managed_fields = written.managed;
        Some(written.content)
    }

    #[test]
    fn the_content_is_what_people_write() {
        let object = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "a", "namespace": "b", "uid": "c",
            "labels": {"l": "1"}}, "spec": {"x": 1}, "status": {"y": 2}});
        assert_eq!(content(&object), json!({"metadata": {"labels": {"l": "1"}}, "spec": {"x": 1}}));
        let back = with_content(&object, &content(&object));
        assert_eq!(
            back,
            json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "a", "namespace": "b", "labels": {"l": "1"}},
                "spec": {"x": 1}})
        );
    }

    #[test]
    fn a_forced_apply_takes_the_field_and_leaves_the_others_theirs() {
        let mut metadata = Metadata::default();
        let first = json!({"spec": {"replicas": 5, "user": "app"}});
        let live = apply(&mut metadata, &json!({}), &first, "one", false).unwrap();
        let second = json!({"spec": {"replicas": 3}});
        assert_eq!(apply(&mut metadata, &live, &second, "two", false), None, "a conflict");
        let live = apply(&mut metadata, &live, &second, "two", true).unwrap();
        assert_eq!(live, json!({"spec": {"replicas": 3, "user": "app"}}));
        assert_eq!(
            owners(&metadata),
            [
                ("one", "Apply", json!({"f:spec": {"f:user": {}}})),
                ("two", "Apply", json!({"f:spec": {"f:replicas": {}}}))
            ]
        );
    }

    #[test]
    fn applying_the_same_again_changes_nothing_not_even_the_time() {
        let mut metadata = Metadata::default();
        let wanted = json!({"spec": {"replicas": 5}});
        let live = apply(&mut metadata, &json!({}), &wanted, "one", false).unwrap();
        let before = metadata.managed_fields.clone();
        assert_eq!(apply(&mut metadata, &live, &wanted, "one", false).unwrap(), live);
        assert_eq!(metadata.managed_fields, before);
    }

    #[test]
    fn an_update_by_hand_is_a_conflict_for_the_next_apply() {
        let mut metadata = Metadata::default();
        let wanted = json!({"spec": {"replicas": 1}});
        let live = apply(&mut metadata, &json!({}), &wanted, "ostler apply", false).unwrap();
        let after = json!({"spec": {"replicas": 4}});
        note_update(&mut metadata, "ostler scale", &live, &after);
        let conflicts = write(&after, &metadata, &wanted, "ostler apply", Mode::Apply { force: false }).err().unwrap();
        assert_eq!(conflicts[0].manager, "ostler scale");
        assert_eq!(fields::show(&conflicts[0].path), "spec.replicas");
    }
}
