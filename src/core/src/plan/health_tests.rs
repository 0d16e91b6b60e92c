//! What follows from verdicts, by tables: who is ready, who is ended, what is told.

use serde_json::{Value, json};

use super::*;

fn spec(probes: &[ProbeKind]) -> ProcessSpec {
    let mut spec = json!({"command": ["x"]});
    for kind in probes {
        spec[format!("{}Probe", kind.name())] = json!({"process": {}});
    }
    serde_json::from_value(spec).unwrap()
}

fn status(verdict: Health, passed: bool) -> ProbeStatus {
    ProbeStatus { verdict, passed, output: "said".to_owned(), failures: 3, ..ProbeStatus::default() }
}

fn running(probes: ProbesStatus) -> InstanceStatus {
    InstanceStatus { phase: Phase::Running, probes: Some(Box::new(probes)), ..InstanceStatus::default() }
}

use ProbeKind::{Liveness, Readiness, Startup};

#[test]
fn only_startup_and_then_liveness_end_an_attempt_and_only_when_failed() {
    let all = [Startup, Readiness, Liveness];
    let (unknown, healthy) = (status(Health::Unknown, false), status(Health::Healthy, true));
    let failed = status(Health::Failed, false);
    for (startup, readiness, liveness, expected) in [
        (&unknown, &unknown, &unknown, None),
        (&healthy, &healthy, &healthy, None),
        // Readiness gates and never kills.
        (&healthy, &failed, &healthy, None),
        (&failed, &unknown, &unknown, Some(EndCause::Startup)),
        (&healthy, &healthy, &failed, Some(EndCause::Liveness)),
        (&healthy, &failed, &failed, Some(EndCause::Liveness)),
        // What was known of liveness does not count while the startup probe holds it back.
        (&unknown, &unknown, &failed, None),
        (&failed, &failed, &failed, Some(EndCause::Startup)),
    ] {
        let probes = ProbesStatus {
            attempt: 4,
            startup: Some(startup.clone()),
            readiness: Some(readiness.clone()),
            liveness: Some(liveness.clone()),
            notify: None,
        };
        let found = verdict(&spec(&all), &running(probes.clone()));
        assert_eq!(found.as_ref().map(|it| (it.attempt, it.cause)), expected.map(|cause| (4, cause)), "{probes:?}");
        // Of probes that are no longer there nothing follows.
        assert_eq!(verdict(&spec(&[]), &running(probes)), None);
    }
    for health in [Health::Unknown, Health::Healthy, Health::Warning, Health::Critical] {
        let probes = ProbesStatus { liveness: Some(status(health, true)), ..ProbesStatus::default() };
        assert_eq!(verdict(&spec(&[Liveness]), &running(probes)), None, "{health:?}");
    }
    let probes = ProbesStatus { liveness: Some(failed), ..ProbesStatus::default() };
    let found = verdict(&spec(&[Liveness]), &running(probes)).unwrap();
    assert_eq!(found.message, "liveness probe failed, 3 in a row: said");
}

#[test]
fn ready_is_who_runs_and_is_held_back_by_no_probe() {
    let (unknown, passed) = (status(Health::Unknown, false), status(Health::Healthy, true));
    let failed = status(Health::Failed, false);
    // A check that cannot be run takes readiness from nobody.
    let blind = status(Health::Unknown, true);
    for (kinds, startup, readiness, liveness, expected) in [
        (&[][..], None, None, None, (true, "Running", None)),
        (&[Readiness], None, Some(&unknown), None, (false, "ReadinessProbePending", Some("Unknown"))),
        (&[Readiness], None, Some(&failed), None, (false, "ReadinessProbeFailed", Some("Failed"))),
        (&[Readiness], None, Some(&passed), None, (true, "Running", Some("Healthy"))),
        (&[Readiness], None, Some(&blind), None, (true, "Running", Some("Unknown"))),
        (&[Liveness], None, None, Some(&failed), (true, "Running", Some("Failed"))),
        (&[Liveness], None, None, Some(&unknown), (true, "Running", Some("Unknown"))),
        (&[Startup, Readiness], Some(&unknown), Some(&passed), None, (false, "StartupProbePending", Some("Unknown"))),
        (&[Startup, Readiness], Some(&passed), Some(&passed), None, (true, "Running", Some("Healthy"))),
        // While it starts, only the startup probe counts.
        (&[Startup, Liveness], Some(&unknown), None, Some(&failed), (false, "StartupProbePending", Some("Unknown"))),
    ] {
        let probes = ProbesStatus {
            startup: startup.cloned(),
            readiness: readiness.cloned(),
            liveness: liveness.cloned(),
            ..ProbesStatus::default()
        };
        let mut status = running(probes);
        if kinds.is_empty() {
            status.probes = None;
        }
        publish(&spec(kinds), &mut status, None, Timestamp::from_micros(1));
        let reason = |kind: &str| status.conditions.iter().find(|it| it.kind == kind).map(|it| it.reason.as_str());
        assert_eq!((status.ready, reason(READY).unwrap(), reason(HEALTHY)), expected, "{kinds:?}");
    }
    let mut stopped = InstanceStatus { reason: "Stopped".to_owned(), ..InstanceStatus::default() };
    publish(&spec(&[Readiness]), &mut stopped, None, Timestamp::from_micros(1));
    assert!(!stopped.ready);
}

