//! `exec` of probes and hooks: a command in a group of its own, of which nothing is left afterwards.
//!
//! Threads that never end start the commands: the kernel kills a command when the thread dies that started it, which is
//! wanted when this process dies and only then. There is another thread whenever all are busy, up to a bound, because a
//! program on a file system that does not answer holds its starter up. A command and what it forks live in a cgroup below
//! the instance's, which is emptied and removed after the command's end, at its timeout, or by the next controller. Where
//! there are no cgroups, a mark in the environment does the same. Who buries them is in `graves`.
#![allow(unsafe_code, reason = "what happens between fork and exec")]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use ostler_core::Span;
use ostler_core::kinds::ExecProbe;
use ostler_core::verdict::Outcome;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::graves::{self, Group, MARK, Place};
use crate::net::readable;
use crate::{Surroundings, Target};

/// So much of the output is kept, bytes.
const OUTPUT: usize = 4096;
/// The most threads that start commands: as many as there may be commands under way.
const STARTERS: usize = 32;

/// Room for one command: that of the next check has to wait until the one before is gone.
#[derive(Clone, Debug)]
pub(crate) struct Plot(Arc<Semaphore>);

impl Default for Plot {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Plot {
    /// Whether nothing is left of the check before.
    pub(crate) fn is_free(&self) -> bool {
        self.0.available_permits() > 0
    }

    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    /// Takes it when nothing is left of the command before.
    pub(crate) async fn taken(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

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

/// The threads that start commands, and what they are to start.
#[derive(Default)]
struct Starters {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    threads: usize,
    idle: usize,
}

impl Starters {
    fn get() -> &'static Self {
        static STARTERS: OnceLock<Starters> = OnceLock::new();
        STARTERS.get_or_init(Self::default)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&'static self, order: Order) -> io::Result<()> {
        let mut queue = self.lock();
        if queue.idle <= queue.orders.len() && queue.threads < STARTERS {
            match std::thread::Builder::new().name("probe-exec".to_owned()).spawn(|| self.work()) {
                Ok(_) => queue.threads += 1,
                Err(why) if queue.threads == 0 => {
                    graves::bury(None, order.group, None);
                    return Err(why);
                }
                // One of the others will get there.
                Err(why) => tracing::debug!(%why, "no further thread for commands"),
            }
        }
        queue.orders.push_back(order);
        self.more.notify_one();
        Ok(())
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let order = loop {
                if let Some(order) = queue.orders.pop_front() {
                    break order;
                }
                queue.idle += 1;
                queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            };
            drop(queue);
            let Order { mut command, group, started } = order;
            if started.is_closed() {
                // It came too late for whoever waited.
                graves::bury(None, group, None);
                continue;
            }
            // Dropped when nobody waits any more, and then buried.
            let _ = started.send(start(&mut command, group));
        }
    }
}

/// A number that makes the names of groups unique.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs the command of a probe once, for `timeout` at most from when it has begun. Dropping the future kills it. What
/// could not begin within `timeout` could not be run.
pub(crate) async fn check(exec: &ExecProbe, target: &Target, plot: &Plot, timeout: Span) -> Outcome {
    let surroundings = match &target.surroundings {
        Ok(surroundings) => surroundings,
        Err(why) => return Outcome::CannotRun(why.clone()),
    };
    let Some(room) = plot.take() else { return Outcome::CannotRun(HELD.to_owned()) };
    let site = Site { uid: &target.uid, group: Site::below(&target.cgroup), surroundings };
    let mut output = Output::beginning();
    match run(&exec.command, &site, room, timeout, &mut output).await {
        Ok(Ended::Exited(status)) => judge(status, &output.kept),
        Ok(Ended::TimedOut) => Outcome::Failed(format!("no answer within {timeout}")),
        Err(why) => Outcome::CannotRun(why),
    }
}

/// Where a command runs, and as what.
pub(crate) struct Site<'a> {
    /// Of the instance.
    pub(crate) uid: &'a str,
    /// What the path of its cgroup begins with; none when there are no cgroups.
    pub(crate) group: Option<PathBuf>,
    pub(crate) surroundings: &'a Surroundings,
}

impl Site<'_> {
    /// The beginning of the paths of groups below that of an attempt.
    pub(crate) fn below(cgroup: &str) -> Option<PathBuf> {
        (!cgroup.is_empty()).then(|| Path::new(cgroup).join(graves::BELOW))
    }
}

/// How a command that was run came to an end.
pub(crate) enum Ended {
    Exited(ExitStatus),
    TimedOut,
}

/// Runs a command for `timeout` at most from when it has begun; or says why it could not be run, also when it could not
/// begin within `timeout`. Dropping the future kills it.
pub(crate) async fn run(
    command: &[String],
    site: &Site<'_>,
    room: OwnedSemaphorePermit,
    timeout: Span,
    output: &mut Output,
) -> Result<Ended, String> {
    let program = command.first().map(String::as_str).unwrap_or_default();
    let (started, running) = oneshot::channel();
    let order =
        order(command, site, room, started).map_err(|why| format!("cannot make a group for the command: {why}"))?;
    let begun = Beginning(Some(order.group.place.clone()));
    if let Err(why) = Starters::get().submit(order) {
        return Err(format!("there is no thread to start {program}: {why}"));
    }
    let running = match tokio::time::timeout(timeout.to_std(), running).await {
        Ok(Ok(Ok(running))) => running,
        Ok(Ok(Err(why))) => return Err(format!("cannot execute {program}: {why}")),
        Ok(Err(_)) => return Err("there is no thread for commands".to_owned()),
        Err(_) => return Err(format!("{program} could not be started within {timeout}")),
    };
    begun.done();
    match tokio::time::timeout(timeout.to_std(), running.end(output)).await {
        Ok(Ok(status)) => Ok(Ended::Exited(status)),
        Ok(Err(why)) => Err(format!("cannot watch {program}: {why}")),
        Err(_) => Ok(Ended::TimedOut),
    }
}

