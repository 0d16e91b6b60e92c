//! Writes other than apply: delete, restart, stop, start, scale, signal.

use ostler_core::kinds::{
    CronJob, External, Instance, Job, Namespace, NamespacePhase, PAUSED_AT, Process, RESTARTED_AT,
    RESTARTED_TOGETHER_AT, STOPPED_AT,
};
use ostler_core::object::key;
use ostler_core::{Kind, Metadata, validate};
use ostler_engine::{Action, InstanceRef, external};
use ostler_gitops::inventory;
use ostler_store::{Entry, Expect, Key, Op, Revision};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Cause, Reason};
use crate::ownership;
use crate::select::Selection;
use crate::service::{Service, join_trace, now};

/// What an action on one object came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acted {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) changed: bool,
    pub(crate) message: String,
}

pub(crate) fn read<T: DeserializeOwned>(entry: &Entry) -> Result<T, ApiError> {
    serde_json::from_slice(&entry.value)
        .map_err(|why| ApiError::new(Reason::InternalError, format!("{} in the store: {why}", entry.key)))
}

pub(crate) fn put(entry: &Entry, object: &impl Serialize) -> Result<Op, ApiError> {
    let value = serde_json::to_vec(object).map_err(|why| ApiError::new(Reason::InternalError, why.to_string()))?;
    Ok(Op::put(entry.key.clone(), value, Expect::Revision(entry.revision)))
}

/// Asks for the deletion of an object, with this grace period; whether that was not asked for before.
fn mark_deleted(metadata: &mut Metadata, grace: Option<u64>) -> bool {
    if metadata.is_deleting() && (grace.is_none() || metadata.deletion_grace_period_seconds == grace) {
        return false;
    }
    if !metadata.is_deleting() {
        metadata.deletion_timestamp = Some(now());
        metadata.generation += 1;
    }
    metadata.deletion_grace_period_seconds = grace;
    true
}

/// A request that names nothing must say that it means everything.
fn require_target(selection: &Selection, all: bool) -> Result<(), ApiError> {
    if selection.is_narrow() || all {
        return Ok(());
    }
    Err(ApiError::bad("name what is meant, select it by labels, or ask for all of them"))
}

/// Sets `suspend`; whether that is a change.
fn toggle(
    metadata: &mut Metadata,
    field: &mut Option<bool>,
    suspend: bool,
    finished: Option<String>,
    name: &str,
) -> Result<bool, ApiError> {
    if metadata.is_deleting() {
        return Err(ApiError::new(Reason::Conflict, format!("{name:?} is being deleted")));
    }
    if let Some(how) = finished {
        return Err(ApiError::new(Reason::Conflict, format!("job {name:?} is over: {how}")));
    }
    if field.unwrap_or(false) == suspend {
        return Ok(false);
    }
    *field = Some(suspend);
    metadata.generation += 1;
    Ok(true)
}

impl Service {
    /// Marks for deletion whatever matches; it is gone when its processes are.
    pub(crate) async fn delete(
        &self,
        selection: &Selection,
        all: bool,
        dry_run: bool,
        grace_ms: Option<u64>,
    ) -> Result<(Vec<(Kind, String, String)>, Revision), ApiError> {
        self.delete_if(selection, all, dry_run, grace_ms, &|_| true).await
    }

    /// The same, but only of what is `still` so by its JSON.
    pub(crate) async fn delete_if(
        &self,
        selection: &Selection,
        all: bool,
        dry_run: bool,
        grace_ms: Option<u64>,
        still: &(dyn Fn(&[u8]) -> bool + Sync),
    ) -> Result<(Vec<(Kind, String, String)>, Revision), ApiError> {
        require_target(selection, all)?;
        match selection.kind {
            Kind::Namespace
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Process
            | Kind::Job
            | Kind::CronJob
            | Kind::Source
            | Kind::External => {}
            Kind::Instance => {
                return Err(ApiError::new(Reason::Forbidden, "instances belong to their Process or Job, which would make them anew")
                    .hint("use `ostler restart` or `ostler stop` on the instance, or `ostler scale` or `ostler delete` on the process or job"));
            }
            Kind::Event => return Err(ApiError::new(Reason::Forbidden, "events are kept and removed by Ostler")),
        }
        let grace = grace_ms.map(|millis| millis.div_ceil(1000));
        self.transact(|| {
            let (entries, _) = self.list(selection)?;
            let mut ops = Vec::new();
            let mut deleted = Vec::new();
            for entry in entries.iter().filter(|entry| still(&entry.value)) {
                deleted.push((selection.kind, entry.key.namespace().to_owned(), entry.key.name().to_owned()));
                ops.extend(self.deletion(selection.kind, entry, grace)?);
            }
            if dry_run {
                ops.clear();
            }
            Ok((ops, deleted))
        })
        .await
    }

