//! Delays, retries, multipliers and breaker of every combination that a keeper can bring about, through crashes of the
//! controller; starts and events at the times that an oracle of a few lines says.

use ostler_core::kinds::Event;

use super::*;

/// How far a start may be from its time: every timer is late by up to a millisecond, and every start waits for a record.
const LATE: u64 = 50;

struct Case {
    name: String,
    reason: &'static str,
    /// Milliseconds from the first start.
    starts: Vec<u64>,
    opened: u32,
}

/// When something that fails at once is started, until it is given up; and how often the breaker opens.
fn oracle(initial: f64, factor: f64, max: f64, retries: u32, multiplier: f64, breaker: bool) -> (Vec<u64>, u32) {
    let most = (f64::from(retries) * multiplier).ceil() as usize;
    let (mut starts, mut opened, mut recent, mut half_open) = (vec![0], 0, Vec::new(), false);
    for failure in 0..most {
        let now = starts[failure];
        recent.retain(|at| now - at < 60_000);
        recent.push(now);
        let opens = breaker && (half_open || recent.len() >= 3);
        if opens {
            recent.clear();
            half_open = true;
            opened += 1;
        }
        let gap = ((initial * factor.powi(failure as i32)).min(max) * multiplier) as u64;
        starts.push(now + if opens { gap.max(300_000) } else { gap });
    }
    (starts, opened)
}

async fn declare(daemon: &Daemon) -> Vec<Case> {
    let mut cases = Vec::new();
    for (command, field, reason, by) in [
        (json!(["unknown"]), "onCrash", "Crashed", 0.5),
        (json!(["exit", "3", "0"]), "onCrash", "Crashed", 1.0),
        (json!(["fault"]), "onCrash", "Crashed", 2.0),
        (json!(["missing"]), "onExecFailure", "CommandNotFound", 1.0),
    ] {
        let profiles = ["Web", "Worker", "Scheduler", "Batch", "Database"].into_iter().map(Some).chain([None]);
        for (profile, times) in profiles.zip([1.0, 2.0, 2.5, 3.0, 5.0, 1.0]) {
            for (own, breaker) in [(false, false), (false, true), (true, false), (true, true)] {
                let name = format!("case{}", cases.len());
                let mut restart = json!({});
                if let Some(profile) = profile {
                    restart["profile"] = json!(profile);
                }
                let (initial, factor, max, retries) = if own {
                    restart[field] = json!({"initial": "2s", "factor": 3.0, "max": "40s", "maxRetries": 4});
                    (2000.0, 3.0, 40_000.0, 4)
                } else {
                    (1000.0, 2.0, 6000.0, 5)
                };
                let mut spec = json!({"command": command, "restart": restart,
                    "backoff": {"initial": "1s", "factor": 2.0, "max": "6s", "jitter": 0.0, "maxRetries": 5}});
                if breaker {
                    spec["circuitBreaker"] = json!({"failures": 3, "window": "60s", "cooldown": "5m"});
                }
                daemon.apply(&name, spec).await;
                let (starts, opened) = oracle(initial, factor, max, retries, by * times, breaker);
                cases.push(Case { name, reason, starts, opened });
            }
        }
    }
    cases
}

#[tokio::test(start_paused = true)]
async fn starts_and_events_are_at_their_times_in_every_combination() {
    let mut daemon = Daemon::start().await;
    let cases = declare(&daemon).await;
    assert_eq!(cases.len(), 4 * 6 * 4);
    let last = cases.iter().map(|case| case.starts[case.starts.len() - 1]).max().unwrap();
    // Crashes in between, denser where most happens.
    for pause in [3_217, 11_731, 47_113, 150_337, 900_713] {
        daemon.pass(pause).await;
        daemon = daemon.crash().await;
        daemon.lose_keeper();
    }
    daemon.pass(last).await;
    let events: Vec<Event> = daemon
        .store
        .list("events/")
        .entries
        .iter()
        .map(|entry| serde_json::from_slice(&entry.value).unwrap())
        .collect();
    for case in &cases {
        let instance = format!("{}-0", case.name);
        let starts = daemon.starts(&instance);
        assert_eq!(starts.len(), case.starts.len(), "{}: {starts:?}, not {:?}", case.name, case.starts);
        for (index, (start, expected)) in starts.iter().zip(&case.starts).enumerate() {
            let late = LATE * (index as u64 + 1);
            assert!((*expected..=expected + late).contains(start), "{}: {starts:?}, not {:?}", case.name, case.starts);
        }
        let object = daemon.instances().into_iter().find(|object| object.metadata.name == instance).unwrap();
        assert_eq!((object.status.phase, object.status.reason.as_str()), (Phase::Failed, "RetriesExhausted"));
        let event =
            |reason: &str| events.iter().find(|event| event.involved_object.name == instance && event.reason == reason);
        let failed = event(case.reason).unwrap();
        assert_eq!(failed.count as usize, starts.len(), "{}: {failed:?}", case.name);
        let told = failed.last_timestamp.since(failed.first_timestamp).as_micros() / 1000;
        let real = starts[starts.len() - 1];
        assert!(told.abs_diff(real) <= LATE, "{}: told over {told} ms, happened over {real} ms", case.name);
        assert_eq!(event("RetriesExhausted").unwrap().count, 1, "{}", case.name);
        assert_eq!(event("CircuitOpen").map_or(0, |event| event.count), case.opened, "{}", case.name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fallback_outlives_crashes_and_a_restart_returns_to_the_command() {
    let mut daemon = Daemon::start().await;
    let spec = json!({"command": ["exit", "1", "5"], "fallback": {"command": ["live"]},
        "backoff": {"initial": "1s", "jitter": 0.0, "maxRetries": 2}});
    daemon.apply("web", spec.clone()).await;
    let falls_back = |daemon: &Daemon| {
        let instances = daemon.instances();
        instances.len() == 1 && instances[0].status.phase == Phase::Running && instances[0].status.reason == "Fallback"
    };
    daemon.until("the fallback runs", falls_back).await;
    assert_eq!(daemon.starts("web-0").len(), 4);
    for _ in 0..5 {
        daemon = daemon.crash().await;
        daemon.lose_keeper();
        daemon.pass(5000).await;
        assert!(falls_back(&daemon));
    }
    assert_eq!((daemon.starts("web-0").len(), daemon.live()), (4, 1));
    let target = vec![InstanceRef { namespace: "default".to_owned(), name: "web-0".to_owned() }];
    daemon.handle.act(target, Action::Restart).await.unwrap();
    daemon.until("the command is tried again", |daemon| daemon.starts("web-0").len() == 5).await;
    daemon.until("the fallback runs again", falls_back).await;
    assert_eq!(daemon.starts("web-0").len(), 8);
    // A changed spec returns to the command, too.
    let mut spec = spec;
    spec["stop"] = json!({"gracePeriod": "3s"});
    daemon.apply("web", spec).await;
    daemon.until("the command is tried anew", |daemon| daemon.starts("web-0").len() == 9).await;
    assert_eq!(daemon.world.lock().most_live["default/web-0"], 1);
}
