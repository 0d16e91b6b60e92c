//! The kinds. Adding one: a variant here, a module beside this one, and the compiler lists the rest.

mod config;
mod cronjob;
mod depend;
mod event;
mod external;
mod instance;
mod job;
mod lifecycle;
mod namespace;
mod probe;
mod process;
mod resources;
mod restart;
mod source;
mod thresholds;
mod update;
mod watch;

use std::fmt;

pub use config::{
    ConfigFile, ConfigMap, EnvFile, EnvFromSource, EnvVarSource, FileMode, FileSelector, Hidden, KeySelector,
    ObjectSelector, OnChange, OnFileChange, Secret,
};
pub use cronjob::{
    ConcurrencyPolicy, CronJob, CronJobSpec, CronJobStatus, INSTANTIATED_FROM, JobTemplateMetadata, JobTemplateSpec,
    SCHEDULED_AT,
};
pub use depend::{Dependency, DependencyCondition, GROUP, RESTARTED_TOGETHER_AT};
pub use event::{Event, EventType, ObjectReference};
pub use external::{Discovery, External, ExternalPhase, ExternalSpec, ExternalStatus};
pub use instance::{
    Breaker, EndCause, EndCount, Exit, ExitStatus, FallbackSince, HistoryEntry, Identity, Instance, InstanceSpec,
    InstanceStatus, JobShare, Phase, Severity, StopReason, Stopping, Verdict, Violation,
};
pub use job::{COMPLETE, FAILED, FAILURE_TARGET, Job, JobSpec, JobStatus, JobTemplate, RetryBackoff, SUSPENDED};
pub use lifecycle::{FailurePolicy, Hook, HookKind, HookStatus, HooksStatus, Lifecycle};
pub use namespace::{Namespace, NamespacePhase, NamespaceSpec, NamespaceStatus};
pub use probe::{
    Check, ExecProbe, Grpc, Health, HttpGet, HttpHeader, LogLine, LogStream, NotifyProbe, NotifyStatus, PortRef, Probe,
    ProbeKind, ProbeStatus, ProbesStatus, ProcessProbe, ResourcesProbe, Scheme, StatusRange, TcpSocket,
};
pub use process::{
    AutoPort, Backoff, CircuitBreaker, Driver, EnvVar, Logs, Port, PortNumber, Process, ProcessSpec, ProcessStatus,
    RESTARTED_AT, RestartPolicy, STOPPED_AT, Stop, TRACEPARENT, WhenBlocked,
};
pub use resources::{Enforcement, LimitKind, Limits, Resources};
pub use source::{
    ALLOW_PRUNE, DeletionLimit, HealthState, SET, SOURCE, SYNC_REQUESTED_AT, Share, Source, SourceRevision, SourceSpec,
    SourceStatus, SyncState, WATCHED, WAVE,
};
pub use update::{Amount, CHANGE_CAUSE, PAUSED_AT, PastRevision, Percent, Rollout, Strategy, Update};
pub use watch::{FILES_WATCHED, FileWatch, RESTART_CASCADE, RESTART_CAUSE, WatchAction, WatchStatus};

pub use thresholds::{
    Adjusted, BytesThreshold, CountThreshold, CpuThreshold, Exceeded, Level, Measure, ResourcesStatus, Threshold,
    Thresholds, Throttled, UNTHROTTLED, ViolationPolicy,
};

pub use restart::{Fallback, Profile, Restart, RestartOverride, Severities};

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The API version of Ostler's own kinds.
pub const API_VERSION: &str = "ostler.dev/v1";

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// What lives in it is deleted with it.
    Namespace,
    /// Settings for processes.
    ConfigMap,
    /// Secrets for processes.
    Secret,
    /// A long-running command.
    Process,
    /// A command that runs to its end.
    Job,
    /// Makes Jobs on a schedule.
    CronJob,
    /// One running copy of a Process, or one run of a Job.
    Instance,
    /// A directory whose manifests are kept applied.
    Source,
    /// A process that Ostler did not start.
    External,
    /// Something that happened.
    Event,
}

