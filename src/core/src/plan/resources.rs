//! What follows from the soft thresholds of an instance: what is told, when it is throttled, and when it has to end.

use crate::kinds::{
    Condition, EndCause, Exceeded, InstanceStatus, Level, Measure, ProcessSpec, ResourcesStatus, Severity, Threshold,
    Throttled, Truth, Verdict, Violation, ViolationPolicy, set_condition,
};
use crate::plan::Note;
use crate::quantity::Cpu;
use crate::threshold::Rules;
use crate::time::{Span, Timestamp};

/// The condition that says whether all is within the thresholds.
const CONDITION: &str = "WithinThresholds";

/// What the samples say of the thresholds of an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Number of the attempt.
    pub attempt: u64,
    /// Of what more is used than a level.
    pub exceeded: Vec<Exceeded>,
    /// Thousandths of a core that it uses, when that is known.
    pub cpu: Option<u32>,
}

/// What is known now, and what there is to tell of the changes.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) status: Option<Box<ResourcesStatus>>,
    /// Events.
    pub(super) notes: Vec<Note>,
    /// For the daemon's log only.
    pub(super) log: Vec<Note>,
}

impl Found {
    fn tell(&mut self, policy: ViolationPolicy, note: Note) {
        match policy {
            ViolationPolicy::None => {}
            ViolationPolicy::Log => self.log.push(note),
            ViolationPolicy::Alert
            | ViolationPolicy::Throttle
            | ViolationPolicy::GracefulShutdown
            | ViolationPolicy::Kill
            | ViolationPolicy::Restart
            | ViolationPolicy::RestartAdjusted => self.notes.push(note),
        }
    }
}

/// Takes in what the samples of an attempt say.
pub(super) fn take(
    spec: &ProcessSpec,
    attempt: u64,
    known: Option<Box<ResourcesStatus>>,
    levels: Option<&Levels>,
    now: Timestamp,
) -> Found {
    let Some(rules) = Rules::of(spec, known.as_deref()) else { return Found::default() };
    let mut status = known.unwrap_or_default();
    if status.attempt != attempt {
        status.exceeded = Vec::new();
        status.throttled = None;
    }
    status.attempt = attempt;
    let levels = levels.filter(|levels| levels.attempt == attempt);
    let before = match levels {
        Some(levels) => std::mem::replace(&mut status.exceeded, levels.exceeded.clone()),
        None => status.exceeded.clone(),
    };
    status.exceeded.retain(|exceeded| rules.thresholds.iter().any(|(it, _)| it.measure == exceeded.resource));
    let mut found = Found::default();
    for (threshold, _) in &rules.thresholds {
        let of = |all: &[Exceeded]| all.iter().find(|exceeded| exceeded.resource == threshold.measure).cloned();
        let (before, after) = (of(&before), of(&status.exceeded));
        let level = |exceeded: &Option<Exceeded>| exceeded.as_ref().map_or(Level::Normal, |exceeded| exceeded.level);
        if level(&before) != level(&after) {
            found.tell(threshold.policy, crossed(threshold, after.as_ref()));
        }
        let is_new = !before.is_some_and(|before| before.sustained);
        let Some(after) = after.filter(|after| after.sustained && is_new) else { continue };
        match threshold.policy {
            ViolationPolicy::Log | ViolationPolicy::Alert => {
                let note = Note::warning("ThresholdViolation", sentence(threshold, &after, now));
                found.tell(threshold.policy, note);
            }
            // Told with what is done.
            ViolationPolicy::None
            | ViolationPolicy::Throttle
            | ViolationPolicy::GracefulShutdown
            | ViolationPolicy::Kill
            | ViolationPolicy::Restart
            | ViolationPolicy::RestartAdjusted => {}
        }
    }
    let all: Vec<Threshold> = rules.thresholds.iter().map(|(threshold, _)| *threshold).collect();
    throttle(&mut found, &mut status, spec, &all, levels, now);
    found.status = (!status.is_empty()).then_some(status);
    found
}

fn crossed(threshold: &Threshold, now: Option<&Exceeded>) -> Note {
    let measure = threshold.measure;
    let Some(exceeded) = now else {
        return Note::normal("ThresholdCleared", format!("{} is below its levels again", measure.name()));
    };
    let message = over(threshold, exceeded);
    match exceeded.level {
        Level::Critical => Note::warning("ThresholdExceeded", message),
        Level::Warning | Level::Normal => Note::warning("ThresholdWarning", message),
    }
}

/// "memory is 412Mi, more than its critical level 400Mi"
fn over(threshold: &Threshold, exceeded: &Exceeded) -> String {
    let (name, level) = match exceeded.level {
        Level::Critical => ("critical", threshold.critical),
        Level::Warning | Level::Normal => ("warning", threshold.warning),
    };
    let measure = threshold.measure;
    let level = level.map_or_else(String::new, |level| format!(" {}", shown(measure, level)));
    format!("{} is {}, more than its {name} level{level}", measure.name(), measure.show(exceeded.used))
}

