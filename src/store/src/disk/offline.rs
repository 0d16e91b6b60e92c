//! What a person does to a store that is not running: check, back up, restore.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::opening::{self, Layout};
use super::store::Options;
use super::witness;
use crate::core::{Index, Shared};
use crate::{OpenError, Revision, backup};

/// How far revisions move on with a restore, beyond what the lost ones can have reached: watchers and clients that
/// remember one of those are told to list again, and none is given out twice.
const RESTORE_SKIP: Revision = 1 << 32;

/// What a check found in a good store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The last revision.
    pub revision: Revision,
    /// How many entries there are.
    pub entries: usize,
    /// How many bytes their values add up to.
    pub bytes: u64,
    /// Whether it was closed properly. After a crash or kill it was not, which is no damage.
    pub closed: bool,
    /// The newest backup that verifies.
    pub newest_backup: Option<PathBuf>,
}

/// Reads everything in the store and checks it, without changing it. Needs as much free space as the store, for a copy.
pub fn check(options: &Options) -> Result<Report, OpenError> {
    let layout = options.layout();
    let checked = opening::check(&layout, options.cache_bytes, &options.boot_id()?)?;
    Ok(Report {
        revision: checked.revision,
        entries: checked.index.len(),
        bytes: checked.index.values().map(|s| s.value.len() as u64).sum(),
        closed: checked.closed,
        newest_backup: backup::newest_good(&layout.backups),
    })
}

/// Writes a backup of a store that is not running into the new file `to`, and returns its revision.
pub fn back_up(options: &Options, to: &Path) -> Result<Revision, OpenError> {
    let layout = options.layout();
    let checked = opening::check(&layout, options.cache_bytes, &options.boot_id()?)?;
    let shared = Shared::new(checked.index, checked.revision, 0);
    Ok(backup::write(&shared.list(""), to)?)
}

/// What a restore does to a directory that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// Refuses with [`OpenError::Occupied`].
    Refuse,
    /// Renames it to `<dir>.damaged-<seconds since the Unix epoch>`.
    MoveAside,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The restored store's revision: far beyond the backup's, so that no revision is given out twice.
    pub revision: Revision,
    /// How many entries it holds.
    pub entries: usize,
    /// Where the old directory is now.
    pub moved_to: Option<PathBuf>,
}

/// Makes the store in `options.dir` hold what the backup holds.
///
/// The new store is built beside and renamed into place. A crash in between leaves the old store, or a state that the
/// next open completes to the new one.
pub fn restore(from: &Path, options: &Options, occupied: Occupied) -> Result<Restored, OpenError> {
    let layout = options.layout();
    let boot_id = options.boot_id()?;
    let mut snapshot = backup::read(from)?;
    snapshot.revision += RESTORE_SKIP;

    let in_the_way = is_occupied(&layout.dir).map_err(layout.io("read"))?;
    // Held until the end, so that no daemon starts in between.
    let _lock = match (in_the_way, occupied) {
        (true, Occupied::Refuse) => {
            return Err(OpenError::Occupied { dir: layout.dir.clone() });
        }
        (true, Occupied::MoveAside) => Some(opening::lock(&layout)?),
        (false, _) => None,
    };

    let building = Layout { dir: layout.restoring(), backups: layout.backups.clone() };
    put_leftovers_aside(&layout).map_err(building.io("clear"))?;
    opening::create_dir(&building.dir).map_err(building.io("create"))?;
    let opened = opening::create(&building, options.cache_bytes, &boot_id, opening::lock(&building)?, &snapshot)?;
    let wanted: Index = snapshot
        .entries
        .into_iter()
        .map(|entry| {
            let stored = crate::core::Stored { value: entry.value, revision: entry.revision };
            (entry.key, stored)
        })
        .collect();
    if opened.index != wanted {
        return Err(building.damaged("what was written is not what was read back"));
    }
    drop(opened);
    // From here on, an interrupted restore is completed by the next open.
    witness::mark_clean(&building.dir, &building.files()).map_err(building.io("write to"))?;

    let rename = layout.io("rename");
    let moved_to = if in_the_way {
        let aside = aside(&layout.dir);
        fs::rename(&layout.dir, &aside).map_err(&rename)?;
        Some(aside)
    } else {
        None
    };
    fs::rename(&building.dir, &layout.dir).and_then(|()| sync_parent(&layout.dir)).map_err(&rename)?;
    Ok(Restored { revision: snapshot.revision, entries: wanted.len(), moved_to })
}

fn is_occupied(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut items) => Ok(items.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// An unfinished directory of an earlier restore is removed, a finished one kept: it could be all there is.
fn put_leftovers_aside(layout: &Layout) -> io::Result<()> {
    let leftover = layout.restoring();
    if leftover.join("clean").exists() {
        fs::rename(&leftover, aside(&layout.dir))
    } else {
        opening::remove_dir(&leftover)
    }
}

fn aside(dir: &Path) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    (0..u32::MAX)
        .map(|n| {
            let mut name = dir.as_os_str().to_owned();
            name.push(format!(".damaged-{seconds}"));
            if n > 0 {
                name.push(format!(".{n}"));
            }
            PathBuf::from(name)
        })
        .find(|path| !path.exists())
        .unwrap_or_else(|| dir.with_extension("damaged"))
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => witness::sync_dir(parent),
        Some(_) | None => witness::sync_dir(Path::new(".")),
    }
}
