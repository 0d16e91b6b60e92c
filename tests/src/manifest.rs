//! Manifests for tests, written as JSON, which is YAML too.

use serde_json::{Value, json};

use crate::witness_binary;

/// A Process with this spec.
pub fn process(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": name}, "spec": spec})
}

/// A Process that runs a shell script.
pub fn shell(name: &str, script: &str) -> Value {
    process(name, &json!({"command": ["sh", "-c", script], "stop": {"gracePeriod": "5s"}}))
}

/// A Process that does nothing until it is told to end.
pub fn sleeper(name: &str) -> Value {
    process(name, &json!({"command": ["sleep", "100000"]}))
}

/// A Process that runs the witness, with its journal in the directory `journal` below the daemon's.
pub fn witness(name: &str, arguments: &str) -> Value {
    let mut command = vec![witness_binary().display().to_string(), "--dir".to_owned(), "journal".to_owned()];
    command.extend(arguments.split_whitespace().map(str::to_owned));
    process(
        name,
        &json!({"command": command, "stop": {"gracePeriod": "5s"}, "logs": {"maxFiles": 0, "maxSize": "1Gi"}}),
    )
}

/// The same object with other values: paths such as `spec.backoff`.
#[must_use]
pub fn with(mut object: Value, path: &str, value: Value) -> Value {
    let mut place = &mut object;
    for key in path.split('.') {
        place = &mut place[key];
    }
    *place = value;
    object
}

/// Several objects as one file.
pub fn all(objects: &[Value]) -> String {
    objects.iter().flat_map(|object| ["---\n".to_owned(), object.to_string(), "\n".to_owned()]).collect()
}
