//! Topics: what an event is about, so that a subscriber gets only what concerns it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Kind;

/// What an event is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Topic {
    /// Something began or ended as it should, and everything that no other topic claims.
    #[default]
    Lifecycle,
    /// A verdict of a probe changed, or a probe cannot be run.
    Health,
    /// Memory, CPU, processes, files: a limit was reached, or there was not enough to start.
    Resources,
    /// An end that nobody asked for, and what follows from it.
    Restart,
    /// A spec cannot be carried out as it is: no such command, directory or user.
    Config,
    /// Output cannot be written, or can again.
    Storage,
    /// A Source was synced, or could not be.
    Source,
    /// A process that Ostler did not start was found or lost.
    External,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 8] = [
        Self::Lifecycle,
        Self::Health,
        Self::Resources,
        Self::Restart,
        Self::Config,
        Self::Storage,
        Self::Source,
        Self::External,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lifecycle => "lifecycle",
            Self::Health => "health",
            Self::Resources => "resources",
            Self::Restart => "restart",
            Self::Config => "config",
            Self::Storage => "storage",
            Self::Source => "source",
            Self::External => "external",
        }
    }

    /// The topic that is written so, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.name().eq_ignore_ascii_case(text))
    }

    /// The topic of a reason, as it is written in `reason`. Whoever thinks up a new one adds it here unless it is about
    /// the course of things.
    pub fn of(kind: Kind, reason: &str) -> Self {
        match kind {
            Kind::Source => return Self::Source,
            Kind::External => return Self::External,
            Kind::Namespace
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::Process
            | Kind::Job
            | Kind::CronJob
            | Kind::Instance
            | Kind::Event => {}
        }
        match reason {
            "Healthy" | "Unhealthy" | "ProbeFailed" | "ProbeCannotRun" | "StartupFailed" | "PostStartFailed" => {
                Self::Health
            }
            "OOMKilled"
            | "ResourceViolation"
            | "ResourcesExhausted"
            | "LimitsNotEnforceable"
            | "LimitsNotEnforced"
            | "ThresholdWarning"
            | "ThresholdExceeded"
            | "ThresholdViolation"
            | "ThresholdCleared"
            | "Throttled"
            | "Unthrottled"
            | "Adjusted" => Self::Resources,
            "Crashed" | "Lost" | "RetriesExhausted" | "CircuitOpen" | "CircuitClosed" | "Fallback" => Self::Restart,
            "CommandNotFound"
            | "PermissionDenied"
            | "BadFormat"
            | "BadWorkingDirectory"
            | "BadUser"
            | "StartFailed"
            | "PreStartFailed"
            | "InvalidSchedule"
            | "FilesReplaced"
            | "FilesNotReplaced"
            | "FilesOnDisk" => Self::Config,
            "LogsBlocked" | "LogsRecovered" => Self::Storage,
            _ => Self::Lifecycle,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_topic_that_people_look_for_them_in() {
        for (kind, reason, topic) in [
            (Kind::Instance, "Started", Topic::Lifecycle),
            (Kind::Instance, "Completed", Topic::Lifecycle),
            (Kind::Instance, "NobodyThoughtOfThis", Topic::Lifecycle),
            (Kind::Instance, "Crashed", Topic::Restart),
            (Kind::Instance, "CircuitOpen", Topic::Restart),
            (Kind::Instance, "ProbeFailed", Topic::Health),
            (Kind::Instance, "LogsBlocked", Topic::Storage),
            (Kind::Process, "ResourceViolation", Topic::Resources),
            (Kind::Instance, "ThresholdExceeded", Topic::Resources),
            (Kind::Source, "Synced", Topic::Source),
            (Kind::External, "Lost", Topic::External),
        ] {
            assert_eq!(Topic::of(kind, reason), topic, "{kind} {reason}");
        }
    }

    #[test]
    fn a_topic_is_written_as_it_is_stored() {
        for topic in Topic::ALL {
            assert_eq!(serde_json::to_value(topic).unwrap(), topic.name());
            assert_eq!(Topic::parse(&topic.name().to_uppercase()), Some(topic));
        }
        assert_eq!(Topic::parse("restarts"), None);
    }
}
