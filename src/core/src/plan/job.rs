//! Decides which runs of a `Job` there should be, and when it is over.
//!
//! Pure. A run is an instance that is never restarted: what fails is followed by another run of the same index. So what
//! happened is read off the instances, and a lost status is only one to compute again. The exceptions are facts that no
//! instance has: since when the Job is worked on, and that it was given up.

use std::sync::Arc;

use crate::kinds::{
    COMPLETE, Condition, FAILED, FAILURE_TARGET, Instance, InstanceSpec, Job, JobShare, JobStatus, Phase, SUSPENDED,
    Truth, set_condition,
};
use crate::plan::Note;
use crate::plan::instance::describe;
use crate::time::Timestamp;

/// What to change.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Instances to make.
    pub create: Vec<InstanceSpec>,
    /// Names of instances to stop for good.
    pub stop: Vec<String>,
    /// Names of instances to delete.
    pub delete: Vec<String>,
    /// The status to publish.
    pub status: JobStatus,
    /// What to tell.
    pub notes: Vec<Note>,
    /// When to look again if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// It is finished for so long that it is to be deleted.
    pub expired: bool,
    /// Deletion was asked for and nothing is left: the object may go.
    pub remove: bool,
}

/// What a run has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may still do something.
    Active,
    /// It ended as it should.
    Succeeded,
    /// It ended as it should not, or nobody knows how.
    Failed,
    /// It was stopped before its end; it counts for nothing.
    Void,
}

/// What a run has come to.
pub fn standing(instance: &Instance) -> Standing {
    let status = &instance.status;
    if instance.metadata.is_deleting() || status.is_live() {
        return Standing::Active;
    }
    match status.phase {
        Phase::Stopped if status.done => Standing::Succeeded,
        Phase::Failed | Phase::Lost if status.done => Standing::Failed,
        Phase::Stopped if instance.spec.stopped_at.is_some() => Standing::Void,
        Phase::Pending
        | Phase::Starting
        | Phase::Running
        | Phase::Stopping
        | Phase::Stopped
        | Phase::Failed
        | Phase::Backoff
        | Phase::Stuck
        | Phase::Lost
        | Phase::Unknown => Standing::Active,
    }
}

/// One index of the Job, summed up over its runs.
#[derive(Clone, Debug, Default)]
struct Index {
    succeeded: bool,
    active: bool,
    failures: u32,
    /// End, name and story of the last run that failed.
    last: Option<(Timestamp, String, String)>,
}

/// The plan for one Job with the instances that belong to it.
pub fn plan(job: &Job, instances: &[&Instance], now: Timestamp) -> Plan {
    let mut planner = Planner {
        job,
        instances,
        now,
        indices: vec![Index::default(); job.spec.completions as usize],
        plan: Plan {
            create: Vec::new(),
            stop: Vec::new(),
            delete: Vec::new(),
            status: job.status.clone(),
            notes: Vec::new(),
            wake_at: None,
            expired: false,
            remove: false,
        },
    };
    planner.count();
    planner.decide();
    planner.plan
}

struct Planner<'a> {
    job: &'a Job,
    instances: &'a [&'a Instance],
    now: Timestamp,
    indices: Vec<Index>,
    plan: Plan,
}

