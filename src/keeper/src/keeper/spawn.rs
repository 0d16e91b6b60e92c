//! Starting an attempt, once.
//!
//! The order is the guarantee: Intent in the journal, then the cgroup (whose name the kernel gives out once), then the
//! process, then Started. Whatever instant the keeper dies at, its successor finds out how far this one came.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};
use std::rc::Rc;

use rustix::pipe::{PipeFlags, pipe_with};

use super::Keeper;
use super::attempt::{Attempt, Life, Limited, Tree, token};
use super::limiting::{Planned, Process};
use crate::cgroup::{Root, Version};
use crate::sys::launch::{Join, Launched, Limit, Program};
use crate::wire::spawn_error::Stage;
use crate::wire::{Intent, Spawn, SpawnError};
use crate::{fail, procfs, sys};

/// Descriptors that must be left for the keeper's own use after a spawn.
const RESERVED: u64 = 64;

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that exists, with all that is known of it.
struct Born {
    launched: Launched,
    pipes: [OwnedFd; 2],
    inodes: [u64; 2],
    start_time: u64,
    started_at: i64,
}

pub(super) fn failure(stage: Stage, error: &io::Error, path: impl Into<String>) -> SpawnError {
    SpawnError {
        stage: stage.into(),
        errno: error.raw_os_error().unwrap_or(libc::EINVAL),
        path: path.into(),
        needed_by: String::new(),
    }
}

/// Why a Spawn is not even tried, if so: whoever sent it does not know what it does.
fn objection(spawn: &Spawn) -> Option<String> {
    if !is_id(&spawn.id) {
        return Some("the id is not 1 to 64 characters of [a-z0-9-]".to_owned());
    }
    if spawn.attempt == 0 {
        return Some("attempts are numbered from 1".to_owned());
    }
    if spawn.argv.is_empty() {
        return Some("argv is empty".to_owned());
    }
    if !spawn.working_dir.starts_with('/') {
        return Some("the working directory is not absolute".to_owned());
    }
    let log_dir = Path::new(&spawn.log_dir);
    let stays_below = log_dir.components().all(|component| matches!(component, Component::Normal(_)));
    if spawn.log_dir.is_empty() || !stays_below {
        return Some("the log directory is not below the state directory".to_owned());
    }
    None
}

/// Whether this can be the uid of an instance.
pub(super) fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

