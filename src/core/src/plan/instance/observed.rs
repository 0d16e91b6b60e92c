//! What custody, probes and the rest of the controller show of an instance: the facts that its plan follows from.

use crate::kinds::{ExitStatus, HookKind, Identity, Limits, ProbesStatus, Verdict};
use crate::limits::EnforcedLimit;
use crate::plan::depend::Waits;
use crate::plan::output::Output;
use crate::plan::resources::Levels;
use crate::time::Timestamp;

/// What custody shows of one instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Whether the keeper has reported everything it holds. Until then nothing is known, and nothing is decided.
    pub synced: bool,
    /// The record of the instance, with what it is to be started from, would survive our own crash; before that no
    /// process may depend on it.
    pub recorded: bool,
    /// An attempt that the keeper was told to start and has not reported yet.
    pub starting: Option<u64>,
    /// The attempt that was sent the stop signal by this controller.
    pub signalled: Option<u64>,
    /// The attempt that was killed by this controller.
    pub killed: Option<u64>,
    /// The daemon ends and takes its processes along: stop, and be gone by then, whatever the spec says.
    pub shutdown: Option<Timestamp>,
    /// What ends the running attempt, such as a limit that was exceeded.
    pub verdict: Option<Box<Verdict>>,
    /// What the probes have found; nothing before the first verdict since the controller began.
    pub probes: Option<Box<ProbesStatus>>,
    /// What the samples of usage say of the thresholds; nothing before the first that exceeds one.
    pub levels: Option<Box<Levels>>,
    /// The attempts in custody, by rising number.
    pub attempts: Vec<Attempt>,
    /// What custody says of the log.
    pub output: Output,
    /// The limits that custody was asked to put into effect last, other than those it was started with.
    pub limited: Option<Box<Limits>>,
    /// Whom it has to wait for.
    pub waits: Option<Box<Waits>>,
    /// The ConfigMap or Secret that a start has to wait for.
    pub config_missing: Option<Box<str>>,
    /// The hooks that run, or have come to an end that is not in the status yet.
    pub hooks: Option<Box<[HookRun]>>,
}

/// A hook that was started by this controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRun {
    /// The attempt that it runs for.
    pub attempt: u64,
    /// Which one.
    pub kind: HookKind,
    /// What it came to; nothing while it runs.
    pub result: Option<HookResult>,
}

/// What a hook came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookResult {
    /// Whether it did what it should.
    pub succeeded: bool,
    /// What it said last, and how it ended if it failed.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// One attempt in custody.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its number.
    pub number: u64,
    /// Whose process it is, if one was made.
    pub identity: Option<Identity>,
    /// When it was started.
    pub started_at: Timestamp,
    /// What became of it.
    pub state: AttemptState,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// What has become of the limits it was started with.
    pub limits: Option<Box<[EnforcedLimit]>>,
}

impl Attempt {
    /// One of which no process was made.
    pub fn failed(number: u64, at: Timestamp, state: AttemptState) -> Self {
        Self { number, identity: None, started_at: at, state, oom_killed: false, limits: None }
    }
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptState {
    /// No process was made.
    FailedToStart(StartError),
    /// The leader lives.
    Running,
    /// The leader is gone, other processes of its tree live.
    LeaderExited {
        /// How the leader ended.
        status: ExitStatus,
        /// How many live.
        survivors: u32,
    },
    /// It was killed and does not go.
    Stuck,
    /// Every process is gone.
    Ended {
        /// How the leader ended.
        status: ExitStatus,
        /// When.
        at: Timestamp,
        /// It ended because the machine did.
        reboot: bool,
    },
}

impl AttemptState {
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::FailedToStart(_) | Self::Ended { .. } => true,
            Self::Running | Self::LeaderExited { .. } | Self::Stuck => false,
        }
    }
}

/// Why no process could be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    /// What kind of trouble.
    pub kind: StartErrorKind,
    /// The whole story, with paths.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// What kind of trouble kept a process from being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartErrorKind {
    /// The program, or the interpreter of the script, does not exist.
    CommandNotFound,
    /// It may not be executed.
    PermissionDenied,
    /// It is not a program for this machine.
    BadFormat,
    /// The working directory does not exist or may not be entered.
    BadWorkingDirectory,
    /// The user or group does not exist, or may not be switched to.
    BadUser,
    /// A file with variables cannot be read.
    BadEnvironment,
    /// A word of the command would show the value of a Secret to every user.
    SecretInCommand,
    /// The machine has no more processes, memory or descriptors.
    ResourcesExhausted,
    /// The preStart hook failed.
    PreStartFailed,
    /// The kernel offers nothing to enforce a limit with that it may not run without.
    LimitsNotEnforceable,
    /// Anything else.
    Other,
}

impl StartErrorKind {
    /// The reason as it is published.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::CommandNotFound => "CommandNotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::BadFormat => "BadFormat",
            Self::BadWorkingDirectory => "BadWorkingDirectory",
            Self::BadUser => "BadUser",
            Self::BadEnvironment => "BadEnvironment",
            Self::SecretInCommand => "SecretInCommand",
            Self::ResourcesExhausted => "ResourcesExhausted",
            Self::PreStartFailed => "PreStartFailed",
            Self::LimitsNotEnforceable => "LimitsNotEnforceable",
            Self::Other => "StartFailed",
        }
    }

    /// Whether trying again can help without anybody changing the manifest. A missing file may be deployed a moment
    /// later; a file of the wrong format stays one.
    pub(super) const fn is_retryable(self) -> bool {
        match self {
            Self::CommandNotFound
            | Self::PermissionDenied
            | Self::BadWorkingDirectory
            | Self::BadEnvironment
            | Self::ResourcesExhausted
            | Self::PreStartFailed
            | Self::Other => true,
            Self::BadFormat | Self::BadUser | Self::SecretInCommand | Self::LimitsNotEnforceable => false,
        }
    }
}
