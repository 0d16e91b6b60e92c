//! Rollouts against a model: instances that take steps in any order, some of them broken.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds::{API_VERSION, CHANGE_CAUSE, InstanceStatus};
use crate::meta::Metadata;

const SECOND: i64 = 1_000_000;

fn process(replicas: u32, update: &Value) -> Process {
    let object = json!({"apiVersion": API_VERSION, "kind": "Process", "metadata": {"name": "web", "generation": 1},
        "spec": {"command": ["v1"], "replicas": replicas, "update": update}});
    serde_json::from_value(object).unwrap()
}

/// Instances do what they are told one step at a time: stop, start, become ready. Commands that begin with "bad" crash.
struct World {
    process: Process,
    instances: Vec<Instance>,
    now: Timestamp,
    notes: Vec<&'static str>,
}

impl World {
    fn new(replicas: u32, update: &Value) -> Self {
        let process = process(replicas, update);
        let mut world = Self { process, instances: Vec::new(), now: Timestamp::from_micros(SECOND), notes: Vec::new() };
        world.rest();
        world.notes.clear();
        world
    }

    fn apply(&mut self, command: &str) {
        self.process.spec.command = vec![command.to_owned()];
        self.process.metadata.generation += 1;
    }

    fn plan(&self) -> Plan {
        plan(&self.process, &self.instances.iter().collect::<Vec<_>>(), self.now)
    }

    /// One plan carried out; whether it changed anything but the status.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        self.notes.extend(plan.notes.iter().map(|note| note.reason));
        let changed = !(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty())
            || plan.status != self.process.status;
        self.process.status = plan.status;
        for spec in plan.create {
            let metadata = Metadata { name: instance_name("web", spec.ordinal), ..Metadata::default() };
            let status = InstanceStatus { revision: spec.revision.clone(), ..InstanceStatus::default() };
            let (api_version, kind) = (API_VERSION.to_owned(), "Instance".to_owned());
            assert!(self.instances.iter().all(|it| it.metadata.name != metadata.name), "made twice");
            self.instances.push(Instance { api_version, kind, metadata, spec, status });
        }
        for (name, spec) in plan.update {
            self.instances.iter_mut().find(|it| it.metadata.name == name).unwrap().spec = spec;
        }
        for instance in &mut self.instances {
            if plan.delete.contains(&instance.metadata.name) {
                instance.metadata.deletion_timestamp = Some(self.now);
            }
        }
        changed
    }

    /// One instance takes its next step; whether it had one.
    fn advance(&mut self, index: usize) -> bool {
        let now = self.now;
        let instance = &mut self.instances[index];
        let (spec, status) = (&instance.spec, &mut instance.status);
        let deleting = instance.metadata.deletion_timestamp.is_some();
        let stop = deleting || spec.stopped_at.is_some() || spec.held;
        let outdated = status.revision != spec.revision || status.restarted_at < spec.restarted_at;
        let broken = spec.template.command[0].starts_with("bad");
        match status.phase {
            Phase::Running | Phase::Starting if stop || outdated => {
                status.phase = Phase::Stopping;
                status.ready = false;
            }
            Phase::Starting if broken => {
                status.phase = Phase::Backoff;
                status.failures += 1;
                status.streak += 1;
            }
            Phase::Starting => {
                status.phase = Phase::Running;
                status.ready = true;
                status.started_at = Some(now);
            }
            Phase::Stopping | Phase::Pending | Phase::Stopped | Phase::Backoff if stop => {
                let rests = status.phase == Phase::Stopped;
                status.phase = Phase::Stopped;
                if deleting {
                    self.instances.remove(index);
                }
                return !rests;
            }
            Phase::Backoff if !outdated && status.failures > 5 => return false,
            Phase::Stopping | Phase::Pending | Phase::Stopped | Phase::Backoff => {
                if outdated {
                    (status.failures, status.streak) = (0, 0);
                }
                status.phase = Phase::Starting;
                status.revision.clone_from(&spec.revision);
                status.restarted_at = spec.restarted_at;
            }
            _ => return false,
        }
        true
    }

    /// Until nothing has anything to do.
    fn rest(&mut self) {
        for _ in 0..2000 {
            let mut moved = self.step();
            for index in (0..self.instances.len()).rev() {
                moved |= self.advance(index);
            }
            if moved {
                continue;
            }
            match self.plan().wake_at.filter(|at| *at <= self.now + STEADY) {
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("never rests: {:?}", self.process.status);
    }

    fn pass(&mut self, seconds: i64) {
        self.now = Timestamp::from_micros(self.now.as_micros() + seconds * SECOND);
        self.rest();
    }

    fn commands(&self) -> Vec<&str> {
        let mut all: Vec<_> = self.instances.iter().map(|it| (it.spec.ordinal, &it.spec.template.command[0])).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, command)| command.as_str()).collect()
    }

    fn available(&self) -> usize {
        let min_ready = self.process.spec.update.min_ready;
        self.instances.iter().filter(|it| is_available(it, min_ready, self.now)).count()
    }

    fn condition(&self, kind: &str) -> (Truth, &str) {
        let found = self.process.status.conditions.iter().find(|condition| condition.kind == kind).unwrap();
        (found.status, &found.reason)
    }
}

