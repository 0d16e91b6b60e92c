//! Looks at files: which there are, and what it shows that the content of one has changed.
//!
//! Content decides and not the time of change. A file is read again only when its inode, its size or its times are not
//! those of the look before, so a look at files that have not changed reads none. Blocks for the disk.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ostler_core::globs::Globs;
use sha2::{Digest as _, Sha256};

use crate::links::{Anchors, DirectoryId, anchors};

/// The most files that are looked at.
pub const MOST_FILES: usize = 20_000;
/// The most directories that are looked into.
pub const MOST_DIRECTORIES: usize = 10_000;
/// How deep directories may be nested.
const MAX_DEPTH: usize = 64;
/// Of a file larger than this, size and time of change count instead of the content.
const LARGE: u64 = 16 << 20;
/// A file that changed so shortly before it was read may change again within the same tick of its clock: nanoseconds.
const YOUNG: i128 = 2_000_000_000;
/// Opening a pipe does not wait for somebody to write.
const O_NONBLOCK: i32 = 0o4000;

/// A file or directory to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// How it is called towards people.
    pub shown: String,
    /// Where it is, absolute.
    pub path: PathBuf,
}

/// There is more than is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// Files.
    #[error("more than {MOST_FILES} files")]
    Files,
    /// Directories.
    #[error("more than {MOST_DIRECTORIES} directories")]
    Directories,
}

/// What is known of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: i128,
    changed: i128,
    /// It may have changed since without a trace.
    young: bool,
    hash: [u8; 16],
}

/// The files of a look, by the names they have towards people.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<String, Stamp>);

impl Known {
    /// Names of the files that are not what they were, or only in one of the two.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let gone = self.0.keys().filter(|name| !after.0.contains_key(*name));
        let new = after.0.iter().filter(|(name, now)| self.0.get(*name).is_none_or(|was| was.hash != now.hash));
        let mut found: Vec<String> = gone.chain(new.map(|(name, _)| name)).cloned().collect();
        found.sort();
        found
    }

    /// The file that changed last.
    pub fn youngest(&self) -> Option<&str> {
        self.0.iter().max_by_key(|(_, stamp)| stamp.changed).map(|(name, _)| name.as_str())
    }
}

/// What a look showed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Hash of names and content.
    pub fingerprint: String,
    /// How many files there are.
    pub files: u32,
    /// When the youngest file or directory changed, microseconds of Unix time; 0 when there is none.
    pub youngest: i64,
    /// What is to be watched: directories, each with the root it is below.
    pub directories: Vec<(PathBuf, DirectoryId, PathBuf)>,
    /// And names.
    pub anchors: Anchors,
    /// The files.
    pub known: Known,
}

/// Looks at what is below `roots` and counts by `globs`. Nothing below a directory of `never` does.
///
/// # Errors
/// There is too much of it; what is to be watched is not known then.
pub fn look(roots: &[Root], globs: &Globs, never: &[DirectoryId], before: &Known) -> Result<Seen, TooMany> {
    let mut looker = Looker { seen: Seen::default(), visited: HashSet::new(), globs, never, before };
    for root in roots {
        looker.root(root)?;
    }
    let mut seen = looker.seen;
    let mut hash = Sha256::new();
    for (name, stamp) in &seen.known.0 {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(stamp.hash);
    }
    seen.fingerprint = hash.finalize()[..16].iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
        text
    });
    seen.files = u32::try_from(seen.known.0.len()).unwrap_or(u32::MAX);
    Ok(seen)
}

struct Looker<'a> {
    seen: Seen,
    /// Directories that were looked into: with overlapping roots, once is enough.
    visited: HashSet<PathBuf>,
    globs: &'a Globs,
    never: &'a [DirectoryId],
    before: &'a Known,
}

