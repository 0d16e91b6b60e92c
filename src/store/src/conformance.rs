//! The test suite that every implementation of [`Store`] has to pass.
//!
//! Call [`conformance!`](crate::conformance) in a test file with an expression that makes a factory: a function from the
//! length of the history to a new, empty store. Each claim becomes a test of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::{
    Durability, Error, Event, EventKind, Expect, Health, Key, MAX_COMMIT_BYTES, MAX_VALUE_BYTES, Op, Revision, Store,
    Watch, WatchEnded,
};

/// Makes a new, empty store whose history holds the given number of events.
pub type Factory<'a> = &'a dyn Fn(usize) -> Arc<dyn Store>;

/// Expands to one `#[test]` per claim. The expression is evaluated in each of them, and must be a
/// `Fn(usize) -> Arc<dyn Store>`.
#[macro_export]
macro_rules! conformance {
    ($factory:expr) => {
        $crate::conformance!(@ $factory,
            a_new_store_is_empty_at_revision_zero
            lists_are_sorted_and_limited_to_their_prefix
            every_commit_is_one_revision
            preconditions_decide
            a_failed_precondition_undoes_the_whole_commit
            commits_that_change_nothing_keep_the_revision
            what_can_never_be_stored_is_refused_at_once
            the_largest_value_comes_back_whole
            watches_yield_every_later_change_in_order
            watches_from_an_unavailable_revision_are_compacted
            a_trimmed_history_begins_later
            a_slow_watcher_is_told_to_list_again
            a_watch_wakes_up_and_loses_nothing_when_cancelled
            a_dropped_commit_takes_effect_all_the_same
            concurrent_increments_are_all_counted
            an_acknowledged_commit_is_visible_everywhere
            a_closed_store_refuses_commits_and_ends_watches
            random_commits_match_the_model
        );
    };
    (@ $factory:expr, $($claim:ident)*) => {$(
        #[test]
        fn $claim() {
            let factory = $factory;
            $crate::conformance::$claim(&factory);
        }
    )*};
}

fn key(name: &str) -> Key {
    Key::new("processes", "default", name)
}

fn put(name: &str, value: &str) -> Op {
    Op::put(key(name), value.to_owned(), Expect::Any)
}

fn delete(name: &str) -> Op {
    Op::delete(key(name), Expect::Any)
}

fn commit(store: &dyn Store, ops: Vec<Op>) -> Result<Revision, Error> {
    store.commit(ops, Durability::Crash).wait_blocking()
}

fn must(store: &dyn Store, ops: Vec<Op>) -> Revision {
    commit(store, ops).expect("the commit succeeds")
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be built").block_on(future)
}

fn drain(watch: &mut Watch) -> Vec<Event> {
    let mut all = Vec::new();
    while let Some(events) = watch.try_next().expect("the watch goes on") {
        all.extend(events);
    }
    all
}

/// See the name.
pub fn a_new_store_is_empty_at_revision_zero(factory: Factory<'_>) {
    let store = factory(8);
    assert_eq!(store.revision(), 0);
    assert_eq!(store.health(), Health::Ok);
    assert!(store.list("").entries.is_empty());
    assert_eq!(store.get(&key("a")), None);
}

/// See the name.
pub fn lists_are_sorted_and_limited_to_their_prefix(factory: Factory<'_>) {
    let store = factory(8);
    let keys = ["b/n/1", "a/n/2", "a/n/1", "a/m/9", "a//x", "ab/n/1"];
    for k in keys {
        must(&*store, vec![Op::put(Key::from(k), k.as_bytes(), Expect::Absent)]);
    }
    let listed = |prefix: &str| -> Vec<String> {
        let snapshot = store.list(prefix);
        assert_eq!(snapshot.revision, 6);
        for entry in &snapshot.entries {
            assert_eq!(entry.value, entry.key.as_str().as_bytes());
            assert_eq!(store.get(&entry.key).as_ref(), Some(entry));
        }
        snapshot.entries.iter().map(|e| e.key.to_string()).collect()
    };
    assert_eq!(listed(""), ["a//x", "a/m/9", "a/n/1", "a/n/2", "ab/n/1", "b/n/1"]);
    assert_eq!(listed("a/"), ["a//x", "a/m/9", "a/n/1", "a/n/2"]);
    assert_eq!(listed("a/n/"), ["a/n/1", "a/n/2"]);
    assert_eq!(listed("a/n/2"), ["a/n/2"]);
    assert!(listed("c").is_empty());
}

