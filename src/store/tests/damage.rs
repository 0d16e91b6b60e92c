//! Damage is noticed, named, and not made worse; what is left can be restored.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Home, commit, contents, copy, key, put, value};
use ostler_store::{
    BackupError, DiskStore, Durability, Expect, Occupied, Op, OpenError, Options, Snapshot, Store, backup, check,
    restore,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A store with values of all sorts, some of them rewritten and deleted; its backup is older than its last commits.
fn populate(store: &DiskStore) -> Snapshot {
    for n in 0..120 {
        let length = if n % 20 == 0 { 20_000 } else { n * 13 };
        let op = put(&(n % 80).to_string(), value(n, length));
        commit(store, vec![op], Durability::Crash).expect("it commits");
    }
    let ops = (0..5).map(|n| Op::delete(key(&n.to_string()), Expect::Any)).collect();
    commit(store, ops, Durability::Durable).expect("it commits");
    store.list("")
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Flip { byte: prop::sample::Index, bit: u8 },
    Truncate { to: prop::sample::Index },
    Zero { from: prop::sample::Index, length: usize },
    Remove,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        6 => (any::<prop::sample::Index>(), 0..8u8).prop_map(|(byte, bit)| Damage::Flip { byte, bit }),
        2 => any::<prop::sample::Index>().prop_map(|to| Damage::Truncate { to }),
        2 => (any::<prop::sample::Index>(), 1..5000usize).prop_map(|(from, length)| Damage::Zero { from, length }),
        1 => Just(Damage::Remove),
    ]
}

impl Damage {
    /// Returns false when it would change nothing.
    fn inflict(self, path: &Path) -> bool {
        let before = fs::read(path).expect("the file can be read");
        let mut bytes = before.clone();
        // The end of the file is often untouched space: what is written lies before.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        match self {
            Self::Remove => {
                fs::remove_file(path).expect("the file can be removed");
                return true;
            }
            Self::Flip { .. } | Self::Zero { .. } | Self::Truncate { .. } if used == 0 => {
                return false;
            }
            Self::Flip { byte, bit } => bytes[byte.index(used)] ^= 1 << bit,
            Self::Truncate { to } => bytes.truncate(to.index(used)),
            Self::Zero { from, length } => {
                let from = from.index(used);
                let to = (from + length).min(used);
                bytes[from..to].fill(0);
            }
        }
        fs::write(path, &bytes).expect("the file can be written");
        bytes != before
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let all = contents(dir).into_keys();
    all.filter(|path| path.is_file()).collect()
}

