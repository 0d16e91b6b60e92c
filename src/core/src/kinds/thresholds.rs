//! Soft thresholds: from which use of the machine on something is done about it, and what.

use serde::{Deserialize, Serialize};

use super::Limits;
use crate::quantity::{Bytes, Cpu};
use crate::time::{Span, Timestamp};

/// Levels of use, of the whole process tree, from which on something is done. What is not given is not watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Thresholds {
    /// Resident memory; pages that processes share count for each of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<BytesThreshold>,
    /// CPU, over the last `interval` and at least half a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuThreshold>,
    /// Processes that live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<CountThreshold>,
    /// Threads of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<CountThreshold>,
    /// Open files of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<CountThreshold>,
}

macro_rules! threshold {
    ($(#[$doc:meta])* $name:ident of $amount:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name {
            /// More than this is worth a warning, and never runs `policy`. Throttle ends below it.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub warning: Option<$amount>,
            /// More than this, for as long as `for` says, runs `policy`.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub critical: Option<$amount>,
            /// What is done.
            pub policy: ViolationPolicy,
            /// How long `critical` has to be exceeded; `restart.sustainedViolation`, so 5m, unless given. At most 24h.
            #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
            pub sustained: Option<Span>,
        }
    };
}

threshold!(
    /// Levels of bytes.
    BytesThreshold of Bytes
);
threshold!(
    /// Levels of CPU.
    CpuThreshold of Cpu
);
threshold!(
    /// Levels of a number of things.
    CountThreshold of u32
);

/// What is done when a critical level is exceeded for too long. Each is told in the status; all but None in the daemon's
/// log; all but None and Log as an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ViolationPolicy {
    /// It is seen in the status, and that is all.
    None,
    /// It is also written to the daemon's log.
    Log,
    /// It is also told as an event.
    #[default]
    Alert,
    /// Less CPU, until it is below its warning level: for `cpu` no more than the critical level, for everything else
    /// half of what it used when it began. Needs cgroups, as `limits.cpu` does.
    Throttle,
    /// It is stopped, as `stop` says, and stays Failed (ResourceViolation) until it is started by hand or changed.
    GracefulShutdown,
    /// It is killed at once, its whole tree, and stays Failed (ResourceViolation) until it is started by hand or changed.
    Kill,
    /// It is stopped, as `stop` says, and restarted as `restartPolicy`, `backoff` and `restart.onResource` say.
    Restart,
    /// As Restart; from then on these levels and the hard limit of the same name are higher by a quarter of what is
    /// declared, at most twice as high, until it is started by hand or changed.
    RestartAdjusted,
}

impl ViolationPolicy {
    /// The name as it is published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Log => "Log",
            Self::Alert => "Alert",
            Self::Throttle => "Throttle",
            Self::GracefulShutdown => "GracefulShutdown",
            Self::Kill => "Kill",
            Self::Restart => "Restart",
            Self::RestartAdjusted => "RestartAdjusted",
        }
    }

    /// Whether it ends the attempt.
    pub const fn ends(self) -> bool {
        match self {
            Self::None | Self::Log | Self::Alert | Self::Throttle => false,
            Self::GracefulShutdown | Self::Kill | Self::Restart | Self::RestartAdjusted => true,
        }
    }

    /// Whether what it ended is started again, if everything else allows it.
    pub const fn restarts(self) -> bool {
        match self {
            Self::None | Self::Log | Self::Alert | Self::Throttle | Self::GracefulShutdown | Self::Kill => false,
            Self::Restart | Self::RestartAdjusted => true,
        }
    }
}

/// What has a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Measure {
    /// Resident memory, bytes.
    Memory,
    /// CPU, thousandths of a core.
    Cpu,
    /// Processes.
    Processes,
    /// Threads.
    Threads,
    /// Open files.
    OpenFiles,
}

impl Measure {
    /// The name of the field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Processes => "processes",
            Self::Threads => "threads",
            Self::OpenFiles => "openFiles",
        }
    }

    /// An amount as it is written in a manifest; bytes are rounded to three digits.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::Memory => rounded(amount).to_string(),
            Self::Cpu => Cpu(u32::try_from(amount).unwrap_or(u32::MAX)).to_string(),
            Self::Processes | Self::Threads | Self::OpenFiles => amount.to_string(),
        }
    }
}

/// Down to whole units of which there are at least a hundred, so that a measured amount can be read.
fn rounded(bytes: u64) -> Bytes {
    let shift = [30, 20, 10].into_iter().find(|shift| bytes >> shift >= 100).unwrap_or(0);
    Bytes(bytes >> shift << shift)
}

/// One threshold, whatever it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Of what.
    pub measure: Measure,
    /// More than this is worth a warning.
    pub warning: Option<u64>,
    /// More than this runs the policy.
    pub critical: Option<u64>,
    /// Which is this.
    pub policy: ViolationPolicy,
    /// After so long, when it says so itself.
    pub sustained: Option<Span>,
}

