//! Events: what happened, counted instead of repeated, and bounded.
//!
//! One Event object for each object and reason; a repetition moves its count, time and message. The oldest go when there
//! are too many, of one object or in all. The history belongs to the name: an object that is made anew goes on with it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ostler_core::kinds::{Event, ObjectReference};
use ostler_core::object::key;
use ostler_core::plan::Note;
use ostler_core::{Kind, Metadata, Timestamp, Topic};
use ostler_store::{Expect, Key, Op, Store};

/// How many Event objects are kept.
const MOST: usize = 4000;

/// How many of them may be about one object.
const MOST_OF_ONE: usize = 64;

pub(crate) struct Recorder {
    store: Arc<dyn Store>,
    /// Changed since they were last given out for writing.
    pending: HashMap<Key, Event>,
    /// To be deleted from the store.
    surplus: HashSet<Key>,
    /// Every event there is, by the time it last happened.
    by_time: BTreeSet<(Timestamp, Key)>,
    filed: HashMap<Key, Filed>,
    /// The events about an object, by the hash of what it is.
    by_object: HashMap<u64, Vec<Key>>,
}

/// What is known of an event without reading it.
#[derive(Clone, Copy)]
struct Filed {
    at: Timestamp,
    /// How often it happened: what is on its way to the store cannot be read there yet.
    count: u32,
    object: u64,
}

impl Recorder {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        let mut recorder = Self {
            pending: HashMap::new(),
            surplus: HashSet::new(),
            by_time: BTreeSet::new(),
            filed: HashMap::new(),
            by_object: HashMap::new(),
            store,
        };
        for entry in recorder.store.list(&format!("{}/", Kind::Event.plural())).entries {
            if let Ok(event) = serde_json::from_slice::<Event>(&entry.value) {
                let about = &event.involved_object;
                let object = hash(&[&about.kind, &about.namespace, &about.name]);
                recorder.file(&entry.key, Filed { at: event.last_timestamp, count: event.count, object });
            }
        }
        recorder
    }

    fn file(&mut self, key: &Key, filed: Filed) {
        self.surplus.remove(key);
        match self.filed.insert(key.clone(), filed) {
            Some(before) => {
                self.by_time.remove(&(before.at, key.clone()));
            }
            None => self.by_object.entry(filed.object).or_default().push(key.clone()),
        }
        self.by_time.insert((filed.at, key.clone()));
        let of_one = self.by_object.get(&filed.object).filter(|keys| keys.len() > MOST_OF_ONE);
        let oldest = of_one.and_then(|keys| keys.iter().min_by_key(|key| self.filed.get(*key).map(|filed| filed.at)));
        if let Some(oldest) = oldest.cloned() {
            self.drop_event(oldest);
        }
        while self.by_time.len() > MOST {
            let Some((_, oldest)) = self.by_time.first().cloned() else { break };
            self.drop_event(oldest);
        }
    }

    fn drop_event(&mut self, key: Key) {
        if let Some(filed) = self.filed.remove(&key) {
            self.by_time.remove(&(filed.at, key.clone()));
            if let Some(keys) = self.by_object.get_mut(&filed.object) {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    self.by_object.remove(&filed.object);
                }
            }
        }
        self.pending.remove(&key);
        self.surplus.insert(key);
    }

    /// Takes note of something that happened to an object.
    pub(crate) fn record(&mut self, kind: Kind, metadata: &Metadata, note: Note, now: Timestamp) {
        let namespace = if metadata.namespace.is_empty() { "default" } else { &metadata.namespace };
        let name = format!("{}.{:016x}", metadata.name, hash(&[kind.name(), &metadata.uid, note.reason]));
        let key: Key = key(Kind::Event, namespace, &name).into();
        let topic = Topic::of(kind, note.reason);
        if let Some(metrics) = ostler_telemetry::metrics() {
            metrics.event(topic.name(), note.reason);
        }
        let before = self.filed.get(&key).map_or(0, |filed| filed.count);
        let known = if before == 0 { None } else { self.pending.get(&key).cloned() };
        let known = match known {
            None if before > 0 => self.store.get(&key).and_then(|entry| serde_json::from_slice(&entry.value).ok()),
            known => known,
        };
        let count = before.saturating_add(1);
        let event = match known {
            Some(event) => Event { count, last_timestamp: now, message: note.message, topic, ..event },
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
                topic,
                message: note.message,
                count,
                first_timestamp: now,
                last_timestamp: now,
            },
        };
        self.pending.insert(key.clone(), event);
        let object = hash(&[kind.name(), &metadata.namespace, &metadata.name]);
        self.file(&key, Filed { at: now, count, object });
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
        ops.extend(std::mem::take(&mut self.surplus).into_iter().map(|key| Op::delete(key, Expect::Any)));
        ops
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.surplus.is_empty()
    }
}