impl Keeper {
    pub(super) fn spawn(&mut self, spawn: &Spawn) {
        if let Some(why) = objection(spawn) {
            self.refuse(&spawn.id, spawn.attempt, why);
            return;
        }
        if let Some(why) = self.conflict(spawn) {
            self.refuse(&spawn.id, spawn.attempt, why);
            return;
        }
        let root = self.trees.root.clone();
        let name = token(&spawn.id, spawn.attempt);
        let limited = match self.plan_limits(spawn) {
            Ok(limited) => limited,
            Err(error) => {
                self.hold_failed(spawn, error);
                return;
            }
        };
        let intent = Intent {
            id: spawn.id.clone(),
            attempt: spawn.attempt,
            name: spawn.name.clone(),
            log_dir: spawn.log_dir.clone(),
            log: spawn.log,
            boot_id: self.boot_id.to_string(),
            cgroup: root.as_ref().map_or_else(String::new, |root| root.path.join(&name).display().to_string()),
            limit_groups: limited.iter().flat_map(|limited| limited.groups(&name)).collect(),
        };
        if let Err(error) = self.journal.append(intent) {
            let path = self.journal.path().display().to_string();
            self.hold_failed(spawn, failure(Stage::Journal, &error, path));
            return;
        }
        fail::point("spawn-after-intent");
        if let Some(root) = &root {
            match root.make(&name) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // The kernel remembers a start that the journal does not.
                    let number = self.hold_unresolved(spawn, Some(root.clone()));
                    self.resolve(number);
                    return;
                }
                Err(error) => {
                    let path = root.path.join(&name).display().to_string();
                    self.hold_failed(spawn, failure(Stage::Cgroup, &error, path));
                    return;
                }
            }
        }
        fail::point("spawn-after-mkdir");
        let born = match self.bear_limited(spawn, root.as_deref(), &name, limited) {
            Ok(born) => born,
            Err((error, beside)) => {
                for root in root.into_iter().chain(beside) {
                    let _ = root.remove(&name);
                }
                self.hold_failed(spawn, error);
                return;
            }
        };
        let (born, limited) = born;
        fail::point("spawn-after-clone");
        let mut attempt = self.new_attempt(spawn, root);
        attempt.life = Life::Running;
        attempt.is_child = true;
        attempt.adopted = false;
        attempt.pid = born.launched.pid;
        attempt.start_time = born.start_time;
        attempt.started_at = born.started_at;
        attempt.pidfd = Some(born.launched.pidfd);
        attempt.pipes = born.pipes.map(Some);
        attempt.inodes = born.inodes;
        attempt.limited = limited;
        if let Some(started) = attempt.started() {
            self.journal.note(started);
        }
        fail::point("spawn-after-started");
        let number = self.hold(attempt);
        self.watch_output(number);
        self.mark_dirty(number);
    }

    /// What of this instance stands in the way of a new attempt.
    fn conflict(&self, spawn: &Spawn) -> Option<String> {
        let instance = self.instances.get(spawn.id.as_str());
        let living = instance.and_then(|instance| {
            instance.attempts.iter().filter_map(|number| self.attempts.get(*number)).find(|attempt| !attempt.is_over())
        });
        if let Some(attempt) = living {
            return Some(format!("attempt {} lives", attempt.attempt));
        }
        let newest = match instance {
            Some(instance) => instance.newest,
            None => self.remembered.get(&*spawn.id).copied().unwrap_or(0),
        };
        (spawn.attempt <= newest).then(|| format!("attempt {newest} was started before"))
    }

    /// An attempt about which nothing else is known yet.
    pub(super) fn new_attempt(&mut self, spawn: &Spawn, root: Option<Rc<Root>>) -> Attempt {
        let id = self.instance(&spawn.id, &spawn.log_dir, spawn.log.unwrap_or_default());
        let log = self.instances.get(&id).map_or(0, |instance| instance.log);
        Attempt {
            id,
            attempt: spawn.attempt,
            name: spawn.name.as_str().into(),
            life: Life::Running,
            boot_id: self.boot_id.clone(),
            pid: 0,
            start_time: 0,
            started_at: 0,
            exit: None,
            error: None,
            survivors: 0,
            log,
            pidfd: None,
            pipes: [None, None],
            inodes: [0, 0],
            tree: match root {
                Some(root) => Tree::Group { root, events: None },
                None => Tree::Marker { members: Vec::new() },
            },
            limited: None,
            kill: None,
            check_at: None,
            check_every: 0,
            zombie_since: None,
            is_child: false,
            adopted: true,
            stuck: false,
            awaiting: false,
            is_dirty: false,
            is_handed_out: false,
            is_watched: false,
            is_forgotten: false,
        }
    }

    fn hold_unresolved(&mut self, spawn: &Spawn, root: Option<Rc<Root>>) -> u32 {
        let attempt = self.new_attempt(spawn, root);
        self.hold(attempt)
    }

    /// Records that there is no process, and why.
    fn hold_failed(&mut self, spawn: &Spawn, error: SpawnError) {
        let mut attempt = self.new_attempt(spawn, None);
        attempt.life = Life::FailedToStart;
        attempt.adopted = false;
        attempt.started_at = sys::unix_nanos();
        attempt.error = Some(Box::new(error));
        if let Some(ended) = attempt.ended() {
            self.journal.note(ended);
        }
        let number = self.hold(attempt);
        self.mark_dirty(number);
    }

    /// Sets the limits, and makes the pipes and the process. With an error come the groups that were made for limits.
    #[allow(clippy::type_complexity, reason = "used once, and every part is needed")]
    fn bear_limited(
        &mut self,
        spawn: &Spawn,
        root: Option<&Root>,
        name: &str,
        limited: Option<Planned>,
    ) -> Result<(Born, Option<Box<Limited>>), (SpawnError, Vec<Rc<Root>>)> {
        let Some(planned) = limited else {
            return self
                .bear(spawn, root, name, &Process::default())
                .map(|born| (born, None))
                .map_err(|why| (why, Vec::new()));
        };
        let beside = planned.beside.clone();
        let with_groups = |error: SpawnError| (error, beside.clone());
        let (limited, process) = planned.apply(name).map_err(with_groups)?;
        let born = self.bear(spawn, root, name, &process).map_err(with_groups)?;
        Ok((born, Some(Box::new(limited))))
    }

    /// Makes the pipes and the process.
    fn bear(&mut self, spawn: &Spawn, root: Option<&Root>, name: &str, process: &Process) -> Result<Born, SpawnError> {
        let prepared = Prepared::new(spawn, self.workload_nofile, process)?;
        let also: Vec<_> = process.procs.iter().map(|procs| procs.as_fd()).collect();
        let pipe_failure = |error: io::Error| failure(Stage::Pipe, &error, "");
        let make_pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            // Open for reading too, so that the workload gets no SIGPIPE when every reader of ours has died.
            let both = procfs::open_both_ways(writer.as_raw_fd())?;
            if spawn.uid.is_some() || spawn.gid.is_some() {
                // Or the workload could not open its own /dev/stdout. Only root can, and only root needs to.
                let _ = rustix::fs::fchown(
                    &both,
                    spawn.uid.map(rustix::process::Uid::from_raw),
                    spawn.gid.map(rustix::process::Gid::from_raw),
                );
            }
            Ok((reader, both))
        };
        let (stdout, stdout_end) = make_pipe().map_err(pipe_failure)?;
        let (stderr, stderr_end) = make_pipe().map_err(pipe_failure)?;
        if stderr_end.as_raw_fd() as u64 + RESERVED >= self.nofile {
            // Numbers are given out from below, so this one tells how many are in use.
            return Err(failure(
                Stage::Pipe,
                &io::Error::from_raw_os_error(libc::EMFILE),
                format!("RLIMIT_NOFILE of the daemon ({})", self.nofile),
            ));
        }
        let cgroup_failure = |error: io::Error| failure(Stage::Cgroup, &error, root_path(root, name));
        let (directory, procs);
        let join = match root {
            None => Join::Stay,
            Some(root) => match root.version {
                Version::V2 if self.launcher.bears_into_groups() => {
                    directory = root.directory(name).map_err(cgroup_failure)?;
                    Join::Into(directory.as_fd())
                }
                Version::V2 | Version::V1 { .. } => {
                    procs = root.procs(name).map_err(cgroup_failure)?;
                    Join::Procs(procs.as_fd())
                }
            },
        };
        let program = Program {
            candidates: &prepared.candidates,
            argv: &prepared.argv,
            env: &prepared.env,
            working_dir: &prepared.working_dir,
            uid: spawn.uid,
            gid: spawn.gid,
            groups: prepared.groups,
            umask: spawn.umask,
            limits: &prepared.limits,
            no_new_privileges: spawn.no_new_privileges,
            nice: process.nice.or(spawn.nice),
            oom_score_adj: spawn.oom_score_adj,
            stdout: stdout_end.as_fd(),
            stderr: stderr_end.as_fd(),
            join,
            also: &also,
            dies_with_keeper_before_exec: !matches!(join, Join::Into(_)),
        };
        let started_at = sys::unix_nanos();
        let launched = self.launcher.launch(&program).map_err(|error| {
            let path = match error.stage {
                Stage::WorkingDir => spawn.working_dir.clone(),
                Stage::Cgroup => root_path(root, name),
                Stage::User => user(spawn),
                Stage::Exec => return exec_failure(spawn, &prepared, &error),
                Stage::Unspecified | Stage::Pipe | Stage::Fork | Stage::Limits | Stage::Journal => String::new(),
            };
            failure(error.stage, &error.error, path)
        })?;
        // It cannot be gone: only we can collect it.
        let start_time = procfs::stat(launched.pid).map_or(0, |stat| stat.start_time);
        Ok(Born {
            launched,
            inodes: [sys::inode(&stdout), sys::inode(&stderr)],
            pipes: [stdout, stderr],
            start_time,
            started_at,
        })
    }
}