#[test]
fn a_surge_instance_makes_room_and_goes_when_all_are_new() {
    let mut world = World::new(3, &json!({"maxSurge": 1, "maxUnavailable": 0}));
    world.apply("v2");
    world.step();
    world.step();
    assert_eq!(world.commands(), ["v1", "v1", "v1", "v2"], "the additional one first");
    while world.step() || world.advance(3) {}
    assert_eq!(world.commands(), ["v1", "v1", "v1", "v2"], "it has to last");
    world.rest();
    assert_eq!(world.commands(), ["v2"; 3]);
    assert_eq!(world.condition("Progressing"), (Truth::True, "NewRevisionAvailable"));
    assert!(world.process.status.rollout.is_none());
    assert_eq!(world.notes, ["RolloutComplete"]);
}

#[test]
fn min_ready_holds_the_next_back() {
    let mut world = World::new(2, &json!({"minReady": "30s"}));
    world.pass(31);
    world.apply("v2");
    world.rest();
    assert_eq!(world.commands(), ["v2", "v1"]);
    assert_eq!(world.condition("Available"), (Truth::True, "MinimumReplicasAvailable"));
    let begun = world.instances[0].status.started_at.unwrap();
    assert_eq!(world.plan().wake_at, Some(begun + Span::from_secs(30)));
    world.pass(30);
    assert_eq!(world.commands(), ["v2", "v2"]);
    assert_eq!(world.condition("Ready").0, Truth::False);
    world.pass(30);
    assert_eq!(world.condition("Ready").0, Truth::True);
}

#[test]
fn recreate_stops_all_before_it_starts_one() {
    let mut world = World::new(3, &json!({"strategy": "Recreate"}));
    world.apply("v2");
    let mut stopped = false;
    for _ in 0..40 {
        world.step();
        for index in (0..world.instances.len()).rev() {
            world.advance(index);
            let occupied =
                |command: &str| world.instances.iter().any(|it| occupies(it) && it.spec.template.command[0] == command);
            assert!(!(occupied("v1") && occupied("v2")), "side by side");
        }
        stopped |= world.instances.iter().all(|it| it.status.phase == Phase::Stopped);
    }
    assert!(stopped);
    assert_eq!(world.commands(), ["v2"; 3]);
    assert_eq!(world.available(), 3);
    assert!(world.instances.iter().all(|instance| !instance.spec.held));
}

#[test]
fn a_partition_keeps_the_lower_ones_also_when_they_are_made_anew() {
    let mut world = World::new(3, &json!({"partition": 2}));
    world.apply("v2");
    world.rest();
    assert_eq!(world.commands(), ["v1", "v1", "v2"]);
    assert_eq!(world.condition("Ready").0, Truth::True);
    world.instances.retain(|instance| instance.spec.ordinal != 0);
    world.pass(3600);
    assert_eq!(world.commands(), ["v1", "v1", "v2"]);
    assert_eq!(world.condition("Progressing"), (Truth::True, "NewRevisionAvailable"));
    world.process.spec.update.partition = 0;
    world.rest();
    assert_eq!(world.commands(), ["v2"; 3]);
}

#[test]
fn what_is_paused_replaces_nothing_and_scales() {
    let mut world = World::new(2, &json!({}));
    world.process.metadata.annotations.insert(PAUSED_AT.to_owned(), world.now.to_string());
    world.apply("v2");
    world.process.spec.replicas = Some(3);
    world.pass(3600);
    assert_eq!(world.commands(), ["v1"; 3], "the new one is made from what runs");
    assert_eq!(world.condition("Progressing"), (Truth::Unknown, "Paused"));
    world.process.metadata.annotations.clear();
    world.rest();
    assert_eq!(world.commands(), ["v2"; 3]);
}

#[test]
fn a_deadline_is_counted_from_the_last_progress() {
    let mut world = World::new(2, &json!({"progressDeadline": "1m"}));
    world.apply("bad");
    world.rest();
    world.pass(59);
    assert_eq!(world.condition("Progressing"), (Truth::True, "RevisionUpdated"));
    world.pass(1);
    assert_eq!(world.condition("Progressing"), (Truth::False, "ProgressDeadlineExceeded"));
    assert_eq!(world.notes, ["ProgressDeadlineExceeded"]);
    assert_eq!(world.commands(), ["bad", "v1"], "nothing is taken back unasked");
    world.apply("v3");
    world.rest();
    assert_eq!(world.commands(), ["v3", "v3"]);
    assert_eq!(world.condition("Progressing"), (Truth::True, "NewRevisionAvailable"));
}

