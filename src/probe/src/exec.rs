//! `exec`: a command in a group of its own, of which nothing is left afterwards.
//!
//! One thread starts and buries all commands. It has to be one that never ends: the kernel kills a command when the
//! thread dies that started it, which is wanted when this process dies and only then. A command and what it forks live
//! in a cgroup below the instance's, which is emptied and removed after the command's end, at its timeout, or by the
//! next controller. Where there are no cgroups, a mark in the environment does the same.
#![allow(unsafe_code, reason = "what happens between fork and exec")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use ostler_core::kinds::ExecProbe;
use ostler_core::verdict::Outcome;
use tokio::sync::oneshot;

use crate::net::readable;
use crate::{Surroundings, Target};

/// Variable in the environment of a command that tells whose it is.
const MARK: &str = "OSTLER_PROBE";
/// So much of the output is kept, bytes.
const OUTPUT: usize = 4096;

/// A command to start.
struct Order {
    command: Command,
    group: Group,
    started: oneshot::Sender<io::Result<Running>>,
}

/// A command that runs; what it is in goes to the grave when this is dropped.
struct Running {
    /// Of the command, and the reading end of its output.
    fds: Option<(OwnedFd, OwnedFd)>,
    grave: Option<(Child, Group)>,
}

/// What holds a command and its offspring together.
enum Group {
    Cgroup(PathBuf),
    Mark(String),
}

enum Job {
    Start(Box<Order>),
    Bury(Option<Child>, Group, Option<oneshot::Sender<ExitStatus>>),
}

fn jobs() -> &'static mpsc::Sender<Job> {
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    JOBS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("probe-exec".to_owned()).spawn(move || work(&receiver));
        if let Err(why) = spawned {
            tracing::error!(%why, "no thread for exec probes");
        }
        sender
    })
}

/// A number that makes the names of groups unique.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs the command once. Dropping the future kills it.
pub(crate) async fn check(exec: &ExecProbe, target: &Target) -> Outcome {
    let surroundings = match &target.surroundings {
        Ok(surroundings) => surroundings,
        Err(why) => return Outcome::CannotRun(why.clone()),
    };
    let (started, running) = oneshot::channel();
    let order = order(exec, surroundings, target, started);
    let job = match order {
        Ok(order) => Job::Start(Box::new(order)),
        Err(why) => return Outcome::CannotRun(format!("cannot make a group for the command: {why}")),
    };
    if jobs().send(job).is_err() {
        return Outcome::CannotRun("there is no thread for commands".to_owned());
    }
    let program = exec.command.first().map(String::as_str).unwrap_or_default();
    let running = match running.await {
        Ok(Ok(running)) => running,
        Ok(Err(why)) => return Outcome::CannotRun(format!("cannot execute {program}: {why}")),
        Err(_) => return Outcome::CannotRun("there is no thread for commands".to_owned()),
    };
    match running.end().await {
        Ok((status, output)) => judge(status, &output),
        Err(why) => Outcome::CannotRun(format!("cannot watch {program}: {why}")),
    }
}

fn judge(status: ExitStatus, output: &[u8]) -> Outcome {
    let output = String::from_utf8_lossy(output).trim().to_owned();
    let said = if output.is_empty() { String::new() } else { format!(": {output}") };
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::Passed(output),
        (Some(code), _) => Outcome::Failed(format!("exit code {code}{said}")),
        (None, Some(signal)) => Outcome::Failed(format!("ended by {}{said}", ostler_core::signal::name(signal))),
        (None, None) => Outcome::Failed(format!("{status}{said}")),
    }
}

fn order(
    exec: &ExecProbe,
    surroundings: &Surroundings,
    target: &Target,
    started: oneshot::Sender<io::Result<Running>>,
) -> io::Result<Order> {
    let expand = |word: &String| ostler_core::expand::expand(word, |name| surroundings.env.get(name).cloned());
    let mut words = exec.command.iter().map(expand);
    let mut command = Command::new(words.next().unwrap_or_default());
    let mark = format!("{}/{}", target.uid, unique());
    command
        .args(words)
        .env_clear()
        .envs(&surroundings.env)
        .env(MARK, &mark)
        .current_dir(&surroundings.working_dir)
        .stdin(Stdio::null());
    let (group, procs) = if target.cgroup.is_empty() {
        (Group::Mark(format!("{MARK}={mark}")), None)
    } else {
        let path = Path::new(&target.cgroup).join(format!("probe-{}-{}", std::process::id(), unique()));
        fs::create_dir(&path)?;
        let group = Group::Cgroup(path.clone());
        match File::options().write(true).open(path.join("cgroup.procs")) {
            Ok(procs) => (group, Some(procs)),
            Err(why) => {
                let _ = fs::remove_dir(&path);
                return Err(why);
            }
        }
    };
    let parent = std::process::id();
    let Surroundings { uid, gid, groups, .. } = surroundings.clone();
    // SAFETY: between fork and exec only system calls are made; everything they need was allocated before.
    unsafe { command.pre_exec(move || settle(parent, procs.as_ref(), uid, gid, &groups)) };
    Ok(Order { command, group, started })
}

