//! Process trees held together by cgroups: one directory per attempt below one of ours.
//!
//! Only processes are grouped; no controller is enabled here, so cgroup v2's rule that a group with controllers has no
//! processes of its own does not concern us, and a delegated subtree of systemd can be used where the daemon itself is.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};

use crate::{CgroupPreference, Error};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V2,
    V1 { freezer: bool },
}

/// The directory that holds the directories of attempts.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) version: Version,
    pub(crate) path: PathBuf,
    directory: OwnedFd,
}

impl Root {
    /// Opens the directory, which must exist.
    pub(crate) fn open(version: Version, path: &Path) -> io::Result<Self> {
        let directory = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { version, path: path.to_owned(), directory })
    }

    pub(crate) fn create(version: Version, path: &Path) -> io::Result<Self> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        Self::open(version, path)
    }

    /// Makes the group of an attempt; `AlreadyExists` when the attempt was started before.
    pub(crate) fn make(&self, name: &str) -> io::Result<()> {
        Ok(mkdirat(&self.directory, name, Mode::from_raw_mode(0o755))?)
    }

    /// The directory of a group, for a child to be born into (v2).
    pub(crate) fn directory(&self, name: &str) -> io::Result<OwnedFd> {
        self.file(name, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The file that a process writes itself into.
    pub(crate) fn procs(&self, name: &str) -> io::Result<OwnedFd> {
        self.file(&format!("{name}/cgroup.procs"), OFlags::WRONLY)
    }

    /// The file that tells by EPOLLPRI when the group becomes empty (v2).
    pub(crate) fn events(&self, name: &str) -> io::Result<OwnedFd> {
        self.file(&format!("{name}/cgroup.events"), OFlags::RDONLY)
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(openat(&self.directory, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    pub(crate) fn read(&self, name: &str) -> io::Result<String> {
        let file = self.file(name, OFlags::RDONLY)?;
        let mut bytes = vec![0; 4096];
        let mut length = 0;
        loop {
            let count = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut bytes[length..]))?;
            length += count;
            // The kernel hands out such a file a page or less at a time; only a page that is nearly full has a successor.
            if count == 0 || length < 2048 {
                break;
            }
            if length == bytes.len() {
                bytes.resize(2 * length, 0);
            }
        }
        bytes.truncate(length);
        String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    pub(crate) fn write(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let file = self.file(name, OFlags::WRONLY)?;
        rustix::io::write(file, text)?;
        Ok(())
    }

    /// Whether a process lives in the group or below it. A group that is gone has none.
    pub(crate) fn is_populated(&self, name: &str) -> bool {
        match self.version {
            Version::V2 => match self.read(&format!("{name}/cgroup.events")) {
                Ok(text) => !text.lines().any(|line| line == "populated 0"),
                Err(error) => error.raw_os_error() != Some(libc::ENOENT),
            },
            Version::V1 { .. } => !self.pids(name).is_empty(),
        }
    }

    /// The processes in the group and below it.
    pub(crate) fn pids(&self, name: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut groups = vec![name.to_owned()];
        while let Some(group) = groups.pop() {
            if let Ok(text) = self.read(&format!("{group}/cgroup.procs")) {
                // 0 stands for a process that our pid namespace cannot see.
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            }
            groups.extend(self.below(&group));
        }
        pids
    }

    fn below(&self, group: &str) -> Vec<String> {
        // A directory of a cgroup file system has a link for itself, one for its name, and one for each child.
        if rustix::fs::statat(&self.directory, group, AtFlags::empty()).is_ok_and(|of| of.st_nlink == 2) {
            return Vec::new();
        }
        let Ok(entries) = fs::read_dir(self.path.join(group)) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| Some(format!("{group}/{}", entry.file_name().to_str()?)))
            .collect()
    }

    /// SIGKILL to everything in the group and below it; what is forked meanwhile may escape on v1 and old kernels, so
    /// look again.
    pub(crate) fn kill(&self, name: &str) {
        if self.version == Version::V2 && self.write(&format!("{name}/cgroup.kill"), b"1").is_ok() {
            return;
        }
        let freezer = self.version == Version::V1 { freezer: true };
        let state = format!("{name}/freezer.state");
        if freezer {
            let _ = self.write(&state, b"FROZEN");
        }
        self.signal(name, libc::SIGKILL);
        if freezer {
            let _ = self.write(&state, b"THAWED");
        }
    }

    /// A signal to everything in the group and below it. Returns how many processes got it.
    pub(crate) fn signal(&self, name: &str, signal: i32) -> usize {
        signal_all(signal, || self.pids(name))
    }

    /// Removes the group and those below it. Fails as long as a process is in one of them.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(_) => {}
        }
        for group in self.below(name) {
            self.remove(&group)?;
        }
        Ok(unlinkat(&self.directory, name, AtFlags::REMOVEDIR)?)
    }

    /// The names of the groups there are.
    pub(crate) fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Removes our directory when no attempt is left in it.
    pub(crate) fn remove_if_unused(&self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// Signals every process that `members` names, including those that appear while this goes on (within reason).
///
/// A pid may change hands between the listing and the opening of its pidfd; so a process gets the signal only if it is
/// listed again after that.
pub(crate) fn signal_all(signal: i32, members: impl Fn() -> Vec<i32>) -> usize {
    let mut reached = HashSet::new();
    let mut listed = members();
    for _ in 0..4 {
        let opened: Vec<_> = listed
            .into_iter()
            .filter(|pid| !reached.contains(pid))
            .filter_map(|pid| Some((pid, crate::sys::pidfd_open(pid).ok()?)))
            .collect();
        if opened.is_empty() {
            break;
        }
        // Confirms the ones just opened, and shows those to open next.
        listed = members();
        for (pid, pidfd) in opened {
            if listed.contains(&pid) {
                let _ = crate::sys::pidfd_send_signal(std::os::fd::AsFd::as_fd(&pidfd), signal);
                reached.insert(pid);
            }
        }
        if listed.iter().all(|pid| reached.contains(pid)) {
            break;
        }
    }
    reached.len()
}

/// What was found to hold trees together.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) root: Option<Rc<Root>>,
    /// The directory, or why there is none.
    pub(crate) detail: String,
}

impl Found {
    /// As in the Hello message.
    pub(crate) fn mode(&self) -> &'static str {
        match self.root.as_ref().map(|root| root.version) {
            Some(Version::V2) => "v2",
            Some(Version::V1 { .. }) => "v1",
            None => "none",
        }
    }
}

