//! CronJob: makes a Job whenever its schedule says so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{JobSpec, ObjectReference};
use crate::meta::Metadata;
use crate::time::{Span, Timestamp};

/// Annotation of a Job: the time of the schedule it was made for.
pub const SCHEDULED_AT: &str = "ostler.dev/scheduledAt";
/// Annotation of a Job: the CronJob it was made from by hand.
pub const INSTANTIATED_FROM: &str = "ostler.dev/instantiatedFrom";

/// Makes a Job whenever its schedule says so. What was missed while the daemon was away is caught up on with one Job,
/// however much it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CronJob {
    /// "ostler.dev/v1".
    pub api_version: String,
    /// "CronJob".
    pub kind: String,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// When, and what.
    pub spec: CronJobSpec,
    /// What came of it. Written by Ostler.
    #[serde(default)]
    pub status: CronJobStatus,
}

/// When, and what. One of `schedule`, `every` and `once` is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CronJobSpec {
    /// A cron pattern: minute, hour, day of month, month, day of week, such as "*/5 8-18 * * MON-FRI"; with six fields
    /// the first one is the second. Also @hourly, @daily, @weekly, @monthly, @yearly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Time zone of `schedule`, such as "Europe/Berlin"; that of the machine unless given. A fixed time of day that a
    /// change to summer time skips runs right after it; one that a change back repeats runs once. Patterns with
    /// several times follow the clock on the wall: skipped times do not run, repeated ones run twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Again and again with this time between the starts, at least 1s; the first one so long after it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// Once, at this time. A time before the creation never comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<Timestamp>,
    /// What happens when a Job of it still runs at the next time.
    #[serde(default)]
    pub concurrency_policy: ConcurrencyPolicy,
    /// A Job that cannot be started within this time of its schedule, because the daemon was away or an earlier one
    /// still ran, is not started at all; unless given, it is however late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_deadline: Option<Span>,
    /// While true, no Jobs are made; what runs goes on. Left out when applying to an existing CronJob: as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// How many Jobs that succeeded are kept; 3 unless given.
    #[serde(default = "three")]
    pub successful_jobs_history_limit: u32,
    /// How many Jobs that failed are kept; 1 unless given.
    #[serde(default = "one")]
    pub failed_jobs_history_limit: u32,
    /// What the Jobs are made from.
    pub job_template: JobTemplateSpec,
}

fn three() -> u32 {
    3
}

fn one() -> u32 {
    1
}

/// What the Jobs are made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobTemplateSpec {
    /// Labels and annotations of the Jobs.
    #[serde(default, skip_serializing_if = "JobTemplateMetadata::is_empty")]
    pub metadata: JobTemplateMetadata,
    /// Their spec.
    pub spec: JobSpec,
}

/// Labels and annotations of the Jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JobTemplateMetadata {
    /// Key-value pairs to select objects by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Key-value pairs for tools and people.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl JobTemplateMetadata {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// What happens when a Job still runs at the next time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ConcurrencyPolicy {
    /// The next one is started beside it.
    #[default]
    Allow,
    /// The next one waits for its end, at most for `startingDeadline`; several that wait are one.
    Forbid,
    /// It is deleted, and the next one is started when it is gone.
    Replace,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CronJobStatus {
    /// The generation that the rest of the status speaks of.
    pub observed_generation: u64,
    /// The Jobs that run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub active: Vec<ObjectReference>,
    /// The time of the schedule that the last Job was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Timestamp>,
    /// When a Job last completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Timestamp>,
    /// The next time of the schedule; none while suspended, or when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_schedule_time: Option<Timestamp>,
}

impl CronJobSpec {
    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.suspend.unwrap_or(false)
    }
}
