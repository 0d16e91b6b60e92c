//! Why a keeper cannot start.

use std::io;
use std::path::PathBuf;

/// A keeper could not start, or a state could not be taken over. Nothing was started or signalled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the state directory cannot be used.
    #[error(
        "cannot {action} {}: {source}; the daemon needs a state directory that it can write to (--state-dir)",
        path.display()
    )]
    State {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A means of the kernel that the keeper cannot do without.
    #[error("cannot {action}: {source}; the keeper needs Linux 5.4 or newer with /proc mounted")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kind of cgroup that was asked for cannot be used.
    #[error("cgroup {wanted} was asked for but cannot be used: {why}; use `auto`, or delegate a writable cgroup")]
    Cgroup {
        /// `v2` or `v1`.
        wanted: &'static str,
        /// What was tried where.
        why: String,
    },
    /// The state of another keeper cannot be taken over.
    #[error("cannot take over the state of another keeper: {why}")]
    Takeover {
        /// What is not understood.
        why: String,
    },
}
