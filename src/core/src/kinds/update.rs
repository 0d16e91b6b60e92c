//! How a changed Process reaches its instances, and what is remembered of that.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ProcessSpec;
use crate::time::{Span, Timestamp};

/// Annotation: rollouts of the process were paused by hand at this time.
pub const PAUSED_AT: &str = "ostler.dev/pausedAt";
/// Annotation: why the spec was changed; kept with the revision. Kubernetes' own.
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// How a change that needs new processes reaches the instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Update {
    /// RollingUpdate, or Recreate.
    pub strategy: Strategy,
    /// How many instances there may be beyond `replicas` while instances are replaced: a number, or a percentage of
    /// `replicas`, rounded up. They get the ordinals after the last one and go when the rollout is over. Impossible with
    /// fixed ports.
    pub max_surge: Amount,
    /// How many instances of `replicas` may be unavailable because they are replaced: a number, or a percentage of
    /// `replicas`, rounded down.
    pub max_unavailable: Amount,
    /// An instance counts as available when it has been ready for so long without a break.
    pub min_ready: Span,
    /// A rollout that makes no progress for so long has failed.
    pub progress_deadline: Span,
    /// A revision that fails (no progress within `progressDeadline`, or an instance that keeps crashing) is taken back:
    /// instances return to the last revision that was rolled out completely. The spec stays; apply another one, or
    /// restart the process to try it again.
    pub auto_rollback: bool,
    /// Only instances with this ordinal or a higher one get a changed spec; the others keep what they have.
    pub partition: u32,
    /// Replace nothing now. Scaling, stops and starts go on.
    pub paused: bool,
}

impl Default for Update {
    fn default() -> Self {
        Self {
            strategy: Strategy::RollingUpdate,
            max_surge: Amount::Count(0),
            max_unavailable: Amount::Count(1),
            min_ready: Span::ZERO,
            progress_deadline: Span::from_secs(600),
            auto_rollback: false,
            partition: 0,
            paused: false,
        }
    }
}

impl Update {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What this means for a number of replicas: surge, and how many may be unavailable. At least one of them is not 0.
    pub fn limits(&self, replicas: u32) -> (u32, u32) {
        match self.strategy {
            Strategy::Recreate => (0, replicas),
            Strategy::RollingUpdate => {
                let surge = self.max_surge.of(replicas, true);
                let unavailable = self.max_unavailable.of(replicas, false).min(replicas);
                // Percentages of few replicas can both come to nothing.
                (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
            }
        }
    }
}

/// Which instances are stopped when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Strategy {
    /// As many at a time as `maxSurge` and `maxUnavailable` allow, the next when those before can be counted on.
    #[default]
    RollingUpdate,
    /// All are stopped before the first new one starts: revisions never run side by side.
    Recreate,
}

/// A number of instances, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a number, or a percentage such as \"25%\"")]
pub enum Amount {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(Percent),
}

impl Amount {
    fn of(self, replicas: u32, up: bool) -> u32 {
        match self {
            Self::Count(count) => count,
            Self::Percent(Percent(percent)) => {
                let hundredths = u64::from(replicas) * u64::from(percent);
                u32::try_from(if up { hundredths.div_ceil(100) } else { hundredths / 100 }).unwrap_or(u32::MAX)
            }
        }
    }

    /// Whether it is nothing whatever the number of replicas.
    pub(crate) fn is_zero(self) -> bool {
        matches!(self, Self::Count(0) | Self::Percent(Percent(0)))
    }

    /// The percentage, if it is one.
    pub(crate) fn percent(self) -> Option<u32> {
        match self {
            Self::Count(_) => None,
            Self::Percent(Percent(percent)) => Some(percent),
        }
    }
}

/// `25%`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(pub u32);

impl TryFrom<String> for Percent {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok());
        percent.map(Self).ok_or_else(|| format!("{text:?} is neither a number nor a percentage such as \"25%\""))
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> Self {
        percent.to_string()
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Percent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Percent".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9]+%$", "description": "A percentage, such as \"25%\"."})
    }
}

/// A rollout that is not complete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rollout {
    /// The revision that is to be everywhere.
    pub revision: String,
    /// The restart request that is to be answered everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<Timestamp>,
    /// Instances have to be replaced for it, and not only made.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replaces: bool,
    /// The furthest it has come: instances renewed, and instances renewed that are available.
    pub progress: u32,
    /// When it last came further; unset while it is not supposed to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progressed_at: Option<Timestamp>,
    /// Why it has failed: ProgressDeadlineExceeded, or CrashLoop.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub failed: String,
    /// What was seen when it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// It was taken back: instances return to `currentRevision`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rolled_back: bool,
}

/// A revision that was declared before the present one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PastRevision {
    /// Counts the revisions of the process, from 1.
    pub number: u64,
    /// Hash of what an instance is made from.
    pub revision: String,
    /// Why it was declared: the annotation kubernetes.io/change-cause at that time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub change_cause: String,
    /// What instances were made from.
    pub template: Arc<ProcessSpec>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_in_kubernetes() {
        let update = |surge: &str, unavailable: &str| -> Update {
            serde_json::from_value(serde_json::json!({"maxSurge": surge, "maxUnavailable": unavailable})).unwrap()
        };
        for (surge, unavailable, replicas, limits) in [
            ("25%", "25%", 10, (3, 2)),
            ("25%", "25%", 1, (1, 0)),
            ("0%", "25%", 3, (0, 1)),
            ("0%", "100%", 4, (0, 4)),
            ("100%", "0%", 4, (4, 0)),
        ] {
            assert_eq!(update(surge, unavailable).limits(replicas), limits, "{surge} {unavailable} {replicas}");
        }
    }

    #[test]
    fn amounts_are_numbers_or_percentages() {
        let read = |json: &str| serde_json::from_str::<Amount>(json);
        assert_eq!(read("3").unwrap(), Amount::Count(3));
        assert_eq!(serde_json::to_string(&read("\"30%\"").unwrap()).unwrap(), "\"30%\"");
        for bad in ["-1", "\"3\"", "\"%\"", "\"x%\"", "1.5", "\"+5%\""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
