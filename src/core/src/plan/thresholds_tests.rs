//! What follows from thresholds that are exceeded.

use super::*;
use crate::kinds::{Exceeded, Level, LimitKind, Measure, Throttled};
use crate::plan::resources::Levels;
use crate::quantity::Cpu;

fn world(policy: &str) -> World {
    let thresholds = json!({"memory": {"warning": "400Mi", "critical": "480Mi", "policy": policy}});
    let resources = json!({"limits": {"memory": "512Mi"}, "thresholds": thresholds});
    let mut world = World::new(&json!({"resources": resources, "fallback": {"command": ["safe"]}}));
    world.settle();
    world
}

fn exceed(world: &mut World, level: Level, sustained: bool) {
    let attempt = world.observed.attempts.last().expect("something runs").number;
    let used = if level == Level::Critical { 500 << 20 } else { 450 << 20 };
    let since = world.now;
    let exceeded = Exceeded { resource: Measure::Memory, level, since, used, sustained };
    let exceeded = if level == Level::Normal { Vec::new() } else { vec![exceeded] };
    world.observed.levels = Some(Box::new(Levels { attempt, exceeded, cpu: Some(700) }));
    world.settle();
}

/// Reason and truth of a condition.
fn condition(world: &World, kind: &str) -> Option<(String, Truth)> {
    let found = world.instance.status.conditions.iter().find(|condition| condition.kind == kind)?;
    Some((found.reason.clone(), found.status))
}

const POLICIES: [&str; 8] =
    ["None", "Log", "Alert", "Throttle", "GracefulShutdown", "Kill", "Restart", "RestartAdjusted"];

#[test]
fn a_warning_never_runs_the_critical_action_and_neither_does_what_does_not_last() {
    for policy in POLICIES {
        let mut world = world(policy);
        assert_eq!(condition(&world, "WithinThresholds"), Some(("Normal".to_owned(), Truth::True)));
        // Even one that claims to have lasted.
        for (level, sustained, truth) in [
            (Level::Warning, false, Truth::True),
            (Level::Critical, false, Truth::False),
            (Level::Warning, false, Truth::True),
        ] {
            exceed(&mut world, level, sustained);
            assert_eq!(world.phase(), (Phase::Running, "Running"), "{policy}");
            assert_eq!(condition(&world, "WithinThresholds").unwrap().1, truth, "{policy}");
        }
        assert!(world.signals.is_empty() && world.kills == 0 && world.limited.is_empty(), "{policy}");
        exceed(&mut world, Level::Normal, false);
        assert_eq!(world.instance.status.resources, None, "{policy}");
        let told = ["ThresholdWarning", "ThresholdExceeded", "ThresholdWarning", "ThresholdCleared"];
        let told: Vec<&str> = if matches!(policy, "None" | "Log") { Vec::new() } else { told.to_vec() };
        let notes: Vec<&str> = world.notes.iter().copied().filter(|note| note.starts_with("Threshold")).collect();
        assert_eq!(notes, told, "{policy}");
    }
}

#[test]
fn log_and_alert_tell_of_it_once_and_do_nothing() {
    for (policy, notes, logged) in [("None", 0, 0), ("Log", 0, 1), ("Alert", 1, 0)] {
        let mut world = world(policy);
        exceed(&mut world, Level::Critical, false);
        let levels = world.observed.levels.as_mut().unwrap();
        levels.exceeded[0].sustained = true;
        let plan = plan(&world.instance, &world.observed, world.now);
        let of = |notes: &[Note]| notes.iter().filter(|note| note.reason == "ThresholdViolation").count();
        assert_eq!((of(&plan.notes), of(&plan.log)), (notes, logged), "{policy}");
        assert!(plan.actions.is_empty(), "{policy}");
        world.settle();
        let again = super::plan(&world.instance, &world.observed, world.now);
        assert!(again.notes.is_empty() && again.log.is_empty(), "{policy}");
        assert_eq!(world.phase(), (Phase::Running, "Running"), "{policy}");
    }
}

#[test]
fn those_that_end_it_end_it_each_in_its_way() {
    for (policy, signals, kills, restarts) in [
        ("GracefulShutdown", 1, 0, false),
        ("Kill", 0, 1, false),
        ("Restart", 1, 0, true),
        ("RestartAdjusted", 1, 0, true),
    ] {
        let mut world = world(policy);
        exceed(&mut world, Level::Critical, true);
        assert_eq!(world.phase(), (Phase::Stopping, "ResourceViolation"), "{policy}");
        assert_eq!((world.signals.len(), world.kills), (signals, kills), "{policy}");
        assert!(world.notes.contains(&"Stopping"), "{policy}");
        world.now = world.now + Span::from_secs(1);
        world.end(ExitStatus::Code(0));
        // Once for each end.
        assert_eq!(world.notes.iter().filter(|note| **note == "ResourceViolation").count(), 1, "{policy}");
        let status = &world.instance.status;
        let exit = status.last_exit.clone().unwrap();
        assert_eq!((exit.cause, exit.severity), (Some(EndCause::Resource), Some(Severity::Critical)), "{policy}");
        let story = "memory is 500Mi, more than its critical level 480Mi";
        assert!(status.history.iter().any(|entry| entry.message.contains(story)), "{:?}", status.history);
        if restarts {
            // Its backoff counts from start to start, and is over.
            assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2), "{policy}");
        } else {
            assert_eq!(world.phase(), (Phase::Failed, "ResourceViolation"), "{policy}");
            assert!(status.fallback.is_none() && world.wake_at.is_none(), "{policy}");
            assert_eq!(condition(&world, "WithinThresholds"), None, "{policy}");
            world.instance.spec.started_at = Some(world.now);
            world.settle();
            assert_eq!((world.phase().0, world.spawned.len()), (Phase::Running, 2), "{policy}");
        }
        // What was said of the attempt before is not held against this one.
        assert_eq!(world.instance.status.stopping, None, "{policy}");
    }
}

