//! Hooks: what runs when, what it holds up, and what its failure does.

use super::*;
use crate::kinds::Truth;

const ALL: [HookKind; 4] = HookKind::ALL;
use HookKind::{PostStart, PostStop, PreStart, PreStop};

/// With these hooks, each with a policy for its failure if there is one.
fn world(hooks: &[HookKind], more: &serde_json::Value) -> World {
    with_policy(hooks, "", more)
}

fn with_policy(hooks: &[HookKind], policy: &str, more: &serde_json::Value) -> World {
    let mut spec = more.clone();
    for kind in hooks {
        spec["lifecycle"][kind.name()] = json!({"exec": {"command": ["true"]}});
        if !policy.is_empty() {
            spec["lifecycle"][kind.name()]["failurePolicy"] = json!(policy);
        }
    }
    World::new(&spec)
}

impl World {
    /// The hook that runs is over.
    fn hook_ends(&mut self, kind: HookKind, succeeded: bool) {
        let now = self.now;
        let runs = self.observed.hooks.as_deref_mut().expect("a hook runs");
        let run = runs.iter_mut().find(|run| run.result.is_none()).expect("a hook runs");
        assert_eq!(run.kind, kind);
        let message = if succeeded { "well" } else { "exit code 3: no" }.to_owned();
        run.result = Some(HookResult { succeeded, message, at: now });
        self.settle();
    }

    /// As the kinds of hooks that were begun.
    fn begun(&self) -> Vec<HookKind> {
        self.hooks.iter().map(|(kind, ..)| *kind).collect()
    }

    fn runs_hook(&self) -> bool {
        self.observed.hooks.iter().flatten().any(|run| run.result.is_none())
    }