fn root_path(root: Option<&Root>, name: &str) -> String {
    root.map_or_else(String::new, |root| root.path.join(name).display().to_string())
}

fn user(spawn: &Spawn) -> String {
    let number = |id: Option<u32>| id.map_or_else(|| "-".to_owned(), |id| id.to_string());
    format!("{}:{}", number(spawn.uid), number(spawn.gid))
}

/// The strings of a spawn as the kernel wants them.
struct Prepared<'a> {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    working_dir: CString,
    groups: Option<&'a [u32]>,
    limits: Vec<Limit>,
}

impl<'a> Prepared<'a> {
    fn new(spawn: &'a Spawn, nofile: (u64, u64), process: &Process) -> Result<Self, SpawnError> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let strings = |list: &[Vec<u8>]| -> Result<Vec<CString>, SpawnError> {
            list.iter()
                .map(|string| CString::new(string.as_slice()))
                .collect::<Result<_, _>>()
                .map_err(|_| failure(Stage::Exec, &invalid(), "a string with a NUL byte"))
        };
        // To set-id calls -1 means "leave as it is", which would run the workload as the daemon's user.
        if spawn.uid == Some(u32::MAX) || spawn.gid == Some(u32::MAX) {
            return Err(failure(Stage::User, &invalid(), user(spawn)));
        }
        let argv = strings(&spawn.argv)?;
        let given: Vec<Vec<u8>> =
            spawn.env.iter().filter(|entry| !entry.starts_with(b"OSTLER_ATTEMPT=")).cloned().collect();
        let mut env = strings(&given)?;
        let marker = format!("OSTLER_ATTEMPT={}", token(&spawn.id, spawn.attempt));
        env.extend(CString::new(marker));
        let name = &spawn.argv[0];
        let candidates = if name.contains(&b'/') || name.is_empty() {
            vec![argv[0].clone()]
        } else {
            let path = given.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
            path.split(|byte| *byte == b':')
                .filter_map(|directory| {
                    // An empty entry means the working directory.
                    let directory = if directory.is_empty() { b"." } else { directory };
                    CString::new([directory, b"/", name].concat()).ok()
                })
                .collect()
        };
        let working_dir = CString::new(spawn.working_dir.as_str())
            .map_err(|_| failure(Stage::WorkingDir, &invalid(), &*spawn.working_dir))?;
        // Whoever changes user leaves the daemon's supplementary groups behind; without root there is nothing to leave.
        let is_root = rustix::process::geteuid().is_root();
        let changes = spawn.uid.is_some() || spawn.gid.is_some();
        let groups = (!spawn.groups.is_empty() || (changes && is_root)).then_some(&*spawn.groups);
        let default_nofile = Limit { resource: sys::OPEN_FILES, soft: nofile.0, hard: nofile.1 };
        let limits = std::iter::once(default_nofile)
            .chain(spawn.rlimits.iter().map(|limit| Limit {
                resource: limit.resource,
                soft: limit.soft,
                hard: limit.hard,
            }))
            .chain(process.open_files)
            .collect();
        Ok(Self { candidates, argv, env, working_dir, groups, limits })
    }
}