/// FNV-1a over several words.
pub(crate) fn hash(words: &[&str]) -> u64 {
    words
        .iter()
        .flat_map(|word| word.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ostler_core::kinds::EventType;
    use ostler_store::{Durability, MemoryStore};

    fn note(reason: &'static str) -> Note {
        Note { event_type: EventType::Normal, reason, message: "so it is".to_owned() }
    }

    fn metadata(name: &str, uid: &str) -> Metadata {
        Metadata { name: name.to_owned(), namespace: "default".to_owned(), uid: uid.to_owned(), ..Metadata::default() }
    }

    fn store() -> Arc<dyn Store> {
        Arc::new(MemoryStore::new())
    }

    /// Writes what is to be written, in pieces of `most`.
    fn flush(recorder: &mut Recorder, most: usize) {
        while !recorder.is_idle() {
            let ops = recorder.take(most);
            recorder.store.commit(ops, Durability::Lazy).wait_blocking().unwrap();
        }
    }

    fn events(store: &Arc<dyn Store>) -> Vec<Event> {
        let entries = store.list("events/").entries;
        entries.iter().map(|entry| serde_json::from_slice(&entry.value).unwrap()).collect()
    }

    #[test]
    fn repetitions_are_counted_also_while_a_write_is_under_way_and_after_a_restart() {
        let store = store();
        let mut recorder = Recorder::new(Arc::clone(&store));
        let at = Timestamp::from_micros;
        recorder.record(Kind::Instance, &metadata("web-0", "u"), note("Crashed"), at(1));
        flush(&mut recorder, 10);
        recorder.record(Kind::Instance, &metadata("web-0", "u"), note("Crashed"), at(2));
        let under_way = recorder.take(10);
        recorder.record(Kind::Instance, &metadata("web-0", "u"), note("Crashed"), at(3));
        store.commit(under_way, Durability::Lazy).wait_blocking().unwrap();
        flush(&mut recorder, 10);
        let mut recorder = Recorder::new(Arc::clone(&store));
        recorder.record(Kind::Instance, &metadata("web-0", "u"), note("Crashed"), at(4));
        flush(&mut recorder, 10);
        let [event] = &events(&store)[..] else { panic!("one object and reason is one event") };
        assert_eq!((event.count, event.first_timestamp, event.last_timestamp), (4, at(1), at(4)));
        assert_eq!(event.topic, Topic::Restart);
    }

    #[test]
    fn of_one_object_the_latest_are_kept_and_others_lose_nothing() {
        let store = store();
        let mut recorder = Recorder::new(Arc::clone(&store));
        recorder.record(Kind::Instance, &metadata("quiet-0", "q"), note("Started"), Timestamp::from_micros(0));
        for n in 0..100 {
            let now = Timestamp::from_micros(1 + n);
            recorder.record(Kind::Instance, &metadata("web-0", &format!("uid-{n}")), note("Started"), now);
            if n % 7 == 0 {
                flush(&mut recorder, 3);
            }
        }
        flush(&mut recorder, 3);
        let events = events(&store);
        let of = |name: &str| events.iter().filter(|event| event.involved_object.name == name).collect::<Vec<_>>();
        assert_eq!((of("quiet-0").len(), of("web-0").len()), (1, MOST_OF_ONE));
        assert!(of("web-0").iter().all(|event| event.first_timestamp > Timestamp::from_micros(36)));
        assert_eq!(recorder.filed.len(), MOST_OF_ONE + 1);
        assert_eq!(recorder.by_object.values().map(Vec::len).sum::<usize>(), MOST_OF_ONE + 1);
    }

    #[test]
    fn there_are_never_more_than_the_bound_and_the_oldest_go() {
        let store = store();
        let mut recorder = Recorder::new(Arc::clone(&store));
        for n in 0..MOST + 10 {
            let now = Timestamp::from_micros(n as i64);
            recorder.record(Kind::Instance, &metadata(&format!("web-{n}"), "u"), note("Started"), now);
        }
        flush(&mut recorder, 256);
        let events = events(&store);
        assert_eq!(events.len(), MOST);
        assert!(events.iter().all(|event| event.last_timestamp >= Timestamp::from_micros(10)));
    }

    #[test]
    fn what_was_dropped_and_happens_again_is_kept() {
        let store = store();
        let mut recorder = Recorder::new(Arc::clone(&store));
        for n in 0..=MOST_OF_ONE {
            let now = Timestamp::from_micros(n as i64);
            recorder.record(Kind::Instance, &metadata("web-0", &format!("uid-{n}")), note("Started"), now);
        }
        recorder.record(Kind::Instance, &metadata("web-0", "uid-0"), note("Started"), Timestamp::from_micros(1000));
        flush(&mut recorder, 256);
        let events = events(&store);
        assert_eq!(events.len(), MOST_OF_ONE);
        let again = events.iter().find(|event| event.involved_object.uid == "uid-0").unwrap();
        assert_eq!((again.count, again.first_timestamp), (1, Timestamp::from_micros(1000)));
    }
}
