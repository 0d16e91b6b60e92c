//! The loop: waits for signals, pipes, the controller and timers, and does what each asks for, a bounded amount at a
//! time.

mod attempt;
mod chores;
mod commands;
mod controller;
mod exits;
mod limiting;
mod output;
mod recover;
mod spawn;
mod tree;
mod upgrade;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::cgroup::{self, Found, Root, Version};
use crate::journal::Journal;
use crate::limits::Controllers;
use crate::logs::Log;
use crate::slab::Slab;
use crate::sys::launch::{Join, Launcher, Program};
use crate::wire::{Command, Report};
use crate::{CgroupPreference, Config, ControllerCommand, Error, Start, sys};

use attempt::{Attempt, Instance};
use chores::Chore;
use controller::Peer;
use upgrade::Preflight;

pub(crate) use upgrade::check_state;

/// The soft limit of open files that workloads get, for keepers that are started with the limit raised already.
const NOFILE_VARIABLE: &str = "OSTLER_NOFILE";

/// How long the controller may take to answer a Terminate.
const TERMINATE_PATIENCE: Duration = Duration::from_secs(15);

/// How long before what failed for want of disk space is tried again.
const JOURNAL_RETRY: Duration = Duration::from_millis(250);

/// How long after a command the memory for it may be needed again soon.
const RELEASE: Duration = Duration::from_secs(3);

/// What an epoll event is about: the kind in the upper byte, then the generation and the number of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Socket,
    Stdout(u32),
    Stderr(u32),
    Pidfd(u32),
    Tree(u32),
}

impl Source {
    fn token(self, attempts: &Slab<Attempt>) -> u64 {
        let (kind, number) = match self {
            Self::Signals => (0_u64, None),
            Self::Socket => (1, None),
            Self::Stdout(number) => (2, Some(number)),
            Self::Stderr(number) => (3, Some(number)),
            Self::Pidfd(number) => (4, Some(number)),
            Self::Tree(number) => (5, Some(number)),
        };
        let generation = number.map_or(0, |number| attempts.generation(number));
        kind << 56 | u64::from(generation) << 32 | u64::from(number.unwrap_or(0))
    }

    /// `None` for an attempt that is gone since.
    fn of(token: u64, attempts: &Slab<Attempt>) -> Option<Self> {
        let number = token as u32;
        let is_current =
            attempts.generation(number) == (token >> 32) as u32 & 0xff_ffff && attempts.get(number).is_some();
        match token >> 56 {
            0 => Some(Self::Signals),
            1 => Some(Self::Socket),
            _ if !is_current => None,
            2 => Some(Self::Stdout(number)),
            3 => Some(Self::Stderr(number)),
            4 => Some(Self::Pidfd(number)),
            5 => Some(Self::Tree(number)),
            _ => None,
        }
    }
}

/// Everything a keeper has.
#[derive(Debug)]
pub(crate) struct Keeper {
    state_dir: PathBuf,
    shard: u32,
    version: String,
    controller_command: ControllerCommand,
    upgrade_args: Vec<OsString>,
    boot_id: Rc<str>,
    workload_nofile: (u64, u64),
    /// Soft limit of open files of the keeper itself.
    nofile: u64,

    epoll: OwnedFd,
    signals: OwnedFd,
    null: OwnedFd,
    lock: OwnedFd,
    launcher: Launcher,
    journal: Journal,
    journal_retry: Option<Instant>,
    trees: Found,
    controllers: Controllers,
    /// Roots of attempts that were started with another one, by path.
    other_roots: Vec<Rc<Root>>,

    attempts: Slab<Attempt>,
    by_pid: HashMap<i32, u32>,
    instances: HashMap<Rc<str>, Instance>,
    /// The newest attempt of instances of which the journal says nothing else.
    remembered: HashMap<Rc<str>, u64>,
    /// Instances without attempts, the first one to drop first.
    idle_instances: VecDeque<Rc<str>>,
    logs: Slab<Log>,
    logs_by_directory: HashMap<Box<str>, u32>,
    open_logs: VecDeque<u32>,
    blocked_logs: Vec<u32>,
    /// Attempts with a `check_at`.
    watched: Vec<u32>,
    chores: VecDeque<Chore>,
    /// While there are chores: since when they wait, and until when for quiet.
    chores_wait: Option<(Instant, Instant)>,

    peer: Peer,
    commands: VecDeque<(Command, Vec<OwnedFd>)>,
    outbox: VecDeque<Report>,
    dirty: VecDeque<u32>,
    snapshot_left: Option<usize>,
    awaits_handoff: bool,
    preflight: Option<Preflight>,
    terminate_by: Option<Instant>,
    /// When the memory that was needed for commands is given back.
    release_at: Option<Instant>,
    terminations: u32,
    ending: Option<i32>,
}