/// In the child: joins the group, begins a session, becomes the user, and is tied to its parent's life.
fn settle(parent: u32, procs: Option<&File>, uid: Option<u32>, gid: Option<u32>, groups: &[u32]) -> io::Result<()> {
    let check = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on plain values; the raw ones concern this thread, of which there is only one here.
    unsafe {
        if let Some(procs) = procs {
            check(libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) as libc::c_long)?;
        }
        libc::setsid();
        if let Some(gid) = gid {
            check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        }
        if let Some(uid) = uid {
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        // After the change of user, which resets it.
        check(libc::c_long::from(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)))?;
        if libc::getppid() as u32 != parent {
            libc::_exit(1);
        }
    }
    Ok(())
}

impl Running {
    /// Waits for the end of the command; its status and the beginning of its output.
    async fn end(mut self) -> io::Result<(ExitStatus, Vec<u8>)> {
        let mut output = Vec::new();
        let Some((pidfd, pipe)) = self.fds.take() else { return Err(io::ErrorKind::NotFound.into()) };
        let (ended, pipe) = (readable(pidfd)?, readable(pipe)?);
        loop {
            tokio::select! {
                ready = ended.readable() => {
                    drop(ready?);
                    break;
                }
                ready = pipe.readable() => {
                    let mut ready = ready?;
                    match drain(pipe.get_ref(), &mut output) {
                        Ok(Drained::Empty) => ready.clear_ready(),
                        Ok(Drained::More) => {}
                        // Only the end is to come.
                        Ok(Drained::Closed) | Err(_) => {
                            drop(ended.readable().await?);
                            break;
                        }
                    }
                }
            }
        }
        // What was written last came before the end.
        let _ = drain(pipe.get_ref(), &mut output);
        let Some((child, group)) = self.grave.take() else { return Err(io::ErrorKind::NotFound.into()) };
        let (told, status) = oneshot::channel();
        let _ = jobs().send(Job::Bury(Some(child), group, Some(told)));
        let status = status.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok((status, output))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((child, group)) = self.grave.take() {
            let _ = jobs().send(Job::Bury(Some(child), group, None));
        }
    }
}

/// What a look into a pipe ended with.
enum Drained {
    /// There is nothing more now.
    Empty,
    /// There may be more.
    More,
    /// Every writer has closed it.
    Closed,
}

