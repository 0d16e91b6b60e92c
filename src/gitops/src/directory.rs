//! A directory as a Source sees it: watched, settled, hashed, read.
//!
//! Blocks for the disk; callers give it a thread.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ostler_core::Kind;
use ostler_core::kinds::{DeletionLimit, SOURCE, SourceRevision, WAVE};
use ostler_manifest::{Document, Gathered, Input};
use ostler_watch::{Concern, DirectoryWatcher};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::git::{self, Repository};
use crate::inventory::Item;
use crate::plan::TooMany;
use crate::scan::{self, Listing, ScanError};

/// Without a hint for so long, whoever writes is taken to have finished.
const QUIET: Duration = Duration::from_millis(100);
/// Somebody who writes all the time is not waited for longer than this; two looks still have to agree.
const LONGEST_DEBOUNCE: Duration = Duration::from_secs(2);
/// Between two looks that have to agree.
const APART: Duration = Duration::from_millis(50);
/// A file that was written so shortly before it was read may have been written again in the same tick of its clock.
const TICK: i128 = 20_000_000;
/// So often a look is begun anew because something changed meanwhile.
const ATTEMPTS: usize = 10;
/// How long Git may be at work before its lock counts as left behind.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Why a revision cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// One word in CamelCase.
    pub reason: &'static str,
    /// What is wrong, and where: `file:line:column` where it is about a place.
    pub message: String,
}

impl Broken {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// A revision of a Source that deletes more than `limit`.
    pub(crate) fn too_many(why: &TooMany, limit: DeletionLimit) -> Self {
        let message = format!(
            "{why} (maxDeletions: {limit}); nothing was changed. If that is what you want: ostler sync --allow-prune"
        );
        Self { reason: "TooManyDeletions", message }
    }
}

/// What a name in the directory of a Source means. Processes write into the directory of their manifest, too.
fn concern(path: &Path) -> Concern {
    if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
        Concern::Nothing
    } else if scan::is_manifest(path) {
        Concern::Everything
    } else {
        Concern::Directories
    }
}

/// An object of a revision, ready to be sent.
#[derive(Debug)]
pub struct Rendered {
    /// Which one it is.
    pub item: Item,
    /// Lower ones first.
    pub wave: i64,
    /// As the API takes it.
    pub json: bytes::Bytes,
    document: Document,
}

impl Rendered {
    /// `web.yaml:12:7` of a field.
    pub fn place(&self, field: &str) -> String {
        let (line, column) = self.document.place(field);
        format!("{}:{line}:{column}", self.document.origin.file)
    }
}

/// What a settled directory holds.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) revision: SourceRevision,
    files: Vec<Gathered>,
}

/// A directory under observation.
pub(crate) struct Directory {
    root: PathBuf,
    watcher: DirectoryWatcher,
    /// What the last look that was trusted showed.
    signature: Option<[u8; 32]>,
    hash: String,
    /// When what it holds was first seen.
    since: Instant,
    git: Option<Repository>,
    lock_patience: Duration,
    /// When Git's lock was first seen, with the files as they were.
    busy_since: Option<(Instant, Option<[u8; 32]>)>,
}

