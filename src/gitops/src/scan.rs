//! Looks at a directory: which manifests there are, and from what it would show that one of them has changed.
//!
//! The same files as `ostler apply -R` takes: `.yaml`, `.yml` and `.json`, nothing hidden, no directories behind symbolic
//! links. Only names and inodes are read here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ostler_watch::{Anchors, DirectoryId, anchors};
use sha2::{Digest as _, Sha256};

/// How deep directories may be nested.
const MAX_DEPTH: usize = 64;

/// A path that cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error("{} is more than {MAX_DEPTH} directories deep", .0.display())]
    TooDeep(PathBuf),
    #[error("{} is larger than {} MiB", .0.display(), ostler_manifest::MAX_FILE >> 20)]
    TooLarge(PathBuf),
    #[error("more than {} MiB of manifests", ostler_manifest::MAX_TOTAL >> 20)]
    TooMuch,
    #[error("the name {} is not UTF-8", .0.display())]
    Name(PathBuf),
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl ScanError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            return Self::Missing(path.to_owned());
        }
        Self::Io { path: path.to_owned(), source }
    }
}

/// What a look at a directory showed.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The manifests, relative to the directory, in the order in which they are read.
    pub(crate) files: Vec<PathBuf>,
    /// Changes when a file is added, removed, replaced or written.
    pub(crate) signature: [u8; 32],
    /// The youngest change of a file, nanoseconds of Unix time.
    pub(crate) youngest: i128,
    /// The directories that were listed.
    pub(crate) directories: Vec<(PathBuf, DirectoryId)>,
    /// What lies elsewhere and decides what the manifests are: names of symbolic links and of what they point to, with
    /// the directories they are in.
    pub(crate) anchors: Anchors,
}

/// Lists the manifests below `root`.
pub(crate) fn list(root: &Path) -> Result<Listing, (ScanError, Anchors)> {
    let mut listing = Listing { anchors: anchors(root), ..Listing::default() };
    let mut hash = Sha256::new();
    match walk(root, Path::new(""), 0, &mut listing, &mut hash) {
        Ok(()) => {
            listing.signature = hash.finalize().into();
            Ok(listing)
        }
        Err(error) => Err((error, listing.anchors)),
    }
}

fn walk(
    directory: &Path,
    relative: &Path,
    depth: usize,
    listing: &mut Listing,
    hash: &mut Sha256,
) -> Result<(), ScanError> {
    let metadata = fs::metadata(directory).map_err(|error| ScanError::io(directory, error))?;
    if !metadata.is_dir() {
        return Err(ScanError::NotADirectory(directory.to_owned()));
    }
    listing.directories.push((directory.to_owned(), DirectoryId::of(&metadata)));
    let read = |error| ScanError::io(directory, error);
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        entries.push((name, entry.file_type().map_err(read)?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in entries {
        let (path, below) = (directory.join(&name), relative.join(&name));
        if kind.is_dir() {
            if depth == MAX_DEPTH {
                return Err(ScanError::TooDeep(path));
            }
            walk(&path, &below, depth + 1, listing, hash)?;
        } else if is_manifest(&path) {
            let metadata = fs::metadata(&path).map_err(|error| ScanError::io(&path, error))?;
            if metadata.is_dir() {
                continue;
            }
            if !metadata.is_file() {
                return Err(ScanError::NotAFile(path));
            }
            if kind.is_symlink() {
                listing.anchors.extend(anchors(&path));
            }
            let Some(text) = below.to_str() else { return Err(ScanError::Name(path)) };
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
            for number in [metadata.dev(), metadata.ino(), metadata.size()] {
                hash.update(number.to_le_bytes());
            }
            let changed = nanoseconds(metadata.ctime(), metadata.ctime_nsec());
            for number in [nanoseconds(metadata.mtime(), metadata.mtime_nsec()), changed] {
                hash.update(number.to_le_bytes());
            }
            listing.youngest = listing.youngest.max(changed);
            listing.files.push(below);
        }
    }
    Ok(())
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

/// Whether a name is that of a manifest.
pub(crate) fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn files(root: &Path) -> Vec<String> {
        list(root).unwrap().files.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn the_files_are_those_that_apply_takes() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("apps/deep")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        for name in ["b.yaml", "a.yml", "apps/deep/c.json", "notes.txt", ".hidden.yaml", ".git/config.yaml"] {
            fs::write(root.join(name), "x").unwrap();
        }
        symlink(root.join("apps"), root.join("loop")).unwrap();
        symlink(root.join("notes.txt"), root.join("z.yaml")).unwrap();
        assert_eq!(files(root), ["a.yml", "apps/deep/c.json", "b.yaml", "z.yaml"]);
        assert_eq!(list(root).unwrap().directories.len(), 3);
    }

    #[test]
    fn every_kind_of_change_shows_in_the_signature() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let mut seen = std::collections::HashSet::new();
        let mut step = |change: &dyn Fn()| {
            change();
            assert!(seen.insert(list(root).unwrap().signature), "a change does not show");
        };
        step(&|| fs::write(root.join("a.yaml"), "one").unwrap());
        step(&|| fs::write(root.join("a.yaml"), "longer").unwrap());
        step(&|| fs::write(root.join("b.yaml"), "x").unwrap());
        step(&|| {
            fs::write(root.join("new"), "LONGER").unwrap();
            fs::rename(root.join("new"), root.join("a.yaml")).unwrap();
        });
        step(&|| fs::rename(root.join("b.yaml"), root.join("c.yaml")).unwrap());
        step(&|| fs::remove_file(root.join("c.yaml")).unwrap());
        let before = list(root).unwrap().signature;
        fs::write(root.join("notes.txt"), "x").unwrap();
        assert_eq!(list(root).unwrap().signature, before);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_an_empty_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert!(matches!(list(&root.join("gone")), Err((ScanError::Missing(_), _))));
        fs::write(root.join("file"), "x").unwrap();
        assert!(matches!(list(&root.join("file")), Err((ScanError::NotADirectory(_), _))));
        symlink(root.join("nowhere"), root.join("a.yaml")).unwrap();
        assert!(matches!(list(root), Err((ScanError::Missing(_), _))));
    }
}
