//! Rules for limits and thresholds.

use super::Findings;
use crate::kinds::{LimitKind, Limits, Measure, ProcessSpec, Resources, Threshold, ViolationPolicy};
use crate::time::Span;

const DAY: Span = Span::from_secs(86_400);

/// Checks what a spec says of resources, and of the times that are about thresholds.
pub(super) fn check(spec: &ProcessSpec, found: &mut Findings) {
    if let Some(resources) = &spec.resources {
        limits(&resources.limits, found);
        for threshold in resources.thresholds.iter() {
            self::threshold(&threshold, &resources.limits, found);
        }
        if !(Span::from_millis(250)..=Resources::INTERVAL).contains(&resources.interval) {
            found.add("spec.resources.interval", "from 250ms to 10s");
        }
    }
    if let Some(restart) = &spec.restart {
        for (name, span) in [
            ("startupGrace", restart.startup_grace),
            ("sustainedViolation", restart.sustained_violation),
            ("spikeTolerance", restart.spike_tolerance),
        ] {
            if span > DAY {
                found.add(format!("spec.restart.{name}"), "at most 24h");
            }
        }
    }
}

fn limits(limits: &Limits, found: &mut Findings) {
    for (kind, value) in limits.iter() {
        let (least, most, wrong) = match kind {
            LimitKind::Memory => (1 << 20, i64::MAX, "at least 1Mi"),
            LimitKind::Cpu => (10, i64::MAX, "at least 10m, which is a hundredth of a core"),
            LimitKind::Processes => (1, i64::MAX, "at least 1"),
            LimitKind::OpenFiles => (16, i64::MAX, "at least 16, or no program starts"),
            LimitKind::IoWeight => (1, 10_000, "from 1 to 10000"),
            LimitKind::Nice => (-20, 19, "from -20 to 19"),
        };
        if !(least..=most).contains(&value) {
            found.add(format!("spec.resources.limits.{}", kind.name()), wrong);
        }
    }
}

fn threshold(threshold: &Threshold, limits: &Limits, found: &mut Findings) {
    let Threshold { measure, warning, critical, policy, sustained } = *threshold;
    let path = format!("spec.resources.thresholds.{}", measure.name());
    let field = |name: &str| format!("{path}.{name}");
    match (warning, critical) {
        (None, None) => found.add(&path, "warning, critical or both are needed"),
        (Some(warning), Some(critical)) if warning >= critical => {
            found.add(field("warning"), format!("must be less than critical ({})", measure.show(critical)));
        }
        (_, _) => {}
    }
    let only_tells = matches!(policy, ViolationPolicy::None | ViolationPolicy::Log | ViolationPolicy::Alert);
    if critical.is_none() && !only_tells {
        let message = format!("a warning never runs {}, so critical is needed, too", policy.name());
        found.add(field("policy"), message);
    }
    if policy == ViolationPolicy::Throttle && warning.is_none() {
        found.add(field("policy"), "Throttle ends below the warning level, so warning is needed");
    }
    let least = u64::from(measure == Measure::Cpu) * 10;
    if critical.or(warning).is_some_and(|level| level < least) {
        found.add(field("critical"), "at least 10m, which is a hundredth of a core");
    }
    let limit = match measure {
        Measure::Memory => limits.memory.map(|bytes| bytes.0),
        Measure::Cpu => limits.cpu.map(|cpu| cpu.0.into()),
        Measure::Processes => limits.processes.map(u64::from),
        // The limit is of each process.
        Measure::Threads | Measure::OpenFiles => None,
    };
    for (name, level) in [("warning", warning), ("critical", critical)] {
        if let (Some(level), Some(limit)) = (level, limit)
            && level >= limit
        {
            let message = format!(
                "is never exceeded: the kernel allows no more than limits.{} ({})",
                measure.name(),
                measure.show(limit)
            );
            found.add(field(name), message);
        }
    }
    if sustained.is_some_and(|span| span > DAY) {
        found.add(field("for"), "at most 24h");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::object::decode;
    use crate::validate::process;

    fn fields(spec: &serde_json::Value) -> Vec<String> {
        let mut spec = spec.clone();
        spec["command"] = json!(["x"]);
        let object =
            json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web"}, "spec": spec});
        process(&decode(&object).unwrap()).into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn thresholds_that_make_sense_are_valid() {
        let thresholds = json!({
            "memory": {"warning": "400Mi", "critical": "480Mi", "policy": "RestartAdjusted", "for": "1m"},
            "cpu": {"warning": "500m", "critical": "700m", "policy": "Throttle"}, "threads": {"warning": 100}});
        let limits = json!({"memory": "512Mi", "cpu": "800m"});
        let resources = json!({"limits": limits, "thresholds": thresholds, "interval": "1s"});
        assert!(fields(&json!({"resources": resources})).is_empty());
    }

    #[test]
    fn thresholds_that_make_none_are_refused_with_their_place() {
        let thresholds = json!({
            "memory": {"warning": "480Mi", "critical": "400Mi", "for": "25h"},
            "cpu": {"critical": "800m", "policy": "Throttle"},
            "processes": {},
            "threads": {"warning": 7, "policy": "Kill"},
        });
        let resources = json!({"limits": {"cpu": "500m"}, "thresholds": thresholds, "interval": "11s"});
        let found = fields(&json!({"resources": resources, "restart": {"startupGrace": "25h"}}));
        let expected = [
            "resources.thresholds.memory.warning",
            "resources.thresholds.memory.for",
            "resources.thresholds.cpu.policy",
            "resources.thresholds.cpu.critical",
            "resources.thresholds.processes",
            "resources.thresholds.threads.policy",
            "resources.interval",
            "restart.startupGrace",
        ];
        assert_eq!(found, expected.map(|field| format!("spec.{field}")));
    }

    #[test]
    fn a_probe_of_resources_says_what_it_compares() {
        assert_eq!(fields(&json!({"livenessProbe": {"resources": {}}})), ["spec.livenessProbe.resources.memory"]);
        assert!(fields(&json!({"livenessProbe": {"resources": {"threads": 5}}})).is_empty());
    }
}
