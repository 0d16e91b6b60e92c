//! The private directories in which processes find ConfigMaps and Secrets as files.
//!
//! Every instance has one, named by its uid, while an attempt of it may live. It is made as a whole under another name
//! and renamed, so nobody sees half of it. What may change under a running process is in a directory of its own for each
//! signal, whose name has the hash of the content, behind a symbolic link that is replaced in one step: the link is what
//! is known of what the process has, and outlives the daemon as the process does.
//!
//! The directories belong to the user of the process, who may be somebody else than the daemon and wish it ill. So what
//! the daemon writes into is never in reach of that user: it is filled elsewhere and then moved, and the names it moves
//! to are not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ostler_core::config;
use ostler_core::kinds::{OnFileChange, ProcessSpec};
use ostler_core::signal;

/// File systems that live in memory: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// User and group that files are given to; nothing when they are the daemon's own.
pub(crate) type Owner = Option<(u32, u32)>;

/// What is written for an instance.
pub(crate) struct Content<'a> {
    /// Whose `files` they are.
    pub(crate) spec: &'a ProcessSpec,
    /// What they come to.
    pub(crate) files: &'a [config::File],
    /// Hash of the files that are replaced together, by the number of their signal.
    pub(crate) hashes: &'a BTreeMap<i32, String>,
    /// Whose they become.
    pub(crate) owner: Owner,
}

/// Where the directories are.
#[derive(Debug)]
pub(crate) struct Places {
    /// The best first; the last one is on disk.
    homes: Vec<PathBuf>,
}

impl Places {
    /// Directories in memory that may be written, and below the state directory if there are none. Nothing is made.
    pub(crate) fn find(state_dir: &Path) -> Self {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let candidates = [Some("/run".into()), runtime, Some("/dev/shm".into())];
        Self::among(candidates.into_iter().flatten().filter(|path: &PathBuf| path.is_absolute()), state_dir)
    }

    fn among(candidates: impl Iterator<Item = PathBuf>, state_dir: &Path) -> Self {
        // Two daemons that share a directory, perhaps from different mount namespaces, share no state directory.
        let name = fs::metadata(state_dir)
            .map_or_else(|_| "ostler".to_owned(), |of| format!("ostler-{:x}-{:x}", of.dev(), of.ino()));
        let usable = |path: &PathBuf| {
            rustix::fs::statfs(path).is_ok_and(|of| IN_MEMORY.contains(&of.f_type))
                && rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
        };
        let mut homes: Vec<PathBuf> = candidates.filter(usable).map(|path| path.join(&name)).collect();
        homes.push(state_dir.join("files"));
        Self { homes }
    }

    /// Whether new directories lie on disk.
    pub(crate) fn on_disk(&self) -> bool {
        self.homes.len() == 1
    }

    /// The directory of an instance: where it is, or where it will be.
    pub(crate) fn path(&self, uid: &str) -> PathBuf {
        let there = self.homes.iter().map(|home| home.join(uid)).find(|path| fs::symlink_metadata(path).is_ok());
        there.unwrap_or_else(|| self.homes[0].join(uid))
    }

    /// Writes the whole directory of an instance, in place of one that may be there.
    pub(crate) fn write(&self, uid: &str, content: &Content<'_>) -> io::Result<()> {
        let target = self.path(uid);
        let home = prepare(&target)?;
        if content.owner.is_some() && fs::metadata(&home)?.mode() & 0o001 == 0 {
            return Err(io::Error::other(format!("{} may not be entered by another user", home.display())));
        }
        let new = home.join(format!(".new-{uid}"));
        remove(&new)?;
        make(&new)?;
        for signal in std::iter::once(None).chain(content.hashes.keys().copied().map(Some)) {
            let name = match signal {
                None => START.to_owned(),
                Some(signal) => {
                    let name = live_name(signal, &content.hashes[&signal]);
                    std::os::unix::fs::symlink(&name, new.join(link_name(signal)))?;
                    name
                }
            };
            fill(&new.join(name), signal, content)?;
        }
        for (path, signal, _) in entries(content.spec) {
            let (at, depth) = parents(&new, &path)?;
            let inside = signal.map_or_else(|| START.to_owned(), link_name);
            std::os::unix::fs::symlink(format!("{}{inside}/{path}", "../".repeat(depth)), at)?;
        }
        give(&new, content.owner)?;
        remove(&target)?;
        fs::rename(&new, &target)
    }

