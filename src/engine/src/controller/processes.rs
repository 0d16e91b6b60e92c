//! Reconciling one process, or one namespace: which instances there should be.

use std::collections::HashSet;

use ostler_core::kinds::{Instance, InstanceSpec, InstanceStatus, PortNumber, Process};
use ostler_core::object::key;
use ostler_core::plan::Note;
use ostler_core::plan::process::{hold, instance_name, plan};
use ostler_core::{Kind, Metadata, OwnerReference, Timestamp};
use ostler_store::{Durability, Expect, Op};
use tracing::warn;

use super::recorder::hash;
use super::world::{Id, InstanceEntry, id};
use super::writer::Ticket;
use super::{Controller, Request, custody};
use crate::driver::Driver;
use crate::ports;
use crate::spawn;

impl<D: Driver> Controller<D> {
    pub(crate) fn reconcile_process(&mut self, process_id: &Id, now: Timestamp) {
        // A new process finds out first what runs already under its name.
        if !self.custody.synced {
            return;
        }
        self.observer.looking(process_id, self.world.processes.get(process_id).map(|entry| &entry.object));
        self.wake_dependents(process_id);
        let Some(entry) = self.world.processes.get(process_id) else {
            self.world.dependencies.set(process_id, "", &[]);
            self.collect_orphaned_instances(process_id, now);
            return;
        };
        let mut object = entry.object.clone();
        let (hash, missing) = self.config_state(&object.metadata.namespace, &object.spec, &object.status.config_hash);
        object.status.config_hash = hash;
        let instances: Vec<&Instance> = self.world.instances_of(process_id).map(|entry| &entry.object).collect();
        let mut plan = plan(&object, &instances, now);
        if missing.is_some() && !object.metadata.is_deleting() {
            hold(&mut plan, &instances);
        }
        let made = [plan.create.len(), plan.update.len(), plan.delete.len()];
        self.observer.planned_process(process_id, &object, &plan.status, made);
        self.world.dependencies.set(process_id, &object.metadata.namespace, &object.spec.depends_on);
        let relabel: Vec<Id> = self
            .world
            .instances_of(process_id)
            .filter(|instance| instance.object.metadata.labels != object.metadata.labels)
            .map(|instance| id(&instance.object.metadata.namespace, &instance.object.metadata.name))
            .collect();
        if let Some(at) = plan.wake_at {
            // A thousand instances become available at a thousand moments.
            let soonest = now + super::coalesce(self.world.count_of(process_id));
            self.queue.add_at(Request::Process(process_id.clone()), at.max(soonest));
        }
        let ports = !object.spec.ports.is_empty();
        self.create(Kind::Process, &object.metadata, ports, plan.create, now);
        self.update(&object, plan.update);
        for name in plan.delete {
            self.delete(&id(&object.metadata.namespace, &name), object.metadata.deletion_grace_period_seconds, now);
        }
        for id in relabel {
            if let Some(instance) = self.world.instances.get_mut(&id) {
                instance.object.metadata.labels.clone_from(&object.metadata.labels);
                instance.changed();
                self.writer.mark(&id);
            }
        }
        if self.world.processes.get(process_id).is_none_or(|entry| entry.writing) {
            return;
        }
        // Each is told once: with the status that remembers it.
        self.tell_of_process(&object.metadata, plan.notes, now);
        let Some(entry) = self.world.processes.get_mut(process_id) else { return };
        let store_key = key(Kind::Process, &object.metadata.namespace, &object.metadata.name).into();
        let expect = Expect::Revision(entry.revision);
        if plan.remove {
            entry.writing = true;
            self.writer.commit(
                vec![Op::delete(store_key, expect)],
                Durability::Crash,
                Ticket::Process(process_id.clone()),
            );
        } else if plan.status != entry.object.status {
            entry.object.status = plan.status;
            let Ok(value) = serde_json::to_vec(&entry.object) else { return };
            entry.writing = true;
            // Whoever reads that all are ready must find them so: the instances first, in the order of submission.
            self.write_instances_of(process_id);
            let ops = vec![Op::put(store_key, value, expect)];
            self.writer.commit(ops, Durability::Crash, Ticket::Process(process_id.clone()));
        }
    }

