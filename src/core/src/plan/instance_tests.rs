use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kinds::{self, EndCause, ExitStatus, Identity, InstanceSpec, ProcessSpec, Severity, StopReason, Verdict};
use crate::limits::{self, EnforcedLimit};
use crate::meta::Metadata;
use crate::plan::depend::Waits;
use crate::time::Span;

#[path = "hooks_tests.rs"]
mod hooks;
#[path = "restart_tests.rs"]
mod restarts;
#[path = "thresholds_tests.rs"]
mod thresholds;
#[path = "wait_tests.rs"]
mod waits;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(millis * 1000)
}

fn template(more: &serde_json::Value) -> Arc<ProcessSpec> {
    let mut spec = json!({"command": ["x"], "backoff": {"jitter": 0.0}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    Arc::new(serde_json::from_value(spec).unwrap())
}

fn instance(more: &serde_json::Value) -> Instance {
    let template = template(more);
    Instance {
        api_version: kinds::API_VERSION.to_owned(),
        kind: "Instance".to_owned(),
        metadata: Metadata { name: "web-0".to_owned(), uid: "u".to_owned(), ..Metadata::default() },
        spec: InstanceSpec {
            process: "web".to_owned(),
            job: None,
            ordinal: 0,
            revision: template.revision(),
            stopped_at: None,
            restarted_at: None,
            started_at: None,
            held: false,
            ports: std::collections::BTreeMap::new(),
            template,
        },
        status: InstanceStatus::default(),
    }
}

/// What a hook is told.
type Told = Vec<(&'static str, String)>;

/// A world that does what it is told: one process at most, whose fate the test decides.
struct World {
    instance: Instance,
    observed: Observed,
    now: Timestamp,
    /// Every attempt that was ever started.
    spawned: Vec<(u64, Timestamp)>,
    wake_at: Option<Timestamp>,
    notes: Vec<&'static str>,
    /// The same, with the time.
    told: Vec<(&'static str, Timestamp)>,
    signals: Vec<i32>,
    kills: u32,
    limited: Vec<u64>,
    removed: bool,
    /// Every hook that was begun, with what it was told; and how often one was cancelled.
    hooks: Vec<(HookKind, u64, Told)>,
    cancelled: u32,
}

impl World {
    fn new(more: &serde_json::Value) -> Self {
        Self {
            instance: instance(more),
            observed: Observed { synced: true, recorded: true, ..Observed::default() },
            now: at(1_000_000),
            spawned: Vec::new(),
            wake_at: None,
            notes: Vec::new(),
            told: Vec::new(),
            signals: Vec::new(),
            kills: 0,
            limited: Vec::new(),
            removed: false,
            hooks: Vec::new(),
            cancelled: 0,
        }
    }

    /// Plans and acts until nothing is left to do now.
    fn settle(&mut self) {
        for _ in 0..20 {
            let plan = plan(&self.instance, &self.observed, self.now);
            self.instance.status = plan.status;
            self.wake_at = plan.wake_at;
            self.notes.extend(plan.notes.iter().map(|note| note.reason));
            self.told.extend(plan.notes.iter().map(|note| (note.reason, self.now)));
            if plan.actions.is_empty() {
                return;
            }
            for action in plan.actions {
                self.act(&action);
            }
        }
        panic!("the plan never comes to rest: {:?}", self.instance.status);
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Record => {}
            Action::Hook { kind, attempt, ref env } => {
                let before = self.observed.hooks.take().unwrap_or_default();
                assert!(before.iter().all(|run| run.result.is_some()), "two hooks at a time");
                self.hooks.push((kind, attempt, env.clone()));
                let runs = before.into_iter().chain([HookRun { attempt, kind, result: None }]);
                self.observed.hooks = Some(runs.collect());
            }
            Action::CancelHook => {
                let runs = self.observed.hooks.take().unwrap_or_default();
                self.cancelled += u32::from(runs.iter().any(|run| run.result.is_none()));
            }
            Action::Spawn { attempt } => {
                assert!(self.observed.attempts.iter().all(|held| held.state.is_over()), "a second copy");
                assert!(self.spawned.iter().all(|(number, _)| *number < attempt), "a number used twice");
                self.spawned.push((attempt, self.now));
                self.observed.limited = None;
                let identity = Identity { boot_id: "b".to_owned(), pid: 100 + attempt as i32, start_time: attempt };
                self.observed.attempts.push(Attempt {
                    number: attempt,
                    identity: Some(identity),
                    started_at: self.now,
                    state: AttemptState::Running,
                    oom_killed: false,
                    limits: None,
                });
            }
            Action::Limit { attempt } => {
                let status = &self.instance.status;
                let limits = self.instance.spec.template.limits_in_effect(status.resources.as_deref());
                self.observed.limited = limits.map(Box::new);
                self.limited.push(attempt);
            }
            Action::Signal { attempt, signal } => {
                self.observed.signalled = Some(attempt);
                self.signals.push(signal);
            }
            Action::Kill { attempt } => {
                self.observed.killed = Some(attempt);
                self.kills += 1;
            }
            Action::Forget { attempt } => self.observed.attempts.retain(|held| held.number != attempt),
            Action::Remove => {
                assert!(self.observed.attempts.is_empty());
                self.removed = true;
                self.observed.synced = false;
            }
        }
    }

    fn end(&mut self, status: ExitStatus) {
        let now = self.now;
        let last = self.observed.attempts.last_mut().expect("something runs");
        last.state = AttemptState::Ended { status, at: now, reboot: false };
        self.settle();
    }

    /// A probe or a limit finds that the running attempt has to end; it obeys the signal.
    fn condemn(&mut self, cause: EndCause, severity: Severity) {
        let attempt = self.observed.attempts.last().expect("something runs").number;
        let message = "it does not work".to_owned();
        self.observed.verdict =
            Some(Box::new(Verdict { attempt, cause, severity, message, violation: None, hook: false }));
        self.settle();
        assert_eq!(self.phase(), (Phase::Stopping, StopReason::of(cause).name()));
        self.end(ExitStatus::Code(0));
    }

    fn fail_to_start(&mut self, kind: StartErrorKind) {
        let now = self.now;
        let last = self.observed.attempts.last_mut().expect("something runs");
        last.identity = None;
        last.state = AttemptState::FailedToStart(StartError { kind, message: "no".to_owned(), at: now });
        self.settle();
    }

    fn advance_to_wake(&mut self) {
        self.now = self.wake_at.expect("something is due");
        self.settle();
    }

    fn phase(&self) -> (Phase, &str) {
        (self.instance.status.phase, &self.instance.status.reason)
    }
}

#[test]
fn starts_once_and_then_rests() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert_eq!(world.phase(), (Phase::Running, "Running"));
    assert_eq!(world.spawned.len(), 1);
    assert_eq!(world.instance.status.pid, Some(101));
    assert!(world.instance.status.ready);
    let before = world.instance.status.clone();
    world.now = at(2_000_000);
    world.settle();
    assert_eq!(world.instance.status, before);
}

#[test]
fn nothing_is_decided_before_custody_has_reported() {
    let mut world = World::new(&json!({}));
    world.observed.synced = false;
    world.settle();
    assert!(world.spawned.is_empty());
}

#[test]
fn nothing_starts_before_the_record_is_safe() {
    let mut world = World::new(&json!({}));
    world.observed.recorded = false;
    world.settle();
    assert!(world.spawned.is_empty());
    assert_eq!(world.phase().0, Phase::Pending);
    world.observed.recorded = true;
    world.settle();
    assert_eq!(world.spawned.len(), 1);
}

#[test]
fn what_is_started_is_recorded_before_it_is_started() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.end(ExitStatus::Signal(9));
    world.instance.spec.restarted_at = Some(world.now);
    let first = plan(&world.instance, &world.observed, world.now);
    assert_eq!(first.actions, [Action::Record]);
    assert_eq!(first.status.restarted_at, world.instance.spec.restarted_at);
    world.settle();
    assert_eq!(world.spawned.len(), 2);
}

#[test]
fn crashes_are_restarted_with_exact_growing_delays() {
    let mut world = World::new(&json!({"backoff": {"initial": "1s", "factor": 2.0, "max": "5s", "jitter": 0.0}}));
    world.settle();
    for expected in [1000, 2000, 4000, 5000, 5000] {
        let started = world.spawned.last().unwrap().1;
        world.end(ExitStatus::Code(1));
        assert_eq!(world.phase(), (Phase::Backoff, "Crashed"));
        world.advance_to_wake();
        assert_eq!(world.spawned.last().unwrap().1.since(started), Span::from_millis(expected));
    }
    assert_eq!(world.instance.status.restarts, 5);
}

#[test]
fn what_ran_longer_than_its_delay_is_restarted_at_once() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.now = world.now + Span::from_secs(30);
    world.end(ExitStatus::Signal(9));
    assert_eq!(world.phase().0, Phase::Running);
    assert_eq!(world.spawned.len(), 2);
}

