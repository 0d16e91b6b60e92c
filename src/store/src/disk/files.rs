//! sled, kept at arm's length: opened where a panic cannot hurt, loaded with everything checked, written and synced.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime};

use sled::Batch;

use super::record::{self, Meta, Unreadable};
use super::witness;
use crate::core::{Index, Staged};

/// Why sled's files could not be used.
#[derive(Debug)]
pub(crate) enum Broken {
    /// They do not hold what they should.
    Damage(String),
    /// The operating system refused something; the files may be all right.
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<sled::Error> for Broken {
    fn from(error: sled::Error) -> Self {
        match error {
            // What sled says when a file it refers to is gone or too short.
            sled::Error::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::InvalidData
                        | io::ErrorKind::InvalidInput
                ) =>
            {
                Self::Damage(format!("a file is missing or too short: {error}"))
            }
            sled::Error::Io(error) => Self::Io(error),
            error @ (sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_)
            | sled::Error::Corruption { .. }) => Self::Damage(error.to_string()),
        }
    }
}

impl From<Unreadable> for Broken {
    fn from(error: Unreadable) -> Self {
        match error {
            Unreadable::Bad(why) => Self::Damage(why),
            Unreadable::Sled(error) => error.into(),
        }
    }
}

impl Broken {
    /// For a person.
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Damage(why) => why.clone(),
            Self::Io(error) => error.to_string(),
        }
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs something that panics on damaged files and returns the panic as damage, without its output on stderr.
pub(crate) fn contained<T>(run: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    static HOOK: Once = Once::new();
    // The hook is the whole process's: installed once, it stays out of the way of other threads.
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let was_quiet = QUIET.replace(true);
    // Nothing that the closure leaves half done is used again after a panic.
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(was_quiet);
    result.unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("unknown panic");
        let first = message.lines().next().unwrap_or_default();
        Err(Broken::Damage(format!("the database cannot be read: {first}")))
    })
}

/// An open sled directory that is ours to write.
pub(crate) struct Files {
    dir: PathBuf,
    /// Taken only by dropping.
    db: Option<sled::Db>,
    /// The same file that sled writes, for syncing it.
    log: File,
    meta: Meta,
    blobs_changed: Option<SystemTime>,
    /// Whether something was written since the last sync.
    unsynced: bool,
}

impl Files {
    /// Opens or creates the directory and loads everything in it, checked. sled repairs in place: damage must be
    /// ruled out before.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<(Self, Index), Broken> {
        let (db, index, meta) = contained(|| {
            let db = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None).open()?;
            let (index, meta) = load(&db)?;
            Ok((db, index, meta))
        })?;
        let files = Self {
            log: File::options().write(true).open(dir.join("db"))?,
            dir: dir.to_owned(),
            db: Some(db),
            meta,
            blobs_changed: None,
            unsynced: true,
        };
        Ok((files, index))
    }

    pub(crate) fn meta(&self) -> Meta {
        self.meta
    }

    /// A handle for [`unstick`].
    pub(crate) fn handle(&self) -> Option<sled::Db> {
        self.db.clone()
    }

    /// Hands the staged changes to the kernel, atomically.
    pub(crate) fn write(&mut self, staged: &mut Staged) -> Result<(), Broken> {
        let mut meta = self.meta;
        meta.revision = staged.revision;
        let mut batch = Batch::default();
        for event in &mut staged.events {
            if let Some(prior) = &event.prior {
                meta.subtract(&event.key, prior);
            }
            if let crate::EventKind::Put(value) = &event.kind {
                meta.add(&event.key, value);
            }
            record::encode(event, &mut batch);
        }
        self.apply(batch, meta)
    }

    /// Makes the files hold exactly `wanted`, whatever they hold.
    pub(crate) fn reconcile(&mut self, found: &Index, wanted: &Index, revision: crate::Revision) -> Result<(), Broken> {
        let mut batch = Batch::default();
        let mut meta = Meta { revision, ..Meta::default() };
        // Removals first: a longer value's leftover pieces must not take the new ones with them.
        for (key, stored) in found {
            if wanted.get(key) != Some(stored) {
                record::remove(key, stored.value.len(), &mut batch);
            }
        }
        for (key, stored) in wanted {
            meta.add(key, &stored.value);
            if found.get(key) != Some(stored) {
                record::put(key, &stored.value, stored.revision, &mut batch);
            }
        }
        self.apply(batch, meta)
    }

    fn apply(&mut self, mut batch: Batch, meta: Meta) -> Result<(), Broken> {
        let Some(db) = &self.db else {
            return Err(Broken::Damage("the database is not open".to_owned()));
        };
        batch.insert(record::META, meta.encode());
        self.unsynced = true;
        contained(|| {
            db.apply_batch(batch)?;
            db.flush()?;
            Ok(())
        })?;
        self.meta = meta;
        Ok(())
    }

    /// Syncs what was written. A no-op when nothing was.
    pub(crate) fn sync(&mut self) -> Result<(), Broken> {
        if !self.unsynced {
            return Ok(());
        }
        // sled puts nodes of more than 128 KiB, which merging leaves can make, into files that it does not sync.
        let blobs = self.dir.join("blobs");
        let changed = fs::metadata(&blobs)?.modified()?;
        if self.blobs_changed != Some(changed) {
            witness::sync_tree(&blobs)?;
            // Time stamps are coarse: another file could appear within the same tick.
            let settled = changed.elapsed().is_ok_and(|age| age > Duration::from_millis(100));
            self.blobs_changed = settled.then_some(changed);
        }
        self.log.sync_data()?;
        self.unsynced = false;
        Ok(())
    }

    pub(crate) fn is_synced(&self) -> bool {
        !self.unsynced
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let db = self.db.take();
        // sled syncs when dropped, and panics when that fails; by then it was reported.
        let _ = contained(|| {
            drop(db);
            Ok(())
        });
        // A writer thread of sled's may hold its lock for a moment longer: wait, so that the next open succeeds.
        if self.log.lock().is_ok() {
            let _ = self.log.unlock();
        }
    }
}

/// Wakes a thread that waits inside of sled for a write that has failed: sled forgets to when the write was begun by
/// another thread than the one that waits. Any flush afterwards finds the error and wakes everybody.
pub(crate) fn unstick(db: &sled::Db) {
    let _ = contained(|| Ok(db.flush()?));
}

/// Reads and checks every entry.
fn load(db: &sled::Db) -> Result<(Index, Meta), Broken> {
    let Some(meta) = db.get(record::META)? else {
        // sled is as good as its word when it calls a directory empty only if it has just been created.
        return if db.was_recovered() || !db.is_empty() {
            Err(Broken::Damage("the summary record is missing".to_owned()))
        } else {
            Ok((Index::new(), Meta::default()))
        };
    };
    let meta = Meta::decode(&meta).map_err(Broken::Damage)?;
    let mut index = Index::new();
    let mut found = Meta { revision: meta.revision, ..Meta::default() };
    for item in db.scan_prefix([record::ENTRY]) {
        let (name, value) = item?;
        let (key, stored) = record::decode(&name, value, |name| db.get(name))?;
        if stored.revision > meta.revision {
            return Err(Broken::Damage(format!("{key} is newer than the whole store")));
        }
        found.add(&key, &stored.value);
        index.insert(key, stored);
    }
    if found.count != meta.count {
        return Err(Broken::Damage(format!("{} entries are recorded, {} were found", meta.count, found.count)));
    }
    if found.sum != meta.sum {
        return Err(Broken::Damage("some entries are not those that were written last".to_owned()));
    }
    Ok((index, meta))
}