    /// Instances whose process is gone (a restored store can have them) are deleted.
    pub(crate) fn collect_orphaned_instances(&mut self, process: &Id, now: Timestamp) {
        let ids: Vec<Id> = self.world.by_process.get(process).into_iter().flatten().map(|(_, id)| id.clone()).collect();
        for id in ids {
            self.delete(&id, None, now);
        }
    }

    /// Makes instances of a Process or Job; `ports`: they may need some.
    pub(crate) fn create(
        &mut self,
        owner: Kind,
        metadata: &Metadata,
        ports: bool,
        specs: Vec<InstanceSpec>,
        now: Timestamp,
    ) {
        if specs.is_empty() || self.ending.is_some() {
            return;
        }
        let mut taken = if ports { self.world.ports() } else { HashSet::new() };
        let mut ids = Vec::with_capacity(specs.len());
        for mut spec in specs {
            let name = instance_name(&metadata.name, spec.ordinal);
            let instance_id = id(&metadata.namespace, &name);
            Self::assign_ports(&mut spec, &instance_id, &mut taken);
            if self.world.instances.contains_key(&instance_id) {
                // Of a Process or Job of the same name, which a restored store can have; it is looked at again when
                // that is gone.
                warn!(instance = %instance_id, "there is another instance of this name");
                continue;
            }
            let orphan = self.claim_orphan(&instance_id);
            // With the first record it is known what is started from it. An orphan is taken over as the same.
            let status = InstanceStatus {
                revision: spec.revision.clone(),
                restarted_at: spec.restarted_at,
                ..InstanceStatus::default()
            };
            let uid = match &orphan {
                Some(state) => state.id.clone(),
                None => uuid::Uuid::new_v4().to_string(),
            };
            let object = Instance {
                api_version: Kind::Instance.api_version().to_owned(),
                kind: Kind::Instance.name().to_owned(),
                metadata: Metadata {
                    name,
                    namespace: metadata.namespace.clone(),
                    uid,
                    generation: 1,
                    labels: metadata.labels.clone(),
                    creation_timestamp: Some(now),
                    owner_references: vec![OwnerReference {
                        api_version: owner.api_version().to_owned(),
                        kind: owner.name().to_owned(),
                        name: metadata.name.clone(),
                        uid: metadata.uid.clone(),
                        controller: true,
                    }],
                    ..Metadata::default()
                },
                spec,
                status,
            };
            let mut entry = InstanceEntry::new(object);
            entry.observed.synced = self.custody.synced;
            let instance_id = self.world.insert_instance(entry);
            if let Some(state) = orphan
                && let Some(attempt) = custody::attempt(&state, now)
            {
                self.sample(&instance_id, &state);
                self.note_surroundings(&instance_id, &state);
                self.put_attempt(&instance_id, attempt);
                self.tell(&instance_id, vec![adopted(state.attempt)], now);
            }
            ids.push(instance_id);
        }
        self.commit_records(&ids);
    }

    fn update(&mut self, process: &Process, updates: Vec<(String, InstanceSpec)>) {
        for (name, mut spec) in updates {
            let instance_id = id(&process.metadata.namespace, &name);
            if spec.ports.len() < spec.template.ports.len() {
                let mut taken = self.world.ports();
                Self::assign_ports(&mut spec, &instance_id, &mut taken);
            }
            let Some(entry) = self.world.instances.get_mut(&instance_id) else { continue };
            let policy = wire_policy(&entry.object.spec, &spec);
            entry.object.spec = spec;
            entry.object.metadata.generation += 1;
            entry.changed();
            let uid = entry.object.metadata.uid.clone();
            if let Some(mut entry) = self.world.instances.remove(&instance_id) {
                self.world.share_template(&mut entry.object);
                self.world.instances.insert(instance_id.clone(), entry);
            }
            if let Some(log) = policy {
                self.driver.submit(ostler_keeper::wire::LogPolicy { id: uid, log: Some(log) }.into());
            }
            // What a process is started from is recorded before its start; the rest is in the Process already.
            self.writer.mark(&instance_id);
            self.queue.add(Request::Instance(instance_id));
        }
    }

