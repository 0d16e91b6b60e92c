//! Which files a process is restarted for, or told of, when they change.

use serde::{Deserialize, Serialize};

use crate::time::{Span, Timestamp};

/// Annotation: why the instances were asked to restart, as the time of `ostler.dev/restartedAt`, a space, a reason, a
/// colon and a sentence. It is about that restart only: with another time it means nothing.
pub const RESTART_CAUSE: &str = "ostler.dev/restartCause";
/// Annotation: when the restart of this time is complete, the processes that depend on this one are restarted, each when
/// those it depends on are ready again.
pub const RESTART_CASCADE: &str = "ostler.dev/restartCascade";

/// Condition of a Process with `watch`: its files are watched.
pub const FILES_WATCHED: &str = "FilesWatched";

/// Files whose change restarts the instances or is told to them. What counts is the content: neither a new time of change
/// nor a save that changes nothing does anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileWatch {
    /// Files, and directories with everything below them; relative ones are in `workingDir`. They need not exist yet.
    pub paths: Vec<String>,
    /// Only files that match one of these patterns count; every file unless given. A pattern without a slash is about
    /// names, at any depth; one with a slash about paths below each of `paths`. `*`, `?`, `**`, `[a-z]` and `{a,b}` mean
    /// what they do in shells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Files that match one of these patterns do not count, nor does what is in a directory that matches. Directories of
    /// version control (.git, .hg, .svn) and what editors leave behind while a file is open never count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// A change counts when nothing has changed for so long, so that a burst of saves is one change. Where something
    /// changes all the time, it counts after 20 times as long, at least 10s.
    #[serde(default = "half_a_second")]
    pub debounce: Span,
    /// What a change leads to.
    #[serde(default)]
    pub action: WatchAction,
    /// The signal for `action: Signal`; SIGHUP unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// After a restart, processes that depend on this one (`dependsOn`) are restarted too, in their order, each when those
    /// before it are ready again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cascade: bool,
}

const fn half_a_second() -> Span {
    Span::from_millis(500)
}

/// What a change of a watched file leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum WatchAction {
    /// A restart like one by hand: the instances one after the other, as `update` says.
    #[default]
    Restart,
    /// The main process of each running instance gets `signal`.
    Signal,
}

impl FileWatch {
    /// The signal that tells of a change.
    pub fn signal(&self) -> &str {
        self.signal.as_deref().unwrap_or("SIGHUP")
    }

    /// Identifies what is watched: what is known of other files does not count.
    pub fn identity(&self, working_dir: &str) -> String {
        let Self { paths, include, exclude, debounce: _, action: _, signal: _, cascade: _ } = self;
        let text = serde_json::json!([working_dir, paths, include, exclude]).to_string();
        format!("{:016x}", super::process::hash(text.as_bytes()))
    }
}

/// What is known of the files of `watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WatchStatus {
    /// Identifies what is watched.
    pub watches: String,
    /// Hash of the names and the content of all files when a change last counted.
    pub fingerprint: String,
    /// How many files that were.
    pub files: u32,
    /// The file that changed last, or the first of several.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub changed_path: String,
    /// When that was acted upon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
}
