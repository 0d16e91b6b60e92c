//! Reconciling one job or cronjob: which runs, and which jobs, there should be.

use std::collections::HashMap;
use std::sync::Arc;

use ostler_core::kinds::{CronJob, Instance, Job, JobStatus, SCHEDULED_AT};
use ostler_core::object::key;
use ostler_core::plan::{cronjob, job};
use ostler_core::{Kind, Metadata, OwnerReference, Span, Timestamp};
use ostler_store::{Durability, Expect, Op, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{error, info};

use super::world::{Id, Written, id, runs_of};
use super::writer::Ticket;
use super::{Controller, Request};
use crate::driver::Driver;

/// How long a write that failed is not tried again.
const PAUSE: Span = Span::from_secs(1);

/// A write of a job or cronjob has ended. After a failure the object is what the store has, not what was hoped for.
pub(crate) fn settle<T: DeserializeOwned>(
    table: &mut HashMap<Id, Written<T>>,
    store: &Arc<dyn Store>,
    kind: Kind,
    id: &Id,
    stored: bool,
) {
    let Some(entry) = table.get_mut(id) else { return };
    entry.writing = false;
    if stored {
        return;
    }
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    if let Some(current) = store.get(&key(kind, namespace, name).into())
        && let Ok(object) = serde_json::from_slice(&current.value)
    {
        *entry = Written::new(object, current.revision);
    }
}

fn put(kind: Kind, metadata: &Metadata, object: &impl Serialize, expect: Expect) -> Option<Op> {
    match serde_json::to_vec(object) {
        Ok(value) => Some(Op::put(key(kind, &metadata.namespace, &metadata.name).into(), value, expect)),
        Err(why) => {
            error!(%kind, name = metadata.name, %why, "cannot be written as JSON");
            None
        }
    }
}

impl<D: Driver> Controller<D> {
    /// Looks at an object whose write has ended, soon after a failure.
    pub(crate) fn look_again(&mut self, request: Request, stored: bool) {
        if stored {
            self.queue.add(request);
        } else {
            self.queue.add_at(request, self.now() + PAUSE);
        }
    }

    pub(crate) fn reconcile_job(&mut self, job_id: &Id, now: Timestamp) {
        // A new job finds out first what runs already under its name.
        if !self.custody.synced {
            return;
        }
        let runs = runs_of(job_id);
        self.wake_dependents(&runs);
        let Some(entry) = self.world.jobs.get(job_id) else {
            self.world.dependencies.set(&runs, "", &[]);
            self.collect_orphaned_instances(&runs, now);
            return;
        };
        let Job { metadata, spec, .. } = &entry.object;
        self.world.dependencies.set(&runs, &metadata.namespace, &spec.template.spec().depends_on);
        if entry.writing {
            return;
        }
        let instances: Vec<&Instance> = self.world.instances_of(&runs).map(|entry| &entry.object).collect();
        let plan = job::plan(&entry.object, &instances, now);
        let (metadata, revision) = (entry.object.metadata.clone(), entry.revision);
        let changed = plan.status != entry.object.status;
        self.create(Kind::Job, &metadata, false, plan.create, now);
        for name in plan.stop {
            self.stop_run(&id(&metadata.namespace, &name), now);
        }
        for name in plan.delete {
            self.delete(&id(&metadata.namespace, &name), metadata.deletion_grace_period_seconds, now);
        }
        if let Some(at) = plan.wake_at {
            self.queue.add_at(Request::Job(job_id.clone()), at);
        }
        for note in plan.notes {
            info!(job = %job_id, reason = note.reason, message = note.message, "event");
            self.recorder.record(Kind::Job, &metadata, note, now);
        }
        let Some(entry) = self.world.jobs.get_mut(job_id) else { return };
        let expect = Expect::Revision(revision);
        let op = if plan.remove {
            Some(Op::delete(key(Kind::Job, &metadata.namespace, &metadata.name).into(), expect))
        } else if changed || plan.expired {
            entry.object.status = plan.status;
            if plan.expired {
                entry.object.metadata.deletion_timestamp = Some(now);
                entry.object.metadata.generation += 1;
            }
            put(Kind::Job, &metadata, &entry.object, expect)
        } else {
            None
        };
        if let Some(op) = op {
            entry.writing = true;
            // Whoever reads that it is complete must find that its runs are over.
            self.write_instances_of(&runs);
            self.writer.commit(vec![op], Durability::Crash, Ticket::Job(job_id.clone()));
        }
    }

    /// Stops a run for good.
    fn stop_run(&mut self, instance_id: &Id, now: Timestamp) {
        let Some(entry) = self.world.instances.get_mut(instance_id) else { return };
        entry.object.spec.stopped_at = Some(now);
        entry.object.metadata.generation += 1;
        entry.changed();
        self.writer.mark(instance_id);
        self.queue.add(Request::Instance(instance_id.clone()));
    }

    pub(crate) fn reconcile_cronjob(&mut self, cronjob_id: &Id, now: Timestamp) {
        if !self.custody.synced || self.ending.is_some() {
            return;
        }
        let Some(entry) = self.world.cronjobs.get(cronjob_id).filter(|entry| !entry.writing) else { return };
        let owned: Vec<&Job> =
            self.world.jobs.values().map(|job| &job.object).filter(|job| is_owned(job, &entry.object)).collect();
        let plan = cronjob::plan(&entry.object, &owned, &self.local_zone, now);
        let (metadata, revision) = (entry.object.metadata.clone(), entry.revision);
        let changed = plan.status != entry.object.status;
        for name in plan.delete {
            self.delete_job(&id(&metadata.namespace, &name), metadata.deletion_grace_period_seconds, now);
        }
        if let Some(at) = plan.wake_at {
            self.queue.add_at(Request::CronJob(cronjob_id.clone()), at);
        }
        for note in plan.notes {
            info!(cronjob = %cronjob_id, reason = note.reason, message = note.message, "event");
            self.recorder.record(Kind::CronJob, &metadata, note, now);
        }
        let Some(entry) = self.world.cronjobs.get_mut(cronjob_id) else { return };
        let mut ops = Vec::with_capacity(2);
        if plan.remove {
            let store_key = key(Kind::CronJob, &metadata.namespace, &metadata.name).into();
            ops.push(Op::delete(store_key, Expect::Revision(revision)));
        } else if changed {
            entry.object.status = plan.status;
            // One commit: a job is made exactly once for its time, whenever the daemon dies.
            let job = plan.start.map(|start| new_job(&entry.object, start, now));
            let job_key = |job: &Job| id(&job.metadata.namespace, &job.metadata.name);
            // One of this name that is not ours was made by hand; it keeps its name, and this time is left out.
            if let Some(job) = job.filter(|job| !self.world.jobs.contains_key(&job_key(job))) {
                ops.extend(put(Kind::Job, &job.metadata, &job, Expect::Absent));
            }
            ops.extend(put(Kind::CronJob, &metadata, &entry.object, Expect::Revision(revision)));
        }
        if !ops.is_empty() {
            entry.writing = true;
            self.writer.commit(ops, Durability::Crash, Ticket::CronJob(cronjob_id.clone()));
        }
    }

    /// Asks for the deletion of a job.
    fn delete_job(&mut self, job_id: &Id, grace: Option<u64>, now: Timestamp) {
        let Some(entry) = self.world.jobs.get_mut(job_id) else { return };
        if entry.writing || entry.object.metadata.is_deleting() {
            return;
        }
        let metadata = &mut entry.object.metadata;
        metadata.deletion_timestamp = Some(now);
        metadata.deletion_grace_period_seconds = grace;
        metadata.generation += 1;
        let metadata = metadata.clone();
        if let Some(op) = put(Kind::Job, &metadata, &entry.object, Expect::Revision(entry.revision)) {
            entry.writing = true;
            self.writer.commit(vec![op], Durability::Crash, Ticket::Job(job_id.clone()));
        }
    }

    /// Asks for the deletion of every cronjob and job in a namespace; whether there are any.
    pub(crate) fn delete_jobs_in(&mut self, namespace: &str, now: Timestamp) -> bool {
        let inside = |id: &&Id| id.split_once('/').is_some_and(|(place, _)| place == namespace);
        let cronjobs: Vec<Id> = self.world.cronjobs.keys().filter(inside).cloned().collect();
        let jobs: Vec<Id> = self.world.jobs.keys().filter(inside).cloned().collect();
        for cronjob_id in &cronjobs {
            let Some(entry) = self.world.cronjobs.get_mut(cronjob_id) else { continue };
            if entry.writing || entry.object.metadata.is_deleting() {
                continue;
            }
            entry.object.metadata.deletion_timestamp = Some(now);
            entry.object.metadata.generation += 1;
            let metadata = entry.object.metadata.clone();
            if let Some(op) = put(Kind::CronJob, &metadata, &entry.object, Expect::Revision(entry.revision)) {
                entry.writing = true;
                self.writer.commit(vec![op], Durability::Crash, Ticket::CronJob(cronjob_id.clone()));
            }
        }
        for job_id in &jobs {
            self.delete_job(job_id, None, now);
        }
        !cronjobs.is_empty() || !jobs.is_empty()
    }
}

/// Whether a job was made by a cronjob, and by this one and not by one before it of the same name.
fn is_owned(job: &Job, cronjob: &CronJob) -> bool {
    job.metadata.namespace == cronjob.metadata.namespace
        && job.metadata.owner_references.iter().any(|owner| owner.uid == cronjob.metadata.uid)
}

fn new_job(cronjob: &CronJob, start: cronjob::Start, now: Timestamp) -> Job {
    let template = &cronjob.spec.job_template;
    let mut annotations = template.metadata.annotations.clone();
    annotations.insert(SCHEDULED_AT.to_owned(), start.scheduled_at.to_string());
    Job {
        api_version: Kind::Job.api_version().to_owned(),
        kind: Kind::Job.name().to_owned(),
        metadata: Metadata {
            name: start.name,
            namespace: cronjob.metadata.namespace.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            generation: 1,
            labels: template.metadata.labels.clone(),
            annotations,
            creation_timestamp: Some(now),
            owner_references: vec![OwnerReference {
                api_version: Kind::CronJob.api_version().to_owned(),
                kind: Kind::CronJob.name().to_owned(),
                name: cronjob.metadata.name.clone(),
                uid: cronjob.metadata.uid.clone(),
                controller: true,
            }],
            ..Metadata::default()
        },
        spec: template.spec.clone(),
        status: JobStatus::default(),
    }
}