impl Looker<'_> {
    fn root(&mut self, root: &Root) -> Result<(), TooMany> {
        self.seen.anchors.extend(anchors(&root.path));
        // What is missing or cannot be entered holds no files; the names on the way to it are watched.
        let Ok(metadata) = fs::metadata(&root.path) else { return Ok(()) };
        if metadata.is_dir() {
            self.directory(&root.path, root, Path::new(""), &metadata, 0)
        } else {
            self.file(&root.path, root.shown.clone(), &metadata)
        }
    }

    fn directory(
        &mut self,
        path: &Path,
        root: &Root,
        relative: &Path,
        metadata: &Metadata,
        depth: usize,
    ) -> Result<(), TooMany> {
        let id = DirectoryId::of(metadata);
        if self.never.contains(&id) || depth > MAX_DEPTH || !self.visited.insert(path.to_owned()) {
            return Ok(());
        }
        if self.seen.directories.len() == MOST_DIRECTORIES {
            return Err(TooMany::Directories);
        }
        self.seen.directories.push((path.to_owned(), id, root.path.clone()));
        self.aged(metadata);
        let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let (path, relative) = (path.join(&name), relative.join(&name));
            if self.globs.excludes(&relative) {
                continue;
            }
            let Ok(kind) = entry.file_type() else { continue };
            // It may have gone in between, of which there will be a hint.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if kind.is_dir() {
                self.directory(&path, root, &relative, &metadata, depth + 1)?;
                continue;
            }
            if metadata.is_dir() || !self.globs.includes(&relative) {
                continue;
            }
            if kind.is_symlink() {
                self.seen.anchors.extend(anchors(&path));
            }
            let shown = Path::new(&root.shown).join(&relative).display().to_string();
            self.file(&path, shown, &metadata)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, shown: String, metadata: &Metadata) -> Result<(), TooMany> {
        if !metadata.is_file() || self.seen.known.0.contains_key(&shown) {
            return Ok(());
        }
        if self.seen.known.0.len() == MOST_FILES {
            return Err(TooMany::Files);
        }
        self.aged(metadata);
        let mut stamp = stamp(metadata);
        let same = self
            .before
            .0
            .get(&shown)
            .filter(|was| !was.young && Stamp { hash: stamp.hash, ..**was } == Stamp { young: false, ..stamp });
        stamp.hash = match same {
            Some(was) => was.hash,
            None => content(path, metadata),
        };
        self.seen.known.0.insert(shown, stamp);
        Ok(())
    }

    fn aged(&mut self, metadata: &Metadata) {
        let micros = i64::try_from(changed(metadata) / 1000).unwrap_or(i64::MAX);
        self.seen.youngest = self.seen.youngest.max(micros);
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

fn changed(metadata: &Metadata) -> i128 {
    nanoseconds(metadata.ctime(), metadata.ctime_nsec())
}

/// Without the hash.
fn stamp(metadata: &Metadata) -> Stamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
    let changed = changed(metadata);
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed,
        young: now - changed < YOUNG,
        hash: [0; 16],
    }
}

/// The hash of what is in a file. One that cannot be read is like one that holds nothing else.
fn content(path: &Path, metadata: &Metadata) -> [u8; 16] {
    let mut hash = Sha256::new();
    if metadata.size() > LARGE {
        hash.update(b"large");
        hash.update(metadata.size().to_le_bytes());
        hash.update(nanoseconds(metadata.mtime(), metadata.mtime_nsec()).to_le_bytes());
    } else {
        match OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path) {
            Ok(file) => read(file, &mut hash),
            Err(_) => hash.update(b"unreadable"),
        }
    }
    let digest = hash.finalize();
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

