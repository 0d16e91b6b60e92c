//! Source: a directory whose manifests are kept applied.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Condition;
use crate::meta::Metadata;
use crate::time::{Span, Timestamp};

/// Annotation on what a Source brought: the name of the Source.
pub const SOURCE: &str = "ostler.dev/source";
/// Label on what `ostler apply --set NAME` brought: the name of the set. Kept by Ostler: what a manifest says of it counts
/// for nothing.
pub const SET: &str = "ostler.dev/set";
/// Annotation in manifests of a Source: a whole number; lower waves are applied, and ready, before higher ones.
pub const WAVE: &str = "ostler.dev/wave";
/// Annotation on a Source: a sync was asked for at this time. Behind the time, `allow-prune` and the hash of a revision
/// may follow.
pub const SYNC_REQUESTED_AT: &str = "ostler.dev/syncRequestedAt";
/// Annotation on a Source that `ostler serve --watch` made.
pub const WATCHED: &str = "ostler.dev/watched";
/// The word behind the time in [`SYNC_REQUESTED_AT`] that lifts the limit on deletions for the revision named behind it.
pub const ALLOW_PRUNE: &str = "allow-prune";

/// A directory whose manifests are kept applied, typically a checkout of a Git repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// "ostler.dev/v1".
    pub api_version: String,
    /// "Source".
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What to keep applied, and how.
    pub spec: SourceSpec,
    /// How far that is so. Written by Ostler.
    #[serde(default)]
    pub status: SourceStatus,
}

/// What to keep applied, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceSpec {
    /// The directory, on the machine of the daemon; relative paths are resolved against the directory of the manifest.
    /// Its `.yaml`, `.yml` and `.json` files are read, those of its directories too; what is hidden is skipped, and
    /// directories behind symbolic links are not entered.
    pub path: String,
    /// The namespace of objects that name none; "default" unless given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Changes are noticed at once; so often the directory is looked at in any case. 100ms to 24h.
    #[serde(default = "interval")]
    pub interval: Span,
    /// Whether objects are deleted when they are no longer in the directory: only those that this Source brought, and
    /// never because the directory is empty, missing, unreadable or wrong.
    #[serde(default = "yes")]
    pub prune: bool,
    /// The most objects that one revision may delete: a number, or a share of what the Source has brought ("50%",
    /// rounded down, but at least one). A revision that would delete more is not applied.
    #[serde(default)]
    pub max_deletions: DeletionLimit,
    /// Lifts the limit that `maxDeletions` sets. For a single revision, use `ostler sync --allow-prune`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_prune: bool,
    /// Leaves everything as it is until this is false again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Names of other Sources that have to be Synced and Healthy before a revision of this one is applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// How long the objects of a wave may take to become ready before the revision counts as failed. A wave is made of
    /// the objects with the same number in the annotation `ostler.dev/wave` (0 unless given), and is applied when those
    /// before it are ready. 1s to 24h.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// Whether objects that were changed or deleted by hand are set back. They are reported in any case.
    #[serde(default = "yes")]
    pub heal_drift: bool,
}

fn interval() -> Span {
    Span::from_secs(60)
}

fn timeout() -> Span {
    Span::from_secs(300)
}

fn yes() -> bool {
    true
}

impl SourceSpec {
    /// With every default, for a directory.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            namespace: String::new(),
            interval: interval(),
            prune: true,
            max_deletions: DeletionLimit::default(),
            allow_prune: false,
            suspend: false,
            depends_on: Vec::new(),
            timeout: timeout(),
            heal_drift: true,
        }
    }

    /// The namespace of objects that name none.
    pub fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}

/// A number of objects, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a number, or a percentage such as \"50%\"")]
pub enum DeletionLimit {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Share(Share),
}

impl Default for DeletionLimit {
    fn default() -> Self {
        Self::Share(Share(50))
    }
}

impl DeletionLimit {
    /// How many of `objects` may go.
    pub fn of(self, objects: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            // One object of one may be replaced by another: a share of at least one, or a rename would need a flag.
            Self::Share(Share(percent)) => (objects * percent as usize / 100).max(1),
        }
    }
}