#[test]
fn a_stable_run_starts_the_count_anew() {
    let mut world = World::new(&json!({}));
    world.settle();
    for _ in 0..3 {
        world.end(ExitStatus::Code(1));
        world.advance_to_wake();
    }
    assert_eq!(world.instance.status.streak, 3);
    world.now = world.now + Span::from_secs(600);
    world.end(ExitStatus::Code(1));
    assert_eq!(world.instance.status.streak, 1);
}

#[test]
fn policies_obey_codes_and_signals() {
    use ExitStatus::{Code, Signal, Unknown};
    for (policy, exit, restarted, end) in [
        ("Always", Code(0), true, ""),
        ("Always", Code(1), true, ""),
        ("UnlessStopped", Code(0), true, ""),
        ("OnFailure", Code(0), false, "Completed"),
        ("OnFailure", Code(3), false, "Completed"),
        ("OnFailure", Code(1), true, ""),
        ("OnFailure", Signal(15), true, ""),
        ("OnFailure", Unknown("x".to_owned()), true, ""),
        ("Never", Code(0), false, "Completed"),
        ("Never", Code(1), false, "Crashed"),
        ("Never", Signal(9), false, "Crashed"),
    ] {
        let mut world = World::new(&json!({"restartPolicy": policy, "successExitCodes": [0, 3]}));
        world.settle();
        world.end(exit.clone());
        if restarted {
            assert_eq!(world.phase().0, Phase::Backoff, "{policy} {exit:?}");
            world.advance_to_wake();
            assert_eq!(world.spawned.len(), 2, "{policy} {exit:?}");
        } else {
            let phase = if end == "Completed" { Phase::Stopped } else { Phase::Failed };
            assert_eq!(world.phase(), (phase, end), "{policy} {exit:?}");
            assert_eq!(world.wake_at, None);
        }
    }
}

