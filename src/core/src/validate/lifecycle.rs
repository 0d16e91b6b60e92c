//! Rules for hooks.

use super::{Findings, probes};
use crate::kinds::{Check, HookKind, ProcessSpec};
use crate::time::Span;

/// Checks the hooks of a spec.
pub(super) fn check(spec: &ProcessSpec, found: &mut Findings) {
    for (kind, hook) in spec.lifecycle.iter().flat_map(|lifecycle| lifecycle.hooks()) {
        let field = |name: &str| format!("spec.lifecycle.{}{name}", kind.name());
        let (exec, http) = (hook.exec.as_ref().map(Check::Exec), hook.http_get.as_ref().map(Check::HttpGet));
        match (exec, http) {
            (None, None) => found.add(field(""), "needs one of exec, httpGet"),
            (Some(_), Some(_)) => found.add(field(".httpGet"), "there is exec already; a hook does one thing"),
            (Some(_), None) | (None, Some(_)) => {}
        }
        for check in exec.into_iter().chain(http) {
            probes::target(spec, check, &|name| field(&format!(".{}.{name}", check.name())), found);
        }
        if !(Span::from_millis(1)..=Span::from_secs(86_400)).contains(&hook.timeout) {
            found.add(field(".timeout"), "from 1ms to 24h");
        }
        let decides = match kind {
            HookKind::PreStart | HookKind::PostStart => true,
            HookKind::PreStop | HookKind::PostStop => false,
        };
        if hook.failure_policy.is_some() && !decides {
            found.add(field(".failurePolicy"), "a stop goes on whatever its hooks do; leave it out");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hook_does_one_thing_in_a_time_that_ends() {
        let fields = |lifecycle: serde_json::Value| {
            let spec = serde_json::from_value(json!({"command": ["x"], "lifecycle": lifecycle})).unwrap();
            let mut found = Findings(Vec::new());
            check(&spec, &mut found);
            found.0.into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let good = json!({"exec": {"command": ["true"]}});
        assert!(fields(json!({"preStart": good, "postStop": {"httpGet": {"port": 80}, "timeout": "1h"}})).is_empty());
        assert_eq!(fields(json!({"preStart": {}})), ["spec.lifecycle.preStart"]);
        let both = json!({"exec": {"command": ["true"]}, "httpGet": {"port": 80}});
        assert_eq!(fields(json!({"postStart": both})), ["spec.lifecycle.postStart.httpGet"]);
        let wrong = json!({"exec": {"command": []}, "timeout": "0s", "failurePolicy": "Ignore"});
        assert_eq!(
            fields(json!({"preStop": wrong})),
            [
                "spec.lifecycle.preStop.exec.command",
                "spec.lifecycle.preStop.timeout",
                "spec.lifecycle.preStop.failurePolicy"
            ]
        );
        let elsewhere = json!({"httpGet": {"port": "http", "path": "x"}});
        assert_eq!(
            fields(json!({"postStart": elsewhere})),
            ["spec.lifecycle.postStart.httpGet.port", "spec.lifecycle.postStart.httpGet.path"]
        );
    }
}
