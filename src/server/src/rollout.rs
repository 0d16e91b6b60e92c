//! Rollouts by hand: pause, resume, undo.

use ostler_core::kinds::{CHANGE_CAUSE, PAUSED_AT, PastRevision, Process};
use ostler_core::{Kind, validate};
use ostler_store::{Entry, Expect, Op};

use crate::error::{ApiError, Reason};
use crate::service::{Service, join_trace, now};

/// What to do with the rollouts of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RolloutAction {
    Pause,
    Resume,
    /// To this revision; without a number, to the one before.
    Undo(Option<u64>),
}

/// What it came to.
#[derive(Clone, Debug)]
pub(crate) struct RolledOut {
    pub(crate) entry: Entry,
    pub(crate) changed: bool,
    pub(crate) message: String,
}

impl Service {
    /// Pauses or resumes rollouts of a process, or returns it to an earlier revision.
    pub(crate) async fn rollout(
        &self,
        namespace: &str,
        name: &str,
        action: RolloutAction,
        dry_run: bool,
    ) -> Result<RolledOut, ApiError> {
        let (mut done, _) = self
            .transact(|| {
                let entry = self.get(Kind::Process, namespace, name)?;
                let mut object: Process = serde_json::from_slice(&entry.value).map_err(|why| {
                    ApiError::new(Reason::InternalError, format!("{} in the store: {why}", entry.key))
                })?;
                if object.metadata.is_deleting() {
                    return Err(ApiError::new(Reason::Conflict, format!("process {name:?} is being deleted")));
                }
                let (changed, message) = decide(&mut object, action)?;
                let mut ops = Vec::new();
                if changed && !dry_run {
                    join_trace(&mut object.metadata);
                    let value = serde_json::to_vec(&object)
                        .map_err(|why| ApiError::new(Reason::InternalError, why.to_string()))?;
                    ops.push(Op::put(entry.key.clone(), value, Expect::Revision(entry.revision)));
                }
                Ok((ops, RolledOut { entry, changed, message }))
            })
            .await?;
        done.entry = self.get(Kind::Process, namespace, name)?;
        Ok(done)
    }
}

fn decide(object: &mut Process, action: RolloutAction) -> Result<(bool, String), ApiError> {
    let paused = object.metadata.annotations.contains_key(PAUSED_AT);
    match action {
        RolloutAction::Pause if paused || object.spec.update.paused => Ok((false, "already paused".to_owned())),
        RolloutAction::Pause => {
            object.metadata.annotations.insert(PAUSED_AT.to_owned(), now().to_string());
            Ok((true, "paused".to_owned()))
        }
        RolloutAction::Resume if object.spec.update.paused => {
            Err(ApiError::new(Reason::Conflict, format!("{:?} is paused by its manifest", object.metadata.name))
                .hint("remove spec.update.paused and apply it"))
        }
        RolloutAction::Resume => {
            object.metadata.annotations.remove(PAUSED_AT);
            Ok((paused, if paused { "resumed" } else { "not paused" }.to_owned()))
        }
        RolloutAction::Undo(to) => undo(object, to),
    }
}

fn undo(object: &mut Process, to: Option<u64>) -> Result<(bool, String), ApiError> {
    let name = object.metadata.name.clone();
    if object.metadata.annotations.contains_key(PAUSED_AT) || object.spec.update.paused {
        return Err(ApiError::new(Reason::Conflict, format!("rollouts of {name:?} are paused"))
            .hint(format!("ostler rollout resume process/{name}, and try again")));
    }
    let status = &object.status;
    let declared = object.revision();
    if to == Some(status.revision_number) && declared == status.revision {
        return Ok((false, format!("already at revision {}", status.revision_number)));
    }
    // A status that has not caught up with the spec still calls what was applied before the present one.
    let others = || status.revisions.iter().filter(|past| past.revision != declared);
    let rolled_back = status.rollout.as_ref().is_some_and(|rollout| rollout.rolled_back);
    // ConfigMaps and Secrets are objects of their own, and stay as they are: another revision of the same spec is nothing
    // that could be returned to.
    let template = object.spec.revision();
    let differs = |past: &&PastRevision| past.template.revision() != template;
    let found: Option<&PastRevision> = match to {
        Some(number) => others().find(|past| past.number == number),
        None if rolled_back => others().filter(differs).find(|past| past.revision == status.current_revision),
        None => others().filter(differs).max_by_key(|past| past.number),
    };
    if let Some(same) =
        found.filter(|past| !differs(past)).or(others().next().filter(|_| found.is_none() && to.is_none()))
    {
        let message = format!(
            "revision {} of {name:?} has the spec that the process has: they differ in what its ConfigMaps and Secrets hold",
            same.number
        );
        let hint = "apply the ConfigMap or Secret as it was; undo returns only to earlier specs of the process";
        return Err(ApiError::new(Reason::Conflict, message).hint(hint));
    }
    let Some(past) = found else {
        let known: Vec<String> = status.revisions.iter().map(|past| past.number.to_string()).collect();
        let (message, hint) = match to {
            Some(number) if !known.is_empty() => {
                (format!("{name:?} has no revision {number}"), format!("kept are {}", known.join(", ")))
            }
            Some(_) | None => (
                format!("{name:?} has no earlier revision to return to"),
                "revisions are kept as spec.revisionHistoryLimit says, from the second one on".to_owned(),
            ),
        };
        return Err(ApiError::new(Reason::NotFound, message).hint(hint));
    };
    let number = past.number;
    let cause = past.change_cause.clone();
    object.spec = object.spec.with_template(&past.template);
    object.metadata.generation += 1;
    if cause.is_empty() {
        object.metadata.annotations.remove(CHANGE_CAUSE);
    } else {
        object.metadata.annotations.insert(CHANGE_CAUSE.to_owned(), cause);
    }
    let errors = validate::process(object);
    if let Some(error) = errors.first() {
        let message =
            format!("revision {number} does not go with the present spec: {}: {}", error.field, error.message);
        return Err(ApiError::new(Reason::Invalid, message));
    }
    Ok((true, format!("rolled back to revision {number}")))
}
