//! Wakes whoever looks at directories when there may be something new in them.
//!
//! What the kernel says is only a hint: the directory is listed again, and every listing says anew what is to be watched.
//! Directories are watched one by one. One that was deleted and made again is another one (its watch is silent), what
//! lies behind a symbolic link is watched where it is, and so are the names of the links.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use crate::links::{Anchors, DirectoryId};

/// With more directories gone than this, all watches are made anew.
const MOST_VANISHED: usize = 4096;
/// With more paths heard of than this, it is not known which.
const MOST_PATHS: usize = 1024;

/// What a name in a watched directory means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Nothing, whatever it is.
    Nothing,
    /// Something if it is a directory.
    Directories,
    /// Something, whatever it is.
    Everything,
}

/// What has been heard since somebody last asked.
#[derive(Debug, Default)]
pub struct Heard {
    /// Something may have changed.
    pub changed: bool,
    /// When the last hint came.
    pub at: Option<Instant>,
    /// Hints were lost: nothing that is known of watches can be relied on, and `paths` are not all.
    pub lost: bool,
    /// What the hints were about; empty when that is unknown, or too much.
    pub paths: HashSet<PathBuf>,
    /// There were more of them than are kept.
    pub many: bool,
    /// Directories that were removed or renamed: their watches are gone, or speak of something else.
    vanished: HashSet<PathBuf>,
}

/// What matters, for the thread that hears the hints.
struct Filter {
    directories: HashSet<PathBuf>,
    names: HashMap<PathBuf, HashSet<OsString>>,
    concern: Box<dyn Fn(&Path) -> Concern + Send>,
}

struct Shared {
    heard: Mutex<Heard>,
    filter: Mutex<Filter>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches directories.
pub struct DirectoryWatcher {
    watcher: Option<RecommendedWatcher>,
    watched: HashMap<PathBuf, DirectoryId>,
    shared: Arc<Shared>,
    /// Why not everything is watched: the directory has to be looked at more often.
    pub trouble: Option<String>,
}

impl DirectoryWatcher {
    /// Notifies `wake` of every hint about a name that is of concern.
    pub fn new(wake: Arc<Notify>, concern: impl Fn(&Path) -> Concern + Send + 'static) -> Self {
        let shared = Arc::new(Shared::new(Box::new(concern)));
        let handler = Arc::clone(&shared);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if handler.take(event) {
                wake.notify_one();
            }
        });
        let (watcher, trouble) = match watcher {
            Ok(watcher) => (Some(watcher), None),
            Err(why) => (None, Some(why.to_string())),
        };
        Self { watcher, watched: HashMap::new(), shared, trouble }
    }

    /// What has been heard; the next call tells only of what comes after this one.
    pub fn take(&self) -> Heard {
        let mut heard = lock(&self.shared.heard);
        // Whoever sets up watches again takes these.
        let vanished = std::mem::take(&mut heard.vanished);
        let taken = std::mem::take(&mut *heard);
        heard.vanished = vanished;
        taken
    }

    /// Whether the kernel could be asked at all.
    pub fn works(&self) -> bool {
        self.watcher.is_some()
    }

    /// Whether the kernel watches a directory.
    pub fn is_watched(&self, directory: &Path) -> bool {
        self.watched.contains_key(directory)
    }

    /// When the last hint that nobody has taken came.
    pub fn last(&self) -> Option<Instant> {
        lock(&self.shared.heard).at
    }

    /// Watches these directories, these names in others, and nothing else. Returns whether a watch is new: what
    /// happened before it was there was not heard of.
    pub fn watch(&mut self, directories: &[(PathBuf, DirectoryId)], names: &Anchors, anew: bool) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let mut wanted: HashMap<&Path, Option<DirectoryId>> =
            directories.iter().map(|(path, id)| (path.as_path(), Some(*id))).collect();
        for (directory, _) in names {
            wanted.entry(directory).or_insert_with(|| {
                std::fs::metadata(directory).ok().filter(std::fs::Metadata::is_dir).map(|it| DirectoryId::of(&it))
            });
        }
        {
            let mut filter = lock(&self.shared.filter);
            filter.directories = directories.iter().map(|(path, _)| path.clone()).collect();
            filter.names = HashMap::new();
            for (directory, name) in names {
                filter.names.entry(directory.clone()).or_default().insert(name.clone());
            }
        }
        let vanished = std::mem::take(&mut lock(&self.shared.heard).vanished);
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, id)| {
                anew || wanted.get(path.as_path()).copied().flatten() != Some(**id)
                    || path.ancestors().any(|ancestor| vanished.contains(ancestor))
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            self.watched.remove(&path);
            // It may have ended by itself, with the directory.
            let _ = watcher.unwatch(&path);
        }
        self.trouble = None;
        let mut new = false;
        for (path, id) in wanted {
            let Some(id) = id else { continue };
            if self.watched.contains_key(path) {
                continue;
            }
            match watcher.watch(path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path.to_owned(), id);
                    new = true;
                }
                // It went in between, of which the watch of its parent tells.
                Err(why) if matches!(why.kind, notify::ErrorKind::PathNotFound) => new = true,
                Err(why) => {
                    self.trouble = Some(format!("cannot watch {}: {why}", path.display()));
                    if matches!(why.kind, notify::ErrorKind::MaxFilesWatch) {
                        break;
                    }
                }
            }
        }
        new
    }
}

