use serde_json::json;

use super::*;
use crate::kinds::{API_VERSION, COMPLETE, Condition, FAILED, Truth};
use crate::time::Span;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cronjob(mut spec: serde_json::Value) -> CronJob {
    spec["jobTemplate"] = json!({"spec": {"template": {"command": ["work"]}}});
    let object = json!({"apiVersion": API_VERSION, "kind": "CronJob", "metadata": {"name": "c", "uid": "u",
        "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// Does what plans say; a Job ends when the test says so.
struct World {
    cronjob: CronJob,
    jobs: Vec<Job>,
    now: Timestamp,
    started: Vec<String>,
    notes: Vec<&'static str>,
    /// What is deleted goes at once.
    quick: bool,
}

impl World {
    fn new(spec: serde_json::Value) -> Self {
        let cronjob = cronjob(spec);
        let now = at("2026-01-01T00:00:00Z");
        let mut world = Self { cronjob, jobs: Vec::new(), now, started: Vec::new(), notes: Vec::new(), quick: true };
        world.look();
        world
    }

    fn plan(&self) -> Plan {
        plan(&self.cronjob, &self.jobs.iter().collect::<Vec<_>>(), &TimeZone::UTC, self.now)
    }

    fn look(&mut self) {
        for _ in 0..10 {
            let plan = self.plan();
            let quiet = plan.start.is_none() && plan.delete.is_empty() && plan.status == self.cronjob.status;
            self.notes.extend(plan.notes.iter().map(|note| note.reason));
            self.cronjob.status = plan.status;
            for name in plan.delete {
                if self.quick {
                    self.jobs.retain(|job| job.metadata.name != name);
                } else {
                    self.job(&name).metadata.deletion_timestamp = Some(at("2026-01-01T00:00:00Z"));
                }
            }
            if let Some(start) = plan.start {
                let object = json!({"apiVersion": API_VERSION, "kind": "Job", "metadata": {"name": start.name},
                    "spec": {"template": {"command": ["work"]}}});
                self.jobs.push(serde_json::from_value(object).unwrap());
                self.started.push(start.scheduled_at.to_string()[11..19].to_owned());
            }
            if quiet {
                return;
            }
        }
        panic!("does not come to rest");
    }

    fn job(&mut self, name: &str) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.metadata.name == name).unwrap()
    }

    /// Goes to a time, waking whenever the plan asked for it.
    fn until(&mut self, end: &str) -> &mut Self {
        let end = at(end);
        while let Some(wake) = self.plan().wake_at.filter(|wake| *wake <= end) {
            self.now = wake;
            self.look();
        }
        self.jump(end)
    }

    /// Nobody looks before then.
    fn jump(&mut self, to: Timestamp) -> &mut Self {
        self.now = to;
        self.look();
        self
    }

    /// The oldest active Job ends.
    fn end(&mut self, kind: &str) -> &mut Self {
        let now = self.now;
        let job = self.jobs.iter_mut().find(|job| job.status.finished().is_none()).unwrap();
        job.status.completion_time = (kind == COMPLETE).then_some(now);
        job.status.conditions.push(Condition {
            kind: kind.to_owned(),
            status: Truth::True,
            last_transition_time: Some(now),
            ..Condition::default()
        });
        self.look();
        self
    }
}

#[test]
fn a_job_is_made_for_every_time_and_named_after_it() {
    let mut world = World::new(json!({"schedule": "*/15 * * * *"}));
    assert_eq!(world.cronjob.status.next_schedule_time, Some(at("2026-01-01T00:15:00Z")));
    world.until("2026-01-01T00:50:00Z");
    assert_eq!(world.started, ["00:15:00", "00:30:00", "00:45:00"]);
    assert_eq!(world.jobs[0].metadata.name, format!("c-{}", 1_767_225_600 + 900));
    assert_eq!(world.cronjob.status.active.len(), 3);
    assert_eq!(world.cronjob.status.last_schedule_time, Some(at("2026-01-01T00:45:00Z")));
}

#[test]
fn intervals_and_single_times_need_no_pattern() {
    let mut world = World::new(json!({"every": "20m"}));
    world.until("2026-01-01T01:05:00Z");
    assert_eq!(world.started, ["00:20:00", "00:40:00", "01:00:00"]);
    let mut world = World::new(json!({"once": "2026-01-01T05:06:07Z"}));
    world.until("2026-01-03T00:00:00Z");
    assert_eq!((world.started.clone(), world.plan().wake_at), (vec!["05:06:07".to_owned()], None));
    // A time before the creation never comes.
    let mut world = World::new(json!({"once": "2025-01-01T00:00:00Z"}));
    world.until("2026-01-03T00:00:00Z");
    assert!(world.started.is_empty());
}

#[test]
fn after_being_away_one_job_catches_up() {
    for spec in [json!({"schedule": "0 * * * *"}), json!({"every": "1h"})] {
        let mut world = World::new(spec);
        world.until("2026-01-01T01:30:00Z");
        world.jump(at("2026-01-09T12:34:56Z"));
        assert_eq!(world.started, ["01:00:00", "12:00:00"]);
        assert_eq!(world.notes, ["SuccessfulCreate", "CatchingUp", "SuccessfulCreate"]);
        world.until("2026-01-09T13:00:00Z");
        assert_eq!(world.started.last().unwrap(), "13:00:00");
    }
}

#[test]
fn a_clock_set_back_repeats_nothing() {
    let mut world = World::new(json!({"schedule": "0 * * * *"}));
    world.until("2026-01-01T05:30:00Z");
    let count = world.started.len();
    world.jump(at("2026-01-01T02:10:00Z")).until("2026-01-01T05:59:00Z");
    assert_eq!(world.started.len(), count);
    world.until("2026-01-01T06:00:00Z");
    assert_eq!(world.started.len(), count + 1);
}

#[test]
fn the_starting_deadline_bounds_how_late_a_job_may_be() {
    let mut world = World::new(json!({"schedule": "0 * * * *", "startingDeadline": "10m"}));
    world.jump(at("2026-01-01T03:10:01Z"));
    assert_eq!((world.started.len(), world.notes.clone()), (0, vec!["MissSchedule"]));
    world.jump(at("2026-01-01T04:09:00Z"));
    assert_eq!(world.started, ["04:00:00"]);
}

#[test]
fn forbid_waits_for_the_end_and_makes_one_of_many() {
    let mut world = World::new(json!({"schedule": "0 * * * *", "concurrencyPolicy": "Forbid"}));
    world.until("2026-01-01T04:30:00Z");
    assert_eq!(world.started, ["01:00:00"]);
    assert_eq!(world.notes, ["SuccessfulCreate", "JobAlreadyActive", "JobAlreadyActive", "JobAlreadyActive"]);
    world.end(COMPLETE);
    assert_eq!(world.started, ["01:00:00", "04:00:00"]);
    world.end(COMPLETE);
    assert_eq!(world.started.len(), 2);
    // With a deadline, what could not begin in time is left out.
    let spec = json!({"schedule": "0 * * * *", "concurrencyPolicy": "Forbid", "startingDeadline": "5m"});
    let mut world = World::new(spec);
    world.until("2026-01-01T02:30:00Z").end(COMPLETE);
    assert_eq!(world.started, ["01:00:00"]);
}

#[test]
fn replace_starts_the_next_when_the_last_one_is_gone() {
    let mut world = World::new(json!({"schedule": "0 * * * *", "concurrencyPolicy": "Replace"}));
    world.quick = false;
    world.until("2026-01-01T02:00:05Z");
    assert_eq!(world.started, ["01:00:00"]);
    assert!(world.jobs[0].metadata.is_deleting());
    world.jobs.clear();
    world.look();
    assert_eq!(world.started, ["01:00:00", "02:00:00"]);
}

#[test]
fn while_suspended_nothing_is_made_and_one_catches_up() {
    let mut world = World::new(json!({"schedule": "0 * * * *", "suspend": true}));
    world.until("2026-01-01T03:00:00Z");
    assert_eq!((world.started.len(), world.cronjob.status.next_schedule_time), (0, None));
    world.cronjob.spec.suspend = None;
    world.jump(at("2026-01-01T03:30:00Z"));
    assert_eq!(world.started, ["03:00:00"]);
}

#[test]
fn history_keeps_the_latest_of_each_kind() {
    let mut world = World::new(json!({"every": "1m", "successfulJobsHistoryLimit": 2}));
    for _ in 0..4 {
        world.jump(world.now + Span::from_secs(60)).end(COMPLETE);
        world.jump(world.now + Span::from_secs(60)).end(FAILED);
    }
    let count = |kind: &str| {
        world.jobs.iter().filter(|job| job.status.finished().is_some_and(|condition| condition.kind == kind)).count()
    };
    assert_eq!((count(COMPLETE), count(FAILED)), (2, 1));
    assert_eq!(world.cronjob.status.last_successful_time, Some(at("2026-01-01T00:07:00Z")));
    assert!(world.cronjob.status.active.is_empty());
}

#[test]
fn deleting_it_deletes_its_jobs_and_then_itself() {
    let mut world = World::new(json!({"every": "1m"}));
    world.until("2026-01-01T00:02:00Z");
    world.cronjob.metadata.deletion_timestamp = Some(world.now);
    let plan = world.plan();
    assert_eq!((plan.delete.len(), plan.remove), (2, false));
    world.look();
    assert!(world.plan().remove);
}

#[test]
fn a_pattern_without_a_zone_follows_the_machine() {
    let cronjob = cronjob(json!({"schedule": "0 3 * * *"}));
    let berlin = TimeZone::get("Europe/Berlin").unwrap();
    let plan = plan(&cronjob, &[], &berlin, at("2026-01-01T00:00:00Z"));
    assert_eq!(plan.status.next_schedule_time, Some(at("2026-01-01T02:00:00Z")));
}
