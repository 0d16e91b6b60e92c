use serde_json::{Value, json};

use super::*;
use crate::kinds::API_VERSION;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000_000) + Span::from_secs(seconds)
}

fn process(spec: &Value, annotations: &Value) -> Process {
    let mut spec = spec.clone();
    spec["command"] = json!(["true"]);
    let metadata = json!({"name": "db", "annotations": annotations});
    serde_json::from_value(json!({"apiVersion": API_VERSION, "kind": "Process", "metadata": metadata, "spec": spec}))
        .unwrap()
}

fn instance(ordinal: u32, status: &Value) -> Instance {
    let spec = json!({"process": "db", "ordinal": ordinal, "revision": "r", "template": {"command": ["true"]}});
    let mut status = status.clone();
    status["revision"] = json!("r");
    let metadata = json!({"name": format!("db-{ordinal}")});
    serde_json::from_value(
        json!({"apiVersion": API_VERSION, "kind": "Instance", "metadata": metadata, "spec": spec, "status": status}),
    )
    .unwrap()
}

fn running() -> Value {
    json!({"phase": "Running", "ready": true, "attempt": 1, "startedAt": at(0).to_string()})
}

fn on(condition: &str) -> Dependency {
    serde_json::from_value(json!({"process": "db", "condition": condition})).unwrap()
}

fn why(condition: &str, process: &Process, instances: &[Instance]) -> Option<String> {
    unmet(&on(condition), Subject::Process(process), instances.iter(), at(60)).map(|unmet| unmet.message)
}

#[test]
fn every_instance_has_to_be_as_the_condition_says() {
    let two = process(&json!({"replicas": 2}), &json!({}));
    let unready = json!({"phase": "Running", "ready": false, "attempt": 1});
    let completed = json!({"phase": "Stopped", "reason": "Completed", "done": true, "attempt": 1, "endedAttempt": 1});
    let all = |a: &Value, b: &Value| [instance(0, a), instance(1, b)];
    for (condition, instances, met) in [
        ("Ready", all(&running(), &running()), true),
        ("Ready", all(&running(), &unready), false),
        ("Ready", all(&running(), &completed), false),
        ("Started", all(&unready, &completed), true),
        ("Started", all(&unready, &json!({"phase": "Backoff"})), false),
        ("Completed", all(&completed, &completed), true),
        ("Completed", all(&completed, &running()), false),
        ("Completed", all(&completed, &json!({"phase": "Failed", "done": true})), false),
    ] {
        assert_eq!(why(condition, &two, &instances).is_none(), met, "{condition} {instances:?}");
    }
    assert_eq!(why("Ready", &two, &[instance(0, &running())]).unwrap(), "process/db (Ready): 1 of 2 instances");
}

#[test]
fn what_is_about_to_be_stopped_or_replaced_is_not_relied_on() {
    let plain = process(&json!({}), &json!({}));
    let one = |change: &dyn Fn(&mut Instance)| {
        let mut instance = instance(0, &running());
        change(&mut instance);
        [instance]
    };
    assert_eq!(why("Ready", &plain, &one(&|_| {})), None);
    assert!(why("Ready", &plain, &one(&|it| it.spec.stopped_at = Some(at(1)))).is_some());
    assert!(why("Ready", &plain, &one(&|it| it.spec.restarted_at = Some(at(1)))).is_some());
    assert!(why("Ready", &plain, &one(&|it| it.spec.revision = "other".to_owned())).is_some());
    assert!(why("Ready", &plain, &one(&|it| it.metadata.deletion_timestamp = Some(at(1)))).is_some());
    let stopped = process(&json!({}), &json!({STOPPED_AT: at(1).to_string()}));
    assert_eq!(why("Ready", &stopped, &one(&|_| {})).unwrap(), "process/db (Ready): it is stopped by hand");
    // The restart of the group has not reached the instance yet.
    let together = process(&json!({}), &json!({RESTARTED_TOGETHER_AT: at(1).to_string()}));
    assert!(why("Ready", &together, &one(&|_| {})).is_some());
    assert_eq!(why("Ready", &together, &one(&|it| it.status.restarted_at = Some(at(1)))), None);
    let missing = unmet(&on("Ready"), Subject::Missing, std::iter::empty(), at(0)).unwrap();
    assert_eq!(missing.message, "process/db (Ready): there is none of that name");
}

