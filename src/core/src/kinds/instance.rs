//! Instance: one copy of a Process, or one run of a Job. Made, changed and removed by Ostler only.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Condition, HooksStatus, Measure, ProbesStatus, ProcessSpec, ResourcesStatus, ViolationPolicy};
use crate::meta::Metadata;
use crate::time::Timestamp;

/// One copy of a Process, or one run of a Job: read-only, made by Ostler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Instance {
    /// "ostler.dev/v1".
    pub api_version: String,
    /// "Instance".
    pub kind: String,
    /// The name is that of the Process or Job, a dash and the ordinal.
    pub metadata: Metadata,
    /// What this copy should be.
    pub spec: InstanceSpec,
    /// What it is.
    #[serde(default)]
    pub status: InstanceStatus,
}

/// What this copy should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceSpec {
    /// Name of the Process; empty for a run of a Job.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process: String,
    /// The Job that it is a run of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<JobShare>>,
    /// Which copy of the Process, or which run of the Job, from 0.
    pub ordinal: u32,
    /// Revision of the template.
    pub revision: String,
    /// Stopped by hand: stays so until started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
    /// A restart was asked for at this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<Timestamp>,
    /// A start was asked for at this time: it clears backoff, retries and the circuit breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Stopped until every instance of another revision is: the strategy is Recreate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub held: bool,
    /// The port numbers it keeps, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// The spec of the Process that it is made from, or the template of the Job.
    pub template: Arc<ProcessSpec>,
}

/// The part of a Job that a run does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobShare {
    /// Name of the Job.
    pub name: String,
    /// Which of its completions, from 0.
    pub index: u32,
}

/// What this copy is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InstanceStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// Why, one word in CamelCase.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, a sentence.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Process id of the leader while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Whether it can be counted on.
    pub ready: bool,
    /// How often it was started again, for whatever reason.
    pub restarts: u32,
    /// When the current attempt was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How the last attempt that is over ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// When it will be started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<Timestamp>,
    /// Since when it waits for what it depends on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
    /// Number of the last start that was asked for; numbers are never used twice.
    pub attempt: u64,
    /// Number of the last attempt whose end was recorded.
    pub ended_attempt: u64,
    /// What makes the running process itself and no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Revision that the current attempt was started from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// The restart request that the current attempt answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<Timestamp>,
    /// The start request that was answered last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_answered: Option<Timestamp>,
    /// Attempts in a row that ended by themselves; decides the backoff.
    #[serde(skip_serializing_if = "is_zero")]
    pub streak: u32,
    /// Attempts in a row that failed; decides when to give up.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// The same two counts for each cause that `restart` has an override for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<EndCount>,
    /// It runs the fallback command, since retries were exhausted; until the generation is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<FallbackSince>,
    /// The circuit breaker, when it has something to remember.
    #[serde(skip_serializing_if = "Breaker::is_idle")]
    pub breaker: Breaker,
    /// Set while it is being stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopping: Option<Stopping>,
    /// It ended and policy starts it no more.
    #[serde(skip_serializing_if = "is_false")]
    pub done: bool,
    /// What the probes of the last attempt that ran have found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Box<ProbesStatus>>,
    /// What has come of its hooks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Box<HooksStatus>>,
    /// What its thresholds have found and done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Box<ResourcesStatus>>,
    /// Ready; Healthy, when there are probes; LimitsEnforced and WithinThresholds, when there are limits or thresholds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The latest transitions, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Phase {
    /// Not started yet.
    #[default]
    Pending,
    /// Its start was asked for and is not confirmed yet.
    Starting,
    /// Its process lives.
    Running,
    /// It was told to end, or its leader ended and other processes of its tree live.
    Stopping,
    /// It is over, as it should be.
    Stopped,
    /// It is over, as it should not be, and policy starts it no more.
    Failed,
    /// It ended and waits to be started again.
    Backoff,
    /// It was killed and does not go.
    Stuck,
    /// It ran before the machine was rebooted.
    Lost,
    /// Nobody can tell now.
    Unknown,
}

impl Phase {
    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Stopping => "Stopping",
            Self::Stopped => "Stopped",
            Self::Failed => "Failed",
            Self::Backoff => "Backoff",
            Self::Stuck => "Stuck",
            Self::Lost => "Lost",
            Self::Unknown => "Unknown",
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Number of the attempt.
    pub attempt: u64,
    /// Code, signal, or why neither is known.
    #[serde(flatten)]
    pub status: ExitStatus,
    /// When.
    pub at: Timestamp,
    /// Why it ended, when nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<EndCause>,
    /// How bad that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// The kernel killed it for want of memory below its limit.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oom_killed: bool,
}

/// Why an attempt ended that nobody asked to end; decides which policy follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EndCause {
    /// It ended by itself, or was killed by somebody else.
    #[default]
    Crash,
    /// It could not be started.
    ExecFailure,
    /// It did not come up in time, or its postStart hook failed, and it was stopped for that.
    Startup,
    /// It was found not to work any more, and was stopped for that.
    Liveness,
    /// It used more than it may, and was stopped for that.
    Resource,
}

impl EndCause {
    /// Every cause.
    pub const ALL: [Self; 5] = [Self::Crash, Self::ExecFailure, Self::Startup, Self::Liveness, Self::Resource];

    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crash => "Crash",
            Self::ExecFailure => "ExecFailure",
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Resource => "Resource",
        }
    }
}

