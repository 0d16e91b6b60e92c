use serde_json::{Value, json};

use super::*;
use crate::object::decode;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
}

fn process(name: &str, spec: &Value) -> Process {
    let mut all = json!({"command": ["x"], "workingDir": "/srv"});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let object = json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": name}, "spec": all});
    decode(&object).unwrap()
}

fn watching(watch: &Value) -> Process {
    let mut spec = json!({"watch": {"paths": ["src"]}});
    spec["watch"].as_object_mut().unwrap().extend(watch.as_object().unwrap().clone());
    process("web", &spec)
}

fn look(fingerprint: &str) -> Look {
    let changed = vec!["src/b.py".to_owned(), "src/c.py".to_owned(), "src/d.py".to_owned()];
    Look { fingerprint: fingerprint.to_owned(), files: 3, changed, ..Look::default() }
}

/// The process as it is after a look.
fn after(process: &Process, look: &Look, now: Timestamp) -> Process {
    plan(process, &[], look, now).process.map_or_else(|| process.clone(), |process| *process)
}

fn instance(phase: &str, started: Timestamp) -> Instance {
    serde_json::from_value(json!({
        "apiVersion": "ostler.dev/v1", "kind": "Instance", "metadata": {"name": "web-0"},
        "spec": {"process": "web", "ordinal": 0, "revision": "r", "template": {"command": ["x"]}},
        "status": {"phase": phase, "startedAt": started},
    }))
    .unwrap()
}

#[test]
fn the_first_look_is_where_it_begins_and_only_another_content_restarts() {
    let begun = after(&watching(&json!({})), &look("1"), at(0));
    assert_eq!(begun.status.watch.as_ref().unwrap().fingerprint, "1");
    assert!(!begun.metadata.annotations.contains_key(RESTARTED_AT));
    assert_eq!(plan(&begun, &[], &look("1"), at(1)), Plan { process: None, signal: None, note: None });
    let changed = plan(&begun, &[], &look("2"), at(2));
    let next = changed.process.unwrap();
    assert_eq!(next.metadata.annotations[RESTARTED_AT], at(2).to_string());
    assert_eq!(next.metadata.generation, begun.metadata.generation + 1);
    assert_eq!(cause(&next), Some((at(2), "FilesChanged: src/b.py and 2 more files changed")));
    assert_eq!(changed.note.unwrap().message, "src/b.py and 2 more files changed: restarting");
    assert!(!next.metadata.annotations.contains_key(RESTART_CASCADE));
    assert!(plan(&next, &[], &look("2"), at(3)).process.is_none(), "once");
    // By hand it is another restart, with another cause.
    let mut by_hand = *next;
    by_hand.metadata.annotations.insert(RESTARTED_AT.to_owned(), at(9).to_string());
    assert_eq!(cause(&by_hand), None);
}

#[test]
fn other_files_other_rules_and_those_who_do_not_run_are_no_change() {
    let begun = after(&watching(&json!({})), &look("1"), at(0));
    let mut other = begun.clone();
    other.spec.watch.as_mut().unwrap().exclude.push("*.log".to_owned());
    let next = after(&other, &look("2"), at(1));
    assert!(!next.metadata.annotations.contains_key(RESTARTED_AT));
    assert_eq!(next.status.watch.as_ref().unwrap().fingerprint, "2");
    let mut stopped = begun.clone();
    stopped.metadata.annotations.insert(STOPPED_AT.to_owned(), at(0).to_string());
    let next = after(&stopped, &look("2"), at(1));
    assert!(
        !next.metadata.annotations.contains_key(RESTARTED_AT) && next.metadata.annotations.contains_key(STOPPED_AT)
    );
    // Nobody looks any more.
    let mut gone = begun;
    gone.spec.watch = None;
    let next = after(&gone, &Look::default(), at(1));
    assert!(next.status.watch.is_none() && next.status.conditions.is_empty());
}

#[test]
fn after_an_absence_only_those_are_restarted_who_do_not_know_the_files() {
    let begun = after(&watching(&json!({})), &look("1"), at(0));
    let back = Look { first: true, youngest: Some(at(50)), ..look("2") };
    for (phase, started, restarts) in [
        ("Running", 40, true),
        ("Running", 60, false),
        ("Starting", 60, false),
        ("Pending", 0, false),
        ("Lost", 0, false),
        ("Backoff", 60, true),
        ("Failed", 60, true),
    ] {
        let instance = instance(phase, at(started));
        let next = plan(&begun, &[&instance], &back, at(70)).process.unwrap();
        assert_eq!(next.metadata.annotations.contains_key(RESTARTED_AT), restarts, "{phase} {started}");
        assert_eq!(next.status.watch.as_ref().unwrap().fingerprint, "2");
    }
}

#[test]
fn a_signal_is_sent_before_it_is_noted_and_what_cannot_be_seen_changes_nothing() {
    let begun = after(&watching(&json!({"action": "Signal", "signal": "SIGUSR1"})), &look("1"), at(0));
    let changed = plan(&begun, &[], &look("2"), at(1));
    assert_eq!(changed.signal.as_deref(), Some("SIGUSR1"));
    assert!(!changed.process.unwrap().metadata.annotations.contains_key(RESTARTED_AT));
    let blind = Look { blind: true, trouble: Some(("TooManyFiles", "too many".to_owned())), ..look("2") };
    let seen = plan(&begun, &[], &blind, at(1));
    assert!(seen.signal.is_none());
    let next = seen.process.unwrap();
    assert_eq!(next.status.watch, begun.status.watch);
    let condition = next.status.conditions.iter().find(|it| it.kind == FILES_WATCHED).unwrap();
    assert_eq!((condition.status, condition.reason.as_str()), (Truth::False, "TooManyFiles"));
}