#[test]
fn what_is_ready_for_a_moment_only_is_looked_at_again_when_it_counts() {
    let patient = process(&json!({"update": {"minReady": "90s"}}), &json!({}));
    let unmet = unmet(&on("Ready"), Subject::Process(&patient), [instance(0, &running())].iter(), at(60)).unwrap();
    assert_eq!(unmet.met_at, Some(at(90)));
}

#[test]
fn a_job_is_started_or_completed() {
    let job = |status: Value, suspend: bool| -> Job {
        serde_json::from_value(json!({"apiVersion": API_VERSION, "kind": "Job", "metadata": {"name": "m"},
            "spec": {"completions": 2, "suspend": suspend, "template": {"command": ["true"]}}, "status": status}))
        .unwrap()
    };
    let why = |condition: Option<&str>, job: &Job| {
        let on: Dependency = serde_json::from_value(json!({"job": "m", "condition": condition})).unwrap();
        unmet(&on, Subject::Job(job), std::iter::empty(), at(0)).map(|unmet| unmet.message)
    };
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "R", "message": "too often"}]);
    let complete = job(json!({"succeeded": 2, "conditions": condition("Complete")}), false);
    assert_eq!((why(None, &complete), why(Some("Started"), &complete)), (None, None));
    let half = job(json!({"succeeded": 1, "startTime": at(0).to_string()}), false);
    assert_eq!(why(None, &half).unwrap(), "job/m (Completed): 1 of 2 completions");
    assert_eq!(why(Some("Started"), &half), None);
    let failed = job(json!({"conditions": condition("Failed")}), false);
    assert_eq!(why(None, &failed).unwrap(), "job/m (Completed): it has failed: too often");
    assert_eq!(why(None, &job(json!({}), true)).unwrap(), "job/m (Completed): it is suspended");
}

#[test]
fn only_what_stops_too_goes_first() {
    let plain = process(&json!({}), &json!({}));
    let stopped = process(&json!({}), &json!({STOPPED_AT: at(1).to_string()}));
    let together = process(&json!({}), &json!({RESTARTED_TOGETHER_AT: at(5).to_string()}));
    let live = instance(0, &running());
    let gone = instance(0, &json!({"phase": "Stopped", "attempt": 1, "endedAttempt": 1}));
    let stuck = instance(0, &json!({"phase": "Stuck", "attempt": 1}));
    for (dependent, owner, namespace, leaving, first) in [
        (&live, Some(&plain), false, Leaving::Shutdown, true),
        (&gone, Some(&plain), false, Leaving::Shutdown, false),
        (&stuck, Some(&plain), false, Leaving::Shutdown, false),
        (&live, Some(&plain), false, Leaving::Stopped, false),
        (&live, Some(&plain), true, Leaving::Stopped, true),
        (&live, Some(&stopped), false, Leaving::Stopped, true),
        (&live, None, false, Leaving::Stopped, true),
        (&live, Some(&plain), false, Leaving::Together(at(5)), false),
        (&live, Some(&together), false, Leaving::Together(at(5)), true),
        (&live, Some(&together), false, Leaving::Together(at(9)), false),
    ] {
        assert_eq!(goes_first(dependent, owner, namespace, leaving), first, "{leaving:?} {:?}", dependent.status.phase);
    }
    let mut leaver = live.clone();
    assert_eq!(leaving(&leaver, Some(&plain), false), None);
    assert_eq!(leaving(&leaver, Some(&plain), true), Some(Leaving::Shutdown));
    leaver.metadata.deletion_timestamp = Some(at(1));
    assert_eq!(leaving(&leaver, Some(&plain), true), Some(Leaving::Stopped));
    leaver.metadata.deletion_grace_period_seconds = Some(0);
    assert_eq!(leaving(&leaver, Some(&plain), false), None);
}