impl Keeper {
    /// Prepares everything; nothing is started yet.
    fn new(setup: Setup, state_dir: PathBuf, lock: OwnedFd, journal: Journal) -> Result<Self, Error> {
        let system = |action| move |source: io::Error| Error::System { action, source };
        let boot_id = crate::wire::boot_id().map_err(system("read the boot id"))?;
        let inherited_soft =
            if setup.is_fresh { None } else { std::env::var(NOFILE_VARIABLE).ok().and_then(|text| text.parse().ok()) };
        let (soft, hard) = sys::open_files_limit();
        sys::set_open_files_limit(hard, hard);
        let (nofile, _) = sys::open_files_limit();
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| system("become a child subreaper")(errno.into()))?;
        let signals = sys::take_over_signals().map_err(system("take over signals"))?;
        let mut launcher = Launcher::new(sys::ignored_signals()).map_err(system("prepare to start processes"))?;
        let trees = cgroup::find(setup.cgroups, &state_dir, |root| try_out(&mut launcher, root))?;
        let controllers = Controllers::new(setup.cgroups, trees.root.clone(), cgroup::directory_name(&state_dir));
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| system("create an epoll set")(errno.into()))?;
        let keeper = Self {
            state_dir,
            shard: setup.shard,
            version: setup.version,
            controller_command: setup.controller,
            upgrade_args: setup.upgrade_args,
            boot_id: boot_id.into(),
            workload_nofile: (inherited_soft.unwrap_or(soft), hard),
            nofile,
            epoll,
            signals,
            null: sys::open_null().map_err(system("open /dev/null"))?,
            lock,
            launcher,
            journal,
            journal_retry: None,
            trees,
            controllers,
            other_roots: Vec::new(),
            attempts: Slab::new(),
            by_pid: HashMap::new(),
            instances: HashMap::new(),
            remembered: HashMap::new(),
            idle_instances: VecDeque::new(),
            logs: Slab::new(),
            logs_by_directory: HashMap::new(),
            open_logs: VecDeque::new(),
            blocked_logs: Vec::new(),
            watched: Vec::new(),
            chores: VecDeque::new(),
            chores_wait: None,
            peer: Peer::new(),
            commands: VecDeque::new(),
            outbox: VecDeque::new(),
            dirty: VecDeque::new(),
            snapshot_left: None,
            awaits_handoff: false,
            preflight: None,
            terminate_by: None,
            release_at: Some(Instant::now() + RELEASE),
            terminations: 0,
            ending: None,
        };
        keeper
            .watch(keeper.signals.as_fd(), Source::Signals, epoll::EventFlags::IN)
            .map_err(system("watch for signals"))?;
        Ok(keeper)
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(source.token(&self.attempts));
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        // Fails when it was not watched, which is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Runs until something sets the exit code.
    fn run(&mut self) -> i32 {
        // Children may have ended before the signalfd existed.
        self.reap();
        let mut events = Vec::with_capacity(256);
        loop {
            if let Some(code) = self.ending {
                return self.end(code);
            }
            let timeout = self.timeout();
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    // Cannot happen with a valid descriptor; spinning or dying would both be worse than slowing down.
                    sys::say(&format_args!("epoll_wait: {errno}"));
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            let is_idle = events.is_empty();
            for event in &events {
                let (flags, data) = (event.flags, event.data);
                match Source::of(data.u64(), &self.attempts) {
                    Some(Source::Signals) => self.on_signals(),
                    Some(Source::Socket) => self.on_socket(flags),
                    Some(Source::Stdout(number)) => self.on_output(number, 0),
                    Some(Source::Stderr(number)) => self.on_output(number, 1),
                    Some(Source::Pidfd(number)) => self.on_pidfd(number),
                    Some(Source::Tree(number)) => self.check_tree(number),
                    None => {}
                }
            }
            self.on_time();
            self.do_commands();
            self.mind_chores(is_idle);
            self.flush();
        }
    }

    /// How long to sleep: not at all with work at hand, for ever with nothing pending.
    fn timeout(&self) -> Option<Timespec> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !self.commands.is_empty() {
            return Some(zero);
        }
        let deadline = [
            self.journal_retry,
            self.terminate_by,
            self.release_at,
            self.chores_wait.map(|(_, until)| until),
            self.peer.deadline(),
            self.preflight.as_ref().map(|preflight| preflight.give_up_at),
        ]
        .into_iter()
        .flatten()
        .chain(self.blocked_logs.iter().filter_map(|log| self.logs.get(*log)?.retry_at()))
        .chain(self.watched.iter().filter_map(|number| self.attempts.get(*number)?.check_at))
        .min()?;
        let left = deadline.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    /// Does what is due.
    fn on_time(&mut self) {
        if self.blocked_logs.is_empty()
            && self.watched.is_empty()
            && self.journal_retry.is_none()
            && self.terminate_by.is_none()
            && self.release_at.is_none()
            && self.preflight.is_none()
            && self.peer.deadline().is_none()
            && !self.journal.is_waiting()
        {
            return;
        }
        let now = Instant::now();
        self.retry_logs(now);
        self.check_due(now);
        if self.journal.is_waiting() {
            if self.journal_retry.is_none_or(|at| now >= at) {
                self.journal_retry = match self.journal.write_waiting() {
                    Ok(()) => None,
                    Err(_) => Some(now + JOURNAL_RETRY),
                };
            }
        } else {
            self.journal_retry = None;
        }
        if self.terminate_by.is_some_and(|by| now >= by) {
            sys::say(&format_args!("the controller did not answer in time; ending without it, the workloads go on"));
            self.ending = Some(0);
        }
        if self.release_at.is_some_and(|at| now >= at) {
            self.release_at = None;
            sys::release_memory();
        }
        self.check_preflight(now);
        self.check_controller(now);
    }

    fn on_signals(&mut self) {
        while let Some(signal) = sys::read_signal(self.signals.as_fd()) {
            match signal {
                libc::SIGCHLD => self.reap(),
                _ => self.on_terminate(signal),
            }
        }
    }

    fn end(&mut self, code: i32) -> i32 {
        self.flush();
        self.end_controller();
        let _ = self.journal.write_waiting();
        while !self.chores.is_empty() {
            self.do_chores();
        }
        if let Some(root) = &self.trees.root {
            root.remove_if_unused();
        }
        for root in self.controllers.beside_roots() {
            root.remove_if_unused();
        }
        code
    }
}

