//! Finding out whether a store directory is good, without changing it, and opening it.
//!
//! ```text
//! <dir>/lock      held while the store is open
//! <dir>/head      how far the store had got       (see `witness`)
//! <dir>/clean     checksums of a closed store     (see `witness`)
//! <dir>/sled/     the database
//! <dir>/probe/    a copy, while a store that was not closed is being checked
//! ```
//! sled repairs what it takes for torn writes as it opens, so damaged files must be recognised before. A store that was
//! closed proves itself by its checksums, which costs one pass over the files. After a crash there are none: then a copy
//! is opened, checked and thrown away first, which costs about twice the time, once.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::files::{Broken, Files};
use super::record::FORMAT;
use super::witness::{self, Clean, Head, HeadFile};
use crate::core::{Index, Stored};
use crate::{OpenError, Revision, Snapshot, backup};

/// How far revisions move on after a reboot, so that one that was seen and then undone by a power loss is not given out
/// twice.
pub(crate) const REBOOT_SKIP: Revision = 1 << 20;

/// Paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) backups: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path, backups: Option<&Path>) -> Self {
        Self { dir: dir.to_owned(), backups: backups.map_or_else(|| dir.with_file_name("backup"), Path::to_owned) }
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.dir.join("sled")
    }

    fn probe(&self) -> PathBuf {
        self.dir.join("probe")
    }

    /// Where a restore builds the new directory.
    pub(crate) fn restoring(&self) -> PathBuf {
        let mut name = self.dir.as_os_str().to_owned();
        name.push(".restoring");
        name.into()
    }

    pub(crate) fn io(&self, action: &'static str) -> impl Fn(io::Error) -> OpenError + use<> {
        let path = self.dir.clone();
        move |source| OpenError::Io { action, path: path.clone(), source }
    }

    pub(crate) fn damaged(&self, why: impl Into<String>) -> OpenError {
        OpenError::Damaged { dir: self.dir.clone(), why: why.into(), newest_backup: backup::newest_good(&self.backups) }
    }

    fn broken(&self, broken: Broken) -> OpenError {
        match broken {
            Broken::Damage(why) => self.damaged(why),
            Broken::Io(source) => self.io("open the store in")(source),
        }
    }
}

/// A store directory, opened.
pub(crate) struct Opened {
    pub(crate) files: Files,
    pub(crate) head: HeadFile,
    pub(crate) index: Index,
    pub(crate) revision: Revision,
    pub(crate) lock: File,
}

/// What checking a store found.
pub(crate) struct Checked {
    pub(crate) closed: bool,
    pub(crate) index: Index,
    pub(crate) revision: Revision,
}

/// Why the files can be opened in place.
enum Looked {
    /// There are none yet: creating the store was interrupted.
    NoDatabase,
    /// The checksums that were left when the store was closed match.
    Closed,
    /// The store was not closed; a copy was opened and is whole.
    Killed(Index, Revision),
}

/// Opens the store, creating it if there is none.
pub(crate) fn open(layout: &Layout, cache_bytes: u64, boot_id: &str) -> Result<Opened, OpenError> {
    finish_restore(layout).map_err(layout.io("finish the restore of"))?;
    create_dir(&layout.dir).map_err(layout.io("create"))?;
    let lock = lock(layout)?;
    let Some(head) = existing(layout)? else {
        return create(layout, cache_bytes, boot_id, lock, &Snapshot::default());
    };
    match look(layout, &head, cache_bytes, boot_id)? {
        Looked::Closed => witness::unmark_clean(&layout.dir).map_err(layout.io("write to"))?,
        Looked::Killed(..) => {}
        Looked::NoDatabase => {
            return create(layout, cache_bytes, boot_id, lock, &Snapshot::default());
        }
    }
    let (mut files, index) = Files::open(&layout.files(), cache_bytes).map_err(|e| layout.broken(e))?;
    let mut revision = files.meta().revision;
    behind(layout, &head, revision, boot_id)?;
    let head = if head.boot_id == boot_id {
        HeadFile::open(&layout.dir, head)
    } else {
        revision += REBOOT_SKIP;
        files.reconcile(&index, &index, revision).and_then(|()| files.sync()).map_err(|e| layout.broken(e))?;
        let head = Head { format: FORMAT, boot_id: boot_id.to_owned(), persisted: revision, durable: revision };
        HeadFile::create(&layout.dir, head)
    };
    Ok(Opened { files, head: head.map_err(layout.io("write to"))?, index, revision, lock })
}

/// Checks a store without changing it.
pub(crate) fn check(layout: &Layout, cache_bytes: u64, boot_id: &str) -> Result<Checked, OpenError> {
    let missing = || OpenError::Missing { dir: layout.dir.clone() };
    if !layout.dir.exists() {
        return Err(missing());
    }
    let _lock = lock(layout)?;
    let head = existing(layout)?.ok_or_else(missing)?;
    let (closed, (index, revision)) = match look(layout, &head, cache_bytes, boot_id)? {
        Looked::NoDatabase => return Err(missing()),
        Looked::Killed(index, revision) => (false, (index, revision)),
        // Intact files are no proof that what was written into them is right: read it, too.
        Looked::Closed => (true, probe(layout, cache_bytes)?),
    };
    behind(layout, &head, revision, boot_id)?;
    Ok(Checked { closed, index, revision })
}

