//! What a process may use of the machine.

use serde::{Deserialize, Serialize};

use super::Thresholds;
use crate::quantity::{Bytes, Cpu};
use crate::time::Span;

/// What each instance may use of the machine, its whole process tree together unless a limit says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Hard limits, held by the kernel. Another value of memory, cpu, processes or ioWeight takes effect without a
    /// restart; any other change restarts.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// What happens when the kernel offers nothing to enforce one of the limits with.
    pub enforcement: Enforcement,
    /// Soft levels, and what is done when more is used. They may change at any time, only the first Throttle and the
    /// last one restart.
    #[serde(skip_serializing_if = "Thresholds::is_empty")]
    pub thresholds: Thresholds,
    /// How often use is compared with `thresholds`, from 250ms to 10s.
    pub interval: Span,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            enforcement: Enforcement::default(),
            thresholds: Thresholds::default(),
            interval: Self::INTERVAL,
        }
    }
}

/// Hard limits, held by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Memory, file pages that it caused to be cached included; at least 1Mi. When the tree needs more, the kernel kills
    /// it: reason OOMKilled. Needs cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// CPU time in each tenth of a second: 500m is half a core, 2 is two; at least 10m. Needs cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Processes, and the threads of each besides its first. Beyond that fork fails. Needs cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Open files of each process (RLIMIT_NOFILE), at least 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Share of storage while others want it too, 1 to 10000; 100 is what everybody has. Needs cgroups and a scheduler
    /// such as bfq.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u16>,
    /// Priority, from -20 (the highest, needs root) to 19. What it starts can lower it further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i8>,
}

/// What happens when the kernel offers nothing to enforce a limit with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Enforcement {
    /// The instance is not started: reason LimitsNotEnforceable.
    #[default]
    Require,
    /// It is started, and the condition LimitsEnforced says which limits are not enforced, and why.
    BestEffort,
}

/// One of the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `memory`, bytes.
    Memory,
    /// `cpu`, thousandths of a core.
    Cpu,
    /// `processes`.
    Processes,
    /// `openFiles`.
    OpenFiles,
    /// `ioWeight`.
    IoWeight,
    /// `nice`.
    Nice,
}

impl LimitKind {
    /// The name of the field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Processes => "processes",
            Self::OpenFiles => "openFiles",
            Self::IoWeight => "ioWeight",
            Self::Nice => "nice",
        }
    }

    /// A value as it is written in a manifest.
    pub fn show(self, value: i64) -> String {
        match self {
            Self::Memory => Bytes(value.max(0).cast_unsigned()).to_string(),
            Self::Cpu => Cpu(u32::try_from(value.max(0)).unwrap_or(u32::MAX)).to_string(),
            Self::Processes | Self::OpenFiles | Self::IoWeight | Self::Nice => value.to_string(),
        }
    }

    /// Whether the kernel changes it for what runs.
    pub const fn changes_in_place(self) -> bool {
        match self {
            Self::Memory | Self::Cpu | Self::Processes | Self::IoWeight => true,
            Self::OpenFiles | Self::Nice => false,
        }
    }
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The limits that are set, in the order of the schema.
    pub fn iter(&self) -> impl Iterator<Item = (LimitKind, i64)> {
        let Self { memory, cpu, processes, open_files, io_weight, nice } = self;
        [
            memory.map(|bytes| (LimitKind::Memory, i64::try_from(bytes.0).unwrap_or(i64::MAX))),
            cpu.map(|cpu| (LimitKind::Cpu, i64::from(cpu.0))),
            processes.map(|count| (LimitKind::Processes, i64::from(count))),
            open_files.map(|count| (LimitKind::OpenFiles, i64::from(count))),
            io_weight.map(|weight| (LimitKind::IoWeight, i64::from(weight))),
            nice.map(|nice| (LimitKind::Nice, i64::from(nice))),
        ]
        .into_iter()
        .flatten()
    }
}

impl Resources {
    /// How often what instances use is looked at unless something else is asked for.
    pub const INTERVAL: Span = Span::from_secs(10);

    /// What of it an instance has to be started anew for: which limits there are, and the values of those that the
    /// kernel does not change for what runs. Null when nothing is limited.
    pub fn restarting(&self) -> serde_json::Value {
        let limits = self.limits.in_effect(&self.thresholds, None);
        if limits.is_empty() {
            return serde_json::Value::Null;
        }
        let shape = limits.iter().map(|(kind, value)| {
            (kind.name().to_owned(), if kind.changes_in_place() { true.into() } else { value.into() })
        });
        let mut shape: serde_json::Map<String, serde_json::Value> = shape.collect();
        if self.enforcement != Enforcement::default() {
            shape.insert("enforcement".to_owned(), "BestEffort".into());
        }
        shape.into()
    }
}
