//! Replacing the keeper's program without letting go of anything: execve keeps pids, children, their wait statuses and
//! the descriptors, and the rest travels in a memfd.
//!
//! The new program is tried on the state first, in a process of its own; only then is the step taken that cannot be
//! taken back. Should execve itself fail, the old loop goes on.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message as _;
use rustix::fs::{MemfdFlags, memfd_create};

use super::attempt::Life;
use super::recover::set_started;
use super::{Keeper, NOFILE_VARIABLE, Setup};
use crate::journal::Journal;
use crate::logs::Log;
use crate::wire::{OLDEST_PROTOCOL, PROTOCOL, Spawn, UpgradeFailed, Upgraded};
use crate::{Error, sys};

/// How long the new program may think about the state.
const PREFLIGHT_PATIENCE: Duration = Duration::from_secs(10);

/// The new program at work on a copy of the state.
#[derive(Debug)]
pub(super) struct Preflight {
    binary: PathBuf,
    pub(super) pid: i32,
    pidfd: Option<OwnedFd>,
    pub(super) give_up_at: Instant,
    is_accepted: bool,
}

fn refused(why: impl Into<String>) -> Error {
    Error::Takeover { why: why.into() }
}

/// Reads the state that a predecessor left.
pub(super) fn read_state(state: BorrowedFd<'_>) -> Result<Upgraded, Error> {
    let unreadable = |error: io::Error| refused(format!("the state cannot be read: {error}"));
    let mut file = File::from(state.try_clone_to_owned().map_err(unreadable)?);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    let state =
        Upgraded::decode(bytes.as_slice()).map_err(|error| refused(format!("the state is damaged: {error}")))?;
    if state.protocol < OLDEST_PROTOCOL {
        return Err(refused(format!(
            "version {} wrote it in protocol {}, and this program reads {OLDEST_PROTOCOL} and newer",
            state.from_version, state.protocol
        )));
    }
    for held in &state.attempts {
        let Some(intent) = &held.intent else {
            return Err(refused("an attempt has no name"));
        };
        if held.is_child && held.started.as_ref().is_none_or(|s| s.identity.is_none()) {
            return Err(refused(format!("{} has no identity", intent.id)));
        }
    }
    Ok(state)
}

/// As [`crate::check_state`].
pub(crate) fn check_state(state: BorrowedFd<'_>) -> Result<(), Error> {
    let state = read_state(state)?;
    let mut seen = HashSet::new();
    for held in &state.attempts {
        for fd in [held.pidfd, held.stdout_fd, held.stderr_fd] {
            if fd >= 0 && !seen.insert(fd) {
                return Err(refused(format!("descriptor {fd} is named twice")));
            }
        }
    }
    Ok(())
}

impl Keeper {
    /// Everything a successor needs, and the descriptors it inherits.
    fn freeze(&self) -> (Upgraded, Vec<RawFd>) {
        let mut fds = Vec::new();
        let mut keep = |fd: Option<BorrowedFd<'_>>| {
            fd.map_or(-1, |fd| {
                fds.push(fd.as_raw_fd());
                fd.as_raw_fd()
            })
        };
        let process = self.peer.process();
        let mut state = Upgraded {
            protocol: PROTOCOL,
            shard: self.shard,
            from_version: self.version.clone(),
            socket_fd: keep(self.peer.socket()),
            journal_fd: keep(Some(self.journal.as_fd())),
            attempts: Vec::new(),
            lock_fd: keep(Some(self.lock.as_fd())),
            controller_pid: self.peer.controller_pid().unwrap_or(0),
            controller_pidfd: keep(process.and_then(|(_, pidfd)| pidfd)),
        };
        for (_, attempt) in self.attempts.iter() {
            let (directory, settings) = self.log_of(attempt);
            let log = self.logs.get(attempt.log);
            let mut held = attempt.held(directory, settings, log.map_or_else(Default::default, Log::state));
            held.pidfd = keep(attempt.pidfd.as_ref().map(OwnedFd::as_fd));
            held.stdout_fd = keep(attempt.pipes[0].as_ref().map(OwnedFd::as_fd));
            held.stderr_fd = keep(attempt.pipes[1].as_ref().map(OwnedFd::as_fd));
            state.attempts.push(held);
        }
        (state, fds)
    }

    /// Tries the program on a copy of the state.
    pub(super) fn begin_upgrade(&mut self, binary: String) {
        if self.preflight.is_some() {
            self.fail_upgrade("another upgrade is under way".to_owned());
            return;
        }
        if self.terminate_by.is_some() {
            self.fail_upgrade("the daemon is ending".to_owned());
            return;
        }
        let binary = PathBuf::from(binary);
        let started = self.write_frozen().and_then(|(memory, _)| {
            let number = memory.as_raw_fd();
            let mut command = Command::new(&binary);
            command.arg("keeper-check").arg(number.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
            inherit_on_exec(&mut command, number);
            command.spawn()
        });
        match started {
            Ok(child) => {
                let pid = child.id() as i32;
                self.preflight = Some(Preflight {
                    binary,
                    pid,
                    pidfd: sys::pidfd_open(pid).ok(),
                    give_up_at: Instant::now() + PREFLIGHT_PATIENCE,
                    is_accepted: false,
                });
            }
            Err(error) => self.fail_upgrade(format!("{}: {error}", binary.display())),
        }
    }

    fn write_frozen(&self) -> io::Result<(OwnedFd, Vec<RawFd>)> {
        let (state, fds) = self.freeze();
        let memory = memfd_create("ostler-keeper-state", MemfdFlags::CLOEXEC)?;
        let mut file = File::from(memory);
        file.write_all(&state.encode_to_vec())?;
        Ok((file.into(), fds))
    }

    fn fail_upgrade(&mut self, why: String) {
        self.outbox.push_back(UpgradeFailed { why }.into());
    }

    /// The preflight has ended and was collected.
    pub(super) fn on_preflight(&mut self, status: i32) {
        let Some(preflight) = &mut self.preflight else {
            return;
        };
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
            preflight.is_accepted = true;
            // Now, or when the commands that came before it are done.
            preflight.give_up_at = Instant::now();
            return;
        }
        let how = if libc::WIFSIGNALED(status) {
            format!("ended by signal {}", libc::WTERMSIG(status))
        } else {
            format!("exit code {}", libc::WEXITSTATUS(status))
        };
        let why = format!("{} does not take the state ({how})", preflight.binary.display());
        self.preflight = None;
        self.fail_upgrade(why);
    }

    pub(super) fn check_preflight(&mut self, now: Instant) {
        let Some(preflight) = &self.preflight else {
            return;
        };
        if now < preflight.give_up_at {
            return;
        }
        if preflight.is_accepted {
            if self.commands.is_empty() {
                let binary = preflight.binary.clone();
                let error = self.replace(&binary);
                self.preflight = None;
                self.fail_upgrade(format!("{}: {error}", binary.display()));
            }
            return;
        }
        if let Some(pidfd) = &preflight.pidfd {
            // Its end is reported when it is collected.
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        if let Some(preflight) = &mut self.preflight {
            preflight.give_up_at = now + PREFLIGHT_PATIENCE;
        }
    }

    /// Becomes the other program; returns only if that fails.
    fn replace(&mut self, binary: &Path) -> io::Error {
        // Reports that were not sent yet are levels, and the successor sends them all; only answers have to go now.
        self.flush();
        if let Err(error) = self.journal.write_waiting() {
            return error;
        }
        let (memory, mut fds) = match self.write_frozen() {
            Ok(frozen) => frozen,
            Err(error) => return error,
        };
        fds.push(memory.as_raw_fd());
        let set_all = |closes: bool| fds.iter().try_for_each(|fd| sys::set_cloexec(*fd, closes));
        if let Err(error) = set_all(false) {
            let _ = set_all(true);
            return error;
        }
        let mut arguments: Vec<OsString> = self.upgrade_args.clone();
        arguments.push("--state-fd".into());
        arguments.push(memory.as_raw_fd().to_string().into());
        let error =
            Command::new(binary).args(arguments).env(NOFILE_VARIABLE, self.workload_nofile.0.to_string()).exec();
        let _ = set_all(true);
        error
    }
}

