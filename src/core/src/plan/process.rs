//! Decides which instances a `Process` should have, and which of them is replaced next.
//!
//! Pure. Replacement is one instance at a time: the next one goes when every one that is already new can be counted on.
//! What does not run costs no availability and is renewed at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kinds::{
    Condition, Instance, InstanceSpec, Phase, Process, ProcessStatus, RESTARTED_AT, STOPPED_AT, Truth, set_condition,
};
use crate::time::Timestamp;

/// What to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Instances to make. Their ports are still to be assigned.
    pub create: Vec<InstanceSpec>,
    /// Instances whose spec changes, by name. Ports that are new are still to be assigned.
    pub update: Vec<(String, InstanceSpec)>,
    /// Names of instances to delete.
    pub delete: Vec<String>,
    /// The status to publish.
    pub status: ProcessStatus,
    /// Deletion was asked for and nothing is left: the object may go.
    pub remove: bool,
}

/// The name of the copy `ordinal` of a process.
pub fn instance_name(process: &str, ordinal: u32) -> String {
    format!("{process}-{ordinal}")
}

/// The plan for one process with the instances that belong to it.
pub fn plan(process: &Process, instances: &[&Instance], now: Timestamp) -> Plan {
    let template = Arc::new(process.spec.template());
    let goal = Goal {
        revision: process.spec.revision(),
        template,
        restarted_at: time(process, RESTARTED_AT),
        stopped_at: time(process, STOPPED_AT),
        replicas: if process.metadata.is_deleting() { 0 } else { process.spec.replicas() },
    };
    let mut plan = Plan {
        create: Vec::new(),
        update: Vec::new(),
        delete: Vec::new(),
        status: process.status.clone(),
        remove: process.metadata.is_deleting() && instances.is_empty(),
    };
    let mut by_ordinal: BTreeMap<u32, &Instance> = BTreeMap::new();
    for instance in instances {
        if instance.spec.ordinal >= goal.replicas {
            if !instance.metadata.is_deleting() {
                plan.delete.push(instance.metadata.name.clone());
            }
        } else {
            by_ordinal.insert(instance.spec.ordinal, instance);
        }
    }
    for ordinal in 0..goal.replicas {
        if !by_ordinal.contains_key(&ordinal) {
            plan.create.push(goal.new_instance(process, ordinal));
        }
    }
    // Deleted ones among the wanted are made anew when they are gone.
    by_ordinal.retain(|_, instance| !instance.metadata.is_deleting());
    let settled = by_ordinal.values().filter(|instance| goal.is_current(instance)).all(|instance| is_settled(instance));
    // What is about to be made is new and not ready.
    let mut may_replace = settled && plan.create.is_empty();
    for instance in by_ordinal.values() {
        let mut spec = instance.spec.clone();
        goal.stop_or_start(&mut spec);
        if goal.is_current(instance) {
            spec.template = Arc::clone(&goal.template);
        } else if !occupies(instance) || may_replace {
            may_replace &= !occupies(instance);
            goal.renew(&mut spec);
        }
        if spec != instance.spec {
            plan.update.push((instance.metadata.name.clone(), spec));
        }
    }
    publish(&mut plan, process, &goal, &by_ordinal, now);
    plan
}

struct Goal {
    revision: String,
    template: Arc<crate::kinds::ProcessSpec>,
    restarted_at: Option<Timestamp>,
    stopped_at: Option<Timestamp>,
    replicas: u32,
}

impl Goal {
    fn new_instance(&self, process: &Process, ordinal: u32) -> InstanceSpec {
        InstanceSpec {
            process: process.metadata.name.clone(),
            job: None,
            ordinal,
            revision: self.revision.clone(),
            stopped_at: self.stopped_at,
            restarted_at: self.restarted_at,
            started_at: None,
            ports: BTreeMap::new(),
            template: Arc::clone(&self.template),
        }
    }

    /// Whether an instance is already told to be what the process now is.
    fn is_current(&self, instance: &Instance) -> bool {
        instance.spec.revision == self.revision && instance.spec.restarted_at >= self.restarted_at
    }

    fn renew(&self, spec: &mut InstanceSpec) {
        spec.revision.clone_from(&self.revision);
        spec.template = Arc::clone(&self.template);
        spec.restarted_at = spec.restarted_at.max(self.restarted_at);
        spec.ports.retain(|name, _| self.template.ports.iter().any(|port| port.name == *name));
    }