fn read(file: File, hash: &mut Sha256) {
    let mut file = file.take(LARGE + 1);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => hash.update(&buffer[..count]),
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return hash.update(b"unreadable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Test {
        root: PathBuf,
        roots: Vec<Root>,
        globs: Globs,
        known: Known,
        _directory: tempfile::TempDir,
    }

    impl Test {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().canonicalize().unwrap();
            let roots = vec![Root { shown: "src".to_owned(), path: root.join("src") }];
            let globs = Globs::new(&[], &["*.log".to_owned(), "out".to_owned()]).unwrap();
            fs::create_dir(root.join("src")).unwrap();
            Self { root, roots, globs, known: Known::default(), _directory: directory }
        }

        /// What a change changes, and whether it shows in the fingerprint.
        fn change(&mut self, change: impl FnOnce(&Path)) -> Vec<String> {
            let before = look(&self.roots, &self.globs, &[], &self.known).unwrap();
            change(&self.root);
            let after = look(&self.roots, &self.globs, &[], &before.known).unwrap();
            let differences = before.known.differences(&after.known);
            assert_eq!(differences.is_empty(), before.fingerprint == after.fingerprint, "{differences:?}");
            self.known = after.known;
            differences
        }
    }

    #[test]
    fn content_counts_and_nothing_else() {
        let mut test = Test::new();
        let write =
            |name: &'static str, text: &'static str| move |root: &Path| fs::write(root.join(name), text).unwrap();
        assert_eq!(test.change(write("src/a", "1")), ["src/a"]);
        assert!(test.change(write("src/a", "1")).is_empty(), "the same once more");
        // As short as before, and perhaps in the same tick of the clock.
        assert_eq!(test.change(write("src/a", "2")), ["src/a"]);
        assert!(test.change(write("src/x.log", "1")).is_empty());
        assert!(test.change(|root| fs::create_dir_all(root.join("src/out/deep")).unwrap()).is_empty());
        assert!(test.change(write("src/out/deep/a", "1")).is_empty());
        assert!(test.change(|root| fs::create_dir_all(root.join("src/deep/er")).unwrap()).is_empty());
        assert_eq!(test.change(write("src/deep/er/b", "1")), ["src/deep/er/b"]);
        let saved = test.change(|root| {
            fs::write(root.join("src/.a.tmp"), "3").unwrap();
            fs::rename(root.join("src/.a.tmp"), root.join("src/a")).unwrap();
        });
        assert_eq!(saved, ["src/a"], "an atomic save");
        assert_eq!(test.change(|root| fs::rename(root.join("src/a"), root.join("src/c")).unwrap()), ["src/a", "src/c"]);
        assert_eq!(test.change(|root| fs::remove_dir_all(root.join("src")).unwrap()), ["src/c", "src/deep/er/b"]);
        assert!(test.change(|root| fs::create_dir(root.join("src")).unwrap()).is_empty());
    }

    #[test]
    fn links_lead_to_content_and_what_leads_there_is_named() {
        let mut test = Test::new();
        for (name, text) in [("one", "1"), ("two", "2")] {
            fs::create_dir(test.root.join(name)).unwrap();
            fs::write(test.root.join(name).join("conf"), text).unwrap();
        }
        symlink("one", test.root.join("now")).unwrap();
        test.roots.push(Root { shown: "conf".to_owned(), path: test.root.join("now/conf") });
        let swapped = test.change(|root| {
            symlink("two", root.join("next")).unwrap();
            fs::rename(root.join("next"), root.join("now")).unwrap();
        });
        assert_eq!(swapped, ["conf"]);
        let seen = look(&test.roots, &test.globs, &[], &test.known).unwrap();
        for (directory, name) in [("", "now"), ("two", "conf")] {
            assert!(seen.anchors.contains(&(test.root.join(directory), name.into())), "{name}: {:?}", seen.anchors);
        }
        // A pipe is no file, and does not hold anybody up.
        let pipe = test.root.join("src/pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(look(&test.roots, &test.globs, &[], &test.known).unwrap().files, 1);
    }

    #[test]
    fn what_is_too_much_is_refused_and_what_is_never_of_interest_is_not_entered() {
        let test = Test::new();
        let state = test.root.join("src/state");
        fs::create_dir(&state).unwrap();
        fs::write(state.join("x"), "1").unwrap();
        let id = DirectoryId::of(&fs::metadata(&state).unwrap());
        let seen = look(&test.roots, &test.globs, &[id], &test.known).unwrap();
        assert_eq!((seen.files, seen.directories.len()), (0, 1));
        for number in 0..=MOST_FILES {
            File::create(test.root.join(format!("src/{number}"))).unwrap();
        }
        assert_eq!(look(&test.roots, &test.globs, &[], &test.known).unwrap_err(), TooMany::Files);
    }
}