/// What is kept of what a command says.
pub(crate) struct Output {
    /// At most about [`OUTPUT`] bytes, or twice as many of the end.
    pub(crate) kept: Vec<u8>,
    end: bool,
}

impl Output {
    pub(crate) fn beginning() -> Self {
        Self { kept: Vec::new(), end: false }
    }

    pub(crate) fn end() -> Self {
        Self { kept: Vec::new(), end: true }
    }

    fn add(&mut self, said: &[u8]) {
        let room = if self.end { said.len() } else { OUTPUT.saturating_sub(self.kept.len()).min(said.len()) };
        self.kept.extend_from_slice(&said[..room]);
        if self.kept.len() > 2 * OUTPUT {
            self.kept.drain(..self.kept.len() - OUTPUT);
        }
    }
}

/// What is said when the command of the check before is not gone.
pub(crate) const HELD: &str =
    "the command of the check before was killed and is not gone; it may wait for a disk that does not answer";

/// A command that is being started: who gives up on it sets its starter free, if a signal can.
struct Beginning(Option<Place>);

impl Beginning {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        if let Some(place) = self.0.take() {
            graves::disturb(place);
        }
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
    command: &[String],
    site: &Site<'_>,
    room: OwnedSemaphorePermit,
    started: oneshot::Sender<io::Result<Running>>,
) -> io::Result<Order> {
    let surroundings = site.surroundings;
    let expand = |word: &String| {
        let known = |name: &str| surroundings.env.get(name).filter(|_| !surroundings.hidden.contains(name)).cloned();
        ostler_core::expand::expand(word, known)
    };
    let mut words = command.iter().map(expand);
    let mut command = Command::new(words.next().unwrap_or_default());
    let mark = format!("{}/{}{}", site.uid, graves::own(), unique());
    command
        .args(words)
        .env_clear()
        .envs(&surroundings.env)
        .env(MARK, &mark)
        .current_dir(&surroundings.working_dir)
        .stdin(Stdio::null());
    let (place, procs) = match &site.group {
        None => (Place::Mark(mark), None),
        Some(prefix) => {
            let mut path = prefix.clone().into_os_string();
            path.push(format!("{}{}", graves::own(), unique()));
            let path = PathBuf::from(path);
            fs::create_dir(&path)?;
            match File::options().write(true).open(path.join("cgroup.procs")) {
                Ok(procs) => (Place::Cgroup(path), Some(procs)),
                Err(why) => {
                    let _ = fs::remove_dir(&path);
                    return Err(why);
                }
            }
        }
    };
    let parent = std::process::id();
    let Surroundings { uid, gid, groups, .. } = surroundings.clone();
    // SAFETY: between fork and exec only system calls are made; everything they need was allocated before.
    unsafe { command.pre_exec(move || settle(parent, procs.as_ref(), uid, gid, &groups)) };
    Ok(Order { command, group: Group { place, room: Some(Arc::new(room)) }, started })
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
    /// Waits for the end of the command, and takes what it says.
    async fn end(mut self, output: &mut Output) -> io::Result<ExitStatus> {
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
                    match drain(pipe.get_ref(), output) {
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
        let _ = drain(pipe.get_ref(), output);
        let Some((child, group)) = self.grave.take() else { return Err(io::ErrorKind::NotFound.into()) };
        let (told, status) = oneshot::channel();
        graves::bury(Some(child), group, Some(told));
        let status = status.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((child, group)) = self.grave.take() {
            graves::bury(Some(child), group, None);
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

/// Reads what is there.
fn drain(pipe: &OwnedFd, output: &mut Output) -> io::Result<Drained> {
    let mut buffer = [0; 4096];
    // Bounded: who writes without end must not keep us from seeing the time.
    for _ in 0..64 {
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => return Ok(Drained::Closed),
            Ok(read) => output.add(&buffer[..read]),
            Err(rustix::io::Errno::AGAIN) => return Ok(Drained::Empty),
            Err(rustix::io::Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(Drained::More)
}

fn start(command: &mut Command, group: Group) -> io::Result<Running> {
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
        Err(why) => {
            graves::bury(None, group, None);
            return Err(why);
        }
    };
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd = pid.ok_or(io::Error::from(io::ErrorKind::InvalidInput)).and_then(|pid| {
        // It is our child and was not waited for: the number is still its own.
        Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
    });
    match pidfd {
        Ok(pidfd) => Ok(Running { fds: Some((pidfd, output)), grave: Some((child, group)) }),
        Err(why) => {
            graves::bury(Some(child), group, None);
            Err(why)
        }
    }
}
