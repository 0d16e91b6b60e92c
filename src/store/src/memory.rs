//! The store that keeps nothing: for tests and simulation.
//!
//! Deterministic: a commit takes effect inside the call and is ready at once; no thread, no clock. Durabilities are
//! all alike.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::{DEFAULT_HISTORY, Index, Shared, Staging, validate};
use crate::{
    BackupError, Commit, Compacted, Durability, Entry, Error, Health, Key, Op, Revision, Snapshot, Store, Watch, backup,
};

/// A [`Store`] in memory only.
pub struct MemoryStore {
    shared: Arc<Shared>,
    /// Held from deciding to publishing, so that commits take effect one after the other.
    committing: Mutex<()>,
}

impl MemoryStore {
    /// An empty store at revision 0.
    pub fn new() -> Self {
        Self::with_history(DEFAULT_HISTORY)
    }

    /// An empty store whose history holds `events` events.
    pub fn with_history(events: usize) -> Self {
        Self { shared: Shared::new(Index::new(), 0, events), committing: Mutex::new(()) }
    }

    fn commit_now(&self, ops: Vec<Op>) -> Result<Revision, Error> {
        validate(&ops)?;
        let _one_at_a_time = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.shared.read();
        if state.closed {
            return Err(Error::Closed);
        }
        let mut staging = Staging::on(&state);
        let revision = staging.stage(ops)?;
        let staged = staging.finish();
        drop(state);
        self.shared.publish(staged);
        Ok(revision)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.shared.get(key)
    }

    fn list(&self, prefix: &str) -> Snapshot {
        self.shared.list(prefix)
    }

    fn revision(&self) -> Revision {
        self.shared.read().revision
    }

    fn commit(&self, ops: Vec<Op>, _: Durability) -> Commit {
        Commit::known(self.commit_now(ops))
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        self.shared.watch(prefix, from)
    }

    fn trim_history(&self, bytes: usize) {
        self.shared.trim_history(bytes);
    }

    fn health(&self) -> Health {
        Health::Ok
    }

    fn backup(&self, to: &Path) -> Result<Revision, BackupError> {
        backup::write(&self.shared.list(""), to)
    }

    fn close(&self) -> Result<(), Error> {
        self.shared.close();
        Ok(())
    }
}
