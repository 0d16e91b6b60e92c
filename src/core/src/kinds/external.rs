//! External: a process that Ostler did not start, found and watched.

use serde::{Deserialize, Serialize};

use super::{Condition, Identity};
use crate::meta::Metadata;
use crate::time::{Span, Timestamp};

/// A process that Ostler did not start. It is found, watched and sampled, and never started, stopped or restarted; it gets
/// no signal that `spec.allowedSignals` does not name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct External {
    /// "ostler.dev/v1".
    pub api_version: String,
    /// "External".
    pub kind: String,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// How it is found.
    pub spec: ExternalSpec,
    /// What was found. Written by Ostler.
    #[serde(default)]
    pub status: ExternalStatus,
}

/// How a process is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalSpec {
    /// What tells the process from others; exactly one of its fields.
    pub discovery: Discovery,
    /// How often it is looked for, from 1s to 1h. The end of one that was found is noticed at once all the same.
    #[serde(default = "interval")]
    pub interval: Span,
    /// The signals that `ostler signal` may send to it, such as [HUP, TERM]. None unless named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_signals: Vec<String>,
}

const fn interval() -> Span {
    Span::from_secs(10)
}

/// What tells the process from others. Where several match and one of them is an ancestor of all the others, it is that
/// one; else they are Ambiguous. Process 1, Ostler itself and what it runs never match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Discovery {
    /// Absolute path of a file whose first word is the process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<String>,
    /// A regular expression that is found in the command line, whose words are joined by spaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The name of the program, as `ps -o comm` shows it: at most 15 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The TCP port it listens on, in the daemon's network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<std::num::NonZeroU16>,
    /// The cgroup it is in or below, as /proc/PID/cgroup names it: /system.slice/nginx.service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The systemd unit whose cgroup it is in: nginx.service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub systemd_unit: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExternalStatus {
    /// Found, NotFound or Ambiguous; NotFound until it was looked for.
    pub phase: ExternalPhase,
    /// Process id of what was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Which process it is, whoever gets its number later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Since when it is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Process ids of those that match when they are Ambiguous, at most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<i32>,
    /// The generation of the spec that this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<u64>,
    /// Ready: exactly one process was found, and lives.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Whether an External was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ExternalPhase {
    /// Exactly one process, which is watched.
    Found,
    /// None.
    #[default]
    NotFound,
    /// Several, none of which is an ancestor of all others.
    Ambiguous,
}

impl ExternalPhase {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Found => "Found",
            Self::NotFound => "NotFound",
            Self::Ambiguous => "Ambiguous",
        }
    }
}
