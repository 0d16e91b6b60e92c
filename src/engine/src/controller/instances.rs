//! Reconciling one instance, and what follows when its record is in the store.

use ostler_core::config::Resolved;
use ostler_core::kinds::{Instance, Phase};
use ostler_core::object::key;
use ostler_core::plan::instance::{Action, Attempt, AttemptState, plan};
use ostler_core::{Kind, Timestamp};
use ostler_keeper::wire;
use ostler_store::{Durability, Expect, Key, Op};
use ostler_telemetry::traceparent;
use tracing::{Span, debug, error, warn};

use super::world::{Id, owner_request, runs_of, service_of};
use super::writer::{Outcome, Ticket};
use super::{Controller, Request, coalesce, custody};
use crate::driver::Driver;
use crate::spawn;

/// The most operations and bytes that go into one lazy batch.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 2 << 20;

/// The store's key of an instance.
pub(crate) fn instance_key(id: &Id) -> Key {
    let (namespace, name) = id.split_once('/').unwrap_or(("", id));
    key(Kind::Instance, namespace, name).into()
}

impl<D: Driver> Controller<D> {
    pub(crate) fn reconcile_instance(&mut self, id: &Id, now: Timestamp) {
        let Some(entry) = self.world.instances.get(id) else { return };
        if entry.removing {
            return;
        }
        // Only a start depends on it.
        let spec = &entry.object.spec.template;
        let missing = (entry.object.status.phase != Phase::Running && ostler_core::config::refers(spec))
            .then(|| self.world.resolve(&entry.object.metadata.namespace, spec, &self.vault).missing)
            .flatten();
        let waits = self.waits(id, now);
        let Some(entry) = self.world.instances.get_mut(id) else { return };
        entry.observed.config_missing = missing.map(String::into_boxed_str);
        entry.observed.waits = waits;
        entry.observed.shutdown = self.ending.as_ref().and_then(super::commands::Ending::stop_by);
        entry.observed.recorded = entry.stored >= entry.needs;
        let plan = plan(&entry.object, &entry.observed, now);
        let changed = plan.status != entry.object.status;
        let span = if changed || !plan.actions.is_empty() {
            let owner = self.observer.traces().then(|| {
                let owner = super::world::id(&entry.object.metadata.namespace, entry.object.spec.owner());
                if entry.object.spec.job.is_some() {
                    self.world.jobs.get(&owner).map(|job| &job.object.metadata)
                } else {
                    self.world.processes.get(&owner).map(|process| &process.object.metadata)
                }
            });
            let service = service_of(&self.world.jobs, &entry.object);
            self.observer.planned(id, &entry.object, owner.flatten(), service, &plan)
        } else {
            Span::none()
        };
        if changed {
            let before = &entry.object.status;
            let published = plan.status.phase != before.phase
                || plan.status.ready != before.ready
                || plan.status.reason != before.reason
                || plan.status.revision != before.revision;
            debug!(instance = %id, from = before.phase.name(), to = plan.status.phase.name(), "transition");
            entry.object.status = plan.status;
            entry.changed();
            self.writer.mark(id);
            if published {
                let request = owner_request(&entry.object);
                let siblings = match &request {
                    Request::Job(id) => self.world.count_of(&runs_of(id)),
                    Request::Process(id) | Request::Instance(id) | Request::Namespace(id) | Request::CronJob(id) => {
                        self.world.count_of(id)
                    }
                };
                self.queue.add_at(request, now + coalesce(siblings));
            }
        }
        self.settle_hooks(id);
        if let Some(at) = plan.wake_at {
            self.queue.add_at(Request::Instance(id.clone()), at);
        }
        for action in plan.actions {
            self.act_on(id, &action, now, &span);
        }
        for note in plan.log {
            warn!(instance = %id, reason = note.reason, message = note.message, "threshold");
        }
        self.tell(id, plan.notes, now);
        self.probe(id, now);
        self.watch_usage(id, now);
        self.tend_files(id, now);
    }

    /// What ConfigMaps and Secrets give an instance now.
    pub(crate) fn given(&self, instance: &Instance) -> Resolved {
        if !ostler_core::config::refers(&instance.spec.template) {
            return Resolved::default();
        }
        let mut given = self.world.resolve(&instance.metadata.namespace, &instance.spec.template, &self.vault);
        if !instance.spec.template.files.is_empty() {
            given.directory = Some(self.files.path(&instance.metadata.uid).display().to_string());
        }
        given
    }

