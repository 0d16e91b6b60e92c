use serde_json::json;

use super::*;
use crate::kinds::{API_VERSION, InstanceStatus};
use crate::meta::Metadata;

fn now() -> Timestamp {
    Timestamp::from_micros(1_000_000)
}

fn process(spec: &serde_json::Value) -> Process {
    let object = json!({"apiVersion": API_VERSION, "kind": "Process", "metadata": {"name": "web", "generation": 1}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// Does what the plan says, with instances that run as soon as they are told to unless the test says otherwise.
struct World {
    process: Process,
    instances: Vec<Instance>,
    /// Names whose processes crash at once.
    broken: Vec<String>,
}

impl World {
    fn new(process: Process) -> Self {
        let mut world = Self { process, instances: Vec::new(), broken: Vec::new() };
        world.converge();
        world
    }

    fn plan(&self) -> Plan {
        plan(&self.process, &self.instances.iter().collect::<Vec<_>>(), now())
    }

    /// One plan carried out; returns how many instances it touched.
    fn step(&mut self) -> usize {
        let plan = self.plan();
        self.process.status = plan.status;
        for spec in &plan.create {
            let name = instance_name("web", spec.ordinal);
            let mut instance = Instance {
                api_version: API_VERSION.to_owned(),
                kind: "Instance".to_owned(),
                metadata: Metadata { name, ..Metadata::default() },
                spec: spec.clone(),
                status: InstanceStatus::default(),
            };
            self.run(&mut instance);
            self.instances.push(instance);
        }
        for (name, spec) in &plan.update {
            let index = self.instances.iter().position(|instance| instance.metadata.name == *name).unwrap();
            let mut instance = self.instances[index].clone();
            instance.spec = spec.clone();
            self.run(&mut instance);
            self.instances[index] = instance;
        }
        self.instances.retain(|instance| !plan.delete.contains(&instance.metadata.name));
        plan.create.len() + plan.update.len() + plan.delete.len()
    }

    fn run(&self, instance: &mut Instance) {
        let crashes = self.broken.contains(&instance.metadata.name);
        let stopped = instance.spec.stopped_at.is_some();
        let status = &mut instance.status;
        status.phase = if stopped {
            Phase::Stopped
        } else if crashes {
            Phase::Backoff
        } else {
            Phase::Running
        };
        status.ready = status.phase == Phase::Running;
        status.revision.clone_from(&instance.spec.revision);
        status.restarted_at = instance.spec.restarted_at;
    }

    /// Steps until nothing is left to do; returns how many steps changed something.
    fn converge(&mut self) -> usize {
        for steps in 0..100 {
            if self.step() == 0 {
                return steps;
            }
        }
        panic!("never converges");
    }

    fn revisions(&self) -> Vec<bool> {
        let new = self.process.spec.revision();
        self.instances.iter().map(|instance| instance.spec.revision == new).collect()
    }

    fn condition(&self, kind: &str) -> Truth {
        self.process.status.conditions.iter().find(|condition| condition.kind == kind).unwrap().status
    }
}

#[test]
fn makes_as_many_as_wanted_and_rests() {
    let world = World::new(process(&json!({"command": ["x"], "replicas": 3})));
    let names: Vec<_> = world.instances.iter().map(|instance| instance.metadata.name.as_str()).collect();
    assert_eq!(names, ["web-0", "web-1", "web-2"]);
    assert_eq!(world.condition("Ready"), Truth::True);
    assert_eq!(world.process.status.ready_replicas, 3);
    let plan = world.plan();
    assert_eq!(plan.status, world.process.status);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
}

#[test]
fn scaling_down_takes_the_highest_and_touches_no_other() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 4})));
    world.process.spec.replicas = Some(2);
    let plan = world.plan();
    assert_eq!(plan.delete, ["web-2", "web-3"]);
    assert!(plan.update.is_empty() && plan.create.is_empty());
}

#[test]
fn a_changed_spec_replaces_one_instance_at_a_time() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 3})));
    world.process.spec.command = vec!["y".to_owned()];
    assert_eq!(world.step(), 1);
    assert_eq!(world.revisions(), [true, false, false]);
    assert_eq!(world.converge(), 2);
    assert_eq!(world.revisions(), [true; 3]);
}

#[test]
fn a_broken_revision_stops_at_the_first_instance() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 3})));
    world.broken = vec!["web-0".to_owned()];
    world.process.spec.command = vec!["y".to_owned()];
    world.converge();
    assert_eq!(world.revisions(), [true, false, false]);
    assert_eq!(world.condition("Ready"), Truth::False);
    // The correction goes to the broken one first, then to the others.
    world.broken.clear();
    world.process.spec.command = vec!["z".to_owned()];
    world.step();
    assert!(world.revisions()[0]);
    world.converge();
    assert_eq!(world.revisions(), [true; 3]);
}

#[test]
fn what_needs_no_restart_reaches_all_at_once() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 3})));
    let before: Vec<_> = world.instances.iter().map(|instance| instance.spec.revision.clone()).collect();
    world.process.spec.stop.grace_period = crate::Span::from_secs(1);
    assert_eq!(world.step(), 3);
    let after: Vec<_> = world.instances.iter().map(|instance| instance.spec.revision.clone()).collect();
    assert_eq!(before, after);
    assert!(world.instances.iter().all(|i| i.spec.template.stop.grace_period == crate::Span::from_secs(1)));
}

#[test]
fn a_restart_goes_through_all_one_at_a_time() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 3})));
    world.process.metadata.annotations.insert(RESTARTED_AT.to_owned(), now().to_string());
    assert_eq!(world.step(), 1);
    assert_eq!(world.converge(), 2);
    assert!(world.instances.iter().all(|instance| instance.status.restarted_at == Some(now())));
}

#[test]
fn a_stopped_process_stops_all_and_is_not_ready() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 2})));
    world.process.metadata.annotations.insert(STOPPED_AT.to_owned(), now().to_string());
    world.converge();
    assert!(world.instances.iter().all(|instance| instance.spec.stopped_at.is_some()));
    assert_eq!(world.condition("Ready"), Truth::False);
}

#[test]
fn one_instance_stopped_by_hand_does_not_hold_up_a_rollout() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 3})));
    world.instances[1].spec.stopped_at = Some(now());
    let mut stopped = world.instances[1].clone();
    world.run(&mut stopped);
    world.instances[1] = stopped;
    world.process.spec.command = vec!["y".to_owned()];
    world.converge();
    assert_eq!(world.revisions(), [true; 3]);
    assert_eq!(world.instances[1].status.phase, Phase::Stopped);
}

#[test]
fn a_deleted_process_goes_after_its_instances() {
    let mut world = World::new(process(&json!({"command": ["x"], "replicas": 2})));
    world.process.metadata.deletion_timestamp = Some(now());
    let plan = world.plan();
    assert_eq!((plan.delete.len(), plan.remove), (2, false));
    world.instances.clear();
    assert!(world.plan().remove);
}