impl Kind {
    /// Every kind, in the order in which they take effect when applied together.
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::ConfigMap,
        Self::Secret,
        Self::Process,
        Self::Job,
        Self::CronJob,
        Self::Instance,
        Self::Source,
        Self::External,
        Self::Event,
    ];

    /// The name in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Process => "Process",
            Self::Job => "Job",
            Self::CronJob => "CronJob",
            Self::Instance => "Instance",
            Self::Source => "Source",
            Self::External => "External",
            Self::Event => "Event",
        }
    }

    /// The value of `apiVersion:`.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::ConfigMap | Self::Secret | Self::Event => "v1",
            Self::Process | Self::Job | Self::CronJob | Self::Instance | Self::Source | Self::External => API_VERSION,
        }
    }

    /// The API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::ConfigMap | Self::Secret | Self::Event => "",
            Self::Process | Self::Job | Self::CronJob | Self::Instance | Self::Source | Self::External => "ostler.dev",
        }
    }

    /// The lower-case plural, which also begins the keys in the store.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Process => "processes",
            Self::Job => "jobs",
            Self::CronJob => "cronjobs",
            Self::Instance => "instances",
            Self::Source => "sources",
            Self::External => "externals",
            Self::Event => "events",
        }
    }

    /// The lower-case singular.
    pub const fn singular(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Process => "process",
            Self::Job => "job",
            Self::CronJob => "cronjob",
            Self::Instance => "instance",
            Self::Source => "source",
            Self::External => "external",
            Self::Event => "event",
        }
    }

    /// Abbreviations understood on the command line.
    pub const fn short_names(self) -> &'static [&'static str] {
        match self {
            Self::Namespace => &["ns"],
            Self::ConfigMap => &["cm"],
            Self::Secret | Self::Job => &[],
            Self::Process => &["proc"],
            Self::CronJob => &["cj"],
            Self::Instance => &["inst"],
            Self::Source => &["src"],
            Self::External => &["ext"],
            Self::Event => &["ev"],
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace | Self::Source => false,
            Self::External
            | Self::ConfigMap
            | Self::Secret
            | Self::Process
            | Self::Job
            | Self::CronJob
            | Self::Instance
            | Self::Event => true,
        }
    }

    /// Whether users apply objects of the kind; others are made by Ostler.
    pub const fn is_applicable(self) -> bool {
        match self {
            Self::Namespace
            | Self::ConfigMap
            | Self::Secret
            | Self::Process
            | Self::Job
            | Self::CronJob
            | Self::Source
            | Self::External => true,
            Self::Instance | Self::Event => false,
        }
    }

    /// The kind meant by a name, plural, singular or short name, in any case; a group may follow
    /// (`processes.ostler.dev`).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (word, group) = text.split_once('.').unwrap_or((&text, ""));
        Self::ALL.into_iter().find(|kind| {
            (group.is_empty() || group == kind.group())
                && (word == kind.plural() || word == kind.singular() || kind.short_names().contains(&word))
        })
    }

    /// `processes.ostler.dev`, as Kubernetes' messages name a resource.
    pub fn resource(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell now.
    #[default]
    Unknown,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One published aspect of an object's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The aspect, in CamelCase.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: Truth,
    /// One word in CamelCase for machines.
    pub reason: String,
    /// A sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When `status` last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// The generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<u64>,
}

/// Puts a condition among others, keeping the transition time of one whose status did not change.
pub fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition, now: Timestamp) {
    if let Some(old) = conditions.iter_mut().find(|old| old.kind == condition.kind) {
        condition.last_transition_time =
            if old.status == condition.status { old.last_transition_time } else { Some(now) };
        *old = condition;
    } else {
        condition.last_transition_time = Some(now);
        // There are few of them, and thousands of objects.
        conditions.reserve_exact(1);
        conditions.push(condition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_every_name() {
        for text in ["Process", "processes", "PROC", "processes.ostler.dev"] {
            assert_eq!(Kind::parse(text), Some(Kind::Process), "{text}");
        }
        assert_eq!(Kind::parse("ns"), Some(Kind::Namespace));
        assert_eq!(Kind::parse("events.ostler.dev"), None);
        assert_eq!(Kind::parse("pods"), None);
    }

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_stays() {
        let at = Timestamp::from_micros;
        let ready = |status| Condition { kind: "Ready".to_owned(), status, ..Condition::default() };
        let mut all = Vec::new();
        set_condition(&mut all, ready(Truth::True), at(1));
        set_condition(&mut all, ready(Truth::True), at(2));
        assert_eq!(all[0].last_transition_time, Some(at(1)));
        set_condition(&mut all, ready(Truth::False), at(3));
        assert_eq!((all.len(), all[0].last_transition_time), (1, Some(at(3))));
    }
}
