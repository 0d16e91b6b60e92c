//! How restarts depend on what they follow: fields of a Process' spec.

use serde::{Deserialize, Serialize};

use super::EndCause;
use crate::time::Span;

/// Restarts that depend on why an attempt ended, how bad that was, and what kind of program it is. Without it, every
/// end is treated alike, by `backoff`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Restart {
    /// What kind of program it is. Multiplies delays and `maxRetries`: Web by 1, Worker by 2, Scheduler by 2.5, Batch
    /// by 3, Database by 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// By what delays and `maxRetries` are multiplied further, by how bad the end was.
    pub severities: Severities,
    /// After it ended by itself or was killed by somebody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_crash: Option<RestartOverride>,
    /// After it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_exec_failure: Option<RestartOverride>,
    /// After it did not come up in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_startup: Option<RestartOverride>,
    /// After it was found not to work any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_liveness: Option<RestartOverride>,
    /// After it used more memory than its limit, or more than a level of `resources.thresholds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_resource: Option<RestartOverride>,
    /// After a start, `resources.thresholds` do not count for so long.
    pub startup_grace: Span,
    /// How long a critical level of `resources.thresholds` has to be exceeded before its policy acts, unless the
    /// threshold says it itself by `for`.
    pub sustained_violation: Span,
    /// What exceeds a level of `resources.thresholds` for a shorter time than this does not count, nor does a dip that
    /// is shorter end it.
    pub spike_tolerance: Span,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            profile: None,
            severities: Severities::default(),
            on_crash: None,
            on_exec_failure: None,
            on_startup: None,
            on_liveness: None,
            on_resource: None,
            startup_grace: Span::from_secs(120),
            sustained_violation: Span::from_secs(300),
            spike_tolerance: Span::from_secs(30),
        }
    }
}

impl Restart {
    /// What is said about a cause.
    pub fn of(&self, cause: EndCause) -> Option<&RestartOverride> {
        match cause {
            EndCause::Crash => self.on_crash.as_ref(),
            EndCause::ExecFailure => self.on_exec_failure.as_ref(),
            EndCause::Startup => self.on_startup.as_ref(),
            EndCause::Liveness => self.on_liveness.as_ref(),
            EndCause::Resource => self.on_resource.as_ref(),
        }
    }

    /// The name of the field for a cause.
    pub const fn field(cause: EndCause) -> &'static str {
        match cause {
            EndCause::Crash => "onCrash",
            EndCause::ExecFailure => "onExecFailure",
            EndCause::Startup => "onStartup",
            EndCause::Liveness => "onLiveness",
            EndCause::Resource => "onResource",
        }
    }
}

/// What takes the place of fields of `backoff` for one reason. Attempts that end for that reason are then counted by
/// themselves; reasons without an override share one count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RestartOverride {
    /// Before the first restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<Span>,
    /// By what each next one is longer, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Never longer than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
    /// Give up after so many restarts in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

/// What kind of program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Profile {
    /// Serves requests and starts quickly: × 1.
    Web,
    /// Takes work from elsewhere, which waits for it: × 2.
    Worker,
    /// Starts other work on time: × 2.5.
    Scheduler,
    /// Works for long and is not waited for: × 3.
    Batch,
    /// Has to recover its data before it serves again: × 5.
    Database,
}

impl Profile {
    /// By what it multiplies.
    pub const fn multiplier(self) -> f64 {
        match self {
            Self::Web => 1.0,
            Self::Worker => 2.0,
            Self::Scheduler => 2.5,
            Self::Batch => 3.0,
            Self::Database => 5.0,
        }
    }

    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Web => "Web",
            Self::Worker => "Worker",
            Self::Scheduler => "Scheduler",
            Self::Batch => "Batch",
            Self::Database => "Database",
        }
    }
}

/// Multipliers of delays and `maxRetries` by how bad an end was, each from 0.01 to 100.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Severities {
    /// Perhaps not bad: nobody saw how it ended.
    pub warning: f64,
    /// It failed.
    pub critical: f64,
    /// The program is broken (SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSYS), or the machine is short of something.
    pub emergency: f64,
}

impl Default for Severities {
    fn default() -> Self {
        Self { warning: 0.5, critical: 1.0, emergency: 2.0 }
    }
}

/// What runs instead when Ostler has given up on the command, until the spec changes or it is restarted by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// The command and its arguments, written as `command` is. It runs as the same user, in the same directory, with
    /// the same environment and ports, and restarts by the same policy; its instance is not ready.
    pub command: Vec<String>,
}
