//! Reads which commit is checked out, without Git: the few files that say so.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository that a directory is a checkout of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    /// Where HEAD and the index of this checkout are.
    pub(crate) directory: PathBuf,
    /// Where branches are; another one for a linked worktree.
    common: PathBuf,
}

/// Files in the repository's directory that change when the checkout does.
pub(crate) const TELLING: [&str; 3] = ["HEAD", "index", "index.lock"];

/// The repository that `directory` is in, if any.
pub(crate) fn find(directory: &Path) -> Option<Repository> {
    let real = directory.canonicalize().ok()?;
    real.ancestors().find_map(|ancestor| open(&ancestor.join(".git")))
}

fn open(dot_git: &Path) -> Option<Repository> {
    let metadata = fs::metadata(dot_git).ok()?;
    let directory = if metadata.is_dir() {
        dot_git.to_owned()
    } else {
        // A linked worktree or a submodule.
        let text = fs::read_to_string(dot_git).ok()?;
        dot_git.parent()?.join(text.strip_prefix("gitdir:")?.trim())
    };
    if !directory.join("HEAD").is_file() {
        return None;
    }
    let common = match fs::read_to_string(directory.join("commondir")) {
        Ok(text) => directory.join(text.trim()),
        Err(_) => directory.clone(),
    };
    Some(Repository { directory, common })
}

impl Repository {
    /// Whether Git is at work on the files: between the two, they are of no revision.
    pub(crate) fn is_busy(&self) -> bool {
        self.directory.join("index.lock").exists()
    }

    /// The commit that is checked out, and the branch; empty where there is none.
    pub(crate) fn head(&self) -> (String, String) {
        let Ok(head) = fs::read_to_string(self.directory.join("HEAD")) else { return Default::default() };
        let head = head.trim();
        let Some(reference) = head.strip_prefix("ref:").map(str::trim) else {
            return (if is_hash(head) { head.to_owned() } else { String::new() }, String::new());
        };
        let branch = reference.strip_prefix("refs/heads/").unwrap_or(reference).to_owned();
        (self.resolve(reference).unwrap_or_default(), branch)
    }

    fn resolve(&self, reference: &str) -> Option<String> {
        // A reference is no path to anywhere else.
        if !reference.starts_with("refs/") || reference.split('/').any(|part| part.is_empty() || part == "..") {
            return None;
        }
        for directory in [&self.directory, &self.common] {
            if let Ok(text) = fs::read_to_string(directory.join(reference))
                && is_hash(text.trim())
            {
                return Some(text.trim().to_owned());
            }
        }
        let packed = fs::read_to_string(self.common.join("packed-refs")).ok()?;
        packed.lines().find_map(|line| {
            let (hash, name) = line.split_once(' ')?;
            (name == reference && is_hash(hash)).then(|| hash.to_owned())
        })
    }
}

fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn repository() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir_all(root.join(".git/refs/heads/feature")).unwrap();
        fs::create_dir_all(root.join("apps/web")).unwrap();
        fs::write(root.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        (directory, root)
    }

    #[test]
    fn the_commit_is_found_loose_packed_and_detached() {
        let (_directory, root) = repository();
        let git = find(&root.join("apps/web")).unwrap();
        assert_eq!(git.head(), (String::new(), "main".to_owned()), "no commit yet");
        fs::write(root.join(".git/packed-refs"), format!("# pack-refs with: peeled\n{A} refs/heads/main\n^{B}\n"))
            .unwrap();
        assert_eq!(git.head(), (A.to_owned(), "main".to_owned()));
        fs::write(root.join(".git/refs/heads/main"), format!("{B}\n")).unwrap();
        assert_eq!(git.head(), (B.to_owned(), "main".to_owned()), "loose wins over packed");
        fs::write(root.join(".git/refs/heads/feature/x"), A).unwrap();
        fs::write(root.join(".git/HEAD"), "ref: refs/heads/feature/x\n").unwrap();
        assert_eq!(git.head(), (A.to_owned(), "feature/x".to_owned()));
        fs::write(root.join(".git/HEAD"), format!("{B}\n")).unwrap();
        assert_eq!(git.head(), (B.to_owned(), String::new()));
        fs::write(root.join(".git/HEAD"), "ref: refs/../../secret\n").unwrap();
        assert_eq!(git.head().0, "");
    }

    #[test]
    fn a_linked_worktree_has_a_head_of_its_own() {
        let (_directory, root) = repository();
        fs::write(root.join(".git/refs/heads/side"), A).unwrap();
        let own = root.join(".git/worktrees/side");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("HEAD"), "ref: refs/heads/side\n").unwrap();
        fs::write(own.join("commondir"), "../..\n").unwrap();
        let tree = root.join("apps/side");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join(".git"), format!("gitdir: {}\n", own.display())).unwrap();
        let git = find(&tree).unwrap();
        assert_eq!(git.head(), (A.to_owned(), "side".to_owned()));
        assert!(!git.is_busy());
        fs::write(own.join("index.lock"), "").unwrap();
        assert!(git.is_busy());
    }

    #[test]
    fn no_repository_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(find(&directory.path().join("missing")), None);
    }
}