/// What a look came to.
#[derive(Debug)]
pub(crate) enum Look {
    /// Nothing has changed since the last look, going by names, sizes, times and inodes; at most the commit.
    Same(SourceRevision),
    /// What is there.
    Content(Content),
    /// It cannot be read.
    Unreadable(ScanError),
    /// Somebody is at work on it.
    Busy(&'static str),
}

impl Directory {
    pub(crate) fn new(root: PathBuf, wake: Arc<Notify>) -> Self {
        let watcher = DirectoryWatcher::new(wake, concern);
        Self {
            root,
            watcher,
            signature: None,
            hash: String::new(),
            since: Instant::now(),
            git: None,
            lock_patience: LOCK_PATIENCE,
            busy_since: None,
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Why not every change is heard of.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.watcher.trouble.as_deref()
    }

    /// Whether something may have changed since the last look.
    pub(crate) fn has_news(&self) -> bool {
        self.watcher.last().is_some()
    }

    /// How long it has held what it holds.
    pub(crate) fn stood(&self) -> Duration {
        self.since.elapsed()
    }

    /// The next look reads everything, whatever it looks like from outside.
    pub(crate) fn forget(&mut self) {
        self.signature = None;
    }

    /// Waits until nobody writes, and looks.
    pub(crate) fn look(&mut self) -> Look {
        for _ in 0..ATTEMPTS {
            if let Some(look) = self.try_look() {
                return look;
            }
        }
        Look::Busy("the files go on changing")
    }

    /// Looks once; nothing when something changed meanwhile.
    fn try_look(&mut self) -> Option<Look> {
        let began = Instant::now();
        while let Some(last) = self.watcher.last() {
            let quiet = last.elapsed();
            if quiet >= QUIET || began.elapsed() > LONGEST_DEBOUNCE {
                break;
            }
            std::thread::sleep(QUIET.saturating_sub(quiet));
        }
        let mut heard = self.watcher.take();
        self.git = git::find(&self.root);
        // Watches first: what happens after the listing is heard then. A new directory may hold more of them.
        let listing = loop {
            let listing = scan::list(&self.root);
            let (directories, names) = match &listing {
                Ok(listing) => (listing.directories.as_slice(), listing.anchors.clone()),
                Err((_, anchors)) => (&[][..], anchors.clone()),
            };
            let new = self.watcher.watch(directories, &self.with_git(names), heard.lost);
            heard.lost = false;
            if !new {
                break listing;
            }
        };
        if let Some(why) = self.git_at_work(listing.as_ref().ok().map(|seen| seen.signature)) {
            return Some(Look::Busy(why));
        }
        let seen = match listing {
            Ok(seen) => seen,
            Err((error, _)) => {
                self.signature = None;
                // What is missing now may be on its way.
                std::thread::sleep(APART);
                let again = scan::list(&self.root).err().map(|(again, _)| again)?;
                return (again.to_string() == error.to_string()).then_some(Look::Unreadable(again));
            }
        };
        if Some(seen.signature) == self.signature {
            return Some(Look::Same(self.revision()));
        }
        self.signature = None;
        let looked = now();
        let files = match gather(&self.root, &seen) {
            Ok(files) => files,
            Err(ScanError::Missing(_)) => return None,
            Err(error) => return Some(Look::Unreadable(error)),
        };
        let hash = hash(&files);
        std::thread::sleep(APART);
        // It may have begun after it was looked for, also with a repository that was not there.
        self.git = git::find(&self.root);
        if let Some(why) = self.git_at_work(Some(seen.signature)) {
            return Some(Look::Busy(why));
        }
        let again = scan::list(&self.root).ok().filter(|again| again.signature == seen.signature)?;
        // Times do not tell apart what happened within one tick of the file system's clock.
        if seen.youngest > looked - TICK && gather(&self.root, &again).map(|files| self::hash(&files)).ok()? != hash {
            return None;
        }
        self.signature = Some(seen.signature);
        if self.hash != hash {
            self.hash = hash;
            self.since = Instant::now();
        }
        Some(Look::Content(Content { revision: self.revision(), files }))
    }

    /// Whether Git is at work on the files, which look like this, unless its lock was left behind: as long as they go on
    /// changing, it was not.
    fn git_at_work(&mut self, signature: Option<[u8; 32]>) -> Option<&'static str> {
        if !self.git.as_ref().is_some_and(Repository::is_busy) {
            self.busy_since = None;
            return None;
        }
        let since = match self.busy_since {
            Some((since, known)) if known == signature => since,
            Some(_) | None => {
                let now = Instant::now();
                self.busy_since = Some((now, signature));
                now
            }
        };
        (since.elapsed() < self.lock_patience).then_some("Git is at work (.git/index.lock)")
    }

    fn revision(&self) -> SourceRevision {
        let (commit, branch) = self.git.as_ref().map(Repository::head).unwrap_or_default();
        SourceRevision { hash: self.hash.clone(), commit, branch }
    }