/// Says which file an exec failed for: the program, or the interpreter that it names and that is missing.
fn exec_failure(spawn: &Spawn, prepared: &Prepared<'_>, error: &sys::launch::LaunchError) -> SpawnError {
    let name = String::from_utf8_lossy(&spawn.argv[0]).into_owned();
    let errno = error.error.raw_os_error();
    if errno == Some(libc::ENOENT) || errno == Some(libc::ENOTDIR) {
        for candidate in &prepared.candidates {
            let path = OsStr::from_bytes(candidate.as_bytes());
            let path = Path::new(&spawn.working_dir).join(path);
            if let Some(interpreter) = interpreter(&path) {
                return SpawnError {
                    needed_by: path.display().to_string(),
                    ..failure(Stage::Exec, &error.error, interpreter)
                };
            }
        }
        return failure(Stage::Exec, &error.error, name);
    }
    let path = prepared.candidates.get(error.candidate).map_or(name, |path| path.to_string_lossy().into_owned());
    failure(Stage::Exec, &error.error, path)
}

/// The interpreter that an existing program asks for: by `#!`, or an ELF program's loader.
fn interpreter(path: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(4096).read_to_end(&mut head).ok()?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?;
        let line = String::from_utf8_lossy(line);
        return line.split_ascii_whitespace().next().map(str::to_owned);
    }
    elf_loader(&head)
}