/// Looks for a place where groups can be made and processes put into them, which `works` tries out.
pub(crate) fn find(
    preference: CgroupPreference,
    state_dir: &Path,
    mut works: impl FnMut(&Root) -> io::Result<()>,
) -> Result<Found, Error> {
    let name = directory_name(state_dir);
    let mut refusals = Vec::new();
    let (v2, v1) = match preference {
        CgroupPreference::Auto => (true, true),
        CgroupPreference::V2 => (true, false),
        CgroupPreference::V1 => (false, true),
        CgroupPreference::None => (false, false),
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for (version, parent) in candidates(&mounts, &own) {
        let wanted = match version {
            Version::V2 => v2,
            Version::V1 { .. } => v1,
        };
        if !wanted {
            continue;
        }
        // A daemon that made room for controllers is in a group of its own beside those of the attempts.
        let is_beside = parent.file_name().is_some_and(|last| *last == *daemon_group(&name));
        let parent = if is_beside { parent.parent().unwrap_or(&parent) } else { &parent };
        let path = parent.join(&name);
        let tried = Root::create(version, &path).and_then(|root| {
            works(&root).inspect_err(|_| root.remove_if_unused())?;
            Ok(root)
        });
        match tried {
            Ok(root) => {
                return Ok(Found { detail: path.display().to_string(), root: Some(Rc::new(root)) });
            }
            Err(error) => refusals.push(format!("{}: {error}", path.display())),
        }
    }
    let why = match preference {
        CgroupPreference::None => "switched off".to_owned(),
        _ if refusals.is_empty() => "no cgroup hierarchy is mounted".to_owned(),
        _ => refusals.join("; "),
    };
    let wanted = match preference {
        CgroupPreference::Auto | CgroupPreference::None => {
            return Ok(Found { root: None, detail: why });
        }
        CgroupPreference::V2 => "v2",
        CgroupPreference::V1 => "v1",
    };
    Err(Error::Cgroup { wanted, why })
}

/// Where this process is in each hierarchy that could serve, the best first: v2, then pids, freezer and systemd of v1.
fn candidates(mounts: &str, own: &str) -> Vec<(Version, PathBuf)> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mount_point), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let options: Vec<&str> = right.get(2).map_or(Vec::new(), |o| o.split(',').collect());
        let (rank, version, hierarchy) = match *kind {
            "cgroup2" => (0, Version::V2, ""),
            "cgroup" if options.contains(&"pids") => (1, Version::V1 { freezer: false }, "pids"),
            "cgroup" if options.contains(&"freezer") => (2, Version::V1 { freezer: true }, "freezer"),
            "cgroup" if options.contains(&"name=systemd") => (3, Version::V1 { freezer: false }, "name=systemd"),
            _ => continue,
        };
        let place = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let number = parts.next()?;
            let controllers = parts.next()?;
            let path = parts.next()?;
            let same = match version {
                Version::V2 => number == "0" && controllers.is_empty(),
                Version::V1 { .. } => controllers.split(',').any(|name| name == hierarchy),
            };
            same.then_some(path)
        });
        let Some(place) = place else { continue };
        // A bind mount may show only a part of the hierarchy.
        let Ok(below) = Path::new(place).strip_prefix(root) else {
            continue;
        };
        found.push((rank, version, Path::new(mount_point).join(below)));
    }
    found.sort_by_key(|(rank, _, _)| *rank);
    found.into_iter().map(|(_, version, path)| (version, path)).collect()
}