    fn with_git(&self, mut names: BTreeSet<(PathBuf, OsString)>) -> BTreeSet<(PathBuf, OsString)> {
        if let Some(git) = &self.git {
            names.extend(git::TELLING.map(|name| (git.directory.clone(), name.into())));
        }
        names
    }
}

/// Nanoseconds of Unix time.
fn now() -> i128 {
    i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or_default()
}

fn gather(root: &Path, listing: &Listing) -> Result<Vec<Gathered>, ScanError> {
    let mut left = ostler_manifest::MAX_TOTAL;
    let mut files = Vec::with_capacity(listing.files.len());
    for relative in &listing.files {
        let path = root.join(relative);
        let bytes = read(&path)?;
        left = left.checked_sub(bytes.len() as u64).ok_or(ScanError::TooMuch)?;
        let base = path.parent().unwrap_or(root).to_owned();
        files.push(Gathered { name: relative.display().to_string(), bytes, base });
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, ScanError> {
    let fail = |error: io::Error| ScanError::io(path, error);
    // It may have been replaced since it was listed: never wait for the writer of a pipe.
    let flags = 0o4000;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(ScanError::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.size().min(1 << 20)).unwrap_or_default());
    file.take(ostler_manifest::MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > ostler_manifest::MAX_FILE {
        return Err(ScanError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// Hash over names and content.
fn hash(files: &[Gathered]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        for part in [file.name.as_bytes(), &file.bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// So many errors are told; the rest is counted.
const ERRORS: usize = 5;

/// Joins errors, of which there may be very many.
pub(crate) fn join(errors: impl ExactSizeIterator<Item = String>) -> String {
    let more = errors.len().saturating_sub(ERRORS);
    let mut text = errors.take(ERRORS).collect::<Vec<_>>().join("\n");
    if more > 0 {
        let _ = write!(text, "\nand {more} more");
    }
    text
}

impl Content {
    /// The objects in the order in which they take effect, each with its namespace and marked as brought by `source`.
    pub(crate) fn render(self, source: &str, namespace: &str) -> Result<Vec<Rendered>, Broken> {
        if self.files.is_empty() {
            return Err(Broken::new("Empty", "there are no .yaml, .yml or .json files in the directory"));
        }
        let input = Input::Files { name: "the directory".to_owned(), files: self.files };
        let documents = ostler_manifest::load(&[input]).map_err(|errors| {
            if let [only] = errors.as_slice()
                && only.file == "the directory"
            {
                return Broken::new("Empty", "there is no object in the files of the directory");
            }
            Broken::new("Invalid", join(errors.iter().map(shown)))
        })?;
        let mut objects = Vec::with_capacity(documents.len());
        let mut errors = Vec::new();
        let mut seen = std::collections::HashMap::new();
        for document in documents {
            match render(document, source, namespace) {
                Ok(object) => {
                    // Two may be the same only when the one without a namespace is given one.
                    if let Some(first) = seen.insert(object.item.clone(), object.place("metadata.name")) {
                        let place = object.place("metadata.name");
                        errors.push(format!("{place}: {} is given twice; first in {first}", object.item));
                    }
                    objects.push(object);
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(Broken::new("Invalid", join(errors.into_iter())));
        }
        // What lives in a namespace may be in any wave.
        let lowest = objects.iter().map(|object| object.wave).min().unwrap_or_default();
        for object in &mut objects {
            if object.item.kind == Kind::Namespace {
                object.wave = lowest;
            }
        }
        // Stable: within a wave and kind, as they are written.
        objects.sort_by_key(|object| (object.wave, object.item.kind));
        Ok(objects)
    }
}

fn shown(error: &ostler_manifest::Diagnostic) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    let text = if error.line == 0 {
        format!("{}: {}{hint}", error.file, error.message)
    } else {
        format!("{}:{}:{}: {}{hint}", error.file, error.line, error.column, error.message)
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn render(mut document: Document, source: &str, namespace: &str) -> Result<Rendered, String> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == document.kind).unwrap_or(Kind::Process);
    let mut object = std::mem::take(&mut document.json);
    let namespace = if kind.is_namespaced() {
        let own = document.namespace.clone().unwrap_or_else(|| namespace.to_owned());
        object["metadata"]["namespace"] = Value::String(own.clone());
        own
    } else {
        String::new()
    };
    let annotations = &mut object["metadata"]["annotations"];
    let wave = match annotations.get(WAVE) {
        None => 0,
        Some(value) => value.as_str().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            let (line, column) = document.place(&format!("metadata.annotations.{WAVE}"));
            format!("{}:{line}:{column}: {WAVE} must be a whole number in quotes, such as \"1\"", document.origin.file)
        })?,
    };
    if annotations.is_null() {
        *annotations = Value::Object(serde_json::Map::new());
    }
    annotations[SOURCE] = Value::String(source.to_owned());
    let json = serde_json::to_vec(&object).unwrap_or_default().into();
    let item = Item { kind, namespace, name: document.name.clone() };
    Ok(Rendered { item, wave, json, document })
}

/// Whether there is a directory at all, for a warning when a Source is made for it.
pub(crate) fn is_directory(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_left_behind_when_nothing_has_changed_for_long() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(".git/refs")).unwrap();
        fs::create_dir_all(root.path().join(".git/objects")).unwrap();
        fs::write(root.path().join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::write(root.path().join(".git/index.lock"), "").unwrap();
        let mut directory = Directory::new(root.path().to_owned(), Arc::default());
        directory.lock_patience = Duration::from_millis(300);
        // At work for much longer than that, and seen to be.
        let began = Instant::now();
        let mut number = 0;
        while began.elapsed() < Duration::from_millis(1200) {
            number += 1;
            fs::write(root.path().join("a.yaml"), "x".repeat(number)).unwrap();
            let before = Instant::now();
            let look = directory.look();
            if before.elapsed() < Duration::from_millis(300) {
                assert!(matches!(look, Look::Busy(_)), "{look:?}");
            }
        }
        let began = Instant::now();
        while !matches!(directory.look(), Look::Content(_)) {
            assert!(began.elapsed() < Duration::from_secs(30), "the lock is never given up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn how_long_a_directory_stood_counts_from_its_last_change() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), "a").unwrap();
        let mut directory = Directory::new(root.path().to_owned(), Arc::default());
        let look = |directory: &mut Directory| {
            let began = Instant::now();
            while !matches!(directory.look(), Look::Content(_)) {
                assert!(began.elapsed() < Duration::from_secs(30));
                directory.forget();
            }
        };
        look(&mut directory);
        let first = directory.since;
        directory.forget();
        look(&mut directory);
        assert_eq!(directory.since, first, "looking changes nothing");
        fs::write(root.path().join("b.yaml"), "b").unwrap();
        look(&mut directory);
        assert!(directory.since > first);
    }
}