#[test]
fn gives_up_after_exactly_max_retries() {
    let mut world = World::new(&json!({"backoff": {"maxRetries": 3, "jitter": 0.0}}));
    world.settle();
    for _ in 0..3 {
        world.end(ExitStatus::Code(1));
        world.advance_to_wake();
    }
    world.end(ExitStatus::Code(1));
    assert_eq!(world.phase(), (Phase::Failed, "RetriesExhausted"));
    assert_eq!(world.spawned.len(), 4);
    // A start by hand forgives.
    world.instance.spec.started_at = Some(world.now);
    world.settle();
    assert_eq!((world.spawned.len(), world.phase().0), (5, Phase::Running));
    assert_eq!(world.instance.status.failures, 0);
}

#[test]
fn the_breaker_opens_tries_once_and_closes() {
    let breaker = json!({"failures": 3, "window": "60s", "cooldown": "5m"});
    let mut world = World::new(&json!({"circuitBreaker": breaker, "backoff": {"initial": "0s", "jitter": 0.0}}));
    world.settle();
    for _ in 0..3 {
        world.end(ExitStatus::Code(1));
    }
    assert_eq!(world.phase(), (Phase::Backoff, "CircuitOpen"));
    let opened = world.now;
    world.advance_to_wake();
    assert_eq!(world.spawned.last().unwrap().1.since(opened), Span::from_secs(300));
    // The trial fails: open again at once.
    world.end(ExitStatus::Code(1));
    assert_eq!(world.phase(), (Phase::Backoff, "CircuitOpen"));
    world.advance_to_wake();
    assert!(world.instance.status.breaker.half_open);
    world.advance_to_wake();
    assert!(world.instance.status.breaker.is_idle());
    assert_eq!(world.notes.iter().filter(|reason| **reason == "CircuitOpen").count(), 2);
    assert!(world.notes.contains(&"CircuitClosed"));
}

