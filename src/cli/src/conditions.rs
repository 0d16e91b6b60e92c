//! What `ostler wait` waits for, and whether an object has it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ostler_core::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::output::jsonpath::{self, Template};

/// The value of `--for`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum For {
    Condition { kind: String, status: String },
    JsonPath { path: Template, value: Option<String> },
    Create,
    Delete,
}

impl std::str::FromStr for For {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, rest) = text.split_once('=').unwrap_or((text, ""));
        match what {
            "create" if rest.is_empty() => Ok(For::Create),
            "delete" if rest.is_empty() => Ok(For::Delete),
            "condition" if !rest.is_empty() => {
                let (kind, status) = rest.split_once('=').unwrap_or((rest, "True"));
                Ok(For::Condition { kind: kind.into(), status: status.into() })
            }
            "jsonpath" if !rest.is_empty() => {
                // The path may hold "==" itself: the value comes after its closing brace.
                let (path, value) = match rest.find('}') {
                    Some(_) if rest.starts_with('{') => {
                        let end = rest.rfind('}').map_or(rest.len(), |end| end + 1);
                        (&rest[..end], rest[end..].strip_prefix('='))
                    }
                    Some(_) | None => rest.split_once('=').map_or((rest, None), |(path, value)| (path, Some(value))),
                };
                Ok(For::JsonPath { path: Template::parse_path(path)?, value: value.map(str::to_owned) })
            }
            _ => Err("write condition=NAME[=STATUS], delete, create or jsonpath='{.path}'[=VALUE]".into()),
        }
    }
}

impl For {
    /// Whether what is waited for can be there for a moment only.
    pub(crate) fn is_readiness(&self) -> bool {
        matches!(self, For::Condition { kind, status }
            if ["Ready", "Available"].iter().any(|it| it.eq_ignore_ascii_case(kind)) && status.eq_ignore_ascii_case("True"))
    }

    /// Whether an object that exists meets it.
    pub(crate) fn met(&self, object: &Value) -> bool {
        match self {
            For::Create => true,
            For::Delete => false,
            For::Condition { kind, status } => {
                current(object) && find(object, kind).is_some_and(|found| found.eq_ignore_ascii_case(status))
            }
            For::JsonPath { path, value } => {
                let found = path.find(object);
                match value {
                    None => !found.is_empty(),
                    Some(value) => found.iter().any(|found| jsonpath::text(found) == *value),
                }
            }
        }
    }
}

/// Whether a Process that was written at `generation` has been brought to where it should be.
pub(crate) fn settled(object: &Value) -> bool {
    let number = |field: &str| object["status"][field].as_u64();
    let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
    let kept = object["spec"]["update"]["partition"].as_u64().unwrap_or(0);
    current(object)
        && number("updatedReplicas").is_none_or(|updated| updated >= wanted.saturating_sub(kept))
        && find(object, "Ready").is_some_and(|status| status == "True")
}

/// How the rollout of a Process is, in words.
#[derive(Debug, PartialEq)]
pub(crate) enum Progress {
    Complete(String),
    Failed(String),
    Waiting(String),
}

/// How far a Process is on its way to the spec as it is now.
pub(crate) fn progress(object: &Value) -> Progress {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (spec, status) = (&object["spec"], &object["status"]);
    if !current(object) || status["observedGeneration"].is_null() {
        return Progress::Waiting("Waiting for the spec to be observed...".into());
    }
    let condition = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == "Progressing");
    let text = |field: &str| condition.and_then(|it| it[field].as_str()).unwrap_or_default();
    if text("status") == "False" && matches!(text("reason"), "ProgressDeadlineExceeded" | "RolledBack" | "CrashLoop") {
        return Progress::Failed(format!("process/{name}: {}: {}", text("reason"), text("message")));
    }
    let number = |field: &str| status[field].as_u64().unwrap_or(0);
    let replicas = spec["replicas"].as_u64().unwrap_or(1);
    let partition = spec["update"]["partition"].as_u64().unwrap_or(0).min(replicas);
    let wanted = replicas - partition;
    let (updated, available) = (number("updatedReplicas"), number("availableReplicas"));
    let waiting = |what: String| Progress::Waiting(format!("Waiting for process/{name} to finish: {what}..."));
    if text("reason") == "Paused" {
        return waiting("rollouts are paused".into());
    }
    if updated.min(replicas) < wanted {
        return waiting(format!("{updated} out of {wanted} new instances have been updated"));
    }
    if number("replicas") > replicas {
        return waiting(format!("{} additional instances are pending termination", number("replicas") - replicas));
    }
    if available < replicas {
        return waiting(format!("{available} of {replicas} instances are available"));
    }
    if text("reason") != "NewRevisionAvailable" {
        return waiting(format!("{updated} of {wanted} updated instances are available"));
    }
    if partition > 0 {
        return Progress::Complete(format!(
            "partitioned rollout of process/{name} complete: {wanted} of {replicas} instances have been updated"
        ));
    }
    Progress::Complete(format!("process/{name} successfully rolled out"))
}

/// How long something has to be ready before a command believes it: what crashes at once is ready for a moment.
const HOLD: Duration = Duration::from_millis(500);