#[allow(unsafe_code, reason = "pre_exec makes a descriptor inheritable")]
fn inherit_on_exec(command: &mut Command, number: RawFd) {
    // SAFETY: these calls are async-signal-safe and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            sys::set_cloexec(number, false)
        });
    }
}

/// Takes over what the predecessor, this very process, has frozen.
pub(super) fn resume(setup: Setup, state_dir: PathBuf, state: Upgraded, journal: Journal) -> Result<Keeper, Error> {
    let inherited = |fd: RawFd| {
        if fd < 0 {
            return Ok(None);
        }
        sys::inherited(fd).map(Some).map_err(|error| refused(format!("descriptor {fd}: {error}")))
    };
    let lock = inherited(state.lock_fd)?.ok_or_else(|| refused("the lock was not handed over"))?;
    // The same file is open anew; this one only kept it from going away.
    drop(inherited(state.journal_fd)?);
    let mut keeper = Keeper::new(setup, state_dir, lock, journal)?;
    for held in state.attempts {
        let Some(intent) = held.intent else { continue };
        let root = keeper.root_of(&intent.cgroup);
        let spawn = Spawn {
            id: intent.id.clone(),
            attempt: intent.attempt,
            name: intent.name.clone(),
            log_dir: intent.log_dir.clone(),
            log: intent.log,
            ..Spawn::default()
        };
        let mut attempt = keeper.new_attempt(&spawn, root);
        attempt.limited = keeper.limited_of(&intent);
        if *intent.boot_id != *attempt.boot_id {
            attempt.boot_id = intent.boot_id.as_str().into();
        }
        if let Some(started) = &held.started {
            set_started(&mut attempt, started);
        }
        if let Some(ended) = held.ended {
            attempt.life = match (&ended.error, ended.tree_empty) {
                (Some(_), _) => Life::FailedToStart,
                (None, true) => Life::Empty,
                (None, false) => Life::Exited,
            };
            attempt.exit = ended.exit.map(Box::new);
            attempt.error = ended.error.map(Box::new);
        }
        attempt.is_child = held.is_child && attempt.life == Life::Running;
        attempt.adopted = !held.is_child;
        attempt.is_handed_out = held.reported;
        attempt.pidfd = inherited(held.pidfd)?;
        attempt.pipes = [inherited(held.stdout_fd)?, inherited(held.stderr_fd)?];
        if let (Some(log), Some(counts)) = (keeper.logs.get_mut(attempt.log), &held.log) {
            log.resume_counts(counts);
        }
        let number = keeper.hold(attempt);
        keeper.resolve(number);
        if held.killing {
            keeper.kill(number);
        }
    }
    let controller_pidfd = inherited(state.controller_pidfd)?;
    match inherited(state.socket_fd)? {
        Some(socket) => {
            let known = (state.controller_pid != 0).then_some((state.controller_pid, controller_pidfd, true));
            keeper.connect(socket, known);
            keeper.greet();
            keeper.begin_snapshot(false);
        }
        None => keeper.start_controller(),
    }
    Ok(keeper)
}