impl Shared {
    fn new(concern: Box<dyn Fn(&Path) -> Concern + Send>) -> Self {
        let filter = Filter { directories: HashSet::new(), names: HashMap::new(), concern };
        Self { heard: Mutex::default(), filter: Mutex::new(filter) }
    }

    /// Takes a hint; whether it matters.
    fn take(&self, event: notify::Result<notify::Event>) -> bool {
        let event = match event {
            // Hints come without paths when there were too many of them.
            Ok(event) if event.need_rescan() => {
                let mut heard = lock(&self.heard);
                (heard.changed, heard.lost, heard.at) = (true, true, Some(Instant::now()));
                return true;
            }
            Ok(event) => event,
            Err(_) => {
                let mut heard = lock(&self.heard);
                (heard.changed, heard.lost, heard.at) = (true, true, Some(Instant::now()));
                return true;
            }
        };
        let filter = lock(&self.filter);
        let mut about = Vec::new();
        let moved = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
        for path in &event.paths {
            if filter.matters(&event.kind, path) {
                about.push(path);
            }
            if moved && filter.may_be_directory(path) {
                let mut heard = lock(&self.heard);
                // While nobody looks (a Source that is suspended), they must not pile up.
                if heard.vanished.len() < MOST_VANISHED {
                    heard.vanished.insert(path.clone());
                } else {
                    heard.vanished = HashSet::new();
                    heard.lost = true;
                }
            }
        }
        if about.is_empty() {
            return false;
        }
        let mut heard = lock(&self.heard);
        (heard.changed, heard.at) = (true, Some(Instant::now()));
        for path in about {
            if heard.paths.len() < MOST_PATHS {
                heard.paths.insert(path.clone());
            } else if !heard.paths.contains(path) {
                heard.many = true;
            }
        }
        true
    }
}

impl Filter {
    /// Whether a directory of this name may have been watched.
    fn may_be_directory(&self, path: &Path) -> bool {
        self.directories.contains(path) || (self.concern)(path) != Concern::Everything
    }