impl fmt::Display for DeletionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Share(Share(percent)) => write!(f, "{percent}%"),
        }
    }
}

/// `50%`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Share(pub u32);

impl TryFrom<String> for Share {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let percent = digits.and_then(|digits| digits.parse().ok()).filter(|percent| *percent <= 100);
        percent.map(Self).ok_or_else(|| format!("{text:?} is neither a number nor a percentage up to \"100%\""))
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        format!("{}%", share.0)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Share {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Share".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^(100|[0-9]{1,2})%$", "description": "A percentage, such as \"50%\"."})
    }
}

/// How far the directory and what runs agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SourceStatus {
    /// The generation that the rest of the status speaks of.
    pub observed_generation: u64,
    /// Whether what is declared is what the directory says.
    pub sync: SyncState,
    /// Whether what was brought does what it should.
    pub health: HealthState,
    /// How many objects the Source has brought.
    pub objects: u32,
    /// What is in the directory now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<SourceRevision>,
    /// What was last tried to apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempted_revision: Option<SourceRevision>,
    /// When that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempted_at: Option<Timestamp>,
    /// What is in force: the last revision that was applied as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_applied_revision: Option<SourceRevision>,
    /// When it was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_applied_at: Option<Timestamp>,
    /// The sync by hand that was last carried out, by the time it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_sync: Option<Timestamp>,
    /// Objects that are not as the directory says, the first twenty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<String>,
    /// Synced, Healthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What a directory holds at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SourceRevision {
    /// SHA-256 over names and content of the manifests.
    pub hash: String,
    /// The commit that is checked out, in a Git repository. Changes that are not committed are in the hash only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// The branch that is checked out; empty when there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub branch: String,
}

impl SourceRevision {
    /// For tables and messages: `main@1a2b3c4d5e6f`, or the beginning of the hash.
    pub fn short(&self) -> String {
        let cut = |text: &str| text.chars().take(12).collect::<String>();
        if self.commit.is_empty() {
            return cut(&self.hash);
        }
        if self.branch.is_empty() { cut(&self.commit) } else { format!("{}@{}", self.branch, cut(&self.commit)) }
    }
}

/// Whether what is declared is what the directory says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum SyncState {
    /// It has not been looked at yet.
    #[default]
    Unknown,
    /// It is.
    Synced,
    /// It is not; the condition Synced says why.
    OutOfSync,
}

impl SyncState {
    /// The word in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Synced => "Synced",
            Self::OutOfSync => "OutOfSync",
        }
    }
}

/// Whether objects do what they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HealthState {
    /// They do.
    Healthy,
    /// They are on their way.
    #[default]
    Progressing,
    /// Something failed, or is missing.
    Degraded,
}

impl HealthState {
    /// The word in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Progressing => "Progressing",
            Self::Degraded => "Degraded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_was_brought_may_go_and_one_always() {
        let half = DeletionLimit::default();
        for (objects, most) in [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (10, 5), (10_000, 5000)] {
            assert_eq!(half.of(objects), most, "{objects}");
        }
        assert_eq!(DeletionLimit::Count(0).of(10), 0);
        assert_eq!(DeletionLimit::Count(3).of(1), 3);
    }

    #[test]
    fn limits_are_numbers_or_percentages() {
        let read = |text: &str| serde_json::from_str::<DeletionLimit>(text);
        assert_eq!(read("3").unwrap(), DeletionLimit::Count(3));
        assert_eq!(read("\"25%\"").unwrap(), DeletionLimit::Share(Share(25)));
        for wrong in ["-1", "\"25\"", "\"101%\"", "\"x%\"", "0.5"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn revisions_are_shown_by_branch_and_commit_where_there_are_any() {
        let revision = |commit: &str, branch: &str| SourceRevision {
            hash: "0123456789abcdef".to_owned(),
            commit: commit.to_owned(),
            branch: branch.to_owned(),
        };
        assert_eq!(revision("", "").short(), "0123456789ab");
        assert_eq!(revision("fedcba9876543210", "").short(), "fedcba987654");
        assert_eq!(revision("fedcba9876543210", "main").short(), "main@fedcba987654");
    }
}