#[test]
fn a_burst_is_looked_at_once_and_what_never_ends_now_and_then() {
    let (begin, debounce) = (Instant::now(), Span::from_millis(500));
    let ms = Duration::from_millis;
    let mut heard = Debounce::default();
    assert_eq!(heard.due(debounce), None);
    for hint in 0..1000 {
        heard.hear(begin + ms(hint));
    }
    assert_eq!(heard.due(debounce), Some(begin + ms(999 + 500)));
    for hint in 1..100 {
        heard.hear(begin + ms(1000 * hint));
    }
    assert_eq!(heard.due(debounce), Some(begin + ms(10_000)));
    assert_eq!(heard.due(Span::from_secs(2)), Some(begin + ms(40_000)));
    heard.reset();
    assert_eq!(heard.due(debounce), None);
}

/// Restarts of `edges` (process, what it depends on) that begin with `a`, in the order in which they happen.
fn order(edges: &[(&str, &[&str])]) -> Vec<Vec<String>> {
    let mut world: Vec<Process> = edges
        .iter()
        .map(|(name, on)| {
            let on: Vec<Value> = on.iter().map(|other| json!({"process": other})).collect();
            process(name, &json!({"dependsOn": on}))
        })
        .collect();
    let ready = |process: &mut Process| {
        process.status.observed_generation = process.metadata.generation;
        let condition = Condition {
            kind: "Ready".to_owned(),
            status: Truth::True,
            reason: String::new(),
            message: String::new(),
            last_transition_time: None,
            observed_generation: None,
        };
        set_condition(&mut process.status.conditions, condition, at(0));
    };
    world.iter_mut().for_each(ready);
    restart(&mut world[0], "FilesChanged", "x changed", true, at(1));
    assert_eq!(cascade(&world, at(2)), None, "its own restart is not complete");
    let mut order = Vec::new();
    for round in 0..100 {
        // The first of those that are being restarted is ready again.
        let under_way = |it: &&mut Process| it.status.observed_generation < it.metadata.generation;
        let Some(process) = world.iter_mut().find(under_way) else { break };
        ready(process);
        while let Some(step) = cascade(&world, at(3 + round)) {
            if !step.restart.is_empty() {
                order.push(step.restart.iter().map(|(it, _)| it.metadata.name.clone()).collect());
            }
            for next in step.restart.into_iter().map(|(it, _)| it).chain([step.done]) {
                let name = next.metadata.name.clone();
                *world.iter_mut().find(|it| it.metadata.name == name).unwrap() = next;
            }
        }
    }
    assert!(world.iter().all(|it| !it.metadata.annotations.contains_key(RESTART_CASCADE)), "nothing is left over");
    order
}

#[test]
fn those_that_depend_on_it_follow_once_each_and_in_their_order() {
    let names = |order: Vec<Vec<String>>| order.iter().map(|step| step.join(" ")).collect::<Vec<_>>().join(", ");
    assert_eq!(names(order(&[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("d", &[])])), "b, c");
    // d waits for both of its own.
    assert_eq!(names(order(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])])), "b c, d");
    // A short way and a long one.
    assert_eq!(names(order(&[("a", &[]), ("d", &["a", "c"]), ("b", &["a"]), ("c", &["b"])])), "b, c, d");
    assert_eq!(names(order(&[("a", &[])])), "");
}

#[test]
fn those_in_another_namespace_follow_too_and_namesakes_do_not() {
    let mut a = process("a", &json!({}));
    restart(&mut a, "FilesChanged", "x changed", true, at(1));
    a.status.observed_generation = a.metadata.generation;
    a.metadata.namespace = "data".to_owned();
    a.status
        .conditions
        .push(serde_json::from_value(json!({"type": "Ready", "status": "True", "reason": "", "message": ""})).unwrap());
    let there = process("b", &json!({"dependsOn": [{"process": "a", "namespace": "data"}]}));
    let namesake = process("c", &json!({"dependsOn": [{"process": "a"}]}));
    let step = cascade(&[a, there, namesake], at(2)).unwrap();
    let names: Vec<&str> = step.restart.iter().map(|(it, _)| it.metadata.name.as_str()).collect();
    assert_eq!(names, ["b"]);
}

#[test]
fn what_is_stopped_or_paused_is_not_restarted() {
    let mut a = process("a", &json!({}));
    restart(&mut a, "FilesChanged", "x changed", true, at(1));
    a.status.observed_generation = a.metadata.generation;
    let ready = Condition {
        kind: "Ready".to_owned(),
        status: Truth::True,
        reason: String::new(),
        message: String::new(),
        last_transition_time: None,
        observed_generation: None,
    };
    set_condition(&mut a.status.conditions, ready, at(1));
    let mut b = process("b", &json!({"dependsOn": [{"process": "a"}]}));
    b.metadata.annotations.insert(STOPPED_AT.to_owned(), at(0).to_string());
    let c = process("c", &json!({"dependsOn": [{"process": "a"}], "update": {"paused": true}}));
    let step = cascade(&[a.clone(), b, c], at(2)).unwrap();
    assert!(step.restart.is_empty());
    assert!(!step.done.metadata.annotations.contains_key(RESTART_CASCADE));
    a.status.rollout = Some(Box::default());
    assert_eq!(cascade(&[a], at(2)), None);
}
