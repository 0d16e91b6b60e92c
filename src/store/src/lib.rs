//! One small versioned key space with etcd's habits: get, list, compare-and-swap, watch from a revision.
//!
//! The boundary: keys are paths, values are opaque bytes; what they mean is the callers' business. Nothing is visible,
//! watched or acknowledged before it is persisted as its [`Durability`] says.
//!
//! [`DiskStore`] is the embedded one, on sled. [`check`], [`back_up`] and [`restore`] are for one that is not running.
//! [`MemoryStore`] keeps nothing and is deterministic, for tests and simulation. Both implementations share the index,
//! the history and the rules (`core`); they differ in what persisting means.

pub mod backup;
#[cfg(feature = "conformance")]
pub mod conformance;
mod core;
mod disk;
mod error;
mod memory;
mod types;
mod watch;

pub use crate::core::{DEFAULT_HISTORY, MAX_COMMIT_BYTES, MAX_HISTORY_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES};
pub use crate::disk::{BackupStatus, DiskStore, Occupied, Options, Report, Restored, back_up, check, restore};
pub use crate::error::{BackupError, Error, OpenError};
pub use crate::memory::MemoryStore;
pub use crate::types::{Commit, Durability, Entry, Event, EventKind, Expect, Health, Key, Op, Revision, Snapshot};
pub use crate::watch::{Compacted, Watch, WatchEnded};

use std::path::Path;

/// A versioned key space. Object safe: used as `Arc<dyn Store>`.
///
/// Guarantees, whatever the implementation:
/// - a commit is atomic and moves the one revision by exactly one; an entry's revision is that of the commit that
///   wrote it last; revisions never go back and are never given out twice;
/// - commits submitted by one thread take effect in the order of submission;
/// - what [`get`](Store::get), [`list`](Store::list) and [`watch`](Store::watch) show is persisted, and a caller whose
///   commit was acknowledged sees it in all three.
pub trait Store: Send + Sync + 'static {
    /// The entry at `key`, if there is one. Never touches the disk.
    fn get(&self, key: &Key) -> Option<Entry>;

    /// All entries whose key starts with `prefix`, sorted by key, and the revision they are the state of. Never touches
    /// the disk.
    fn list(&self, prefix: &str) -> Snapshot;

    /// The revision of the last visible commit.
    fn revision(&self) -> Revision;

    /// Submits `ops` to be committed all or none. Never blocks; dropping the returned [`Commit`] does not cancel.
    ///
    /// A commit that changes nothing (no operations, or only deletes of absent keys) returns the current revision; with
    /// [`Durability::Durable`] it still waits until everything before it is durable.
    fn commit(&self, ops: Vec<Op>, durability: Durability) -> Commit;

    /// Every event after revision `from` whose key starts with `prefix`, in order.
    ///
    /// `Compacted` when the history no longer reaches back to `from`, or when `from` was never given out by this store
    /// (it was restored from a backup, say): list again, and watch from that snapshot's revision.
    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted>;

    /// Forgets the oldest events of the history, until the values in it that were overwritten take at most `bytes`. For
    /// quiet times; watches that have not seen what is forgotten end with `Compacted`.
    fn trim_history(&self, bytes: usize);

    /// Whether commits are being taken.
    fn health(&self) -> Health;

    /// Writes a backup of the state as of now into the new file `to`, and returns its revision. Blocks for the disk;
    /// commits go on meanwhile.
    fn backup(&self, to: &Path) -> Result<Revision, BackupError>;

    /// Persists everything submitted so far, makes the final backup where the implementation keeps some, and stops.
    /// Blocks. Afterwards commits fail with [`Error::Closed`] and watches end; reads go on. Closing twice is harmless.
    fn close(&self) -> Result<(), Error>;
}