/// See the name.
pub fn every_commit_is_one_revision(factory: Factory<'_>) {
    let store = factory(8);
    assert_eq!(must(&*store, vec![put("a", "1"), put("b", "1")]), 1);
    assert_eq!(must(&*store, vec![put("b", "2"), delete("a")]), 2);
    assert_eq!(store.revision(), 2);
    assert_eq!(store.get(&key("a")), None);
    let b = store.get(&key("b")).expect("b exists");
    assert_eq!((&b.value[..], b.revision), (&b"2"[..], 2));
}

/// See the name.
pub fn preconditions_decide(factory: Factory<'_>) {
    // "there" is at revision 1, "absent" never was.
    let cases = [
        ("there", Expect::Any, true),
        ("there", Expect::Absent, false),
        ("there", Expect::Revision(1), true),
        ("there", Expect::Revision(2), false),
        ("there", Expect::Revision(0), false),
        ("absent", Expect::Any, true),
        ("absent", Expect::Absent, true),
        ("absent", Expect::Revision(1), false),
        ("absent", Expect::Revision(0), false),
    ];
    for (name, expect, holds) in cases {
        for op in [Op::put(key(name), "2", expect), Op::delete(key(name), expect)] {
            let store = factory(8);
            assert_eq!(must(&*store, vec![put("there", "1")]), 1);
            let there = store.get(&key(name)).map(|entry| entry.revision);
            // Something else in the commit, so that a delete of nothing changes something.
            let result = commit(&*store, vec![op.clone(), put("other", "x")]);
            match result {
                Ok(revision) => assert!(holds && revision == 2, "{op:?} gave {revision}"),
                Err(Error::Conflict { key: at, expected, found }) => {
                    assert!(!holds, "{op:?}");
                    assert_eq!((at, expected, found), (key(name), expect, there), "{op:?}");
                    assert_eq!(store.revision(), 1);
                }
                Err(other) => panic!("{op:?}: {other}"),
            }
        }
    }
}

/// See the name.
pub fn a_failed_precondition_undoes_the_whole_commit(factory: Factory<'_>) {
    let store = factory(8);
    must(&*store, vec![put("a", "1")]);
    let before = store.list("");
    let mut watch = store.watch("", store.revision()).expect("it is the present");
    let result = commit(&*store, vec![put("a", "2"), put("b", "2"), Op::delete(key("c"), Expect::Revision(1))]);
    assert!(matches!(result, Err(Error::Conflict { .. })), "{result:?}");
    assert_eq!(store.list(""), before);
    assert_eq!(drain(&mut watch), []);
}

/// See the name.
pub fn commits_that_change_nothing_keep_the_revision(factory: Factory<'_>) {
    let store = factory(8);
    assert_eq!(must(&*store, vec![]), 0);
    must(&*store, vec![put("a", "1")]);
    let mut watch = store.watch("", 1).expect("it is the present");
    assert_eq!(must(&*store, vec![]), 1);
    assert_eq!(must(&*store, vec![delete("b"), delete("c")]), 1);
    let durable = store.commit(vec![], Durability::Durable).wait_blocking();
    assert_eq!(durable.ok(), Some(1));
    assert_eq!(drain(&mut watch), []);
    // The same value again is a change all the same: its revision moves.
    assert_eq!(must(&*store, vec![put("a", "1")]), 2);
    assert_eq!(store.get(&key("a")).map(|entry| entry.revision), Some(2));
}

/// See the name.
pub fn what_can_never_be_stored_is_refused_at_once(factory: Factory<'_>) {
    let store = factory(8);
    let long = format!("p/n/{}", "x".repeat(1024));
    let keys = ["", "a", "a/b", "a/b/c/d", "/n/x", "p/n/", "p/n/\0", "p/n/a\nb", &long];
    for bad in keys {
        let op = Op::put(Key::from(bad), "1", Expect::Any);
        let result = commit(&*store, vec![op]);
        assert!(matches!(result, Err(Error::Invalid { .. })), "{bad:?}: {result:?}");
    }
    let twice = commit(&*store, vec![put("a", "1"), delete("a")]);
    assert!(matches!(twice, Err(Error::Invalid { .. })), "{twice:?}");

    let large = vec![0; MAX_VALUE_BYTES + 1];
    let result = commit(&*store, vec![Op::put(key("a"), large, Expect::Any)]);
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    let full = Bytes::from(vec![0; MAX_VALUE_BYTES]);
    let many = (0..=MAX_COMMIT_BYTES / MAX_VALUE_BYTES)
        .map(|n| Op::put(key(&n.to_string()), full.clone(), Expect::Any))
        .collect();
    let result = commit(&*store, many);
    assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    assert_eq!(store.revision(), 0);
}

