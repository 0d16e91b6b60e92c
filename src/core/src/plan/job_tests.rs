use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kinds::{API_VERSION, Exit, ExitStatus, InstanceStatus};
use crate::meta::Metadata;
use crate::time::Span;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn job(mut spec: serde_json::Value) -> Job {
    spec["template"] = json!({"command": ["work"]});
    spec["backoff"] = json!({"jitter": 0.0});
    let object = json!({"apiVersion": API_VERSION, "kind": "Job",
        "metadata": {"name": "j", "generation": 1, "uid": "u"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// Does what plans say, and lets runs end as the test says.
struct World {
    job: Job,
    instances: Vec<Instance>,
    now: Timestamp,
    notes: Vec<&'static str>,
    most_active: usize,
}

impl World {
    fn new(spec: serde_json::Value) -> Self {
        let mut world =
            Self { job: job(spec), instances: Vec::new(), now: at(1000), notes: Vec::new(), most_active: 0 };
        world.settle();
        world
    }

    /// Plans until nothing changes.
    fn settle(&mut self) -> Plan {
        loop {
            let plan = plan(&self.job, &self.instances.iter().collect::<Vec<_>>(), self.now);
            let quiet = plan.create.is_empty()
                && plan.stop.is_empty()
                && plan.delete.is_empty()
                && plan.status == self.job.status;
            self.notes.extend(plan.notes.iter().map(|note| note.reason));
            self.job.status = plan.status.clone();
            for spec in &plan.create {
                self.instances.push(Instance {
                    api_version: API_VERSION.to_owned(),
                    kind: "Instance".to_owned(),
                    metadata: Metadata { name: format!("j-{}", spec.ordinal), ..Metadata::default() },
                    spec: spec.clone(),
                    status: InstanceStatus { phase: Phase::Running, attempt: 1, ..InstanceStatus::default() },
                });
            }
            for name in &plan.stop {
                let now = self.now;
                self.instance(name).spec.stopped_at = Some(now);
            }
            self.instances.retain(|instance| !plan.delete.contains(&instance.metadata.name));
            self.most_active = self.most_active.max(self.active().len());
            if quiet {
                return plan;
            }
        }
    }

    fn instance(&mut self, name: &str) -> &mut Instance {
        self.instances.iter_mut().find(|instance| instance.metadata.name == name).unwrap()
    }

    fn active(&self) -> Vec<String> {
        let active = self.instances.iter().filter(|instance| standing(instance) == Standing::Active);
        active.map(|instance| instance.metadata.name.clone()).collect()
    }

    /// A run ends: by itself with a code, or because it was stopped.
    fn end(&mut self, name: &str, code: i32) -> Plan {
        let now = self.now;
        let instance = self.instance(name);
        let asked = instance.spec.stopped_at.is_some();
        let status = &mut instance.status;
        status.ended_attempt = 1;
        status.last_exit = Some(Exit {
            attempt: 1,
            status: ExitStatus::Code(code),
            at: now,
            cause: None,
            severity: None,
            oom_killed: false,
        });
        status.phase = if asked || code == 0 { Phase::Stopped } else { Phase::Failed };
        status.done = !asked;
        self.settle()
    }

    fn after(&mut self, seconds: u64) -> Plan {
        self.now = self.now + Span::from_secs(seconds);
        self.settle()
    }

    fn finished(&self) -> Option<(&str, &str)> {
        self.job.status.finished().map(|condition| (condition.kind.as_str(), condition.reason.as_str()))
    }
}

#[test]
fn one_run_that_succeeds_completes_it() {
    let mut world = World::new(json!({}));
    assert_eq!((world.active(), world.job.status.active), (vec!["j-0".to_owned()], 1));
    world.after(5);
    let plan = world.end("j-0", 0);
    assert_eq!(world.finished(), Some(("Complete", "CompletionsReached")));
    assert_eq!((world.job.status.succeeded, world.job.status.active), (1, 0));
    assert_eq!(world.job.status.completion_time, Some(at(1005)));
    assert_eq!((plan.create.len(), plan.wake_at, plan.expired), (0, None, false));
}

#[test]
fn every_index_runs_with_its_number_and_never_more_at_a_time_than_allowed() {
    let mut world = World::new(json!({"completions": 4, "parallelism": 2}));
    let indices = |world: &World| -> Vec<u32> {
        world.instances.iter().map(|instance| instance.spec.job.as_ref().unwrap().index).collect()
    };
    assert_eq!(indices(&world), [0, 1]);
    world.end("j-1", 0);
    assert_eq!(indices(&world), [0, 1, 2]);
    world.end("j-0", 0);
    world.end("j-2", 0);
    world.end("j-3", 0);
    assert_eq!((indices(&world), world.most_active), (vec![0, 1, 2, 3], 2));
    assert_eq!(world.finished(), Some(("Complete", "CompletionsReached")));
}

#[test]
fn retries_wait_exponentially_and_the_limit_is_exact() {
    let mut world = World::new(json!({"backoffLimit": 2}));
    let plan = world.end("j-0", 1);
    assert_eq!((world.active().len(), plan.wake_at), (0, Some(at(1010))));
    assert_eq!(world.job.status.next_retry_time, Some(at(1010)));
    world.after(9);
    assert_eq!(world.instances.len(), 1);
    world.after(1);
    assert_eq!(world.active(), ["j-1"]);
    assert_eq!(world.end("j-1", 1).wake_at, Some(at(1030)));
    world.after(20);
    world.end("j-2", 1);
    assert_eq!((world.instances.len(), world.job.status.failed), (3, 3));
    assert_eq!(world.finished(), Some(("Failed", "BackoffLimitExceeded")));
    assert_eq!(world.job.status.completion_time, None);
    assert_eq!(world.notes, ["Retrying", "Retrying", "BackoffLimitExceeded"]);
    world.after(10_000);
    assert_eq!(world.instances.len(), 3);
}

#[test]
fn an_index_that_waits_for_its_retry_does_not_keep_the_others() {
    let mut world = World::new(json!({"completions": 3}));
    world.end("j-0", 1);
    assert_eq!(world.active(), ["j-1"]);
    assert_eq!(world.instances[1].spec.job.as_ref().unwrap().index, 1);
    world.after(60);
    world.end("j-1", 0);
    // The lowest index first, now that it is due.
    assert_eq!(world.instances[2].spec.job.as_ref().unwrap().index, 0);
}

#[test]
fn at_the_limit_what_still_runs_is_stopped_before_it_has_failed() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2, "backoffLimit": 0}));
    world.end("j-0", 1);
    assert_eq!(world.finished(), None);
    assert!(world.job.status.condition(FAILURE_TARGET).is_some());
    assert!(world.instance("j-1").spec.stopped_at.is_some());
    // A run that was stopped has neither succeeded nor failed.
    world.end("j-1", 0);
    assert_eq!(world.finished(), Some(("Failed", "BackoffLimitExceeded")));
    assert_eq!((world.job.status.succeeded, world.job.status.failed), (0, 1));
}

