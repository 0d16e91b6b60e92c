//! Events: what happened, counted instead of repeated, and bounded.
//!
//! One Event object for each object and reason; a repetition moves its count, time and message. The oldest go when there
//! are too many.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ostler_core::kinds::{Event, ObjectReference};
use ostler_core::object::key;
use ostler_core::plan::Note;
use ostler_core::{Kind, Metadata, Timestamp};
use ostler_store::{Expect, Key, Op, Store};

/// How many Event objects are kept.
const MOST: usize = 4000;

pub(crate) struct Recorder {
    store: Arc<dyn Store>,
    /// Changed since they were last given out for writing.
    pending: HashMap<Key, Event>,
    /// Every event there is, by the time it last happened.
    by_time: BTreeSet<(Timestamp, Key)>,
    times: HashMap<Key, Timestamp>,
}

impl Recorder {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        let mut recorder = Self { pending: HashMap::new(), by_time: BTreeSet::new(), times: HashMap::new(), store };
        for entry in recorder.store.list(&format!("{}/", Kind::Event.plural())).entries {
            if let Ok(event) = serde_json::from_slice::<Event>(&entry.value) {
                recorder.file(entry.key, event.last_timestamp);
            }
        }
        recorder
    }

    fn file(&mut self, key: Key, at: Timestamp) {
        if let Some(before) = self.times.insert(key.clone(), at) {
            self.by_time.remove(&(before, key.clone()));
        }
        self.by_time.insert((at, key));
    }

    /// Takes note of something that happened to an object.
    pub(crate) fn record(&mut self, kind: Kind, metadata: &Metadata, note: Note, now: Timestamp) {
        let namespace = if metadata.namespace.is_empty() { "default" } else { &metadata.namespace };
        let name = format!("{}.{:016x}", metadata.name, hash(&[kind.name(), &metadata.uid, note.reason]));
        let key: Key = key(Kind::Event, namespace, &name).into();
        let known = self.pending.get(&key).cloned();
        let known = known.or_else(|| serde_json::from_slice(&self.store.get(&key)?.value).ok());
        let event = match known {
            Some(mut event) => {
                event.count = event.count.saturating_add(1);
                event.last_timestamp = now;
                event.message = note.message;
                event
            }
            None => Event {
                api_version: Kind::Event.api_version().to_owned(),
                kind: Kind::Event.name().to_owned(),
                metadata: Metadata {
                    name,
                    namespace: namespace.to_owned(),
                    creation_timestamp: Some(now),
                    ..Metadata::default()
                },
                involved_object: ObjectReference {
                    api_version: kind.api_version().to_owned(),
                    kind: kind.name().to_owned(),
                    namespace: metadata.namespace.clone(),
                    name: metadata.name.clone(),
                    uid: metadata.uid.clone(),
                },
                event_type: note.event_type,
                reason: note.reason.to_owned(),
                message: note.message,
                count: 1,
                first_timestamp: now,
                last_timestamp: now,
            },
        };
        self.file(key.clone(), now);
        self.pending.insert(key, event);
    }

    /// The operations that bring the store up to date, at most `most`.
    pub(crate) fn take(&mut self, most: usize) -> Vec<Op> {
        let keys: Vec<Key> = self.pending.keys().take(most).cloned().collect();
        let mut ops = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(event) = self.pending.remove(&key)
                && let Ok(value) = serde_json::to_vec(&event)
            {
                ops.push(Op::put(key, value, Expect::Any));
            }
        }
        if self.pending.is_empty() {
            // A burst makes the table large, and it is empty almost always.
            self.pending = HashMap::new();
        }
        while self.by_time.len() > MOST {
            let Some((_, key)) = self.by_time.pop_first() else { break };
            self.times.remove(&key);
            self.pending.remove(&key);
            ops.retain(|op| *op.key() != key);
            ops.push(Op::delete(key, Expect::Any));
        }
        ops
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}

/// FNV-1a over several words.
pub(crate) fn hash(words: &[&str]) -> u64 {
    words
        .iter()
        .flat_map(|word| word.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
