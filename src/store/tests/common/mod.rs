//! What the tests of the store on disk share.
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use ostler_store::{DiskStore, Durability, Error, Expect, Key, Op, Options, Revision, Store};
use tempfile::TempDir;

/// A directory for one store and its backups.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory can be made"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.path().join("store")
    }

    pub(crate) fn backups(&self) -> PathBuf {
        self.path().join("backup")
    }

    pub(crate) fn options(&self) -> Options {
        Options::new(self.dir())
    }

    pub(crate) fn open(&self) -> DiskStore {
        DiskStore::open(&self.options()).expect("the store opens")
    }
}

/// A store whose directory goes away with it.
pub(crate) struct Temporary {
    store: DiskStore,
    _home: Home,
}

impl Temporary {
    pub(crate) fn new(history: usize) -> Self {
        let home = Home::new();
        let options = Options { history, ..home.options() };
        Self { store: DiskStore::open(&options).expect("the store opens"), _home: home }
    }
}

impl Deref for Temporary {
    type Target = DiskStore;

    fn deref(&self) -> &DiskStore {
        &self.store
    }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("processes", "default", name)
}

pub(crate) fn put(name: &str, value: impl Into<Vec<u8>>) -> Op {
    Op::put(key(name), value.into(), Expect::Any)
}

pub(crate) fn commit(store: &dyn Store, ops: Vec<Op>, durability: Durability) -> Result<Revision, Error> {
    store.commit(ops, durability).wait_blocking()
}

/// A value of this length that differs from others.
pub(crate) fn value(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 7 + seed * 17) as u8).collect()
}

/// Every file below `dir` with its content.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(dir).expect("the directory can be listed") {
        let path = item.expect("the directory can be listed").path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, Vec::new());
        } else {
            let bytes = fs::read(&path).expect("the file can be read");
            found.insert(path, bytes);
        }
    }
    found
}

/// Copies a directory with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the directory can be created");
    for item in fs::read_dir(from).expect("the directory can be listed") {
        let path = item.expect("the directory can be listed").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("the file can be copied");
        }
    }
}
