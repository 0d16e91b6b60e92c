//! What follows from the verdicts of probes: whether an instance is ready, and whether it has to be restarted.

use crate::kinds::{
    Condition, EndCause, Health, InstanceStatus, Phase, ProbeKind, ProbeStatus, ProbesStatus, ProcessSpec, Severity,
    Truth, Verdict, set_condition,
};
use crate::plan::Note;
use crate::time::Timestamp;

const READY: &str = "Ready";
const HEALTHY: &str = "Healthy";

/// What is known of the probes that a spec has, for one attempt: what was `found` lately, else what was `known` before;
/// nothing when the spec has none. An attempt that `is_up` has started already: a startup probe that it is only now
/// given does not end it.
pub(super) fn of_attempt(
    spec: &ProcessSpec,
    attempt: u64,
    known: Option<&ProbesStatus>,
    found: Option<Box<ProbesStatus>>,
    is_up: bool,
) -> Option<Box<ProbesStatus>> {
    spec.probes().next()?;
    let mut probes = found.or_else(|| known.cloned().map(Box::new)).unwrap_or_default();
    probes.attempt = attempt;
    let is_up = is_up || known.and_then(|known| known.liveness.as_ref()).is_some_and(|liveness| liveness.passed);
    for kind in ProbeKind::ALL {
        let status = probes.get_mut(kind);
        if spec.probe(kind).is_some() {
            status.get_or_insert_with(|| match known.and_then(|known| known.get(kind)) {
                Some(known) => known.clone(),
                None if kind == ProbeKind::Startup && is_up => started(),
                None => ProbeStatus::default(),
            });
        } else {
            *status = None;
        }
    }
    if spec.notify().is_none() {
        probes.notify = None;
    }
    Some(probes)
}

/// What a startup probe finds of a process that has started before there was one.
fn started() -> ProbeStatus {
    let output = "it had started before it was given this probe".to_owned();
    ProbeStatus { verdict: Health::Healthy, passed: true, output, ..ProbeStatus::default() }
}

/// What there is to tell of the changes.
pub(super) fn notes(before: &ProbesStatus, after: &ProbesStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    for kind in ProbeKind::ALL {
        let Some(status) = after.get(kind) else { continue };
        let known = before.get(kind).cloned().unwrap_or_default();
        let newly_blind = known.output.is_empty() && !status.output.is_empty();
        if known.verdict == status.verdict && !(status.verdict == Health::Unknown && newly_blind) {
            continue;
        }
        let name = kind.name();
        let said = if status.output.is_empty() { String::new() } else { format!(": {}", status.output) };
        notes.push(match status.verdict {
            Health::Healthy => Note::normal("Healthy", format!("{name} probe passed{said}")),
            // What follows from it has an event of its own.
            Health::Warning | Health::Critical | Health::Failed => {
                Note::warning("ProbeFailed", format!("{name} probe failed, {} in a row{said}", status.failures))
            }
            Health::Unknown if status.output.is_empty() => continue,
            Health::Unknown => Note::warning("ProbeCannotRun", format!("{name} probe cannot be run{said}")),
        });
    }
    notes
}

/// The failure of a probe that ends the attempt.
pub(super) fn verdict(spec: &ProcessSpec, status: &InstanceStatus) -> Option<Verdict> {
    let probes = status.probes.as_deref()?;
    let failed = |kind: ProbeKind, cause| {
        spec.probe(kind)?;
        let status = probes.get(kind).filter(|status| status.verdict == Health::Failed)?;
        let said = if status.output.is_empty() { String::new() } else { format!(": {}", status.output) };
        let message = format!("{} probe failed, {} in a row{said}", kind.name(), status.failures);
        Some(Verdict {
            attempt: probes.attempt,
            cause,
            severity: Severity::Critical,
            message,
            violation: None,
            hook: false,
        })
    };
    failed(ProbeKind::Startup, EndCause::Startup).or_else(|| {
        if pending(spec, probes, ProbeKind::Startup) { None } else { failed(ProbeKind::Liveness, EndCause::Liveness) }
    })
}

/// Whether there is such a probe, and it does not count as passed.
fn pending(spec: &ProcessSpec, probes: &ProbesStatus, kind: ProbeKind) -> bool {
    spec.probe(kind).is_some() && !probes.get(kind).is_some_and(|status| status.passed)
}

/// Decides whether the instance is ready, and publishes that and its health.
/// `by_hook` is why a hook holds it back, if one does.
pub(super) fn publish(spec: &ProcessSpec, status: &mut InstanceStatus, by_hook: Option<&'static str>, now: Timestamp) {
    // What was declared is what is counted on.
    let runs = status.phase == Phase::Running && status.fallback.is_none();
    let probes = status.probes.as_deref().filter(|_| runs);
    let held_back = probes.and_then(|probes| {
        let kind = [ProbeKind::Startup, ProbeKind::Readiness].into_iter().find(|kind| pending(spec, probes, *kind))?;
        Some((kind, probes.get(kind)?))
    });
    let by_hook = by_hook.filter(|_| runs);
    status.ready = runs && held_back.is_none() && by_hook.is_none();
    let (reason, message) = match held_back {
        Some((ProbeKind::Startup, probe)) => ("StartupProbePending", probe.output.clone()),
        Some((_, probe)) if probe.verdict == Health::Failed => ("ReadinessProbeFailed", probe.output.clone()),
        Some((_, probe)) => ("ReadinessProbePending", probe.output.clone()),
        None if by_hook.is_some() => (by_hook.unwrap_or_default(), String::new()),
        None if status.ready => ("Running", String::new()),
        None => (status.reason.as_str(), String::new()),
    };
    let ready = Condition {
        kind: READY.to_owned(),
        status: Truth::from(status.ready),
        reason: reason.to_owned(),
        message,
        ..Condition::default()
    };
    let healthy = probes.map(|probes| {
        let (health, output) = overall(spec, probes);
        Condition {
            kind: HEALTHY.to_owned(),
            status: match health {
                Health::Healthy | Health::Warning | Health::Critical => Truth::True,
                Health::Failed => Truth::False,
                Health::Unknown => Truth::Unknown,
            },
            reason: health.name().to_owned(),
            message: output.to_owned(),
            ..Condition::default()
        }
    });
    set_condition(&mut status.conditions, ready, now);
    match healthy {
        Some(condition) => set_condition(&mut status.conditions, condition, now),
        None => status.conditions.retain(|condition| condition.kind != HEALTHY),
    }
}

/// The worst verdict of those that count now, and what made it so.
fn overall<'a>(spec: &ProcessSpec, probes: &'a ProbesStatus) -> (Health, &'a str) {
    let all = if pending(spec, probes, ProbeKind::Startup) {
        vec![probes.startup.as_ref()]
    } else {
        vec![probes.startup.as_ref(), probes.readiness.as_ref(), probes.liveness.as_ref()]
    };
    let worse = |worst: (Health, &'a str), status: &'a ProbeStatus| {
        if worst.0.worse(status.verdict) == worst.0 { worst } else { (status.verdict, status.output.as_str()) }
    };
    all.into_iter().flatten().fold((Health::Healthy, ""), worse)
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