    fn spawn(&mut self, id: &Id, attempt: u64, now: Timestamp, traceparent: Option<String>) {
        let Some(entry) = self.world.instances.get(id) else { return };
        let service = service_of(&self.world.jobs, &entry.object);
        let given = self.given(&entry.object);
        let command = self
            .write_files(&entry.object, &given, now)
            .and_then(|()| spawn::command(&entry.object, &given, attempt, now, service, traceparent));
        let Some(entry) = self.world.instances.get_mut(id) else { return };
        match command {
            Ok(mut command) => {
                spawn::let_speak(&mut command, &entry.object.spec.template, &self.prober);
                entry.observed.starting = Some(attempt);
                entry.observed.limited = None;
                self.driver.submit(command.into());
                self.tell_of_disk(id, now);
            }
            Err(error) => {
                let attempt = Attempt::failed(attempt, now, AttemptState::FailedToStart(error));
                self.observer.started(id, &attempt);
                self.put_attempt(id, attempt);
            }
        }
    }

    fn act_on(&mut self, id: &Id, action: &Action, now: Timestamp, plan: &Span) {
        let Some(entry) = self.world.instances.get_mut(id) else { return };
        let span = self.observer.acting(id, action, plan);
        let uid = entry.object.metadata.uid.clone();
        match *action {
            Action::Hook { kind, attempt, ref env } => self.run_hook(id, kind, attempt, env, now),
            Action::CancelHook => self.cancel_hook(id),
            Action::Record => {
                entry.must_be_stored();
                self.writer.take_mark(id);
                self.commit_records(std::slice::from_ref(id));
            }
            Action::Spawn { attempt } => self.spawn(id, attempt, now, traceparent(&span)),
            Action::Limit { attempt } => {
                let status = &entry.object.status;
                let limits = entry.object.spec.template.limits_in_effect(status.resources.as_deref());
                entry.observed.limited = limits.map(Box::new);
                let limits = spawn::limits(&entry.object);
                self.driver.submit(wire::SetLimits { id: uid, attempt, limits }.into());
            }
            Action::Signal { attempt, signal } => {
                entry.observed.signalled = Some(attempt);
                self.driver.submit(wire::Signal { id: uid, attempt, signal, tree: true }.into());
            }
            Action::Kill { attempt } => {
                entry.observed.killed = Some(attempt);
                self.driver.submit(wire::Kill { id: uid, attempt }.into());
            }
            Action::Forget { attempt } => {
                if !entry.forget.iter().any(|(waiting, _)| *waiting == attempt) {
                    entry.forget.push((attempt, entry.version));
                    self.writer.mark(id);
                }
            }
            Action::Remove => {
                entry.removing = true;
                let ops = vec![Op::delete(instance_key(id), Expect::Any)];
                self.writer.commit(ops, Durability::Crash, Ticket::Removed(id.clone()));
            }
        }
    }

    /// Sends what changed to the store, if no batch is under way.
    pub(crate) fn submit_writes(&mut self) {
        if self.recorder.is_idle() && self.writer.is_idle() {
            return;
        }
        let ids = match self.writer.next_batch(BATCH) {
            Some(ids) => ids,
            None if self.recorder.is_idle() || !self.writer.may_batch() => return,
            None => Vec::new(),
        };
        let mut written = Vec::with_capacity(ids.len());
        let mut ops = Vec::with_capacity(ids.len());
        let mut bytes = 0;
        for id in ids {
            if bytes > BATCH_BYTES {
                self.writer.mark(&id);
                continue;
            }
            let Some((op, version, size)) = self.write_of(&id) else { continue };
            bytes += size;
            ops.push(op);
            written.push((id, version));
        }
        ops.extend(self.recorder.take(BATCH));
        if !ops.is_empty() {
            self.writer.commit(ops, Durability::Lazy, Ticket::Batch(written));
        }
    }

    /// The operation that stores an instance as it is now, its version, and its size.
    pub(crate) fn write_of(&self, id: &Id) -> Option<(Op, u64, usize)> {
        let entry = self.world.instances.get(id).filter(|entry| !entry.removing)?;
        match serde_json::to_vec(&entry.object) {
            Ok(value) => {
                let size = value.len();
                Some((Op::put(instance_key(id), value, Expect::Any), entry.version, size))
            }
            Err(why) => {
                error!(instance = %id, %why, "cannot be written as JSON");
                None
            }
        }
    }

    /// Writes what has changed of the instances of a process now, whether or not a batch is under way.
    pub(crate) fn write_instances_of(&mut self, process: &Id) {
        let changed: Vec<Id> = self
            .world
            .by_process
            .get(process)
            .into_iter()
            .flatten()
            .map(|(_, id)| id)
            .filter(|id| self.writer.take_mark(id))
            .cloned()
            .collect();
        self.commit_records(&changed);
    }

    /// Records of instances that may not run before they are stored.
    pub(crate) fn commit_records(&mut self, ids: &[Id]) {
        for chunk in ids.chunks(BATCH) {
            let mut ops = Vec::with_capacity(chunk.len());
            let mut written = Vec::with_capacity(chunk.len());
            for id in chunk {
                if let Some((op, version, _)) = self.write_of(id) {
                    ops.push(op);
                    written.push((id.clone(), version));
                }
            }
            // What happened is told no later than what came of it.
            ops.extend(self.recorder.take(BATCH));
            self.writer.commit(ops, Durability::Crash, Ticket::Records(written));
        }
    }