impl Thresholds {
    /// Those that there are, in the order of the schema.
    pub fn iter(&self) -> impl Iterator<Item = Threshold> {
        let Self { memory, cpu, processes, threads, open_files } = self;
        let count = |measure: Measure, of: &Option<CountThreshold>| {
            let CountThreshold { warning, critical, policy, sustained } = of.as_ref()?;
            let (warning, critical) = (warning.map(u64::from), critical.map(u64::from));
            Some(Threshold { measure, warning, critical, policy: *policy, sustained: *sustained })
        };
        let memory = memory.as_ref().map(|BytesThreshold { warning, critical, policy, sustained }| Threshold {
            measure: Measure::Memory,
            warning: warning.map(|bytes| bytes.0),
            critical: critical.map(|bytes| bytes.0),
            policy: *policy,
            sustained: *sustained,
        });
        let cpu = cpu.as_ref().map(|CpuThreshold { warning, critical, policy, sustained }| Threshold {
            measure: Measure::Cpu,
            warning: warning.map(|cpu| cpu.0.into()),
            critical: critical.map(|cpu| cpu.0.into()),
            policy: *policy,
            sustained: *sustained,
        });
        [
            memory,
            cpu,
            count(Measure::Processes, processes),
            count(Measure::Threads, threads),
            count(Measure::OpenFiles, open_files),
        ]
        .into_iter()
        .flatten()
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one of them throttles.
    pub fn throttle(&self) -> bool {
        self.iter().any(|threshold| threshold.policy == ViolationPolicy::Throttle)
    }
}

/// How much something is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Level {
    /// Not more than any level.
    #[default]
    Normal,
    /// More than `warning`.
    Warning,
    /// More than `critical`.
    Critical,
}

/// Something of which more is used than a level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exceeded {
    /// What.
    pub resource: Measure,
    /// Which level.
    pub level: Level,
    /// Since when.
    pub since: Timestamp,
    /// How much was used when that was noticed: bytes, thousandths of a core, or a number.
    pub used: u64,
    /// It has lasted long enough for the policy to act.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sustained: bool,
}

/// What the thresholds of an instance have found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResourcesStatus {
    /// Number of the attempt that `exceeded` and `throttled` are about.
    pub attempt: u64,
    /// Of what more is used than a level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<Exceeded>,
    /// It gets less CPU for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
    /// What is higher than declared since restarts with RestartAdjusted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adjusted: Vec<Adjusted>,
}

/// An instance gets less CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Throttled {
    /// Because of this.
    pub resource: Measure,
    /// So much.
    pub cpu: Cpu,
    /// Since when.
    pub since: Timestamp,
}

/// Levels and limits that are higher than declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Adjusted {
    /// Of this.
    pub resource: Measure,
    /// Hundredths of what is declared.
    pub percent: u32,
}

impl ResourcesStatus {
    /// The most that levels and limits are raised to, hundredths of what is declared.
    pub const MOST: u32 = 200;
    /// By how much they are raised at a time.
    pub const STEP: u32 = 25;

    /// Hundredths of what is declared that the levels and the limit of something are now.
    pub fn percent(&self, resource: Measure) -> u32 {
        self.adjusted.iter().find(|adjusted| adjusted.resource == resource).map_or(100, |adjusted| adjusted.percent)
    }

    /// Raises them by one step; how much they are now.
    pub fn adjust(&mut self, resource: Measure) -> u32 {
        let percent = (self.percent(resource) + Self::STEP).min(Self::MOST);
        self.adjusted.retain(|adjusted| adjusted.resource != resource);
        self.adjusted.push(Adjusted { resource, percent });
        percent
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.exceeded.is_empty() && self.throttled.is_none() && self.adjusted.is_empty()
    }
}

/// The CPU limit of what may have to be throttled, and is not: it has a group for that, and all the CPU it wants.
pub const UNTHROTTLED: Cpu = Cpu(0);

impl Limits {
    /// The limits that hold for an instance now: those that are declared, raised and throttled.
    pub(crate) fn in_effect(&self, thresholds: &Thresholds, status: Option<&ResourcesStatus>) -> Self {
        let mut limits = self.clone();
        if let Some(status) = status {
            let raise = |measure, amount: u64| {
                (u128::from(amount) * u128::from(status.percent(measure)) / 100).try_into().unwrap_or(u64::MAX)
            };
            let raise_count = |measure, count: u32| u32::try_from(raise(measure, count.into())).unwrap_or(u32::MAX);
            limits.memory = limits.memory.map(|bytes| Bytes(raise(Measure::Memory, bytes.0)));
            limits.cpu = limits.cpu.map(|cpu| Cpu(raise_count(Measure::Cpu, cpu.0)));
            limits.processes = limits.processes.map(|count| raise_count(Measure::Processes, count));
            limits.open_files = limits.open_files.map(|count| raise_count(Measure::OpenFiles, count));
        }
        if thresholds.throttle() {
            let throttled = status.and_then(|status| status.throttled.as_ref()).map(|throttled| throttled.cpu);
            limits.cpu = throttled.into_iter().chain(limits.cpu).min().or(Some(UNTHROTTLED));
        }
        limits
    }
}
