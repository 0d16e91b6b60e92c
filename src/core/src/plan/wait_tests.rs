//! Waiting for others: before the start, and before the stop.

use super::*;
use crate::plan::depend::Unmet;

fn unmet(timeout: Option<Span>) -> Waits {
    let message = "process/db (Ready): 0 of 1 instances".to_owned();
    Waits { start: vec![Unmet { message, timeout, met_at: None }], stop: Vec::new() }
}

#[test]
fn nothing_is_started_before_what_it_depends_on_is_there() {
    let mut world = World::new(&json!({}));
    world.observed.waits = Some(Box::new(unmet(None)));
    world.settle();
    let status = &world.instance.status;
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Pending, DEPENDENCY_NOT_READY));
    assert_eq!(status.message, "waits for process/db (Ready): 0 of 1 instances");
    assert!(world.spawned.is_empty());
    world.observed.waits = None;
    world.settle();
    assert_eq!(world.spawned.len(), 1);
    assert_eq!(world.instance.status.waiting_since, None);
}

#[test]
fn what_waited_too_long_has_failed_and_is_started_all_the_same_when_it_can_be() {
    let mut world = World::new(&json!({}));
    world.observed.waits = Some(Box::new(unmet(Some(Span::from_secs(5)))));
    world.settle();
    assert_eq!(world.wake_at, Some(world.now + Span::from_secs(5)));
    world.now = world.now + Span::from_secs(5);
    world.settle();
    let status = &world.instance.status;
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Failed, DEPENDENCY_TIMEOUT));
    assert_eq!(status.message, "waited 5s for process/db (Ready): 0 of 1 instances");
    world.settle();
    assert_eq!(world.notes.iter().filter(|note| **note == DEPENDENCY_TIMEOUT).count(), 1);
    world.observed.waits = None;
    world.settle();
    assert_eq!(world.spawned.len(), 1);
}

#[test]
fn a_start_after_a_crash_does_not_wait_and_one_after_a_stop_does() {
    let mut world = World::new(&json!({"backoff": {"initial": "1s", "jitter": 0.0}}));
    world.settle();
    world.observed.attempts[0].state =
        AttemptState::Ended { status: ExitStatus::Code(1), at: world.now, reboot: false };
    world.settle();
    world.observed.attempts.clear();
    world.observed.waits = Some(Box::new(unmet(None)));
    world.now = world.now + Span::from_secs(60);
    world.settle();
    assert_eq!(world.spawned.len(), 2, "{:?}", world.instance.status);
    world.instance.spec.stopped_at = Some(world.now);
    world.settle();
    world.observed.attempts[0].state =
        AttemptState::Ended { status: ExitStatus::Signal(15), at: world.now, reboot: false };
    world.settle();
    world.observed.attempts.clear();
    world.instance.spec.stopped_at = None;
    world.settle();
    assert_eq!(world.instance.status.reason, DEPENDENCY_NOT_READY);
    assert_eq!(world.spawned.len(), 2);
}

#[test]
fn it_runs_on_until_those_that_depend_on_it_are_stopped() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.instance.spec.stopped_at = Some(world.now);
    world.observed.waits = Some(Box::new(Waits { start: Vec::new(), stop: vec!["web-0".to_owned()] }));
    world.settle();
    let status = &world.instance.status;
    assert_eq!((status.phase, status.reason.as_str()), (Phase::Running, WAITS_FOR_DEPENDENTS));
    assert_eq!(status.message, "is stopped when web-0 no longer runs");
    assert!(status.ready && world.signals.is_empty());
    world.observed.waits = None;
    world.settle();
    assert_eq!(world.signals, [15]);
    // Once it has begun, nothing holds it up.
    world.observed.waits = Some(Box::new(Waits { start: Vec::new(), stop: vec!["web-0".to_owned()] }));
    world.settle();
    assert_eq!(world.instance.status.phase, Phase::Stopping);
}
