//! What has to have happened before a process is started.

use serde::{Deserialize, Serialize};

use super::Kind;
use crate::time::Span;

/// Label: the group that a Process belongs to; `ostler start`, `stop` and `restart` take `group/NAME`.
pub const GROUP: &str = "ostler.dev/group";
/// Annotation: a restart of the whole group was asked for at this time: all stop, then all start.
pub const RESTARTED_TOGETHER_AT: &str = "ostler.dev/restartedTogetherAt";

/// Something that is waited for before an instance is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dependency {
    /// Name of a Process. It need not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Name of a Job, instead of `process`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Namespace of the Process or Job; that of the object itself unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What is waited for; Ready unless given, and Completed of a Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<DependencyCondition>,
    /// An instance that waited for so long has failed, with the reason DependencyTimeout. It is started all the same when
    /// what it waits for comes later. Without it, there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum DependencyCondition {
    /// Every instance runs, or has completed. Of a Job: one of its runs has been started.
    Started,
    /// Every instance is available: ready, for `update.minReady`, and not in the middle of crashing again and again.
    Ready,
    /// Every instance has ended successfully and is not started again, or the Job is complete.
    Completed,
}

impl DependencyCondition {
    /// The name as it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "Started",
            Self::Ready => "Ready",
            Self::Completed => "Completed",
        }
    }
}

impl Dependency {
    /// Kind and name of what is waited for. A valid one names exactly one.
    pub fn target(&self) -> (Kind, &str) {
        match (&self.process, &self.job) {
            (Some(process), _) => (Kind::Process, process),
            (None, job) => (Kind::Job, job.as_deref().unwrap_or_default()),
        }
    }

    /// The namespace of what is waited for, seen from an object in `own`.
    pub fn namespace<'a>(&'a self, own: &'a str) -> &'a str {
        self.namespace.as_deref().unwrap_or(own)
    }

    /// `process/db`, or `data/process/db` where the namespace is given.
    pub fn shown(&self) -> String {
        let (kind, name) = self.target();
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}/{name}", kind.singular()),
            None => format!("{}/{name}", kind.singular()),
        }
    }

    /// What is waited for.
    pub fn condition(&self) -> DependencyCondition {
        let usual = if self.process.is_some() { DependencyCondition::Ready } else { DependencyCondition::Completed };
        self.condition.unwrap_or(usual)
    }
}
