//! Watches: cursors into the history. A slow watcher holds nothing and slows nobody; it is told to list again.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::core::Shared;
use crate::{Event, Revision};

/// The history does not connect to the asked-for revision: list again, and watch from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events after revision {from} are not available, only those after {oldest} up to {newest}: list again")]
pub struct Compacted {
    /// The revision that was asked for.
    pub from: Revision,
    /// The oldest revision that could be watched from.
    pub oldest: Revision,
    /// The store's current revision.
    pub newest: Revision,
}

/// Why a watch yields no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnded {
    /// The watcher was too slow for the history's length.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The store was closed, and every event has been delivered.
    #[error("the store is closed")]
    Closed,
}

/// A cursor into the history. Created by [`Store::watch`](crate::Store::watch).
pub struct Watch {
    shared: Arc<Shared>,
    changed: watch::Receiver<()>,
    prefix: Box<str>,
    /// Everything up to here was delivered or does not match.
    seen: Revision,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, changed: watch::Receiver<()>, prefix: Box<str>, from: Revision) -> Self {
        Self { shared, changed, prefix, seen: from }
    }

    /// Waits for events and returns all that are ready, at least one, in order.
    ///
    /// Cancel-safe: when the future is dropped before it is ready, no event is lost. After an error every further call
    /// fails alike.
    pub async fn next(&mut self) -> Result<Vec<Event>, WatchEnded> {
        loop {
            self.changed.mark_unchanged();
            if let Some(events) = self.ready()? {
                return Ok(events);
            }
            // The sender lives in `shared`, which we hold, so this cannot fail.
            if self.changed.changed().await.is_err() {
                return Err(WatchEnded::Closed);
            }
        }
    }

    /// Like [`next`](Self::next) without waiting: `None` when no event is ready.
    pub fn try_next(&mut self) -> Result<Option<Vec<Event>>, WatchEnded> {
        self.ready()
    }

    /// The revision up to which every matching event has been delivered; moves on without events, too.
    pub fn revision(&self) -> Revision {
        self.seen
    }

    fn ready(&mut self) -> Result<Option<Vec<Event>>, WatchEnded> {
        let state = self.shared.read();
        let events = state.events_after(&self.prefix, self.seen)?;
        self.seen = state.revision;
        if !events.is_empty() {
            return Ok(Some(events));
        }
        if state.closed {
            return Err(WatchEnded::Closed);
        }
        Ok(None)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.prefix).field("seen", &self.seen).finish_non_exhaustive()
    }
}