/// Puts a process into a group of its own below `root`: in vain, but only for want of a program.
fn try_out(launcher: &mut Launcher, root: &Root) -> io::Result<()> {
    let name = format!("probe.{}", std::process::id());
    root.make(&name)?;
    let could = launcher.bears_into_groups();
    let mut result = enter(launcher, root, &name);
    if result.is_err() && could && !launcher.bears_into_groups() {
        // Only now it is known that this kernel has no clone3: children have to walk in.
        result = enter(launcher, root, &name);
    }
    let _ = root.remove(&name);
    result
}

fn enter(launcher: &mut Launcher, root: &Root, name: &str) -> io::Result<()> {
    let null = sys::open_null()?;
    let (directory, procs);
    let join = match root.version {
        Version::V2 if launcher.bears_into_groups() => {
            directory = root.directory(name)?;
            Join::Into(directory.as_fd())
        }
        Version::V2 | Version::V1 { .. } => {
            procs = root.procs(name)?;
            Join::Procs(procs.as_fd())
        }
    };
    let outcome = launcher.launch(&Program {
        candidates: &[],
        argv: &[],
        env: &[],
        working_dir: &c"/".to_owned(),
        uid: None,
        gid: None,
        groups: None,
        umask: None,
        limits: &[],
        no_new_privileges: false,
        nice: None,
        oom_score_adj: None,
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        join,
        also: &[],
        dies_with_keeper_before_exec: true,
    });
    match outcome {
        Err(error) if error.stage == crate::wire::spawn_error::Stage::Exec => Ok(()),
        Err(error) => Err(error.error),
        Ok(_) => Err(io::ErrorKind::Other.into()),
    }
}

/// A [`Config`] without its `start`.
pub(crate) struct Setup {
    shard: u32,
    controller: ControllerCommand,
    upgrade_args: Vec<OsString>,
    cgroups: CgroupPreference,
    version: String,
    /// Whether the soft limit of open files is still the one for workloads.
    is_fresh: bool,
}

/// Runs a keeper to its end.
pub(crate) fn run(config: Config) -> Result<i32, Error> {
    sys::close_all_on_exec();
    let state_dir = canonical(&config.state_dir)?;
    let path = state_dir.join(format!("keeper-{}.journal", config.shard));
    let (journal, records) = Journal::open(&path).map_err(|source| Error::State { action: "open", path, source })?;
    let setup = Setup {
        shard: config.shard,
        controller: config.controller,
        upgrade_args: config.upgrade_args,
        cgroups: config.cgroups,
        version: config.version,
        is_fresh: matches!(config.start, Start::Fresh { .. }),
    };
    match config.start {
        Start::Fresh { lock } => {
            let mut keeper = Keeper::new(setup, state_dir, lock, journal)?;
            keeper.say_who_holds_the_lock();
            keeper.recover(records);
            keeper.resolve_all();
            keeper.start_controller();
            Ok(keeper.run())
        }
        Start::Orphaned { socket, lock } => {
            let mut keeper = Keeper::new(setup, state_dir, lock, journal)?;
            keeper.say_who_holds_the_lock();
            keeper.recover(records);
            keeper.awaits_handoff = true;
            keeper.connect(socket, None);
            Ok(keeper.run())
        }
        Start::Resumed { state } => {
            let upgraded = upgrade::read_state(state.as_fd())?;
            let mut keeper = upgrade::resume(setup, state_dir, upgraded, journal)?;
            Ok(keeper.run())
        }
    }
}

fn canonical(state_dir: &Path) -> Result<PathBuf, Error> {
    state_dir.canonicalize().map_err(|source| Error::State { action: "use", path: state_dir.to_owned(), source })
}