    pub(crate) fn delete(&mut self, instance_id: &Id, grace: Option<u64>, now: Timestamp) {
        let Some(entry) = self.world.instances.get_mut(instance_id) else { return };
        let metadata = &mut entry.object.metadata;
        if metadata.is_deleting() && metadata.deletion_grace_period_seconds == grace {
            return;
        }
        metadata.deletion_timestamp = metadata.deletion_timestamp.or(Some(now));
        metadata.deletion_grace_period_seconds = grace;
        entry.changed();
        self.writer.mark(instance_id);
        self.queue.add(Request::Instance(instance_id.clone()));
    }

    /// Gives every port of the template a number: the fixed one, the one it has, or a free one.
    fn assign_ports(spec: &mut InstanceSpec, instance: &str, taken: &mut HashSet<u16>) {
        let template = std::sync::Arc::clone(&spec.template);
        for port in &template.ports {
            let number = match port.port {
                PortNumber::Fixed(number) => Some(number.get()),
                PortNumber::Auto(_) => {
                    spec.ports.get(&port.name).copied().or_else(|| ports::choose(hash(&[instance, &port.name]), taken))
                }
            };
            if let Some(number) = number {
                taken.insert(number);
                spec.ports.insert(port.name.clone(), number);
            } else {
                warn!(instance, port = port.name, "no free port from 20000 to 29999");
            }
        }
    }

    pub(crate) fn reconcile_namespace(&mut self, namespace_id: &Id, now: Timestamp) {
        let Some(entry) = self.world.namespaces.get(namespace_id) else { return };
        if !entry.object.metadata.is_deleting() {
            return;
        }
        let name = entry.object.metadata.name.clone();
        let revision = entry.revision;
        let inside: Vec<Id> = self
            .world
            .processes
            .iter()
            .filter(|(_, process)| process.object.metadata.namespace == name)
            .map(|(id, _)| id.clone())
            .collect();
        let jobs = self.delete_jobs_in(&name, now);
        if inside.is_empty() && !jobs {
            let mut ops = vec![Op::delete(key(Kind::Namespace, "", &name).into(), Expect::Revision(revision))];
            // Nothing is left that could use them.
            ops.extend(self.world.config_of(&name));
            self.writer.commit(ops, Durability::Crash, Ticket::Namespace(namespace_id.clone()));
            return;
        }
        for process_id in inside {
            let Some(process) = self.world.processes.get_mut(&process_id) else { continue };
            if process.object.metadata.is_deleting() || process.writing {
                continue;
            }
            let mut object = process.object.clone();
            object.metadata.deletion_timestamp = Some(now);
            object.metadata.generation += 1;
            let Ok(value) = serde_json::to_vec(&object) else { continue };
            process.writing = true;
            let key = key(Kind::Process, &object.metadata.namespace, &object.metadata.name).into();
            let ops = vec![Op::put(key, value, Expect::Revision(process.revision))];
            self.writer.commit(ops, Durability::Crash, Ticket::Process(process_id));
        }
        // Again when they may be gone.
        self.queue.add_at(Request::Namespace(namespace_id.clone()), now + ostler_core::Span::from_millis(50));
    }
}

fn adopted(attempt: u64) -> Note {
    Note {
        event_type: ostler_core::kinds::EventType::Warning,
        reason: "Adopted",
        message: format!("the store did not know its process, custody did: taken over with attempt {attempt}"),
    }
}

/// The log policy, when it is another one than before.
fn wire_policy(before: &InstanceSpec, after: &InstanceSpec) -> Option<ostler_keeper::wire::LogSettings> {
    let settings = spawn::log_settings(&after.template);
    (settings != spawn::log_settings(&before.template)).then_some(settings)
}
