//! What is remembered of revisions, and how far a rollout has come.
//!
//! Everything is in the status of the Process: a controller that takes over in the middle goes on with the same deadline,
//! and a rollout that was taken back stays so.

use std::sync::Arc;

use super::Note;
use super::process::{Goal, Members, Plan};
use crate::kinds::{CHANGE_CAUSE, Instance, PastRevision, Phase, Process, ProcessSpec, ProcessStatus, Rollout, Truth};
use crate::time::Timestamp;

/// An instance of a new revision that fails so often in a row keeps crashing.
const CRASH_LOOP: u32 = 3;

/// What instances of a revision are made from, as far as somebody still knows.
pub(super) fn template(status: &ProcessStatus, instances: &[&Instance], revision: &str) -> Option<Arc<ProcessSpec>> {
    let past = status.revisions.iter().find(|past| past.revision == revision).map(|past| &past.template);
    let kept = || instances.iter().find(|it| it.spec.revision == revision).map(|it| &it.spec.template);
    past.or_else(kept).cloned()
}

/// Gives a newly declared revision its number, and keeps the one before.
pub(super) fn observe(status: &mut ProcessStatus, process: &Process, declared: &str, instances: &[&Instance]) {
    if status.revision != declared {
        let before = std::mem::replace(&mut status.revision, declared.to_owned());
        let newest = status.revisions.iter().map(|past| past.number).max().unwrap_or(0).max(status.revision_number);
        if !before.is_empty()
            && let Some(template) = template(status, instances, &before)
        {
            status.revisions.retain(|past| past.revision != before);
            status.revisions.push(PastRevision {
                // The status of a process from before revisions were counted has no number.
                number: status.revision_number.max(1),
                revision: before,
                change_cause: std::mem::take(&mut status.change_cause),
                template,
            });
        }
        status.revisions.retain(|past| past.revision != declared);
        status.revision_number = newest.max(u64::from(!status.revisions.is_empty())) + 1;
        status.change_cause = process.metadata.annotations.get(CHANGE_CAUSE).cloned().unwrap_or_default();
    } else if status.revision_number == 0 {
        status.revision_number = 1;
    }
    // What a rollout may have to return to is kept whatever the limit.
    let limit = process.spec.revision_history_limit();
    while status.revisions.len() > limit {
        let current = &status.current_revision;
        let Some(oldest) = status.revisions.iter().position(|past| past.revision != *current) else { break };
        status.revisions.remove(oldest);
    }
    if limit == 0 && status.current_revision == status.revision {
        status.revisions.clear();
    }
}

/// Takes note of how far the rollout has come; decides that it is complete, or has failed, or is taken back.
pub(super) fn advance(plan: &mut Plan, process: &Process, goal: &Goal, members: &Members<'_>, now: Timestamp) {
    if goal.rolled_back {
        return;
    }
    let finished = members.is_finished(goal);
    let behind = members.stable.values().any(|instance| !goal.is_current(instance));
    let is_this = |it: &Rollout| it.revision == goal.declared && it.restarted_at == goal.restarted_at;
    if finished && !behind && goal.stopped_at.is_none() {
        plan.status.current_revision.clone_from(&goal.declared);
        if let Some(rollout) = plan.status.rollout.take()
            && rollout.replaces
            && is_this(&rollout)
        {
            let message = format!("revision {} is complete", plan.status.revision_number);
            plan.notes.push(Note::normal("RolloutComplete", message));
        }
        return;
    }
    let under_way = plan.status.rollout.as_deref().is_some_and(is_this);
    if !behind && !under_way && plan.status.current_revision == goal.declared {
        // Only the number of copies changes, or an instance crashed later.
        plan.status.rollout = None;
        return;
    }
    let mut rollout = match plan.status.rollout.take() {
        Some(rollout) if is_this(&rollout) => rollout,
        Some(_) | None => {
            Box::new(Rollout { revision: goal.declared.clone(), restarted_at: goal.restarted_at, ..Rollout::default() })
        }
    };
    rollout.replaces |= behind;
    let updated = members.all().filter(|instance| goal.is_updated(instance)).count();
    let good = members.all().filter(|instance| goal.is_current(instance) && members.is_settled(instance)).count();
    let progress = (updated + good) as u32;
    if goal.paused || goal.stopped_at.is_some() || finished {
        rollout.progressed_at = None;
    } else if rollout.progressed_at.is_none() || progress > rollout.progress {
        rollout.progressed_at = Some(now);
        rollout.failed.clear();
        rollout.message.clear();
    }
    rollout.progress = rollout.progress.max(progress);
    let update = &process.spec.update;
    let due = rollout.progressed_at.map(|at| at + update.progress_deadline);
    if rollout.failed.is_empty() && rollout.progressed_at.is_some() {
        let looping = || members.all().find(|instance| goal.is_updated(instance) && keeps_crashing(instance));
        if due.is_some_and(|due| due <= now) {
            let story = format!("no progress for {}", update.progress_deadline);
            fail(plan, goal, &mut rollout, update.auto_rollback, "ProgressDeadlineExceeded", &story);
        } else if let Some(instance) = looping().filter(|_| update.auto_rollback) {
            let story = format!("{} keeps crashing: {}", instance.metadata.name, instance.status.message);
            fail(plan, goal, &mut rollout, true, "CrashLoop", &story);
        }
    }
    if rollout.failed.is_empty()
        && let Some(due) = due
    {
        plan.wake(due);
    }
    plan.status.rollout = Some(rollout);
}

