//! What an object and a Source are said to be: from the JSON of the store, pure.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use ostler_core::Kind;
use ostler_core::kinds::HealthState;
use serde::Deserialize;
use serde_json::Value;

/// The part of an object that decides whether it was changed by hand, and whether it does what it should. Everything
/// else is skipped unread.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: Meta,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    uid: String,
    generation: u64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    replicas: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: String,
    health: Option<HealthState>,
    observed_generation: u64,
    updated_replicas: u64,
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
}

/// What is known of an object that a Source brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Changes with whatever a manifest can say; not with the status, nor with what Ostler notes in annotations.
    pub(crate) print: u64,
    pub(crate) health: HealthState,
    /// The Source that it says it was brought by.
    pub(crate) owner: Option<String>,
    pub(crate) deleting: bool,
}

impl Seen {
    /// Reads an object.
    pub(crate) fn of(kind: Kind, json: &[u8]) -> Self {
        let head: Head = serde_json::from_slice(json).unwrap_or_default();
        let mut hash = DefaultHasher::new();
        let deleting = head.metadata.deletion_timestamp.is_some();
        (&head.metadata.uid, head.metadata.generation, &head.metadata.labels, deleting).hash(&mut hash);
        for (key, value) in head.metadata.annotations.iter().filter(|(key, _)| !key.starts_with("ostler.dev/")) {
            (key, value).hash(&mut hash);
        }
        let health = if deleting { HealthState::Progressing } else { health(kind, &head) };
        let owner = head.metadata.annotations.get(ostler_core::kinds::SOURCE).cloned();
        Self { print: hash.finish(), health, owner, deleting }
    }
}

fn health(kind: Kind, head: &Head) -> HealthState {
    let status = &head.status;
    match kind {
        Kind::Process => {
            let Some(ready) = status.conditions.iter().find(|condition| condition.kind == "Ready") else {
                return HealthState::Progressing;
            };
            let current = status.observed_generation >= head.metadata.generation;
            match (ready.status.as_str(), ready.reason.as_str()) {
                // What was stopped by hand is as somebody wants it.
                (_, "Stopped") if current => HealthState::Healthy,
                ("True", _) if current && status.updated_replicas >= head.spec.replicas.unwrap_or(1) => {
                    HealthState::Healthy
                }
                (_, "InstanceTrouble") => HealthState::Degraded,
                _ => HealthState::Progressing,
            }
        }
        Kind::Job => {
            let is = |kind: &str| {
                status.conditions.iter().any(|condition| condition.kind == kind && condition.status == "True")
            };
            if is("Failed") || is("FailureTarget") {
                HealthState::Degraded
            } else if is("Complete") || is("Suspended") {
                HealthState::Healthy
            } else {
                HealthState::Progressing
            }
        }
        Kind::Source => status.health.unwrap_or_default(),
        Kind::Namespace if status.phase == "Terminating" => HealthState::Progressing,
        Kind::External if status.phase != "Found" => HealthState::Progressing,
        Kind::External
        | Kind::Namespace
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::CronJob
        | Kind::Instance
        | Kind::Event => HealthState::Healthy,
    }
}

/// The fields in which two objects differ, of those that a manifest can set: `spec.replicas 2 → 5`.
pub(crate) fn differences(before: &[u8], after: &[u8]) -> Vec<String> {
    let read = |json| serde_json::from_slice::<Value>(json).unwrap_or_default();
    let (before, after) = (read(before), read(after));
    let mut found = Vec::new();
    for field in ["/metadata/labels", "/metadata/annotations", "/spec", "/data", "/binaryData", "/immutable", "/type"] {
        let get = |object: &Value| object.pointer(field).cloned().unwrap_or(Value::Null);
        compare(&field[1..].replace('/', "."), &get(&before), &get(&after), &mut found);
    }
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    if before == after {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (before, after) {
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            compare(&format!("{path}.{key}"), &get(old), &get(new), found);
        }
        return;
    }
    let scalar = |value: &Value| !value.is_object() && !value.is_array() && value.to_string().len() < 40;
    if scalar(before)
        && scalar(after)
        && !path.contains(".env")
        && !path.starts_with("data")
        && !path.starts_with("binaryData")
    {
        found.push(format!("{path} {before} → {after}"));
    } else {
        // Values may be long, or nobody's business.
        found.push(path.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(object: &Value) -> Seen {
        Seen::of(Kind::Process, object.to_string().as_bytes())
    }

    #[test]
    fn only_what_a_manifest_can_say_changes_the_print() {
        let base = json!({"metadata": {"generation": 2, "labels": {"a": "b"}}, "spec": {}, "status": {}});
        let with = |pointer: &str, value: Value| {
            let mut object = base.clone();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[field] = value;
            seen(&object).print
        };
        let print = seen(&base).print;
        assert_eq!(with("/status/replicas", json!(3)), print);
        assert_eq!(with("/metadata/annotations", json!({"ostler.dev/restartedAt": "x"})), print);
        for (pointer, value) in [
            ("/metadata/generation", json!(3)),
            ("/metadata/labels", json!({"a": "c"})),
            ("/metadata/annotations", json!({"note": "x"})),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        ] {
            assert_ne!(with(pointer, value), print, "{pointer}");
        }
    }

    #[test]
    fn a_process_is_healthy_when_its_status_speaks_of_its_spec() {
        let process = |generation: u64, ready: &str, reason: &str| {
            seen(&json!({"metadata": {"generation": generation}, "spec": {"replicas": 2}, "status": {
                "observedGeneration": 2, "updatedReplicas": 2,
                "conditions": [{"type": "Ready", "status": ready, "reason": reason}]}}))
            .health
        };
        assert_eq!(process(2, "True", "AllReady"), HealthState::Healthy);
        assert_eq!(process(3, "True", "AllReady"), HealthState::Progressing);
        assert_eq!(process(2, "False", "Progressing"), HealthState::Progressing);
        assert_eq!(process(2, "False", "InstanceTrouble"), HealthState::Degraded);
        assert_eq!(process(2, "False", "Stopped"), HealthState::Healthy);
        assert_eq!(seen(&json!({"metadata": {"generation": 1}})).health, HealthState::Progressing);
    }

    #[test]
    fn differences_are_told_by_field() {
        let before = json!({"spec": {"replicas": 2, "command": ["a"], "env": [{"name": "A", "value": "secret"}]}});
        let after = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"replicas": 5, "command": ["b"], "env": []}});
        let found = differences(before.to_string().as_bytes(), after.to_string().as_bytes());
        assert_eq!(found, ["metadata.labels", "spec.command", "spec.env", "spec.replicas 2 → 5"]);
    }
}