/// See the name.
pub fn the_largest_value_comes_back_whole(factory: Factory<'_>) {
    let store = factory(8);
    let large: Vec<u8> = (0..MAX_VALUE_BYTES).map(|n| (n * 7 + n / 251) as u8).collect();
    must(&*store, vec![Op::put(key("a"), large.clone(), Expect::Absent)]);
    assert_eq!(store.get(&key("a")).map(|entry| entry.value), Some(large.into()));
}

/// See the name.
pub fn watches_yield_every_later_change_in_order(factory: Factory<'_>) {
    let store = factory(8);
    must(&*store, vec![put("a", "1")]);
    must(&*store, vec![put("b", "1"), put("a", "2")]);
    must(&*store, vec![delete("a"), delete("never-there")]);
    let other = Key::from("jobs/default/j");
    must(&*store, vec![Op::put(other.clone(), "j", Expect::Any)]);

    let event = |name: &str, revision, kind, prior: Option<&'static str>| Event {
        key: key(name),
        revision,
        kind,
        prior: prior.map(Bytes::from),
    };
    let value = |value: &'static str| EventKind::Put(value.into());
    let all = [
        event("a", 1, value("1"), None),
        event("b", 2, value("1"), None),
        event("a", 2, value("2"), Some("1")),
        event("a", 3, EventKind::Delete, Some("2")),
        Event { key: other, revision: 4, kind: value("j"), prior: None },
    ];
    for from in 0..=4 {
        let mut watch = store.watch("", from).expect("the history reaches back");
        let expected: Vec<_> = all.iter().filter(|e| e.revision > from).cloned().collect();
        assert_eq!(drain(&mut watch), expected, "from {from}");
        assert_eq!(watch.revision(), 4);
    }
    let mut watch = store.watch("processes/", 0).expect("the history reaches back");
    assert_eq!(drain(&mut watch), all[..4]);
    assert_eq!(watch.revision(), 4, "it moves on past what does not match");
}

/// See the name.
pub fn watches_from_an_unavailable_revision_are_compacted(factory: Factory<'_>) {
    let store = factory(3);
    for value in ["1", "2", "3", "4", "5"] {
        must(&*store, vec![put("a", value)]);
    }
    for from in 0..=6 {
        let result = store.watch("", from);
        let available = (2..=5).contains(&from);
        assert_eq!(result.is_ok(), available, "from {from}: {result:?}");
    }
    // The latest commit is there as a whole, however large it is, until there is another one.
    let many = ["a", "b", "c", "d"].map(|name| put(name, "6"));
    must(&*store, many.into());
    assert!(store.watch("", 4).is_err());
    let mut watch = store.watch("", 5).expect("it was the present a moment ago");
    assert_eq!(drain(&mut watch).len(), 4);
    must(&*store, vec![put("a", "7")]);
    // Half of a commit is none.
    assert!(store.watch("", 5).is_err());
    let mut watch = store.watch("", 6).expect("the last event");
    assert_eq!(drain(&mut watch).len(), 1);
}

/// See the name.
pub fn a_trimmed_history_begins_later(factory: Factory<'_>) {
    let store = factory(100);
    for value in ["1", "22", "333", "4444"] {
        must(&*store, vec![put("a", value)]);
    }
    store.trim_history(1000);
    assert!(store.watch("", 0).is_ok(), "so little is kept");
    // Event 4 overwrote three bytes, event 3 two.
    store.trim_history(4);
    for from in 0..=4 {
        assert_eq!(store.watch("", from).is_ok(), from >= 3, "from {from}");
    }
    store.trim_history(0);
    assert!(store.watch("", 3).is_err());
    let mut watch = store.watch("", 4).expect("it is the present");
    must(&*store, vec![put("a", "5")]);
    assert_eq!(drain(&mut watch).len(), 1);
}

/// See the name.
pub fn a_slow_watcher_is_told_to_list_again(factory: Factory<'_>) {
    let store = factory(3);
    let mut watch = store.watch("", 0).expect("it is the present");
    for value in ["1", "2", "3"] {
        must(&*store, vec![put("a", value)]);
    }
    assert_eq!(drain(&mut watch).len(), 3, "the history is just long enough");
    for value in ["4", "5", "6", "7"] {
        must(&*store, vec![put("a", value)]);
    }
    for _ in 0..2 {
        let ended = watch.try_next().expect_err("event 4 is gone");
        let WatchEnded::Compacted(compacted) = ended else {
            panic!("{ended:?}");
        };
        assert_eq!((compacted.from, compacted.oldest, compacted.newest), (3, 4, 7));
    }
}

