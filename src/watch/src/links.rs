//! What decides which file or directory a path leads to.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

/// Names, each with the directory it is in.
pub type Anchors = BTreeSet<(PathBuf, OsString)>;

/// From what it shows that a directory is not the one that was there before under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryId {
    device: u64,
    inode: u64,
    /// Inode numbers are given out again, so the time of birth counts too where the file system tells it.
    born: Option<SystemTime>,
}

impl DirectoryId {
    /// That of a directory.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino(), born: metadata.created().ok() }
    }
}

/// Every name that decides what `path` is: those of the symbolic links on the way, and its own at the end, each with the
/// directory it is in. A change behind a link is not seen through the link, nor the change of the link itself.
pub fn anchors(path: &Path) -> Anchors {
    let mut found = BTreeSet::new();
    let mut pending: Vec<OsString> = components(path);
    let mut at = PathBuf::from("/");
    // As many as the kernel follows.
    let mut links = 40;
    while let Some(name) = pending.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match fs::read_link(&next) {
            Ok(target) if links > 0 => {
                links -= 1;
                found.insert((at.clone(), name));
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                pending.extend(components(&target));
            }
            _ if pending.is_empty() || !next.exists() => {
                // The end, or what is missing on the way to it.
                found.insert((at.clone(), name));
                if !next.exists() {
                    break;
                }
                at = next;
            }
            _ => at = next,
        }
    }
    found
}

/// The names in a path, the first one last.
fn components(path: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_an_anchor() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("releases/1")).unwrap();
        fs::write(root.join("releases/1/web.yaml"), "x").unwrap();
        symlink("releases/1", root.join("current")).unwrap();
        symlink("current/web.yaml", root.join("web.yaml")).unwrap();
        let names = |path: &str| -> Vec<String> {
            anchors(&root.join(path))
                .into_iter()
                .map(|(directory, name)| {
                    let directory = directory.strip_prefix(&root).unwrap().join(name);
                    directory.display().to_string()
                })
                .collect()
        };
        assert_eq!(names("current"), ["current", "releases/1"]);
        assert_eq!(names("web.yaml"), ["current", "web.yaml", "releases/1/web.yaml"]);
        assert_eq!(names("missing/below"), ["missing"]);
    }
}