    /// The signals whose files are not those of the hashes, or were replaced without telling the process.
    pub(crate) fn stale(&self, uid: &str, hashes: &BTreeMap<i32, String>) -> Vec<i32> {
        let directory = self.path(uid);
        let stale = |signal: i32, hash: &String| {
            let has = fs::read_link(directory.join(link_name(signal))).ok();
            has.is_none_or(|has| has.as_os_str() != OsStr::new(&live_name(signal, hash)))
                || fs::symlink_metadata(owed(&directory, signal)).is_ok()
        };
        hashes.iter().filter(|(signal, hash)| stale(**signal, hash)).map(|(signal, _)| *signal).collect()
    }

    /// Replaces the files of a signal in one step. Until [`Places::told`], the process does not know.
    pub(crate) fn replace(&self, uid: &str, signal: i32, content: &Content<'_>) -> io::Result<()> {
        let target = self.path(uid);
        let home = prepare(&target)?;
        File::create(owed(&target, signal))?;
        if fs::symlink_metadata(&target).is_err() {
            // Somebody cleaned up.
            return self.write(uid, content);
        }
        let Some(hash) = content.hashes.get(&signal) else { return Ok(()) };
        let new = home.join(format!(".new-{uid}"));
        remove(&new)?;
        fill(&new, Some(signal), content)?;
        give(&new, content.owner)?;
        let (name, link) = (live_name(signal, hash), link_name(signal));
        if fs::read_link(target.join(&link)).is_ok_and(|has| has.as_os_str() == OsStr::new(&name)) {
            return remove(&new);
        }
        remove(&target.join(&name))?;
        fs::rename(&new, target.join(&name))?;
        let fresh = home.join(format!(".link-{uid}"));
        remove(&fresh)?;
        std::os::unix::fs::symlink(&name, &fresh)?;
        rustix::fs::chownat(
            rustix::fs::CWD,
            &fresh,
            content.owner.map(|(user, _)| rustix::fs::Uid::from_raw(user)),
            content.owner.map(|(_, group)| rustix::fs::Gid::from_raw(group)),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )?;
        fs::rename(&fresh, target.join(&link))?;
        let before = format!("{link}-");
        for entry in fs::read_dir(&target)?.flatten() {
            let is_old = entry.file_name().to_str().is_some_and(|it| it.starts_with(&before) && it != name);
            if is_old {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// The process was told that the files of a signal are new.
    pub(crate) fn told(&self, uid: &str, signal: i32) {
        // What stays is told once more.
        let _ = fs::remove_file(owed(&self.path(uid), signal));
    }

    /// Removes the directory of an instance, if there is one, and the one around it when that was the last.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        for home in &self.homes {
            let directory = home.join(uid);
            if fs::symlink_metadata(&directory).is_err() {
                continue;
            }
            remove(&directory)?;
            for signal in 1..=64 {
                let _ = fs::remove_file(owed(&directory, signal));
            }
            // Others may be in it.
            let _ = fs::remove_dir(home);
        }
        Ok(())
    }

    /// Removes what belongs to no instance that is known.
    pub(crate) fn sweep(&self, known: &BTreeSet<&str>) {
        for home in self.homes.iter().filter(|home| is_ours(home).unwrap_or(false)) {
            for entry in fs::read_dir(home).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let kept = name.to_str().is_some_and(|name| {
                    known.contains(name)
                        || name.strip_prefix(OWED).is_some_and(|it| known.iter().any(|uid| it.starts_with(uid)))
                });
                if !kept && let Err(why) = remove(&entry.path()) {
                    tracing::warn!(path = %entry.path().display(), %why, "cannot remove files of an instance that is gone");
                }
            }
            let _ = fs::remove_dir(home);
        }
    }
}