    pub(crate) fn take_outcome(&mut self, outcome: Outcome) {
        let Outcome { ticket, result } = outcome;
        match &result {
            // The API wrote the object in between; the watch brings that, and the plan is made anew.
            Err(why @ ostler_store::Error::Conflict { .. }) => debug!(%why, "decided on an older state"),
            Err(why) => warn!(%why, "not stored"),
            Ok(_) => {}
        }
        match (ticket, result) {
            (Ticket::Batch(written) | Ticket::Records(written), Ok(_)) => self.stored(written),
            (Ticket::Batch(written) | Ticket::Records(written), Err(_)) => {
                for (id, _) in written {
                    self.writer.mark(&id);
                }
            }
            (Ticket::Reply(written, reply), result) => {
                match &result {
                    Ok(_) => self.stored(written),
                    Err(_) => self.revert(written),
                }
                // The caller may have given up waiting.
                let _ = reply.send(result);
            }
            (Ticket::Removed(id), Ok(_)) => self.removed(&id),
            (Ticket::Removed(id), Err(_)) => {
                if let Some(entry) = self.world.instances.get_mut(&id) {
                    // The tick tries again.
                    entry.removing = false;
                }
            }
            (Ticket::Process(id), _) => {
                if let Some(entry) = self.world.processes.get_mut(&id) {
                    entry.writing = false;
                }
                // Else the status of many would be counted and written again as fast as the disk takes it.
                let soonest = self.now() + coalesce(self.world.count_of(&id));
                self.queue.add_at(Request::Process(id), soonest);
            }
            (Ticket::Job(id), result) => {
                super::jobs::settle(&mut self.world.jobs, &self.store, Kind::Job, &id, result.is_ok());
                self.look_again(Request::Job(id), result.is_ok());
            }
            (Ticket::CronJob(id), result) => {
                super::jobs::settle(&mut self.world.cronjobs, &self.store, Kind::CronJob, &id, result.is_ok());
                self.look_again(Request::CronJob(id), result.is_ok());
            }
            (Ticket::Namespace(id), _) => self.queue.add_at(Request::Namespace(id), self.now() + coalesce(1000)),
        }
    }

    fn stored(&mut self, written: Vec<(Id, u64)>) {
        for (id, version) in written {
            let Some(entry) = self.world.instances.get_mut(&id) else { continue };
            let waiting = entry.stored < entry.needs;
            entry.stored = entry.stored.max(version);
            let stored = entry.stored;
            let deleting = entry.object.metadata.is_deleting();
            let mut forgotten = false;
            let uid = &entry.object.metadata.uid;
            let attempts = &mut entry.observed.attempts;
            let driver = &mut self.driver;
            entry.forget.retain(|(attempt, needs)| {
                let due = *needs <= stored;
                if due {
                    driver.submit(custody::forget(uid, *attempt, deleting));
                    attempts.retain(|held| held.number != *attempt);
                    forgotten = true;
                }
                !due
            });
            if waiting || forgotten {
                self.queue.add(Request::Instance(id));
            }
        }
    }

    /// A change that somebody asked for could not be stored: it has not happened.
    fn revert(&mut self, written: Vec<(Id, u64)>) {
        for (id, _) in written {
            let stored = self.store.get(&instance_key(&id));
            let Some(entry) = self.world.instances.get_mut(&id) else { continue };
            if let Some(old) =
                stored.and_then(|stored| serde_json::from_slice::<ostler_core::kinds::Instance>(&stored.value).ok())
            {
                entry.object.spec = old.spec;
                entry.changed();
                self.writer.mark(&id);
            }
            self.queue.add(Request::Instance(id));
        }
    }

    fn removed(&mut self, id: &Id) {
        self.observer.removed(id);
        let Some(entry) = self.world.remove_instance(id) else { return };
        self.prober.forget(id);
        self.hooks.cancel(id);
        self.sampler.untrack(id.clone(), None);
        let metadata = &entry.object.metadata;
        if !entry.object.spec.template.files.is_empty() {
            self.remove_files(&metadata.uid);
        }
        self.remove_logs(&metadata.namespace, &metadata.name, &metadata.uid);
        self.queue.add(owner_request(&entry.object));
    }

    /// Moves the logs out of the way at once, so that an instance of the same name begins with none, and removes them
    /// beside the loop.
    fn remove_logs(&self, namespace: &str, name: &str, uid: &str) {
        let from = self.options.state_dir.join(spawn::log_dir(namespace, name));
        let to = self.options.state_dir.join("logs").join(format!(".removed-{uid}"));
        if std::fs::rename(&from, &to).is_ok() {
            tokio::task::spawn_blocking(move || {
                if let Err(why) = std::fs::remove_dir_all(&to) {
                    warn!(directory = %to.display(), %why, "cannot remove the logs of a deleted instance");
                }
            });
        }
    }
}