    /// What asks for the deletion of an object, with this grace period in seconds; nothing when it was asked for before.
    pub(crate) fn deletion(&self, kind: Kind, entry: &Entry, grace: Option<u64>) -> Result<Vec<Op>, ApiError> {
        let mut ops = Vec::new();
        match kind {
            Kind::Namespace => {
                let mut object: Namespace = read(entry)?;
                if object.metadata.name == "default" {
                    return Err(ApiError::new(Reason::Forbidden, "the namespace \"default\" cannot be deleted")
                        .hint("`ostler delete processes --all` deletes what is in it"));
                }
                if !object.metadata.is_deleting() {
                    object.metadata.deletion_timestamp = Some(now());
                    object.status.phase = NamespacePhase::Terminating;
                    ops.push(put(entry, &object)?);
                }
            }
            // What runs with it, or is it, goes on; what starts and refers to it waits for it.
            Kind::ConfigMap | Kind::Secret | Kind::External => {
                ops.push(Op::delete(entry.key.clone(), Expect::Revision(entry.revision)));
            }
            // What it brought stays, as it is.
            Kind::Source => {
                ops.push(Op::delete(entry.key.clone(), Expect::Revision(entry.revision)));
                for chunk in self.store.list(&inventory::of_name(entry.key.name())).entries {
                    ops.push(Op::delete(chunk.key, Expect::Any));
                }
            }
            Kind::Job => {
                let mut object: Job = read(entry)?;
                if mark_deleted(&mut object.metadata, grace) {
                    ops.push(put(entry, &object)?);
                }
            }
            Kind::CronJob => {
                let mut object: CronJob = read(entry)?;
                if mark_deleted(&mut object.metadata, grace) {
                    ops.push(put(entry, &object)?);
                }
            }
            Kind::Process | Kind::Instance | Kind::Event => {
                let mut object: Process = read(entry)?;
                if mark_deleted(&mut object.metadata, grace) {
                    ops.push(put(entry, &object)?);
                }
            }
        }
        Ok(ops)
    }

    /// Restarts, stops or starts whatever matches; `together`: processes are restarted all at once.
    pub(crate) async fn act(
        &self,
        selection: &Selection,
        all: bool,
        action: Action,
        together: bool,
    ) -> Result<(Vec<Acted>, Revision), ApiError> {
        require_target(selection, all)?;
        match selection.kind {
            Kind::Instance => {
                let targets = self.instances(selection)?;
                self.refuse_runs(&targets)?;
                let (acted, revision) = self.controller.act(targets, action).await?;
                let acted = acted.into_iter().map(|acted| Acted {
                    kind: Kind::Instance,
                    namespace: acted.instance.namespace,
                    name: acted.instance.name,
                    changed: acted.changed,
                    message: acted.message.to_owned(),
                });
                Ok((acted.collect(), revision))
            }
            Kind::Process => self.act_on_processes(selection, action, together).await,
            kind @ (Kind::Job | Kind::CronJob) => match action {
                Action::Stop => self.suspend(selection, true).await,
                Action::Start => self.suspend(selection, false).await,
                Action::Restart => {
                    Err(ApiError::bad(format!("a {kind} cannot be restarted")).hint(if kind == Kind::Job {
                        "what succeeded stays; delete the job and apply it again to do all of it anew"
                    } else {
                        "`ostler create job NAME --from=cronjob/NAME` runs it now"
                    }))
                }
            },
            Kind::External => Err(ApiError::new(
                Reason::Forbidden,
                "Ostler did not start what an External stands for, and does not restart, stop or start it",
            )
            .hint("use what started it; a signal can be sent if spec.allowedSignals names it")),
            kind @ (Kind::Namespace | Kind::ConfigMap | Kind::Secret | Kind::Source | Kind::Event) => {
                Err(ApiError::bad(format!("a {kind} cannot be restarted, stopped or started"))
                    .hint("name a process, a job or an instance"))
            }
        }
    }

