//! Forecasts of whole changes: what comes first, what comes together, and what does not come.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::*;

fn member(name: &str, mut spec: Value, running: u32) -> Member {
    let after = spec.clone();
    spec["command"] = json!(["old"]);
    let object = |spec: &Value| -> Process {
        let metadata = json!({"name": name, "namespace": "default", "generation": 1});
        serde_json::from_value(
            json!({"apiVersion": API_VERSION, "kind": "Process", "metadata": metadata, "spec": spec}),
        )
        .unwrap()
    };
    // As it settles with the old command, so that the status is one that a rollout leaves behind.
    let mut world = World::new(
        vec![Member {
            object: Declared::Process(Box::new(object(&spec))),
            instances: Vec::new(),
            namespace_goes: false,
        }],
        Timestamp::from_micros(1_000_000),
    );
    world.owners[0].on.clear();
    if running > 0 {
        let Declared::Process(process) = &mut world.owners[0].object else { unreachable!() };
        let wanted = process.spec.replicas;
        let depends_on = std::mem::take(&mut process.spec.depends_on);
        process.spec.replicas = Some(running);
        world = started(world);
        let Declared::Process(process) = &mut world.owners[0].object else { unreachable!() };
        (process.spec.replicas, process.spec.depends_on) = (wanted, depends_on);
    }
    let owner = world.owners.remove(0);
    let Declared::Process(mut process) = owner.object else { unreachable!() };
    if after.get("command").is_some() {
        process.spec = object(&after).spec;
    }
    let instances = owner.copies.into_iter().map(|copy| copy.instance).collect();
    Member { object: Declared::Process(process), instances, namespace_goes: false }
}

/// Until everything runs.
fn started(mut world: World) -> World {
    loop {
        world.settle();
        let Some(next) = world.next() else { return world };
        world.now = next;
        for owner in 0..world.owners.len() {
            if world.pass(owner) {
                world.touch(owner);
            }
        }
    }
}

/// "restart web-0 | restart web-1, start web-2": a bar where the place changes.
fn shown(members: Vec<Member>) -> String {
    let forecast = forecast(members, Timestamp::from_micros(100_000_000));
    assert!(!forecast.more);
    let mut text = String::new();
    let mut place = 1;
    for step in forecast.steps {
        if !text.is_empty() {
            text.push_str(if step.place == place { ", " } else { " | " });
        }
        place = step.place;
        let verb = match step.event {
            Event::Start => "start",
            Event::Restart => "restart",
            Event::Stop => "stop",
        };
        let _ = write!(text, "{verb} {}", step.instance);
    }
    text
}

#[test]
fn a_rollout_goes_as_its_limits_say() {
    let new = |update: Value| member("web", json!({"command": ["new"], "replicas": 3, "update": update}), 3);
    assert_eq!(shown(vec![new(json!({}))]), "restart web-0 | restart web-1 | restart web-2");
    assert_eq!(shown(vec![new(json!({"maxUnavailable": 2}))]), "restart web-0, restart web-1 | restart web-2");
    assert_eq!(shown(vec![new(json!({"strategy": "Recreate"}))]), "restart web-0, restart web-1, restart web-2");
    assert_eq!(shown(vec![new(json!({"partition": 2}))]), "restart web-2");
    assert_eq!(shown(vec![new(json!({"paused": true}))]), "");
    assert_eq!(
        shown(vec![new(json!({"maxSurge": 1, "maxUnavailable": 0}))]),
        "start web-3 | restart web-0 | restart web-1 | restart web-2 | stop web-3"
    );
    assert_eq!(shown(vec![new(json!({"minReady": "1h"}))]), "restart web-0 | restart web-1 | restart web-2");
}

#[test]
fn what_is_as_it_should_be_does_nothing_and_scaling_touches_only_the_ends() {
    assert_eq!(shown(vec![member("web", json!({"replicas": 2}), 2)]), "");
    assert_eq!(shown(vec![member("web", json!({"replicas": 4}), 2)]), "start web-2, start web-3");
    assert_eq!(shown(vec![member("web", json!({"replicas": 1}), 3)]), "stop web-1, stop web-2");
}

#[test]
fn starts_follow_dependencies_and_a_job_in_between() {
    let job: Job = serde_json::from_value(json!({"apiVersion": API_VERSION, "kind": "Job",
        "metadata": {"name": "migrate", "namespace": "default"},
        "spec": {"template": {"command": ["true"], "dependsOn": [{"process": "db"}]}}}))
    .unwrap();
    let job = Member { object: Declared::Job(Box::new(job)), instances: Vec::new(), namespace_goes: false };
    let web = member("web", json!({"command": ["new"], "replicas": 2, "dependsOn": [{"process": "api"}]}), 0);
    let api = member("api", json!({"command": ["new"], "dependsOn": [{"job": "migrate"}]}), 0);
    let db = member("db", json!({"command": ["new"]}), 0);
    assert_eq!(
        shown(vec![web.clone(), api.clone(), db, job]),
        "start db-0 | start migrate-0 | start api-0 | start web-0, start web-1"
    );
    assert_eq!(shown(vec![web, api]), "", "they would wait for what is not there");
}

#[test]
fn what_changes_together_starts_when_what_it_needs_is_there() {
    // Between its steps, a rollout leaves everything available.
    let web = member("web", json!({"command": ["new"], "dependsOn": [{"process": "db"}]}), 1);
    let db = member("db", json!({"command": ["new"], "replicas": 2}), 2);
    assert_eq!(shown(vec![web, db.clone()]), "restart db-0 | restart web-0 | restart db-1");
    let new = member("app", json!({"command": ["new"], "dependsOn": [{"process": "db"}]}), 0);
    assert_eq!(
        shown(vec![new, db]),
        "restart db-0 | start app-0 | restart db-1",
        "what is about to go is not waited on"
    );
}

#[test]
fn what_is_deleted_goes_dependents_first() {
    let delete = |mut member: Member| {
        let Declared::Process(process) = &mut member.object else { unreachable!() };
        process.metadata.deletion_timestamp = Some(Timestamp::from_micros(1));
        member
    };
    let web = member("web", json!({"replicas": 2, "dependsOn": [{"process": "db"}]}), 2);
    let db = member("db", json!({}), 1);
    assert_eq!(shown(vec![delete(db.clone()), delete(web.clone())]), "stop web-0, stop web-1 | stop db-0");
    assert_eq!(shown(vec![delete(db), web]), "stop db-0", "what stays is not waited for");
}

#[test]
fn what_would_take_too_long_to_work_out_is_left_out() {
    let huge = member("web", json!({"command": ["new"], "replicas": 300}), 300);
    let forecast = forecast(vec![huge], Timestamp::from_micros(100_000_000));
    assert!(forecast.more && forecast.steps.len() > 50, "{}", forecast.steps.len());
    assert_eq!(forecast.steps[7].instance, "web-7");
}
