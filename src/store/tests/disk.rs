//! The store on disk keeps the contract, and everything else across closing and opening.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Home, Temporary, commit, key, put, value};
use ostler_store::{
    BackupError, Commit, Compacted, DiskStore, Durability, Entry, Error, Expect, Health, Key, Op, OpenError, Options,
    Revision, Snapshot, Store, Watch,
};
use proptest::prelude::*;

impl Store for Temporary {
    fn get(&self, key: &Key) -> Option<Entry> {
        (**self).get(key)
    }

    fn list(&self, prefix: &str) -> Snapshot {
        (**self).list(prefix)
    }

    fn revision(&self) -> Revision {
        (**self).revision()
    }

    fn commit(&self, ops: Vec<Op>, durability: Durability) -> Commit {
        (**self).commit(ops, durability)
    }

    fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        (**self).watch(prefix, from)
    }

    fn trim_history(&self, bytes: usize) {
        (**self).trim_history(bytes);
    }

    fn health(&self) -> Health {
        (**self).health()
    }

    fn backup(&self, to: &Path) -> Result<Revision, BackupError> {
        (**self).backup(to)
    }

    fn close(&self) -> Result<(), Error> {
        (**self).close()
    }
}

ostler_store::conformance!(|history| Arc::new(Temporary::new(history)) as Arc<dyn Store>);

#[test]
fn everything_is_there_after_closing_and_opening() {
    let home = Home::new();
    let store = home.open();
    for n in 0..300 {
        let op = put(&n.to_string(), value(n, n * 50));
        commit(&store, vec![op], Durability::Lazy).expect("it commits");
    }
    commit(&store, vec![Op::delete(key("7"), Expect::Any)], Durability::Crash).expect("it commits");
    let before = store.list("");
    store.close().expect("it closes");
    drop(store);
    let store = home.open();
    assert_eq!(store.list(""), before);
    assert_eq!(store.revision(), 301);
    assert!(store.watch("", 300).is_err(), "the history starts anew");
    assert!(store.watch("", 301).is_ok());
}

#[test]
fn a_store_is_opened_by_one_at_a_time() {
    let home = Home::new();
    let store = home.open();
    let second = DiskStore::open(&home.options());
    assert!(matches!(second, Err(OpenError::Locked { .. })), "{:?}", second.err());
    let checked = ostler_store::check(&home.options());
    assert!(matches!(checked, Err(OpenError::Locked { .. })), "{checked:?}");
    drop(store);
    home.open();
}

#[test]
fn a_newer_format_is_refused_by_name_and_left_alone() {
    let home = Home::new();
    drop(home.open());
    let head = home.dir().join("head");
    let text = std::fs::read_to_string(&head).expect("it is text");
    let (line, _) = text.split_once(" crc32 ").expect("it has a checksum");
    let line = line.replacen("ostler-store 1", "ostler-store 2", 1);
    let crc = crc32fast::hash(line.as_bytes());
    std::fs::write(&head, format!("{line} crc32 {crc:08x}\n")).expect("it can be written");
    let before = common::contents(&home.dir());
    let Err(OpenError::Format { found: 2, supported: 1, .. }) = DiskStore::open(&home.options()) else {
        panic!("the format was not refused");
    };
    assert_eq!(common::contents(&home.dir()), before);
}

#[test]
fn revisions_skip_ahead_after_a_reboot_and_only_then() {
    let home = Home::new();
    let booted = |id: &str| {
        let options = Options { boot_id: Some(id.to_owned()), ..home.options() };
        DiskStore::open(&options).expect("it opens")
    };
    let store = booted("one");
    commit(&store, vec![put("a", "1")], Durability::Durable).expect("it commits");
    drop(store);
    assert_eq!(booted("one").revision(), 1);
    assert_eq!(booted("two").revision(), 1 + (1 << 20));
    let store = booted("two");
    assert_eq!(store.revision(), 1 + (1 << 20));
    assert!(store.watch("", 1).is_err(), "what was seen before may have been undone");
    assert_eq!(store.get(&key("a")).map(|entry| entry.revision), Some(1));
    let next = commit(&store, vec![put("a", "2")], Durability::Durable);
    assert_eq!(next.ok(), Some(2 + (1 << 20)));
}

#[test]
fn a_durable_commit_takes_lingering_ones_along_at_once() {
    let store = Temporary::new(8);
    let (mut alone, mut quickest) = (Duration::MAX, Duration::MAX);
    for _ in 0..50 {
        let begin = Instant::now();
        commit(&*store, vec![put("a", "durable")], Durability::Durable).expect("it commits");
        alone = alone.min(begin.elapsed());
        let begin = Instant::now();
        let lazy = store.commit(vec![put("a", "lazy")], Durability::Lazy);
        let durable = store.commit(vec![put("a", "durable")], Durability::Durable);
        let durable = durable.wait_blocking().expect("it commits");
        quickest = quickest.min(begin.elapsed());
        assert_eq!(lazy.wait_blocking().ok(), Some(durable - 1));
    }
    // A busy machine can delay most of the rounds, lingering would delay all of them; what the disk takes for a flush
    // is its own affair.
    assert!(quickest < alone + Duration::from_millis(15), "{quickest:?}, and {alone:?} without a lingering one");
}