#[test]
fn a_restart_by_hand_passes_an_open_breaker() {
    let breaker = json!({"failures": 1, "window": "60s", "cooldown": "5m"});
    let mut world = World::new(&json!({"circuitBreaker": breaker}));
    world.settle();
    world.end(ExitStatus::Code(1));
    assert_eq!(world.phase(), (Phase::Backoff, "CircuitOpen"));
    world.instance.spec.restarted_at = Some(world.now);
    world.settle();
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
}

#[test]
fn trouble_at_the_start_is_told_apart() {
    for (kind, retried) in [
        (StartErrorKind::CommandNotFound, true),
        (StartErrorKind::PermissionDenied, true),
        (StartErrorKind::BadWorkingDirectory, true),
        (StartErrorKind::ResourcesExhausted, true),
        (StartErrorKind::Other, true),
        (StartErrorKind::BadFormat, false),
        (StartErrorKind::BadUser, false),
    ] {
        let mut world = World::new(&json!({}));
        world.settle();
        world.fail_to_start(kind);
        let phase = if retried { Phase::Backoff } else { Phase::Failed };
        assert_eq!(world.phase(), (phase, kind.reason()));
        assert_eq!(world.wake_at.is_some(), retried);
        assert_eq!(world.instance.status.failures, u32::from(kind != StartErrorKind::ResourcesExhausted));
    }
}

#[test]
fn what_is_found_not_to_work_is_stopped_and_has_failed_whatever_it_says() {
    for (cause, reason) in [
        (EndCause::Startup, "StartupFailed"),
        (EndCause::Liveness, "Unhealthy"),
        (EndCause::Resource, "ResourceViolation"),
    ] {
        let mut world = World::new(&json!({"restartPolicy": "OnFailure"}));
        world.settle();
        world.condemn(cause, Severity::Warning);
        assert_eq!(world.phase(), (Phase::Backoff, reason));
        assert!(world.instance.status.message.starts_with("it does not work; exited with code 0"));
        let exit = world.instance.status.last_exit.clone().unwrap();
        assert_eq!((exit.cause, exit.severity), (Some(cause), Some(Severity::Warning)));
        assert_eq!((world.signals.len(), world.instance.status.failures), (1, 1));
        // The verdict was on the attempt that ended.
        world.advance_to_wake();
        assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
        world.settle();
        assert_eq!(world.phase().0, Phase::Running);
    }
}

#[test]
fn a_stop_by_hand_takes_precedence_over_a_verdict() {
    let mut world = World::new(&json!({}));
    world.settle();
    let message = "it does not work".to_owned();
    let verdict = Verdict {
        attempt: 1,
        cause: EndCause::Liveness,
        severity: Severity::Critical,
        message,
        violation: None,
        hook: false,
    };
    world.observed.verdict = Some(Box::new(verdict));
    world.settle();
    world.instance.spec.stopped_at = Some(world.now);
    world.settle();
    assert_eq!(world.phase(), (Phase::Stopping, "Stopped"));
    world.end(ExitStatus::Signal(15));
    assert_eq!(world.phase(), (Phase::Stopped, "Stopped"));
    assert_eq!((world.instance.status.failures, world.instance.status.last_exit.clone().unwrap().cause), (0, None));
}

#[test]
fn ends_have_a_cause_and_a_severity() {
    for (exit, severity) in [
        (ExitStatus::Code(1), Severity::Critical),
        (ExitStatus::Signal(9), Severity::Critical),
        (ExitStatus::Signal(11), Severity::Emergency),
        (ExitStatus::Unknown("nobody saw it".to_owned()), Severity::Warning),
    ] {
        let mut world = World::new(&json!({}));
        world.settle();
        world.end(exit);
        let exit = world.instance.status.last_exit.clone().unwrap();
        assert_eq!((exit.cause, exit.severity), (Some(EndCause::Crash), Some(severity)));
    }
}