#[test]
fn a_startup_probe_given_to_what_has_started_counts_as_passed() {
    let both = spec(&[Startup, Liveness]);
    let known =
        |liveness: ProbeStatus| ProbesStatus { attempt: 1, liveness: Some(liveness), ..ProbesStatus::default() };
    let (passed, unknown) = (known(status(Health::Healthy, true)), known(status(Health::Unknown, false)));
    for (known, is_up, expected) in [
        (None, false, false),
        (None, true, true),
        (Some(&unknown), false, false),
        // Ready or not at this moment: its liveness tells that it has started.
        (Some(&passed), false, true),
        (Some(&passed), true, true),
    ] {
        let probes = of_attempt(&both, 1, known, None, is_up).unwrap();
        assert_eq!(probes.startup.as_ref().unwrap().passed, expected, "{known:?} {is_up}");
        assert_eq!(verdict(&both, &running(*probes)), None);
    }
    // What was decided stays so, also when a report comes that knows nothing of it, and nobody is ready any more.
    let first = of_attempt(&both, 1, Some(&unknown), None, true).unwrap();
    let report = Box::new(known(status(Health::Failed, false)));
    let second = of_attempt(&both, 1, Some(&first), Some(report), false).unwrap();
    assert!(second.startup.as_ref().unwrap().passed);
    assert_eq!(verdict(&both, &running(*second)).unwrap().cause, EndCause::Liveness);
    // One that is found to be pending stays pending, however ready the instance was.
    let pending = ProbesStatus { startup: Some(status(Health::Unknown, false)), ..ProbesStatus::default() };
    assert!(!of_attempt(&both, 1, Some(&pending), None, true).unwrap().startup.unwrap().passed);
    assert!(of_attempt(&spec(&[]), 1, Some(&passed), None, true).is_none());
    let gone = of_attempt(&spec(&[Readiness]), 1, Some(&passed), None, true).unwrap();
    assert!(gone.liveness.is_none() && gone.readiness.is_some());
}

#[test]
fn only_changes_are_told() {
    let of = |verdict| ProbesStatus { liveness: Some(status(verdict, false)), ..ProbesStatus::default() };
    let none = ProbesStatus::default();
    for (before, after, expected) in [
        (&none, of(Health::Healthy), Some("Healthy")),
        (&none, of(Health::Unknown), Some("ProbeCannotRun")),
        (&of(Health::Unknown), of(Health::Unknown), None),
        (&of(Health::Healthy), of(Health::Healthy), None),
        (&of(Health::Healthy), of(Health::Warning), Some("ProbeFailed")),
        (&of(Health::Warning), of(Health::Critical), Some("ProbeFailed")),
        (&of(Health::Critical), of(Health::Failed), Some("ProbeFailed")),
        (&of(Health::Failed), of(Health::Healthy), Some("Healthy")),
    ] {
        let told = notes(before, &after);
        assert_eq!(told.iter().map(|note| note.reason).collect::<Vec<_>>(), Vec::from_iter(expected), "{after:?}");
    }
    let silent = ProbesStatus { liveness: Some(ProbeStatus::default()), ..ProbesStatus::default() };
    assert_eq!(notes(&none, &silent), []);
    assert_eq!(
        json!(notes(&none, &of(Health::Failed))[0].message),
        Value::from("liveness probe failed, 3 in a row: said")
    );
}