#[test]
fn lazy_commits_share_a_batch_and_are_not_forgotten() {
    let store = Temporary::new(64);
    let round = || {
        let begin = Instant::now();
        let commits: Vec<_> = (0..50).map(|n| store.commit(vec![put("a", n.to_string())], Durability::Lazy)).collect();
        for commit in commits {
            commit.wait_blocking().expect("it commits");
        }
        begin.elapsed()
    };
    // Each of them waiting its 20 ms would take a second every time; a busy machine does not take it every time.
    let quickest = (0..10).map(|_| round()).min();
    assert!(quickest < Some(Duration::from_millis(900)), "{quickest:?}");
}

#[test]
fn the_largest_commit_fits() {
    let home = Home::new();
    let store = home.open();
    let ops = (0..16).map(|n| put(&n.to_string(), value(n, 1 << 20))).collect();
    assert_eq!(commit(&store, ops, Durability::Durable).ok(), Some(1));
    let before = store.list("");
    drop(store);
    assert_eq!(home.open().list(""), before);
}

/// Merging leaves makes sled write nodes into files of their own.
#[test]
fn deleting_most_of_many_entries_leaves_the_others_whole() {
    let home = Home::new();
    let store = home.open();
    let name = |n: usize| format!("{n:05}");
    for chunk in (0..2_000).collect::<Vec<_>>().chunks(100) {
        let ops = chunk.iter().map(|n| put(&name(*n), value(*n, 1_500))).collect();
        commit(&store, ops, Durability::Crash).expect("it commits");
    }
    for n in (0..2_000).filter(|n| n % 16 != 0) {
        drop(store.commit(vec![Op::delete(key(&name(n)), Expect::Any)], Durability::Crash));
    }
    for n in (0..2_000).step_by(160) {
        commit(&store, vec![put(&name(n), value(n + 1, 1_500))], Durability::Durable).expect("it commits");
    }
    let before = store.list("");
    assert_eq!(before.entries.len(), 125);
    drop(store);
    assert_eq!(home.open().list(""), before);
}

#[test]
fn backups_are_made_by_itself_and_the_last_three_are_kept() {
    let home = Home::new();
    let options = Options { backup_interval: Duration::ZERO, ..home.options() };
    let store = DiskStore::open(&options).expect("it opens");
    let deadline = Instant::now() + Duration::from_secs(60);
    for n in 1..=6 {
        commit(&store, vec![put("a", n.to_string())], Durability::Durable).expect("it commits");
        while store.backup_status().last.map(|last| last.0) != Some(n) {
            assert!(Instant::now() < deadline, "{:?}", store.backup_status());
            std::thread::yield_now();
        }
    }
    commit(&store, vec![put("a", "7")], Durability::Crash).expect("it commits");
    store.close().expect("it closes");
    assert_eq!(store.backup_status().last.map(|last| last.0), Some(7), "one at the end");
    let kept = ostler_store::backup::list(&home.backups()).expect("they can be listed");
    let revisions: Vec<_> =
        kept.iter().map(|path| ostler_store::backup::verify(path).expect("it is good").revision).collect();
    assert_eq!(revisions, [7, 6, 5]);
}

#[test]
fn within_the_interval_no_second_backup_is_made() {
    let home = Home::new();
    let store = home.open();
    for n in 1..=50 {
        commit(&store, vec![put("a", n.to_string())], Durability::Durable).expect("it commits");
    }
    store.close().expect("it closes");
    let kept = ostler_store::backup::list(&home.backups()).expect("they can be listed");
    assert!(kept.len() <= 2, "one at first, one at the end: {kept:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Lengths around the size of a piece, values growing and shrinking across it, deletes, and reopening in between.
    #[test]
    fn any_history_of_commits_survives_reopening(
        rounds in proptest::collection::vec(
            proptest::collection::vec(
                (0..5u8, proptest::option::of(prop_oneof![
                    Just(0usize), Just(1), 5_119..5_123usize, 10_239..10_243usize, 60_000..70_000usize,
                ])),
                1..12,
            ),
            1..5,
        )
    ) {
        let home = Home::new();
        let mut expected = std::collections::BTreeMap::new();
        let mut revision = 0;
        for (round, changes) in rounds.into_iter().enumerate() {
            let store = home.open();
            prop_assert_eq!(store.revision(), revision);
            let pending: Vec<_> = changes.into_iter().map(|(n, length)| {
                let name = n.to_string();
                let op = if let Some(length) = length {
                    let value = value(round + length, length);
                    expected.insert(key(&name), value.clone());
                    put(&name, value)
                } else {
                    expected.remove(&key(&name));
                    Op::delete(key(&name), Expect::Any)
                };
                store.commit(vec![op], Durability::Crash)
            }).collect();
            for commit in pending {
                revision = commit.wait_blocking().expect("it commits");
            }
            drop(store);
        }
        let found: std::collections::BTreeMap<_, _> = home.open().list("").entries.into_iter()
            .map(|entry| (entry.key, entry.value.to_vec())).collect();
        prop_assert_eq!(found, expected);
    }
}