impl Planner<'_> {
    fn count(&mut self) {
        let (mut active, mut failed) = (0, 0);
        for instance in self.instances {
            let standing = standing(instance);
            active += u32::from(standing == Standing::Active);
            failed += u32::from(standing == Standing::Failed);
            let share = instance.spec.job.as_ref();
            let Some(index) = share.and_then(|share| self.indices.get_mut(share.index as usize)) else { continue };
            match standing {
                Standing::Active => index.active = true,
                Standing::Succeeded => index.succeeded = true,
                Standing::Failed => {
                    index.failures += 1;
                    let exit = instance.status.last_exit.as_ref();
                    let at = exit.map_or(self.now, |exit| exit.at);
                    let story = exit.map_or_else(|| "lost".to_owned(), |exit| describe(&exit.status));
                    if index.last.as_ref().is_none_or(|(latest, ..)| *latest <= at) {
                        index.last = Some((at, instance.metadata.name.clone(), story));
                    }
                }
                Standing::Void => {}
            }
        }
        let status = &mut self.plan.status;
        status.observed_generation = self.job.metadata.generation;
        status.active = active;
        status.failed = failed;
        status.succeeded = self.indices.iter().filter(|index| index.succeeded).count() as u32;
        status.next_retry_time = None;
    }

    fn decide(&mut self) {
        let job = self.job;
        if job.metadata.is_deleting() {
            let present = self.instances.iter().filter(|instance| !instance.metadata.is_deleting());
            self.plan.delete = present.map(|instance| instance.metadata.name.clone()).collect();
            self.plan.remove = self.instances.is_empty();
            return;
        }
        if let Some(finished) = job.status.finished() {
            let since = finished.last_transition_time.unwrap_or(self.now);
            if let Some(ttl) = job.spec.ttl_after_finished {
                self.plan.expired = since + ttl <= self.now;
                if !self.plan.expired {
                    self.wake(since + ttl);
                }
            }
            return;
        }
        if let Some((reason, message)) = self.given_up() {
            self.fail(&reason, &message);
        } else if self.plan.status.succeeded == job.spec.completions {
            self.complete();
        } else if job.spec.is_suspended() {
            self.suspend();
        } else {
            self.work();
        }
    }

    /// Why the Job has failed or will, if it has or will.
    fn given_up(&mut self) -> Option<(String, String)> {
        let (job, status) = (self.job, &self.plan.status);
        if let Some(target) = status.condition(FAILURE_TARGET) {
            return Some((target.reason.clone(), target.message.clone()));
        }
        let spec = &job.spec;
        if status.failed > spec.backoff_limit {
            return Some(("BackoffLimitExceeded".into(), "Job has reached the specified backoff limit".into()));
        }
        if spec.is_suspended() || status.succeeded == spec.completions {
            return None;
        }
        let end = status.start_time? + spec.active_deadline?;
        if end <= self.now {
            return Some(("DeadlineExceeded".into(), "Job was active longer than specified deadline".into()));
        }
        self.wake(end);
        None
    }

    fn fail(&mut self, reason: &str, message: &str) {
        self.set(FAILURE_TARGET, true, reason, message);
        if self.stop_active(0) {
            self.set(FAILED, true, reason, message);
            let last = self.indices.iter().filter_map(|index| index.last.as_ref()).max();
            let story = last.map(|(_, name, story)| format!("; the last one that failed, {name}: {story}"));
            let reason = if reason == "DeadlineExceeded" { "DeadlineExceeded" } else { "BackoffLimitExceeded" };
            self.plan.notes.push(Note::warning(reason, format!("{message}{}", story.unwrap_or_default())));
            self.begin_ttl();
        }
    }

    fn complete(&mut self) {
        if !self.stop_active(0) {
            return;
        }
        let ends = self.instances.iter().filter(|instance| standing(instance) == Standing::Succeeded);
        let end = ends.filter_map(|instance| instance.status.last_exit.as_ref()).map(|exit| exit.at).max();
        self.plan.status.completion_time = Some(end.unwrap_or(self.now));
        self.set(COMPLETE, true, "CompletionsReached", "Reached expected number of succeeded runs");
        self.plan.notes.push(Note::normal("Completed", "Job completed"));
        self.begin_ttl();
    }

    /// With its end known, the time to live has begun.
    fn begin_ttl(&mut self) {
        if let Some(ttl) = self.job.spec.ttl_after_finished {
            self.wake(self.now + ttl);
        }
    }

    fn suspend(&mut self) {
        if self.plan.status.condition(SUSPENDED).is_none() {
            self.plan.notes.push(Note::normal("Suspended", "Job suspended"));
        }
        self.plan.status.start_time = None;
        self.set(SUSPENDED, true, "JobSuspended", "Job suspended");
        self.stop_active(0);
    }

    fn work(&mut self) {
        if self.plan.status.condition(SUSPENDED).is_some() {
            self.set(SUSPENDED, false, "JobResumed", "Job resumed");
            self.plan.notes.push(Note::normal("Resumed", "Job resumed"));
        }
        if self.plan.status.start_time.is_none() {
            self.plan.status.start_time = Some(self.now);
            if let Some(deadline) = self.job.spec.active_deadline {
                self.wake(self.now + deadline);
            }
        }
        let most = self.job.spec.parallelism;
        self.stop_active(most);
        let mut room = most.saturating_sub(self.plan.status.active);
        let mut ordinal = self.instances.iter().map(|instance| instance.spec.ordinal + 1).max().unwrap_or(0);
        let mut retry: Option<Timestamp> = None;
        for number in 0..self.indices.len() {
            if room == 0 {
                return;
            }
            let index = &self.indices[number];
            if index.succeeded || index.active {
                continue;
            }
            if let Some((end, name, story)) = &index.last {
                let seed = seed(&self.job.metadata.uid, number as u64, u64::from(index.failures));
                let due = *end + self.job.spec.backoff.delay(index.failures, seed);
                if due > self.now {
                    retry = Some(retry.map_or(due, |earlier| earlier.min(due)));
                    continue;
                }
                let (job, next) = (&self.job.metadata.name, index.failures + 1);
                let message = format!("{name}: {story}; run {next} of index {number} is {job}-{ordinal}");
                self.plan.notes.push(Note::normal("Retrying", message));
            }
            self.plan.create.push(self.run(number as u32, ordinal));
            ordinal += 1;
            room -= 1;
        }
        self.plan.status.next_retry_time = retry.filter(|_| self.plan.create.is_empty());
        if let Some(due) = retry {
            self.wake(due);
        }
    }

    fn run(&self, index: u32, ordinal: u32) -> InstanceSpec {
        let template = self.job.spec.template.spec();
        InstanceSpec {
            process: String::new(),
            job: Some(Box::new(JobShare { name: self.job.metadata.name.clone(), index })),
            ordinal,
            revision: template.revision(),
            stopped_at: None,
            restarted_at: None,
            started_at: None,
            held: false,
            ports: std::collections::BTreeMap::new(),
            template: Arc::new(template.clone()),
        }
    }

    /// Stops active runs until `keep` are left, the latest first. Whether none is active.
    fn stop_active(&mut self, keep: u32) -> bool {
        let mut active: Vec<&Instance> =
            self.instances.iter().copied().filter(|instance| standing(instance) == Standing::Active).collect();
        active.sort_by_key(|instance| instance.spec.ordinal);
        // One that is being stopped makes room when it is gone, and needs no telling.
        let excess = active.len().saturating_sub(keep as usize);
        let going = |instance: &&&Instance| instance.spec.stopped_at.is_some() || instance.metadata.is_deleting();
        let under_way = active.iter().filter(going).count();
        let stay = active.iter().rev().filter(|instance| !going(instance));
        let names = stay.take(excess.saturating_sub(under_way)).map(|instance| instance.metadata.name.clone());
        self.plan.stop = names.collect();
        active.is_empty()
    }

    fn set(&mut self, kind: &str, truth: bool, reason: &str, message: &str) {
        let condition = Condition {
            kind: kind.to_owned(),
            status: Truth::from(truth),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: None,
            observed_generation: Some(self.job.metadata.generation),
        };
        set_condition(&mut self.plan.status.conditions, condition, self.now);
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

fn seed(uid: &str, index: u64, failures: u64) -> u64 {
    uid.bytes().fold(index << 20 | failures, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
