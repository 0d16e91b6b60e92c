//! What the kernel shows of processes: the tests' own eyes.

#![allow(unsafe_code, reason = "signals and identities are system calls")]

use std::fs;
use std::path::{Path, PathBuf};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Clock ticks from boot to its start.
    pub start: u64,
}

/// The effective user of this process.
pub fn own_uid() -> u32 {
    // SAFETY: takes no argument and cannot fail.
    unsafe { libc::geteuid() }
}

/// State letter, parent and start time of a process; nothing when it is gone.
fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    Some((fields.first()?.chars().next()?, fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

/// Who has this number now; zombies do not count.
pub fn identity(pid: i32) -> Option<Identity> {
    let (state, _, start) = stat(pid)?;
    (state != 'Z' && state != 'X').then_some(Identity { pid, start })
}

/// Whether exactly this process lives.
pub fn lives(identity: Identity) -> bool {
    self::identity(identity.pid) == Some(identity)
}

/// The letter of the state that a process is in.
pub fn state(pid: i32) -> Option<char> {
    stat(pid).map(|(state, _, _)| state)
}

/// The parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    stat(pid).map(|(_, parent, _)| parent)
}

/// Every living process.
pub fn all() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| identity(*pid).is_some())
        .collect()
}

/// The processor time that a process has used, in seconds; exact to the clock tick.
pub fn cpu_seconds(pid: i32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    // SAFETY: takes a number and returns one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(ticks / per_second as f64)
}

/// The arguments of a process.
pub fn arguments(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The value of a variable in the environment a process was started with.
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let wanted = format!("{name}=");
    bytes
        .split(|byte| *byte == 0)
        .find_map(|entry| Some(String::from_utf8_lossy(entry.strip_prefix(wanted.as_bytes())?).into_owned()))
}

/// The processes that have anything to do with a directory: by an argument, a variable or the directory they are in.
pub fn around(directory: &Path) -> Vec<Identity> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let own = std::process::id().cast_signed();
    let holds =
        |path: String| fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle));
    all()
        .into_iter()
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
                || holds(format!("/proc/{pid}/cmdline"))
                || holds(format!("/proc/{pid}/environ"))
        })
        .filter_map(identity)
        .collect()
}

/// The living descendants of processes.
pub fn descendants(of: &[Identity]) -> Vec<Identity> {
    let all: Vec<(i32, i32)> = all().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut family: Vec<i32> = of.iter().map(|process| process.pid).collect();
    let known = family.len();
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        next += 1;
        let children: Vec<i32> =
            all.iter().filter(|(pid, of)| *of == parent && !family.contains(pid)).map(|(pid, _)| *pid).collect();
        family.extend(children);
    }
    family[known..].iter().copied().filter_map(identity).collect()
}

/// The living processes of every attempt of an instance: those that carry its marker, and those in its cgroups.
pub fn of_instance(uid: &str, cgroup: Option<&Path>) -> Vec<Identity> {
    let mut found: Vec<Identity> = all()
        .into_iter()
        .filter(|pid| variable(*pid, "OSTLER_ATTEMPT").is_some_and(|attempt| attempt.starts_with(&format!("{uid}."))))
        .filter_map(identity)
        .collect();
    for group in cgroup.and_then(|root| fs::read_dir(root).ok()).into_iter().flatten().flatten() {
        if group.file_name().to_string_lossy().starts_with(&format!("{uid}.")) {
            found.extend(members(&group.path()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The directories of that name in the hierarchies of cgroup v1 controllers, where limits are set.
pub fn groups_beside(cgroup: Option<&Path>) -> Vec<PathBuf> {
    let Some(name) = cgroup.and_then(Path::file_name) else { return Vec::new() };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let hierarchies = own.lines().filter_map(|line| {
        let (controllers, place) = line.split_once(':')?.1.split_once(':')?;
        let mount = Path::new("/sys/fs/cgroup").join(controllers);
        Some(mount.join(place.trim_start_matches('/')).join(name))
    });
    hierarchies.filter(|path| path.is_dir() && Some(&**path) != cgroup).collect()
}

/// The living processes of a cgroup and of those below it.
pub fn members(group: &Path) -> Vec<Identity> {
    let mut found: Vec<Identity> = fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| identity(line.parse().ok()?))
        .collect();
    for below in fs::read_dir(group).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(members(&below.path()));
        }
    }
    found
}

/// Sends a signal to a process of this test.
pub fn signal(identity: Identity, signal: i32) {
    if lives(identity) {
        // SAFETY: no memory is involved; the process was just seen to be the one that is meant.
        unsafe { libc::kill(identity.pid, signal) };
    }
}