#[test]
fn restarts_are_counted_by_the_override_for_resources() {
    let thresholds = json!({"memory": {"critical": "480Mi", "policy": "Restart"}});
    let mut world = World::new(&json!({"resources": {"thresholds": thresholds},
        "restart": {"onResource": {"initial": "40s", "maxRetries": 1}}}));
    world.settle();
    exceed(&mut world, Level::Critical, true);
    world.end(ExitStatus::Signal(15));
    assert_eq!(world.phase(), (Phase::Backoff, "ResourceViolation"));
    assert_eq!(world.wake_at, Some(world.now + Span::from_secs(40)));
    world.advance_to_wake();
    exceed(&mut world, Level::Critical, true);
    world.end(ExitStatus::Signal(15));
    assert_eq!(world.phase(), (Phase::Failed, "RetriesExhausted"));
}

#[test]
fn adjusted_restarts_raise_levels_and_limit_up_to_twice_until_a_start_by_hand() {
    let mut world = world("RestartAdjusted");
    for percent in [125, 150, 175, 200, 200] {
        exceed(&mut world, Level::Critical, true);
        world.now = world.now + Span::from_secs(3600);
        world.end(ExitStatus::Signal(15));
        assert_eq!(world.phase().0, Phase::Running);
        let status = world.instance.status.resources.as_deref().unwrap();
        assert_eq!((status.percent(Measure::Memory), status.exceeded.len()), (percent, 0));
        let limits = world.instance.spec.template.limits_in_effect(Some(status)).unwrap();
        assert_eq!(limits.memory.unwrap().0, (512_u64 << 20) * u64::from(percent) / 100);
    }
    assert_eq!(world.notes.iter().filter(|note| **note == "Adjusted").count(), 5);
    world.instance.spec.restarted_at = Some(world.now);
    world.settle();
    world.end(ExitStatus::Signal(15));
    assert_eq!((world.phase().0, &world.instance.status.resources), (Phase::Running, &None));
}

#[test]
fn what_is_throttled_is_so_until_it_is_below_its_warning_level() {
    let mut world = world("Throttle");
    let told = |cpu, by: Result<&str, &str>| {
        let by = by.map(Into::into).map_err(Into::into);
        let memory = EnforcedLimit { kind: LimitKind::Memory, value: 512 << 20, by: Ok("cgroup v1".into()) };
        let cpu = EnforcedLimit { kind: LimitKind::Cpu, value: cpu, by };
        Some(Box::from([memory, cpu]))
    };
    world.observed.attempts[0].limits = told(0, Ok("cgroup v1"));
    world.settle();
    assert_eq!(condition(&world, "LimitsEnforced").unwrap().1, Truth::True);
    exceed(&mut world, Level::Critical, true);
    let throttled = |world: &World| world.instance.status.resources.as_ref().and_then(|it| it.throttled.clone());
    let expected = Throttled { resource: Measure::Memory, cpu: Cpu(350), since: world.now };
    assert_eq!(throttled(&world), Some(expected.clone()));
    assert_eq!((&*world.limited, world.phase().0), (&[1][..], Phase::Running));
    world.observed.attempts[0].limits = told(350, Ok("cgroup v1"));
    world.settle();
    assert_eq!(condition(&world, "LimitsEnforced").unwrap().1, Truth::True);

    // Neither a warning nor a controller that begins anew ends it.
    exceed(&mut world, Level::Warning, false);
    world.observed.levels = None;
    world.observed.limited = None;
    world.settle();
    assert_eq!((throttled(&world), world.limited.len()), (Some(expected), 1));
    exceed(&mut world, Level::Normal, false);
    assert_eq!((throttled(&world), &*world.limited), (None, &[1, 1][..]));
    world.observed.attempts[0].limits = told(0, Ok("cgroup v1"));
    world.settle();
    assert_eq!(world.limited.len(), 2);

    // Where that cannot be done, the condition says so.
    exceed(&mut world, Level::Critical, true);
    world.observed.attempts[0].limits = told(350, Err("busy"));
    world.settle();
    assert_eq!(condition(&world, "LimitsEnforced"), Some(("PartlyEnforced".to_owned(), Truth::False)));
    assert!(world.notes.contains(&"LimitsNotEnforced"));
    world.end(ExitStatus::Code(1));
    assert_eq!(throttled(&world), None);
}

#[test]
fn thresholds_that_are_removed_hold_no_longer() {
    let mut world = world("Throttle");
    exceed(&mut world, Level::Critical, true);
    world.instance.spec.template = template(&json!({}));
    world.instance.spec.revision = world.instance.spec.template.revision();
    let plan = plan(&world.instance, &world.observed, world.now);
    assert_eq!(plan.status.resources, None);
    // Without a throttle there is no group for it: another process is needed.
    assert_eq!(plan.status.stopping.map(|stopping| stopping.reason), Some(StopReason::Replaced));
}