/// Takes note of the failure, and takes the revision back where that is wanted and there is one to return to.
fn fail(plan: &mut Plan, goal: &Goal, rollout: &mut Rollout, take_back: bool, reason: &'static str, story: &str) {
    let number = plan.status.revision_number;
    reason.clone_into(&mut rollout.failed);
    rollout.message = format!("revision {number}: {story}");
    if let Some((base, _)) = goal.base.as_ref().filter(|_| take_back) {
        rollout.rolled_back = true;
        let to = plan.status.revisions.iter().find(|past| past.revision == *base).map(|past| past.number);
        let to = to.map_or_else(String::new, |number| format!("; instances return to revision {number}"));
        rollout.message.push_str(&to);
        plan.notes.push(Note::warning("RolledBack", rollout.message.clone()));
    } else {
        plan.notes.push(Note::warning(reason, rollout.message.clone()));
    }
}

/// The condition Progressing: whether it holds, with Kubernetes' reasons, and in words.
pub(super) fn progressing(status: &ProcessStatus, goal: &Goal, members: &Members<'_>) -> (Truth, &'static str, String) {
    let number = status.revision_number;
    let Some(rollout) = status.rollout.as_deref() else {
        return (Truth::True, "NewRevisionAvailable", format!("revision {number} is complete"));
    };
    let updated = members.stable.values().filter(|instance| goal.is_updated(instance)).count();
    let of = format!("{updated} of {} instances updated", goal.replicas);
    if rollout.rolled_back {
        (Truth::False, "RolledBack", rollout.message.clone())
    } else if !rollout.failed.is_empty() {
        let reason = if rollout.failed == "CrashLoop" { "CrashLoop" } else { "ProgressDeadlineExceeded" };
        (Truth::False, reason, rollout.message.clone())
    } else if goal.paused {
        (Truth::Unknown, "Paused", format!("revision {number}: {of}, rollouts are paused"))
    } else if goal.partition > 0 && members.is_finished(goal) {
        (Truth::True, "NewRevisionAvailable", format!("revision {number}, partitioned: {of}"))
    } else {
        (Truth::True, "RevisionUpdated", format!("revision {number}: {of}"))
    }
}

fn keeps_crashing(instance: &Instance) -> bool {
    let status = &instance.status;
    if status.fallback.is_some() {
        return true;
    }
    match status.phase {
        Phase::Failed => true,
        Phase::Backoff => status.failures >= CRASH_LOOP || status.breaker.open_until.is_some(),
        Phase::Pending
        | Phase::Starting
        | Phase::Running
        | Phase::Stopping
        | Phase::Stopped
        | Phase::Stuck
        | Phase::Lost
        | Phase::Unknown => false,
    }
}