#[test]
fn the_deadline_counts_waits_and_not_suspensions() {
    let mut world = World::new(json!({"activeDeadline": "15s"}));
    world.end("j-0", 1);
    assert_eq!(world.after(10).wake_at, Some(at(1015)));
    world.after(5);
    assert!(world.instance("j-1").spec.stopped_at.is_some());
    world.end("j-1", 143);
    assert_eq!(world.finished(), Some(("Failed", "DeadlineExceeded")));

    let mut world = World::new(json!({"activeDeadline": "15s"}));
    world.after(10);
    world.job.spec.suspend = Some(true);
    world.settle();
    world.end("j-0", 143);
    assert_eq!(world.after(1000).wake_at, None);
    assert_eq!((world.finished(), world.job.status.start_time), (None, None));
    world.job.spec.suspend = Some(false);
    assert_eq!(world.settle().wake_at, Some(at(2010 + 15)));
    // The run that was stopped is done anew, and nothing has failed.
    assert_eq!((world.active(), world.job.status.failed), (vec!["j-1".to_owned()], 0));
    assert_eq!(world.notes, ["Suspended", "Resumed"]);
}

#[test]
fn what_succeeded_is_not_run_again_after_a_suspension() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2}));
    world.end("j-0", 0);
    world.job.spec.suspend = Some(true);
    world.settle();
    world.end("j-1", 143);
    world.job.spec.suspend = None;
    world.settle();
    assert_eq!(world.active(), ["j-2"]);
    assert_eq!(world.instances[2].spec.job.as_ref().unwrap().index, 1);
}