    /// A stop of the process stops every instance; a single instance may also be stopped by itself.
    fn stop_or_start(&self, spec: &mut InstanceSpec) {
        if self.stopped_at.is_some() {
            spec.stopped_at = spec.stopped_at.or(self.stopped_at);
        }
    }
}

fn time(process: &Process, annotation: &str) -> Option<Timestamp> {
    process.metadata.annotations.get(annotation)?.parse().ok()
}

/// Whether replacing it would take something away that somebody may be using.
fn occupies(instance: &Instance) -> bool {
    match instance.status.phase {
        Phase::Running | Phase::Starting | Phase::Stopping | Phase::Stuck | Phase::Unknown => true,
        Phase::Pending | Phase::Stopped | Phase::Failed | Phase::Backoff | Phase::Lost => false,
    }
}

/// Whether it runs what it should, can be counted on, and needs nothing.
pub fn is_available(instance: &Instance) -> bool {
    let status = &instance.status;
    status.phase == Phase::Running
        && status.ready
        && status.revision == instance.spec.revision
        && status.restarted_at >= instance.spec.restarted_at
}

/// Whether the next replacement need not wait for it.
fn is_settled(instance: &Instance) -> bool {
    is_available(instance)
        || (instance.status.phase == Phase::Stopped
            && (instance.spec.stopped_at.is_some() || instance.status.reason == "Completed"))
}

fn publish(plan: &mut Plan, process: &Process, goal: &Goal, wanted: &BTreeMap<u32, &Instance>, now: Timestamp) {
    let generation = process.metadata.generation;
    let count = |test: &dyn Fn(&Instance) -> bool| wanted.values().filter(|instance| test(instance)).count() as u32;
    let status = &mut plan.status;
    status.observed_generation = generation;
    status.revision.clone_from(&goal.revision);
    status.replicas = wanted.len() as u32;
    status.ready_replicas = count(&|instance| instance.status.ready);
    status.available_replicas = status.ready_replicas;
    let updated = count(&|instance| {
        goal.is_current(instance)
            && instance.status.revision == goal.revision
            && instance.status.restarted_at >= goal.restarted_at
    });
    status.updated_replicas = updated;
    let current_ready = count(&|instance| goal.is_current(instance) && is_available(instance));
    let all = goal.replicas;
    let trouble = wanted
        .values()
        .find(|instance| {
            instance.status.fallback.is_some()
                || matches!(instance.status.phase, Phase::Failed | Phase::Backoff | Phase::Stuck)
        })
        .map(|instance| format!("{}: {} {}", instance.metadata.name, instance.status.reason, instance.status.message));
    let ready = current_ready == all && plan.update.is_empty() && plan.delete.is_empty();
    let (reason, message) = if process.metadata.is_deleting() {
        ("Deleting", String::new())
    } else if goal.stopped_at.is_some() {
        ("Stopped", "stopped by hand; `ostler start` starts it".to_owned())
    } else if ready {
        ("AllReady", format!("{all} of {all} instances ready"))
    } else if let Some(trouble) = trouble {
        ("InstanceTrouble", trouble)
    } else {
        ("Progressing", format!("{current_ready} of {all} instances ready"))
    };
    let mut set = |kind: &str, truth: bool, reason: &str, message: &str| {
        let condition = Condition {
            kind: kind.to_owned(),
            status: Truth::from(truth),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: None,
            observed_generation: Some(generation),
        };
        set_condition(&mut status.conditions, condition, now);
    };
    set("Ready", ready && goal.stopped_at.is_none() && !process.metadata.is_deleting(), reason, &message);
    let available = status_available(wanted, all);
    set("Available", available, if available { "EnoughReady" } else { "TooFewReady" }, "");
    let rolling = wanted.values().any(|instance| !goal.is_current(instance)) || !plan.create.is_empty();
    set("Progressing", rolling, if rolling { "Replacing" } else { "UpToDate" }, "");
}

fn status_available(wanted: &BTreeMap<u32, &Instance>, all: u32) -> bool {
    wanted.values().filter(|instance| instance.status.ready).count() as u32 >= all
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
