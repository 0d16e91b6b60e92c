//! Decides when a `CronJob` makes a Job, and which of its Jobs go.
//!
//! Pure. It is due when its schedule has a time between the last one it acted on and now; of several, only the latest
//! counts, so whoever was away, the daemon or the clock, owes one Job and not a flood.

use jiff::tz::TimeZone;

use crate::kinds::{ConcurrencyPolicy, CronJob, CronJobStatus, Job, Kind, ObjectReference};
use crate::plan::Note;
use crate::schedule::Schedule;
use crate::time::Timestamp;

/// What to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The Job to make. Only together with the status, or it would be made again.
    pub start: Option<Start>,
    /// Names of Jobs to delete.
    pub delete: Vec<String>,
    /// The status to publish.
    pub status: CronJobStatus,
    /// What to tell.
    pub notes: Vec<Note>,
    /// When to look again if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Deletion was asked for and nothing is left: the object may go.
    pub remove: bool,
}

/// A Job to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its name, which no other time of the schedule has.
    pub name: String,
    /// The time of the schedule that it is for.
    pub scheduled_at: Timestamp,
}

/// The plan for one `CronJob` with the Jobs that belong to it; `local` is the time zone of the machine.
pub fn plan(cronjob: &CronJob, jobs: &[&Job], local: &TimeZone, now: Timestamp) -> Plan {
    let mut plan = Plan {
        start: None,
        delete: Vec::new(),
        status: cronjob.status.clone(),
        notes: Vec::new(),
        wake_at: None,
        remove: false,
    };
    // What is being deleted may still run.
    let active: Vec<&Job> =
        jobs.iter().copied().filter(|job| job.status.finished().is_none() || job.metadata.is_deleting()).collect();
    let status = &mut plan.status;
    status.observed_generation = cronjob.metadata.generation;
    status.active = active.iter().filter(|job| job.status.finished().is_none()).map(|job| reference(job)).collect();
    let completed = jobs.iter().filter_map(|job| job.status.completion_time).max();
    status.last_successful_time = status.last_successful_time.max(completed);
    let before = status.next_schedule_time.take();
    if cronjob.metadata.is_deleting() {
        let present = jobs.iter().filter(|job| !job.metadata.is_deleting());
        plan.delete = present.map(|job| job.metadata.name.clone()).collect();
        plan.remove = jobs.is_empty();
        return plan;
    }
    trim_history(&mut plan, cronjob, jobs);
    if cronjob.spec.is_suspended() {
        return plan;
    }
    // A spec that was valid when it was applied; a zone that is gone from the machine leaves it without a next time.
    let schedule = match Schedule::of(&cronjob.spec, Some(local)) {
        Ok(schedule) => schedule,
        Err((field, message)) => {
            if cronjob.status.observed_generation != cronjob.metadata.generation {
                plan.notes.push(Note::warning("InvalidSchedule", format!("{field}: {message}")));
            }
            return plan;
        }
    };
    let created = cronjob.metadata.creation_timestamp.unwrap_or(now);
    let since = plan.status.last_schedule_time.unwrap_or(created);
    if let Some(due) = schedule.due(since, now) {
        // Told once, when the time has just come: later looks find the next time noted.
        let news = before.is_some_and(|expected| expected <= now);
        begin(&mut plan, cronjob, &active, due, now, news.then_some(before).flatten());
    }
    let since = plan.status.last_schedule_time.unwrap_or(created);
    plan.status.next_schedule_time = schedule.next(since, now.max(since));
    plan.wake_at = plan.status.next_schedule_time;
    plan
}

/// A time of the schedule has come; `expected` is the time that was waited for, unless that was dealt with before.
fn begin(
    plan: &mut Plan,
    cronjob: &CronJob,
    active: &[&Job],
    due: Timestamp,
    now: Timestamp,
    expected: Option<Timestamp>,
) {
    let spec = &cronjob.spec;
    if spec.starting_deadline.is_some_and(|deadline| due + deadline < now) {
        if expected.is_some() {
            let message = format!("the Job of {due} could not be started within its starting deadline");
            plan.notes.push(Note::warning("MissSchedule", message));
        }
        return;
    }
    if !active.is_empty() {
        match spec.concurrency_policy {
            ConcurrencyPolicy::Allow => {}
            ConcurrencyPolicy::Forbid => {
                if expected.is_some() {
                    let message = format!("the Job of {due} waits: {} still runs", active[0].metadata.name);
                    plan.notes.push(Note::normal("JobAlreadyActive", message));
                }
                return;
            }
            ConcurrencyPolicy::Replace => {
                for job in active.iter().filter(|job| !job.metadata.is_deleting()) {
                    let name = job.metadata.name.clone();
                    plan.notes.push(Note::normal("Replacing", format!("{name} makes room for the Job of {due}")));
                    plan.delete.push(name);
                }
                return;
            }
        }
    }
    if let Some(expected) = expected.filter(|expected| *expected < due) {
        let message = format!("nothing was started from {expected} on; one Job makes up for it");
        plan.notes.push(Note::warning("CatchingUp", message));
    }
    let name = format!("{}-{}", cronjob.metadata.name, due.as_micros().div_euclid(1_000_000));
    plan.notes.push(Note::normal("SuccessfulCreate", format!("Created job {name}")));
    plan.status.last_schedule_time = Some(due);
    plan.start = Some(Start { name, scheduled_at: due });
}

/// Of what is finished, only the latest are kept.
fn trim_history(plan: &mut Plan, cronjob: &CronJob, jobs: &[&Job]) {
    let mut finished: Vec<(bool, Option<Timestamp>, &str)> = jobs
        .iter()
        .filter(|job| !job.metadata.is_deleting())
        .filter_map(|job| {
            let condition = job.status.finished()?;
            let succeeded = condition.kind == crate::kinds::COMPLETE;
            Some((succeeded, condition.last_transition_time, job.metadata.name.as_str()))
        })
        .collect();
    finished.sort_unstable();
    for (succeeded, limit) in
        [(true, cronjob.spec.successful_jobs_history_limit), (false, cronjob.spec.failed_jobs_history_limit)]
    {
        let names: Vec<&str> = finished.iter().filter(|job| job.0 == succeeded).map(|job| job.2).collect();
        let excess = names.len().saturating_sub(limit as usize);
        plan.delete.extend(names.into_iter().take(excess).map(str::to_owned));
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Kind::Job.api_version().to_owned(),
        kind: Kind::Job.name().to_owned(),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
    }
}

#[cfg(test)]
#[path = "cronjob_tests.rs"]
mod tests;