#[test]
fn less_parallelism_stops_the_latest_and_zero_starts_nothing() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 3}));
    world.job.spec.parallelism = 1;
    world.settle();
    assert!(world.instance("j-0").spec.stopped_at.is_none());
    assert!(world.instance("j-1").spec.stopped_at.is_some() && world.instance("j-2").spec.stopped_at.is_some());
    world.end("j-1", 143);
    world.end("j-2", 143);
    assert_eq!(world.active(), ["j-0"]);
    let world = World::new(json!({"parallelism": 0}));
    assert!(world.instances.is_empty());
}

#[test]
fn a_finished_job_expires_after_its_time_to_live() {
    let mut world = World::new(json!({"ttlAfterFinished": "1m"}));
    assert_eq!(world.end("j-0", 0).wake_at, Some(at(1060)));
    assert!(!world.after(59).expired);
    assert!(world.after(1).expired);
}

#[test]
fn deleting_it_deletes_its_runs_and_then_itself() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2}));
    world.job.metadata.deletion_timestamp = Some(world.now);
    let first = plan(&world.job, &world.instances.iter().collect::<Vec<_>>(), world.now);
    assert_eq!((first.delete, first.remove), (vec!["j-0".to_owned(), "j-1".to_owned()], false));
    assert!(world.settle().remove);
}

proptest! {
    #[test]
    fn completions_parallelism_and_the_limit_hold_whatever_happens(
        completions in 1_u32..6, parallelism in 1_u32..4, limit in 0_u32..5,
        moves in proptest::collection::vec((any::<u8>(), 0_u64..400, 0_u8..10), 1..60),
    ) {
        let spec = json!({"completions": completions, "parallelism": parallelism, "backoffLimit": limit});
        let mut world = World::new(spec);
        let mut successes = vec![0_u32; completions as usize];
        for (pick, wait, what) in moves {
            world.after(wait);
            match what {
                0 => {
                    world.job.spec.suspend = Some(!world.job.spec.is_suspended());
                    world.settle();
                }
                // The daemon died and its last status was lost, but for what was decided.
                1 if world.job.status.conditions.is_empty() => {
                    world.job.status = JobStatus::default();
                    world.settle();
                }
                _ => {
                    let active = world.active();
                    if let Some(name) = active.get(usize::from(pick) % active.len().max(1)) {
                        let code = i32::from(what < 5);
                        let stopped = world.instance(name).spec.stopped_at.is_some();
                        let index = world.instance(name).spec.job.as_ref().unwrap().index;
                        successes[index as usize] += u32::from(code == 0 && !stopped);
                        world.end(name, code);
                    }
                }
            }
            prop_assert!(successes.iter().all(|count| *count <= 1), "{successes:?}");
            let failed = world.job.status.failed;
            match world.finished() {
                Some(("Complete", _)) => prop_assert!(successes.iter().all(|count| *count == 1) && failed <= limit),
                Some(_) => prop_assert!(failed > limit && failed <= limit + parallelism),
                None => prop_assert!(failed <= limit || world.job.status.condition(FAILURE_TARGET).is_some()),
            }
            if world.finished().is_some() {
                prop_assert!(world.active().is_empty());
            }
        }
        prop_assert!(world.most_active <= parallelism as usize);
        // Left alone with runs that succeed, it comes to its end.
        world.job.spec.suspend = None;
        for _ in 0..20 {
            world.after(400);
            for name in world.active() {
                world.end(&name, 0);
            }
        }
        prop_assert!(world.finished().is_some());
    }
}