/// What each start writes and nothing replaces.
const START: &str = "..start";
/// Begins the names of notes that a process has not been told yet.
const OWED: &str = ".owed-";

fn link_name(signal: i32) -> String {
    format!("..live-{signal}")
}

fn live_name(signal: i32, hash: &str) -> String {
    format!("..live-{signal}-{hash}")
}

/// Beside the directory and not in it: its owner has no say in this.
fn owed(directory: &Path, signal: i32) -> PathBuf {
    let uid = directory.file_name().unwrap_or_default().display();
    directory.with_file_name(format!("{OWED}{uid}-{signal}"))
}

/// The `files` of a spec: path, signal, and whether it is a directory.
fn entries(spec: &ProcessSpec) -> impl Iterator<Item = (String, Option<i32>, bool)> {
    spec.files.iter().map(|file| {
        let live = file.on_change == OnFileChange::Signal;
        let to = file.config_map_ref.as_ref().or(file.secret_ref.as_ref());
        let whole = to.is_some_and(|to| to.key.is_none());
        (file.path.clone(), live.then(|| signal::parse(file.signal()).ok()).flatten(), whole)
    })
}

/// Makes a directory with the files that have this signal.
fn fill(directory: &Path, signal: Option<i32>, content: &Content<'_>) -> io::Result<()> {
    make(directory)?;
    for (path, _, _) in entries(content.spec).filter(|(_, of, whole)| *of == signal && *whole) {
        make(&parents(directory, &path)?.0)?;
    }
    for file in content.files.iter().filter(|file| file.signal == signal) {
        let (path, _) = parents(directory, &file.path)?;
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(file.content())?;
        out.set_permissions(Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

/// Makes the directories on the way to a path below another one; the whole path, and how many there are.
fn parents(below: &Path, path: &str) -> io::Result<(PathBuf, usize)> {
    let mut at = below.to_owned();
    let (mut depth, mut parts) = (0, path.split('/').peekable());
    while let Some(part) = parts.next() {
        at.push(part);
        if parts.peek().is_some() {
            depth += 1;
            make(&at)?;
        }
    }
    Ok((at, depth))
}

/// Makes a directory unless it is there.
fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The directory around that of an instance, made unless it is there. In a place that everybody may write to, it could
/// be somebody else's.
fn prepare(target: &Path) -> io::Result<PathBuf> {
    let home = target.parent().unwrap_or(Path::new("/"));
    // Others may pass, to what they own in it; only its owner sees what that is.
    match DirBuilder::new().mode(0o711).create(home) {
        Ok(()) => fs::set_permissions(home, Permissions::from_mode(0o711))?,
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {}
        Err(why) => return Err(why),
    }
    if !is_ours(home)? {
        let why = format!("{} is there already and is not the daemon's own", home.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(home.to_owned())
}

fn is_ours(home: &Path) -> io::Result<bool> {
    let of = fs::symlink_metadata(home)?;
    Ok(of.is_dir() && of.uid() == rustix::process::geteuid().as_raw() && of.mode() & 0o022 == 0)
}

/// Gives a directory and everything in it to a user. Nobody else has access before.
fn give(directory: &Path, owner: Owner) -> io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), owner)?;
        } else {
            std::os::unix::fs::lchown(entry.path(), Some(user), Some(group))?;
        }
    }
    std::os::unix::fs::lchown(directory, Some(user), Some(group))
}