/// Attempts in a row that ended for one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndCount {
    /// The cause.
    pub cause: EndCause,
    /// How many; decides the backoff.
    pub streak: u32,
    /// How many that count against `maxRetries`.
    pub failures: u32,
}

/// Since when the fallback command runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FallbackSince {
    /// When the command was given up.
    pub since: Timestamp,
    /// Generation of the instance at that time: a change of its spec returns to the command.
    pub generation: u64,
    /// Why the command was given up.
    pub message: String,
}

/// How bad an end was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Severity {
    /// Perhaps not bad: nobody saw how it ended.
    Warning,
    /// It failed, or more than a critical level was used for too long.
    #[default]
    Critical,
    /// The program is broken or the machine is short of something: it was ended by a fault (SIGSEGV, SIGABRT, SIGBUS,
    /// SIGFPE, SIGILL, SIGSYS) or for want of memory.
    Emergency,
}

impl Severity {
    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "Warning",
            Self::Critical => "Critical",
            Self::Emergency => "Emergency",
        }
    }
}

/// Code, signal, or why neither is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum ExitStatus {
    /// Exit code.
    Code(i32),
    /// Number of the signal that ended it.
    Signal(i32),
    /// It ended while nobody could see it; why.
    Unknown(String),
    /// It could not be started; why.
    Error(String),
}

/// What makes a process itself and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Id of the boot it was started in.
    pub boot_id: String,
    /// Process id.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub start_time: u64,
}

/// What the circuit breaker remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Breaker {
    /// The failures within the window, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Timestamp>,
    /// Open until then: no start before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_until: Option<Timestamp>,
    /// The current attempt is the trial after the cooldown.
    #[serde(skip_serializing_if = "is_false")]
    pub half_open: bool,
}

impl Breaker {
    /// Whether there is nothing to remember.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// A stop that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stopping {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: StopReason,
    /// What still lives then is killed.
    pub kill_at: Timestamp,
    /// What it is stopped for, when nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Box<Verdict>>,
}

/// What was found out about a running attempt that ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verdict {
    /// Number of the attempt; others it does not concern.
    pub attempt: u64,
    /// Which policy follows.
    pub cause: EndCause,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, a sentence.
    pub message: String,
    /// The threshold that was exceeded, if it is that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub violation: Option<Violation>,
    /// It is the postStart hook that failed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hook: bool,
}

impl Verdict {
    /// The reason for stopping what it is about.
    pub const fn reason(&self) -> StopReason {
        if self.hook { StopReason::PostStartFailed } else { StopReason::of(self.cause) }
    }
}

/// A threshold that was exceeded for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Violation {
    /// Of what.
    pub resource: Measure,
    /// What is done about it.
    pub policy: ViolationPolicy,
}

/// Why an instance is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum StopReason {
    /// Somebody asked for it.
    Stopped,
    /// A restart was asked for.
    Restarted,
    /// It is replaced by one of another revision.
    Replaced,
    /// It is deleted.
    Deleted,
    /// It did not come up in time.
    StartupFailed,
    /// Its postStart hook failed.
    PostStartFailed,
    /// It was found not to work any more.
    Unhealthy,
    /// It used more than it may.
    ResourceViolation,
    /// Its leader ended by itself and left processes behind.
    LeaderExited,
    /// The daemon ends and takes it along; it is started again with the daemon.
    Shutdown,
}

impl StopReason {
    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "Stopped",
            Self::Restarted => "Restarted",
            Self::Replaced => "Replaced",
            Self::Deleted => "Deleted",
            Self::StartupFailed => "StartupFailed",
            Self::PostStartFailed => "PostStartFailed",
            Self::Unhealthy => "Unhealthy",
            Self::ResourceViolation => "ResourceViolation",
            Self::LeaderExited => "LeaderExited",
            Self::Shutdown => "Shutdown",
        }
    }

    /// The reason for stopping what came to an end for a cause before it ended.
    pub const fn of(cause: EndCause) -> Self {
        match cause {
            EndCause::Startup => Self::StartupFailed,
            EndCause::Liveness => Self::Unhealthy,
            EndCause::Resource => Self::ResourceViolation,
            // What has ended needs no stop; only what it left behind does.
            EndCause::Crash | EndCause::ExecFailure => Self::LeaderExited,
        }
    }

    /// Whether somebody asked for the stop; what ends otherwise counts as a failure.
    pub const fn is_asked(self) -> bool {
        match self {
            Self::Stopped | Self::Restarted | Self::Replaced | Self::Deleted | Self::Shutdown => true,
            Self::StartupFailed
            | Self::PostStartFailed
            | Self::Unhealthy
            | Self::ResourceViolation
            | Self::LeaderExited => false,
        }
    }
}

/// One transition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HistoryEntry {
    /// The phase that began.
    pub phase: Phase,
    /// When.
    pub at: Timestamp,
    /// Why, one word in CamelCase.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl InstanceSpec {
    /// Name of the Process or Job it belongs to; no two of them in a namespace have the same.
    pub fn owner(&self) -> &str {
        self.job.as_ref().map_or(&self.process, |share| &share.name)
    }
}

impl InstanceStatus {
    /// How many transitions are kept.
    pub const HISTORY: usize = 12;

    /// Whether a process may live: an attempt was asked for whose end was not recorded.
    pub fn is_live(&self) -> bool {
        self.attempt > self.ended_attempt
    }
}