    /// Runs of a Job are started by it alone: each once.
    fn refuse_runs(&self, targets: &[InstanceRef]) -> Result<(), ApiError> {
        for target in targets {
            let entry = self.get(Kind::Instance, &target.namespace, &target.name)?;
            let instance: Instance = read(&entry)?;
            if let Some(share) = &instance.spec.job {
                let message =
                    format!("{} is a run of the job {:?}, which alone starts and stops it", target.name, share.name);
                let hint =
                    format!("`ostler stop job/{0}` suspends the job, `ostler delete job/{0}` ends it", share.name);
                return Err(ApiError::bad(message).hint(hint));
            }
        }
        Ok(())
    }

    /// Suspends jobs or cronjobs, or lets them go on.
    async fn suspend(&self, selection: &Selection, suspend: bool) -> Result<(Vec<Acted>, Revision), ApiError> {
        self.transact(|| {
            let mut ops = Vec::new();
            let mut acted = Vec::new();
            for entry in self.list(selection)?.0 {
                let (op, message) = if selection.kind == Kind::Job {
                    let mut object: Job = read(&entry)?;
                    let finished = object.status.finished().map(|condition| condition.kind.clone());
                    let changed =
                        toggle(&mut object.metadata, &mut object.spec.suspend, suspend, finished, entry.key.name())?;
                    (changed.then(|| put(&entry, &object)).transpose()?, changed)
                } else {
                    let mut object: CronJob = read(&entry)?;
                    let changed =
                        toggle(&mut object.metadata, &mut object.spec.suspend, suspend, None, entry.key.name())?;
                    (changed.then(|| put(&entry, &object)).transpose()?, changed)
                };
                ops.extend(op);
                let message = match (suspend, message) {
                    (true, true) => "suspended",
                    (true, false) => "already suspended",
                    (false, true) => "resumed",
                    (false, false) => "not suspended",
                };
                acted.push(Acted {
                    kind: selection.kind,
                    namespace: entry.key.namespace().to_owned(),
                    name: entry.key.name().to_owned(),
                    changed: matches!(message, "suspended" | "resumed"),
                    message: message.to_owned(),
                });
            }
            Ok((ops, acted))
        })
        .await
    }

