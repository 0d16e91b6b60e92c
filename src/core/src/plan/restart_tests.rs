//! Every combination of cause, severity, profile, override and breaker, against an oracle of a few lines.

use super::*;

/// What is expected of an attempt that fails at once, again and again: the gaps between starts, in milliseconds, until
/// it is given up, and at which failures the breaker opens.
fn oracle(initial: f64, factor: f64, max: f64, retries: u32, multiplier: f64, breaker: bool) -> (Vec<u64>, Vec<usize>) {
    let most = (f64::from(retries) * multiplier).ceil() as usize;
    let (mut gaps, mut opened, mut recent, mut half_open, mut now) = (Vec::new(), Vec::new(), Vec::new(), false, 0_u64);
    for failure in 0..=most {
        let opens = breaker && {
            recent.retain(|at| now - at < 60_000);
            recent.push(now);
            half_open || recent.len() >= 3
        };
        if opens {
            recent.clear();
            half_open = true;
            opened.push(failure);
        }
        if failure < most {
            let gap = (initial * factor.powi(failure as i32)).min(max) * multiplier;
            let gap = if opens { (gap as u64).max(300_000) } else { gap as u64 };
            gaps.push(gap);
            now += gap;
        }
    }
    (gaps, opened)
}

fn fail(world: &mut World, cause: EndCause, severity: Severity) {
    match (cause, severity) {
        (EndCause::Crash, Severity::Warning) => world.end(ExitStatus::Unknown("nobody saw it".to_owned())),
        (EndCause::Crash, Severity::Critical) => world.end(ExitStatus::Code(3)),
        (EndCause::Crash, Severity::Emergency) => world.end(ExitStatus::Signal(11)),
        (EndCause::ExecFailure, _) => world.fail_to_start(StartErrorKind::CommandNotFound),
        (EndCause::Startup | EndCause::Liveness | EndCause::Resource, severity) => world.condemn(cause, severity),
    }
}

