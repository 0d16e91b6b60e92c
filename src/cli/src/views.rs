//! The few fields of an object that tables and decisions need.
//!
//! Objects come as JSON and mostly leave as JSON; these structs skip everything else while parsing, which is several
//! times faster than building a tree. Every field may be missing or null: a newer or older daemon is no reason to fail.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Error;

/// Reads one of the views below, or any other type, out of an object.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    Ok(serde_json::from_slice(json)?)
}

/// metadata.name
pub(crate) fn name(json: &[u8]) -> Option<String> {
    parse::<Bare>(json).ok()?.metadata.name
}

/// An object of any kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Bare {
    pub(crate) kind: Option<String>,
    pub(crate) metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    pub(crate) generation: Option<i64>,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) owner_references: Option<Vec<Owner>>,
}

impl Metadata {
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Name of the Process or Job an Instance belongs to.
    pub(crate) fn owner(&self) -> Option<&str> {
        let owners = self.owner_references.as_ref()?;
        let owner = owners.iter().find(|owner| matches!(owner.kind.as_deref(), Some("Process" | "Job")))?;
        owner.name.as_deref()
    }

    /// Whether an object with this uid is among those it belongs to.
    pub(crate) fn is_owned_by(&self, uid: &str) -> bool {
        self.owner_references.iter().flatten().any(|owner| owner.uid.as_deref() == Some(uid))
    }

    /// "a=b,c=d", "<none>" without labels
    pub(crate) fn labels_text(&self) -> String {
        pairs(self.labels.as_ref(), ",").unwrap_or_else(|| "<none>".into())
    }
}

/// "a=b" of each entry, joined; nothing for an empty map.
pub(crate) fn pairs(map: Option<&BTreeMap<String, String>>, separator: &str) -> Option<String> {
    let map = map.filter(|map| !map.is_empty())?;
    Some(map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(separator))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Owner {
    pub(crate) kind: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) uid: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Condition {
    pub(crate) r#type: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) last_transition_time: Option<String>,
}

/// The condition of a type.
pub(crate) fn condition<'a>(conditions: Option<&'a Vec<Condition>>, kind: &str) -> Option<&'a Condition> {
    conditions?.iter().find(|condition| condition.r#type.as_deref() == Some(kind))
}

