//! The rules that all implementations share: preconditions, revisions, the index and the history.
//!
//! Pure apart from waking watchers. A commit goes through two steps so that an implementation can persist in between:
//! [`Staging`] decides on top of the visible state without changing it; [`Shared::publish`] makes the result visible.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{Compacted, Entry, Error, Event, EventKind, Expect, Key, Op, Revision, Snapshot, Watch};

/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// The most that the values of one commit may add up to, in bytes.
pub const MAX_COMMIT_BYTES: usize = 16 << 20;
/// How many events the history holds unless told otherwise.
pub const DEFAULT_HISTORY: usize = 2048;

/// How many bytes of overwritten values the history holds at most, whatever the number of events: memory is for what is
/// true now.
pub const MAX_HISTORY_BYTES: usize = 1 << 20;
/// The history is never cut below so many events for the sake of bytes.
const MIN_HISTORY: usize = 64;

/// An entry without its key, as the index holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    pub(crate) revision: Revision,
}

pub(crate) type Index = BTreeMap<Key, Stored>;

/// The visible state.
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) revision: Revision,
    pub(crate) closed: bool,
    ring: VecDeque<Event>,
    capacity: usize,
    /// Bytes of values in the ring that later commits have overwritten.
    overwritten: usize,
    /// The ring holds every event after this revision.
    floor: Revision,
}

impl State {
    /// `Ok` with all events after `after` that match, or `Err` when some of them are gone.
    pub(crate) fn events_after(&self, prefix: &str, after: Revision) -> Result<Vec<Event>, Compacted> {
        if after < self.floor || after > self.revision {
            return Err(Compacted { from: after, oldest: self.floor, newest: self.revision });
        }
        let start = self.ring.partition_point(|event| event.revision <= after);
        Ok(self.ring.range(start..).filter(|event| event.key.as_str().starts_with(prefix)).cloned().collect())
    }

    fn remember(&mut self, event: Event) {
        self.overwritten += prior_bytes(&event);
        // Room first: a ring that goes over its capacity for a moment doubles. The commit itself stays whole, or who
        // lists just before a large one could never watch.
        let newest = event.revision;
        self.forget(|state, oldest| {
            oldest.revision < newest
                && (state.ring.len() >= state.capacity
                    || (state.overwritten > MAX_HISTORY_BYTES && state.ring.len() >= MIN_HISTORY))
        });
        self.ring.push_back(event);
    }

    /// Forgets the oldest event as long as it is to be.
    fn forget(&mut self, is_due: impl Fn(&Self, &Event) -> bool) {
        while self.ring.front().is_some_and(|oldest| is_due(self, oldest)) {
            if let Some(dropped) = self.ring.pop_front() {
                self.overwritten -= prior_bytes(&dropped);
                self.floor = dropped.revision;
            }
        }
    }
}

/// The value that an event took the place of: nobody else holds it any more.
fn prior_bytes(event: &Event) -> usize {
    event.prior.as_ref().map_or(0, Bytes::len)
}

/// The visible state and those who wait for it to change.
pub(crate) struct Shared {
    state: RwLock<State>,
    changed: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(index: Index, revision: Revision, history: usize) -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(State {
                index,
                revision,
                closed: false,
                ring: VecDeque::new(),
                capacity: history,
                overwritten: 0,
                floor: revision,
            }),
            changed: watch::Sender::new(()),
        })
    }

    /// Readers never run foreign code under the lock, so a poisoned lock still guards a whole state.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Entry> {
        self.read().index.get(key).map(|stored| entry(key, stored))
    }

    pub(crate) fn list(&self, prefix: &str) -> Snapshot {
        let state = self.read();
        let entries = state
            .index
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .map(|(key, stored)| entry(key, stored))
            .collect();
        Snapshot { entries, revision: state.revision }
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        // Subscribing first: a change between the check and the subscription would wake nobody.
        let changed = self.changed.subscribe();
        self.read().events_after(prefix, from)?;
        Ok(Watch::new(Arc::clone(self), changed, prefix.into(), from))
    }

    /// Makes staged events visible, in order, and wakes the watchers.
    pub(crate) fn publish(&self, staged: Staged) {
        if staged.events.is_empty() {
            return;
        }
        let mut state = self.write();
        for event in staged.events {
            match &event.kind {
                EventKind::Put(value) => {
                    let stored = Stored { value: value.clone(), revision: event.revision };
                    state.index.insert(event.key.clone(), stored);
                }
                EventKind::Delete => {
                    state.index.remove(&event.key);
                }
            }
            state.remember(event);
        }
        state.revision = staged.revision;
        drop(state);
        self.changed.send_replace(());
    }

    /// Forgets old events, until overwritten values of at most `bytes` are left.
    pub(crate) fn trim_history(&self, bytes: usize) {
        let mut state = self.write();
        state.forget(|state, _| state.overwritten > bytes);
        state.ring.shrink_to_fit();
    }

    /// Ends all watches. Returns false when it was closed already.
    pub(crate) fn close(&self) -> bool {
        let was_open = !std::mem::replace(&mut self.write().closed, true);
        self.changed.send_replace(());
        was_open
    }
}