/// The path in the PT_INTERP segment of a 64-bit little-endian ELF file, when it is near the beginning, as it is.
fn elf_loader(head: &[u8]) -> Option<String> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(head.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(32, 8)? as usize;
    let (size, count) = (number(54, 2)? as usize, number(56, 2)? as usize);
    (0..count).find_map(|index| {
        let entry = table.checked_add(index.checked_mul(size)?)?;
        if number(entry, 4)? != PT_INTERP {
            return None;
        }
        let at = number(entry.checked_add(8)?, 8)? as usize;
        let length = number(entry.checked_add(32)?, 8)? as usize;
        let text = head.get(at..at.checked_add(length)?)?;
        let text = text.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn() -> Spawn {
        Spawn {
            id: "abc-1".to_owned(),
            attempt: 1,
            argv: vec![b"x".to_vec()],
            working_dir: "/".to_owned(),
            log_dir: "logs/default/x".to_owned(),
            ..Spawn::default()
        }
    }

    #[test]
    fn a_spawn_that_makes_no_sense_is_refused() {
        assert_eq!(objection(&spawn()), None);
        let wrong: [fn(&mut Spawn); 8] = [
            |s| s.id = "a/b".to_owned(),
            |s| s.id = "a".repeat(65),
            |s| s.attempt = 0,
            |s| s.argv.clear(),
            |s| s.working_dir = "relative".to_owned(),
            |s| s.log_dir = "../elsewhere".to_owned(),
            |s| s.log_dir = "/absolute".to_owned(),
            |s| s.log_dir.clear(),
        ];
        for change in wrong {
            let mut spawn = spawn();
            change(&mut spawn);
            assert!(objection(&spawn).is_some(), "{spawn:?}");
        }
    }

    #[test]
    fn names_are_looked_up_in_the_path_of_the_given_environment() {
        let mut spawn = spawn();
        spawn.env = vec![b"PATH=/a::b".to_vec(), b"OSTLER_ATTEMPT=forged".to_vec()];
        let prepared = Prepared::new(&spawn, (1, 2), &Process::default()).unwrap();
        assert_eq!(prepared.candidates, [c"/a/x", c"./x", c"b/x"].map(CString::from));
        assert_eq!(prepared.env, [c"PATH=/a::b", c"OSTLER_ATTEMPT=abc-1.1"].map(CString::from));
    }

    #[test]
    fn the_loader_of_a_program_is_found() {
        let own = std::env::current_exe().unwrap();
        if let Some(loader) = interpreter(&own) {
            assert!(loader.starts_with('/'), "{loader}");
            assert!(Path::new(&loader).exists(), "{loader}");
        }
        assert_eq!(elf_loader(b"\x7fELF\x02\x01"), None);
        assert_eq!(elf_loader(&[b"\x7fELF\x02\x01", &[0xff; 200][..]].concat()), None);
    }
}