/// Reads what is there, and keeps the beginning.
fn drain(pipe: &OwnedFd, output: &mut Vec<u8>) -> io::Result<Drained> {
    let mut buffer = [0; 4096];
    // Bounded: who writes without end must not keep us from seeing the time.
    for _ in 0..64 {
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => return Ok(Drained::Closed),
            Ok(read) => {
                let room = OUTPUT.saturating_sub(output.len());
                output.extend_from_slice(&buffer[..read.min(room)]);
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(Drained::Empty),
            Err(rustix::io::Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(Drained::More)
}

/// The thread: starts what is ordered, and looks after the graves until nothing moves in them.
fn work(receiver: &mpsc::Receiver<Job>) {
    let mut graves: Vec<Grave> = Vec::new();
    loop {
        let job = if graves.is_empty() {
            match receiver.recv() {
                Ok(job) => Some(job),
                Err(_) => return,
            }
        } else {
            match receiver.recv_timeout(Duration::from_millis(10)) {
                Ok(job) => Some(job),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        };
        match job {
            Some(Job::Start(order)) => {
                let Order { mut command, group, started } = *order;
                let (running, leftover) = start(&mut command, group);
                graves.extend(leftover.map(|group| Grave { child: None, group, told: None, quiet: 0 }));
                // Dropped when nobody waits any more, and then buried.
                let _ = started.send(running);
            }
            Some(Job::Bury(child, group, told)) => {
                let mut grave = Grave { child, group, told, quiet: 0 };
                if !grave.close() {
                    graves.push(grave);
                }
            }
            None => graves.retain_mut(|grave| !grave.close()),
        }
    }
}

fn start(command: &mut Command, group: Group) -> (io::Result<Running>, Option<Group>) {
    let spawned = (|| {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn()?;
        Ok((child, reader))
    })();
    // The command holds the writing end of the pipe.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (child, output) = match spawned {
        Ok(spawned) => spawned,
        Err(why) => return (Err(why), Some(group)),
    };
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd = pid.ok_or(io::Error::from(io::ErrorKind::InvalidInput)).and_then(|pid| {
        // It is our child and was not waited for: the number is still its own.
        Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
    });
    match pidfd {
        Ok(pidfd) => (Ok(Running { fds: Some((pidfd, output)), grave: Some((child, group)) }), None),
        Err(why) => {
            let _ = jobs().send(Job::Bury(Some(child), group, None));
            (Err(why), None)
        }
    }
}

/// A command that has ended or has to.
struct Grave {
    child: Option<Child>,
    group: Group,
    told: Option<oneshot::Sender<ExitStatus>>,
    /// So many looks in a row found nobody.
    quiet: u32,
}

impl Grave {
    /// Kills what lives of it; true when nothing is left.
    fn close(&mut self) -> bool {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(Some(status)) => {
                    self.child = None;
                    if let Some(told) = self.told.take() {
                        let _ = told.send(status);
                    }
                }
                Ok(None) => {
                    let _ = child.kill();
                }
                Err(_) => self.child = None,
            }
        }
        let empty = self.group.close() && self.child.is_none();
        self.quiet = if empty { self.quiet + 1 } else { 0 };
        // A process that is just being forked or executed cannot be seen by its environment; a cgroup hides nobody.
        let enough = match self.group {
            Group::Cgroup(_) => 1,
            Group::Mark(_) => 4,
        };
        self.quiet >= enough
    }
}

impl Group {
    /// Kills who is in it; true when it is empty, and gone.
    fn close(&self) -> bool {
        match self {
            Self::Cgroup(path) => close_cgroup(path),
            Self::Mark(mark) => {
                let marked = marked(mark.as_bytes(), true);
                for pidfd in &marked {
                    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
                }
                marked.is_empty()
            }
        }
    }
}

fn close_cgroup(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    if fs::write(path.join("cgroup.kill"), "1").is_err() {
        // cgroup v1: one by one, by a descriptor that is only used for who is still in the group.
        let members = || {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|line| line.parse::<i32>().ok()).collect::<Vec<_>>()
        };
        let opened: Vec<(i32, OwnedFd)> = members()
            .into_iter()
            .filter_map(|pid| {
                let fd = rustix::process::pidfd_open(
                    rustix::process::Pid::from_raw(pid)?,
                    rustix::process::PidfdFlags::empty(),
                );
                Some((pid, fd.ok()?))
            })
            .collect();
        let still = members();
        for (pid, pidfd) in opened {
            if still.contains(&pid) {
                let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            }
        }
    }
    // Whoever began a group below is killed with this one on v2.
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            close_cgroup(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok()
}

/// The processes with this entry in their environment, or, unless it is `whole`, with one that begins so.
fn marked(mark: &[u8], whole: bool) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    let mut environment = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(rustix::process::Pid::from_raw)
        else {
            continue;
        };
        let mut has = || {
            environment.clear();
            let read = File::open(entry.path().join("environ")).and_then(|mut file| file.read_to_end(&mut environment));
            read.is_ok()
                && environment
                    .split(|byte| *byte == 0)
                    .any(|entry| if whole { entry == mark } else { entry.starts_with(mark) })
        };
        if !has() {
            continue;
        }
        // Looked at once more when there is a descriptor: the number may have changed hands.
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            && has()
        {
            found.push(pidfd);
        }
    }
    found
}

/// Ends what an earlier controller has left behind of its checks of this instance.
pub(crate) fn bury_leftovers(target: &Arc<Target>) {
    if target.cgroup.is_empty() {
        for pidfd in marked(format!("{MARK}={}/", target.uid).as_bytes(), false) {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        }
        return;
    }
    let own = format!("probe-{}-", std::process::id());
    for entry in fs::read_dir(&target.cgroup).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_bytes().starts_with(b"probe-") && !is_own(&name, &own) {
            let _ = jobs().send(Job::Bury(None, Group::Cgroup(entry.path()), None));
        }
    }
}

fn is_own(name: &OsStr, own: &str) -> bool {
    name.as_bytes().starts_with(own.as_bytes())
}