    async fn act_on_processes(
        &self,
        selection: &Selection,
        action: Action,
        together: bool,
    ) -> Result<(Vec<Acted>, Revision), ApiError> {
        let (mut acted, revision) = self
            .transact(|| {
                let (entries, _) = self.list(selection)?;
                // What is stopped and started in one order is asked for in one moment.
                let at = now().to_string();
                let mut ops = Vec::new();
                let mut acted = Vec::new();
                for entry in &entries {
                    let mut object: Process = read(entry)?;
                    if object.metadata.is_deleting() {
                        return Err(ApiError::new(
                            Reason::Conflict,
                            format!("process {:?} is being deleted", entry.key.name()),
                        ));
                    }
                    let paused = object.spec.update.paused || object.metadata.annotations.contains_key(PAUSED_AT);
                    if action == Action::Restart && paused {
                        let name = entry.key.name();
                        return Err(ApiError::new(Reason::Conflict, format!("rollouts of {name:?} are paused"))
                            .hint(format!("ostler rollout resume process/{name}, and try again")));
                    }
                    let annotations = &mut object.metadata.annotations;
                    let stopped = annotations.contains_key(STOPPED_AT);
                    let (changed, message) = match action {
                        Action::Restart => {
                            annotations.insert(RESTARTED_AT.to_owned(), at.clone());
                            if together {
                                annotations.insert(RESTARTED_TOGETHER_AT.to_owned(), at.clone());
                            }
                            annotations.remove(STOPPED_AT);
                            (true, "restarted")
                        }
                        Action::Stop if stopped => (false, "already stopped"),
                        Action::Stop => {
                            annotations.insert(STOPPED_AT.to_owned(), at.clone());
                            (true, "stopped")
                        }
                        Action::Start => {
                            annotations.remove(STOPPED_AT);
                            (stopped, if stopped { "started" } else { "already running" })
                        }
                    };
                    if changed {
                        join_trace(&mut object.metadata);
                        // Whoever waits for it knows by observedGeneration that it was seen.
                        object.metadata.generation += 1;
                        ops.push(put(entry, &object)?);
                    }
                    acted.push(Acted {
                        kind: Kind::Process,
                        namespace: entry.key.namespace().to_owned(),
                        name: entry.key.name().to_owned(),
                        changed,
                        message: message.to_owned(),
                    });
                }
                Ok((ops, acted))
            })
            .await?;
        let wakes = match action {
            // A process that was stopped by hand starts again with a restart, too.
            Action::Start | Action::Restart => true,
            Action::Stop => false,
        };
        if wakes {
            for process in &mut acted {
                let targets = self.instances_of(&process.namespace, &process.name, action)?;
                if targets.is_empty() {
                    continue;
                }
                let (instances, _) = self.controller.act(targets, Action::Start).await?;
                if action == Action::Start && instances.iter().any(|instance| instance.changed) {
                    process.changed = true;
                    "started".clone_into(&mut process.message);
                }
            }
        }
        Ok((acted, revision))
    }

    /// The instances of a process that a start or restart of it has to wake one by one.
    fn instances_of(&self, namespace: &str, process: &str, action: Action) -> Result<Vec<InstanceRef>, ApiError> {
        let prefix = format!("{}/{namespace}/{process}-", Kind::Instance.plural());
        let mut targets = Vec::new();
        for entry in self.store.list(&prefix).entries {
            let instance: Instance = read(&entry)?;
            let ours = instance.spec.process == process && !instance.metadata.is_deleting();
            if ours && (action == Action::Start || instance.spec.stopped_at.is_some()) {
                targets.push(InstanceRef { namespace: namespace.to_owned(), name: entry.key.name().to_owned() });
            }
        }
        Ok(targets)
    }

    /// The runs of a job that are not over.
    fn live_runs_of(&self, namespace: &str, job: &str) -> Result<Vec<InstanceRef>, ApiError> {
        let prefix = format!("{}/{namespace}/{job}-", Kind::Instance.plural());
        let mut targets = Vec::new();
        for entry in self.store.list(&prefix).entries {
            let instance: Instance = read(&entry)?;
            if instance.spec.job.as_ref().is_some_and(|share| share.name == job) && instance.status.is_live() {
                targets.push(InstanceRef { namespace: namespace.to_owned(), name: entry.key.name().to_owned() });
            }
        }
        Ok(targets)
    }

    fn instances(&self, selection: &Selection) -> Result<Vec<InstanceRef>, ApiError> {
        let (entries, _) = self.list(selection)?;
        let reference = |entry: &Entry| InstanceRef {
            namespace: entry.key.namespace().to_owned(),
            name: entry.key.name().to_owned(),
        };
        Ok(entries.iter().map(reference).collect())
    }

    /// Sends a signal to instances, or to every instance of processes.
    pub(crate) async fn signal(
        &self,
        selection: &Selection,
        all: bool,
        signal: i32,
        tree: bool,
    ) -> Result<Vec<InstanceRef>, ApiError> {
        require_target(selection, all)?;
        if !(1..=64).contains(&signal) {
            return Err(ApiError::bad(format!("{signal} is not a signal: 1 to 64")));
        }
        let targets = match selection.kind {
            Kind::External => return self.signal_externals(selection, signal, tree),
            Kind::Instance => self.instances(selection)?,
            Kind::Process => {
                let mut targets = Vec::new();
                for entry in self.list(selection)?.0 {
                    targets.extend(self.instances_of(entry.key.namespace(), entry.key.name(), Action::Start)?);
                }
                targets
            }
            Kind::Job => {
                let mut targets = Vec::new();
                for entry in self.list(selection)?.0 {
                    targets.extend(self.live_runs_of(entry.key.namespace(), entry.key.name())?);
                }
                targets
            }
            kind @ (Kind::Namespace | Kind::ConfigMap | Kind::Secret | Kind::CronJob | Kind::Source | Kind::Event) => {
                return Err(ApiError::bad(format!("a {kind} takes no signals")));
            }
        };
        self.controller.signal(targets.clone(), signal, tree).await?;
        Ok(targets)
    }