/// Creates a store that holds `snapshot` in an empty directory. Whatever the instant of a crash, the directory then
/// counts as empty or as this store.
pub(crate) fn create(
    layout: &Layout,
    cache_bytes: u64,
    boot_id: &str,
    lock: File,
    snapshot: &Snapshot,
) -> Result<Opened, OpenError> {
    let building = layout.dir.join("sled.new");
    let cannot = layout.io("create");
    remove_dir(&building).map_err(&cannot)?;
    // Revision 0 and no database: `look` takes this for a store that was never there.
    let head = Head { format: FORMAT, boot_id: boot_id.to_owned(), persisted: 0, durable: 0 };
    let mut head = HeadFile::create(&layout.dir, head).map_err(&cannot)?;
    create_dir(&building).map_err(&cannot)?;
    let wanted: Index = snapshot
        .entries
        .iter()
        .map(|entry| {
            let stored = Stored { value: entry.value.clone(), revision: entry.revision };
            (entry.key.clone(), stored)
        })
        .collect();
    {
        let (mut files, found) = Files::open(&building, cache_bytes).map_err(|e| layout.broken(e))?;
        files
            .reconcile(&found, &wanted, snapshot.revision)
            .and_then(|()| files.sync())
            .map_err(|e| layout.broken(e))?;
    }
    witness::sync_tree(&building)
        .and_then(|()| fs::rename(&building, layout.files()))
        .and_then(|()| witness::sync_dir(&layout.dir))
        .and_then(|()| match layout.dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => witness::sync_dir(parent),
            Some(_) | None => Ok(()),
        })
        .and_then(|()| head.update(snapshot.revision, snapshot.revision))
        .map_err(&cannot)?;
    let (files, index) = Files::open(&layout.files(), cache_bytes).map_err(|e| layout.broken(e))?;
    Ok(Opened { files, head, index, revision: snapshot.revision, lock })
}

/// Takes the lock that says that this directory is in use.
pub(crate) fn lock(layout: &Layout) -> Result<File, OpenError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(layout.dir.join("lock"))
        .map_err(layout.io("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: layout.dir.clone() }),
        Err(TryLockError::Error(source)) => Err(layout.io("lock")(source)),
    }
}

/// The head of the store in the directory; `None` when there is no store.
fn existing(layout: &Layout) -> Result<Option<Head>, OpenError> {
    let head = witness::read_head(&layout.dir).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => layout.damaged("the file `head` fails its checksum"),
        _ => layout.io("read")(error),
    })?;
    match head {
        Some(head) if head.format > FORMAT => {
            Err(OpenError::Format { dir: layout.dir.clone(), found: head.format, supported: FORMAT })
        }
        Some(head) => Ok(Some(head)),
        // The head is there before the database ever is.
        None if layout.files().exists() => Err(layout.damaged("the file `head` is missing")),
        None => Ok(None),
    }
}

/// Convinces itself that the files can be opened in place.
fn look(layout: &Layout, head: &Head, cache_bytes: u64, boot_id: &str) -> Result<Looked, OpenError> {
    // Left behind by a kill in the middle of checking; it is a copy.
    remove_dir(&layout.probe()).map_err(layout.io("write to"))?;
    let files = layout.files();
    if !files.exists() {
        return if head.persisted == 0 {
            Ok(Looked::NoDatabase)
        } else {
            Err(layout.damaged("the directory `sled` is missing"))
        };
    }
    match witness::check_clean(&layout.dir, &files).map_err(layout.io("read"))? {
        Clean::Yes => Ok(Looked::Closed),
        Clean::No(why) => Err(layout.damaged(why)),
        Clean::Unknown => {
            let (index, revision) = probe(layout, cache_bytes)?;
            behind(layout, head, revision, boot_id)?;
            Ok(Looked::Killed(index, revision))
        }
    }
}

/// Opens and checks a copy.
fn probe(layout: &Layout, cache_bytes: u64) -> Result<(Index, Revision), OpenError> {
    let copy = layout.probe();
    // sled creates what is missing, so a copy that lacks these would look like a new store.
    for part in ["conf", "db", "blobs"] {
        if !layout.files().join(part).exists() {
            return Err(layout.damaged(format!("`sled/{part}` is missing")));
        }
    }
    let result = copy_dir(&layout.files(), &copy)
        .map_err(|source| OpenError::Io {
            action: "make a copy for checking, which needs as much free space as the store, at",
            path: copy.clone(),
            source,
        })
        .and_then(|()| {
            let (files, index) = Files::open(&copy, cache_bytes).map_err(|e| layout.broken(e))?;
            Ok((index, files.meta().revision))
        });
    let removed = remove_dir(&copy).map_err(layout.io("write to"));
    let found = result?;
    removed?;
    Ok(found)
}

/// Refuses files that hold less than what had been acknowledged.
fn behind(layout: &Layout, head: &Head, revision: Revision, boot_id: &str) -> Result<(), OpenError> {
    let expected = head.at_least(boot_id);
    if revision < expected {
        return Err(layout.damaged(format!("it ends at revision {revision}, but revision {expected} had been written")));
    }
    Ok(())
}

/// Completes a restore that was interrupted between moving the old directory aside and moving the new one in.
fn finish_restore(layout: &Layout) -> io::Result<()> {
    let restoring = layout.restoring();
    if layout.dir.exists() || !restoring.join("clean").exists() {
        return Ok(());
    }
    fs::rename(restoring, &layout.dir)
}

pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    create_dir(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        let target = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            copy_dir(&item.path(), &target)?;
        } else {
            fs::copy(item.path(), target)?;
        }
    }
    Ok(())
}
