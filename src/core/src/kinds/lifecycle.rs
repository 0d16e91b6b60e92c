//! Hooks: what runs around the life of an instance, and what came of it.

use serde::{Deserialize, Serialize};

use super::{ExecProbe, HttpGet};
use crate::time::{Span, Timestamp};

/// Hooks: what runs before and after the start of each instance, and before and after its end. A change of them restarts
/// nothing. They belong to `command`: the fallback runs without them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lifecycle {
    /// Runs before each start, when dependencies and backoff allow it. Its failure is a failed start, with the reason
    /// PreStartFailed. It may run more than once for a start: if the daemon dies in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_start: Option<Hook>,
    /// Runs when the process does; the instance is not ready before. Its failure stops the process, with the reason
    /// PostStartFailed, and restarts it as restartPolicy says. OSTLER_PID is the process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_start: Option<Hook>,
    /// Runs before a process that runs is sent the signal to stop. It is part of the grace period, the end of which it
    /// does not put off: the last fifth of that, at most 2s, belongs to the signal. Its failure is a Warning event, and
    /// the stop goes on. OSTLER_PID is the process id, OSTLER_REASON why it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Hook>,
    /// Runs when nothing is left of an attempt, however it ended, or when it could not be started; the next one starts
    /// after it. Its failure is a Warning event. OSTLER_REASON is why it ended, OSTLER_EXIT_CODE or OSTLER_EXIT_SIGNAL
    /// how, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_stop: Option<Hook>,
}

impl Lifecycle {
    /// One of them.
    pub const fn get(&self, kind: HookKind) -> Option<&Hook> {
        match kind {
            HookKind::PreStart => self.pre_start.as_ref(),
            HookKind::PostStart => self.post_start.as_ref(),
            HookKind::PreStop => self.pre_stop.as_ref(),
            HookKind::PostStop => self.post_stop.as_ref(),
        }
    }

    /// Those that there are.
    pub fn hooks(&self) -> impl Iterator<Item = (HookKind, &Hook)> {
        HookKind::ALL.into_iter().filter_map(|kind| Some((kind, self.get(kind)?)))
    }
}

/// What is done once at one point of the life of an instance. Exactly one of exec and httpGet is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    /// A command that exits with code 0. It runs as the user, in the directory and with the environment of the instance,
    /// and OSTLER_HOOK is the name of the hook. What it leaves running is killed when it ends, and all of it at the
    /// timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecProbe>,
    /// An HTTP request that is answered as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    /// What takes longer has failed.
    pub timeout: Span,
    /// What the failure of preStart or postStart does: Fail unless given. A stop goes on whatever its hooks do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_policy: Option<FailurePolicy>,
}

impl Default for Hook {
    fn default() -> Self {
        Self { exec: None, http_get: None, timeout: Span::from_secs(30), failure_policy: None }
    }
}

/// What the failure of a hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FailurePolicy {
    /// It is a failure of the instance.
    Fail,
    /// It is told by an event of the type Warning, and life goes on.
    Ignore,
}

/// Which of the hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookKind {
    /// `preStart`
    PreStart,
    /// `postStart`
    PostStart,
    /// `preStop`
    PreStop,
    /// `postStop`
    PostStop,
}

impl HookKind {
    /// Every kind, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::PreStart, Self::PostStart, Self::PreStop, Self::PostStop];

    /// As it is written in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreStart => "preStart",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
            Self::PostStop => "postStop",
        }
    }

    /// The reason that is given while it runs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::PreStart => "PreStart",
            Self::PostStart => "PostStart",
            Self::PreStop => "PreStop",
            Self::PostStop => "PostStop",
        }
    }

    /// The reason that is given when it has failed.
    pub const fn failure(self) -> &'static str {
        match self {
            Self::PreStart => "PreStartFailed",
            Self::PostStart => "PostStartFailed",
            Self::PreStop => "PreStopFailed",
            Self::PostStop => "PostStopFailed",
        }
    }
}

/// What has come of the hooks, each the last time that it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HooksStatus {
    /// The one before the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_start: Option<HookStatus>,
    /// The one after the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_start: Option<HookStatus>,
    /// The one before the stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<HookStatus>,
    /// The one after the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_stop: Option<HookStatus>,
}

impl HooksStatus {
    /// One of them.
    pub const fn get(&self, kind: HookKind) -> Option<&HookStatus> {
        match kind {
            HookKind::PreStart => self.pre_start.as_ref(),
            HookKind::PostStart => self.post_start.as_ref(),
            HookKind::PreStop => self.pre_stop.as_ref(),
            HookKind::PostStop => self.post_stop.as_ref(),
        }
    }

    /// One of them, to change.
    pub const fn get_mut(&mut self, kind: HookKind) -> &mut Option<HookStatus> {
        match kind {
            HookKind::PreStart => &mut self.pre_start,
            HookKind::PostStart => &mut self.post_start,
            HookKind::PreStop => &mut self.pre_stop,
            HookKind::PostStop => &mut self.post_stop,
        }
    }
}

/// What has come of a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HookStatus {
    /// Number of the attempt that it ran for.
    pub attempt: u64,
    /// Whether it succeeded.
    pub succeeded: bool,
    /// When it was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// What it said last, and how it ended if it failed; values of Secrets are left out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}