#[test]
fn a_revision_that_keeps_crashing_is_taken_back_and_stays_so_until_something_new_is_asked_for() {
    let mut world = World::new(3, &json!({"autoRollback": true, "maxUnavailable": "100%"}));
    world.apply("bad");
    world.rest();
    assert_eq!(world.commands(), ["v1"; 3]);
    assert_eq!(world.available(), 3);
    assert_eq!(world.notes, ["RolledBack"]);
    assert_eq!(world.condition("Progressing"), (Truth::False, "RolledBack"));
    assert_eq!(world.condition("Ready"), (Truth::False, "RolledBack"));
    assert_eq!(world.condition("Available").0, Truth::True);
    world.pass(3600);
    assert_eq!(world.commands(), ["v1"; 3]);
    // A restart tries it again.
    world.process.metadata.annotations.insert(RESTARTED_AT.to_owned(), world.now.to_string());
    world.rest();
    assert_eq!(world.notes, ["RolledBack"; 2]);
    world.apply("v3");
    world.rest();
    assert_eq!(world.commands(), ["v3"; 3]);
    assert_eq!(world.condition("Ready").0, Truth::True);
}

#[test]
fn the_history_is_numbered_bounded_and_has_no_duplicates() {
    let mut world = World::new(1, &json!({}));
    world.process.spec.revision_history_limit = Some(2);
    for command in ["v2", "v3", "v4", "v3"] {
        world.process.metadata.annotations.insert(CHANGE_CAUSE.to_owned(), format!("to {command}"));
        world.apply(command);
        world.rest();
    }
    let status = &world.process.status;
    let history: Vec<_> = status.revisions.iter().map(|it| (it.number, it.template.command[0].as_str())).collect();
    assert_eq!((status.revision_number, history), (5, vec![(2, "v2"), (4, "v4")]));
    assert_eq!(status.revisions[1].change_cause, "to v4");
    world.process.spec.revision_history_limit = Some(0);
    world.rest();
    assert!(world.process.status.revisions.is_empty());
}

#[test]
fn an_instance_that_crashed_counts_when_it_outlived_its_backoff() {
    let mut world = World::new(1, &json!({}));
    world.instances[0].status.streak = 3;
    world.rest();
    assert_eq!(world.condition("Ready").0, Truth::False);
    world.pass(2);
    assert_eq!(world.condition("Ready").0, Truth::False);
    world.pass(2);
    assert_eq!(world.condition("Ready").0, Truth::True);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever the limits, the order of steps and the changes in between: never fewer available than promised, never
    /// more copies than promised, and in the end everything is new.
    #[test]
    fn rollouts_keep_their_promise_and_converge(
        replicas in 1_u32..8,
        surge in 0_u32..4,
        unavailable in 0_u32..4,
        steps in prop::collection::vec((0_usize..12, 0_u8..20), 0..200),
        last in "v[3-9]",
    ) {
        let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
        let mut world = World::new(replicas, &json!({"maxSurge": surge, "maxUnavailable": unavailable}));
        world.apply("v2");
        let floor = replicas.saturating_sub(unavailable) as usize;
        for (index, what) in steps {
            match what {
                0 => world.apply("v3"),
                1 => world.apply("bad"),
                2 => {
                    world.process.metadata.annotations.insert(RESTARTED_AT.to_owned(), world.now.to_string());
                }
                3 => world.now = world.now + Span::from_secs(1),
                4..=9 => drop(world.step()),
                _ if world.instances.is_empty() => {}
                _ => drop(world.advance(index % world.instances.len())),
            }
            prop_assert!(world.available() >= floor, "{} of {floor} available", world.available());
            prop_assert!(world.instances.len() <= (replicas + surge) as usize, "{} copies", world.instances.len());
        }
        world.apply(&last);
        world.rest();
        prop_assert_eq!(world.commands(), vec![last.as_str(); replicas as usize]);
        prop_assert_eq!(world.available(), replicas as usize);
        prop_assert!(!world.step(), "a converged world needs something");
    }

    /// The same with revisions that are taken back by themselves.
    #[test]
    fn a_broken_revision_is_always_taken_back(replicas in 1_u32..6, surge in 0_u32..3, unavailable in 1_u32..4) {
        let update = json!({"maxSurge": surge, "maxUnavailable": unavailable, "autoRollback": true});
        let mut world = World::new(replicas, &update);
        world.apply("bad");
        world.rest();
        prop_assert_eq!(world.commands(), vec!["v1"; replicas as usize]);
        prop_assert_eq!(world.available(), replicas as usize);
    }
}
