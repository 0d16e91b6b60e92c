//! Who depends on whom, and who waits for whom: the index behind the order of starts and stops.
//!
//! An instance that waits is looked at again when something it waits for has changed, and not before.

use std::collections::{BTreeSet, HashMap, HashSet};

use ostler_core::kinds::{Dependency, Instance, Job, Kind, Process};
use ostler_core::plan::depend::{Subject, Waits, goes_first, leaving, unmet};
use ostler_core::{Metadata, Timestamp};

use super::world::{Id, World, id, owner, runs_of};
use super::{Controller, Request};
use crate::driver::Driver;

/// Edges between owners of instances (Processes by their id, Jobs by [`runs_of`] theirs), and instances that wait.
#[derive(Debug, Default)]
pub(crate) struct Dependencies {
    /// What each one depends on.
    on: HashMap<Id, Vec<Id>>,
    /// Those that depend on each one.
    of: HashMap<Id, BTreeSet<Id>>,
    /// Instances to look at when something about an owner has changed.
    waiting: HashMap<Id, HashSet<Id>>,
}

/// Under which id the instances of a dependency are found.
fn target(namespace: &str, dependency: &Dependency) -> Id {
    let (kind, name) = dependency.target();
    let id = id(dependency.namespace(namespace), name);
    if kind == Kind::Job { runs_of(&id) } else { id }
}

impl Dependencies {
    /// Takes note of what an owner depends on.
    pub(crate) fn set(&mut self, owner: &Id, namespace: &str, dependencies: &[Dependency]) {
        if dependencies.is_empty() && !self.on.contains_key(owner) {
            return;
        }
        let after: Vec<Id> = dependencies.iter().map(|dependency| target(namespace, dependency)).collect();
        if self.on.get(owner).is_some_and(|before| *before == after) {
            return;
        }
        for before in self.on.remove(owner).unwrap_or_default() {
            if let Some(dependents) = self.of.get_mut(&before) {
                dependents.remove(owner);
                if dependents.is_empty() {
                    self.of.remove(&before);
                }
            }
        }
        for target in &after {
            self.of.entry(target.clone()).or_default().insert(owner.clone());
        }
        if !after.is_empty() {
            self.on.insert(owner.clone(), after);
        }
    }

    fn wait(&mut self, target: Id, instance: &Id) {
        self.waiting.entry(target).or_default().insert(instance.clone());
    }
}

impl World {
    /// What owns instances: the Process of that id, and what an instance of it depends on.
    fn process_of(&self, instance: &Instance) -> Option<&Process> {
        let id = id(&instance.metadata.namespace, &instance.spec.process);
        self.processes.get(&id).map(|entry| &entry.object)
    }

    fn dependencies_of(&self, instance: &Instance) -> &[Dependency] {
        match &instance.spec.job {
            Some(share) => {
                let job = self.jobs.get(&id(&instance.metadata.namespace, &share.name));
                job.map_or(&[], |job| &job.object.spec.template.spec().depends_on)
            }
            None => self.process_of(instance).map_or(&[], |process| &process.spec.depends_on),
        }
    }

    /// What it depends on and is not there yet.
    fn unmet(&mut self, id: &Id, now: Timestamp) -> Vec<ostler_core::plan::depend::Unmet> {
        let Some(entry) = self.instances.get(id) else { return Vec::new() };
        let instance = &entry.object;
        let namespace = &instance.metadata.namespace;
        let mut found = Vec::new();
        for dependency in self.dependencies_of(instance) {
            let (kind, name) = dependency.target();
            let target = target(namespace, dependency);
            let owner = self::id(dependency.namespace(namespace), name);
            let subject = if kind == Kind::Job {
                let job: Option<&Job> = self.jobs.get(&owner).map(|job| &job.object);
                job.map_or(Subject::Missing, Subject::Job)
            } else {
                self.processes.get(&owner).map_or(Subject::Missing, |entry| Subject::Process(&entry.object))
            };
            let instances = self.instances_of(&target).map(|entry| &entry.object);
            if let Some(unmet) = unmet(dependency, subject, instances, now) {
                found.push((target, unmet));
            }
        }
        let mut unmet = Vec::with_capacity(found.len());
        for (target, one) in found {
            self.dependencies.wait(target, id);
            unmet.push(one);
        }
        unmet
    }

    /// Names of the instances that have to stop before it.
    fn first_to_stop(&mut self, id: &Id, shutdown: bool) -> Vec<String> {
        let Some(entry) = self.instances.get(id) else { return Vec::new() };
        let instance = &entry.object;
        let Some(dependents) = self.dependencies.of.get(&owner(instance)) else { return Vec::new() };
        let Some(leaving) = leaving(instance, self.process_of(instance), shutdown) else { return Vec::new() };
        let own = &instance.metadata.namespace;
        let goes = |namespace: &str| {
            let entry = self.namespaces.get(&self::id("", namespace));
            entry.is_some_and(|namespace| namespace.object.metadata.is_deleting())
        };
        let mut names = Vec::new();
        let mut targets = Vec::new();
        for dependent in dependents {
            let before = names.len();
            for entry in self.instances_of(dependent) {
                let other = &entry.object;
                let Metadata { namespace, name, .. } = &other.metadata;
                if goes_first(other, self.process_of(other), goes(namespace), leaving) {
                    names.push(if namespace == own { name.clone() } else { format!("{namespace}/{name}") });
                }
            }
            if names.len() > before {
                targets.push(dependent.clone());
            }
        }
        for target in targets {
            self.dependencies.wait(target, id);
        }
        names
    }
}

impl<D: Driver> Controller<D> {
    /// Whom an instance has to wait for now.
    pub(crate) fn waits(&mut self, id: &Id, now: Timestamp) -> Option<Box<Waits>> {
        let live = self.world.instances.get(id)?.object.status.is_live();
        let mut waits = Waits::default();
        if live {
            let ending = self.ending.as_ref().and_then(super::commands::Ending::order_until);
            if ending.is_none_or(|until| now < until) {
                waits.stop = self.world.first_to_stop(id, ending.is_some());
            }
            if let Some(until) = ending.filter(|_| !waits.stop.is_empty()) {
                self.queue.add_at(Request::Instance(id.clone()), until);
            }
        } else if self.ending.is_none() {
            waits.start = self.world.unmet(id, now);
        }
        (!waits.is_empty()).then(|| Box::new(waits))
    }

    /// Something about an owner of instances has changed: whoever waits for it is looked at.
    pub(crate) fn wake_dependents(&mut self, owner: &Id) {
        for id in self.world.dependencies.waiting.remove(owner).unwrap_or_default() {
            self.queue.add(Request::Instance(id));
        }
    }
}