/// See the name.
pub fn a_watch_wakes_up_and_loses_nothing_when_cancelled(factory: Factory<'_>) {
    let store = factory(64);
    let mut watch = store.watch("", 0).expect("it is the present");
    run(async {
        for round in 1..=20 {
            // Polled once and dropped, at every possible state of readiness.
            tokio::select! {
                biased;
                events = watch.next() => panic!("nothing has happened: {events:?}"),
                () = std::future::ready(()) => {}
            }
            let value = round.to_string();
            let (events, revision) =
                tokio::join!(watch.next(), async { store.commit(vec![put("a", &value)], Durability::Crash).await });
            assert_eq!(revision.ok(), Some(round));
            let events = events.expect("the watch goes on");
            assert_eq!(events.iter().map(|e| e.revision).collect::<Vec<_>>(), [round]);
        }
    });
}

/// See the name.
pub fn a_dropped_commit_takes_effect_all_the_same(factory: Factory<'_>) {
    let store = factory(8);
    for durability in [Durability::Lazy, Durability::Crash, Durability::Durable] {
        drop(store.commit(vec![put("a", &format!("{durability:?}"))], durability));
    }
    // Commits of one thread take effect in order, so those before this one have.
    assert_eq!(must(&*store, vec![put("b", "1")]), 4);
    assert_eq!(store.get(&key("a")).map(|e| e.value), Some("Durable".into()));
}

/// See the name.
pub fn concurrent_increments_are_all_counted(factory: Factory<'_>) {
    const THREADS: u64 = 8;
    const EACH: u64 = 25;
    let store = factory(2048);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                let durabilities = [Durability::Crash, Durability::Durable];
                let durability = durabilities[thread as usize % 2];
                for _ in 0..EACH {
                    loop {
                        let found = store.get(&key("counter"));
                        let (count, expect) = match &found {
                            None => (0, Expect::Absent),
                            Some(entry) => {
                                let text = std::str::from_utf8(&entry.value).expect("it is text");
                                let count: u64 = text.parse().expect("it is a number");
                                (count, Expect::Revision(entry.revision))
                            }
                        };
                        let op = Op::put(key("counter"), (count + 1).to_string(), expect);
                        match store.commit(vec![op], durability).wait_blocking() {
                            Ok(_) => break,
                            Err(Error::Conflict { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
            });
        }
    });
    let counter = store.get(&key("counter")).expect("it was counted");
    assert_eq!(counter.value, (THREADS * EACH).to_string());
    assert_eq!(counter.revision, THREADS * EACH);
    let mut watch = store.watch("", 0).expect("the history is long enough");
    let values: Vec<_> = drain(&mut watch)
        .into_iter()
        .map(|event| match event.kind {
            EventKind::Put(value) => value,
            EventKind::Delete => panic!("nothing was deleted"),
        })
        .collect();
    let expected: Vec<_> = (1..=THREADS * EACH).map(|n| Bytes::from(n.to_string())).collect();
    assert_eq!(values, expected);
}

/// See the name.
pub fn an_acknowledged_commit_is_visible_everywhere(factory: Factory<'_>) {
    let store = factory(8);
    for durability in [Durability::Durable, Durability::Crash, Durability::Lazy] {
        let at = store.revision();
        let name = format!("{durability:?}");
        let outcome = store.commit(vec![put(&name, "1")], durability).wait_blocking();
        assert_eq!(outcome.ok(), Some(at + 1));
        assert_eq!(store.revision(), at + 1);
        assert!(store.get(&key(&name)).is_some());
        assert!(store.list("").entries.iter().any(|e| e.key == key(&name)));
        let mut watch = store.watch("", at).expect("the history reaches back");
        assert_eq!(drain(&mut watch).len(), 1);
    }
}

/// See the name.
pub fn a_closed_store_refuses_commits_and_ends_watches(factory: Factory<'_>) {
    let store = factory(8);
    let mut watch = store.watch("", 0).expect("it is the present");
    let lingering = store.commit(vec![put("a", "1")], Durability::Lazy);
    store.close().expect("the store closes");
    store.close().expect("closing twice is harmless");
    assert_eq!(lingering.wait_blocking().ok(), Some(1));
    let refused = commit(&*store, vec![put("a", "2")]);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    assert_eq!(store.get(&key("a")).map(|e| e.value), Some("1".into()));
    run(async {
        assert_eq!(watch.next().await.map(|events| events.len()), Ok(1));
        assert_eq!(watch.next().await, Err(WatchEnded::Closed));
    });
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    Any,
    Absent,
    Current,
    Stale,
}