/// For how much longer an object that is ready has to stay so until that is believed. With a readiness probe or
/// `minReady`, the daemon itself has made sure.
pub(crate) fn unproven(object: &Value, now: Timestamp) -> Duration {
    let spec = &object["spec"];
    let probed = |template: &Value| {
        !template["readinessProbe"].is_null() || template["update"]["minReady"].as_str().is_some_and(|it| it != "0s")
    };
    if probed(spec) || probed(&spec["template"]) {
        return Duration::ZERO;
    }
    let conditions = object["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|it| it["type"] == "Ready");
    let since = ready.and_then(|it| it["lastTransitionTime"].as_str()).and_then(|at| at.parse::<Timestamp>().ok());
    since.map_or(Duration::ZERO, |since| HOLD.saturating_sub(now.since(since).to_std()))
}

/// What is ready and has to stay so for a while.
#[derive(Debug, Default)]
pub(crate) struct Proving(BTreeMap<String, Instant>);

impl Proving {
    /// Takes note that an object is, or is not, as it should be; whether that is to be believed now.
    pub(crate) fn see(&mut self, name: &str, object: &Value, met: bool) -> bool {
        let left = if met { unproven(object, now()) } else { Duration::ZERO };
        if left.is_zero() {
            self.0.remove(name);
            return met;
        }
        self.0.insert(name.to_owned(), Instant::now() + left);
        false
    }

    /// It is gone.
    pub(crate) fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Waits until one of them has stayed so for long enough; its name. For ever when there is none.
    pub(crate) async fn next(&mut self) -> String {
        let Some((name, at)) = self.0.iter().min_by_key(|(_, at)| **at).map(|(name, at)| (name.clone(), *at)) else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(at).await;
        self.0.remove(&name);
        name
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Whether the status speaks of the spec as it is now.
fn current(object: &Value) -> bool {
    match (object["status"]["observedGeneration"].as_u64(), object["metadata"]["generation"].as_u64()) {
        (Some(observed), Some(generation)) => observed >= generation,
        (Some(_) | None, _) => true,
    }
}

/// The status of a condition. Where nothing is called Ready, Available means it.
fn find<'v>(object: &'v Value, kind: &str) -> Option<&'v str> {
    let conditions = object["status"]["conditions"].as_array()?;
    let named = |wanted: &str| {
        let condition = conditions
            .iter()
            .find(|condition| condition["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(wanted)))?;
        condition["status"].as_str()
    };
    named(kind).or_else(|| if kind.eq_ignore_ascii_case("Ready") { named("Available") } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn met(what: &str, object: &Value) -> bool {
        what.parse::<For>().unwrap().met(object)
    }

    #[test]
    fn conditions_are_true_unless_said_otherwise() {
        let object =
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]}});
        assert!(met("condition=Ready", &object));
        assert!(met("condition=ready=true", &object));
        assert!(met("condition=X=False", &object));
        assert!(!met("condition=X", &object));
        assert!(!met("condition=Missing", &object));
        assert!(!met("condition=Ready", &json!({})));
    }

    #[test]
    fn a_status_of_an_older_generation_does_not_count() {
        let object = |observed| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": observed,
                "conditions": [{"type": "Available", "status": "True"}]}})
        };
        assert!(!met("condition=Ready", &object(1)));
        assert!(met("condition=Ready", &object(2)));
        assert!(!settled(&object(1)));
        assert!(settled(&object(2)));
    }

    #[test]
    fn jsonpaths_compare_text() {
        let object = json!({"status": {"phase": "Running", "pid": 7}});
        assert!(met("jsonpath={.status.phase}=Running", &object));
        assert!(met("jsonpath=.status.pid=7", &object));
        assert!(met("jsonpath={.status.phase}", &object));
        assert!(!met("jsonpath={.status.phase}=Stopped", &object));
        assert!(!met("jsonpath={.status.missing}", &object));
    }

    #[test]
    fn a_rollout_is_told_as_kubectl_tells_it() {
        let object = |updated: u64, available: u64, status: &str, reason: &str| {
            json!({"metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3},
                "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": updated,
                    "availableReplicas": available,
                    "conditions": [{"type": "Progressing", "status": status, "reason": reason, "message": "why"}]}})
        };
        let waiting = |object: &Value| match progress(object) {
            Progress::Waiting(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(waiting(&object(1, 3, "True", "RevisionUpdated")).contains("1 out of 3 new instances"));
        assert!(waiting(&object(3, 2, "True", "RevisionUpdated")).contains("2 of 3 instances are available"));
        assert!(waiting(&object(1, 3, "Unknown", "Paused")).contains("paused"));
        let done = progress(&object(3, 3, "True", "NewRevisionAvailable"));
        assert_eq!(done, Progress::Complete("process/web successfully rolled out".into()));
        let failed = progress(&object(0, 3, "False", "RolledBack"));
        assert_eq!(failed, Progress::Failed("process/web: RolledBack: why".into()));
    }

    #[test]
    fn what_has_just_become_ready_is_not_believed_at_once() {
        let at = |micros: i64| Timestamp::from_micros(micros);
        let object = |spec: Value| {
            json!({"spec": spec, "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": at(1_000_000).to_string()}]}})
        };
        assert_eq!(unproven(&object(json!({})), at(1_100_000)), Duration::from_millis(400));
        assert_eq!(unproven(&object(json!({})), at(1_500_000)), Duration::ZERO);
        assert_eq!(unproven(&object(json!({"readinessProbe": {}})), at(1_000_000)), Duration::ZERO);
        assert_eq!(unproven(&object(json!({"update": {"minReady": "1s"}})), at(1_000_000)), Duration::ZERO);
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "ready", "condition", "delete=x", "jsonpath={.a"] {
            assert!(text.parse::<For>().is_err(), "{text}");
        }
    }
}
