//! Job: a command that runs to its end, once or several times.

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Backoff, Condition, ProcessSpec, RestartPolicy};
use crate::meta::Metadata;
use crate::time::{Span, Timestamp};

/// Condition of a Job: every completion was reached.
pub const COMPLETE: &str = "Complete";
/// Condition of a Job: it is given up, and nothing of it runs.
pub const FAILED: &str = "Failed";
/// Condition of a Job: it will be given up; what still runs of it is being stopped.
pub const FAILURE_TARGET: &str = "FailureTarget";
/// Condition of a Job: it is suspended.
pub const SUSPENDED: &str = "Suspended";

/// A command that runs to its end: `completions` successful runs, `parallelism` of them at a time. What fails is run
/// again, later and later, until it has failed too often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    /// "ostler.dev/v1".
    pub api_version: String,
    /// "Job".
    pub kind: String,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// What should be done.
    pub spec: JobSpec,
    /// What was done. Written by Ostler.
    #[serde(default)]
    pub status: JobStatus,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobSpec {
    /// How many runs have to succeed, 1 to 10000. Each has an index from 0, which it finds in JOB_COMPLETION_INDEX; an
    /// index that has succeeded is never run again. Cannot be changed.
    #[serde(default = "one")]
    pub completions: u32,
    /// How many runs at a time, 0 to 1000; with 0, nothing is started.
    #[serde(default = "one")]
    pub parallelism: u32,
    /// How many runs may fail; with one more the Job has failed, and what still runs of it is stopped.
    #[serde(default = "six")]
    pub backoff_limit: u32,
    /// How long an index that failed waits for its next run.
    #[serde(default)]
    pub backoff: RetryBackoff,
    /// The Job fails when it takes longer than this, retries and waits included. Time in which it is suspended does not
    /// count: the clock begins anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_deadline: Option<Span>,
    /// A Job that is finished is deleted after this time, with its instances and their logs; never unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Span>,
    /// While true, nothing is started, and what runs is stopped, to be run anew later. Left out when applying to an
    /// existing Job: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// What a run is made from. Cannot be changed.
    pub template: JobTemplate,
}

fn one() -> u32 {
    1
}

fn six() -> u32 {
    6
}

/// How long an index that failed waits: the n-th retry comes initial × factor^(n-1) after the end of the run before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetryBackoff {
    /// Before the first retry.
    pub initial: Span,
    /// By what each next one is longer, 1 to 100.
    pub factor: f64,
    /// Never longer than this.
    pub max: Span,
    /// Random part of each delay, up or down, 0 to 1: 0.1 is ten per cent.
    pub jitter: f64,
}

impl Default for RetryBackoff {
    fn default() -> Self {
        Self { initial: Span::from_secs(10), factor: 2.0, max: Span::from_secs(360), jitter: 0.1 }
    }
}

impl RetryBackoff {
    /// The delay before the retry that follows `failures` failed runs; `seed` decides the jitter.
    pub fn delay(&self, failures: u32, seed: u64) -> Span {
        let Self { initial, factor, max, jitter } = *self;
        crate::backoff::delay(&Backoff { initial, factor, max, jitter, ..Backoff::default() }, failures, seed)
    }
}

/// What a run of a Job is made from: the spec of a Process without what only makes sense for one that runs for ever.
#[derive(Clone, Debug, PartialEq)]
pub struct JobTemplate(ProcessSpec);

/// Fields of a Process that say how long and how often it runs, or under which address; a Job says that itself, or has
/// no use for it.
const FOREIGN: [(&str, &str); 8] = [
    ("replicas", "spec.completions and spec.parallelism of the Job say how often the command runs"),
    ("restartPolicy", "a run that fails is followed by another one, as often as spec.backoffLimit of the Job allows"),
    ("backoff", "spec.backoff of the Job says how long a retry waits"),
    ("circuitBreaker", "spec.backoffLimit of the Job says when it is given up"),
    ("restart", "spec.backoff and spec.backoffLimit of the Job say what follows a failure"),
    ("fallback", "a Job that fails is over; its conditions say why"),
    ("watch", "a run of a Job finds the files as they are, and ends by itself"),
    ("ports", "runs of a Job have no ports of their own"),
];

impl JobTemplate {
    /// The spec that an instance is started from.
    pub fn spec(&self) -> &ProcessSpec {
        &self.0
    }
}

