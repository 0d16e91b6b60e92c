//! From JSON to kinds and back.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config;
use crate::kinds::{ConfigMap, CronJob, External, Hidden, Job, Kind, Namespace, Process, Secret, Source};
use crate::meta::Metadata;
use crate::suggest::nearest;
use crate::validate::{self, FieldError};

/// An object that users may apply.
#[derive(Clone, Debug, PartialEq)]
pub enum Applicable {
    /// A room for names.
    Namespace(Box<Namespace>),
    /// Settings for processes.
    ConfigMap(Box<ConfigMap>),
    /// Secrets for processes.
    Secret(Box<Secret>),
    /// A long-running command.
    Process(Box<Process>),
    /// A command that runs to its end.
    Job(Box<Job>),
    /// Makes Jobs on a schedule.
    CronJob(Box<CronJob>),
    /// A directory whose manifests are kept applied.
    Source(Box<Source>),
    /// A process that Ostler did not start.
    External(Box<External>),
}

/// Why JSON is not an object of ours. `field` is a path such as `spec.ports[1].port`; empty for the whole object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// Where, as a path from the top of the object.
    pub field: String,
    /// What is wrong there, with the nearest known name where one was mistyped.
    pub message: String,
}

impl DecodeError {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into() }
    }
}

/// The kind that a manifest means by its `apiVersion` and `kind`.
pub fn kind_of(object: &Value) -> Result<Kind, DecodeError> {
    let Some(map) = object.as_object() else {
        return Err(DecodeError::new("", "a manifest is a mapping with apiVersion, kind, metadata and spec"));
    };
    let text = |field: &'static str| match map.get(field) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(DecodeError::new(field, format!("{field} must be a string"))),
        None => Err(DecodeError::new("", format!("{field} is missing"))),
    };
    let name = text("kind")?;
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
        let known = Kind::ALL.map(Kind::name);
        let hint = nearest(name, known).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        return Err(DecodeError::new("kind", format!("unknown kind {name:?}{hint} Known are {}", known.join(", "))));
    };
    let version = text("apiVersion")?;
    if version != kind.api_version() {
        return Err(DecodeError::new(
            "apiVersion",
            format!("{kind} has apiVersion {:?}, not {version:?}", kind.api_version()),
        ));
    }
    Ok(kind)
}

/// Reads a typed object, refusing fields it does not know.
pub fn decode<T: DeserializeOwned>(object: &Value) -> Result<T, DecodeError> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let mut field = error.path().to_string();
        if field == "." {
            field.clear();
        }
        DecodeError { field, message: improve(&error.inner().to_string()) }
    })
}

/// Adds the nearest known name to serde's message about an unknown field or variant.
fn improve(message: &str) -> String {
    for what in ["unknown field `", "unknown variant `"] {
        let Some((word, rest)) = message.strip_prefix(what).and_then(|tail| tail.split_once('`')) else { continue };
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        let hint = match nearest(word, known.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if known.is_empty() => "there are no fields here".to_owned(),
            None => format!("known are {}", known.join(", ")),
        };
        let what = if what.contains("field") { "unknown field" } else { "unknown value" };
        return format!("{what} \"{word}\"; {hint}");
    }
    if let Some(field) = message.strip_prefix("missing field `").and_then(|tail| tail.strip_suffix('`')) {
        return format!("{field} is missing");
    }
    message.to_owned()
}

impl Applicable {
    /// Reads, defaults and validates what a user applies. Every error that can be told apart is reported at once.
    pub fn from_json(object: &Value) -> Result<Self, Vec<DecodeError>> {
        let one = |error| vec![error];
        let applicable = match kind_of(object).map_err(one)? {
            Kind::Namespace => Self::Namespace(decode(object).map_err(one)?),
            Kind::ConfigMap => Self::ConfigMap(decode(object).map_err(one)?),
            Kind::Secret => Self::Secret(Box::new(secret(object).map_err(one)?)),
            Kind::Process => Self::Process(decode(object).map_err(one)?),
            Kind::Job => Self::Job(decode(object).map_err(one)?),
            Kind::CronJob => Self::CronJob(decode(object).map_err(one)?),
            Kind::Source => Self::Source(decode(object).map_err(one)?),
            Kind::External => Self::External(decode(object).map_err(one)?),
            kind @ (Kind::Instance | Kind::Event) => {
                let hint = if kind == Kind::Instance { "; apply the Process or Job it belongs to" } else { "" };
                return Err(one(DecodeError::new("kind", format!("{kind} objects are made by Ostler{hint}"))));
            }
        };
        let errors = match &applicable {
            Self::Namespace(namespace) => validate::metadata(&namespace.metadata, Kind::Namespace),
            Self::ConfigMap(object) => validate::config_map(object),
            Self::Secret(object) => validate::secret(object),
            Self::Process(process) => validate::process(process),
            Self::Job(job) => validate::job(job),
            Self::CronJob(cronjob) => validate::cronjob(cronjob),
            Self::Source(source) => validate::source(source),
            Self::External(external) => validate::external(external),
        };
        if errors.is_empty() {
            return Ok(applicable);
        }
        Err(errors.into_iter().map(|FieldError { field, message }| DecodeError { field, message }).collect())
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Secret(_) => Kind::Secret,
            Self::Process(_) => Kind::Process,
            Self::Job(_) => Kind::Job,
            Self::CronJob(_) => Kind::CronJob,
            Self::Source(_) => Kind::Source,
            Self::External(_) => Kind::External,
        }
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::Secret(object) => &object.metadata,
            Self::Process(object) => &object.metadata,
            Self::Job(object) => &object.metadata,
            Self::CronJob(object) => &object.metadata,
            Self::Source(object) => &object.metadata,
            Self::External(object) => &object.metadata,
        }
    }

    /// The metadata, to change.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            Self::Namespace(object) => &mut object.metadata,
            Self::ConfigMap(object) => &mut object.metadata,
            Self::Secret(object) => &mut object.metadata,
            Self::Process(object) => &mut object.metadata,
            Self::Job(object) => &mut object.metadata,
            Self::CronJob(object) => &mut object.metadata,
            Self::Source(object) => &mut object.metadata,
            Self::External(object) => &mut object.metadata,
        }
    }

    /// As JSON with every default written out.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Namespace(object) => to_value(object),
            Self::ConfigMap(object) => to_value(object),
            Self::Secret(object) => to_value(object),
            Self::Process(object) => to_value(object),
            Self::Job(object) => to_value(object),
            Self::CronJob(object) => to_value(object),
            Self::Source(object) => to_value(object),
            Self::External(object) => to_value(object),
        }
    }
}