/// Removes whatever is there; links are not followed.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(of) if of.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(why) => Err(why),
    };
    match removed {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ostler_core::config::{Contents, Origin, Resolved};
    use serde_json::json;

    use super::*;

    struct Test {
        directory: PathBuf,
        places: Places,
        spec: ProcessSpec,
    }

    impl Test {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("ostler-files-{}-{name}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let spec = json!({"command": ["x"], "files": [
                {"path": "conf/app", "configMapRef": {"name": "app", "key": "a"}, "onChange": "Signal"},
                {"path": "conf/more", "configMapRef": {"name": "app"}, "onChange": "Signal"},
                {"path": "fixed", "configMapRef": {"name": "app", "key": "a"}, "onChange": "Ignore", "mode": "0500"},
            ]});
            let places = Places::among(std::iter::empty(), &directory);
            Self { places, directory, spec: serde_json::from_value(spec).unwrap() }
        }

        fn resolve(&self, pairs: &[(&str, &str)]) -> (Resolved, BTreeMap<i32, String>) {
            let contents: Contents =
                pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
            let contents = Arc::new(contents);
            let resolved = config::resolve(&self.spec, |_: Origin, _| Ok(Some(Arc::clone(&contents))));
            let live = config::live(&resolved.files);
            let hashes =
                live.into_iter().map(|(signal, (bytes, _))| (signal, crate::vault::plain_hash(&bytes))).collect();
            (resolved, hashes)
        }

        fn read(&self, path: &str) -> Option<String> {
            fs::read_to_string(self.places.path("u").join(path)).ok()
        }
    }

    impl Drop for Test {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    #[test]
    fn what_is_live_is_replaced_at_once_and_what_is_not_stays() {
        let test = Test::new("live");
        let (resolved, hashes) = test.resolve(&[("a", "1"), ("b", "one")]);
        let content = Content { spec: &test.spec, files: &resolved.files, hashes: &hashes, owner: None };
        test.places.write("u", &content).unwrap();
        assert_eq!(test.read("conf/app").as_deref(), Some("1"));
        assert_eq!(test.read("conf/more/b").as_deref(), Some("one"));
        assert_eq!(test.read("fixed").as_deref(), Some("1"));
        let mode = |path: &str| fs::metadata(test.places.path("u").join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("conf/app"), mode("fixed"), mode(""), mode("conf/more")), (0o400, 0o500, 0o700, 0o700));
        assert!(test.places.stale("u", &hashes).is_empty());

        let (resolved, hashes) = test.resolve(&[("a", "2"), ("c", "new")]);
        let content = Content { spec: &test.spec, files: &resolved.files, hashes: &hashes, owner: None };
        assert_eq!(test.places.stale("u", &hashes), [1]);
        test.places.replace("u", 1, &content).unwrap();
        assert_eq!(test.read("conf/app").as_deref(), Some("2"));
        assert_eq!((test.read("conf/more/b"), test.read("conf/more/c").as_deref()), (None, Some("new")));
        assert_eq!(test.read("fixed").as_deref(), Some("1"), "it waits for the next start");
        // A daemon that dies before it told the process does so later.
        assert_eq!(test.places.stale("u", &hashes), [1]);
        test.places.told("u", 1);
        assert!(test.places.stale("u", &hashes).is_empty());
        let groups = fs::read_dir(test.places.path("u")).unwrap().flatten();
        let left = groups.filter(|entry| entry.file_name().to_str().unwrap().starts_with("..live-1-")).count();
        assert_eq!(left, 1, "what was replaced is gone");

        test.places.write("u", &content).unwrap();
        assert_eq!(test.read("fixed").as_deref(), Some("2"));
        test.places.remove("u").unwrap();
        assert!(!test.directory.join("files").exists());
        // Whoever cleaned up while it ran gets the files back.
        test.places.replace("u", 1, &content).unwrap();
        assert_eq!(test.read("conf/app").as_deref(), Some("2"));
        test.places.write("other", &content).unwrap();
        test.places.sweep(&["other"].into());
        assert_eq!(fs::read_dir(test.directory.join("files")).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_used() {
        let test = Test::new("foreign");
        let (resolved, hashes) = test.resolve(&[("a", "1")]);
        let content = Content { spec: &test.spec, files: &resolved.files, hashes: &hashes, owner: None };
        let home = test.directory.join("files");
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(test.places.write("u", &content).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs::remove_dir(&home).unwrap();
        std::os::unix::fs::symlink("/tmp", &home).unwrap();
        assert_eq!(test.places.write("u", &content).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(fs::read_dir("/tmp").unwrap().flatten().all(|entry| entry.file_name() != "u"));
    }
}