/// Damages copies of `home` in `cases` ways and passes what opening said, after checking that a refused store was left
/// alone. `judge` sees the damage and the result.
fn damage_copies(
    home: &Home,
    cases: u32,
    judge: impl Fn(&str, Result<Snapshot, OpenError>) -> Result<(), TestCaseError>,
) {
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() });
    let result = runner.run(&(any::<prop::sample::Index>(), damage()), |(which, damage)| {
        let victim = Home::new();
        copy(home.path(), victim.path());
        let mut candidates = files(&victim.dir().join("sled"));
        candidates.push(victim.dir().join("head"));
        candidates.sort();
        // Most of it all is in the one big file.
        let pick = which.index(candidates.len() * 3);
        let path = candidates.get(pick).cloned().unwrap_or_else(|| victim.dir().join("sled/db"));
        if !damage.inflict(&path) {
            return Ok(());
        }
        let name = path.strip_prefix(victim.path()).unwrap_or(&path);
        let what = format!("{damage:?} of {}", name.display());
        let before = contents(&victim.dir());
        let opened = DiskStore::open(&victim.options()).map(|store| store.list(""));
        if let Err(error) = &opened {
            prop_assert!(contents(&victim.dir()) == before, "{what} was made worse: {error}");
            let OpenError::Damaged { newest_backup, .. } = error else {
                return Err(TestCaseError::fail(format!("{what}: {error:?}")));
            };
            prop_assert!(newest_backup.is_some(), "{what}: {error}");
            // Finding out offline says the same.
            prop_assert!(matches!(check(&victim.options()), Err(OpenError::Damaged { .. })), "{what}");
            prop_assert!(contents(&victim.dir()) == before, "{what} was made worse by the check");
        }
        judge(&what, opened)
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

#[test]
fn any_damage_to_a_closed_store_is_refused() {
    let home = Home::new();
    let store = home.open();
    populate(&store);
    store.close().expect("it closes");
    drop(store);
    damage_copies(&home, 100, |what, opened| match opened {
        Err(_) => Ok(()),
        Ok(_) => Err(TestCaseError::fail(format!("{what} went unnoticed"))),
    });
}

#[test]
fn damage_to_a_killed_store_is_refused_unless_nothing_is_lost() {
    let home = Home::new();
    let killed = Home::new();
    let store = home.open();
    let expected = populate(&store);
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    while store.backup_status().last.is_none() {
        assert!(Instant::now() < deadline, "{:?}", store.backup_status());
        std::thread::yield_now();
    }
    // What everybody finds who comes after a kill -9 of this very moment.
    copy(home.path(), killed.path());
    let refused = std::cell::Cell::new(0);
    damage_copies(&killed, 100, |what, opened| match opened {
        Err(_) => {
            refused.set(refused.get() + 1);
            Ok(())
        }
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(TestCaseError::fail(format!(
            "{what} lost something: {} entries at {} instead of {} at {}",
            found.entries.len(),
            found.revision,
            expected.entries.len(),
            expected.revision,
        ))),
    });
    assert!(refused.get() >= 10, "only {} of the damages had an effect", refused.get());
}

#[test]
fn a_tail_cut_off_a_killed_store_is_noticed_although_the_rest_is_consistent() {
    let home = Home::new();
    let store = home.open();
    commit(&store, vec![put("a", "1")], Durability::Durable).expect("it commits");
    let early = Home::new();
    copy(home.path(), early.path());
    commit(&store, vec![put("a", "2")], Durability::Durable).expect("it commits");
    let late = Home::new();
    copy(home.path(), late.path());
    // The database as it was before the last commit, which is what sled makes of a damaged tail.
    fs::remove_dir_all(late.dir().join("sled")).expect("it can be removed");
    copy(&early.dir().join("sled"), &late.dir().join("sled"));
    let error = DiskStore::open(&late.options()).err();
    assert!(matches!(error, Some(OpenError::Damaged { .. })), "{error:?}");
    assert!(DiskStore::open(&early.options()).is_ok(), "while that one is whole");
}

#[test]
fn a_good_store_passes_the_check_whether_closed_or_killed() {
    let home = Home::new();
    assert!(matches!(check(&home.options()), Err(OpenError::Missing { .. })));
    assert!(!home.dir().exists(), "a check creates nothing");
    let store = home.open();
    let expected = populate(&store);
    let killed = Home::new();
    copy(home.path(), killed.path());
    drop(store);
    for (home, closed) in [(home, true), (killed, false)] {
        let before = contents(&home.dir());
        let report = check(&home.options()).expect("it is good");
        assert_eq!(
            (report.revision, report.entries, report.closed),
            (expected.revision, expected.entries.len(), closed)
        );
        let bytes: usize = expected.entries.iter().map(|entry| entry.value.len()).sum();
        assert_eq!(report.bytes, bytes as u64);
        assert!(contents(&home.dir()) == before, "a check changes nothing");
        let to = home.path().join("by-hand");
        ostler_store::back_up(&home.options(), &to).expect("it can be backed up");
        assert_eq!(backup::read(&to).expect("it is good"), expected);
    }
}

#[test]
fn a_running_store_can_be_backed_up_and_restored_elsewhere() {
    let home = Home::new();
    let store = home.open();
    let expected = populate(&store);
    let to = home.path().join("by-hand");
    assert_eq!(store.backup(&to).expect("it can be written"), expected.revision);
    let again = store.backup(&to);
    assert!(matches!(again, Err(BackupError::Io { .. })), "nothing is overwritten: {again:?}");

    let other = Home::new();
    let restored = restore(&to, &other.options(), Occupied::Refuse).expect("it can be restored");
    assert_eq!((restored.entries, restored.moved_to), (expected.entries.len(), None));
    let store = other.open();
    assert_eq!(store.list("").entries, expected.entries);
    assert_eq!(store.revision(), restored.revision);
    assert!(restored.revision > expected.revision + (1 << 31), "no revision is given out twice");
    let watch = store.watch("", expected.revision);
    assert!(watch.is_err(), "who remembers the lost store must list again");
}

#[test]
fn a_restore_refuses_to_overwrite_and_moves_aside_when_told() {
    let home = Home::new();
    let store = home.open();
    let expected = populate(&store);
    drop(store);
    let from = backup::newest_good(&home.backups()).expect("there is a backup");
    let log = home.dir().join("sled/db");
    let mut bytes = fs::read(&log).expect("it can be read");
    bytes[100] ^= 1;
    fs::write(&log, bytes).expect("it can be written");
    let damaged = contents(&home.dir());

    let refused = restore(&from, &home.options(), Occupied::Refuse);
    assert!(matches!(refused, Err(OpenError::Occupied { .. })), "{refused:?}");
    assert!(contents(&home.dir()) == damaged);

    let restored = restore(&from, &home.options(), Occupied::MoveAside).expect("it can be restored");
    let aside = restored.moved_to.expect("it was moved");
    assert!(aside.to_string_lossy().contains("store.damaged-"), "{}", aside.display());
    let names = |files: std::collections::BTreeMap<PathBuf, Vec<u8>>, below: &Path| -> Vec<_> {
        let relative =
            |(path, bytes): (PathBuf, Vec<u8>)| (path.strip_prefix(below).expect("it is below").to_owned(), bytes);
        files.into_iter().map(relative).collect()
    };
    assert!(names(contents(&aside), &aside) == names(damaged, &home.dir()), "it was kept as it was");
    assert_eq!(home.open().list("").entries, expected.entries);
}

#[test]
fn a_restore_of_a_store_in_use_is_refused() {
    let home = Home::new();
    let store = home.open();
    populate(&store);
    let to = home.path().join("by-hand");
    store.backup(&to).expect("it can be written");
    let refused = restore(&to, &home.options(), Occupied::MoveAside);
    assert!(matches!(refused, Err(OpenError::Locked { .. })), "{refused:?}");
}

#[test]
fn a_restore_interrupted_at_its_last_step_is_completed_by_the_next_open() {
    let home = Home::new();
    let store = home.open();
    let expected = populate(&store);
    drop(store);
    let from = backup::newest_good(&home.backups()).expect("there is a backup");
    let other = Home::new();
    restore(&from, &other.options(), Occupied::Refuse).expect("it can be restored");
    // Between the two renames: the old one is aside, the new one is not in place.
    fs::rename(home.dir(), home.path().join("store.damaged-1")).expect("it can be renamed");
    fs::rename(other.dir(), home.path().join("store.restoring")).expect("it can be renamed");
    assert_eq!(home.open().list("").entries, expected.entries);

    // Killed while building, it is as if it had never begun.
    let half = home.path().join("store.restoring");
    fs::create_dir_all(half.join("sled.new")).expect("it can be created");
    fs::write(half.join("sled.new/db"), "half").expect("it can be written");
    assert_eq!(home.open().list("").entries, expected.entries);
    restore(&from, &home.options(), Occupied::MoveAside).expect("it can be restored");
    assert!(!half.exists());
    assert_eq!(home.open().list("").entries, expected.entries);
}

#[test]
fn a_creation_killed_at_any_step_counts_as_an_empty_directory() {
    let home = Home::new();
    drop(home.open());
    let steps: [&dyn Fn(&Path); 3] = [
        &|dir| fs::remove_dir_all(dir.join("sled")).expect("it can be removed"),
        &|dir| {
            fs::rename(dir.join("sled"), dir.join("sled.new")).expect("it can be renamed");
            fs::remove_file(dir.join("sled.new/db")).expect("it can be removed");
        },
        &|dir| {
            fs::remove_dir_all(dir).expect("it can be removed");
            fs::create_dir(dir).expect("it can be created");
            fs::write(dir.join("head.new"), "ostler-st").expect("it can be written");
        },
    ];
    for step in steps {
        let killed = Home::new();
        copy(home.path(), killed.path());
        step(&killed.dir());
        let store = killed.open();
        assert_eq!(store.revision(), 0);
        commit(&store, vec![put("a", "1")], Durability::Durable).expect("it commits");
    }
}

#[test]
fn every_changed_byte_of_a_backup_is_noticed() {
    let home = Home::new();
    let store = home.open();
    let ops = vec![put("text", "grüße\n\"quoted\""), put("binary", vec![0xff, 0, 1]), put("empty", "")];
    commit(&store, ops, Durability::Crash).expect("it commits");
    let good = home.path().join("good");
    store.backup(&good).expect("it can be written");
    assert_eq!(backup::read(&good).expect("it is good"), store.list(""));
    assert_eq!(backup::verify(&good).expect("it is good").entries, 3);

    let bytes = fs::read(&good).expect("it can be read");
    let text = String::from_utf8(bytes.clone()).expect("it is text");
    assert!(text.contains("grüße"), "text stays readable: {text}");
    let bad = home.path().join("bad");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&bad, &changed).expect("it can be written");
        assert!(backup::verify(&bad).is_err(), "byte {at}");
        fs::write(&bad, &bytes[..at]).expect("it can be written");
        assert!(backup::verify(&bad).is_err(), "cut at {at}");
    }
    fs::write(&bad, [&bytes[..], b"\n"].concat()).expect("it can be written");
    assert!(backup::verify(&bad).is_err());
    let newer = text.replacen("\"version\":1", "\"version\":2", 1);
    fs::write(&bad, newer).expect("it can be written");
    assert!(matches!(backup::verify(&bad), Err(BackupError::Format { found: 2, .. })));
}

#[test]
fn the_newest_backup_that_is_good_is_named() {
    let home = Home::new();
    let store = home.open();
    populate(&store);
    let dir = home.path().join("elsewhere");
    fs::create_dir(&dir).expect("it can be created");
    for revision in [5, 6] {
        store.backup(&backup::path_for(&dir, revision)).expect("it can be written");
    }
    fs::write(backup::path_for(&dir, 7), "half a back").expect("it can be written");
    drop(store);
    fs::remove_file(home.dir().join("head")).expect("it can be removed");
    let options = Options { backups: Some(dir.clone()), ..home.options() };
    let Err(OpenError::Damaged { newest_backup, .. }) = DiskStore::open(&options) else {
        panic!("the damage went unnoticed");
    };
    assert_eq!(newest_backup, Some(backup::path_for(&dir, 6)));
}

#[test]
fn only_the_owner_can_read_what_is_stored() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let store = home.open();
    populate(&store);
    drop(store);
    let newest = backup::newest_good(&home.backups()).expect("there is a backup");
    for path in [home.dir(), home.backups(), newest] {
        let mode = fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
}