    /// Whether something may have become of what is looked at. Others write into the same directories, too.
    fn matters(&self, kind: &EventKind, path: &Path) -> bool {
        match kind {
            // Also our own reading.
            EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write) => return false,
            EventKind::Access(_)
            | EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => {}
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return true };
        if self.names.get(parent).is_some_and(|names| names.contains(name)) || self.directories.contains(path) {
            return true;
        }
        if !self.directories.contains(parent) {
            return false;
        }
        let concern = (self.concern)(path);
        match kind {
            _ if concern == Concern::Nothing => false,
            _ if concern == Concern::Everything => true,
            EventKind::Create(CreateKind::Folder | CreateKind::Any | CreateKind::Other)
            | EventKind::Remove(RemoveKind::Folder | RemoveKind::Any | RemoveKind::Other)
            // It may be that of a directory.
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Any
            | EventKind::Other => true,
            EventKind::Create(CreateKind::File)
            | EventKind::Remove(RemoveKind::File)
            | EventKind::Modify(ModifyKind::Any | ModifyKind::Data(_) | ModifyKind::Metadata(_) | ModifyKind::Other)
            | EventKind::Access(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use notify::Event;
    use notify::event::{DataChange, Flag, MetadataKind, RenameMode};

    use super::*;

    /// Manifests are files with this ending; hidden names are none of them.
    fn manifests(path: &Path) -> Concern {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            Concern::Nothing
        } else if name.ends_with(".yaml") || name.ends_with(".json") {
            Concern::Everything
        } else {
            Concern::Directories
        }
    }

    fn filter() -> Filter {
        Filter {
            concern: Box::new(manifests),
            directories: ["/apps".into(), "/apps/more".into()].into(),
            names: [("/".into(), ["apps".into()].into()), ("/apps".into(), ["..data".into()].into())].into(),
        }
    }

    #[test]
    fn only_what_can_change_manifests_matters() {
        let filter = filter();
        let data = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let rename = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        for (kind, path, expected) in [
            (data, "/apps/web.yaml", true),
            (data, "/apps/more/web.json", true),
            (data, "/apps/web.log", false),
            (data, "/apps/.web.yaml.swp", false),
            (EventKind::Access(AccessKind::Open(AccessMode::Any)), "/apps/web.yaml", false),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), "/apps/web.yaml", true),
            (EventKind::Create(CreateKind::Folder), "/apps/new", true),
            (EventKind::Create(CreateKind::File), "/apps/data.db", false),
            (EventKind::Remove(RemoveKind::Folder), "/apps/more", true),
            (rename, "/apps/renamed", true),
            (rename, "/apps/..data", true),
            (EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)), "/apps/more", true),
            (EventKind::Create(CreateKind::Folder), "/apps", true),
            (EventKind::Create(CreateKind::Folder), "/tmp", false),
            (data, "/other/web.yaml", false),
        ] {
            assert_eq!(filter.matters(&kind, Path::new(path)), expected, "{kind:?} {path}");
        }
    }

    #[test]
    fn lost_hints_and_errors_make_everything_doubtful() {
        for event in [Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)), Err(notify::Error::generic("overflow"))]
        {
            let shared = Shared::new(Box::new(manifests));
            assert!(shared.take(event), "nobody is woken");
            let heard = shared.heard.into_inner().unwrap();
            assert!(heard.changed && heard.lost);
        }
    }

    #[test]
    fn what_vanishes_while_nobody_looks_takes_no_room() {
        let shared = Shared::new(Box::new(manifests));
        for number in 0..100_000 {
            let event = Event::new(EventKind::Remove(RemoveKind::Folder)).add_path(format!("/apps/{number}").into());
            let _ = shared.take(Ok(event));
        }
        let heard = shared.heard.into_inner().unwrap();
        assert!(heard.lost && heard.vanished.len() <= MOST_VANISHED, "{}", heard.vanished.len());
    }

    /// Waits until something is heard.
    fn hears(watcher: &DirectoryWatcher, what: &str) {
        let began = Instant::now();
        while !watcher.take().changed {
            assert!(began.elapsed() < Duration::from_secs(60), "nothing heard of {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn what_is_watched_anew_or_made_again_is_heard_of() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let apps = root.join("apps");
        fs::create_dir(&apps).unwrap();
        let mut watcher = DirectoryWatcher::new(Arc::default(), manifests);
        let watch = |watcher: &mut DirectoryWatcher, anew: bool| {
            let directories = [(apps.clone(), DirectoryId::of(&fs::metadata(&apps).unwrap()))];
            let new = watcher.watch(&directories, &crate::anchors(&apps), anew);
            (new, watcher.trouble.clone())
        };
        assert_eq!(watch(&mut watcher, false), (true, None));
        assert_eq!(watch(&mut watcher, false), (false, None), "what is watched is watched once");
        assert_eq!(watch(&mut watcher, true), (true, None));
        fs::write(apps.join("a.yaml"), "x").unwrap();
        hears(&watcher, "a file after watching anew");
        // The same name, and most likely the same inode.
        for _ in 0..5 {
            fs::remove_dir_all(&apps).unwrap();
            hears(&watcher, "a directory that was deleted");
            fs::create_dir(&apps).unwrap();
            hears(&watcher, "a directory that was made again");
            // Hints may come late: whoever looks, looks again for each.
            watch(&mut watcher, false);
            fs::write(apps.join("b.yaml"), "x").unwrap();
            hears(&watcher, "a file in a directory that was made again");
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(30) && watch(&mut watcher, false).0 {}
            watcher.take();
        }
    }
}