type Change = (u8, Wish, Option<Vec<u8>>);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let wish = prop_oneof![
        4 => Just(Wish::Any),
        1 => Just(Wish::Absent),
        3 => Just(Wish::Current),
        1 => Just(Wish::Stale),
    ];
    let value = proptest::option::weighted(0.7, vec(any::<u8>(), 0..40));
    vec((0..6u8, wish, value), 0..4)
}

/// The simplest thing that could be a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<Key, (Revision, Bytes)>,
    revision: Revision,
}

impl Model {
    fn commit(&self, ops: &[Op]) -> Option<Self> {
        let mut next = self.clone();
        next.revision += 1;
        let mut changed = false;
        for op in ops {
            let found = self.entries.get(op.key()).map(|entry| entry.0);
            match op.expect() {
                Expect::Any => {}
                Expect::Absent if found.is_none() => {}
                Expect::Revision(revision) if found == Some(revision) => {}
                Expect::Absent | Expect::Revision(_) => return None,
            }
            match op {
                Op::Put { key, value, .. } => {
                    let entry = (next.revision, value.clone());
                    next.entries.insert(key.clone(), entry);
                    changed = true;
                }
                Op::Delete { key, .. } => changed |= next.entries.remove(key).is_some(),
            }
        }
        Some(if changed { next } else { self.clone() })
    }

    fn of(store: &dyn Store) -> Self {
        let snapshot = store.list("");
        Self {
            revision: snapshot.revision,
            entries: snapshot.entries.into_iter().map(|entry| (entry.key, (entry.revision, entry.value))).collect(),
        }
    }

    fn follow(&mut self, event: Event) -> Result<(), TestCaseError> {
        prop_assert!(event.revision >= self.revision, "events go back");
        self.revision = event.revision;
        let prior = match event.kind {
            EventKind::Put(value) => self.entries.insert(event.key, (event.revision, value)),
            EventKind::Delete => self.entries.remove(&event.key),
        };
        prop_assert_eq!(prior.map(|entry| entry.1), event.prior);
        Ok(())
    }
}

/// Random commits have the outcome, the state and the events that a map would give them; and whoever knows the state of
/// any revision reaches the present one by watching from there.
pub fn random_commits_match_the_model(factory: Factory<'_>) {
    let durability = prop_oneof![
        3 => Just(Durability::Crash),
        1 => Just(Durability::Durable),
    ];
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let result = runner.run(&vec((changes(), durability), 1..24), |commits| {
        let store = factory(2048);
        let mut model = Model::default();
        let mut past = vec![model.clone()];
        for (changes, durability) in commits {
            let mut ops: Vec<Op> = Vec::new();
            for (n, wish, value) in changes {
                let key = key(&n.to_string());
                if ops.iter().any(|op| *op.key() == key) {
                    continue;
                }
                let found = model.entries.get(&key).map(|entry| entry.0);
                let expect = match (wish, found) {
                    (Wish::Any, _) => Expect::Any,
                    (Wish::Absent, _) | (Wish::Current, None) => Expect::Absent,
                    (Wish::Current, Some(revision)) => Expect::Revision(revision),
                    (Wish::Stale, found) => Expect::Revision(found.unwrap_or(1) - 1),
                };
                ops.push(match value {
                    Some(value) => Op::put(key, value, expect),
                    None => Op::delete(key, expect),
                });
            }
            let expected = model.commit(&ops);
            let outcome = store.commit(ops, durability).wait_blocking();
            match (expected, outcome) {
                (Some(next), Ok(revision)) => {
                    prop_assert_eq!(revision, next.revision);
                    if next != model {
                        past.push(next.clone());
                    }
                    model = next;
                }
                (None, Err(Error::Conflict { .. })) => {}
                (expected, outcome) => {
                    prop_assert!(false, "expected {expected:?}, got {outcome:?}");
                }
            }
            prop_assert_eq!(&Model::of(&*store), &model);
        }
        for mut then in past {
            let mut watch =
                store.watch("", then.revision).map_err(|compacted| TestCaseError::fail(compacted.to_string()))?;
            for event in drain(&mut watch) {
                then.follow(event)?;
            }
            prop_assert_eq!(&then, &model);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