/// The name of our directory in every hierarchy.
pub(crate) fn directory_name(state_dir: &Path) -> String {
    format!("ostler-{:08x}", fnv(state_dir.as_os_str().as_encoded_bytes()))
}

/// The name of the daemon's own group, beside our directory of this name.
pub(crate) fn daemon_group(name: &str) -> String {
    format!("{name}.daemon")
}

/// Our own group in the cgroup v1 hierarchy that has this controller.
pub(crate) fn v1_group(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    place_of(&mounts, &own, controller)
}

fn place_of(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let place = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let has = parts.next()?.split(',').any(|name| name == controller);
        parts.next().filter(|_| has)
    })?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let (mut mount, mut file_system) = (mount.split(' ').skip(3), file_system.split(' '));
        let (root, point) = (mount.next()?, mount.next()?);
        let is_meant =
            file_system.next()? == "cgroup" && file_system.nth(1)?.split(',').any(|option| option == controller);
        // A bind mount may show only a part of the hierarchy.
        is_meant.then(|| Some(Path::new(point).join(Path::new(place).strip_prefix(root).ok()?)))?
    })
}

/// FNV-1a, 32 bits.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_ranked_and_placed_below_the_own_group() {
        let mounts = "\
30 20 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
31 20 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
32 20 0:28 /a /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 20 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        let own = "8:pids:/p q\n6:freezer:/f\n4:memory:/m\n0::/a/b\n";
        let found = candidates(mounts, own);
        assert_eq!(
            found,
            [
                (Version::V2, PathBuf::from("/sys/fs/cgroup/unified/b")),
                (Version::V1 { freezer: false }, PathBuf::from("/sys/fs/cgroup/pids/p q")),
                (Version::V1 { freezer: true }, PathBuf::from("/sys/fs/cgroup/freezer/f")),
            ]
        );
    }

    #[test]
    fn a_controller_is_where_the_daemon_is_in_its_hierarchy() {
        let mounts = "\
31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 20 0:29 /inner /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
        let own = "5:cpu,cpuacct:/service\n4:memory:/inner/ours\n3:pids:/x\n0::/a/b\n";
        let place = |controller| place_of(mounts, own, controller);
        assert_eq!(place("cpu"), Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/service")));
        assert_eq!(place("memory"), Some(PathBuf::from("/sys/fs/cgroup/memory/ours")));
        assert_eq!(place("pids"), None);
        assert_eq!(place("io"), None);
        assert_eq!(place_of(mounts, "4:memory:/elsewhere\n", "memory"), None);
    }

    #[test]
    fn a_hierarchy_that_shows_another_part_is_left_alone() {
        let mounts = "32 20 0:28 /elsewhere /cg rw - cgroup2 cgroup2 rw\n";
        assert!(candidates(mounts, "0::/a/b\n").is_empty());
    }
}