    fn told_of(&self, kind: HookKind) -> Vec<(&'static str, &str)> {
        let (.., env) = self.hooks.iter().rev().find(|(begun, ..)| *begun == kind).expect("it was begun");
        env.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    fn hook_status(&self, kind: HookKind) -> Option<(u64, bool)> {
        let status = self.instance.status.hooks.as_ref()?.get(kind)?;
        Some((status.attempt, status.succeeded))
    }

    fn why_not_ready(&self) -> &str {
        let conditions = &self.instance.status.conditions;
        let ready = conditions.iter().find(|condition| condition.kind == "Ready").expect("it is published");
        assert_eq!(ready.status, Truth::False);
        &ready.reason
    }

    fn stop(&mut self) {
        self.instance.spec.stopped_at = Some(self.now);
        self.settle();
    }
}

#[test]
fn without_hooks_nothing_is_remembered_of_them() {
    let mut world = World::new(&json!({}));
    world.settle();
    world.stop();
    world.end(ExitStatus::Signal(15));
    assert_eq!((&world.instance.status.hooks, &world.observed.hooks), (&None, &None));
}

#[test]
fn each_runs_once_at_its_place_in_the_life_of_an_attempt() {
    let mut world = world(&ALL, &json!({}));
    world.settle();
    assert_eq!((world.phase(), world.spawned.len()), ((Phase::Pending, "PreStart"), 0));
    world.hook_ends(PreStart, true);
    assert_eq!((world.spawned.len(), world.begun()), (1, vec![PreStart, PostStart]));
    assert_eq!((world.instance.status.ready, world.why_not_ready()), (false, "PostStartPending"));
    assert_eq!(world.told_of(PostStart), [("OSTLER_PID", "101")]);
    world.hook_ends(PostStart, true);
    assert!(world.instance.status.ready);
    world.stop();
    assert_eq!((world.begun().last(), world.signals.len()), (Some(&PreStop), 0), "no signal before the hook");
    assert_eq!(world.told_of(PreStop), [("OSTLER_PID", "101"), ("OSTLER_REASON", "Stopped")]);
    world.hook_ends(PreStop, true);
    assert_eq!(world.signals, [15]);
    world.end(ExitStatus::Signal(15));
    assert_eq!((world.phase(), world.begun().last()), ((Phase::Stopping, "PostStop"), Some(&PostStop)));
    assert!(world.instance.status.is_live(), "the end is not recorded before");
    assert_eq!(world.told_of(PostStop), [("OSTLER_REASON", "Stopped"), ("OSTLER_EXIT_SIGNAL", "15")]);
    world.hook_ends(PostStop, true);
    assert_eq!((world.phase(), world.observed.attempts.len()), ((Phase::Stopped, "Stopped"), 0));
    assert_eq!(world.begun(), ALL);
    assert_eq!(ALL.map(|kind| world.hook_status(kind)), [Some((1, true)); 4]);
}

#[test]
fn a_failed_pre_start_is_a_failed_start_with_everything_that_follows_from_one() {
    let more = json!({"backoff": {"initial": "1s", "factor": 1, "jitter": 0, "maxRetries": 2},
        "circuitBreaker": {"failures": 100, "window": "1m"}});
    let mut world = world(&[PreStart], &more);
    world.settle();
    for attempt in 1..=2 {
        world.hook_ends(PreStart, false);
        assert_eq!(world.phase(), (Phase::Backoff, "PreStartFailed"));
        let exit = world.instance.status.last_exit.clone().unwrap();
        assert_eq!((exit.attempt, exit.cause), (attempt, Some(EndCause::ExecFailure)));
        assert_eq!(exit.status, ExitStatus::Error("preStart hook failed: exit code 3: no".to_owned()));
        assert_eq!(world.instance.status.breaker.failures.len() as u64, attempt);
        assert!(!world.runs_hook(), "the next one waits like any start");
        world.advance_to_wake();
    }
    world.hook_ends(PreStart, false);
    assert_eq!((world.phase(), world.spawned.len()), ((Phase::Failed, "RetriesExhausted"), 0));
    assert_eq!(world.notes.iter().filter(|note| **note == "PreStartFailed").count(), 3, "told once each");
    assert_eq!(world.begun().len(), 3);
}

#[test]
fn a_failed_pre_start_is_ignored_if_so_declared() {
    let mut world = with_policy(&[PreStart], "Ignore", &json!({}));
    world.settle();
    world.hook_ends(PreStart, false);
    assert_eq!((world.spawned.len(), world.phase().0), (1, Phase::Running));
    assert!(world.instance.status.ready && world.notes.contains(&"PreStartFailed"));
    world.end(ExitStatus::Code(1));
    assert_eq!(world.begun(), [PreStart], "and the next start waits for its backoff");
    world.advance_to_wake();
    assert_eq!(world.begun(), [PreStart, PreStart], "before each start");
    world.hook_ends(PreStart, true);
    assert_eq!(world.spawned.len(), 2);
}

#[test]
fn a_stop_or_another_spec_ends_a_pre_start_that_is_under_way() {
    let mut world = world(&[PreStart], &json!({}));
    world.settle();
    world.stop();
    assert_eq!((world.phase(), world.cancelled), ((Phase::Stopped, "Stopped"), 1));
    world.instance.spec.stopped_at = None;
    world.instance.spec.started_at = Some(world.now);
    world.settle();
    assert_eq!((world.begun().len(), world.phase()), (2, (Phase::Pending, "PreStart")));
    world.instance.spec.revision = "another".to_owned();
    world.settle();
    assert_eq!((world.begun().len(), world.cancelled), (3, 2), "it prepares the start of what is wanted now");
    world.hook_ends(PreStart, true);
    assert_eq!((world.spawned.len(), world.instance.status.revision.as_str()), (1, "another"));
    world.instance.metadata.deletion_timestamp = Some(world.now);
    world.settle();
    world.end(ExitStatus::Signal(15));
    assert!(world.removed);
}

#[test]
fn a_failed_post_start_ends_the_attempt_and_restarts_it_by_policy() {
    let mut world =
        world(&[PostStart], &json!({"backoff": {"initial": "1s", "factor": 1, "jitter": 0, "maxRetries": 1}}));
    world.settle();
    for attempt in 1..=2 {
        world.hook_ends(PostStart, false);
        assert_eq!((world.phase(), world.signals.len()), ((Phase::Stopping, "PostStartFailed"), attempt));
        world.end(ExitStatus::Code(0));
        let exit = world.instance.status.last_exit.clone().unwrap();
        assert_eq!((exit.cause, exit.severity), (Some(EndCause::Startup), Some(Severity::Critical)));
        if attempt == 1 {
            assert_eq!(world.phase(), (Phase::Backoff, "PostStartFailed"));
            assert!(world.instance.status.message.contains("postStart hook failed: exit code 3: no"));
            world.advance_to_wake();
            assert_eq!(world.spawned.len(), 2);
        }
    }
    assert_eq!(world.phase(), (Phase::Failed, "RetriesExhausted"));
    assert!(!world.instance.status.history.iter().any(|entry| entry.reason == "Unhealthy"));
}

#[test]
fn a_failed_post_start_is_ignored_if_so_declared_and_not_run_again_by_the_next_controller() {
    let mut world = with_policy(&[PostStart], "Ignore", &json!({}));
    world.settle();
    // The controller dies while it runs: nobody knows what it came to.
    world.observed.hooks = None;
    world.settle();
    assert_eq!(world.begun(), [PostStart, PostStart], "at least once");
    world.hook_ends(PostStart, false);
    assert!(world.instance.status.ready && world.notes.contains(&"PostStartFailed"));
    world.observed.hooks = None;
    world.settle();
    assert_eq!(world.begun().len(), 2, "what is finished is in the status");
}

#[test]
fn what_has_long_been_ready_is_not_run_a_hook_for_that_it_is_given_later() {
    let mut world = World::new(&json!({}));
    world.settle();
    assert!(world.instance.status.ready);
    world.instance.spec.template = template(&json!({"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}}));
    world.settle();
    assert!(world.instance.status.ready && world.hooks.is_empty());
    assert_eq!(world.hook_status(PostStart), Some((1, true)));
}

#[test]
fn a_stop_or_a_deletion_does_not_wait_for_a_post_start() {
    for delete in [false, true] {
        let mut world = world(&[PostStart, PostStop], &json!({}));
        world.settle();
        assert!(world.runs_hook());
        if delete {
            world.instance.metadata.deletion_timestamp = Some(world.now);
            world.settle();
        } else {
            world.stop();
        }
        assert_eq!((world.cancelled, world.signals.len()), (1, 1));
        world.end(ExitStatus::Signal(15));
        assert_eq!((world.begun(), world.removed), (vec![PostStart, PostStop], false));
        world.hook_ends(PostStop, true);
        assert_eq!((world.removed, world.phase().0), (delete, Phase::Stopped));
    }
}

#[test]
fn a_crash_during_post_start_ends_it() {
    let mut world = world(&[PostStart], &json!({}));
    world.settle();
    world.end(ExitStatus::Code(7));
    assert_eq!((world.cancelled, world.phase()), (1, (Phase::Backoff, "Crashed")));
}

#[test]
fn a_pre_stop_that_hangs_leaves_the_signal_its_part_of_the_grace_period() {
    let mut world = world(&[PreStop], &json!({"stop": {"gracePeriod": "5s"}}));
    world.settle();
    let begun = world.now;
    world.stop();
    assert!(world.signals.is_empty());
    world.advance_to_wake();
    assert_eq!(world.now, begun + Span::from_secs(4));
    assert_eq!((world.cancelled, world.signals.len(), world.kills), (1, 1, 0));
    assert!(world.notes.contains(&"PreStopFailed"));
    world.advance_to_wake();
    assert_eq!((world.now, world.kills), (begun + Span::from_secs(5), 1), "the deadline counts from the decision");
    world.end(ExitStatus::Signal(9));
    assert_eq!((world.phase(), world.hook_status(PreStop)), ((Phase::Stopped, "Stopped"), Some((1, false))));
}

#[test]
fn a_pre_stop_that_fails_is_told_and_the_stop_goes_on() {
    let mut world = world(&[PreStop], &json!({}));
    world.settle();
    world.stop();
    world.hook_ends(PreStop, false);
    assert_eq!((world.signals.len(), world.notes.contains(&"PreStopFailed")), (1, true));
}

#[test]
fn what_ends_by_itself_or_in_a_hurry_has_no_pre_stop() {
    let mut world = world(&[PreStop], &json!({}));
    world.settle();
    world.observed.attempts[0].state = AttemptState::LeaderExited { status: ExitStatus::Code(0), survivors: 1 };
    world.settle();
    assert_eq!((world.begun().len(), world.signals.len()), (0, 1));
    world.end(ExitStatus::Code(0));
    world.advance_to_wake();
    world.instance.metadata.deletion_timestamp = Some(world.now);
    world.instance.metadata.deletion_grace_period_seconds = Some(0);
    world.settle();
    assert_eq!((world.begun().len(), world.kills), (0, 1));
}

#[test]
fn a_pre_stop_may_be_what_ends_the_process() {
    let mut world = world(&[PreStop, PostStop], &json!({}));
    world.settle();
    world.stop();
    world.observed.attempts[0].state = AttemptState::LeaderExited { status: ExitStatus::Code(0), survivors: 1 };
    world.settle();
    assert!(world.runs_hook() && world.signals.is_empty(), "it has more to do");
    // Where nothing holds the hook and the process together, the end is seen before that of the hook.
    world.end(ExitStatus::Code(0));
    assert_eq!((world.begun(), world.phase()), (vec![PreStop], (Phase::Stopping, "PreStop")));
    world.hook_ends(PreStop, true);
    assert_eq!(world.begun(), [PreStop, PostStop]);
    world.hook_ends(PostStop, true);
    assert_eq!((world.phase(), world.cancelled), ((Phase::Stopped, "Stopped"), 0));
}

#[test]
fn a_post_stop_comes_after_a_crash_and_before_the_next_start_and_blocks_nothing() {
    let mut world = world(&[PostStop], &json!({"backoff": {"initial": "1ms", "jitter": 0}}));
    world.settle();
    world.now = world.now + Span::from_secs(5);
    world.end(ExitStatus::Code(3));
    assert_eq!((world.phase(), world.spawned.len()), ((Phase::Stopping, "PostStop"), 1));
    assert_eq!(world.told_of(PostStop), [("OSTLER_REASON", "Crashed"), ("OSTLER_EXIT_CODE", "3")]);
    // With the controller dead in between, custody tells of the end again.
    world.observed.hooks = None;
    world.settle();
    assert_eq!(world.begun(), [PostStop, PostStop]);
    world.hook_ends(PostStop, false);
    assert!(world.notes.contains(&"PostStopFailed"));
    assert_eq!((world.spawned.len(), world.phase().0), (2, Phase::Running));
    assert_eq!(world.instance.status.last_exit.as_ref().unwrap().status, ExitStatus::Code(3));
}

#[test]
fn a_post_stop_follows_a_start_that_failed() {
    let mut world = world(&[PreStart, PostStop], &json!({}));
    world.settle();
    world.hook_ends(PreStart, false);
    assert_eq!(
        (world.phase(), world.told_of(PostStop)),
        ((Phase::Stopping, "PostStop"), vec![("OSTLER_REASON", "PreStartFailed")])
    );
    world.hook_ends(PostStop, true);
    assert_eq!((world.phase(), world.instance.status.attempt), ((Phase::Backoff, "PreStartFailed"), 1));
    world.advance_to_wake();
    world.hook_ends(PreStart, true);
    world.fail_to_start(StartErrorKind::CommandNotFound);
    assert_eq!(world.told_of(PostStop), [("OSTLER_REASON", "CommandNotFound")]);
    world.hook_ends(PostStop, true);
    assert_eq!(world.phase(), (Phase::Backoff, "CommandNotFound"));
}

#[test]
fn the_end_of_the_daemon_waits_for_no_hook_longer_than_for_anything() {
    let mut world = world(&[PreStop, PostStop], &json!({}));
    world.settle();
    let deadline = world.now + Span::from_secs(2);
    world.observed.shutdown = Some(deadline);
    world.settle();
    assert!(world.runs_hook());
    world.advance_to_wake();
    assert_eq!((world.signals.len(), world.cancelled), (1, 1));
    assert!(world.now < deadline);
    world.end(ExitStatus::Signal(15));
    assert!(world.runs_hook() && world.instance.status.is_live());
    world.advance_to_wake();
    assert_eq!((world.now, world.cancelled), (deadline, 2));
    assert!(!world.instance.status.is_live() && world.observed.attempts.is_empty());
}

#[test]
fn the_fallback_has_no_hooks() {
    let more = json!({"fallback": {"command": ["safe"]}, "backoff": {"maxRetries": 0}});
    let mut world = world(&ALL, &more);
    world.settle();
    world.hook_ends(PreStart, false);
    world.hook_ends(PostStop, true);
    assert_eq!((world.phase(), world.spawned.len()), ((Phase::Running, "Fallback"), 1));
    world.stop();
    assert_eq!(world.signals.len(), 1);
    world.end(ExitStatus::Signal(15));
    assert_eq!((world.begun(), world.phase().0), (vec![PreStart, PostStop], Phase::Stopped));
}