/// Reads a Secret; what is in `stringData` goes into `data`. No error repeats a value.
fn secret(object: &Value) -> Result<Secret, DecodeError> {
    let mut secret: Secret = decode(object).map_err(|error| {
        // Serde repeats what it did not expect.
        let repeats = error.message.starts_with("invalid ");
        if repeats {
            DecodeError { message: "is not of the right type; values are texts, in quotes".to_owned(), ..error }
        } else {
            error
        }
    })?;
    // kubectl keeps the whole manifest here, values included.
    secret.metadata.annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    for (key, value) in std::mem::take(&mut secret.string_data) {
        secret.data.insert(key, Hidden(config::encode(value.0.as_bytes())));
    }
    Ok(secret)
}

fn to_value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("objects have string keys and finite numbers")
}

/// The key of an object in the store: `processes/default/web`.
pub fn key(kind: Kind, namespace: &str, name: &str) -> String {
    let namespace = if kind.is_namespaced() { namespace } else { "" };
    format!("{}/{namespace}/{name}", kind.plural())
}

/// What a key of the store names.
pub fn parse_key(key: &str) -> Option<(Kind, &str, &str)> {
    let mut parts = key.splitn(3, '/');
    let plural = parts.next()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.plural() == plural)?;
    Some((kind, parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(object: &Value) -> Vec<(String, String)> {
        Applicable::from_json(object).unwrap_err().into_iter().map(|e| (e.field, e.message)).collect()
    }

    fn process(spec: &Value) -> Value {
        json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web"}, "spec": spec})
    }

    #[test]
    fn a_mistyped_field_is_named_with_its_place_and_the_nearest_known_one() {
        let found = errors(&process(&json!({"command": ["x"], "stop": {"gracePeriode": "1s"}})));
        assert_eq!(found[0].0, "spec.stop.gracePeriode");
        assert_eq!(found[0].1, "unknown field \"gracePeriode\"; did you mean \"gracePeriod\"?");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let found = errors(&process(&json!({"command": ["x"], "restartPolicy": "always"})));
        assert_eq!(found[0].0, "spec.restartPolicy");
        assert!(found[0].1.contains("did you mean \"Always\"?"), "{}", found[0].1);
        let found = errors(&process(&json!({"command": "x"})));
        assert_eq!(found[0].0, "spec.command");
        let found = errors(&process(&json!({"command": ["x"], "stop": {"gracePeriod": 5}})));
        assert!(found[0].1.contains("with a unit"), "{}", found[0].1);
    }

    #[test]
    fn unknown_kinds_and_versions_are_refused() {
        assert!(
            errors(&json!({"apiVersion": "ostler.dev/v1", "kind": "Proces"}))[0].1.contains("did you mean Process?")
        );
        assert!(errors(&json!({"apiVersion": "v1", "kind": "Process"}))[0].1.contains("ostler.dev/v1"));
        assert!(errors(&json!([1]))[0].1.contains("mapping"));
        let instance = json!({"apiVersion": "ostler.dev/v1", "kind": "Instance"});
        assert!(errors(&instance)[0].1.contains("apply the Process"));
    }

    #[test]
    fn what_was_written_can_be_applied_again() {
        let first =
            Applicable::from_json(&process(&json!({"command": ["x"], "ports": [{"name": "a", "port": "auto"}]})));
        let json = first.clone().unwrap().to_json();
        assert_eq!(Applicable::from_json(&json), first);
    }

    #[test]
    fn a_secret_takes_plain_text_and_no_error_repeats_a_value() {
        let secret = |more: serde_json::Value| {
            let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}});
            object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        let good =
            Applicable::from_json(&secret(json!({"data": {"a": "MQ=="}, "stringData": {"a": "hunter2"}}))).unwrap();
        assert_eq!(good.to_json()["data"]["a"], "aHVudGVyMg==");
        assert!(good.to_json().get("stringData").is_none());
        assert!(!format!("{good:?}").contains("aHVudGVyMg"));
        for (bad, field) in [
            (json!({"stringData": {"pin": 271_828}}), "stringData.pin"),
            (json!({"data": "271828"}), "data"),
            (json!({"data": {"pin": "271828!"}}), "data.pin"),
        ] {
            let found = errors(&secret(bad));
            assert_eq!(found[0].0, field);
            assert!(!found[0].1.contains("271828"), "{}", found[0].1);
        }
    }

    #[test]
    fn keys_are_read_as_written() {
        assert_eq!(key(Kind::Process, "default", "web"), "processes/default/web");
        assert_eq!(parse_key("processes/default/web"), Some((Kind::Process, "default", "web")));
        assert_eq!(parse_key(&key(Kind::Namespace, "x", "prod")), Some((Kind::Namespace, "", "prod")));
        assert_eq!(parse_key("pods/default/web"), None);
    }
}
