//! Decides whether what an instance depends on is there, and who has to stop before it.
//!
//! Pure. Both are read off the instances on every call: nothing has to be remembered of who was seen ready when.

use super::process::available_at;
use crate::kinds::{
    COMPLETE, Dependency, DependencyCondition, Instance, Job, Phase, Process, RESTARTED_TOGETHER_AT, STOPPED_AT,
};
use crate::time::{Span, Timestamp};

/// What a dependency is on.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// There is none of that name.
    Missing,
    /// A Process.
    Process(&'a Process),
    /// A Job.
    Job(&'a Job),
}

/// A dependency that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// "process/db (Ready): 0 of 1 instances"
    pub message: String,
    /// How long it may take.
    pub timeout: Option<Span>,
    /// It is there at this time if nothing happens before.
    pub met_at: Option<Timestamp>,
}

/// What keeps an instance from being started or stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// What it depends on and is not there yet.
    pub start: Vec<Unmet>,
    /// Names of instances that depend on it, are being stopped too, and still live.
    pub stop: Vec<String>,
}

impl Waits {
    /// Nothing keeps it.
    pub fn is_empty(&self) -> bool {
        self.start.is_empty() && self.stop.is_empty()
    }
}

/// What is missing, if anything is; `instances` are those of the subject.
pub fn unmet<'a>(
    dependency: &Dependency,
    subject: Subject<'_>,
    instances: impl Iterator<Item = &'a Instance>,
    now: Timestamp,
) -> Option<Unmet> {
    let condition = dependency.condition();
    let mut met_at = None;
    let why = match subject {
        Subject::Missing => "there is none of that name".to_owned(),
        Subject::Process(process) => of_process(condition, process, instances, now, &mut met_at)?,
        Subject::Job(job) => of_job(condition, job)?,
    };
    let message = format!("{} ({}): {why}", dependency.shown(), condition.name());
    Some(Unmet { message, timeout: dependency.timeout, met_at })
}

fn of_process<'a>(
    condition: DependencyCondition,
    process: &Process,
    instances: impl Iterator<Item = &'a Instance>,
    now: Timestamp,
    met_at: &mut Option<Timestamp>,
) -> Option<String> {
    let annotations = &process.metadata.annotations;
    if process.metadata.is_deleting() {
        return Some("it is being deleted".to_owned());
    }
    if annotations.contains_key(STOPPED_AT) {
        return Some("it is stopped by hand".to_owned());
    }
    let together = annotations.get(RESTARTED_TOGETHER_AT).and_then(|at| at.parse::<Timestamp>().ok());
    let wanted = process.spec.replicas();
    let (mut met, mut seen) = (0, 0);
    let mut latest = Some(Timestamp::default());
    for instance in instances.filter(|instance| instance.spec.ordinal < wanted) {
        seen += 1;
        let status = &instance.status;
        // What is about to be stopped or replaced is not to be relied on.
        let stays = !instance.metadata.is_deleting()
            && instance.spec.stopped_at.is_none()
            && status.revision == instance.spec.revision
            && status.restarted_at >= instance.spec.restarted_at
            && (status.restarted_at >= together || instance.spec.ordinal < process.spec.update.partition);
        let completed = status.phase == Phase::Stopped && status.done;
        let since = match condition {
            DependencyCondition::Started => {
                (status.phase == Phase::Running || completed).then_some(Timestamp::default())
            }
            DependencyCondition::Completed => completed.then_some(Timestamp::default()),
            DependencyCondition::Ready => available_at(instance, process.spec.update.min_ready),
        };
        let since = since.filter(|_| stays);
        met += u32::from(since.is_some_and(|since| since <= now));
        latest = latest.and_then(|latest| Some(latest.max(since?)));
    }
    if met >= wanted {
        return None;
    }
    *met_at = latest.filter(|at| seen == wanted && *at > now);
    Some(format!("{met} of {wanted} instances"))
}

fn of_job(condition: DependencyCondition, job: &Job) -> Option<String> {
    if job.metadata.is_deleting() {
        return Some("it is being deleted".to_owned());
    }
    let complete = job.status.condition(COMPLETE).is_some();
    let started = job.status.start_time.is_some() && job.status.active + job.status.failed + job.status.succeeded > 0;
    if complete || (condition == DependencyCondition::Started && started) {
        return None;
    }
    Some(match job.status.finished() {
        Some(failed) => format!("it has failed: {}", failed.message),
        None if job.spec.is_suspended() => "it is suspended".to_owned(),
        None => format!("{} of {} completions", job.status.succeeded, job.spec.completions),
    })
}

/// Why an instance is to stop, as far as those matter that depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// The daemon ends and takes everything along.
    Shutdown,
    /// Stopped or deleted; its dependents may be too.
    Stopped,
    /// Restarted with its group, as asked for at this time.
    Together(Timestamp),
}

/// Why an instance is to stop in a way in which those that depend on it may have to stop before it; nothing when it is
/// to go on, or is only replaced.
pub fn leaving(instance: &Instance, owner: Option<&Process>, shutdown: bool) -> Option<Leaving> {
    let in_a_hurry = instance.metadata.deletion_grace_period_seconds == Some(0);
    let together = || -> Option<Leaving> {
        let at: Timestamp = owner?.metadata.annotations.get(RESTARTED_TOGETHER_AT)?.parse().ok()?;
        let due = instance.spec.restarted_at >= Some(at) && instance.status.restarted_at < Some(at);
        due.then_some(Leaving::Together(at))
    };
    if instance.metadata.is_deleting() {
        (!in_a_hurry).then_some(Leaving::Stopped)
    } else if instance.spec.stopped_at.is_some() {
        Some(Leaving::Stopped)
    } else if shutdown {
        Some(Leaving::Shutdown)
    } else {
        together()
    }
}

/// Whether an instance has to stop before another one that it depends on and that leaves: it lives, and leaves too;
/// `namespace_goes`: with its namespace.
pub fn goes_first(dependent: &Instance, owner: Option<&Process>, namespace_goes: bool, leaving: Leaving) -> bool {
    let status = &dependent.status;
    // One that cannot be killed would keep everything below it for ever.
    if !status.is_live() || status.phase == Phase::Stuck {
        return false;
    }
    let annotation = |name: &str| owner.and_then(|process| process.metadata.annotations.get(name));
    match leaving {
        Leaving::Shutdown => true,
        Leaving::Stopped => {
            namespace_goes
                || dependent.metadata.is_deleting()
                || dependent.spec.stopped_at.is_some()
                || owner.is_none_or(|process| process.metadata.is_deleting())
                || annotation(STOPPED_AT).is_some()
        }
        Leaving::Together(at) => {
            let asked = annotation(RESTARTED_TOGETHER_AT).and_then(|at| at.parse::<Timestamp>().ok());
            let kept = owner.is_some_and(|process| dependent.spec.ordinal < process.spec.update.partition);
            asked.is_some_and(|asked| asked >= at) && status.restarted_at < Some(at) && !kept
        }
    }
}

#[cfg(test)]
#[path = "depend_tests.rs"]
mod tests;