    /// Sends a signal to processes that Ostler did not start; to none unless it may be sent to all.
    fn signal_externals(&self, selection: &Selection, signal: i32, tree: bool) -> Result<Vec<InstanceRef>, ApiError> {
        if tree {
            return Err(ApiError::bad("only the process that was found can be sent a signal, not its children"));
        }
        let (entries, _) = self.list(selection)?;
        let externals = entries.iter().map(read).collect::<Result<Vec<External>, _>>()?;
        for external in &externals {
            external::check_signal(external, signal).map_err(|why| refused_signal(&why))?;
        }
        for external in &externals {
            external::signal(external, signal).map_err(|why| refused_signal(&why))?;
        }
        let reference =
            |external: External| InstanceRef { namespace: external.metadata.namespace, name: external.metadata.name };
        Ok(externals.into_iter().map(reference).collect())
    }

    /// Sets the number of copies of a process. Returns the entry as it is then, and whether it changed.
    pub(crate) async fn scale(
        &self,
        namespace: &str,
        name: &str,
        replicas: u32,
        current: Option<u32>,
    ) -> Result<(Entry, bool), ApiError> {
        let store_key: Key = key(Kind::Process, namespace, name).into();
        let (changed, _) = self
            .transact(|| {
                let entry = self.get(Kind::Process, namespace, name)?;
                let mut object: Process = read(&entry)?;
                if object.metadata.is_deleting() {
                    return Err(ApiError::new(Reason::Conflict, format!("process {name:?} is being deleted")));
                }
                if let Some(expected) = current
                    && object.spec.replicas() != expected
                {
                    let found = object.spec.replicas();
                    return Err(ApiError::new(
                        Reason::Conflict,
                        format!("process {name:?} has {found} replicas, not {expected}"),
                    ));
                }
                if object.spec.replicas() == replicas {
                    return Ok((Vec::new(), false));
                }
                let before = serde_json::json!({"spec": {"replicas": object.spec.replicas}});
                object.spec.replicas = Some(replicas);
                let after = serde_json::json!({"spec": {"replicas": replicas}});
                ownership::note_update(&mut object.metadata, "ostler scale", &before, &after);
                object.metadata.generation += 1;
                let errors = validate::process(&object);
                if !errors.is_empty() {
                    let causes: Vec<Cause> = errors
                        .into_iter()
                        .map(|error| Cause { object: 0, field: error.field, message: error.message })
                        .collect();
                    let message =
                        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>();
                    return Err(ApiError { causes, ..ApiError::new(Reason::Invalid, message.join("; ")) });
                }
                join_trace(&mut object.metadata);
                Ok((vec![put(&entry, &object)?], true))
            })
            .await?;
        let entry = self.store.get(&store_key).ok_or_else(|| ApiError::not_found(Kind::Process, name))?;
        Ok((entry, changed))
    }
}

fn refused_signal(why: &external::SignalError) -> ApiError {
    let (reason, hint) = match why {
        external::SignalError::NotAllowed { .. } => {
            (Reason::Forbidden, "add it to spec.allowedSignals if Ostler may send it")
        }
        external::SignalError::NotFound { .. } => (Reason::Conflict, "`ostler describe` says what was looked for"),
        external::SignalError::Refused { .. } => {
            (Reason::Forbidden, "the daemon needs the rights of its owner, or root's")
        }
    };
    ApiError::new(reason, why.to_string()).hint(hint)
}