#[test]
fn what_the_kernel_killed_for_want_of_memory_says_so() {
    let mut world = World::new(&json!({"resources": {"limits": {"memory": "64Mi"}}}));
    world.settle();
    world.observed.attempts[0].oom_killed = true;
    world.end(ExitStatus::Signal(9));
    assert_eq!(world.phase(), (Phase::Backoff, "OOMKilled"));
    assert!(world.instance.status.message.contains("more memory than its limit"), "{}", world.instance.status.message);
    let exit = world.instance.status.last_exit.clone().unwrap();
    assert_eq!((exit.cause, exit.severity), (Some(EndCause::Resource), Some(Severity::Emergency)));
    assert!(exit.oom_killed && world.notes.contains(&"OOMKilled"));
}

#[test]
fn another_value_of_a_limit_takes_effect_on_what_runs_and_another_limit_restarts() {
    use crate::kinds::LimitKind;
    let enforced =
        |kind, value, by: Result<&str, &str>| EnforcedLimit { kind, value, by: by.map(Into::into).map_err(Into::into) };
    let limits = |limits: serde_json::Value| template(&json!({"resources": {"limits": limits}}));
    let mut world = World::new(&json!({"resources": {"limits": {"memory": "64Mi", "nice": 5}}}));
    world.settle();
    let condition = |world: &World| {
        let conditions = &world.instance.status.conditions;
        conditions.iter().find(|condition| condition.kind == limits::CONDITION).map(|it| (it.status, it.reason.clone()))
    };
    assert_eq!(condition(&world), Some((Truth::False, "NotEnforced".to_owned())));
    assert!(world.notes.contains(&"LimitsNotEnforced"));
    let nice = enforced(LimitKind::Nice, 5, Ok("setpriority"));
    world.observed.attempts[0].limits =
        Some(Box::new([enforced(LimitKind::Memory, 64 << 20, Ok("cgroup v1")), nice.clone()]));
    world.settle();
    assert_eq!(condition(&world), Some((Truth::True, "Enforced".to_owned())));

    world.instance.spec.template = limits(json!({"memory": "128Mi", "nice": 5}));
    assert_eq!(world.instance.spec.template.revision(), world.instance.spec.revision);
    world.instance.metadata.generation += 1;
    world.settle();
    assert_eq!((&*world.limited, condition(&world).unwrap().0), (&[1][..], Truth::False));
    // Asked once, whatever comes of it.
    world.observed.attempts[0].limits =
        Some(Box::new([enforced(LimitKind::Memory, 128 << 20, Err("busy")), nice.clone()]));
    world.settle();
    assert_eq!((world.limited.len(), condition(&world).unwrap().1), (1, "PartlyEnforced".to_owned()));
    world.observed.attempts[0].limits = Some(Box::new([enforced(LimitKind::Memory, 128 << 20, Ok("cgroup v1")), nice]));
    world.settle();
    assert_eq!(condition(&world).unwrap().0, Truth::True);

    for changed in [json!({"memory": "128Mi", "nice": 6}), json!({"memory": "128Mi"}), json!({"nice": 5, "cpu": 1})] {
        assert_ne!(limits(changed.clone()).revision(), world.instance.spec.revision, "{changed}");
    }
    world.instance.spec.template = template(&json!({}));
    world.observed.attempts[0].limits = None;
    world.settle();
    assert_eq!(condition(&world), None);
}

#[test]
fn a_corrected_spec_is_tried_at_once() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.fail_to_start(StartErrorKind::BadFormat);
    assert_eq!(world.phase().0, Phase::Failed);
    world.instance.spec.template = template(&json!({"command": ["y"]}));
    world.instance.spec.revision = world.instance.spec.template.revision();
    world.settle();
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
}