/// A level, to the byte if need be.
fn shown(measure: Measure, level: u64) -> String {
    match measure {
        Measure::Memory => crate::quantity::Bytes(level).to_string(),
        Measure::Cpu | Measure::Processes | Measure::Threads | Measure::OpenFiles => measure.show(level),
    }
}

fn sentence(threshold: &Threshold, exceeded: &Exceeded, now: Timestamp) -> String {
    let lasted = Span::from_secs(now.since(exceeded.since).as_secs());
    format!("{}, for {lasted}", over(threshold, exceeded))
}

/// Begins to throttle what has been over its critical level for too long, and ends that when it is below its warning
/// level: while it is throttled it can hardly be more than the level it is throttled to.
fn throttle(
    found: &mut Found,
    status: &mut ResourcesStatus,
    spec: &ProcessSpec,
    thresholds: &[Threshold],
    levels: Option<&Levels>,
    now: Timestamp,
) {
    let throttles =
        |measure| thresholds.iter().find(|it| it.measure == measure && it.policy == ViolationPolicy::Throttle);
    if let Some(throttled) = &status.throttled {
        let is_over = status.exceeded.iter().any(|exceeded| exceeded.resource == throttled.resource);
        if throttles(throttled.resource).is_none() || !is_over {
            let message = format!("{} allows it all its CPU again", throttled.resource.name());
            found.notes.push(Note::normal("Unthrottled", message));
            status.throttled = None;
        }
    }
    if status.throttled.is_some() {
        return;
    }
    let mut sustained = status.exceeded.iter().filter(|exceeded| exceeded.sustained);
    let found_one = sustained.find_map(|it| Some((it, throttles(it.resource)?)));
    let Some((exceeded, threshold)) = found_one else { return };
    let cpu = match threshold.measure {
        Measure::Cpu => threshold.critical.and_then(|level| u32::try_from(level).ok()).unwrap_or(u32::MAX),
        Measure::Memory | Measure::Processes | Measure::Threads | Measure::OpenFiles => {
            let limit = spec.limits().and_then(|limits| limits.cpu).map_or(1000, |cpu| cpu.0);
            levels.and_then(|levels| levels.cpu).unwrap_or(limit) / 2
        }
    };
    // The least that the kernel takes.
    let cpu = Cpu(cpu.max(10));
    let message = format!("{}: no more CPU than {cpu}", sentence(threshold, exceeded, now));
    found.notes.push(Note::warning("Throttled", message));
    status.throttled = Some(Throttled { resource: threshold.measure, cpu, since: now });
}

/// The threshold that ends the attempt.
pub(super) fn verdict(spec: &ProcessSpec, status: &InstanceStatus, now: Timestamp) -> Option<Verdict> {
    let resources = status.resources.as_deref()?;
    let rules = Rules::of(spec, Some(resources))?;
    resources.exceeded.iter().filter(|exceeded| exceeded.sustained).find_map(|exceeded| {
        let mut all = rules.thresholds.iter().map(|(threshold, _)| threshold);
        let threshold = all.find(|it| it.measure == exceeded.resource && it.policy.ends())?;
        Some(Verdict {
            hook: false,
            attempt: resources.attempt,
            cause: EndCause::Resource,
            severity: Severity::Critical,
            message: sentence(threshold, exceeded, now),
            violation: Some(Violation { resource: threshold.measure, policy: threshold.policy }),
        })
    })
}

/// An attempt is over, and with it what its samples said.
pub(super) fn ended(status: &mut InstanceStatus) {
    if let Some(resources) = &mut status.resources {
        resources.exceeded = Vec::new();
        resources.throttled = None;
        if resources.is_empty() {
            status.resources = None;
        }
    }
}

/// Publishes whether all is within the thresholds.
pub(super) fn publish(spec: &ProcessSpec, status: &mut InstanceStatus, now: Timestamp) {
    let rules = Rules::of(spec, status.resources.as_deref()).filter(|_| status.pid.is_some());
    let Some(rules) = rules else {
        status.conditions.retain(|condition| condition.kind != CONDITION);
        return;
    };
    let exceeded = status.resources.as_deref().map(|resources| resources.exceeded.as_slice()).unwrap_or_default();
    let worst = exceeded.iter().map(|exceeded| exceeded.level).max().unwrap_or_default();
    let of = |measure: Measure| rules.thresholds.iter().map(|(it, _)| it).find(|it| it.measure == measure);
    let mut said: Vec<String> = exceeded.iter().filter_map(|it| Some(over(of(it.resource)?, it))).collect();
    if let Some(throttled) = status.resources.as_ref().and_then(|resources| resources.throttled.as_ref()) {
        said.push(format!("throttled to {} for {}", throttled.cpu, throttled.resource.name()));
    }
    let condition = Condition {
        kind: CONDITION.to_owned(),
        status: Truth::from(worst != Level::Critical),
        reason: match worst {
            Level::Normal => "Normal",
            Level::Warning => "Warning",
            Level::Critical => "Critical",
        }
        .to_owned(),
        message: said.join(", "),
        ..Condition::default()
    };
    set_condition(&mut status.conditions, condition, now);
}