#[test]
fn every_combination_waits_and_gives_up_exactly() {
    let mut combinations = 0;
    for cause in EndCause::ALL {
        for (severity, by) in [(Severity::Warning, 0.5), (Severity::Critical, 1.0), (Severity::Emergency, 2.0)] {
            if cause == EndCause::ExecFailure && severity != Severity::Critical {
                continue;
            }
            let profiles = ["Web", "Worker", "Scheduler", "Batch", "Database"].into_iter().map(Some).chain([None]);
            for (profile, times) in profiles.zip([1.0, 2.0, 2.5, 3.0, 5.0, 1.0]) {
                for own in [false, true] {
                    for breaker in [false, true] {
                        one(cause, severity, by * times, profile, own, breaker);
                        combinations += 1;
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 13 * 6 * 4);
}

fn one(cause: EndCause, severity: Severity, multiplier: f64, profile: Option<&str>, own: bool, breaker: bool) {
    let what = format!("{cause:?} {severity:?} {profile:?} own={own} breaker={breaker}");
    let mut restart = json!({});
    if let Some(profile) = profile {
        restart["profile"] = json!(profile);
    }
    let (initial, factor, max, retries) = if own {
        let instead = json!({"initial": "2s", "factor": 3.0, "max": "40s", "maxRetries": 4});
        restart[crate::kinds::Restart::field(cause)] = instead;
        (2000.0, 3.0, 40_000.0, 4)
    } else {
        (1000.0, 2.0, 6000.0, 5)
    };
    let mut spec = json!({"restart": restart, "restartPolicy": "OnFailure",
        "backoff": {"initial": "1s", "factor": 2.0, "max": "6s", "jitter": 0.0, "maxRetries": 5}});
    if breaker {
        spec["circuitBreaker"] = json!({"failures": 3, "window": "60s", "cooldown": "5m"});
    }
    let (gaps, opened) = oracle(initial, factor, max, retries, multiplier, breaker);
    let mut world = World::new(&spec);
    world.settle();
    for gap in &gaps {
        let started = world.spawned.last().unwrap().1;
        fail(&mut world, cause, severity);
        assert_eq!(world.phase().0, Phase::Backoff, "{what}");
        // What a daemon that begins now knows is what was stored.
        let stored = serde_json::to_vec(&world.instance).unwrap();
        world.instance = serde_json::from_slice(&stored).unwrap();
        world.settle();
        world.advance_to_wake();
        assert_eq!(world.spawned.last().unwrap().1.since(started), Span::from_millis(*gap), "{what}: {gaps:?}");
    }
    fail(&mut world, cause, severity);
    assert_eq!(world.phase(), (Phase::Failed, "RetriesExhausted"), "{what}");
    let exit = world.instance.status.last_exit.clone().unwrap();
    assert_eq!((exit.cause, exit.severity), (Some(cause), Some(severity)), "{what}");
    // What was told was told when it happened: each failure at the start that failed at once.
    let reason = match cause {
        EndCause::Crash => "Crashed",
        EndCause::ExecFailure => "CommandNotFound",
        EndCause::Startup | EndCause::Liveness | EndCause::Resource => StopReason::of(cause).name(),
    };
    let mut told: Vec<Timestamp> = world.told.iter().filter(|(told, _)| *told == reason).map(|(_, at)| *at).collect();
    // What is stopped is told once when it is stopped and once when it has ended, here at the same time.
    told.dedup();
    let starts: Vec<Timestamp> = world.spawned.iter().map(|(_, at)| *at).collect();
    assert_eq!(told, starts, "{what}");
    let opened: Vec<Timestamp> =
        opened.into_iter().map(|failure| starts[failure]).filter(|at| at < starts.last().unwrap()).collect();
    let told: Vec<Timestamp> =
        world.told.iter().filter(|(told, _)| *told == "CircuitOpen").map(|(_, at)| *at).collect();
    assert_eq!(told, opened, "{what}");
}

#[test]
fn a_cause_with_an_override_is_counted_by_itself() {
    let mut world = World::new(&json!({
        "backoff": {"initial": "1s", "jitter": 0.0, "maxRetries": 2},
        "restart": {"onLiveness": {"initial": "10s", "maxRetries": 1}},
    }));
    world.settle();
    world.end(ExitStatus::Code(1));
    world.advance_to_wake();
    world.condemn(EndCause::Liveness, Severity::Critical);
    let started = world.spawned.last().unwrap().1;
    world.advance_to_wake();
    assert_eq!(world.spawned.last().unwrap().1.since(started), Span::from_secs(10));
    world.end(ExitStatus::Code(1));
    let started = world.spawned.last().unwrap().1;
    world.advance_to_wake();
    assert_eq!(world.spawned.last().unwrap().1.since(started), Span::from_secs(2), "the second crash");
    world.condemn(EndCause::Liveness, Severity::Critical);
    assert_eq!(world.phase(), (Phase::Failed, "RetriesExhausted"));
    // A start by hand forgives both counts.
    world.instance.spec.started_at = Some(world.now);
    world.settle();
    assert_eq!((world.phase().0, world.instance.status.counts.len()), (Phase::Running, 0));
}

fn with_fallback(more: &serde_json::Value) -> World {
    let mut spec =
        json!({"backoff": {"initial": "1s", "jitter": 0.0, "maxRetries": 1}, "fallback": {"command": ["y"]}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut world = World::new(&spec);
    world.settle();
    world
}

#[test]
fn the_fallback_runs_when_retries_are_exhausted_and_is_not_ready() {
    let mut world = with_fallback(&json!({}));
    world.end(ExitStatus::Code(1));
    world.advance_to_wake();
    world.end(ExitStatus::Code(1));
    assert_eq!(world.phase(), (Phase::Running, "Fallback"));
    let status = &world.instance.status;
    assert!(status.fallback.is_some() && !status.ready);
    assert!(status.message.contains("exited with code 1"), "{}", status.message);
    let condition = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind).unwrap();
    assert_eq!((condition("Fallback").status, condition("Ready").status), (Truth::True, Truth::False));
    assert!(world.notes.contains(&"RetriesExhausted") && world.notes.contains(&"Fallback"));
    // It has retries of its own, and nothing comes after it.
    world.end(ExitStatus::Code(2));
    world.advance_to_wake();
    assert_eq!(world.phase(), (Phase::Running, "Fallback"));
    world.end(ExitStatus::Code(2));
    assert_eq!((world.phase(), world.spawned.len()), ((Phase::Failed, "RetriesExhausted"), 4));
}

#[test]
fn what_is_run_instead_is_recorded_before_it_is_started() {
    let mut world = with_fallback(&json!({"backoff": {"maxRetries": 0}}));
    let last = world.observed.attempts.last_mut().unwrap();
    last.state = AttemptState::Ended { status: ExitStatus::Code(1), at: world.now, reboot: false };
    let plan = plan(&world.instance, &world.observed, world.now);
    assert!(plan.status.fallback.is_some());
    assert_eq!(plan.actions, [Action::Forget { attempt: 1 }, Action::Record]);
}

#[test]
fn a_restart_a_change_and_a_stop_return_to_the_command() {
    type Change = fn(&mut World);
    let restart: Change = |world| {
        world.instance.spec.restarted_at = Some(world.now);
        world.instance.metadata.generation += 1;
    };
    let change: Change = |world| world.instance.metadata.generation += 1;
    let stop_and_start: Change = |world| {
        world.instance.spec.stopped_at = Some(world.now);
        world.settle();
        world.end(ExitStatus::Signal(15));
        world.instance.spec.stopped_at = None;
    };
    for (act, stopped) in [(restart, false), (change, false), (stop_and_start, true)] {
        let mut world = with_fallback(&json!({"backoff": {"maxRetries": 0}}));
        world.end(ExitStatus::Code(1));
        assert_eq!(world.phase(), (Phase::Running, "Fallback"));
        world.now = world.now + Span::from_secs(5);
        act(&mut world);
        world.settle();
        if !stopped {
            assert_eq!(world.phase().0, Phase::Stopping);
            world.end(ExitStatus::Signal(15));
        }
        assert_eq!(world.phase(), (Phase::Running, "Running"));
        assert!(world.instance.status.fallback.is_none() && world.instance.status.ready);
    }
}

#[test]
fn the_end_of_the_daemon_leaves_the_fallback_in_place() {
    let mut world = with_fallback(&json!({"backoff": {"maxRetries": 0}}));
    world.end(ExitStatus::Code(1));
    world.observed.shutdown = Some(world.now + Span::from_secs(2));
    world.settle();
    world.end(ExitStatus::Signal(15));
    world.observed.shutdown = None;
    world.settle();
    assert_eq!(world.phase(), (Phase::Running, "Fallback"));
}

#[test]
fn what_cannot_be_helped_by_retrying_falls_back_at_once() {
    let mut world = with_fallback(&json!({}));
    world.fail_to_start(StartErrorKind::BadFormat);
    assert_eq!(world.phase(), (Phase::Running, "Fallback"));
}