/// A ConfigMap or Secret; only which keys it has.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Config {
    pub(crate) metadata: Metadata,
    pub(crate) r#type: Option<String>,
    pub(crate) data: BTreeMap<String, String>,
    pub(crate) binary_data: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Source {
    pub(crate) metadata: Metadata,
    pub(crate) spec: SourceSpec,
    pub(crate) status: Option<SourceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SourceSpec {
    pub(crate) path: Option<String>,
    pub(crate) suspend: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SourceStatus {
    pub(crate) sync: Option<String>,
    pub(crate) health: Option<String>,
    pub(crate) objects: Option<u64>,
    pub(crate) last_applied_revision: Option<ostler_core::kinds::SourceRevision>,
    pub(crate) last_applied_at: Option<String>,
    pub(crate) last_handled_sync: Option<String>,
    pub(crate) conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Process {
    pub(crate) metadata: Metadata,
    pub(crate) spec: ProcessSpec,
    pub(crate) status: Option<ProcessStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProcessSpec {
    pub(crate) replicas: Option<i64>,
    pub(crate) command: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ProcessStatus {
    pub(crate) ready_replicas: Option<i64>,
    pub(crate) available_replicas: Option<i64>,
    pub(crate) updated_replicas: Option<i64>,
    pub(crate) conditions: Option<Vec<Condition>>,
}

impl Process {
    /// One word (and a reason) for how it is.
    pub(crate) fn summary(&self) -> String {
        let empty = ProcessStatus::default();
        let status = self.status.as_ref().unwrap_or(&empty);
        if self.metadata.deletion_timestamp.is_some() {
            return "Terminating".into();
        }
        let annotations = self.metadata.annotations.as_ref();
        if annotations.is_some_and(|annotations| annotations.contains_key(ostler_core::kinds::STOPPED_AT)) {
            return "Stopped".into();
        }
        let conditions = status.conditions.as_ref();
        let is = |kind: &str, value: &str| {
            condition(conditions, kind).filter(|condition| condition.status.as_deref() == Some(value))
        };
        let failed = is("Progressing", "False").and_then(|condition| condition.reason.clone());
        if let Some(reason) = failed.filter(|reason| !reason.is_empty()) {
            return reason;
        }
        if is("Ready", "True").or_else(|| is("Available", "True")).is_some() {
            let wanted = self.spec.replicas.unwrap_or(1);
            let whole = status.updated_replicas.unwrap_or(wanted) >= wanted
                && status.ready_replicas.unwrap_or(wanted) >= wanted;
            return if whole { "Available" } else { "Progressing" }.into();
        }
        let failing = is("Available", "False").or_else(|| is("Ready", "False"));
        match failing.and_then(|condition| condition.reason.clone()) {
            Some(reason) if !reason.is_empty() => reason,
            Some(_) | None => "Progressing".into(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Job {
    pub(crate) metadata: Metadata,
    pub(crate) spec: JobSpec,
    pub(crate) status: JobStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JobSpec {
    pub(crate) completions: Option<u64>,
    pub(crate) template: Template,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct JobStatus {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) start_time: Option<String>,
    pub(crate) completion_time: Option<String>,
    pub(crate) conditions: Option<Vec<Condition>>,
}

impl Job {
    fn is(&self, kind: &str) -> Option<&Condition> {
        let found = condition(self.status.conditions.as_ref(), kind);
        found.filter(|condition| condition.status.as_deref() == Some("True"))
    }

    /// When it was given up.
    pub(crate) fn failed_at(&self) -> Option<&str> {
        self.is("Failed").and_then(|condition| condition.last_transition_time.as_deref())
    }

    /// One word for how it is, kubectl's.
    pub(crate) fn summary(&self) -> String {
        if self.metadata.deletion_timestamp.is_some() {
            return "Terminating".into();
        }
        let word =
            ["Complete", "Failed", "FailureTarget", "Suspended"].into_iter().find(|kind| self.is(kind).is_some());
        word.unwrap_or("Running").into()
    }

    /// Why it failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.is("Failed").map(|condition| condition.reason.as_deref().unwrap_or("Failed"))
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.is("Complete").is_some()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CronJob {
    pub(crate) metadata: Metadata,
    pub(crate) spec: CronJobSpec,
    pub(crate) status: CronJobStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CronJobSpec {
    pub(crate) schedule: Option<String>,
    pub(crate) every: Option<String>,
    pub(crate) once: Option<String>,
    pub(crate) time_zone: Option<String>,
    pub(crate) suspend: Option<bool>,
    pub(crate) concurrency_policy: Option<String>,
    pub(crate) job_template: JobTemplate,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JobTemplate {
    pub(crate) spec: JobSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct CronJobStatus {
    pub(crate) active: Vec<Value>,
    pub(crate) last_schedule_time: Option<String>,
    pub(crate) next_schedule_time: Option<String>,
}

impl CronJobSpec {
    /// "0 3 * * *", "every 5m", "once 2026-01-01T…"
    pub(crate) fn when(&self) -> String {
        match (&self.schedule, &self.every, &self.once) {
            (Some(schedule), _, _) => schedule.clone(),
            (None, Some(every), _) => format!("every {every}"),
            (None, None, Some(once)) => format!("once {once}"),
            (None, None, None) => String::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Instance {
    pub(crate) metadata: Metadata,
    pub(crate) spec: InstanceSpec,
    pub(crate) status: Option<InstanceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct InstanceSpec {
    pub(crate) process: Option<String>,
    pub(crate) ordinal: Option<u64>,
    pub(crate) ports: Option<BTreeMap<String, Value>>,
    pub(crate) template: Option<Template>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Template {
    pub(crate) command: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct InstanceStatus {
    pub(crate) phase: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) pid: Option<i64>,
    pub(crate) ready: Option<bool>,
    pub(crate) restarts: Option<u64>,
    pub(crate) started_at: Option<String>,
    pub(crate) attempt: Option<u64>,
    pub(crate) revision: Option<Value>,
    pub(crate) last_exit: Option<LastExit>,
    pub(crate) next_start_at: Option<String>,
}

impl Instance {
    /// The Process or Job it belongs to.
    pub(crate) fn process(&self) -> &str {
        self.metadata.owner().or(self.spec.process.as_deref()).unwrap_or_default()
    }

    pub(crate) fn phase(&self) -> &str {
        match self.status.as_ref().and_then(|status| status.phase.as_deref()) {
            Some(phase) => phase,
            None => "Pending",
        }
    }

    pub(crate) fn ready(&self) -> bool {
        self.status.as_ref().and_then(|status| status.ready).unwrap_or(false)
    }

    /// "Backoff: exited with code 1"
    pub(crate) fn why(&self) -> String {
        let Some(status) = &self.status else { return self.phase().into() };
        let says = |text: &&String| !text.is_empty() && *text != self.phase();
        let text = [&status.message, &status.reason].into_iter().flatten().find(says);
        text.map_or_else(|| self.phase().into(), |text| format!("{}: {text}", self.phase()))
    }
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct LastExit {
    pub(crate) code: Option<i64>,
    /// number or name
    pub(crate) signal: Option<Value>,
    /// It ended while nobody could see it; why.
    pub(crate) unknown: Option<String>,
    /// It could not be started; why.
    pub(crate) error: Option<String>,
    pub(crate) at: Option<String>,
    /// Why it ended, when nobody asked.
    pub(crate) cause: Option<String>,
    /// How bad that was.
    pub(crate) severity: Option<String>,
}

impl LastExit {
    /// "code 1", "SIGKILL", "not started", "unknown"
    pub(crate) fn text(&self) -> String {
        if let Some(code) = self.code {
            return format!("code {code}");
        }
        if self.error.is_some() {
            return "not started".into();
        }
        match &self.signal {
            Some(Value::Number(number)) => number
                .as_i64()
                .and_then(|number| i32::try_from(number).ok())
                .map_or_else(|| number.to_string(), ostler_core::signal::name),
            Some(Value::String(name)) => name.clone(),
            Some(_) | None => "unknown".into(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    pub(crate) metadata: Metadata,
    pub(crate) status: Option<NamespaceStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NamespaceStatus {
    pub(crate) phase: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct External {
    pub(crate) metadata: Metadata,
    pub(crate) spec: serde_json::Value,
    pub(crate) status: Option<ExternalStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ExternalStatus {
    pub(crate) phase: Option<String>,
    pub(crate) pid: Option<i32>,
    pub(crate) since: Option<String>,
    pub(crate) conditions: Option<Vec<Condition>>,
}

impl External {
    /// "port 5432"
    pub(crate) fn discovery(&self) -> String {
        discovery(&self.spec["discovery"])
    }
}

/// What an External is looked for by: "port 5432"
pub(crate) fn discovery(discovery: &serde_json::Value) -> String {
    let ways: Vec<String> = discovery
        .as_object()
        .into_iter()
        .flatten()
        .map(|(way, value)| format!("{way} {}", crate::output::jsonpath::text(value)))
        .collect();
    ways.join(", ")
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Event {
    pub(crate) metadata: Metadata,
    pub(crate) involved_object: Involved,
    pub(crate) r#type: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) topic: Option<String>,
    pub(crate) message: Option<String>,
    pub(crate) count: Option<u64>,
    pub(crate) first_timestamp: Option<String>,
    pub(crate) last_timestamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Involved {
    pub(crate) kind: Option<String>,
    pub(crate) name: Option<String>,
}

impl Event {
    /// When it happened last.
    pub(crate) fn last(&self) -> Option<&str> {
        self.last_timestamp.as_deref().or(self.metadata.creation_timestamp.as_deref())
    }

    /// "instance/web-0"
    pub(crate) fn object(&self) -> String {
        let kind = self.involved_object.kind.as_deref().unwrap_or("?").to_lowercase();
        format!("{kind}/{}", self.involved_object.name.as_deref().unwrap_or("?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_null_fields_are_no_error() {
        let instance: Instance = parse(b"{\"metadata\":{\"name\":\"a\"},\"status\":null}").unwrap();
        assert_eq!((instance.phase(), instance.ready(), instance.process()), ("Pending", false, ""));
        let event: Event = parse(b"{}").unwrap();
        assert_eq!(event.object(), "?/?");
        let process: Process = parse(b"{\"spec\":{\"replicas\":null}}").unwrap();
        assert_eq!(process.summary(), "Progressing");
    }

    #[test]
    fn exits_are_named() {
        let exit = |json: &str| serde_json::from_str::<LastExit>(json).unwrap().text();
        assert_eq!(exit(r#"{"code":3}"#), "code 3");
        assert_eq!(exit(r#"{"signal":9}"#), "SIGKILL");
        assert_eq!(exit(r#"{"signal":"SIGTERM"}"#), "SIGTERM");
        assert_eq!(exit(r#"{"unknown":"keeper gone"}"#), "unknown");
    }

    #[test]
    fn a_process_is_summed_up_by_its_conditions() {
        let with = |conditions: &str| {
            let json = format!(r#"{{"spec":{{"replicas":1}},"status":{{"conditions":[{conditions}]}}}}"#);
            parse::<Process>(json.as_bytes()).unwrap().summary()
        };
        assert_eq!(with(r#"{"type":"Available","status":"True"}"#), "Available");
        assert_eq!(with(r#"{"type":"Available","status":"False","reason":"CrashLoop"}"#), "CrashLoop");
        assert_eq!(with(""), "Progressing");
    }
}
