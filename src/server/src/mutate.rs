//! Writes other than apply: delete, restart, stop, start, scale, signal.

use ostler_core::kinds::{Instance, Namespace, NamespacePhase, Process, RESTARTED_AT, STOPPED_AT};
use ostler_core::object::key;
use ostler_core::{Kind, validate};
use ostler_engine::{Action, InstanceRef};
use ostler_gitops::inventory;
use ostler_store::{Entry, Expect, Key, Op, Revision};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Cause, Reason};
use crate::select::Selection;
use crate::service::{Service, now};

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

/// A request that names nothing must say that it means everything.
fn require_target(selection: &Selection, all: bool) -> Result<(), ApiError> {
    if selection.is_narrow() || all {
        return Ok(());
    }
    Err(ApiError::bad("name what is meant, select it by labels, or ask for all of them"))
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
        require_target(selection, all)?;
        match selection.kind {
            Kind::Namespace | Kind::Process | Kind::Source => {}
            Kind::Instance => {
                return Err(ApiError::new(Reason::Forbidden, "instances belong to their Process, which would make them anew")
                    .hint("use `ostler restart` or `ostler stop` on the instance, or `ostler scale` or `ostler delete` on the process"));
            }
            Kind::Event => return Err(ApiError::new(Reason::Forbidden, "events are kept and removed by Ostler")),
        }
        let grace = grace_ms.map(|millis| millis.div_ceil(1000));
        self.transact(|| {
            let (entries, _) = self.list(selection)?;
            let mut ops = Vec::new();
            let mut deleted = Vec::new();
            for entry in &entries {
                deleted.push((selection.kind, entry.key.namespace().to_owned(), entry.key.name().to_owned()));
                match selection.kind {
                    Kind::Namespace => {
                        let mut object: Namespace = read(entry)?;
                        if object.metadata.name == "default" {
                            return Err(ApiError::new(
                                Reason::Forbidden,
                                "the namespace \"default\" cannot be deleted",
                            )
                            .hint("`ostler delete processes --all` deletes what is in it"));
                        }
                        if !object.metadata.is_deleting() {
                            object.metadata.deletion_timestamp = Some(now());
                            object.status.phase = NamespacePhase::Terminating;
                            ops.push(put(entry, &object)?);
                        }
                    }
                    // What it brought stays, as it is.
                    Kind::Source => {
                        ops.push(Op::delete(entry.key.clone(), Expect::Revision(entry.revision)));
                        for chunk in self.store.list(&inventory::prefix(entry.key.name())).entries {
                            ops.push(Op::delete(chunk.key, Expect::Any));
                        }
                    }
                    Kind::Process | Kind::Instance | Kind::Event => {
                        let mut object: Process = read(entry)?;
                        let metadata = &mut object.metadata;
                        if metadata.is_deleting()
                            && (grace.is_none() || metadata.deletion_grace_period_seconds == grace)
                        {
                            continue;
                        }
                        if !metadata.is_deleting() {
                            metadata.deletion_timestamp = Some(now());
                            metadata.generation += 1;
                        }
                        metadata.deletion_grace_period_seconds = grace;
                        ops.push(put(entry, &object)?);
                    }
                }
            }
            if dry_run {
                ops.clear();
            }
            Ok((ops, deleted))
        })
        .await
    }

    /// Restarts, stops or starts whatever matches.
    pub(crate) async fn act(
        &self,
        selection: &Selection,
        all: bool,
        action: Action,
    ) -> Result<(Vec<Acted>, Revision), ApiError> {
        require_target(selection, all)?;
        match selection.kind {
            Kind::Instance => {
                let targets = self.instances(selection)?;
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
            Kind::Process => self.act_on_processes(selection, action).await,
            kind @ (Kind::Namespace | Kind::Source | Kind::Event) => {
                Err(ApiError::bad(format!("a {kind} cannot be restarted, stopped or started"))
                    .hint("name a process or an instance"))
            }
        }
    }

    async fn act_on_processes(
        &self,
        selection: &Selection,
        action: Action,
    ) -> Result<(Vec<Acted>, Revision), ApiError> {
        let (mut acted, revision) = self
            .transact(|| {
                let (entries, _) = self.list(selection)?;
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
                    let annotations = &mut object.metadata.annotations;
                    let stopped = annotations.contains_key(STOPPED_AT);
                    let (changed, message) = match action {
                        Action::Restart => {
                            annotations.insert(RESTARTED_AT.to_owned(), now().to_string());
                            annotations.remove(STOPPED_AT);
                            (true, "restarted")
                        }
                        Action::Stop if stopped => (false, "already stopped"),
                        Action::Stop => {
                            annotations.insert(STOPPED_AT.to_owned(), now().to_string());
                            (true, "stopped")
                        }
                        Action::Start => {
                            annotations.remove(STOPPED_AT);
                            (stopped, if stopped { "started" } else { "already running" })
                        }
                    };
                    if changed {
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
            Kind::Instance => self.instances(selection)?,
            Kind::Process => {
                let mut targets = Vec::new();
                for entry in self.list(selection)?.0 {
                    targets.extend(self.instances_of(entry.key.namespace(), entry.key.name(), Action::Start)?);
                }
                targets
            }
            kind @ (Kind::Namespace | Kind::Source | Kind::Event) => {
                return Err(ApiError::bad(format!("a {kind} takes no signals")));
            }
        };
        self.controller.signal(targets.clone(), signal, tree).await?;
        Ok(targets)
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
                object.spec.replicas = Some(replicas);
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
                Ok((vec![put(&entry, &object)?], true))
            })
            .await?;
        let entry = self.store.get(&store_key).ok_or_else(|| ApiError::not_found(Kind::Process, name))?;
        Ok((entry, changed))
    }
}