#[test]
fn a_stop_signals_waits_and_kills_at_the_deadline() {
    let mut world = World::new(&json!({"stop": {"signal": "SIGINT", "gracePeriod": "3s"}}));
    world.settle();
    world.instance.spec.stopped_at = Some(world.now);
    world.settle();
    assert_eq!(world.phase(), (Phase::Stopping, "Stopped"));
    assert_eq!((world.signals.as_slice(), world.kills), (&[2][..], 0));
    assert_eq!(world.wake_at, Some(world.now + Span::from_secs(3)));
    world.now = world.now + Span::from_millis(2999);
    world.settle();
    assert_eq!(world.kills, 0);
    world.now = world.now + Span::from_millis(1);
    world.settle();
    assert_eq!(world.kills, 1);
    world.end(ExitStatus::Signal(9));
    assert_eq!(world.phase(), (Phase::Stopped, "Stopped"));
    assert_eq!(world.instance.status.failures, 0);
    world.instance.spec.stopped_at = None;
    world.settle();
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
}

#[test]
fn a_controller_that_comes_back_in_the_middle_of_a_stop_keeps_the_deadline() {
    let mut world = World::new(&json!({"stop": {"gracePeriod": "3s"}}));
    world.settle();
    world.instance.spec.stopped_at = Some(world.now);
    world.settle();
    world.observed.signalled = None;
    world.now = world.now + Span::from_secs(2);
    world.settle();
    assert_eq!((world.signals.len(), world.kills), (2, 0));
    world.now = world.now + Span::from_secs(1);
    world.settle();
    assert_eq!(world.kills, 1);
}

#[test]
fn processes_left_behind_are_stopped_before_the_next_start() {
    let mut world = World::new(&json!({"backoff": {"initial": "0s"}}));
    world.settle();
    world.observed.attempts[0].state = AttemptState::LeaderExited { status: ExitStatus::Code(1), survivors: 2 };
    world.settle();
    assert_eq!(world.phase(), (Phase::Stopping, "LeaderExited"));
    assert_eq!((world.signals.len(), world.spawned.len()), (1, 1));
    world.end(ExitStatus::Code(1));
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
    assert_eq!(world.instance.status.last_exit.as_ref().unwrap().status, ExitStatus::Code(1));
}

#[test]
fn a_hundred_restarts_never_make_a_second_copy() {
    let mut world = World::new(&json!({}));
    world.settle();
    for _ in 0..100 {
        world.now = world.now + Span::from_millis(1);
        world.instance.spec.restarted_at = Some(world.now);
        world.settle();
    }
    assert_eq!(world.signals.len(), 1);
    world.end(ExitStatus::Signal(15));
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
}

#[test]
fn a_deletion_stops_forgets_and_removes() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.instance.metadata.deletion_timestamp = Some(world.now);
    world.instance.metadata.deletion_grace_period_seconds = Some(0);
    world.settle();
    assert_eq!((world.signals.len(), world.kills, world.removed), (0, 1, false));
    world.end(ExitStatus::Signal(9));
    assert!(world.removed);
}

#[test]
fn a_shutdown_stops_by_its_deadline_and_is_no_stop_by_hand() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.observed.shutdown = Some(world.now + Span::from_secs(2));
    world.settle();
    assert_eq!(world.phase(), (Phase::Stopping, "Shutdown"));
    assert_eq!(world.wake_at, world.observed.shutdown);
    world.advance_to_wake();
    assert_eq!(world.kills, 1);
    world.end(ExitStatus::Signal(9));
    assert_eq!(world.phase(), (Phase::Stopped, "Shutdown"));
    world.observed.shutdown = None;
    world.settle();
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
}

#[test]
fn a_reboot_is_lost_not_failed_and_starts_again() {
    let mut world = World::new(&json!({}));
    world.settle();
    let unknown = ExitStatus::Unknown("rebooted".to_owned());
    world.observed.attempts[0].state = AttemptState::Ended { status: unknown, at: world.now, reboot: true };
    world.settle();
    assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2));
    assert!(world.instance.status.history.iter().any(|entry| entry.phase == Phase::Lost));
    assert_eq!(world.instance.status.failures, 0);
}

#[test]
fn an_attempt_that_custody_never_saw_is_spent() {
    let mut world = World::new(&json!({}));
    world.instance.status.attempt = 4;
    world.instance.status.ended_attempt = 3;
    world.instance.status.revision = world.instance.spec.revision.clone();
    world.settle();
    assert_eq!(world.spawned.last().unwrap().0, 5);
}

