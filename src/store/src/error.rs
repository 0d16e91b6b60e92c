//! What can go wrong, said so that a person knows what, where, why and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{Expect, Key, Revision};

/// Why a commit did not take effect.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A precondition does not hold: read again, decide again, retry. Nothing of the commit took effect.
    #[error("{key} is not what was expected: expected {expected}, found {}", found.map_or_else(|| "no entry".to_owned(), |r| format!("revision {r}")))]
    Conflict {
        /// The first operation's key whose precondition failed.
        key: Key,
        /// What was required.
        expected: Expect,
        /// The revision of the entry that is there, if any.
        found: Option<Revision>,
    },
    /// A value or the whole commit exceeds its limit; retrying will not help.
    #[error("{what} is too large: {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The key of the value, or "the commit".
        what: String,
        /// In bytes.
        size: usize,
        /// In bytes.
        limit: usize,
    },
    /// A malformed key, or the same key twice in one commit; retrying will not help.
    #[error("{key} {why}")]
    Invalid {
        /// The key that is at fault.
        key: Key,
        /// A predicate: "is not …".
        why: &'static str,
    },
    /// The disk does not take writes. The commit is not visible and was not acknowledged; if this very commit met the
    /// error and the daemon crashes before the disk recovers, it may still appear after the next start. Retry later.
    #[error("the store is read-only until the disk takes writes again: {why}")]
    ReadOnly {
        /// What failed.
        why: Arc<str>,
    },
    /// The store was closed, the daemon is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// Whether the same commit could succeed later, unchanged.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::ReadOnly { .. } => true,
            Self::Conflict { .. } | Self::TooLarge { .. } | Self::Invalid { .. } | Self::Closed => false,
        }
    }
}

/// Why a store directory could not be opened, checked or restored into.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files do not hold what was acknowledged. Nothing in the directory was changed by finding out.
    #[error(
        "the store in {} is damaged: {why}; nothing was changed. {}",
        dir.display(),
        newest_backup.as_ref().map_or_else(
            || "No good backup was found.".to_owned(),
            |backup| format!("The newest good backup is {}; restore it with `ostler store restore`, which keeps the damaged files.", backup.display())
        )
    )]
    Damaged {
        /// The store directory.
        dir: PathBuf,
        /// What was found wrong.
        why: String,
        /// The newest backup that verifies, if any.
        newest_backup: Option<PathBuf>,
    },
    /// Another process has the store open.
    #[error("the store in {} is in use by another process; stop that one first", dir.display())]
    Locked {
        /// The store directory.
        dir: PathBuf,
    },
    /// The directory was written by a newer version.
    #[error(
        "the store in {} has format {found}, this version reads up to {supported}; use the newer version that wrote it",
        dir.display()
    )]
    Format {
        /// The store directory.
        dir: PathBuf,
        /// The format that was found.
        found: u32,
        /// The newest that is understood.
        supported: u32,
    },
    /// There is no store.
    #[error("there is no store in {}", dir.display())]
    Missing {
        /// The directory that was looked at.
        dir: PathBuf,
    },
    /// A restore would overwrite something.
    #[error("{} is not empty; a restore never overwrites: move it aside first, or ask for it to be moved", dir.display())]
    Occupied {
        /// The directory that is in the way.
        dir: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// A verb: "read", "create".
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The backup to restore from is unusable.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

/// Why a backup could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// A verb: "read", "create".
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file is not a complete, intact backup.
    #[error("{} is not a good backup: {why} (line {line})", path.display())]
    Damaged {
        /// The backup.
        path: PathBuf,
        /// What was found wrong.
        why: String,
        /// Where, counted from 1.
        line: usize,
    },
    /// The backup was written by a newer version.
    #[error("{} has backup format {found}, this version reads up to {supported}", path.display())]
    Format {
        /// The backup.
        path: PathBuf,
        /// The format that was found.
        found: u32,
        /// The newest that is understood.
        supported: u32,
    },
}
