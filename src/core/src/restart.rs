//! Which restart policy follows the end of an attempt.
//!
//! Pure: from the spec and what is known of the end. `backoff` says what the delays of a policy are, `breaker` when
//! nothing is started whatever the policy says.

use crate::kinds::{Backoff, EndCause, ProcessSpec, Restart, Severity};
use crate::time::Span;

/// The policy that follows an end.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Delays and retries, everything multiplied.
    pub backoff: Backoff,
    /// By what they were multiplied.
    pub multiplier: f64,
    /// Whether ends of this cause are counted by themselves.
    pub own_count: bool,
}

/// The policy of a process for ends of a cause and a severity.
///
/// Fields of the cause's override take the place of those of `spec.backoff`; then `initial`, `max` and `maxRetries` are
/// multiplied by profile and severity, retries rounded up. Without `spec.restart` it is `spec.backoff` as it stands.
pub fn policy(spec: &ProcessSpec, cause: EndCause, severity: Severity) -> Policy {
    let mut backoff = spec.backoff.clone();
    let Some(restart) = &spec.restart else { return Policy { backoff, multiplier: 1.0, own_count: false } };
    let instead = restart.of(cause);
    if let Some(instead) = instead {
        backoff.initial = instead.initial.unwrap_or(backoff.initial);
        backoff.factor = instead.factor.unwrap_or(backoff.factor);
        backoff.max = instead.max.unwrap_or(backoff.max);
        backoff.max_retries = instead.max_retries.or(backoff.max_retries);
    }
    let multiplier = multiplier(restart, severity);
    backoff.initial = backoff.initial.scale(multiplier);
    backoff.max = backoff.max.scale(multiplier);
    // A product such as 3 × 0.7 × (1 / 0.7) must not round up by an error of its last bit.
    let retries = |most: u32| (f64::from(most) * multiplier - 1e-9).ceil().clamp(0.0, f64::from(u32::MAX)) as u32;
    backoff.max_retries = backoff.max_retries.map(retries);
    Policy { backoff, multiplier, own_count: instead.is_some() }
}

/// By what profile and severity multiply.
fn multiplier(restart: &Restart, severity: Severity) -> f64 {
    let severities = &restart.severities;
    let by_severity = match severity {
        Severity::Warning => severities.warning,
        Severity::Critical => severities.critical,
        Severity::Emergency => severities.emergency,
    };
    restart.profile.map_or(1.0, crate::kinds::Profile::multiplier) * by_severity
}

/// The longest that any policy of a process lets a start wait, jitter included.
pub fn longest_delay(spec: &ProcessSpec) -> Span {
    let severities = [Severity::Warning, Severity::Critical, Severity::Emergency];
    let all = EndCause::ALL.into_iter().flat_map(|cause| severities.map(|severity| policy(spec, cause, severity)));
    all.map(|policy| policy.backoff.max.scale(1.0 + policy.backoff.jitter)).max().unwrap_or(Span::ZERO)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(more: &serde_json::Value) -> ProcessSpec {
        let mut spec = json!({"command": ["x"], "backoff": {"initial": "4s", "max": "100s", "maxRetries": 3}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn without_a_word_about_it_nothing_is_multiplied() {
        let spec = spec(&json!({}));
        for cause in EndCause::ALL {
            for severity in [Severity::Warning, Severity::Critical, Severity::Emergency] {
                let policy = policy(&spec, cause, severity);
                assert_eq!((policy.backoff, policy.own_count), (spec.backoff.clone(), false));
            }
        }
    }

    #[test]
    fn profiles_and_severities_multiply_delays_and_retries() {
        for (profile, times) in [("Web", 1.0), ("Worker", 2.0), ("Scheduler", 2.5), ("Batch", 3.0), ("Database", 5.0)] {
            for (severity, by) in [(Severity::Warning, 0.5), (Severity::Critical, 1.0), (Severity::Emergency, 2.0)] {
                let policy = policy(&spec(&json!({"restart": {"profile": profile}})), EndCause::Crash, severity);
                let factor: f64 = times * by;
                assert_eq!(policy.backoff.initial, Span::from_secs(4).scale(factor), "{profile} {severity:?}");
                assert_eq!(policy.backoff.max, Span::from_secs(100).scale(factor), "{profile} {severity:?}");
                assert_eq!(policy.backoff.max_retries, Some((3.0 * factor).ceil() as u32), "{profile} {severity:?}");
                assert!((policy.multiplier - factor).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn an_override_takes_the_place_of_what_it_names() {
        let spec = spec(&json!({"restart": {
            "severities": {"critical": 10.0}, "onLiveness": {"initial": "1s", "maxRetries": 1}, "onCrash": {}}}));
        let liveness = policy(&spec, EndCause::Liveness, Severity::Critical);
        assert!(liveness.own_count);
        assert_eq!(liveness.backoff.initial, Span::from_secs(10));
        assert_eq!(liveness.backoff.max, Span::from_secs(1000));
        assert_eq!(liveness.backoff.max_retries, Some(10));
        let crash = policy(&spec, EndCause::Crash, Severity::Warning);
        assert_eq!((crash.own_count, crash.backoff.initial), (true, Span::from_secs(2)));
        assert!(!policy(&spec, EndCause::Resource, Severity::Warning).own_count);
    }

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        let spec = spec(&json!({"restart": {"profile": "Batch", "onResource": {"max": "1h"}}}));
        assert_eq!(longest_delay(&spec), Span::from_secs(3600 * 6).scale(1.1));
    }
}