#[test]
fn restarts_are_those_that_happened() {
    let mut world = World::new(&json!({"backoff": {"initial": "0s"}}));
    world.settle();
    world.end(ExitStatus::Code(1));
    world.end(ExitStatus::Code(1));
    assert_eq!(world.instance.status.restarts, 2);
    // What happened after the first start was never written down.
    let running = world.observed.attempts.clone();
    let end = |number| Attempt {
        number,
        state: AttemptState::Ended { status: ExitStatus::Code(1), at: world.now, reboot: false },
        oom_killed: false,
        limits: None,
        ..running[0].clone()
    };
    let known = InstanceStatus { attempt: 1, ..InstanceStatus::default() };
    world.instance.status = InstanceStatus { revision: world.instance.spec.revision.clone(), ..known };
    world.observed.attempts = vec![end(1), end(2), running[0].clone()];
    world.settle();
    assert_eq!((world.instance.status.restarts, world.instance.status.attempt), (2, 3));
    // A start that was decided and never came about does not count.
    world.instance.status.attempt = 4;
    world.instance.status.ended_attempt = 3;
    world.instance.status.restarts = 3;
    world.instance.status.pid = None;
    world.observed.attempts.clear();
    world.settle();
    assert_eq!((world.instance.status.restarts, world.instance.status.attempt), (3, 5));
}

#[test]
fn a_lost_status_is_recovered_from_custody() {
    let mut world = World::new(&json!({}));
    world.settle();
    // The status after the start was never written; custody knows better.
    world.instance.status =
        InstanceStatus { revision: world.instance.spec.revision.clone(), ..InstanceStatus::default() };
    world.settle();
    assert_eq!((world.spawned.len(), world.instance.status.attempt), (1, 1));
    assert_eq!(world.phase().0, Phase::Running);
}

#[test]
fn the_history_is_bounded_and_tells_the_latest() {
    let mut world = World::new(&json!({}));
    world.settle();
    for _ in 0..20 {
        world.end(ExitStatus::Code(1));
        world.advance_to_wake();
    }
    let history = &world.instance.status.history;
    assert_eq!(history.len(), InstanceStatus::HISTORY);
    assert_eq!(history.last().unwrap().phase, Phase::Running);
}

proptest! {
    /// Whatever happens, there is never a second copy (asserted in the world), the plan comes to rest, and a stop asked
    /// for in the end leaves nothing running.
    #[test]
    fn any_life_has_one_copy_and_can_be_ended(steps in prop::collection::vec(0_u8..9, 1..60), policy in 0_usize..4) {
        let policy = ["Always", "OnFailure", "Never", "UnlessStopped"][policy];
        let breaker = json!({"failures": 2});
        let mut world = World::new(&json!({"restartPolicy": policy, "circuitBreaker": breaker}));
        world.settle();
        for step in steps {
            world.now = world.now + Span::from_millis(700);
            let runs = world.observed.attempts.last().is_some_and(|held| !held.state.is_over());
            match step {
                0 if runs => world.end(ExitStatus::Code(1)),
                1 if runs => world.end(ExitStatus::Code(0)),
                2 if runs => world.observed.attempts.last_mut().unwrap().state =
                    AttemptState::LeaderExited { status: ExitStatus::Code(2), survivors: 1 },
                3 => world.instance.spec.restarted_at = Some(world.now),
                4 => world.instance.spec.stopped_at = Some(world.now),
                5 => { world.instance.spec.stopped_at = None; world.instance.spec.started_at = Some(world.now); }
                6 => world.now = world.now + Span::from_secs(400),
                7 => { world.observed.signalled = None; world.observed.killed = None; }
                _ => { world.instance.spec.template = template(&json!({"env": [{"name": "A", "value": step.to_string()}]}));
                       world.instance.spec.revision = world.instance.spec.template.revision(); }
            }
            world.settle();
            let live = world.observed.attempts.iter().filter(|held| !held.state.is_over()).count();
            prop_assert!(live <= 1);
        }
        world.instance.spec.stopped_at = Some(world.now);
        world.settle();
        if world.observed.attempts.last().is_some_and(|held| !held.state.is_over()) {
            world.end(ExitStatus::Signal(15));
        }
        prop_assert_eq!(world.phase(), (Phase::Stopped, "Stopped"));
    }
}