impl Serialize for JobTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.0).map_err(serde::ser::Error::custom)?;
        if let Some(fields) = value.as_object_mut() {
            for (field, _) in FOREIGN {
                fields.remove(field);
            }
        }
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JobTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ProcessSpec;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping with a command")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ProcessSpec, A::Error> {
                ProcessSpec::deserialize(de::value::MapAccessDeserializer::new(Native(map)))
            }
        }
        let mut spec = deserializer.deserialize_map(Fields)?;
        spec.restart_policy = RestartPolicy::Never;
        Ok(Self(spec))
    }
}

/// A map that refuses foreign keys where they stand, so that the error has their place.
struct Native<A>(A);

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Native<A> {
    type Error = A::Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(NativeKey(seed))
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.0.next_value_seed(seed)
    }
}

struct NativeKey<K>(K);

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for NativeKey<K> {
    type Value = K::Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<K::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        if let Some((_, instead)) = FOREIGN.iter().find(|(field, _)| *field == key) {
            return Err(de::Error::custom(format!("{key} does not belong in the template of a Job: {instead}")));
        }
        self.0.deserialize(key.into_deserializer())
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for JobTemplate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "JobTemplate".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = ProcessSpec::json_schema(generator);
        if let Some(properties) = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut) {
            for (field, _) in FOREIGN {
                properties.remove(field);
            }
        }
        schema.insert("description".to_owned(), "What a run of a Job is made from.".into());
        schema
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JobStatus {
    /// The generation that the rest of the status speaks of.
    pub observed_generation: u64,
    /// Runs under way.
    pub active: u32,
    /// Runs that succeeded.
    pub succeeded: u32,
    /// Runs that failed.
    pub failed: u32,
    /// Since when it is worked on; anew after each suspension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// When the last completion was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    /// When the next retry is due, while nothing else can be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_retry_time: Option<Timestamp>,
    /// Complete, Failed, FailureTarget, Suspended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl JobStatus {
    /// A condition that is True.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind && condition.status == super::Truth::True)
    }

    /// The condition that says that nothing more happens: Complete or Failed.
    pub fn finished(&self) -> Option<&Condition> {
        self.condition(COMPLETE).or_else(|| self.condition(FAILED))
    }
}

impl JobSpec {
    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.suspend.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::decode;

    fn job(template: &serde_json::Value) -> serde_json::Value {
        json!({"apiVersion": "ostler.dev/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"template": template}})
    }

    #[test]
    fn defaults_are_kubernetes_and_written_out_without_what_is_foreign() {
        let read: Job = decode(&job(&json!({"command": ["true"]}))).unwrap();
        let spec = serde_json::to_value(&read.spec).unwrap();
        assert_eq!(
            (&spec["completions"], &spec["parallelism"], &spec["backoffLimit"]),
            (&json!(1), &json!(1), &json!(6))
        );
        assert_eq!((&spec["backoff"]["initial"], &spec["backoff"]["max"]), (&json!("10s"), &json!("6m")));
        assert_eq!(spec["template"]["stop"]["gracePeriod"], "10s");
        for (field, _) in FOREIGN {
            assert!(spec["template"].get(field).is_none(), "{field}");
        }
        assert_eq!(read.spec.template.spec().restart_policy, RestartPolicy::Never);
    }

    #[test]
    fn what_belongs_to_a_process_is_refused_with_its_place_and_a_way_out() {
        for (field, value) in [("replicas", json!(2)), ("restartPolicy", json!("Never")), ("ports", json!([]))] {
            let mut template = json!({"command": ["true"]});
            template[field] = value;
            let error = decode::<Job>(&job(&template)).unwrap_err();
            assert_eq!(error.field, format!("spec.template.{field}"));
            assert!(error.message.contains("does not belong in the template of a Job"), "{}", error.message);
        }
        let error = decode::<Job>(&job(&json!({"command": ["x"], "stop": {"signl": "SIGINT"}}))).unwrap_err();
        assert_eq!(error.field, "spec.template.stop.signl");
        let error = decode::<Job>(&job(&json!({"comand": ["x"]}))).unwrap_err();
        assert_eq!(error.field, "spec.template.comand");
        assert!(error.message.contains("did you mean \"command\"?"), "{}", error.message);
    }

    #[test]
    fn retries_wait_longer_and_longer_up_to_the_cap() {
        let backoff = RetryBackoff { jitter: 0.0, ..RetryBackoff::default() };
        let seconds: Vec<u64> = (1..8).map(|failures| backoff.delay(failures, 7).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 360]);
    }
}