fn entry(key: &Key, stored: &Stored) -> Entry {
    Entry { key: key.clone(), value: stored.value.clone(), revision: stored.revision }
}

/// Refuses what no state could make acceptable, before it is queued.
pub(crate) fn validate(ops: &[Op]) -> Result<(), Error> {
    let mut total = 0;
    let mut seen = HashSet::with_capacity(ops.len());
    for op in ops {
        let key = op.key();
        if let Some(why) = key.flaw() {
            return Err(Error::Invalid { key: key.clone(), why });
        }
        // One event per key and revision, whatever the order of checks: as in an etcd transaction.
        if !seen.insert(key) {
            return Err(Error::Invalid { key: key.clone(), why: "is changed twice in one commit" });
        }
        if let Op::Put { value, .. } = op {
            total += value.len();
            if value.len() > MAX_VALUE_BYTES {
                return Err(Error::TooLarge { what: key.to_string(), size: value.len(), limit: MAX_VALUE_BYTES });
            }
        }
    }
    if total > MAX_COMMIT_BYTES {
        return Err(Error::TooLarge { what: "the commit".to_owned(), size: total, limit: MAX_COMMIT_BYTES });
    }
    Ok(())
}

/// What a group of commits will change once persisted.
pub(crate) struct Staged {
    /// In order of submission.
    pub(crate) events: Vec<Event>,
    /// The revision after the last of them.
    pub(crate) revision: Revision,
}

/// Decides commits one after the other, each against the visible state plus the commits staged before it.
pub(crate) struct Staging<'a> {
    state: &'a State,
    /// What the staged commits left at each key they touched.
    overlay: HashMap<Key, Option<Stored>>,
    staged: Staged,
}

impl<'a> Staging<'a> {
    pub(crate) fn on(state: &'a State) -> Self {
        Self { state, overlay: HashMap::new(), staged: Staged { events: Vec::new(), revision: state.revision } }
    }

    fn current(&self, key: &Key) -> Option<&Stored> {
        match self.overlay.get(key) {
            Some(staged) => staged.as_ref(),
            None => self.state.index.get(key),
        }
    }

    /// Stages one validated commit and returns the revision it will have; a failed precondition stages nothing.
    pub(crate) fn stage(&mut self, ops: Vec<Op>) -> Result<Revision, Error> {
        for op in &ops {
            let found = self.current(op.key()).map(|stored| stored.revision);
            let holds = match op.expect() {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Revision(revision) => found == Some(revision),
            };
            if !holds {
                return Err(Error::Conflict { key: op.key().clone(), expected: op.expect(), found });
            }
        }
        let revision = self.staged.revision + 1;
        let before = self.staged.events.len();
        for op in ops {
            let prior = self.current(op.key()).map(|stored| stored.value.clone());
            let (key, kind) = match op {
                // A copy of its own: the caller's bytes may be a slice that keeps a whole network frame alive.
                Op::Put { key, value, .. } => (key, EventKind::Put(Bytes::copy_from_slice(&value))),
                Op::Delete { .. } if prior.is_none() => continue,
                Op::Delete { key, .. } => (key, EventKind::Delete),
            };
            let left = match &kind {
                EventKind::Put(value) => Some(Stored { value: value.clone(), revision }),
                EventKind::Delete => None,
            };
            self.overlay.insert(key.clone(), left);
            self.staged.events.push(Event { key, revision, kind, prior });
        }
        if self.staged.events.len() > before {
            self.staged.revision = revision;
        }
        Ok(self.staged.revision)
    }

    pub(crate) fn finish(self) -> Staged {
        self.staged
    }
}
